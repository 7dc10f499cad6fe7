"""Test a PCI device without a guest: the device as it is served, and somebody who looks at its interrupt."""

from __future__ import annotations

import asyncio

from aioirqfd import EventFd
from aioirqfd.pci import Bar, PciDevice, PciFunction, Register


# docs: begin example
class Doubler(PciDevice):
    """Doubles what is written, and interrupts."""

    bars, vectors = (Bar(4096),), 1
    number = Register(0x00)

    @number.on_write
    def double(self, value: int) -> None:
        self.number = 2 * value
        self.interrupt()


async def main() -> None:
    """Play the guest."""
    async with PciFunction(Doubler()) as function:
        target = EventFd()
        function.interrupts.bind(0, target)  # it is the function's from here on
        await function.write(0, 0x00, (21).to_bytes(4, "little"))
        print(int.from_bytes(await function.read(0, 0x00, 4), "little"), target.read_nowait())


asyncio.run(main())
# docs: end example
