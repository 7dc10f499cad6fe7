"""FlightRing: the last N things that happened to interrupts, as binary records, in memory of its own or in somebody's file."""

from __future__ import annotations

import itertools
import time
from struct import Struct
from typing import Final, final

from aioirqfd.counter._python.core import MASK
from aioirqfd.integers import integer

INJECTED, DEFERRED, HELD, WAKEUP, SEEN, HANDLER_BEGUN, HANDLER_ENDED, HANDLER_RAISED = range(1, 9)
_RECORD: Final = Struct("=QQIiHBBI")
_WORD: Final = Struct("=Q")
_LAP: Final = Struct("=I")
_LAP_AT: Final = _RECORD.size - _LAP.size
_HEAD: Final = 64
_U32: Final = 0xFFFFFFFF


@final
class FlightRing:
    """The last things that happened, as binary records: in a buffer from this offset on, or in memory of its own."""

    def __init__(self, capacity: int = 65536, memory: bytearray | memoryview | None = None, offset: int = 0) -> None:
        capacity = integer(capacity, "a flight ring's capacity", 1, 2**28)
        self._shift = (capacity - 1).bit_length()
        self.capacity = 1 << self._shift
        self.on = True
        """Whether records are written."""
        self.settle(memory, offset)

    def settle(self, memory: bytearray | memoryview | None, offset: int, /) -> None:
        """Be in this memory from here on, with as many places. Nobody writes meanwhile."""
        size = _HEAD + self.capacity * _RECORD.size
        if memory is None:
            memory, offset = bytearray(size), 0
        view = memoryview(memory)
        if view.readonly:
            raise TypeError("the memory of a flight ring is to be written")
        if offset + size > view.nbytes or offset % _WORD.size:
            raise ValueError(f"a flight ring of {size} bytes is not to be had at {offset} of {view.nbytes} bytes")
        self._memory = view[offset : offset + size]
        self._numbers = itertools.count(self.total)

    @property
    def total(self) -> int:
        """Records written since it was made."""
        return int(_WORD.unpack_from(self._memory)[0])

    def put(self, kind: int, key: int, fd: int, value: int, source: int = 0, flags: int = 0, /) -> None:
        """Write one record, now. Any thread."""
        self._write(time.monotonic_ns(), kind, key, fd, value, source, flags)

    def _write(self, now: int, kind: int, key: int, fd: int, value: int, source: int, flags: int = 0) -> None:
        """Cleared first and written last, the lap says to whoever reads at any moment whether the record is whole."""
        if not self.on:
            return
        memory = self._memory
        number = next(
            self._numbers
        )  # in one step: a signal handler, or another thread, may write one at any line of this
        if number >= _WORD.unpack_from(memory)[0]:
            _WORD.pack_into(memory, 0, number + 1)
        at = _HEAD + (number & self.capacity - 1) * _RECORD.size
        _LAP.pack_into(memory, at + _LAP_AT, 0)
        fd = (fd + 2**31 & _U32) - 2**31
        record = _RECORD.pack(now, value & MASK, key & _U32, fd, source & 0xFFFF, kind & 0xFF, flags & 0xFF, 0)
        memory[at : at + _LAP_AT] = record[:_LAP_AT]
        _LAP.pack_into(memory, at + _LAP_AT, (number >> self._shift) + 1 & _U32)
