"""Mask an interrupt without losing what is signalled meanwhile."""

from __future__ import annotations

import asyncio
from typing import Literal

from aioirqfd import EventFd, IrqManager, Msi, NullTracer
from aioirqfd.sinks import RecordingSink

VECTOR = Msi(address=0xFEE00000, data=0x41)


# docs: begin mask
async def mask() -> None:
    """A driver masks its vector, and moves it before it unmasks."""
    sink = RecordingSink()
    async with IrqManager(sink, routing={5: VECTOR}) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            irqfd.mask()
            kick.signal()
            await irqs.flush()
            print("masked: pending", irqfd.pending, "interrupts", len(sink.interrupts))
            irqs.set_routing({5: Msi(address=0xFEE00000, data=0x42)})
            irqfd.unmask()
            await irqs.flush()
            print("unmasked: pending", irqfd.pending, "interrupts", len(sink.interrupts))
            print("injected:", sink.interrupts[0].route)
            # docs: end mask


# docs: begin unroute
async def unroute(unrouted: Literal["drop", "hold"]) -> None:
    """A VMM takes the route away instead."""
    sink = RecordingSink()
    # A tracer hears of what is dropped; without one, asyncio's log says so.
    async with IrqManager(sink, routing={}, unrouted=unrouted, tracer=NullTracer()) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            kick.signal()
            irqs.set_routing({5: VECTOR})
            await irqs.flush()
            print(f"{unrouted}: interrupts {len(sink.interrupts)}, dropped {irqs.statistics().dropped}")
            # docs: end unroute


async def main() -> None:
    """The one that keeps everything, then the two ways of having no route."""
    await mask()
    await unroute("drop")
    await unroute("hold")


asyncio.run(main())
