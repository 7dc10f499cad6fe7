"""Five programs that hang in one process, which serves its tree; another thread stands for the shell of whoever asks."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from aioirqfd import EventFd, IrqFd, IrqManager, NullTracer, inspect
from aioirqfd.cli import main as aioirqfd
from aioirqfd.irqchip import Pic
from aioirqfd.sinks import RecordingSink

DATA = asyncio.Event()


async def read_data(_irqfd: IrqFd, _count: int) -> None:
    """A wakeup handler that waits for what does not come."""
    await DATA.wait()


# docs: begin serve
async def main(socket: Path) -> None:
    """A program that can be looked into."""
    sink = RecordingSink()
    async with IrqManager(sink, name="vmm") as irqs, await inspect.serve(socket):
        with EventFd() as kick:
            irqs.assign(kick, gsi=4, name="uart")
            kick.signal(3)
            await asyncio.to_thread(ask, socket)
            # docs: end serve
    await hang(socket)


def ask(socket: Path) -> None:
    """What is typed into a shell."""
    print("$ aioirqfd inspect vmm.sock managers/vmm/gsi/4")
    aioirqfd(["inspect", str(socket), "managers/vmm/gsi/4"])
    print("$ aioirqfd inspect vmm.sock 'managers/*/irqfds/*/statistics' --depth 0")
    aioirqfd(["inspect", str(socket), "managers/*/irqfds/*/statistics", "--depth", "0"])


async def hang(socket: Path) -> None:
    """Signal once in each program, and ask all of them at once."""
    pic = Pic()  # its guest has programmed nothing yet, and then masks everything
    for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 0x04), (0x21, 0x01), (0x21, 0xFF)):
        pic.io_write(port, value)
    async with (
        IrqManager(RecordingSink(), name="paused") as paused,
        IrqManager(RecordingSink(), name="masked") as masked,
        IrqManager(RecordingSink(), name="unrouted", routing={}, tracer=NullTracer()) as unrouted,
        IrqManager(RecordingSink(), name="waiting") as waiting,
        IrqManager(pic, name="chip") as chip,
        await inspect.serve(socket),
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
        # docs: end hang
        await asyncio.sleep(0)
        print("$ aioirqfd inspect vmm.sock --explain")
        await asyncio.to_thread(aioirqfd, ["inspect", str(socket), "--explain"])
        DATA.set()
        for kick in kicks:
            kick.close()


with tempfile.TemporaryDirectory() as folder:
    asyncio.run(main(Path(folder) / "vmm.sock"))
