from __future__ import annotations

import errno
import os
from contextlib import ExitStack

import pytest

from aioirqfd.kvm import Kvm, RoutingEntry
from aioirqfd.kvm.ioctls import (
    KVM_EXIT_HLT,
    KVM_EXIT_IO,
    KVM_IOEVENTFD_FLAG_DATAMATCH,
    KVM_IOEVENTFD_FLAG_DEASSIGN,
    KVM_IOEVENTFD_FLAG_PIO,
    KVM_IRQFD,
    KVM_IRQFD_FLAG_DEASSIGN,
    KVM_IRQFD_FLAG_RESAMPLE,
)
from aioirqfd.kvm.structures import KvmIrqfd
from tests.kvm.guest import AFTER_EOI, GSI, IN_HANDLER, READY, Guest

pytestmark = pytest.mark.kvm

DEASSIGN = KVM_IRQFD_FLAG_DEASSIGN
RESAMPLE = KVM_IRQFD_FLAG_RESAMPLE
PIO = KVM_IOEVENTFD_FLAG_PIO
BIT = 1 << GSI


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def bare(stack):
    return stack.enter_context(stack.enter_context(Kvm()).create_vm())


@pytest.fixture
def vm(bare):
    bare.create_irqchip()
    return bare


@pytest.fixture
def eventfd(stack):
    def make(initial=0):
        fd = os.eventfd(initial, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        stack.callback(os.close, fd)
        return fd

    return make


@pytest.fixture
def null(stack):
    fd = os.open("/dev/null", os.O_RDWR)
    stack.callback(os.close, fd)
    return fd


@pytest.fixture
def closed():
    # Far above what is open: a number closed just now would be the next eventfd's.
    return 10**6


def errno_of(call, *args, **kwargs):
    with pytest.raises(OSError) as caught:
        call(*args, **kwargs)
    return errno.errorcode[caught.value.errno or 0]


def count(fd):
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


class TestArguments:
    def test_i01_without_an_irqchip(self, bare, eventfd):
        assert errno_of(bare.irqfd, eventfd(), GSI) == "EINVAL"
        assert errno_of(bare.irqfd, eventfd(), GSI, flags=RESAMPLE, resamplefd=eventfd()) == "EINVAL"

    def test_i02_the_irqchip_and_the_flags_are_looked_at_before_the_fd(self, bare, closed):
        assert errno_of(bare.irqfd, closed, GSI) == "EINVAL"
        bare.create_irqchip()
        assert errno_of(bare.irqfd, closed, GSI, flags=4) == "EINVAL"
        assert errno_of(bare.irqfd, closed, GSI) == "EBADF"

    def test_i03_deassign_without_an_irqchip(self, bare, eventfd):
        bare.irqfd(eventfd(), GSI, flags=DEASSIGN)
        assert errno_of(bare.irqfd, -1, GSI, flags=DEASSIGN) == "EBADF"

    def test_i04_split_irqchip_has_no_resample(self, bare, eventfd):
        bare.create_split_irqchip()
        bare.irqfd(eventfd(), GSI)
        assert errno_of(bare.irqfd, eventfd(), GSI, flags=RESAMPLE, resamplefd=eventfd()) == "EINVAL"

    @pytest.mark.parametrize("flags", [4, 0x80000000, DEASSIGN | 4])
    def test_i05_unknown_flags(self, vm, eventfd, flags):
        assert errno_of(vm.irqfd, eventfd(), GSI, flags=flags) == "EINVAL"

    def test_i06_deassign_does_not_look_at_the_resamplefd(self, vm, eventfd):
        trigger = eventfd()
        vm.irqfd(trigger, GSI, flags=RESAMPLE, resamplefd=eventfd())
        vm.irqfd(trigger, GSI, flags=DEASSIGN | RESAMPLE, resamplefd=-1)
        vm.irqfd(trigger, GSI)

    def test_i07_unused_fields_are_ignored(self, vm, eventfd):
        vm.irqfd(eventfd(), GSI, resamplefd=12345)
        argument = KvmIrqfd(fd=eventfd(), gsi=GSI)
        argument.pad[:] = range(16)
        vm.ioctl(KVM_IRQFD, argument)

    def test_i08_fd(self, vm, closed, null):
        assert errno_of(vm.irqfd, closed, GSI) == "EBADF"
        assert errno_of(vm.irqfd, -1, GSI) == "EBADF"
        assert errno_of(vm.irqfd, null, GSI) == "EINVAL"

    def test_i09_resamplefd(self, vm, eventfd, closed, null):
        trigger = eventfd()
        assert errno_of(vm.irqfd, trigger, GSI, flags=RESAMPLE, resamplefd=closed) == "EBADF"
        assert errno_of(vm.irqfd, trigger, GSI, flags=RESAMPLE) == "EBADF"
        assert errno_of(vm.irqfd, trigger, GSI, flags=RESAMPLE, resamplefd=null) == "EINVAL"
        vm.irqfd(trigger, GSI)

    def test_i10_bad_pointer(self, vm):
        assert errno_of(vm.ioctl, KVM_IRQFD, 8) == "EFAULT"

    @pytest.mark.parametrize("gsi", [24, 4095, 4096, 0xFFFFFFFF])
    def test_i11_gsi_is_not_validated(self, vm, eventfd, gsi):
        trigger = eventfd()
        vm.irqfd(trigger, gsi)
        os.eventfd_write(trigger, 1)
        assert count(trigger) == 0

    def test_i12_busy(self, vm, eventfd, stack):
        trigger = eventfd()
        vm.irqfd(trigger, GSI)
        other = stack.enter_context(stack.enter_context(Kvm()).create_vm())
        other.create_irqchip()
        twin = os.dup(trigger)
        stack.callback(os.close, twin)
        assert errno_of(vm.irqfd, trigger, GSI) == "EBUSY"
        assert errno_of(vm.irqfd, trigger, GSI + 1) == "EBUSY"
        assert errno_of(vm.irqfd, twin, GSI) == "EBUSY"
        assert errno_of(vm.irqfd, trigger, GSI, flags=RESAMPLE, resamplefd=eventfd()) == "EBUSY"
        assert errno_of(other.irqfd, trigger, GSI) == "EBUSY"

    def test_i13_several_eventfds_on_one_gsi(self, vm, eventfd):
        for _ in range(3):
            vm.irqfd(eventfd(), GSI)

    def test_i14_deassign_matches_eventfd_and_gsi_or_does_nothing(self, vm, eventfd, stack):
        trigger = eventfd()
        vm.irqfd(trigger, GSI, flags=DEASSIGN)
        vm.irqfd(trigger, GSI)
        vm.irqfd(trigger, GSI + 1, flags=DEASSIGN)
        assert errno_of(vm.irqfd, trigger, GSI) == "EBUSY"
        twin = os.dup(trigger)
        stack.callback(os.close, twin)
        vm.irqfd(twin, GSI, flags=DEASSIGN)
        vm.irqfd(trigger, GSI)

    def test_i15_deassign_with_a_bad_fd(self, vm, closed, null):
        assert errno_of(vm.irqfd, closed, GSI, flags=DEASSIGN) == "EBADF"
        assert errno_of(vm.irqfd, null, GSI, flags=DEASSIGN) == "EINVAL"

    def test_i16_odd_but_legal(self, vm, eventfd):
        both, resample = eventfd(), eventfd()
        vm.irqfd(both, GSI, flags=RESAMPLE, resamplefd=both)
        vm.irqfd(eventfd(), GSI, flags=RESAMPLE, resamplefd=resample)
        vm.irqfd(eventfd(), GSI + 1, flags=RESAMPLE, resamplefd=resample)
        vm.irqfd(resample, GSI + 2)

    def test_i18_on_a_vcpu(self, vm):
        with vm.create_vcpu() as vcpu:
            assert errno_of(vcpu.ioctl, KVM_IRQFD, KvmIrqfd()) == "EINVAL"

    def test_an_object_with_a_fileno_will_do(self, vm, eventfd):
        class HasFileno:
            def __init__(self):
                self.fd = eventfd()

            def fileno(self):
                return self.fd

        trigger = HasFileno()
        vm.irqfd(trigger, GSI, flags=RESAMPLE, resamplefd=HasFileno())
        assert errno_of(vm.irqfd, trigger.fd, GSI) == "EBUSY"
        vm.ioeventfd(0x50, 1, trigger, flags=PIO)
        assert errno_of(vm.ioeventfd, 0x50, 1, trigger.fd, flags=PIO) == "EEXIST"

    def test_what_does_not_fit_is_a_value_error(self, vm, eventfd):
        with pytest.raises(ValueError, match="does not fit"):
            vm.irqfd(eventfd(), 2**32)
        with pytest.raises(ValueError, match="does not fit"):
            vm.ioeventfd(2**64, 1, eventfd())


class TestInterrupts:
    def test_i19_i20_edge_before_any_vcpu_and_deassign_is_a_barrier(self, vm, eventfd):
        trigger = eventfd()
        vm.irqfd(trigger, GSI)
        os.eventfd_write(trigger, 1)
        vm.irqfd(trigger, GSI, flags=DEASSIGN)
        pic = vm.get_irqchip(0).pic
        assert (pic.irr, pic.last_irr) == (BIT, 0)

    def test_an_edge_is_one_interrupt_in_the_guest(self, eventfd):
        trigger = eventfd()
        with Guest() as guest:
            assert guest.next_port().port == READY
            guest.vm.irqfd(trigger, GSI)
            for _ in range(3):
                os.eventfd_write(trigger, 1)
                assert guest.next_port().port == IN_HANDLER
                assert guest.pic().isr == BIT
                assert guest.next_port().port == AFTER_EOI
                assert guest.pic().isr == 0
            guest.vm.irqfd(trigger, GSI, flags=DEASSIGN)
            assert (guest.pic().irr, count(trigger)) == (0, 0)

    def test_resample_holds_the_line_until_the_eoi_and_then_notifies(self, eventfd):
        trigger, resample = eventfd(), eventfd()
        with Guest() as guest:
            assert guest.next_port().port == READY
            guest.vm.irqfd(trigger, GSI, flags=RESAMPLE, resamplefd=resample)
            for _ in range(3):
                os.eventfd_write(trigger, 1)
                assert guest.next_port().port == IN_HANDLER
                assert (guest.pic().last_irr & BIT, count(resample)) == (BIT, 0)
                assert guest.next_port().port == AFTER_EOI
                assert (guest.pic().last_irr & BIT, count(resample)) == (0, 1)

    def test_irq_line_is_one_interrupt_in_the_guest(self):
        with Guest() as guest:
            assert guest.next_port().port == READY
            guest.vm.irq_line(GSI, 1)
            guest.vm.irq_line(GSI, 0)
            assert [guest.next_port().port for _ in range(2)] == [IN_HANDLER, AFTER_EOI]
            assert (guest.pic().irr, guest.pic().isr) == (0, 0)

    def test_an_irqfd_follows_the_routing(self, eventfd):
        # G10: the same binding, another pin.
        trigger = eventfd()
        with Guest() as guest:
            guest.vm.irqfd(trigger, 100)
            os.eventfd_write(trigger, 1)
            assert guest.next_port().port == READY
            guest.vm.set_gsi_routing([RoutingEntry.irqchip(100, 0, GSI)])
            os.eventfd_write(trigger, 1)
            assert [guest.next_port().port for _ in range(2)] == [IN_HANDLER, AFTER_EOI]


def out(port, value):
    return bytes([0xB0, value, 0xE6, port])  # mov al, value; out port, al


class TestIoEventFd:
    def test_o01_o02_o03_o04_o05_arguments(self, vm, eventfd, closed, null):
        fd = eventfd()
        for length in (0, 1, 2, 4, 8):
            vm.ioeventfd(0x100 + 16 * length, length, fd)
        assert errno_of(vm.ioeventfd, 0x50, 3, fd) == "EINVAL"
        assert errno_of(vm.ioeventfd, 0x50, 3, fd, flags=KVM_IOEVENTFD_FLAG_DEASSIGN) == "ENOENT"
        assert errno_of(vm.ioeventfd, 0x50, 0, fd, flags=KVM_IOEVENTFD_FLAG_DATAMATCH) == "EINVAL"
        assert errno_of(vm.ioeventfd, 2**64 - 4, 4, fd) == "EINVAL"
        vm.ioeventfd(2**64 - 5, 4, fd)
        assert errno_of(vm.ioeventfd, 0x50, 1, fd, flags=0x20) == "EINVAL"
        assert errno_of(vm.ioeventfd, 0x50, 1, closed) == "EBADF"
        assert errno_of(vm.ioeventfd, 0x50, 1, -1) == "EBADF"
        assert errno_of(vm.ioeventfd, 0x50, 1, null) == "EINVAL"

    def test_o07_o09_collision_and_deassign(self, vm, eventfd):
        fd, match = eventfd(), PIO | KVM_IOEVENTFD_FLAG_DATAMATCH
        vm.ioeventfd(0x50, 1, fd, flags=match, datamatch=1)
        assert errno_of(vm.ioeventfd, 0x50, 1, fd, flags=match, datamatch=1) == "EEXIST"
        assert errno_of(vm.ioeventfd, 0x50, 1, fd, flags=PIO) == "EEXIST"
        vm.ioeventfd(0x50, 1, fd, flags=match, datamatch=2)
        gone = match | KVM_IOEVENTFD_FLAG_DEASSIGN
        assert errno_of(vm.ioeventfd, 0x50, 1, fd, flags=gone, datamatch=3) == "ENOENT"
        vm.ioeventfd(0x50, 1, fd, flags=gone, datamatch=1)
        assert errno_of(vm.ioeventfd, 0x50, 1, fd, flags=gone, datamatch=1) == "ENOENT"

    def test_o10_o11_only_the_matching_write_signals_and_it_does_not_exit(self, eventfd):
        fd = eventfd()
        code = out(0x50, 1) + out(0x50, 2) + out(0x50, 1) + out(0x51, 1) + out(0x50, 1) + out(0x52, 9)
        with Guest(code) as guest:
            guest.vm.ioeventfd(0x50, 1, fd, flags=PIO | KVM_IOEVENTFD_FLAG_DATAMATCH, datamatch=1)
            seen = [(*guest.next_port(), count(fd)) for _ in range(3)]
        assert seen == [(0x50, b"\x02", 1), (0x51, b"\x01", 1), (0x52, b"\x09", 1)]

    def test_an_ioeventfd_that_is_an_irqfd_injects_without_an_exit(self, eventfd):
        # O20
        fd = eventfd()
        with Guest(out(0x50, 1) + out(0x51, 1)) as guest:
            guest.vm.irqfd(fd, GSI)
            guest.vm.ioeventfd(0x50, 1, fd, flags=PIO)
            assert guest.next_port().port == 0x51
            guest.vm.irqfd(fd, GSI, flags=DEASSIGN)
            assert guest.pic().irr == BIT


def test_without_an_irqchip_a_halt_is_an_exit(bare):
    bare.add_memory(0, 0, 4096)[:3] = b"\xe6\x10\xf4"  # out 0x10, al; hlt
    with bare.create_vcpu() as vcpu:
        sregs = vcpu.get_sregs()
        sregs.cs.base = sregs.cs.selector = 0
        vcpu.set_sregs(sregs)
        regs = vcpu.get_regs()
        regs.rip, regs.rflags, regs.rax = 0, 2, 0x77
        vcpu.set_regs(regs)
        assert vcpu.run() == KVM_EXIT_IO
        assert bytes(vcpu.io_exit().data) == b"\x77"
        assert vcpu.run() == KVM_EXIT_HLT
        assert vcpu.get_regs().rip == 3
