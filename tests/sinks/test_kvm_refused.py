"""What the kernel refuses changes nothing: the other interrupts come as before, and nothing of the refused one is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import gc
import os
import pickle
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from aioirqfd import (
    Action,
    EventFd,
    EventFdBusyError,
    Interrupt,
    IrqchipPin,
    IrqManager,
    Msi,
    MsixTable,
    Retry,
    RoutingError,
    WouldBlock,
)
from aioirqfd.kvm import Kvm
from aioirqfd.sinks import KvmSink
from tests.forks import in_child
from tests.irqfd.helpers import room_for_fds, turns, write
from tests.kvm.test_vm import enable_lapic
from tests.sinks.test_kvm_sink import lines

if TYPE_CHECKING:
    from aioirqfd.kvm import Vm

KVM_CAP_X2APIC_API = 129
"""With its first flag the kernel looks at the upper half of a message's address, and refuses one that has a bit of the lowest eight."""
REFUSED = Msi(0x5_FEE0_0000, 0x32)
PIN = IrqchipPin("pic", 5)


def message(vector):
    return Msi(0xFEE00000, vector)


@pytest.fixture
def vm():
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.create_irqchip()
        vm.enable_cap(KVM_CAP_X2APIC_API, 1)
        yield vm


@pytest.fixture
def vcpu(vm):
    with vm.create_vcpu() as vcpu:
        enable_lapic(vcpu)
        yield vcpu


def count(eventfd):
    try:
        return eventfd.read_nowait()
    except WouldBlock:
        return 0


async def up(vm):
    """The line goes up; the kernel does that on a thread of its own."""
    while lines(vm) != {5}:
        await asyncio.sleep(0)


class Ioctls:
    """In place of a virtual machine whose kernel refuses what no kernel refuses at will.

    Attributes:
        table: The one in force, without the fixed entries.
        refuse: Raised in place of taking a table.
        interrupt: Raised after a table was taken.
    """

    def __init__(self):
        self.table: list[tuple[int, ...]] = []
        self.fixed = None
        self.refuse: OSError | None = None
        self.interrupt: BaseException | None = None
        self.irqfd_error: BaseException | None = None
        self.bound = {}
        self.levels = 0

    def set_gsi_routing(self, entries):
        entries = [(entry.gsi, *entry.words) for entry in entries]
        if self.refuse is not None:
            raise self.refuse
        if self.fixed is None:
            self.fixed = entries
        self.table = [entry for entry in entries if entry not in self.fixed]
        if self.interrupt is not None:
            interrupt, self.interrupt = self.interrupt, None
            raise interrupt

    def irqfd(self, fd, gsi, *, flags=0, resamplefd=-1):
        if self.irqfd_error is not None:
            raise self.irqfd_error
        fd = fd if isinstance(fd, int) else fd.fileno()
        if flags & 1:
            self.bound.pop(fd, None)
        else:
            self.bound[fd] = gsi, resamplefd

    def get_irqchip(self, _chip):
        raise AssertionError("nobody asks")


def sink_of(vm):
    return KvmSink(cast("Vm", vm))


# ------------------------------------------------------------------------------------------------------------ messages


@pytest.mark.kvm
async def test_a_message_that_is_refused_leaves_the_others(vm, vcpu):
    async with IrqManager(KvmSink(vm), routing={7: message(0x31), 8: REFUSED, 9: message(0x33)}) as irqs:
        with EventFd() as first, EventFd() as bad, EventFd() as last:
            before = irqs.assign(first, gsi=7)
            with pytest.raises(RoutingError, match="KVM refuses Msi"):
                irqs.assign(bad, gsi=8)
            after = irqs.assign(last, gsi=9)
            assert (before.offloaded, after.offloaded) == (True, True)
            for eventfd in (first, bad, last):
                write(eventfd)
            await irqs.deassign(before)
            await irqs.deassign(after)
            assert vcpu.get_lapic().requested() == {0x31, 0x33}
            assert bad.read_nowait() == 1


