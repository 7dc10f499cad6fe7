"""What CPUID answers a guest, as the kernel takes and gives it: a count, and as many entries."""

from __future__ import annotations

import errno
from ctypes import sizeof
from typing import TYPE_CHECKING, Final

from aioirqfd.kvm.structures import KvmCpuid2, KvmCpuidEntry2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aioirqfd.kvm.descriptor import Descriptor

_ROOM: Final = 64
"""Entries asked for at first; a CPU of today has some 30 to 60."""
_MOST: Final = 4096
"""More than any kernel gives: it is E2BIG for another reason then."""


def pack(entries: Iterable[KvmCpuidEntry2]) -> bytearray:
    """``struct kvm_cpuid2`` with its entries."""
    body = [bytes(entry) for entry in entries]
    return bytearray(b"".join((KvmCpuid2(nent=len(body)), *body)))


def unpack(table: bytes | bytearray) -> list[KvmCpuidEntry2]:
    """The entries of a ``struct kvm_cpuid2``."""
    head, size = sizeof(KvmCpuid2), sizeof(KvmCpuidEntry2)
    count = KvmCpuid2.from_buffer_copy(table).nent
    return [KvmCpuidEntry2.from_buffer_copy(table, head + index * size) for index in range(count)]


def get_cpuid(descriptor: Descriptor, request: int) -> list[KvmCpuidEntry2]:
    """The answer to ``KVM_GET_SUPPORTED_CPUID`` or ``KVM_GET_CPUID2``, however long it is.

    Raises:
        OSError: As the kernel says.
    """
    room = _ROOM
    while True:
        table = pack(KvmCpuidEntry2() for _ in range(room))
        try:
            descriptor.ioctl(request, table)
        except OSError as error:
            if error.errno != errno.E2BIG or room >= _MOST:
                raise
            room *= 2
            continue
        return unpack(table)
