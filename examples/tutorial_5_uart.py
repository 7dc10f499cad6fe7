"""Tutorial, step 5: a level-triggered device with resample, behind a real interrupt controller."""

from __future__ import annotations

import asyncio
from collections import deque

from aioirqfd import EventFd, IrqchipPin, IrqManager
from aioirqfd.irqchip import Pic


# docs: begin device
class Receiver:
    """A device with a queue of bytes; its line is to be up while there are any."""

    def __init__(self) -> None:
        """Make the two eventfds that lead into the machine and back."""
        self.trigger = EventFd()
        self.resample = EventFd()
        self._bytes: deque[int] = deque()

    def receive(self, data: bytes) -> None:
        """Bytes from outside: whatever was there before, the line is to be up now."""
        self._bytes.extend(data)
        self.trigger.signal()

    def read_register(self) -> int:
        """The guest takes one byte."""
        return self._bytes.popleft()

    async def run(self) -> None:
        """After each end of interrupt, look again: is there still a reason to interrupt?"""
        async for _ in self.resample:
            if self._bytes:
                self.trigger.signal()

    def close(self) -> None:
        """Close both eventfds, which ends :meth:`run`."""
        self.trigger.close()
        self.resample.close()
        # docs: end device


# docs: begin guest
def boot(pic: Pic) -> None:
    """What a PC's firmware does: vectors from 0x20 and 0x28, pin 4 level-triggered, nothing masked."""
    for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 0x04), (0x21, 0x01), (0x21, 0x00)):
        pic.io_write(port, value)
    for port, value in ((0xA0, 0x11), (0xA1, 0x28), (0xA1, 0x02), (0xA1, 0x01), (0xA1, 0x00)):
        pic.io_write(port, value)
    pic.io_write(0x4D0, 1 << 4)


def interrupt_handler(pic: Pic, device: Receiver) -> None:
    """The guest's: take one byte, then say that the interrupt is over."""
    vector = pic.intack()
    print(f"guest: vector {vector:#x}, byte {chr(device.read_register())!r}")
    pic.io_write(0x20, 0x20)
    # docs: end guest


# docs: begin machine
async def main() -> None:
    """Wire device and controller, and be the CPU."""
    interrupted = asyncio.Event()
    pic = Pic(on_output=lambda level: interrupted.set() if level else interrupted.clear())
    boot(pic)
    device = Receiver()
    async with IrqManager(pic, routing={4: IrqchipPin("pic", 4)}) as irqs:
        irqs.assign(device.trigger, gsi=4, resamplefd=device.resample)
        looking = asyncio.create_task(device.run())
        device.receive(b"irq")
        for _ in range(3):
            await interrupted.wait()
            interrupt_handler(pic, device)
        device.close()
        await looking
    print("line:", "up" if interrupted.is_set() else "down")
    # docs: end machine


asyncio.run(main())
