"""QEMU's teaching device "edu", as a process of its own: ``python examples/edu_pci.py --socket-path edu.sock``."""

from __future__ import annotations

import math

from aioirqfd.pci import Bar, Msi, PciDevice, Register
from aioirqfd.vfio_user import main


class Edu(PciDevice):
    """The device of QEMU's ``docs/specs/edu.rst``: it lives, computes factorials, interrupts, and copies by DMA."""

    # docs: begin identity
    vendor_id, device_id, revision, class_code = 0x1234, 0x11E8, 0x10, 0x00FF00
    bars, capabilities, intx = (Bar(1 << 20),), (Msi(1),), True
    # docs: end identity

    # docs: begin registers
    identification = Register(0x00, access="ro", reset=0x010000ED)
    liveness, factorial = Register(0x04), Register(0x08)
    status = Register(0x20, mask=0x80)
    causes = Register(0x24, access="ro")
    raising, acknowledging = Register(0x60, access="wo"), Register(0x64, access="wo")
    source, destination, count, command = (Register(0x80 + 8 * number, 8) for number in range(4))
    # docs: end registers

    def __init__(self) -> None:
        self.buffer = bytearray(4096)

    # docs: begin methods
    @liveness.on_write
    def live(self, value: int) -> None:
        self.liveness = ~value

    @factorial.on_write
    def compute(self, value: int) -> None:
        self.factorial = math.factorial(min(value, 34))  # from 34 on, its lower 32 bits are 0
        self.interrupt_for(self.status >> 7)

    # docs: end methods

    # docs: begin interrupts
    @raising.on_write
    def interrupt_for(self, causes: int) -> None:
        self.causes |= causes
        self.pin = self.causes != 0
        if causes:
            self.interrupt()

    @acknowledging.on_write
    def acknowledge(self, causes: int) -> None:
        self.causes &= ~causes
        self.pin = self.causes != 0

    # docs: end interrupts

    # docs: begin dma
    @command.on_write
    async def transfer(self, command: int) -> None:
        here, count = (self.source if command & 2 else self.destination) - 0x40000, self.count
        if command & 1 and 0 <= here <= here + count <= len(self.buffer):
            if command & 2:
                await self.dma.write(self.destination, self.buffer[here : here + count])
            else:
                self.buffer[here : here + count] = await self.dma.read(self.source, count)
            self.command &= ~1
            self.interrupt_for((command & 4) << 6)

    # docs: end dma

    # docs: begin state
    def save_state(self) -> dict[str, object]:
        return {"buffer": self.buffer.hex()}  # the registers are saved anyway

    def restore_state(self, state: dict[str, object], /) -> None:
        memoryview(self.buffer)[:] = bytes.fromhex(str(state["buffer"]))

    # docs: end state


# docs: begin main
if __name__ == "__main__":
    main(lambda _options: Edu())
# docs: end main
