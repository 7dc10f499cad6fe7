"""Snapshot the interrupts of one manager, and go on in another."""

from __future__ import annotations

import asyncio
import json

from aioirqfd import EventFd, IrqManager
from aioirqfd.sinks import RecordingSink


# docs: begin source
async def source() -> str:
    """A machine whose network card is masked, and whose disk is signalled while the machine stands still."""
    with EventFd() as disk, EventFd() as net:
        async with IrqManager(RecordingSink()) as irqs:
            irqs.assign(disk, gsi=5)
            irqs.assign(net, gsi=6).mask()
            net.signal(2)
            await irqs.pause()
            disk.signal()
            return json.dumps(irqs.snapshot())
            # docs: end source


# docs: begin destination
async def destination(state: str) -> None:
    """The same irqfds, assigned in the same order, on eventfds of its own."""
    sink = RecordingSink()
    with EventFd() as disk, EventFd() as net:
        async with IrqManager(sink) as irqs:
            irqs.assign(disk, gsi=5)
            netfd = irqs.assign(net, gsi=6)
            await irqs.pause()
            irqs.restore(json.loads(state))
            irqs.resume()
            await irqs.flush()
            print("resumed:", [interrupt.gsi for interrupt in sink.interrupts], "net masked:", netfd.masked)
            netfd.unmask()
            await irqs.flush()
            print("unmasked:", [interrupt.gsi for interrupt in sink.interrupts])
            # docs: end destination


async def main() -> None:
    """From one machine to the other."""
    state = await source()
    print("\n".join(str(irqfd) for irqfd in json.loads(state)["irqfds"]))
    await destination(state)


asyncio.run(main())
