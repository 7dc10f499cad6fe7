"""What CPUID answers a guest: asked of KVM, changed, and set."""

from __future__ import annotations

import errno

import pytest

from aioirqfd.kvm import Kvm, cpuid
from aioirqfd.kvm.ioctls import KVM_CAP_TSC_DEADLINE_TIMER, KVM_GET_SUPPORTED_CPUID
from aioirqfd.kvm.structures import KvmCpuidEntry2
from tests.kvm.guest import Guest

pytestmark = pytest.mark.kvm

CPUID_OUT = (
    b"\x66\xb8\x00\x00\x00\x40"  # mov eax, 0x40000000
    b"\x0f\xa2"  #                 cpuid
    b"\x66\x93"  #                 xchg eax, ebx
    b"\x66\xe7\x10"  #             out 0x10, eax
)
MARK = 0x4D56_4D56


def test_the_first_leaf_says_how_many_there_are():
    with Kvm() as kvm:
        leaves = kvm.get_supported_cpuid()
        assert leaves[0].function == 0
        assert max(leaf.function for leaf in leaves if leaf.function < 0x1000) <= leaves[0].eax
        assert kvm.check_extension(KVM_CAP_TSC_DEADLINE_TIMER) in {0, 1}


def test_it_asks_again_with_more_room(monkeypatch):
    with Kvm() as kvm:
        whole = [bytes(leaf) for leaf in kvm.get_supported_cpuid()]
        monkeypatch.setattr(cpuid, "_ROOM", 1)
        assert [bytes(leaf) for leaf in kvm.get_supported_cpuid()] == whole


def test_it_does_not_ask_for_ever():
    class Never:
        asked = 0

        def ioctl(self, request, table):
            self.asked += 1
            raise OSError(errno.E2BIG, "never enough")

    never = Never()
    with pytest.raises(OSError, match="never enough"):
        cpuid.get_cpuid(never, KVM_GET_SUPPORTED_CPUID)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert never.asked == 7  # 64 entries, 128, ... 4096


def test_the_guest_is_answered_what_was_set():
    with Kvm() as kvm, Guest(CPUID_OUT) as guest:
        leaves = kvm.get_supported_cpuid()
        (signature,) = (leaf for leaf in leaves if leaf.function == 0x4000_0000)
        signature.ebx = MARK
        guest.vcpu.set_cpuid2(leaves)
        assert guest.next_port().data == MARK.to_bytes(4, "little")
        (again,) = (leaf for leaf in guest.vcpu.get_cpuid2() if leaf.function == 0x4000_0000)
        assert again.ebx == MARK


def test_too_many_are_the_kernels_to_refuse():
    with Guest() as guest:
        with pytest.raises(OSError) as caught:
            guest.vcpu.set_cpuid2([KvmCpuidEntry2()] * 1000)
        assert caught.value.errno == errno.E2BIG


def test_a_table_there_and_back():
    leaves = [KvmCpuidEntry2(function=number, ecx=number * 7) for number in range(3)]
    assert [bytes(leaf) for leaf in cpuid.unpack(cpuid.pack(leaves))] == [bytes(leaf) for leaf in leaves]
    assert cpuid.unpack(cpuid.pack([])) == []
