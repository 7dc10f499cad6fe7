"""The doorbells of a PCI bus whose machine is KVM's: where the kernel rings them."""

from __future__ import annotations

import asyncio

import pytest

from aioirqfd import EventFd, IrqManager
from aioirqfd.kvm import Kvm, LoopCalls
from aioirqfd.kvm.ioctls import KVM_IOEVENTFD_FLAG_DEASSIGN
from aioirqfd.pci import Bar, PciBus, PciDevice
from aioirqfd.sinks import KvmSink
from tests.pci.test_bus import ADDRESS, BAR0, COMMAND, DATA, MEMORY

pytestmark = pytest.mark.kvm


class Device(PciDevice):
    """A doorbell in the last four bytes of its BAR."""

    bars = (Bar(4096, wide=True),)
    bell: EventFd

    async def background(self):
        self.doorbell(self.bell, bar=0, offset=4092, length=4)


@pytest.fixture
async def plugged():
    """A VM, a bus, and the device in slot 1."""
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.create_irqchip()
        with KvmSink(vm) as sink, LoopCalls() as calls, EventFd() as bell:
            device = Device()
            device.bell = bell
            async with IrqManager(sink) as irqs, PciBus(irqs, calls, vm=vm) as bus:
                await bus.plug(device)
                await asyncio.sleep(0)
                yield vm, bus, device


def rung_by_the_kernel(vm, address):
    """Whether the kernel has a doorbell there: it refuses another one."""
    with EventFd() as another:
        try:
            vm.ioeventfd(address, 0, another)
        except FileExistsError:
            return True
        vm.ioeventfd(address, 0, another, flags=KVM_IOEVENTFD_FLAG_DEASSIGN)
        return False


async def write_config(bus, register, value):
    await asyncio.to_thread(bus.port_out, ADDRESS, 4, 1 << 31 | 1 << 11 | register)
    await asyncio.to_thread(bus.port_out, DATA, 4, value)


async def test_a_doorbell_follows_its_bar(plugged):
    vm, bus, device = plugged
    old, new = 0xC000_0FFC, 0xD000_0FFC
    found = []
    for register, value in ((COMMAND, MEMORY), (BAR0, 0xD000_0000), (COMMAND, 0), (COMMAND, MEMORY)):
        await write_config(bus, register, value)
        found.append([rung_by_the_kernel(vm, address) for address in (old, new)])
    assert found == [[True, False], [False, True], [False, False], [False, True]]
    await device.function.reset()
    assert not rung_by_the_kernel(vm, new)


async def test_one_at_the_end_of_the_address_space_is_rung_by_exits(plugged):
    """Where a guest measures a BAR without disabling it first, and nowhere else."""
    vm, bus, device = plugged
    await write_config(bus, COMMAND, MEMORY)
    for register in (BAR0, BAR0 + 4):
        await write_config(bus, register, 0xFFFF_FFFF)
    bus.mmio_write(2**64 - 4, 4, 1)
    assert device.bell.read_nowait() == 1
    for register, value in ((BAR0 + 4, 0), (BAR0, 0xD000_0000)):
        await write_config(bus, register, value)
    assert rung_by_the_kernel(vm, 0xD000_0FFC)


async def test_unplugged(plugged):
    vm, bus, _ = plugged
    await write_config(bus, COMMAND, MEMORY)
    await bus.unplug(1)
    assert not rung_by_the_kernel(vm, 0xC000_0FFC)
