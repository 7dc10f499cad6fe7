"""What CPUID answers each vCPU of the machine for Linux."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from aioirqfd.kvm.ioctls import KVM_CAP_TSC_DEADLINE_TIMER
from aioirqfd.kvm.structures import KvmCpuidEntry2
from examples.vmm.linux import cpuid

if TYPE_CHECKING:
    from aioirqfd import kvm

pytestmark = pytest.mark.alike

FUNCTIONS = (0, 1, 0xB, 0x1F, 0x4000_0000, 0x8000_001E)


class Host:
    """A host whose answers are all 0x01020304."""

    def __init__(self, capabilities=()):
        self.capabilities = capabilities

    def get_supported_cpuid(self):
        return [KvmCpuidEntry2(function, 0, 0, *[0x01020304] * 4) for function in FUNCTIONS]

    def check_extension(self, capability):
        return capability in self.capabilities


def leaves(apic_id=5, capabilities=()):
    entries = cpuid.leaves(cast("kvm.Kvm", Host(capabilities)), apic_id=apic_id)
    return {leaf.function: (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) for leaf in entries}


@pytest.mark.parametrize("function", [0, 0x4000_0000])
def test_what_has_no_number_is_the_hosts(function):
    assert leaves()[function] == (0x01020304,) * 4


def test_leaf_1_has_the_number_of_the_cpu_and_says_that_it_is_a_guests():
    assert leaves(5)[1] == (0x01020304, 0x05010304, 0x81020304, 0x01020304)


def test_the_deadline_timer_is_there_where_kvm_has_it():
    assert leaves(5, [KVM_CAP_TSC_DEADLINE_TIMER])[1][2] == 0x81020304 | 1 << 24
    assert leaves(254)[1][1] == 0xFE010304


@pytest.mark.parametrize("function", [0xB, 0x1F])
def test_the_topology_has_it_in_edx(function):
    assert leaves(5)[function] == (0x01020304, 0x01020304, 0x01020304, 5)


def test_amds_topology_has_it_in_two():
    assert leaves(5)[0x8000_001E] == (5, 5, 0, 0x01020304)
