"""The KVM ioctls and structures that the KVM sink and a VMM on the loop need; x86-64, pure Python.

:class:`Kvm` makes a :class:`Vm`, a :class:`Vm` makes a :class:`Vcpu`. A VMM's memory is a :class:`GuestRam`; its vCPUs run in a
:class:`VcpuThread` each, which asks what belongs to the loop by :class:`LoopCalls`. The numbers are in ``aioirqfd.kvm.ioctls``,
the structures in ``aioirqfd.kvm.structures`` and ``aioirqfd.kvm.states``. :func:`usable` says why there is no KVM to be used.
"""

from __future__ import annotations

from aioirqfd.kvm import ioctls, states, structures
from aioirqfd.kvm.exits import ExitHandler, IoExit, MmioExit
from aioirqfd.kvm.loop_calls import LoopCalls
from aioirqfd.kvm.ram import GuestRam, RamRegion
from aioirqfd.kvm.routing import RoutingEntry
from aioirqfd.kvm.state import VcpuState, VmState
from aioirqfd.kvm.system import KVM_DEVICE, Kvm, usable
from aioirqfd.kvm.vcpu import KICK_SIGNAL, Vcpu
from aioirqfd.kvm.vcpu_thread import VcpuThread
from aioirqfd.kvm.vm import Vm

__all__ = [
    "KICK_SIGNAL",
    "KVM_DEVICE",
    "ExitHandler",
    "GuestRam",
    "IoExit",
    "Kvm",
    "LoopCalls",
    "MmioExit",
    "RamRegion",
    "RoutingEntry",
    "Vcpu",
    "VcpuState",
    "VcpuThread",
    "Vm",
    "VmState",
    "ioctls",
    "states",
    "structures",
    "usable",
]
