"""Port writes without an exit each: KVM keeps them in a ring until the guest leaves for another reason.

KVM emulates a string ``out`` an element at a time, and each would be an exit to this process: a quarter of a million for a
mebibyte. (``KVM_CAP_COALESCED_PIO``, section "KVM_(UN)REGISTER_COALESCED_MMIO" of the kernel's KVM API document.)
"""

from __future__ import annotations

import itertools
import mmap
import struct
from operator import itemgetter
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from aioirqfd.kvm import Vcpu, Vm
    from examples.vmm.portio import PortIo

_KVM_CAP_COALESCED_MMIO: Final = 15
"""Its value is the page of the ring, counted from the start of what a vCPU shares."""
_KVM_CAP_COALESCED_PIO: Final = 162
_KVM_REGISTER_COALESCED_MMIO: Final = 0x4010_AE67
_ZONE: Final = struct.Struct("=QII")
"""``struct kvm_coalesced_mmio_zone``: address, size, 1 for ports."""
_RING: Final = struct.Struct("=II")
"""``struct kvm_coalesced_mmio_ring``: the oldest entry, which is ours to move, and the first free one, the kernel's."""
_ENTRY: Final = struct.Struct("=QII8s")
"""``struct kvm_coalesced_mmio``: address, length, 1 for ports, data."""
_ENTRIES: Final = (mmap.PAGESIZE - _RING.size) // _ENTRY.size
_access: Final = itemgetter(0, 1)


@final
class CoalescedPio:
    """The ring of one VM. Where KVM has none, nothing is coalesced, and every write exits as usual.

    Args:
        vm: The virtual machine.
        vcpu: Any vCPU of it; the ring is mapped through it.
        mmap_size: Bytes that a vCPU shares.
        io: Where the writes go.

    Threads: :meth:`drain` on the thread that runs the vCPU, after each run, before the exit is looked at.
    """

    __slots__ = ("_io", "_ring", "_vm")

    def __init__(self, vm: Vm, vcpu: Vcpu, *, mmap_size: int, io: PortIo) -> None:
        self._vm = vm
        self._io = io
        page = vm.check_extension(_KVM_CAP_COALESCED_MMIO)
        self._ring: mmap.mmap | None = None
        if page and vm.check_extension(_KVM_CAP_COALESCED_PIO) and (page + 1) * mmap.PAGESIZE <= mmap_size:
            self._ring = mmap.mmap(vcpu.fileno(), mmap.PAGESIZE, offset=page * mmap.PAGESIZE)

    def add(self, port: int, length: int) -> None:
        """Coalesce the writes to ``length`` ports from ``port`` on."""
        if self._ring is not None:
            self._vm.ioctl(_KVM_REGISTER_COALESCED_MMIO, bytearray(_ZONE.pack(port, length, 1)))

    def drain(self) -> None:
        """Hand over what the ring holds, in order."""
        ring = self._ring
        if ring is None:
            return
        first, last = _RING.unpack_from(ring)
        if first == last:
            return
        count = (last - first) % _ENTRIES
        entries = (_ENTRY.unpack_from(ring, _RING.size + (first + n) % _ENTRIES * _ENTRY.size) for n in range(count))
        for (port, size), group in itertools.groupby(entries, _access):
            self._io.write(port, b"".join(data[:size] for *_, data in group), size)
        struct.pack_into("=I", ring, 0, last)

    def close(self) -> None:
        """Unmap the ring. Idempotent."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None
