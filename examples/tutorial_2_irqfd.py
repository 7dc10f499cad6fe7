"""Tutorial, step 2: an eventfd becomes an interrupt."""

from __future__ import annotations

import asyncio

from aioirqfd import EventFd, IrqManager, Msi
from aioirqfd.sinks import RecordingSink


async def main() -> None:
    """Bind an eventfd, signal it, route it elsewhere."""
    # docs: begin bind
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal()
            print(sink.interrupts)
            # docs: end bind

            # docs: begin route
            irqs.set_routing({5: Msi(address=0xFEE00000, data=0x31)})
            kick.signal()
            print(sink.interrupts[-1])
            # docs: end route

            # docs: begin deassign
            await irqs.deassign(irqfd)
            kick.signal()
            print(len(sink.interrupts), "interrupts,", kick.read_nowait(), "in the eventfd")
            # docs: end deassign


asyncio.run(main())
