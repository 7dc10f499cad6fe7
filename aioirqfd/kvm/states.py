"""The structures in which KVM gives, and takes back, the rest of a vCPU's and a VM's state: what a snapshot needs.

As :mod:`aioirqfd.kvm.structures`, with the kernel's own names for the fields.
"""

from __future__ import annotations

from ctypes import Structure, c_int64, c_uint8, c_uint16, c_uint32, c_uint64
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from ctypes import Array

KVM_MAX_XCRS: Final = 16


@final
class KvmMsrEntry(Structure):
    """A model-specific register and what is in it."""

    _fields_ = (("index", c_uint32), ("reserved", c_uint32), ("data", c_uint64))
    index: int
    reserved: int
    data: int


@final
class KvmMsrs(Structure):
    """The head of ``KVM_GET_MSRS`` and ``KVM_SET_MSRS``; ``nmsrs`` entries follow it."""

    _fields_ = (("nmsrs", c_uint32), ("pad", c_uint32))
    nmsrs: int
    pad: int


@final
class KvmMsrList(Structure):
    """The head of ``KVM_GET_MSR_INDEX_LIST``; ``nmsrs`` words follow it."""

    _fields_ = (("nmsrs", c_uint32),)
    nmsrs: int


@final
class KvmFpu(Structure):
    """``KVM_GET_FPU`` and ``KVM_SET_FPU``: what every x86-64 CPU has; see :class:`KvmXsave` for the rest."""

    _fields_ = (
        ("fpr", c_uint8 * 16 * 8),
        ("fcw", c_uint16),
        ("fsw", c_uint16),
        ("ftwx", c_uint8),
        ("pad1", c_uint8),
        ("last_opcode", c_uint16),
        ("last_ip", c_uint64),
        ("last_dp", c_uint64),
        ("xmm", c_uint8 * 16 * 16),
        ("mxcsr", c_uint32),
        ("pad2", c_uint32),
    )
    fcw: int
    fsw: int
    ftwx: int
    pad1: int
    last_opcode: int
    last_ip: int
    last_dp: int
    mxcsr: int
    pad2: int


@final
class KvmXsave(Structure):
    """``KVM_GET_XSAVE``, ``KVM_GET_XSAVE2``, ``KVM_SET_XSAVE``: the XSAVE area; with XSAVE2 more may follow it."""

    _fields_ = (("region", c_uint32 * 1024),)
    region: Array[c_uint32]


@final
class KvmXcr(Structure):
    """An extended control register."""

    _fields_ = (("xcr", c_uint32), ("reserved", c_uint32), ("value", c_uint64))
    xcr: int
    reserved: int
    value: int


@final
class KvmXcrs(Structure):
    """``KVM_GET_XCRS`` and ``KVM_SET_XCRS``."""

    _fields_ = (
        ("nr_xcrs", c_uint32),
        ("flags", c_uint32),
        ("xcrs", KvmXcr * KVM_MAX_XCRS),
        ("padding", c_uint64 * 16),
    )
    nr_xcrs: int
    flags: int
    xcrs: Array[KvmXcr]
    padding: Array[c_uint64]


class _Exception(Structure):
    _fields_ = (
        ("injected", c_uint8),
        ("nr", c_uint8),
        ("has_error_code", c_uint8),
        ("pending", c_uint8),
        ("error_code", c_uint32),
    )
    injected: int
    nr: int
    has_error_code: int
    pending: int
    error_code: int


class _Interrupt(Structure):
    _fields_ = (("injected", c_uint8), ("nr", c_uint8), ("soft", c_uint8), ("shadow", c_uint8))
    injected: int
    nr: int
    soft: int
    shadow: int


class _Nmi(Structure):
    _fields_ = (("injected", c_uint8), ("pending", c_uint8), ("masked", c_uint8), ("pad", c_uint8))
    injected: int
    pending: int
    masked: int
    pad: int


class _Smi(Structure):
    _fields_ = (("smm", c_uint8), ("pending", c_uint8), ("smm_inside_nmi", c_uint8), ("latched_init", c_uint8))
    smm: int
    pending: int
    smm_inside_nmi: int
    latched_init: int


class _TripleFault(Structure):
    _fields_ = (("pending", c_uint8),)
    pending: int


@final
class KvmVcpuEvents(Structure):
    """``KVM_GET_VCPU_EVENTS`` and ``KVM_SET_VCPU_EVENTS``: exceptions, interrupts and NMIs on their way into the guest."""

    _fields_ = (
        ("exception", _Exception),
        ("interrupt", _Interrupt),
        ("nmi", _Nmi),
        ("sipi_vector", c_uint32),
        ("flags", c_uint32),
        ("smi", _Smi),
        ("triple_fault", _TripleFault),
        ("reserved", c_uint8 * 26),
        ("exception_has_payload", c_uint8),
        ("exception_payload", c_uint64),
    )
    exception: _Exception
    interrupt: _Interrupt
    nmi: _Nmi
    sipi_vector: int
    flags: int
    smi: _Smi
    triple_fault: _TripleFault
    reserved: Array[c_uint8]
    exception_has_payload: int
    exception_payload: int


@final
class KvmDebugregs(Structure):
    """``KVM_GET_DEBUGREGS`` and ``KVM_SET_DEBUGREGS``."""

    _fields_ = (
        ("db", c_uint64 * 4),
        ("dr6", c_uint64),
        ("dr7", c_uint64),
        ("flags", c_uint64),
        ("reserved", c_uint64 * 9),
    )
    db: Array[c_uint64]
    dr6: int
    dr7: int
    flags: int
    reserved: Array[c_uint64]


@final
class KvmClockData(Structure):
    """``KVM_GET_CLOCK`` and ``KVM_SET_CLOCK``: the guest's kvm-clock, in nanoseconds."""

    _fields_ = (
        ("clock", c_uint64),
        ("flags", c_uint32),
        ("pad0", c_uint32),
        ("realtime", c_uint64),
        ("host_tsc", c_uint64),
        ("pad", c_uint32 * 4),
    )
    clock: int
    flags: int
    pad0: int
    realtime: int
    host_tsc: int
    pad: Array[c_uint32]


@final
class KvmPitChannelState(Structure):
    """One of the three counters of the PIT."""

    _fields_ = (
        ("count", c_uint32),
        ("latched_count", c_uint16),
        ("count_latched", c_uint8),
        ("status_latched", c_uint8),
        ("status", c_uint8),
        ("read_state", c_uint8),
        ("write_state", c_uint8),
        ("write_latch", c_uint8),
        ("rw_mode", c_uint8),
        ("mode", c_uint8),
        ("bcd", c_uint8),
        ("gate", c_uint8),
        ("count_load_time", c_int64),
    )
    count: int
    latched_count: int
    count_latched: int
    status_latched: int
    status: int
    read_state: int
    write_state: int
    write_latch: int
    rw_mode: int
    mode: int
    bcd: int
    gate: int
    count_load_time: int


@final
class KvmPitState2(Structure):
    """``KVM_GET_PIT2`` and ``KVM_SET_PIT2``."""

    _fields_ = (("channels", KvmPitChannelState * 3), ("flags", c_uint32), ("reserved", c_uint32 * 9))
    channels: Array[KvmPitChannelState]
    flags: int
    reserved: Array[c_uint32]
