"""The example of the README: an eventfd bound to a gsi, and two signals."""

# ruff: noqa: D103
# (the README says what main does)
from __future__ import annotations

# docs: begin example
import asyncio
import os

from aioirqfd import EventFd, IrqManager
from aioirqfd.sinks import RecordingSink


async def main() -> None:
    sink = RecordingSink()  # or a KVM guest, a PIC, an object of your own
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal()  # from any thread; here it is injected before the next line
            os.eventfd_write(kick.fileno(), 1)  # from C, a process, the kernel
            await irqs.flush()  # every signal sent before this line has been injected
            print(*sink.interrupts, irqfd.statistics(), sep="\n")
            await irqs.deassign(irqfd)  # nothing of it runs any more


asyncio.run(main())
# docs: end example
