"""The state of a vCPU and of a VM in the kernel, as bytes that can be written to a file.

As a dict for ``json`` each is::

    {"version": 1, "kind": "vcpu" or "vm", FIELD: number or base64 text, ...}

with the fields of :class:`VcpuState` or :class:`VmState`. The bytes are the kernel's structures, x86-64 and little-endian; a field is
empty where the machine has no such part.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from ctypes import sizeof
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final, TypeVar, cast, final

from aioirqfd.errors import SnapshotError
from aioirqfd.integers import plain
from aioirqfd.kvm import states, structures

if TYPE_CHECKING:
    from typing import Self

VERSION: Final = 1
_NUMBER: Final = 2**64
_IRQCHIP: Final = sizeof(structures.KvmIrqchip)
# What a field may be long; for those that vary, their head and one of what follows it.
_SIZES: Final = {
    "regs": {sizeof(structures.KvmRegs)},
    "sregs": {sizeof(structures.KvmSregs)},
    "xcrs": {0, sizeof(states.KvmXcrs)},
    "debugregs": {sizeof(states.KvmDebugregs)},
    "lapic": {0, sizeof(structures.KvmLapicState)},
    "events": {sizeof(states.KvmVcpuEvents)},
    "pic_master": {0, _IRQCHIP},
    "pic_slave": {0, _IRQCHIP},
    "ioapic": {0, _IRQCHIP},
    "pit": {0, sizeof(states.KvmPitState2)},
}
_TABLES: Final = {
    "cpuid": (sizeof(structures.KvmCpuid2), sizeof(structures.KvmCpuidEntry2)),
    "msrs": (sizeof(states.KvmMsrs), sizeof(states.KvmMsrEntry)),
}
_XSAVE: Final = sizeof(states.KvmXsave)


@final
@dataclass(frozen=True, slots=True)
class VcpuState:
    """Everything that KVM keeps of a vCPU. See :meth:`aioirqfd.kvm.Vcpu.save`.

    Attributes:
        cpuid: ``struct kvm_cpuid2`` and its entries.
        tsc_khz: The frequency of its time stamp counter; 0 where the host does not know it.
        regs: ``struct kvm_regs``.
        sregs: ``struct kvm_sregs``.
        xsave: ``struct kvm_xsave``, 4096 bytes or more.
        xcrs: ``struct kvm_xcrs``; empty where the CPU has no XSAVE.
        debugregs: ``struct kvm_debugregs``.
        lapic: ``struct kvm_lapic_state``; empty where the local APIC is not in the kernel.
        msrs: ``struct kvm_msrs`` and its entries, in the order in which they are set.
        mp_state: ``KVM_MP_STATE_*``.
        events: ``struct kvm_vcpu_events``.
    """

    cpuid: bytes
    tsc_khz: int
    regs: bytes
    sregs: bytes
    xsave: bytes
    xcrs: bytes
    debugregs: bytes
    lapic: bytes
    msrs: bytes
    mp_state: int
    events: bytes

    def to_dict(self) -> dict[str, object]:
        """Return it as a plain dict that ``json`` takes."""
        return _to_dict(self, "vcpu")

    @classmethod
    def from_dict(cls, state: object) -> Self:
        """Make it of what :meth:`to_dict` returned.

        Raises:
            SnapshotError: It is malformed, or of another version or kind.
        """
        return _from_dict(cls, state, "vcpu")


@final
@dataclass(frozen=True, slots=True)
class VmState:
    """What KVM keeps of a VM beside its vCPUs, memory and routing. See :meth:`aioirqfd.kvm.Vm.save`.

    Attributes:
        pic_master: ``struct kvm_irqchip``; empty where the irqchip is not in the kernel.
        pic_slave: As ``pic_master``.
        ioapic: As ``pic_master``.
        pit: ``struct kvm_pit_state2``; empty where the PIT is not in the kernel.
        clock: The guest's kvm-clock, nanoseconds.
    """

    pic_master: bytes
    pic_slave: bytes
    ioapic: bytes
    pit: bytes
    clock: int

    def to_dict(self) -> dict[str, object]:
        """Return it as a plain dict that ``json`` takes."""
        return _to_dict(self, "vm")

    @classmethod
    def from_dict(cls, state: object) -> Self:
        """Make it of what :meth:`to_dict` returned.

        Raises:
            SnapshotError: It is malformed, or of another version or kind.
        """
        return _from_dict(cls, state, "vm")


_State = TypeVar("_State", VcpuState, VmState)


def _to_dict(state: VcpuState | VmState, kind: str) -> dict[str, object]:
    described: dict[str, object] = {"version": VERSION, "kind": kind}
    for field in fields(state):
        value = getattr(state, field.name)
        described[field.name] = base64.b64encode(value).decode() if isinstance(value, bytes) else value
    return described


def _from_dict(cls: type[_State], state: object, kind: str) -> _State:
    what = f"the state of a {kind}"
    if not isinstance(state, Mapping):
        raise SnapshotError(f"{what} is a dict, not {type(state).__name__}")
    entries = cast("Mapping[str, object]", state)
    version = entries.get("version")
    if version != VERSION or isinstance(version, bool):
        raise SnapshotError(f"{what} is of version {version!r}; this package reads {VERSION}")
    if entries.get("kind") != kind:
        raise SnapshotError(f"{what} says that it is of a {entries.get('kind')!r}")
    names = {field.name for field in fields(cls)}
    if set(entries) != names | {"version", "kind"}:
        raise SnapshotError(f"{what} has the fields {sorted(entries)}, not {sorted(names | {'version', 'kind'})}")
    values = {
        field.name: _number(entries[field.name], f"{what}: {field.name}")
        if field.type == "int"
        else _bytes(field.name, entries[field.name], f"{what}: {field.name}")
        for field in fields(cls)
    }
    return cls(**values)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  each as its field wants it


def _number(value: object, what: str) -> int:
    number = plain(value, _NUMBER)
    if number is None:
        raise SnapshotError(f"{what} is a number, 0..2**64-1, not {value!r}")
    return number


def _bytes(name: str, value: object, what: str) -> bytes:
    if not isinstance(value, str):
        raise SnapshotError(f"{what} is base64 text, not {type(value).__name__}")
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SnapshotError(f"{what} is no base64: {error}") from None
    if not _fits(name, data):
        raise SnapshotError(f"{what} has {len(data)} bytes, which no such structure has")
    return data


def _fits(name: str, data: bytes) -> bool:
    if name in _SIZES:
        return len(data) in _SIZES[name]
    if name in _TABLES:
        head, entry = _TABLES[name]
        return len(data) >= head and len(data) == head + int.from_bytes(data[:4], "little") * entry
    return len(data) >= _XSAVE
