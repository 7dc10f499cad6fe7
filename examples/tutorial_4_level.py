"""Tutorial, step 4: a level-triggered line, by hand."""

from __future__ import annotations

import asyncio

from aioirqfd import EventFd, IrqManager
from aioirqfd.sinks import RecordingSink


async def main() -> None:
    """Raise a line, acknowledge it, see who is told."""
    sink = RecordingSink()

    def show(what: str) -> None:
        print(f"{what}:", *(interrupt.action.name for interrupt in sink.interrupts))
        sink.interrupts.clear()

    # docs: begin example
    async with IrqManager(sink) as irqs:
        with EventFd() as trigger, EventFd() as resample:
            irqs.assign(trigger, gsi=9, resamplefd=resample)
            trigger.signal()
            show("first signal")
            trigger.signal()
            show("second signal")
            irqs.ack(9)
            show("end of interrupt")
            print("resamplefd:", resample.read_nowait())
    # docs: end example


asyncio.run(main())
