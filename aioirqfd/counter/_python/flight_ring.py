"""FlightRing: the last N interrupts as binary records."""

from __future__ import annotations

import time
from collections import deque
from struct import Struct
from typing import Final, final

from aioirqfd.counter._python.core import MASK
from aioirqfd.integers import integer

INJECTED, DEFERRED, HELD, WAKEUP = 1, 2, 3, 4
_RECORD: Final = Struct("=QQIiBxxxI")


@final
class FlightRing:
    """The last interrupts, as binary records."""

    def __init__(self, capacity: int = 65536) -> None:
        capacity = integer(capacity, "a flight ring's capacity", 1, 2**28)
        self.capacity = 1 << (capacity - 1).bit_length()
        self.total = 0
        self._records: deque[bytes] = deque(maxlen=self.capacity)

    def put(self, kind: int, gsi: int, fd: int, count: int, /) -> None:
        """Write one record, now."""
        self._records.append(_RECORD.pack(time.monotonic_ns(), count & MASK, gsi, fd, kind, 0))
        self.total += 1

    def snapshot(self) -> bytes:
        """The records there are, oldest first, 32 bytes each: struct format "=QQIiBxxxI"."""
        return b"".join(self._records)
