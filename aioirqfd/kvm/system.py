"""The KVM device: what it can do, and why it cannot be used."""

from __future__ import annotations

import errno
import os
import platform
from typing import TYPE_CHECKING, Final, final

from aioirqfd.kvm.cpuid import get_cpuid
from aioirqfd.kvm.descriptor import Descriptor
from aioirqfd.kvm.ioctls import (
    KVM_API_VERSION,
    KVM_CAP_IMMEDIATE_EXIT,
    KVM_CAP_IOEVENTFD,
    KVM_CAP_IRQ_ROUTING,
    KVM_CAP_IRQCHIP,
    KVM_CAP_IRQFD,
    KVM_CAP_IRQFD_RESAMPLE,
    KVM_CAP_SIGNAL_MSI,
    KVM_CAP_USER_MEMORY,
    KVM_CHECK_EXTENSION,
    KVM_CREATE_VM,
    KVM_GET_API_VERSION,
    KVM_GET_SUPPORTED_CPUID,
    KVM_GET_VCPU_MMAP_SIZE,
)
from aioirqfd.kvm.msrs import index_list
from aioirqfd.kvm.vm import Vm

if TYPE_CHECKING:
    from aioirqfd.kvm.structures import KvmCpuidEntry2

KVM_DEVICE: Final = "/dev/kvm"
"""Where the kernel offers KVM."""
_NEEDED: Final = {
    "KVM_CAP_USER_MEMORY": KVM_CAP_USER_MEMORY,
    "KVM_CAP_IRQCHIP": KVM_CAP_IRQCHIP,
    "KVM_CAP_IRQ_ROUTING": KVM_CAP_IRQ_ROUTING,
    "KVM_CAP_IRQFD": KVM_CAP_IRQFD,
    "KVM_CAP_IRQFD_RESAMPLE": KVM_CAP_IRQFD_RESAMPLE,
    "KVM_CAP_IOEVENTFD": KVM_CAP_IOEVENTFD,
    "KVM_CAP_SIGNAL_MSI": KVM_CAP_SIGNAL_MSI,
    "KVM_CAP_IMMEDIATE_EXIT": KVM_CAP_IMMEDIATE_EXIT,
}


@final
class Kvm(Descriptor):
    """``/dev/kvm``, opened.

    Args:
        path: The device.

    Raises:
        OSError: It cannot be opened; :func:`usable` says more.
    """

    __slots__ = ()

    def __init__(self, path: str = KVM_DEVICE) -> None:
        super().__init__(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    def api_version(self) -> int:
        """The API's version: 12."""
        return self.ioctl(KVM_GET_API_VERSION)

    def check_extension(self, capability: int) -> int:
        """What the kernel says about a ``KVM_CAP_*``: 0 for no, else 1 or the capability's number."""
        return self.ioctl(KVM_CHECK_EXTENSION, capability)

    def vcpu_mmap_size(self) -> int:
        """Bytes a vCPU shares with the kernel."""
        return self.ioctl(KVM_GET_VCPU_MMAP_SIZE)

    def get_supported_cpuid(self) -> list[KvmCpuidEntry2]:
        """``KVM_GET_SUPPORTED_CPUID``: what this CPU and KVM can give a guest, for :meth:`aioirqfd.kvm.Vcpu.set_cpuid2`.

        The APIC id in leaves 1, 0xb and 0x1f is the caller's to fill in for each vCPU.
        """
        return get_cpuid(self, KVM_GET_SUPPORTED_CPUID)

    def get_msr_index_list(self) -> list[int]:
        """``KVM_GET_MSR_INDEX_LIST``: the model-specific registers that belong to a vCPU's state."""
        return index_list(self)

    def create_vm(self, machine_type: int = 0) -> Vm:
        """An empty virtual machine, which the caller closes. It does not need this object any more.

        Args:
            machine_type: ``KVM_VM_TYPE``; 0 on x86.
        """
        size, msrs = self.vcpu_mmap_size(), self.get_msr_index_list()
        while True:
            try:
                return Vm(self.ioctl(KVM_CREATE_VM, machine_type), vcpu_mmap_size=size, msrs=msrs)
            except InterruptedError:  # by a signal while it waits for other CPUs; nothing was made
                continue


def usable(path: str = KVM_DEVICE) -> str | None:
    """Why KVM cannot be used here, in a sentence for people; None if it can.

    Looks at the architecture, the device, its version, the capabilities this package needs, and makes a VM with an
    irqchip.
    """
    machine = platform.machine()
    if machine != "x86_64":
        return f"aioirqfd.kvm knows the KVM of x86-64 only, not of {machine}"
    try:
        kvm = Kvm(path)
    except OSError as error:
        return _why_not_opened(path, error)
    with kvm:
        try:
            version = kvm.api_version()
            if version != KVM_API_VERSION:
                return f"{path} speaks version {version} of the KVM API, not {KVM_API_VERSION}"
            missing = [name for name, capability in _NEEDED.items() if not kvm.check_extension(capability)]
            if missing:
                return f"{path} lacks {', '.join(missing)}"
            with kvm.create_vm() as vm:
                vm.create_irqchip()
        except OSError as error:
            if error.errno == errno.ENOTTY:
                return f"{path} is not a KVM device"
            return f"{path} makes no virtual machine ({_name(error)}): {error.strerror}"
    return None


def _why_not_opened(path: str, error: OSError) -> str:
    if error.errno in {errno.ENOENT, errno.ENXIO, errno.ENODEV}:
        return (
            f"there is no {path} ({_name(error)}): load the kernel's module, kvm_intel or kvm_amd, with modprobe;"
            " where that is refused, switch virtualization on in the firmware or in the host of this machine"
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return (
            f"no permission to open {path} ({_name(error)}): its group may, which is often kvm;"
            ' join it with `sudo usermod -aG kvm "$USER"` and log in again'
        )
    return f"{path} cannot be opened ({_name(error)}): {error.strerror}"


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "no errno")
