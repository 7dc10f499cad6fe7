"""The sink that is a KVM guest: a real virtual machine with an in-kernel irqchip, seen through its PIC, its LAPIC and its guest."""

from __future__ import annotations

import errno
import gc
import os
import warnings
from typing import TYPE_CHECKING, cast

import pytest

from aioirqfd import EventFd, EventFdBusyError, IrqchipPin, IrqManager, Msi, Retry, WouldBlock
from aioirqfd.irqfd.interrupt import Action, Interrupt
from aioirqfd.kvm import Kvm
from aioirqfd.kvm.ioctls import (
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQFD_FLAG_DEASSIGN,
)
from aioirqfd.sinks import KvmSink
from tests.irqfd.helpers import turns, write
from tests.kvm.guest import AFTER_EOI, GSI, IN_HANDLER, READY, Guest
from tests.kvm.test_vm import enable_lapic

if TYPE_CHECKING:
    from aioirqfd.kvm import Vm

pytestmark = pytest.mark.kvm

PIC = {GSI: IrqchipPin("pic", GSI)}
MESSAGE, OTHER = Msi(0xFEE00000, 0x31), Msi(0xFEE00000, 0x32)
WAYS = pytest.mark.parametrize(
    "way", [{"offload": True}, {"offload": False}, {"offload": False, "fast": False}], ids=str
)


@pytest.fixture
def kvm():
    with Kvm() as kvm:
        yield kvm


@pytest.fixture
def vm(kvm):
    with kvm.create_vm() as vm:
        vm.create_irqchip()
        yield vm


def requested(vm):
    """The pins that the two PICs have an interrupt request for."""
    master = vm.get_irqchip(KVM_IRQCHIP_PIC_MASTER).pic.irr
    slave = vm.get_irqchip(KVM_IRQCHIP_PIC_SLAVE).pic.irr
    return {pin for pin in range(16) if (master | slave << 8) >> pin & 1} - {2}


def lines(vm):
    """The levels of the two PICs' lines."""
    master = vm.get_irqchip(KVM_IRQCHIP_PIC_MASTER).pic.last_irr
    slave = vm.get_irqchip(KVM_IRQCHIP_PIC_SLAVE).pic.last_irr
    return {pin for pin in range(16) if (master | slave << 8) >> pin & 1} - {2}


def forget(vm):
    """Clear the requests, as a guest that has taken them."""
    for chip in (KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE):
        state = vm.get_irqchip(chip)
        state.pic.irr = 0
        vm.set_irqchip(state)


def count(eventfd):
    try:
        return eventfd.read_nowait()
    except WouldBlock:
        return 0


@WAYS
@pytest.mark.parametrize("pin", [0, 5, 9, 15])
async def test_a_pulse_on_a_pic_pin(vm, way, pin):
    async with IrqManager(KvmSink(vm, **way), routing={7: IrqchipPin("pic", pin)}) as irqs:
        with EventFd() as kick:
            for number in range(4):
                irqfd = irqs.assign(kick, gsi=7)
                assert irqfd.offloaded is way["offload"]
                assert requested(vm) == set()
                (write if number % 2 else EventFd.signal)(kick)
                await irqs.deassign(irqfd)  # the barrier, in the kernel too (row I20)
                assert requested(vm) == {pin}
                assert lines(vm) == set()
                forget(vm)


@WAYS
async def test_the_pins_of_both_chips(vm, way):
    routing = {5: [IrqchipPin("pic", 5), IrqchipPin("ioapic", 11)]}
    async with IrqManager(KvmSink(vm, **way), routing=routing) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            assert irqfd.offloaded is False, "two routes are two interrupts"
            kick.signal()
            await irqs.flush()
            assert requested(vm) == {5}
            assert irqfd.statistics().injections == 1


