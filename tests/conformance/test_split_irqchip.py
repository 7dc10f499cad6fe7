"""Rows I04, G01, S05: with a split irqchip the kernel refuses resample; an IoApic before a KvmSink has it."""

from __future__ import annotations

import errno

import pytest

from aioirqfd import EventFd, Interrupt, IrqchipPin, IrqManager, Msi, RoutingError
from aioirqfd.irqchip import IoApic
from aioirqfd.kvm import Kvm
from aioirqfd.sinks import KvmSink

pytestmark = pytest.mark.kvm

GSI = 5
VECTOR = 0x41
LEVEL = 0x8000
SVR = 0xF0


@pytest.fixture
def vm():
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.create_split_irqchip()
        yield vm


@pytest.fixture
def vcpu(vm):
    with vm.create_vcpu() as vcpu:
        lapic = vcpu.get_lapic()
        lapic.set_register(SVR, lapic.register(SVR) | 0x100)
        vcpu.set_lapic(lapic)
        yield vcpu


async def test_i04_resample(vm, vcpu):
    ioapic = IoApic(KvmSink(vm))
    ioapic.mmio_write(0, 0x10 + 2 * GSI)
    ioapic.mmio_write(0x10, LEVEL | VECTOR)
    with EventFd() as trigger, EventFd() as resample:
        async with IrqManager(ioapic) as irqs:
            irqs.assign(trigger, gsi=GSI, resamplefd=resample)
            trigger.signal()
            await irqs.flush()
            assert vcpu.get_lapic().requested() == {VECTOR}
            ioapic.eoi(VECTOR)
            assert resample.read_nowait() == 1
            assert irqs.statistics().asserted == 0


async def test_s05_a_message_is_the_kernels(vm, vcpu):
    async with IrqManager(KvmSink(vm), routing={GSI: Msi(0xFEE00000, VECTOR)}) as irqs:
        with EventFd() as trigger:
            assert irqs.assign(trigger, gsi=GSI).offloaded
            trigger.signal()
            assert vcpu.get_lapic().requested() == {VECTOR}


async def test_a_pin_is_user_spaces(vm):
    sink = KvmSink(vm)
    pin = Interrupt(GSI, IrqchipPin("ioapic", GSI))
    with EventFd() as trigger:
        assert not sink.offload(trigger, pin, None)
    with pytest.raises(RoutingError):
        await sink.inject(pin)


def test_g01_without_any_irqchip():
    with Kvm() as kvm, kvm.create_vm() as vm, pytest.raises(OSError) as caught:
        KvmSink(vm)
    assert caught.value.errno == errno.EINVAL
