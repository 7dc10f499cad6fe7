"""The KVM ioctls and structures that the KVM sink, the tests and the example VMM need; x86-64, pure Python.

:class:`Kvm` makes a :class:`Vm`, a :class:`Vm` makes a :class:`Vcpu`. The numbers are in ``aioirqfd.kvm.ioctls``,
the structures in ``aioirqfd.kvm.structures``. :func:`usable` says why there is no KVM to be used.
"""

from __future__ import annotations

from aioirqfd.kvm import ioctls, structures
from aioirqfd.kvm.routing import RoutingEntry
from aioirqfd.kvm.system import KVM_DEVICE, Kvm, usable
from aioirqfd.kvm.vcpu import KICK_SIGNAL, IoExit, MmioExit, Vcpu
from aioirqfd.kvm.vm import Vm

__all__ = [
    "KICK_SIGNAL",
    "KVM_DEVICE",
    "IoExit",
    "Kvm",
    "MmioExit",
    "RoutingEntry",
    "Vcpu",
    "Vm",
    "ioctls",
    "structures",
    "usable",
]