async def test_the_fast_way_is_in_the_guest_before_signal_returns_and_the_slow_way_is_not(vm):
    for fast in (True, False):
        async with IrqManager(KvmSink(vm, offload=False, fast=fast), routing=PIC) as irqs:
            with EventFd() as kick:
                irqfd = irqs.assign(kick, gsi=GSI)
                kick.signal()
                assert requested(vm) == ({GSI} if fast else set())
                await irqs.flush()
                assert requested(vm) == {GSI}
                assert irqfd.statistics().fast == fast
                forget(vm)


@WAYS
async def test_a_message(vm, way):
    with vm.create_vcpu() as vcpu:
        enable_lapic(vcpu)
        async with IrqManager(KvmSink(vm, **way), routing={7: MESSAGE, 8: Msi(0xFEE00000, 0x33, devid=5)}) as irqs:
            with EventFd() as kick, EventFd() as other:
                irqfds = irqs.assign(kick, gsi=7), irqs.assign(other, gsi=8)
                assert [irqfd.offloaded for irqfd in irqfds] == [way["offload"]] * 2
                kick.signal()
                await irqs.deassign(irqfds[0])
                assert vcpu.get_lapic().requested() == {0x31}
                write(other)
                await irqs.deassign(irqfds[1])
                assert vcpu.get_lapic().requested() == {0x31, 0x33}


@pytest.mark.parametrize("fast", [True, False])
async def test_a_message_that_nobody_takes_vanishes(vm, fast):
    async with IrqManager(KvmSink(vm, offload=False, fast=fast), routing={7: MESSAGE}, retry=Retry(0)) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=7)
            kick.signal()
            await irqs.flush()
            assert irqfd.error is None
            assert irqfd.statistics().injections == 1


# --------------------------------------------------------------------------------------------------- with a real guest


@WAYS
async def test_a_guest_takes_each_interrupt_and_its_end_of_interrupt_is_heard(way):
    with Guest() as guest, KvmSink(guest.vm, **way) as sink:
        assert guest.next_port().port == READY
        async with IrqManager(sink, routing=PIC) as irqs:
            with EventFd() as kick, EventFd() as unmask:
                irqfd = irqs.assign(kick, gsi=GSI, resamplefd=unmask)
                assert irqfd.offloaded is way["offload"]
                for _ in range(3):
                    kick.signal()
                    await irqs.flush()
                    assert guest.next_port().port == IN_HANDLER
                    assert lines(guest.vm) == {GSI}, "up until its end"
                    await turns()
                    assert count(unmask) == 0
                    assert guest.next_port().port == AFTER_EOI
                    assert lines(guest.vm) == set(), "lowered inside the end of interrupt"
                    assert await unmask.read() == 1
                    assert irqs.statistics().asserted == 0
                kick.signal()
                await irqs.flush()
                await irqs.deassign(irqfd)
                assert lines(guest.vm) == set(), "the last one out lowers it (row R14)"
                assert count(unmask) == 0


@WAYS
async def test_a_second_trigger_inside_the_handler_is_in_the_same_interrupt_and_everybody_is_told(way):
    with Guest() as guest, KvmSink(guest.vm, **way) as sink:
        assert guest.next_port().port == READY
        async with IrqManager(sink, routing=PIC) as irqs:
            kicks, unmasks = [EventFd() for _ in range(2)], [EventFd() for _ in range(2)]
            for kick, unmask in zip(kicks, unmasks, strict=True):
                irqs.assign(kick, gsi=GSI, resamplefd=unmask)
            kicks[0].signal()
            await irqs.flush()
            assert guest.next_port().port == IN_HANDLER
            kicks[1].signal()
            await irqs.flush()
            assert guest.next_port().port == AFTER_EOI
            assert [await unmask.read() for unmask in unmasks] == [1, 1]
            kicks[1].signal()  # it still has a reason (row R08)
            await irqs.flush()
            assert guest.next_port().port == IN_HANDLER
            assert guest.next_port().port == AFTER_EOI
            for eventfd in (*kicks, *unmasks):
                eventfd.close()