@pytest.mark.kvm
async def test_an_irqfd_that_was_there_goes_by_the_loop_and_comes_back_with_a_better_message(vm, vcpu):
    errors = []
    irqs = IrqManager(KvmSink(vm), routing={7: message(0x31)}, retry=Retry(0), on_error=errors.append)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(irqs)
        kick = stack.enter_context(EventFd())
        irqfd = irqs.assign(kick, gsi=7)
        irqs.set_route(7, REFUSED)
        assert irqfd.offloaded is False
        write(kick)
        await irqs.flush()
        assert (irqfd.pending, len(errors), vcpu.get_lapic().requested()) == (True, 1, set())
        irqs.set_route(7, message(0x34))
        irqfd.resume()
        await irqs.flush()
        assert vcpu.get_lapic().requested() == {0x34}
        irqfd.mask()
        irqfd.unmask()
        assert irqfd.offloaded is True
        stack.pop_all()
        kick.close()
        with pytest.raises(type(errors[0])):
            await irqs.aclose()


@pytest.mark.trouble
@pytest.mark.kvm
async def test_a_vector_with_a_refused_message_is_pending_and_the_others_come(vm, vcpu):
    irqs = IrqManager(KvmSink(vm), retry=Retry(0))
    await irqs.__aenter__()
    async with MsixTable(irqs, vectors=4) as table:
        table.write_control(table.ENABLE)
        for vector, address in enumerate((0xFEE00000, REFUSED.address, 0xFEE00000, 0xFEE00000)):
            table.eventfd(vector)
            table.write(vector * 16, address, 8)
            table.write(vector * 16 + 8, 0x31 + vector, 8)
        table.mask(2)
        for vector in range(4):
            table.signal(vector)
        table.unmask(2)
        await irqs.flush()
        await turns()
        assert vcpu.get_lapic().requested() == {0x31, 0x33, 0x34}
        assert [table.pending(vector) for vector in range(4)] == [False, True, False, False]
        table.write(16, 0xFEE00000, 8)
        await irqs.flush()
        assert vcpu.get_lapic().requested() == {0x31, 0x32, 0x33, 0x34}
        assert table.pending(1) is False
    with pytest.raises(Exception, match="gsi 25"):
        await irqs.aclose()


@pytest.mark.kvm
def test_the_message_of_an_end_of_interrupt_that_is_refused():
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.create_split_irqchip()
        vm.enable_cap(KVM_CAP_X2APIC_API, 1)
        sink = KvmSink(vm)
        sink.set_eoi_message(3, message(0x31))
        with pytest.raises(OSError, match="Invalid argument"):
            sink.set_eoi_message(4, REFUSED)
        sink.set_eoi_message(5, message(0x33))
        with EventFd() as kick:
            with pytest.raises(RoutingError):
                sink.offload(kick, Interrupt(7, REFUSED), None)
            assert sink.offload(kick, Interrupt(7, message(0x34)), None)


async def test_a_refusal_is_forgotten():
    vm = Ioctls()
    sink = sink_of(vm)
    with EventFd() as kick, EventFd() as other:
        for code, error in ((errno.EINVAL, RoutingError), (errno.ENOMEM, OSError), (errno.EBADF, OSError)):
            vm.refuse = OSError(code, os.strerror(code))
            with pytest.raises(error):
                sink.offload(kick, Interrupt(7, message(0x31)), None)
            vm.refuse = None
            assert sink.offload(other, Interrupt(8, message(0x32)), None)
            assert vm.table == [(1064, 0xFEE00000, 0, 0x32, 0)]
            sink.reclaim(other, Interrupt(8, message(0x32)))
            assert vm.table == []


