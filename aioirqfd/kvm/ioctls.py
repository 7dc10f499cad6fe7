"""The numbers of the KVM interface on x86-64: ioctls, flags, capabilities, exit reasons.

An ioctl number says which way the argument goes, how large it is, and which command it is; the helpers put it together
from the structures, so a structure of the wrong size shows as ENOTTY at the first call. All names are the kernel's own.
"""

from __future__ import annotations

from ctypes import Structure, sizeof
from typing import Final

from aioirqfd.kvm.states import (
    KvmClockData,
    KvmDebugregs,
    KvmFpu,
    KvmMsrList,
    KvmMsrs,
    KvmPitState2,
    KvmVcpuEvents,
    KvmXcrs,
    KvmXsave,
)
from aioirqfd.kvm.structures import (
    KvmCpuid2,
    KvmEnableCap,
    KvmInterrupt,
    KvmIoeventfd,
    KvmIrqchip,
    KvmIrqfd,
    KvmIrqLevel,
    KvmIrqRouting,
    KvmLapicState,
    KvmMpState,
    KvmMsi,
    KvmPitConfig,
    KvmRegs,
    KvmSregs,
    KvmUserspaceMemoryRegion,
)

_KVMIO: Final = 0xAE
_WRITE: Final = 1 << 30
_READ: Final = 2 << 30


def _io(number: int) -> int:
    return _KVMIO << 8 | number


def _iow(number: int, structure: type[Structure]) -> int:
    return _WRITE | sizeof(structure) << 16 | _io(number)


def _ior(number: int, structure: type[Structure]) -> int:
    return _READ | sizeof(structure) << 16 | _io(number)


def _iowr(number: int, structure: type[Structure]) -> int:
    return _READ | _WRITE | sizeof(structure) << 16 | _io(number)


KVM_API_VERSION: Final = 12
"""The only version there has been since 2007."""

# /dev/kvm
KVM_GET_API_VERSION: Final = _io(0x00)
KVM_CREATE_VM: Final = _io(0x01)
KVM_GET_MSR_INDEX_LIST: Final = _iowr(0x02, KvmMsrList)
KVM_CHECK_EXTENSION: Final = _io(0x03)
KVM_GET_VCPU_MMAP_SIZE: Final = _io(0x04)
KVM_GET_SUPPORTED_CPUID: Final = _iowr(0x05, KvmCpuid2)

# VM
KVM_CREATE_VCPU: Final = _io(0x41)
KVM_SET_USER_MEMORY_REGION: Final = _iow(0x46, KvmUserspaceMemoryRegion)
KVM_SET_TSS_ADDR: Final = _io(0x47)
KVM_CREATE_IRQCHIP: Final = _io(0x60)
KVM_IRQ_LINE: Final = _iow(0x61, KvmIrqLevel)
KVM_GET_IRQCHIP: Final = _iowr(0x62, KvmIrqchip)
KVM_SET_IRQCHIP: Final = _ior(0x63, KvmIrqchip)
"""Named for reading though it writes: the kernel's own slip, part of the ABI."""
KVM_IRQ_LINE_STATUS: Final = _iowr(0x67, KvmIrqLevel)
KVM_SET_GSI_ROUTING: Final = _iow(0x6A, KvmIrqRouting)
KVM_IRQFD: Final = _iow(0x76, KvmIrqfd)
KVM_CREATE_PIT2: Final = _iow(0x77, KvmPitConfig)
KVM_IOEVENTFD: Final = _iow(0x79, KvmIoeventfd)
KVM_SET_CLOCK: Final = _iow(0x7B, KvmClockData)
KVM_GET_CLOCK: Final = _ior(0x7C, KvmClockData)
KVM_GET_PIT2: Final = _ior(0x9F, KvmPitState2)
KVM_SET_PIT2: Final = _iow(0xA0, KvmPitState2)
KVM_ENABLE_CAP: Final = _iow(0xA3, KvmEnableCap)
KVM_SIGNAL_MSI: Final = _iow(0xA5, KvmMsi)

# vCPU
KVM_RUN: Final = _io(0x80)
KVM_GET_REGS: Final = _ior(0x81, KvmRegs)
KVM_SET_REGS: Final = _iow(0x82, KvmRegs)
KVM_GET_SREGS: Final = _ior(0x83, KvmSregs)
KVM_SET_SREGS: Final = _iow(0x84, KvmSregs)
KVM_INTERRUPT: Final = _iow(0x86, KvmInterrupt)
KVM_GET_MSRS: Final = _iowr(0x88, KvmMsrs)
KVM_SET_MSRS: Final = _iow(0x89, KvmMsrs)
KVM_GET_FPU: Final = _ior(0x8C, KvmFpu)
KVM_SET_FPU: Final = _iow(0x8D, KvmFpu)
KVM_GET_LAPIC: Final = _ior(0x8E, KvmLapicState)
KVM_SET_LAPIC: Final = _iow(0x8F, KvmLapicState)
KVM_SET_CPUID2: Final = _iow(0x90, KvmCpuid2)
KVM_GET_CPUID2: Final = _iowr(0x91, KvmCpuid2)
KVM_GET_MP_STATE: Final = _ior(0x98, KvmMpState)
KVM_SET_MP_STATE: Final = _iow(0x99, KvmMpState)
KVM_GET_VCPU_EVENTS: Final = _ior(0x9F, KvmVcpuEvents)
KVM_SET_VCPU_EVENTS: Final = _iow(0xA0, KvmVcpuEvents)
KVM_GET_DEBUGREGS: Final = _ior(0xA1, KvmDebugregs)
KVM_SET_DEBUGREGS: Final = _iow(0xA2, KvmDebugregs)
KVM_SET_TSC_KHZ: Final = _io(0xA2)
KVM_GET_TSC_KHZ: Final = _io(0xA3)
KVM_GET_XSAVE: Final = _ior(0xA4, KvmXsave)
KVM_SET_XSAVE: Final = _iow(0xA5, KvmXsave)
KVM_GET_XCRS: Final = _ior(0xA6, KvmXcrs)
KVM_SET_XCRS: Final = _iow(0xA7, KvmXcrs)
KVM_KVMCLOCK_CTRL: Final = _io(0xAD)
KVM_GET_XSAVE2: Final = _ior(0xCF, KvmXsave)

