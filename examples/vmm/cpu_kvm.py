"""A CPU of the real kind: KVM, with the kernel's own 8259 pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from aioirqfd.kvm import Kvm
from aioirqfd.kvm.ioctls import (
    KVM_EXIT_FAIL_ENTRY,
    KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_INTR,
    KVM_EXIT_IO,
    KVM_EXIT_SHUTDOWN,
    KVM_IOEVENTFD_FLAG_DATAMATCH,
    KVM_IOEVENTFD_FLAG_PIO,
)
from aioirqfd.sinks import KvmSink
from examples.vmm.coalesced import CoalescedPio
from examples.vmm.cpu import CpuError
from examples.vmm.ports import CONSOLE_PORT, MEMORY_SIZE

if TYPE_CHECKING:
    from aioirqfd import EventFd
    from examples.vmm.portio import PortIo

_TSS: Final = 0xFFFB_D000
"""Three pages that Intel's older CPUs need to run real mode; anywhere below 4 GiB that the guest does not use."""
_EXITS: Final = {
    KVM_EXIT_FAIL_ENTRY: "the processor refused to enter the guest",
    KVM_EXIT_INTERNAL_ERROR: "KVM could not emulate an instruction",
    KVM_EXIT_SHUTDOWN: "triple fault",
}


@final
class KvmCpu:
    """A virtual machine with one vCPU, 64 KiB of RAM and the in-kernel irqchip.

    Args:
        io: Where ``in`` and ``out`` go; called on the thread that runs :meth:`run`.
        offload: Let the kernel bind the eventfds itself (KVM_IRQFD).
        fast: Let the top half inject by ioctl; else the work queue does.

    Raises:
        OSError: KVM refuses to make it; :func:`aioirqfd.kvm.usable` says more.
    """

    __slots__ = ("_io", "_memory", "_off", "_ring", "_vcpu", "_vm", "sink")

    name = "kvm"

    def __init__(self, io: PortIo, *, offload: bool, fast: bool) -> None:
        self._io = io
        self._off = False
        with Kvm() as kvm:
            self._vm = kvm.create_vm()
            mmap_size = kvm.vcpu_mmap_size()
        try:
            self._vm.set_tss_addr(_TSS)
            self._vm.create_irqchip()
            self._memory = self._vm.add_memory(0, 0, MEMORY_SIZE)
            self._vcpu = self._vm.create_vcpu()
            self._ring = CoalescedPio(self._vm, self._vcpu, mmap_size=mmap_size, io=io)
            self._ring.add(CONSOLE_PORT, 4)
        except BaseException:
            self._vm.close()
            raise
        self.sink = KvmSink(self._vm, offload=offload, fast=fast)

    def load(self, address: int, image: bytes) -> None:
        """Copy the program into RAM and begin there: a reset, but for the code segment, which starts at 0."""
        self._memory[address : address + len(image)] = image
        sregs = self._vcpu.get_sregs()
        sregs.cs.base = 0
        sregs.cs.selector = 0
        self._vcpu.set_sregs(sregs)
        regs = self._vcpu.get_regs()
        regs.rip = address
        regs.rflags = 0x2
        self._vcpu.set_regs(regs)

    def add_doorbell(self, eventfd: EventFd, *, port: int, value: int) -> None:
        """Let the kernel signal ``eventfd`` for the byte ``value`` at ``port``: the guest does not even leave (row O10)."""
        flags = KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DATAMATCH
        self._vm.ioeventfd(port, 1, eventfd, flags=flags, datamatch=value)

    def run(self) -> None:
        """Run until :meth:`stop`; ``hlt`` waits in the kernel.

        Raises:
            CpuError: The guest crashed.
        """
        while not self._off:
            reason = self._vcpu.run()
            self._ring.drain()
            if reason == KVM_EXIT_IO:
                self._port_access()
            elif reason != KVM_EXIT_INTR:
                at = self._vcpu.get_regs().rip
                raise CpuError(f"the guest crashed at {at:#x}: {_EXITS.get(reason, f'exit reason {reason}')}")

    def stop(self) -> None:
        """Make :meth:`run` return soon. Any thread."""
        self._off = True
        self._vcpu.kick()

    def close(self) -> None:
        """Close the vCPU and the VM; every irqfd and doorbell goes with them (row C05). Idempotent."""
        self.sink.close()
        self._ring.close()
        self._vcpu.close()
        self._vm.close()

    def _port_access(self) -> None:
        access = self._vcpu.io_exit()
        if access.is_write:
            self._io.write(access.port, bytes(access.data), access.size)
        else:
            access.data[:] = self._io.read(access.port, access.size, access.count)
        access.data.release()