async def test_a_message_that_the_kernel_will_not_let_go_of_goes_with_the_next_change():
    vm = Ioctls()
    sink = sink_of(vm)
    with EventFd() as kick:
        assert sink.offload(kick, Interrupt(7, message(0x31)), None)
        vm.refuse = OSError(errno.ENOMEM, "no memory")
        assert sink.reclaim(kick, Interrupt(7, message(0x31))) is False
        vm.refuse = None
        assert vm.table == [(1064, 0xFEE00000, 0, 0x31, 0)]
        assert sink.offload(kick, Interrupt(7, message(0x31)), None), "which is its own again"
        sink.reclaim(kick, Interrupt(7, message(0x31)))
        assert vm.table == []
        vm.refuse = OSError(errno.ENOMEM, "no memory")
        with pytest.raises(OSError, match="no memory"):
            sink.offload(kick, Interrupt(7, message(0x31)), None)
        vm.refuse = None
        assert sink.offload(kick, Interrupt(8, message(0x32)), None)
        assert vm.table == [(1064, 0xFEE00000, 0, 0x32, 0)]


async def test_what_the_kernel_will_not_let_go_of_takes_up_no_room(monkeypatch):
    monkeypatch.setattr("aioirqfd.sinks.kvm_routes._MAX_GSI", 1065)
    vm = Ioctls()
    sink = sink_of(vm)
    with EventFd() as kick:
        assert sink.offload(kick, Interrupt(7, message(0x31)), None)
        assert sink.offload(kick, Interrupt(7, message(0x32)), None) is False, "there is one gsi"
        vm.refuse = OSError(errno.ENOMEM, "no memory")
        sink.reclaim(kick, Interrupt(7, message(0x31)))
        vm.refuse = None
        assert sink.offload(kick, Interrupt(7, message(0x32)), None)
    assert vm.table == [(1064, 0xFEE00000, 0, 0x32, 0)]


@pytest.mark.parametrize("change", ["hold", "release", "end"])
async def test_interrupted_on_the_way_the_next_change_asks_again(change):
    vm = Ioctls()
    sink = sink_of(vm)
    sink._routes.pins = False
    with EventFd() as kick, EventFd() as other:
        assert sink.offload(kick, Interrupt(7, message(0x31)), None)
        vm.interrupt = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            if change == "hold":
                sink.offload(other, Interrupt(8, message(0x32)), None)
            elif change == "release":
                sink.reclaim(kick, Interrupt(7, message(0x31)))
            else:
                sink.set_eoi_message(3, message(0x33))
        assert sink.offload(other, Interrupt(7, message(0x31)), None)
        assert [words[0] for words in vm.table] == [1064], "whatever the kernel had meanwhile"


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.EBUSY, "busy"), EventFdBusyError),
        (OSError(errno.ENOMEM, "no memory"), OSError),
        (ValueError("no field"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.EINVAL, "no"), None),
    ],
    ids=["busy", "memory", "field", "ctrl-c", "invalid"],
)
async def test_an_irqfd_that_is_refused_leaves_no_message(error, raised):
    vm = Ioctls()
    sink = sink_of(vm)
    vm.irqfd_error = error
    with EventFd() as kick:
        if raised is None:
            assert sink.offload(kick, Interrupt(7, message(0x31)), None) is False
        else:
            with pytest.raises(raised):
                sink.offload(kick, Interrupt(7, message(0x31)), None)
    assert vm.table == []


async def test_an_eventfd_that_cannot_be_taken_back_keeps_its_message():
    vm = Ioctls()
    sink = sink_of(vm)
    with EventFd() as kick, EventFd() as other:
        assert sink.offload(kick, Interrupt(7, message(0x31)), None)
        vm.irqfd_error = OSError(errno.EBADF, "closed behind its back")
        with pytest.raises(OSError, match="closed behind"):
            sink.reclaim(kick, Interrupt(7, message(0x31)))
        vm.irqfd_error = None
        assert sink.offload(other, Interrupt(8, message(0x32)), None)
        assert vm.table == [(1064, 0xFEE00000, 0, 0x31, 0), (1065, 0xFEE00000, 0, 0x32, 0)]


# --------------------------------------------------------------------------------------------------------------- lines


@pytest.mark.kvm
@pytest.mark.parametrize("room", [0, 1])
async def test_a_line_that_has_no_room_for_its_descriptors_leaves_none(vm, room):
    with KvmSink(vm, offload=False) as sink:
        with room_for_fds(room), pytest.raises(OSError, match="Too many open files"):
            sink.try_inject(Interrupt(5, PIN, Action.ASSERT))
        assert sink.try_inject(Interrupt(5, PIN, Action.ASSERT))
        await up(vm)


