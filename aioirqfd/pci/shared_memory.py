"""The memory behind the shared parts of a BAR."""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import Final, final


@final
class SharedMemory:
    """A file as long as the BAR, and a mapping of it.

    Attributes:
        fd: The file, as long as the BAR.
        view: The same, mapped.
    """

    def __init__(self, size: int) -> None:
        self.fd: Final = os.memfd_create("aioirqfd-bar", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, size)
            self._map = mmap.mmap(self.fd, size)
        except BaseException:
            os.close(self.fd)
            raise
        self.view = memoryview(self._map)

    def close(self) -> None:
        """Close the file. The memory stays while somebody has a view of it."""
        os.close(self.fd)
        self.view = memoryview(b"")
        with contextlib.suppress(BufferError):
            self._map.close()
