"""Whether KVM is fast enough here to boot Linux.

There is a KVM without VMX and SVM, in clouds whose own machines are virtual ones. It runs user programs as they are, and interprets
the rest an instruction at a time: it makes virtual machines, runs a 16-bit guest well, and would need an hour for Linux. The CPU's
flags would not tell it from what works nested, so a loop in 64-bit mode is timed: in CPU time, which other processes do not lengthen.
"""

from __future__ import annotations

import struct
import time
from typing import Final

from aioirqfd.kvm import GuestRam, Kvm
from aioirqfd.kvm.ioctls import KVM_EXIT_IO
from examples.vmm.linux import address_map as at
from examples.vmm.linux import long_mode

_TURNS: Final = 100_000
_LOOP: Final = b"\xb9" + struct.pack("<I", _TURNS) + b"\xff\xc9\x75\xfc" + b"\xe6\x80"
"""mov ecx, turns; again: dec ecx; jnz again; out 0x80, al"""
_ENOUGH: Final = 10e6
"""Instructions a second: a CPU with KVM has a hundred times as many, emulated SVM ten times, a KVM that interprets a tenth."""


def instructions_per_second() -> float:
    """Time a guest in 64-bit mode; the better of two runs, for the first one has to get its memory.

    Raises:
        OSError: There is no KVM.
    """
    with Kvm() as kvm, kvm.create_vm() as vm, GuestRam(at.HIGH + (1 << 20)) as ram:
        vm.set_tss_addr(at.TSS)
        vm.create_irqchip()
        ram.attach(vm)
        ram.write(at.HIGH, _LOOP)
        with vm.create_vcpu() as vcpu:
            best = 0.0
            for _ in range(2):
                long_mode.enter(vcpu, ram, at.HIGH)
                start = time.thread_time()
                while vcpu.run() != KVM_EXIT_IO:  # a signal
                    pass
                best = max(best, 2 * _TURNS / (time.thread_time() - start))
            return best


def why_too_slow() -> str | None:
    """In a sentence for people; None if it is fast enough.

    Raises:
        OSError: There is no KVM.
    """
    speed = instructions_per_second()
    if speed >= _ENOUGH:
        return None
    return (
        f"KVM interprets here, {speed / 1e6:.1f} million instructions a second, for it has neither VMX nor SVM:"
        " Linux would take an hour to boot"
    )
