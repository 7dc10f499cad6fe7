"""How a vCPU's state is taken out of the kernel and put back, in the one order that loses nothing.

Three of the kernel's ways decide about the order:

- KVM_GET_MP_STATE carries out an INIT or SIPI that waits, and so changes the rest: it is read first.
- The local APIC's timer is armed when its registers are set, and the TSC deadline only counts in the mode that they say: APIC,
  then the MSRs, of these the TSC first and the deadline last.
- KVM_SET_REGS forgets an exception that is pending: the events are set after it.

A TSC deadline that has expired while the vCPU was out of the guest is nowhere to be read: the MSR is 0 by then, the interrupt not in the
IRR yet. So a deadline of 0 is saved as one that has just passed. The guest may see one timer interrupt too many, never one too few.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Final

from aioirqfd.kvm import cpuid, msrs
from aioirqfd.kvm.descriptor import if_there
from aioirqfd.kvm.ioctls import KVM_KVMCLOCK_CTRL
from aioirqfd.kvm.state import VcpuState
from aioirqfd.kvm.states import KvmDebugregs, KvmVcpuEvents, KvmXcrs
from aioirqfd.kvm.structures import KvmLapicState, KvmRegs, KvmSregs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aioirqfd.kvm.vcpu import Vcpu

_LVT_TIMER: Final = 0x320
_MASKED: Final = 1 << 16
_MODE: Final = 3 << 17
_TSC_DEADLINE: Final = 2 << 17


def take(vcpu: Vcpu, indices: Iterable[int]) -> VcpuState:
    """The state of a vCPU that has completed its accesses."""
    mp_state = vcpu.get_mp_state()
    values = vcpu.get_msrs(indices)
    lapic = if_there(vcpu.get_lapic, errno.EINVAL)
    if lapic is not None:
        _rearm(values, lapic)
    xcrs = if_there(vcpu.get_xcrs, errno.EINVAL)  # a CPU without XSAVE has none, and takes none
    return VcpuState(
        cpuid=bytes(cpuid.pack(vcpu.get_cpuid2())),
        tsc_khz=_tsc_khz(vcpu) or 0,
        regs=bytes(vcpu.get_regs()),
        sregs=bytes(vcpu.get_sregs()),
        xsave=vcpu.get_xsave(),
        xcrs=bytes(xcrs) if xcrs is not None and xcrs.nr_xcrs else b"",
        debugregs=bytes(vcpu.get_debugregs()),
        lapic=bytes(lapic or b""),
        msrs=msrs.pack(_ordered(values)),
        mp_state=mp_state,
        events=bytes(vcpu.get_vcpu_events()),
    )


def put(vcpu: Vcpu, state: VcpuState) -> None:
    """Give a vCPU that has not run yet a state."""
    leaves = cpuid.unpack(state.cpuid)
    if leaves:
        vcpu.set_cpuid2(leaves)
    if state.tsc_khz and state.tsc_khz != _tsc_khz(vcpu):
        vcpu.set_tsc_khz(state.tsc_khz)
    vcpu.set_sregs(KvmSregs.from_buffer_copy(state.sregs))
    vcpu.set_xsave(state.xsave)
    if state.xcrs:
        vcpu.set_xcrs(KvmXcrs.from_buffer_copy(state.xcrs))
    vcpu.set_debugregs(KvmDebugregs.from_buffer_copy(state.debugregs))
    if state.lapic:
        vcpu.set_lapic(KvmLapicState.from_buffer_copy(state.lapic))
    vcpu.set_msrs(msrs.unpack(state.msrs))
    vcpu.set_mp_state(state.mp_state)
    vcpu.set_regs(KvmRegs.from_buffer_copy(state.regs))
    vcpu.set_vcpu_events(KvmVcpuEvents.from_buffer_copy(state.events))
    # So that its watchdog does not take the pause for a lock-up. EINVAL: it uses no kvm-clock.
    if_there(partial(vcpu.ioctl, KVM_KVMCLOCK_CTRL), errno.EINVAL)


def _rearm(values: dict[int, int], lapic: KvmLapicState) -> None:
    timer = lapic.register(_LVT_TIMER)
    if timer & _MODE == _TSC_DEADLINE and not timer & _MASKED and not values.get(msrs.MSR_IA32_TSC_DEADLINE, 1):
        values[msrs.MSR_IA32_TSC_DEADLINE] = max(1, values.get(msrs.MSR_IA32_TSC, 0))


def _ordered(values: dict[int, int]) -> dict[int, int]:
    def place(index: int) -> int:
        return 0 if index == msrs.MSR_IA32_TSC else 2 if index == msrs.MSR_IA32_TSC_DEADLINE else 1

    return {index: values[index] for index in sorted(values, key=place)}


def _tsc_khz(vcpu: Vcpu) -> int | None:
    return if_there(vcpu.get_tsc_khz, errno.EIO)  # the host's is not stable