@WAYS
async def test_every_edge_interrupt_reaches_the_guests_handler(way):
    with Guest() as guest:
        assert guest.next_port().port == READY
        async with IrqManager(KvmSink(guest.vm, **way), routing=PIC) as irqs:
            with EventFd() as kick:
                irqs.assign(kick, gsi=GSI)
                for number in range(20):
                    (write if number % 2 else EventFd.signal)(kick)
                    await irqs.flush()
                    assert [guest.next_port().port for _ in range(2)] == [IN_HANDLER, AFTER_EOI]


@pytest.mark.parametrize("how", ["mask", "pause", "lowered"])
async def test_an_end_of_interrupt_that_the_loop_has_not_heard_of_is_not_lost_with_the_line(how):
    with Guest() as guest, KvmSink(guest.vm) as sink:
        assert guest.next_port().port == READY
        async with IrqManager(sink, routing=PIC) as irqs:
            with EventFd() as kick, EventFd() as unmask:
                irqfd = irqs.assign(kick, gsi=GSI, resamplefd=unmask)
                kick.signal()
                assert guest.next_port().port == IN_HANDLER
                if how == "pause":
                    await irqs.pause()
                else:
                    irqfd.mask()
                assert irqs.statistics().asserted == 1
                assert guest.next_port().port == AFTER_EOI  # and the loop has no turn from here on
                if how == "pause":
                    irqs.resume()
                elif how == "mask":
                    irqfd.unmask()
                else:
                    sink.try_inject(Interrupt(GSI, PIC[GSI], Action.DEASSERT))
                assert count(unmask) == 1
                await turns()
                assert (count(unmask), irqs.statistics().asserted) == (0, 0)


@pytest.mark.parametrize("handled", [True, False])
@pytest.mark.parametrize("triggers", [0, 1])
async def test_r04_both_are_told_once_whoever_triggers_and_whoever_watches(handled, triggers):
    async def nothing(irqfd, number):
        pass

    with Guest() as guest, KvmSink(guest.vm) as sink:
        assert guest.next_port().port == READY
        async with IrqManager(sink, routing=PIC) as irqs:
            kicks, unmasks = [EventFd() for _ in range(2)], [EventFd() for _ in range(2)]
            irqfds = [
                irqs.assign(kick, gsi=GSI, resamplefd=unmask, wakeup=wakeup)
                for kick, unmask, wakeup in zip(kicks, unmasks, ((), nothing if handled else ()), strict=True)
            ]
            for number in range(3):
                kicks[triggers].signal()
                await irqs.flush()
                assert guest.next_port().port == IN_HANDLER
                if number == 1:
                    await irqs.pause()
                    irqs.resume()
                assert guest.next_port().port == AFTER_EOI
                assert [await unmask.read() for unmask in unmasks] == [1, 1]
                await turns()
                assert [count(unmask) for unmask in unmasks] == [0, 0]
                assert [irqfd.offloaded for irqfd in irqfds] == [not handled] * 2
                assert irqs.statistics().asserted == 0
            for eventfd in (*kicks, *unmasks):
                eventfd.close()


@pytest.mark.parametrize("way", [{"offload": True}, {"offload": False}], ids=str)
async def test_a_pin_that_another_gsi_leads_to_now_is_ended_for_that_one(way):
    with Guest() as guest, KvmSink(guest.vm, **way) as sink:
        assert guest.next_port().port == READY
        async with IrqManager(sink, routing={5: PIC[GSI]}) as irqs:
            kicks, unmasks = [EventFd() for _ in range(2)], [EventFd() for _ in range(2)]
            for gsi, kick, unmask in zip((5, 40), kicks, unmasks, strict=True):
                irqs.assign(kick, gsi=gsi, resamplefd=unmask)
            for number, gsi in enumerate((5, 40, 5)):
                irqs.set_routing({gsi: PIC[GSI]})
                which = number % 2
                kicks[which].signal()
                await irqs.flush()
                assert [guest.next_port().port for _ in range(2)] == [IN_HANDLER, AFTER_EOI]
                assert await unmasks[which].read() == 1
                assert [count(unmask) for unmask in unmasks] == [0, 0]
                assert irqs.statistics().asserted == 0
            for eventfd in (*kicks, *unmasks):
                eventfd.close()


