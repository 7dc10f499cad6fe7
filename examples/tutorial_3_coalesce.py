"""Tutorial, step 3: a sink that takes its time, and what becomes of signals meanwhile."""

from __future__ import annotations

import asyncio

from aioirqfd import EventFd, Interrupt, IrqFd, IrqManager
from aioirqfd.sinks import CallbackSink


# docs: begin example
async def deliver(interrupt: Interrupt) -> None:
    """Where interrupts end: a coroutine, so it may wait."""
    await asyncio.sleep(0)
    print("delivered: gsi", interrupt.gsi)


async def on_wakeup(irqfd: IrqFd, count: int) -> None:
    """Runs before each injection, and is told how many signals it stands for."""
    print("wakeup: gsi", irqfd.gsi, "count", count)


async def main() -> None:
    """Signal three times before the sink gets a turn, then once more."""
    async with IrqManager(CallbackSink(deliver)) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=on_wakeup)
            for _ in range(3):
                kick.signal()
            await irqs.flush()
            kick.signal()
            await irqs.flush()
            counts = irqfd.statistics()
            print(counts.signals, "signals,", counts.injections, "injections,", counts.coalesced, "coalesced")


# docs: end example
asyncio.run(main())
