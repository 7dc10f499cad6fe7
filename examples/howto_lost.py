"""Five programs in which an interrupt does not come, and the one question that says why."""

from __future__ import annotations

import asyncio

from aioirqfd import EventFd, IrqFd, IrqManager, NullTracer
from aioirqfd.irqchip import Pic
from aioirqfd.sinks import RecordingSink

DATA = asyncio.Event()


async def read_data(_irqfd: IrqFd, _count: int) -> None:
    """A wakeup handler that waits for what does not come."""
    await DATA.wait()


async def main() -> None:
    """Signal once in each program, and ask."""
    pic = Pic()  # its guest has programmed nothing yet, and then masks everything
    for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 0x04), (0x21, 0x01), (0x21, 0xFF)):
        pic.io_write(port, value)
    async with (
        IrqManager(RecordingSink()) as paused,
        IrqManager(RecordingSink()) as masked,
        IrqManager(RecordingSink(), routing={}, tracer=NullTracer()) as unrouted,
        IrqManager(RecordingSink()) as waiting,
        IrqManager(pic) as chip,
    ):
        kicks = [EventFd() for _ in range(5)]
        # docs: begin hang
        paused.assign(kicks[0], gsi=5)
        await paused.pause()
        masked.assign(kicks[1], gsi=5).mask()
        unrouted.assign(kicks[2], gsi=5)
        waiting.assign(kicks[3], gsi=5, wakeup=read_data)
        chip.assign(kicks[4], gsi=5)
        for kick in kicks:
            kick.signal()
        await asyncio.sleep(0)
        for irqs in (paused, masked, unrouted, waiting, chip):
            print(irqs.explain(5))
        # docs: end hang
        DATA.set()
        for kick in kicks:
            kick.close()


asyncio.run(main())
