"""Record what becomes of each interrupt, and look at it while the program runs: one line is never acknowledged."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile

from aioirqfd import EventFd, IrqchipPin, IrqFd, IrqManager, Msi, Route
from aioirqfd.sinks import RecordingSink
from aioirqfd.tracing import FlightRecorder


async def read_clock(_irqfd: IrqFd, _count: int) -> None:
    """Run before each interrupt of the timer."""


# docs: begin example
async def main(folder: str) -> None:
    """A timer that works, and a serial port whose second interrupt the guest does not end."""
    with FlightRecorder(f"{folder}/vmm.flight") as recorder:
        routing: dict[int, Route] = {0: Msi(address=0xFEE0_0000, data=0x30), 4: IrqchipPin("pic", 4)}
        async with IrqManager(RecordingSink(), routing=routing, tracer=recorder) as irqs:
            with EventFd() as timer, EventFd() as serial, EventFd() as resample:
                irqs.assign(timer, gsi=0, wakeup=read_clock, name="timer")
                irqs.assign(serial, gsi=4, resamplefd=resample, name="serial")
                serial.signal()
                irqs.ack(4)
                serial.signal(2)
                await asyncio.sleep(0.1)
                timer.signal()
                await irqs.flush()
                await asyncio.to_thread(look_at, folder)
                # docs: end example


def look_at(folder: str) -> None:
    """As in another terminal."""
    subprocess.run([sys.executable, "-m", "aioirqfd", "trace", "vmm.flight"], cwd=folder, check=False)


with tempfile.TemporaryDirectory() as made:
    asyncio.run(main(made))
