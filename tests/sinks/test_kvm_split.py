"""A split irqchip: an IoApic before a KvmSink, and a guest whose own end of interrupt comes back to it (rows I04, R20)."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from aioirqfd import EventFd, IrqManager, Msi, WouldBlock
from aioirqfd.irqchip import IoApic
from aioirqfd.kvm.ioctls import KVM_IRQ_ROUTING_MSI
from aioirqfd.sinks import KvmSink
from tests.kvm.guest import AFTER_EOI, GSI, IN_HANDLER, READY, SplitGuest

if TYPE_CHECKING:
    from aioirqfd.kvm import Vm

VECTOR = SplitGuest.vector
EDGE, LEVEL, MASKED = 0, 0x8000, 0x10000


def program(ioapic, pin, low, high=0):
    for register, value in ((0x11 + 2 * pin, high), (0x10 + 2 * pin, low)):
        ioapic.mmio_write(0x00, register)
        ioapic.mmio_write(0x10, value)


def count(eventfd):
    try:
        return eventfd.read_nowait()
    except WouldBlock:
        return 0


def interrupted(guest):
    """The guest takes an interrupt and ends it; whether it had one."""
    return [guest.next_port().port for _ in range(2)] == [IN_HANDLER, AFTER_EOI]


@pytest.fixture
def guest():
    with SplitGuest() as guest:
        assert guest.next_port().port == READY
        yield guest


@pytest.fixture
def ioapic(guest):
    ioapic = IoApic(KvmSink(guest.vm))
    guest.on_eoi = ioapic.eoi
    return ioapic


@pytest.mark.kvm
@pytest.mark.parametrize("mode", [LEVEL, EDGE])
async def test_the_guests_end_of_interrupt_is_heard(guest, ioapic, mode):
    program(ioapic, GSI, mode | VECTOR)
    async with IrqManager(ioapic) as irqs:
        with EventFd() as kick, EventFd() as unmask:
            irqs.assign(kick, gsi=GSI, resamplefd=unmask)
            for number in range(1, 4):
                kick.signal()
                await irqs.flush()
                assert irqs.statistics().asserted == 1
                assert interrupted(guest)
                assert guest.ended == [VECTOR] * number
                assert unmask.read_nowait() == 1
                assert irqs.statistics().asserted == 0


@pytest.mark.kvm
async def test_a_line_that_a_device_holds_up_interrupts_again_after_each_end(guest, ioapic):
    program(ioapic, GSI, LEVEL | VECTOR)
    ioapic.set_irq(GSI, 1)
    for _ in range(3):
        assert interrupted(guest)
    ioapic.set_irq(GSI, 0)
    assert interrupted(guest), "the message that went out at the last end of interrupt, before the line was lowered"
    assert guest.ended == [VECTOR] * 4


@pytest.mark.kvm
async def test_an_edge_that_nobody_resamples_costs_no_exit(guest, ioapic):
    program(ioapic, GSI, EDGE | VECTOR)
    async with IrqManager(ioapic) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=GSI)
            kick.signal()
            assert interrupted(guest)
            assert guest.ended == []


@pytest.mark.kvm
async def test_it_is_heard_after_another_vector_and_while_masked(guest, ioapic):
    program(ioapic, GSI, LEVEL | 0x99)
    program(ioapic, GSI, LEVEL | VECTOR)
    async with IrqManager(ioapic) as irqs:
        with EventFd() as kick, EventFd() as unmask:
            irqs.assign(kick, gsi=GSI, resamplefd=unmask)
            kick.signal()
            assert guest.next_port().port == IN_HANDLER
            program(ioapic, GSI, MASKED | LEVEL | VECTOR)
            assert guest.next_port().port == AFTER_EOI
            assert count(unmask) == 1


@pytest.mark.kvm
async def test_it_is_heard_after_a_restore(guest):
    before = IoApic(KvmSink(guest.vm))
    program(before, GSI, LEVEL | VECTOR)
    ioapic = IoApic(KvmSink(guest.vm))
    guest.on_eoi = ioapic.eoi
    ioapic.restore(before.snapshot())
    async with IrqManager(ioapic) as irqs:
        with EventFd() as kick, EventFd() as unmask:
            irqs.assign(kick, gsi=GSI, resamplefd=unmask)
            kick.signal()
            assert interrupted(guest)
            assert count(unmask) == 1


class Tables:
    """In place of a virtual machine with a split irqchip: the tables that it is given."""

    def __init__(self):
        self.tables = []
        self.error: OSError | None = None

    def set_gsi_routing(self, entries):
        entries = list(entries)
        if any(entry.type != KVM_IRQ_ROUTING_MSI for entry in entries):
            raise OSError(22, "pins are user space's")
        if self.error is not None:
            raise self.error
        self.tables.append([(entry.gsi, entry.words[0], entry.words[2]) for entry in entries])

    def signal_msi(self, *message):
        return 1


def test_the_kernel_is_told_of_what_is_ended_and_only_when_it_changes():
    vm = Tables()
    ioapic = IoApic(KvmSink(cast("Vm", vm)))
    assert vm.tables == [[]]
    program(ioapic, 3, LEVEL | 0x31)
    program(ioapic, 4, EDGE | 0x41)
    program(ioapic, 5, LEVEL | MASKED | 0x100 | 0x51, high=2 << 24)
    table = [(3, 0xFEE00000, 0xC031), (5, 0xFEE02000, 0xC151)]
    assert vm.tables[-1] == table
    told = len(vm.tables)
    program(ioapic, 3, LEVEL | MASKED | 0x31)
    program(ioapic, 3, LEVEL | 0x31)
    ioapic.set_irq(3, 1)
    ioapic.eoi(0x31)
    assert len(vm.tables) == told
    program(ioapic, 3, EDGE | 0x31)
    assert vm.tables[-1] == table[1:]
    program(ioapic, 5, LEVEL | 0x400 | 0x51)  # an NMI has no end
    assert vm.tables[-1] == []


def test_a_table_that_the_kernel_refuses_is_an_error_of_the_access_and_tried_again():
    vm = Tables()
    ioapic = IoApic(KvmSink(cast("Vm", vm)))
    vm.error = OSError(12, "no memory")
    with pytest.raises(OSError, match="no memory"):
        program(ioapic, 3, LEVEL | 0x31)
    vm.error = None
    program(ioapic, 3, LEVEL | 0x31)
    assert vm.tables[-1] == [(3, 0xFEE00000, 0xC031)]


def test_routes_of_offloaded_messages_stay():
    vm = Tables()
    sink = KvmSink(cast("Vm", vm))
    sink._routes.hold(Msi(0xFEE00000, 0x61))
    offloaded = vm.tables[-1]
    ioapic = IoApic(sink)
    program(ioapic, 3, LEVEL | 0x31)
    assert vm.tables[-1] == [(3, 0xFEE00000, 0xC031), *offloaded]
    IoApic(sink)
    assert vm.tables[-1] == offloaded