async def test_a_line_whose_reader_is_refused_is_not_bound(monkeypatch):
    class Loop:
        def add_reader(self, *_args):
            raise OSError(errno.ENOSPC, "no more watches")

        def remove_reader(self, _fd):
            return False

        remove_writer = remove_reader

    vm = Ioctls()
    sink = sink_of(vm)
    with monkeypatch.context() as patch:
        patch.setattr("aioirqfd.sinks.kvm_line.asyncio", SimpleNamespace(get_running_loop=Loop))
        with pytest.raises(OSError, match="no more watches"):
            await sink.inject(Interrupt(5, PIN, Action.ASSERT))
    assert vm.bound == {}
    assert await sink.inject(Interrupt(5, PIN, Action.DEASSERT)) is None


async def test_a_line_that_was_not_raised_is_held_up_by_nobody(monkeypatch):
    vm = Ioctls()

    def refuse(*_args):
        raise OSError(errno.EBADF, "closed behind its back")

    with sink_of(vm) as sink:
        for gsi, held in ((4, {4}), (5, {4}), (4, {4})):
            with monkeypatch.context() as patch:
                if gsi == 5:
                    patch.setattr("aioirqfd.sinks.kvm_line.EventFd.signal", refuse)
                with contextlib.nullcontext() if gsi == 4 else pytest.raises(OSError, match="closed behind"):
                    await sink.inject(Interrupt(gsi, PIN, Action.ASSERT))
            assert sink._lines[PIN].holders == held


async def test_nobody_waits_whatever_the_flags_of_the_eventfds_say():
    with sink_of(Ioctls()) as sink:
        await sink.inject(Interrupt(5, PIN, Action.ASSERT))
        line = sink._lines[PIN]
        for eventfd in (line._trigger, line._resample):
            os.set_blocking(eventfd.fileno(), True)  # as whoever has the same file may at any time
        assert line.ended() == ()
        os.eventfd_write(line._trigger.fileno(), 2**64 - 3)  # full, as nobody reads it here
        await sink.inject(Interrupt(5, PIN, Action.ASSERT))
        os.eventfd_write(line._resample.fileno(), 1)
        assert line.ended() == (5,)


@pytest.mark.kvm
async def test_taken_back_without_room_for_descriptors_everybody_is_asked_anew(vm):
    async with IrqManager(KvmSink(vm), routing={5: PIN}) as irqs:
        with EventFd() as one, EventFd() as two, EventFd() as unmask, EventFd() as other:
            irqfds = irqs.assign(one, gsi=5, resamplefd=unmask), irqs.assign(two, gsi=5, resamplefd=other)
            assert [irqfd.offloaded for irqfd in irqfds] == [True, True]
            one.signal()
            await up(vm)
            with room_for_fds(0):
                irqfds[0].mask()
            assert [irqfd.offloaded for irqfd in irqfds] == [False, False]
            assert lines(vm) == set(), "the last one took it down"
            assert (count(unmask), count(other)) == (1, 1), "and who still has a reason signals again"
            two.signal()
            await up(vm)


@pytest.mark.kvm
@pytest.mark.parametrize("room", [0, 8])
async def test_taken_back_though_the_kernel_does_not_say_whether_the_line_is_up(vm, room, monkeypatch):
    def refuse(*_args):
        raise OSError(errno.ENOMEM, "no memory")

    async with IrqManager(KvmSink(vm), routing={5: PIN}) as irqs:
        with EventFd() as one, EventFd() as unmask:
            irqfd = irqs.assign(one, gsi=5, resamplefd=unmask)
            one.signal()
            await up(vm)
            with room_for_fds(room), monkeypatch.context() as patch:
                patch.setattr(type(vm), "get_irqchip", refuse)
                irqfd.mask()
            assert (irqfd.offloaded, count(unmask)) == (False, 1 if room == 0 else 0)
            assert lines(vm) == (set() if room == 0 else {5}), "as it was, where there is room"


