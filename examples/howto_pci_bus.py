"""Plug a device into a PCI bus, and find it there as a guest's CPU does: by ports and by memory. Needs no KVM."""

from __future__ import annotations

import asyncio

from aioirqfd import EventFd, IrqchipPin, IrqManager
from aioirqfd.kvm import GuestRam, LoopCalls
from aioirqfd.pci import Bar, PciBus, PciDevice, Register
from aioirqfd.sinks import RecordingSink


# docs: begin device
class Doubler(PciDevice):
    """Doubles what is written, and interrupts. At its doorbell it writes to the guest's memory."""

    vendor_id, device_id, class_code = 0x1234, 0x0D0B, 0xFF0000
    bars, vectors = (Bar(4096),), 1
    number = Register(0x00)

    def __init__(self) -> None:
        self.rung = asyncio.Event()

    @number.on_write
    def double(self, value: int) -> None:  # on the loop; the vCPU waits
        self.number = 2 * value
        self.interrupt()

    async def background(self) -> None:
        with EventFd() as bell:
            self.doorbell(bell, bar=0, offset=0x10, length=4)
            async for _ in bell:  # the vCPU does not wait for this
                await self.dma.write(0x1000, b"rung")
                self.interrupt()
                self.rung.set()


# docs: end device


# docs: begin vcpu
class Cpu:
    """What a guest's kernel does, in a thread. With KVM, a :class:`VcpuThread` calls the same four methods of the bus."""

    def __init__(self, bus: PciBus) -> None:
        self.bus = bus

    def config(self, slot: int, register: int, value: int | None = None) -> int:
        """Read or write four bytes of a slot's configuration space, by the two ports of every PC."""
        self.bus.port_out(0xCF8, 4, 1 << 31 | slot << 11 | register)
        if value is None:
            return self.bus.port_in(0xCFC, 4)
        self.bus.port_out(0xCFC, 4, value)
        return value

    def driver(self) -> None:
        """Look for devices, enable the one that is there, and use it."""
        found = {slot: f"{self.config(slot, 0):#010x}" for slot in range(32) if self.config(slot, 0) != 0xFFFFFFFF}
        print("found:", found)
        self.config(1, 0x04, 0b110)  # the command register: answer in memory space, reach memory by DMA
        registers, table = self.config(1, 0x10), self.config(1, 0x14)  # BAR 0, and BAR 1 with the MSI-X table
        for offset, value in enumerate((0xFEE0_0000, 0, 0x24, 0)):  # vector 0: its message, and no mask
            self.bus.mmio_write(table + 4 * offset, 4, value)
        self.config(1, 0x40, 1 << 31)  # MSI-X, the first capability: enable it
        self.bus.mmio_write(registers, 4, 21)
        print("doubled:", self.bus.mmio_read(registers, 4))
        self.bus.mmio_write(registers + 0x10, 4, 1)


# docs: end vcpu


# docs: begin main
async def main() -> None:
    """A bus, a device, and a thread in place of a virtual CPU."""
    pins = {gsi: IrqchipPin("ioapic", gsi) for gsi in range(24)}
    sink = RecordingSink()  # KvmSink(vm), for a guest of KVM's
    with GuestRam(1 << 20) as ram, LoopCalls() as calls:
        async with IrqManager(sink, routing=pins) as irqs, PciBus(irqs, calls, ram=ram) as bus:
            slot = await bus.plug(Doubler())
            print(slot)
            await asyncio.to_thread(Cpu(bus).driver)
            await slot.device.rung.wait()
            await irqs.flush()
            print("interrupts:", *(one.route for one in sink.interrupts), sep="\n  ")
            print("memory:", ram.read(0x1000, 4))


# docs: end main

asyncio.run(main())
