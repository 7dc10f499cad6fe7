"""A serial port on a PCI card, as a process of its own: ``python examples/uart_pci.py --socket-path uart.sock``.

A 16550 behind a BAR in port space, for Linux' 8250_pci. What the guest sends goes to standard output, and what comes on standard
input goes to the guest. Its interrupt is the pin, a level: it is up as long as there is a reason.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque

from aioirqfd.pci import Bar, PciDevice
from aioirqfd.vfio_user import main

RECEIVED, SENT, LINE = 0x01, 0x02, 0x04
"""Bits of the interrupt-enable register: a byte came, there is room to send, the line has an error."""
FIFO = 16
"""Bytes that are kept for the guest to fetch; what comes beyond waits in the operating system."""


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
        self.input: deque[int] = deque()
        self.room = asyncio.Event()
        self.reset()

    def reset(self) -> None:
        """Set the registers as the chip has them after a reset."""
        self.enabled = self.fifo = self.line = self.modem = self.scratch = self.divisor = 0
        self.sent = True  # the guest has not been told yet that there is room
        self.input.clear()
        self.room.set()

    async def read(self, bar: int, offset: int, size: int) -> bytes:
        del bar  # there is one
        return bytes(self.read_byte(offset + at) for at in range(size))

    def read_byte(self, offset: int) -> int:
        """One register; some of them change by being read."""
        latch = self.line & 0x80  # then the first two are the divisor
        value = 0
        match offset:
            case 0 | 1 if latch:
                value = self.divisor >> 8 * offset & 0xFF
            case 0 if self.input:
                value = self.input.popleft()
                self.room.set()
            case 1:
                value = self.enabled
            case 2:
                value = self.cause | (0xC0 if self.fifo & 1 else 0)
                self.sent = self.sent and self.cause != 0x02
            case 3 | 4 | 7:
                value = (self.line, self.modem, 0, 0, self.scratch)[offset - 3]
            case 5:
                value = 0x60 | bool(self.input)  # there is always room to send
            case 6:
                value = (
                    0xB0
                    if not self.modem & 0x10
                    else (self.modem & 0x0C) << 4 | (self.modem & 1) << 5 | (self.modem & 2) << 3
                )
            case _:
                pass
        self.update()
        return value

    async def write(self, bar: int, offset: int, data: bytes) -> None:
        del bar
        for at, value in enumerate(data, offset):
            self.write_byte(at, value)

    def write_byte(self, offset: int, value: int) -> None:
        """One register."""
        latch = self.line & 0x80
        match offset:
            case 0 | 1 if latch:
                self.divisor = self.divisor & ~(0xFF << 8 * offset) | value << 8 * offset
            case 0 if self.modem & 0x10:  # looped back, for the driver's own test
                self.input.append(value)
                self.sent = True
            case 0:
                os.write(self.sink, bytes([value]))
                self.sent = True
            case 1:
                # Whoever begins to ask whether there is room is told.
                self.sent = self.sent or bool(value & SENT & ~self.enabled)
                self.enabled = value & 0x0F
            case 2:
                self.fifo = value
                if value & 2:
                    self.input.clear()
                    self.room.set()
            case 3:
                self.line = value
            case 4:
                self.modem = value & 0x1F
            case 7:
                self.scratch = value
            case _:
                pass
        self.update()

    # docs: begin interrupts
    @property
    def cause(self) -> int:
        """Why the guest is to be interrupted, as the chip codes it; 1: there is no reason."""
        if self.input and self.enabled & RECEIVED:
            return 0x04
        return 0x02 if self.sent and self.enabled & SENT else 0x01

    def update(self) -> None:
        """The pin is up as long as there is a reason, and the guest has connected it (OUT2)."""
        if self.function is not None:
            self.pin = self.cause != 0x01 and bool(self.modem & 0x08)

    # docs: end interrupts

    # docs: begin background
    async def background(self) -> None:
        """Take input as there is room for it."""
        if self.source is None:
            return
        while True:
            await self.room.wait()
            await readable(self.source)
            data = os.read(self.source, FIFO - len(self.input))
            if not data:
                return
            self.input.extend(data)
            if len(self.input) >= FIFO:
                self.room.clear()
            self.update()

    # docs: end background


if __name__ == "__main__":
    main(lambda _options: Uart(sys.stdin.fileno()))