async def test_two_gsis_that_hold_one_pin_up_are_both_told_and_neither_lowers_it_alone():
    with Guest() as guest, KvmSink(guest.vm, offload=False) as sink:
        assert guest.next_port().port == READY
        async with IrqManager(sink, routing={5: PIC[GSI], 40: PIC[GSI]}) as irqs:
            kicks, unmasks = [EventFd() for _ in range(2)], [EventFd() for _ in range(2)]
            irqfds = [
                irqs.assign(kick, gsi=gsi, resamplefd=unmask)
                for gsi, kick, unmask in zip((5, 40), kicks, unmasks, strict=True)
            ]
            for kick in kicks:
                kick.signal()
            await irqs.flush()
            assert [guest.next_port().port for _ in range(2)] == [IN_HANDLER, AFTER_EOI]
            assert [await unmask.read() for unmask in unmasks] == [1, 1]
            for kick in kicks:
                kick.signal()
            await irqs.flush()
            assert guest.next_port().port == IN_HANDLER
            await irqs.deassign(irqfds[0])
            assert lines(guest.vm) == {GSI}
            assert guest.next_port().port == AFTER_EOI
            assert await unmasks[1].read() == 1
            for eventfd in (*kicks, *unmasks):
                eventfd.close()


# ---------------------------------------------------------------------------------------------------------- offloading


async def test_masked_an_offloaded_irqfd_is_taken_back_and_handed_over_again(vm):
    async with IrqManager(KvmSink(vm), routing=PIC) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=GSI)
            irqfd.mask()
            assert irqfd.offloaded is False
            kick.signal()
            write(kick)
            await turns()
            assert irqfd.pending is True
            assert requested(vm) == set()
            irqfd.unmask()
            await irqs.flush()
            await irqs.deassign(irqfd)
            assert requested(vm) == {GSI}


async def test_paused_and_resumed(vm):
    async with IrqManager(KvmSink(vm), routing=PIC) as irqs:
        with EventFd() as kick, EventFd() as idle:
            irqfd, other = irqs.assign(kick, gsi=GSI), irqs.assign(idle, gsi=GSI)
            await irqs.pause()
            write(kick)
            await turns()
            assert (irqfd.offloaded, requested(vm)) == (False, set())
            irqs.resume()
            await irqs.flush()
            assert other.offloaded is True
            await irqs.deassign(irqfd)
            assert requested(vm) == {GSI}


@pytest.mark.trouble
async def test_rerouted_an_offloaded_irqfd_follows(vm):
    with vm.create_vcpu() as vcpu:
        enable_lapic(vcpu)
        async with IrqManager(KvmSink(vm), routing=PIC) as irqs:
            with EventFd() as kick:
                irqfd = irqs.assign(kick, gsi=GSI)
                for route, pins, vectors in (
                    (IrqchipPin("pic", 6), {6}, set()),
                    (MESSAGE, set(), {0x31}),
                    (OTHER, set(), {0x31, 0x32}),
                    (IrqchipPin("pic", 7), {7}, {0x31, 0x32}),
                ):
                    irqs.set_routing({GSI: route})
                    assert irqfd.offloaded is True
                    kick.signal()
                    irqfd.mask()  # as a barrier: taken back
                    assert requested(vm) == pins
                    assert vcpu.get_lapic().requested() == vectors
                    forget(vm)
                    irqfd.unmask()
                irqs.set_routing({})
                assert irqfd.offloaded is False
                kick.signal()
                await irqs.flush()
                assert irqfd.statistics().dropped == 1


