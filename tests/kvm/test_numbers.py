"""Numbers that go to the kernel: other libraries' integers are taken, and what is cut off, or is no number, is refused."""

from __future__ import annotations

import array
import copy
import ctypes
import gc
import mmap
import os
import pickle

import pytest

from aioirqfd import EventFd
from aioirqfd.integers import plain
from aioirqfd.kvm import Kvm, RoutingEntry
from aioirqfd.kvm.descriptor import fd_word
from aioirqfd.kvm.ioctls import KVM_CAP_IRQFD, KVM_CAP_NR_MEMSLOTS
from tests.integers import int64

pytestmark = pytest.mark.kvm


@pytest.fixture
def kvm():
    with Kvm() as kvm:
        yield kvm


@pytest.fixture
def vm(kvm):
    with kvm.create_vm() as vm:
        vm.create_irqchip()
        yield vm


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (5, 5),
        (int64(5), 5),
        (0, 0),
        (255, 255),
        (256, None),
        (-1, None),
        (int64(256), None),
        (True, None),
        (False, None),
        (5.0, None),
        ("5", None),
        (None, None),
    ],
)
def test_a_plain_integer(value, number):
    assert plain(value, 256) == number
    assert number is None or type(plain(value, 256)) is int


def test_other_libraries_integers_are_taken(kvm, vm):
    assert kvm.check_extension(int64(KVM_CAP_IRQFD)) == 1
    assert vm.check_extension(int64(KVM_CAP_NR_MEMSLOTS)) > 0
    memory = vm.add_memory(int64(3), int64(0x10000), 4096)
    memory[:1] = b"x"
    del memory
    gc.collect()
    vm.set_user_memory_region(3, 0, None)
    vm.irq_line(int64(5), True)
    assert vm.irq_line_status(5, False) == 2, "as the kernel has it, both chips"
    vm.set_gsi_routing([RoutingEntry.irqchip(int64(5), int64(0), int64(5))])
    with vm.create_vcpu(int64(0)) as vcpu, EventFd() as kick:
        vcpu.set_mp_state(int64(0))
        vm.irqfd(int64(kick.fileno()), int64(5))
        vm.irqfd(kick, 5, flags=int64(1))
        vm.ioeventfd(int64(0x1000), int64(4), kick, flags=int64(1), datamatch=int64(7))
        vm.ioeventfd(0x1000, 4, kick, flags=5, datamatch=7)


@pytest.mark.parametrize(
    "buffer", [array.array("q", [KVM_CAP_IRQFD]), ctypes.c_uint64(KVM_CAP_IRQFD), b"12345678", None, 1.0]
)
def test_what_has_a_buffer_is_not_handed_over_by_its_address(kvm, buffer):
    with pytest.raises(TypeError, match="the argument is an integer, not"):
        kvm.check_extension(buffer)


CALLS = {
    "slot": lambda vm, number: vm.add_memory(number, 0, 4096),
    "guest_phys_addr": lambda vm, number: vm.add_memory(0, number, 4096),
    "flags": lambda vm, number: vm.add_memory(0, 0, 4096, flags=number),
    "cap": lambda vm, number: vm.enable_cap(number),
    "args[1]": lambda vm, number: vm.enable_cap(121, 24, number),
    "chip_id": lambda vm, number: vm.get_irqchip(number),
    "gsi": lambda vm, number: vm.irqfd(0, number),
    "addr": lambda vm, number: vm.ioeventfd(number, 4, 0),
    "datamatch": lambda vm, number: vm.ioeventfd(0, 4, 0, datamatch=number),
    "data": lambda vm, number: vm.signal_msi(0, number),
    "the argument": lambda vm, number: vm.set_tss_addr(number),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_would_be_cut_off_is_refused_by_name(vm, name):
    for number in (-1, 2**64, 2**64 + 1):
        with pytest.raises(ValueError, match="does not fit its field") as caught:
            CALLS[name](vm, number)
        assert str(caught.value).startswith(name)
    for number in (True, 1.5, "1", None):
        with pytest.raises(TypeError, match="is an integer, not") as caught:
            CALLS[name](vm, number)
        assert str(caught.value).startswith(name)
    assert vm._memory == {}


def test_a_slot_that_would_be_cut_off_replaces_no_other(vm):
    with mmap.mmap(-1, 4096) as memory:
        vm.set_user_memory_region(1, 0, memory)
        with pytest.raises(ValueError, match="slot 4294967297 does not fit"):
            vm.set_user_memory_region(2**32 + 1, 0, None)
        assert set(vm._memory) == {1}
        vm.set_user_memory_region(1, 0, None)


def test_a_fifth_argument(vm):
    with pytest.raises(ValueError, match="takes 4 arguments at most"):
        vm.enable_cap(121, 1, 2, 3, 4, 5)


@pytest.mark.parametrize(("fd", "word"), [(0, 0), (7, 7), (-1, 2**32 - 1), (int64(7), 7), (2**32 - 1, 2**32 - 1)])
def test_a_descriptor(fd, word):
    assert fd_word(fd) == word


def test_what_has_a_descriptor():
    with EventFd() as eventfd:
        assert fd_word(eventfd) == eventfd.fileno()
    with pytest.raises(ValueError, match="does not fit"):
        fd_word(2**32 + 7)


@pytest.mark.parametrize("fd", [True, None, "7"])
def test_what_has_none(fd):
    with pytest.raises((TypeError, AttributeError)):
        fd_word(fd)


# -------------------------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
def test_nothing_is_a_second_owner(kvm, vm, how):
    with vm.create_vcpu() as vcpu:
        for one in (kvm, vm, vcpu):
            with pytest.raises(TypeError, match=r"cannot be copied or pickled\. It owns a file descriptor"):
                how(one)
            gc.collect()
            os.fstat(one.fileno())


def test_a_signal_that_is_taken_leaves_the_vcpus_number_free(vm, monkeypatch):
    def taken():
        raise RuntimeError("taken")

    with monkeypatch.context() as patch:
        patch.setattr("aioirqfd.kvm.vm.install_kick_handler", taken)
        with pytest.raises(RuntimeError, match="taken"):
            vm.create_vcpu(0)
    with vm.create_vcpu(0):
        pass
