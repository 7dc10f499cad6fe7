"""A serial port on a PCI card, as a process of its own: ``python examples/uart_pci.py --socket-path uart.sock``.

A 16550 behind a BAR in port space, for Linux' 8250_pci. What the guest sends goes to standard output, and what comes on standard
input goes to the guest. Its interrupt is the pin, a level: it is up as long as there is a reason.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a path: python examples/uart_pci.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from aioirqfd.pci import Bar, PciDevice
from aioirqfd.vfio_user import main
from examples.ns16550 import Ns16550


async def readable(fd: int) -> None:
    """Wait until there is something to be read; of a plain file there always is."""
    loop, coming = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(fd, coming.set)
    except PermissionError:
        return
    try:
        await coming.wait()
    finally:
        loop.remove_reader(fd)


class Uart(PciDevice):
    """A 16550A, as QEMU's ``pci-serial`` has it, so that Linux knows it.

    Args:
        source: Where the guest's input comes from: a file descriptor that can be waited for; None: from nowhere.
        sink: Where its output goes.
    """

    vendor_id, device_id, class_code, revision = 0x1B36, 0x0002, 0x070002, 1
    subsystem_vendor_id, subsystem_id = 0x1AF4, 0x1100
    bars = (Bar(8, io=True),)
    intx = True

    def __init__(self, source: int | None = None, sink: int = 1) -> None:
        self.source, self.sink = source, sink
        self.chip = Ns16550()
        self.room = asyncio.Event()
        self.paused = False

    def reset(self) -> None:
        self.chip.reset()
        self.update()

    async def read(self, bar: int, offset: int, size: int) -> bytes:
        del bar  # there is one
        data = bytes(self.chip.read(offset + at) for at in range(size))
        self.update()
        return data

    async def write(self, bar: int, offset: int, data: bytes) -> None:
        del bar
        for at, value in enumerate(data, offset):
            self.chip.write(at, value)
        if sent := self.chip.take():
            os.write(self.sink, sent)
        self.update()

    # docs: begin interrupts
    def update(self) -> None:
        """Let the pin be what the chip says, and input come as long as it is welcome."""
        if self.function is not None:
            self.pin = self.chip.interrupt
        (self.room.set if self.chip.room and not self.paused else self.room.clear)()

    # docs: end interrupts

    async def pause(self) -> None:
        self.paused = True
        self.update()

    def resume(self) -> None:
        self.paused = False
        self.update()

    def save_state(self) -> dict[str, object]:
        return {"chip": self.chip.save_state()}

    def restore_state(self, state: dict[str, Any], /) -> None:
        self.chip.restore_state(state["chip"])

    # docs: begin background
    async def background(self) -> None:
        """Take input as there is room for it."""
        if self.source is None:
            return
        while True:
            await self.room.wait()
            await readable(self.source)
            if not self.room.is_set():
                continue  # no longer
            if not (data := os.read(self.source, self.chip.room)):
                return
            self.chip.receive(data)
            self.update()

    # docs: end background


if __name__ == "__main__":
    main(lambda _options: Uart(sys.stdin.fileno()))