async def test_i12_an_eventfd_that_another_virtual_machine_has(kvm, vm):
    with kvm.create_vm() as other, EventFd() as kick:
        other.create_irqchip()
        other.irqfd(kick, 3)
        async with IrqManager(KvmSink(vm), routing=PIC) as irqs:
            with pytest.raises(EventFdBusyError) as caught:
                irqs.assign(kick, gsi=GSI)
            assert caught.value.errno == errno.EBUSY
            assert irqs.irqfds == ()
            other.irqfd(kick, 3, flags=KVM_IRQFD_FLAG_DEASSIGN)
            assert irqs.assign(kick, gsi=GSI).offloaded is True
            with pytest.raises(OSError, match="busy"):
                other.irqfd(kick, 3)


async def test_a_signal_from_a_forked_child_reaches_an_offloaded_irqfd(vm):
    async with IrqManager(KvmSink(vm), routing=PIC) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=GSI)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if not child:
                status = 1
                try:
                    kick.signal()
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0
            await irqs.deassign(irqfd)
            assert requested(vm) == {GSI}


async def test_the_virtual_machine_closed_before_the_manager(kvm):
    vm = kvm.create_vm()
    vm.create_irqchip()
    async with IrqManager(KvmSink(vm), routing=PIC) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=GSI)
            vm.close()
        assert irqs.irqfds == ()


async def test_i04_a_split_irqchip_offloads_messages(kvm):
    with kvm.create_vm() as vm:
        vm.create_split_irqchip()
        with vm.create_vcpu() as vcpu:
            enable_lapic(vcpu)
            async with IrqManager(KvmSink(vm), routing={7: MESSAGE}) as irqs:
                with EventFd() as kick:
                    irqfd = irqs.assign(kick, gsi=7)
                    assert irqfd.offloaded is True
                    kick.signal()
                    await irqs.deassign(irqfd)
                    assert vcpu.get_lapic().requested() == {0x31}


# --------------------------------------------------------------------------------------- its gsis, its lines, its end


class Ioctls:
    """In place of a virtual machine: what it is told, and an error at will."""

    def __init__(self):
        self.tables = []
        self.irqfds = []
        self.error: OSError | None = None

    def set_gsi_routing(self, entries):
        self.tables.append(list(entries))

    def irqfd(self, fd, gsi, *, flags=0, resamplefd=-1):
        if self.error is not None:
            raise self.error
        self.irqfds.append((gsi, flags))


def test_a_message_has_a_gsi_for_as_long_as_somebody_uses_it():
    vm = Ioctls()
    sink = KvmSink(cast("Vm", vm))
    fixed = len(vm.tables[0])
    with EventFd() as one, EventFd() as two:
        first, second = Interrupt(7, MESSAGE), Interrupt(8, OTHER)
        assert [sink.offload(one, first, None), sink.offload(two, first, None), sink.offload(two, second, None)] == [
            True
        ] * 3
        assert [len(table) - fixed for table in vm.tables] == [0, 1, 2]
        assert vm.irqfds[0][0] == vm.irqfds[1][0] != vm.irqfds[2][0]
        sink.reclaim(one, first)
        assert len(vm.tables) == 3, "still used"
        sink.reclaim(two, first)
        assert len(vm.tables[-1]) - fixed == 1
        assert sink.offload(one, first, None)
        sink.reclaim(one, first)
        sink.reclaim(two, second)
        assert vm.tables[-1] == vm.tables[0]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EBUSY, errno.ENOMEM])
def test_an_offload_that_fails_keeps_no_gsi(code):
    vm = Ioctls()
    sink = KvmSink(cast("Vm", vm))
    vm.error = OSError(code, os.strerror(code))
    with EventFd() as kick:
        if code == errno.EINVAL:
            assert sink.offload(kick, Interrupt(7, MESSAGE), None) is False
        else:
            with pytest.raises(EventFdBusyError if code == errno.EBUSY else OSError):
                sink.offload(kick, Interrupt(7, MESSAGE), None)
        assert vm.tables[-1] == vm.tables[0]