@pytest.mark.kvm
async def test_taken_back_with_the_line_low_nobody_is_told(vm):
    async with IrqManager(KvmSink(vm), routing={5: PIN}) as irqs:
        with EventFd() as one, EventFd() as unmask:
            irqfd = irqs.assign(one, gsi=5, resamplefd=unmask)
            with room_for_fds(0):
                irqfd.mask()
            assert count(unmask) == 0


def told(vm, sink, gsi):
    """The kernel tells of an end of interrupt of the only line there is."""
    ((_, resamplefd),) = vm.bound.values()
    os.eventfd_write(resamplefd, 1)


def test_a_line_is_heard_on_the_loop_that_runs_and_not_on_one_that_is_closed():
    vm = Ioctls()
    with sink_of(vm) as sink:
        acked = []
        sink.bind(acked.append)

        async def once():
            await sink.inject(Interrupt(5, PIN, Action.ASSERT))
            told(vm, sink, 5)
            await turns()

        for _ in range(3):
            asyncio.run(once())
        assert acked == [5, 5, 5]


async def test_lowered_from_another_thread_it_is_left_to_the_loop():
    vm = Ioctls()
    with sink_of(vm) as sink:
        for pin in (5, 6):
            await sink.inject(Interrupt(pin, IrqchipPin("pic", pin), Action.ASSERT))
        said = []
        down = Interrupt(5, PIN, Action.DEASSERT)
        thread = threading.Thread(target=lambda: said.append(sink.try_inject(down)))
        thread.start()
        thread.join()
        assert (said, len(vm.bound)) == ([False], 2)
        assert sink.try_inject(down) is True
        assert len(vm.bound) == 1


async def test_one_that_raises_does_not_keep_the_others_from_hearing():
    vm = Ioctls()
    acked = []

    def ack(gsi):
        acked.append(gsi)
        if gsi == 7:
            raise ValueError("seven")

    heard = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: heard.append(context["exception"]))
    with sink_of(vm) as sink:
        sink.bind(ack)
        for gsi in (9, 7, 8):
            await sink.inject(Interrupt(gsi, PIN, Action.ASSERT))
        told(vm, sink, 7)
        await turns()
        assert (acked, list(map(str, heard))) == ([7, 8, 9], ["seven"])
        for gsi, pin in ((7, 5), (7, 6), (9, 7)):
            await sink.inject(Interrupt(gsi, IrqchipPin("pic", pin), Action.ASSERT))
        for _, resamplefd in vm.bound.values():
            os.eventfd_write(resamplefd, 1)
        acked.clear()
        with pytest.raises(ValueError, match="seven"):
            sink.close()
        assert (sorted(acked), vm.bound) == ([7, 7, 9], {})


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
async def test_it_is_not_copied(how):
    vm = Ioctls()
    with sink_of(vm) as sink:
        await sink.inject(Interrupt(5, PIN, Action.ASSERT))
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            how(sink)
        gc.collect()
        assert len(vm.bound) == 1, "no copy has let go of the line"


@pytest.mark.kvm
async def test_a_forked_child_leaves_the_line_to_its_parent(vm):
    acked = []
    with KvmSink(vm, offload=False) as sink:
        sink.bind(acked.append)
        await sink.inject(Interrupt(5, PIN, Action.ASSERT))
        await up(vm)
        os.eventfd_write(
            sink._lines[PIN]._resample.fileno(), 1
        )  # as at an end of interrupt that the loop has not heard of yet

        def child():
            with pytest.raises(OSError, match="parent process") as caught:
                sink._lines[PIN].assert_for(6)
            assert caught.value.errno == errno.EIO
            sink.close()

        assert in_child(child) == 0
        await turns()
        assert (acked, lines(vm)) == ([5], {5})
        await sink.inject(Interrupt(5, PIN, Action.ASSERT))
        os.eventfd_write(sink._lines[PIN]._resample.fileno(), 1)
        await turns()
        assert acked == [5, 5], "the loop still hears of it"
