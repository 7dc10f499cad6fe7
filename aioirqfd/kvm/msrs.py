"""Model-specific registers, as the kernel takes and gives them: a count, and as many entries."""

from __future__ import annotations

import errno
from ctypes import sizeof
from typing import TYPE_CHECKING, Final

from aioirqfd.kvm.descriptor import field
from aioirqfd.kvm.ioctls import KVM_GET_MSR_INDEX_LIST, KVM_GET_MSRS, KVM_SET_MSRS
from aioirqfd.kvm.states import KvmMsrEntry, KvmMsrList, KvmMsrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aioirqfd.kvm.descriptor import Descriptor

MSR_IA32_TSC: Final = 0x10
MSR_IA32_TSC_DEADLINE: Final = 0x6E0
_BATCH: Final = 128
"""Entries at a time; the kernel takes up to 255."""
_WORD: Final = 4


def index_list(descriptor: Descriptor) -> list[int]:
    """``KVM_GET_MSR_INDEX_LIST``, however long it is."""
    room = _BATCH
    while True:
        table = bytearray(bytes(KvmMsrList(nmsrs=room))).ljust(sizeof(KvmMsrList) + room * _WORD, b"\0")
        try:
            descriptor.ioctl(KVM_GET_MSR_INDEX_LIST, table)
        except OSError as error:
            count = KvmMsrList.from_buffer(table).nmsrs
            if error.errno != errno.E2BIG or count <= room:
                raise
            room = count  # the kernel says how many there are
            continue
        count = KvmMsrList.from_buffer(table).nmsrs
        return list(memoryview(table).cast("I")[1 : 1 + count])


def get(vcpu: Descriptor, indices: Iterable[int]) -> dict[int, int]:
    """``KVM_GET_MSRS``: those of them that this vCPU has, by index.

    Raises:
        OSError: As the kernel says; not for a register that there is not.
    """
    left = [KvmMsrEntry(index=field("index", index, 32)) for index in indices]
    found: dict[int, int] = {}
    while left:
        batch = left[:_BATCH]
        table = _pack(batch)
        done = vcpu.ioctl(KVM_GET_MSRS, table)
        for entry in _entries(table, done):
            found[entry.index] = entry.data
        # It stops at the first that it does not know.
        left = left[done + (done < len(batch)) :]
    return found


def put(vcpu: Descriptor, values: Mapping[int, int]) -> None:
    """``KVM_SET_MSRS``, in this order.

    Raises:
        OSError: EINVAL: one is refused, and does not have that value already. Those before it are set.
    """
    left = [
        KvmMsrEntry(index=field("index", index, 32), data=field("value", value, 64)) for index, value in values.items()
    ]
    while left:
        batch = left[:_BATCH]
        done = vcpu.ioctl(KVM_SET_MSRS, _pack(batch))
        if done < len(batch):
            refused = batch[done]
            if get(vcpu, [refused.index]).get(refused.index) != refused.data:
                raise OSError(errno.EINVAL, f"MSR {refused.index:#x} does not take {refused.data:#x} on this vCPU")
            done += 1
        left = left[done:]


def pack(values: Mapping[int, int]) -> bytes:
    """``struct kvm_msrs`` with these entries."""
    return bytes(_pack([KvmMsrEntry(index=index, data=value) for index, value in values.items()]))


def unpack(table: bytes) -> dict[int, int]:
    """The entries of a ``struct kvm_msrs``."""
    return {entry.index: entry.data for entry in _entries(table, KvmMsrs.from_buffer_copy(table).nmsrs)}


def _pack(entries: Sequence[KvmMsrEntry]) -> bytearray:
    return bytearray(b"".join((bytes(KvmMsrs(nmsrs=len(entries))), *map(bytes, entries))))


def _entries(table: bytes | bytearray, count: int) -> list[KvmMsrEntry]:
    head, size = sizeof(KvmMsrs), sizeof(KvmMsrEntry)
    return [KvmMsrEntry.from_buffer_copy(table, head + index * size) for index in range(count)]
