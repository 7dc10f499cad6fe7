"""Shared memory of another process, mapped: a part of a file as a memoryview, without a copy.

A view keeps its mapping alive, and nothing is ever unmapped by hand. What cannot be checked once and for all: whoever keeps the
right to shrink the file may do so later, and touching the lost pages then kills this process with SIGBUS. A guest cannot do
that, and its VMM owns the guest anyway, so by default it is trusted with it; ``require_seal=True`` takes only files that are
sealed against shrinking (``F_SEAL_SHRINK``), which memory of ``memory-backend-memfd`` is.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import stat
import sys
from typing import Final

from aioirqfd.errors import IrqfdError

_KEEP_NO_FD: Final[dict[str, bool]] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


class MappingError(IrqfdError):
    """A file that cannot be mapped: none, too short, or not sealed although it must be."""


def map_shared(fd: int, size: int, offset: int, *, require_seal: bool = False) -> tuple[memoryview, bool]:
    """Map a part of a shared-memory file.

    Args:
        fd: The file; only borrowed.
        size: Bytes, at least 1.
        offset: Where the part begins. It need not be on a page: what is mapped begins on the page before, a huge one where
            the file has such.
        require_seal: Refuse a file that may still shrink.

    Returns:
        A writable view, and whether the file is sealed against shrinking.

    Raises:
        MappingError: No regular file, too short, not sealed although it must be, or not mappable.
    """
    try:
        status = os.fstat(fd)
    except OSError as error:
        raise MappingError(f"fd {fd} is not open") from error
    if not stat.S_ISREG(status.st_mode):
        raise MappingError(f"fd {fd} is no shared-memory file")
    if size < 1 or offset < 0 or offset + size > status.st_size:
        raise MappingError(f"{size} bytes at {offset} of a file of {status.st_size}")
    sealed = False
    with contextlib.suppress(OSError):  # files on a disk or in /dev/shm know no seals
        sealed = bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    if require_seal and not sealed:
        raise MappingError(f"fd {fd} is not sealed against shrinking")
    # Not from the file's beginning: a VMM may give hundreds of parts of one file, and address space is no more than
    # 128 TiB. A file of huge pages gives their size as its block size.
    block = status.st_blksize
    page = block if block > 0 and block % mmap.ALLOCATIONGRANULARITY == 0 else mmap.ALLOCATIONGRANULARITY
    skip = offset % page
    try:
        mapping = mmap.mmap(fd, skip + size, offset=offset - skip, **_KEEP_NO_FD)
    except (OSError, ValueError, OverflowError) as error:
        raise MappingError(f"cannot map {size} bytes at {offset}: {error}") from error
    with contextlib.suppress(OSError):
        mapping.madvise(mmap.MADV_DONTDUMP)  # a guest's memory has no business in this process's core dumps
    return memoryview(mapping)[skip : skip + size], sealed