def test_more_messages_than_there_are_gsis(monkeypatch):
    monkeypatch.setattr("aioirqfd.sinks.kvm_routes._MAX_GSI", 1024 + 24 + 16 + 7)
    vm = Ioctls()
    sink = KvmSink(cast("Vm", vm))
    taken = 0
    with EventFd() as kick:
        while sink.offload(kick, Interrupt(7, Msi(0xFEE00000, taken)), None):
            taken += 1
        assert taken == 7
        sink.reclaim(kick, Interrupt(7, Msi(0xFEE00000, 3)))
        assert sink.offload(kick, Interrupt(7, Msi(0xFEE00000, 9999)), None) is True


async def test_a_line_that_cannot_be_opened_leaves_no_fd():
    vm = Ioctls()
    sink = KvmSink(cast("Vm", vm), offload=False)
    vm.error = OSError(errno.EINVAL, "no")
    with pytest.raises(OSError, match="no"):
        sink.try_inject(Interrupt(9, IrqchipPin("ioapic", 9), Action.ASSERT))
    assert sink.try_inject(Interrupt(9, IrqchipPin("ioapic", 9), Action.DEASSERT)) is True


async def test_dropped_with_a_line_open_it_warns_and_lets_go(vm):
    sink = KvmSink(vm, offload=False)
    sink.try_inject(Interrupt(GSI, PIC[GSI], Action.ASSERT))
    assert lines(vm) in ({GSI}, set())
    with pytest.warns(ResourceWarning, match="level-triggered lines"):  # noqa: PT031  dropped, and collected
        del sink
        gc.collect()
    assert lines(vm) == set()


async def test_close_lets_go_of_the_lines_and_is_idempotent(vm):
    with KvmSink(vm, offload=False) as sink:
        for pin in (5, 9):
            sink.try_inject(Interrupt(pin, IrqchipPin("pic", pin), Action.ASSERT))
        sink.close()
        assert lines(vm) == set()
    sink.close()


async def test_an_ioapic_pin(vm):
    async with IrqManager(KvmSink(vm, offload=False)) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=11)
            before = vm.get_irqchip(KVM_IRQCHIP_IOAPIC).ioapic.irr
            kick.signal()
            assert vm.get_irqchip(KVM_IRQCHIP_IOAPIC).ioapic.irr in {before, before | 1 << 11}


async def test_what_the_chips_in_the_kernel_say_of_a_pin(vm):
    sink = KvmSink(vm)
    on_ioapic, on_pic, on_slave = (
        Interrupt(5, IrqchipPin("ioapic", 5)),
        Interrupt(5, IrqchipPin("pic", 5)),
        Interrupt(9, IrqchipPin("pic", 9)),
    )
    assert sink.obstacle(on_ioapic) == "the guest has masked pin 5 of the kernel's IOAPIC"
    state = vm.get_irqchip(KVM_IRQCHIP_IOAPIC)
    state.ioapic.redirtbl[5] = 0x8031
    vm.set_irqchip(state)
    assert sink.obstacle(on_ioapic) is None
    state.ioapic.redirtbl[5] = 0x8031 | 1 << 14
    vm.set_irqchip(state)
    assert sink.obstacle(on_ioapic) == "pin 5 of the kernel's IOAPIC waits for the guest's end of interrupt"
    state = vm.get_irqchip(KVM_IRQCHIP_PIC_MASTER)
    for imr, isr, pic, slave in (
        (0x20, 0, "the guest has masked pin 5 of the kernel's PIC", None),
        (
            4,
            0x20,
            "pin 5 of the kernel's PIC is in service until the guest's end of interrupt",
            "the guest has masked the kernel's slave PIC at the master",
        ),
        (0, 0, None, None),
    ):
        state.pic.imr, state.pic.isr = imr, isr
        vm.set_irqchip(state)
        assert (sink.obstacle(on_pic), sink.obstacle(on_slave)) == (pic, slave)
    assert sink.obstacle(Interrupt(30, Msi(0xFEE00000, 0x31))) is None
    sink.close()
