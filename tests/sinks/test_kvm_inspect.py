"""What a KVM guest's interrupt controllers show of themselves, read from the kernel."""

# pyright: reportIndexIssue=false, reportArgumentType=false
# (a tree is JSON, of whose inside no type checker knows)
from __future__ import annotations

import pytest

from aioirqfd import EventFd, IrqchipPin, IrqManager
from aioirqfd.kvm import Kvm
from aioirqfd.kvm.ioctls import KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_SLAVE
from aioirqfd.sinks import KvmSink

pytestmark = pytest.mark.kvm


@pytest.fixture
def vm():
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.create_irqchip()
        yield vm


async def test_every_pin_of_both_chips_and_who_holds_a_line(vm):
    with KvmSink(vm, offload=False) as sink:
        async with IrqManager(sink, routing={5: IrqchipPin("pic", 10)}) as irqs:
            with EventFd() as kick, EventFd() as unmask:
                irqs.assign(kick, gsi=5, resamplefd=unmask, name="disk")
                assert irqs.inspect("sink", 0) == {"type": "KvmSink", "irqchip": "whole", "lines": {}, "chips": "..."}
                kick.signal()
                await irqs.flush()
                assert irqs.inspect("sink/lines") == {"pic pin 10": {"held_by": ["gsi 5"]}}
                assert irqs.inspect("lines/5/held_by") == ["disk"]
                state = vm.get_irqchip(KVM_IRQCHIP_PIC_SLAVE)
                state.pic.irq_base, state.pic.imr, state.pic.isr, state.pic.elcr = 0x38, 1 << 2, 1 << 3, 1 << 2
                state.pic.irr = 1 << 2  # the kernel's irqfd takes its own time
                vm.set_irqchip(state)
                pins = irqs.inspect("sink/chips/pic")
                quiet = {"masked": False, "requested": False, "in_service": False, "level": False}
                assert pins["8"] == quiet | {"vector": 0x38}
                assert pins["10"] == {
                    "vector": 0x3A,
                    "masked": True,
                    "requested": True,
                    "in_service": False,
                    "level": True,
                }
                assert pins["11"] == quiet | {"vector": 0x3B, "in_service": True}
                assert len(pins) == 16
                irqs.ack(5)


async def test_the_ioapics_entries(vm):
    state = vm.get_irqchip(KVM_IRQCHIP_IOAPIC)
    state.ioapic.redirtbl[9] = 0x41 | 1 << 15 | 1 << 16
    vm.set_irqchip(state)
    async with IrqManager(KvmSink(vm)) as irqs:
        pin = irqs.inspect("sink/chips/ioapic/9")
        assert pin == {"vector": 0x41, "masked": True, "requested": False, "in_service": False, "level": True}
        assert len(irqs.inspect("sink/chips/ioapic")) == 24


async def test_with_a_split_irqchip_the_pins_are_somebody_elses():
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.create_split_irqchip()
        async with IrqManager(KvmSink(vm)) as irqs:
            assert irqs.inspect("sink") == {"type": "KvmSink", "irqchip": "split", "lines": {}}