KVM_CAP_IRQCHIP: Final = 0
KVM_CAP_USER_MEMORY: Final = 3
KVM_CAP_NR_VCPUS: Final = 9
KVM_CAP_NR_MEMSLOTS: Final = 10
KVM_CAP_IRQ_ROUTING: Final = 25
"""Its value is the number of routes a table may have (row G02)."""
KVM_CAP_IRQ_INJECT_STATUS: Final = 26
KVM_CAP_IRQFD: Final = 32
KVM_CAP_PIT2: Final = 33
KVM_CAP_IOEVENTFD: Final = 36
KVM_CAP_ENABLE_CAP: Final = 54
KVM_CAP_MAX_VCPUS: Final = 66
KVM_CAP_TSC_DEADLINE_TIMER: Final = 72
"""1: the local APICs have the timer that CPUID leaf 1 announces in ECX bit 24; the supported leaves do not say so by themselves."""
KVM_CAP_SIGNAL_MSI: Final = 77
KVM_CAP_IRQFD_RESAMPLE: Final = 82
KVM_CAP_ENABLE_CAP_VM: Final = 98
KVM_CAP_IOEVENTFD_NO_LENGTH: Final = 100
KVM_CAP_SPLIT_IRQCHIP: Final = 121
KVM_CAP_IOEVENTFD_ANY_LENGTH: Final = 122
KVM_CAP_IMMEDIATE_EXIT: Final = 136
KVM_CAP_XSAVE2: Final = 208
"""Asked of a VM, its value is the size of the XSAVE area in bytes; 0 where ``KVM_GET_XSAVE2`` is not known."""

KVM_IRQFD_FLAG_DEASSIGN: Final = 1 << 0
KVM_IRQFD_FLAG_RESAMPLE: Final = 1 << 1

KVM_IOEVENTFD_FLAG_DATAMATCH: Final = 1 << 0
KVM_IOEVENTFD_FLAG_PIO: Final = 1 << 1
KVM_IOEVENTFD_FLAG_DEASSIGN: Final = 1 << 2

KVM_IRQ_ROUTING_IRQCHIP: Final = 1
KVM_IRQ_ROUTING_MSI: Final = 2

KVM_IRQCHIP_PIC_MASTER: Final = 0
KVM_IRQCHIP_PIC_SLAVE: Final = 1
KVM_IRQCHIP_IOAPIC: Final = 2

KVM_MSI_VALID_DEVID: Final = 1 << 0

KVM_PIT_SPEAKER_DUMMY: Final = 1
"""For :meth:`aioirqfd.kvm.Vm.create_pit`: the PIT answers at port 0x61 too."""

KVM_CPUID_FLAG_SIGNIFCANT_INDEX: Final = 1 << 0
"""Of a :class:`~aioirqfd.kvm.structures.KvmCpuidEntry2`: its ``index`` counts. The spelling is the kernel's."""

KVM_MEM_LOG_DIRTY_PAGES: Final = 1 << 0
KVM_MEM_READONLY: Final = 1 << 1

KVM_MP_STATE_RUNNABLE: Final = 0
KVM_MP_STATE_UNINITIALIZED: Final = 1
KVM_MP_STATE_INIT_RECEIVED: Final = 2
KVM_MP_STATE_HALTED: Final = 3
KVM_MP_STATE_SIPI_RECEIVED: Final = 4

KVM_EXIT_UNKNOWN: Final = 0
KVM_EXIT_EXCEPTION: Final = 1
KVM_EXIT_IO: Final = 2
KVM_EXIT_HYPERCALL: Final = 3
KVM_EXIT_DEBUG: Final = 4
KVM_EXIT_HLT: Final = 5
KVM_EXIT_MMIO: Final = 6
KVM_EXIT_IRQ_WINDOW_OPEN: Final = 7
KVM_EXIT_SHUTDOWN: Final = 8
KVM_EXIT_FAIL_ENTRY: Final = 9
KVM_EXIT_INTR: Final = 10
"""A signal or a kick; :meth:`aioirqfd.kvm.Vcpu.run` returns it where the ioctl says EINTR."""
KVM_EXIT_SET_TPR: Final = 11
KVM_EXIT_TPR_ACCESS: Final = 12
KVM_EXIT_NMI: Final = 16
KVM_EXIT_INTERNAL_ERROR: Final = 17
KVM_EXIT_SYSTEM_EVENT: Final = 24
KVM_EXIT_IOAPIC_EOI: Final = 26

KVM_SYSTEM_EVENT_SHUTDOWN: Final = 1
"""What ``kvm_run.system_event.type`` says after a ``KVM_EXIT_SYSTEM_EVENT``."""
KVM_SYSTEM_EVENT_RESET: Final = 2
KVM_SYSTEM_EVENT_CRASH: Final = 3

KVM_EXIT_IO_IN: Final = 0
KVM_EXIT_IO_OUT: Final = 1
