"""From signal to injection: interrupts and their routes, the work queue, irqfds and their manager."""
