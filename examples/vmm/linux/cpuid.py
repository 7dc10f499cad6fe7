"""What the CPUID instruction answers on each vCPU: what KVM can give on this host, and which of the CPUs it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aioirqfd.kvm.ioctls import KVM_CAP_TSC_DEADLINE_TIMER

if TYPE_CHECKING:
    from aioirqfd.kvm import Kvm
    from aioirqfd.kvm.structures import KvmCpuidEntry2

_TSC_DEADLINE: Final = 1 << 24
_HYPERVISOR: Final = 1 << 31
_TOPOLOGY: Final = frozenset({0xB, 0x1F})
_AMD_TOPOLOGY: Final = 0x8000001E


def leaves(kvm: Kvm, *, apic_id: int) -> list[KvmCpuidEntry2]:
    """The leaves for one vCPU.

    Args:
        kvm: Gives the host's own, cut to what it can run. Among them are KVM's own, from which Linux has its clock.
        apic_id: The vCPU's, 0..254.
    """
    entries = kvm.get_supported_cpuid()
    for entry in entries:
        if entry.function == 1:
            # EBX: the APIC id, and one logical CPU in this package.
            entry.ebx = entry.ebx & 0xFFFF | 1 << 16 | apic_id << 24
            # A guest has to be told that it is one, or it does not look for KVM's leaves.
            entry.ecx |= _HYPERVISOR
            # Without it Linux has to measure the timer of its local APIC by the PIT.
            if kvm.check_extension(KVM_CAP_TSC_DEADLINE_TIMER):
                entry.ecx |= _TSC_DEADLINE
        elif entry.function in _TOPOLOGY:
            entry.edx = apic_id
        elif entry.function == _AMD_TOPOLOGY:
            entry.eax, entry.ebx, entry.ecx = apic_id, apic_id, 0  # a core of its own, on the one node
    return entries
