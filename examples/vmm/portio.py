"""The port space: which device answers ``in`` and ``out`` at which port."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

Reader = Callable[[int, int], bytes]
"""Answers ``count`` reads of ``size`` bytes (1, 2 or 4): given size and count, returns size * count bytes."""
Writer = Callable[[bytes, int], None]
"""Takes writes of ``size`` bytes each: given the bytes of all of them in order, and the size."""


def register(value: Callable[[], int]) -> Reader:
    """A reader of a plain register: each read gives the value at that time, cut to the size, little-endian."""

    def read(size: int, count: int) -> bytes:
        mask = (1 << 8 * size) - 1
        return b"".join((value() & mask).to_bytes(size, "little") for _ in range(count))

    return read


def words(take: Callable[[int], None]) -> Writer:
    """A writer that hands each write of a string to ``take`` as a number."""

    def write(data: bytes, size: int) -> None:
        for start in range(0, len(data), size):
            take(int.from_bytes(data[start : start + size], "little"))

    return write


@final
class PortIo:
    """Dispatches port accesses to the devices.

    A port nobody owns behaves as on an ISA bus: it reads as all ones, and writes to it vanish.

    Threads: registered before the CPU starts, then called on the CPU's thread only; so a device's handlers run there too.
    """

    __slots__ = ("_readers", "_writers")

    def __init__(self) -> None:
        self._readers: dict[int, Reader] = {}
        self._writers: dict[int, Writer] = {}

    def on_read(self, port: int, reader: Reader) -> None:
        """Let ``reader`` answer ``in`` from ``port``."""
        self._readers[port] = reader

    def on_write(self, port: int, writer: Writer) -> None:
        """Let ``writer`` take ``out`` to ``port``."""
        self._writers[port] = writer

    def read(self, port: int, size: int, count: int = 1) -> bytes:
        """``count`` reads of ``size`` bytes each, as one string."""
        reader = self._readers.get(port)
        return b"\xff" * (size * count) if reader is None else reader(size, count)

    def write(self, port: int, data: bytes, size: int) -> None:
        """Writes of ``size`` bytes each, from ``data`` in order."""
        writer = self._writers.get(port)
        if writer is not None:
            writer(data, size)
