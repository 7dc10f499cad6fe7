"""The format of a flight file, version 1; docs/reference/flight-file.md says the same for people.

A header of one page; a table of names; a ring of changes, which are rare and long, as JSON; and the ring of records, which are many and
short. Each ring begins with its head, the number of entries begun so far, in a cache line of its own. An entry carries the lap of the
ring in which it was written, as its last word: 0 while it is being written.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from struct import Struct
from typing import Final, final

MAGIC: Final = b"aioirqfd"
VERSION: Final = 1
ORDER: Final = 0x0A0B0C0D
"""As it is read by who has the writer's byte order."""
CLOCK_REALTIME: Final = 0
CLOCK_MONOTONIC: Final = 1
PAGE: Final = 4096
HEAD: Final = 64
"""Bytes before a ring's first entry; the first 8 are its head."""
MOST: Final = 2**28
"""Entries of a ring."""

HEADER: Final = "8s6I7Q2I3Q"
CLOSED_AT: Final = 112
"""Where in the header the time of the end is."""
RECORD: Final = "QQIiHBBI"
CHANGE: Final = "QQHHI"
"""Time, the number of the record that came next, the length of the text, 0, the lap. The text follows."""
NAME: Final = "BBHI56s"
"""What it is that has a name, the length of the text, 0, its number, the text."""
RECORD_SIZE: Final = Struct(f"={RECORD}").size
CHANGE_SIZE: Final = 512
CHANGE_ROOM: Final = CHANGE_SIZE - Struct(f"={CHANGE}").size
NAME_SIZE: Final = Struct(f"={NAME}").size
NAME_ROOM: Final = 56
OF_IRQFD: Final = "BBHIi52s"
"""The same of an irqfd: what it is, the length of the text, the source, the gsi, the eventfd, the text."""
OF_IRQFD_ROOM: Final = 52
NAMES: Final = 2048
IRQFD_NAMES: Final = 1024
"""Of these may be irqfds'. A guest binds as many as it likes, and who writes records is to have a name."""
SOURCE_NAME: Final = 1
"""A name of who writes records: a manager, a device, a queue."""
GSI_NAME: Final = 2
"""A name of an interrupt."""
IRQFD_NAME: Final = 3
"""A name of an irqfd: of a source, a gsi and an eventfd. An older reader leaves it out, as any that it does not know."""


@final
@dataclass(frozen=True, slots=True)
class FlightHeader:
    """The first page of a flight file.

    Attributes:
        pid: The writer's.
        size: Bytes of the file.
        ring: Where the records' ring begins; its ``capacity``.
        capacity: A power of 2.
        changes: Where the changes' ring begins; its ``change_capacity``.
        change_capacity: A power of 2.
        names: Where the names are.
        name_capacity: How many there may be.
        monotonic_ns: When it was made, by the records' clock.
        realtime_ns: The same moment, in nanoseconds since 1970.
        closed_ns: When the program was done with it, by the records' clock; 0: it is not, or it was killed.
    """

    pid: int
    size: int
    ring: int
    capacity: int
    changes: int
    change_capacity: int
    names: int
    name_capacity: int
    monotonic_ns: int
    realtime_ns: int
    closed_ns: int = 0

    @classmethod
    def plan(cls, capacity: int, changes: int, *, pid: int, monotonic_ns: int, realtime_ns: int) -> FlightHeader:
        """The header of a file with room for so many, each rounded up to a power of 2."""
        capacity, changes = (1 << (number - 1).bit_length() for number in (capacity, changes))
        names_at = PAGE
        changes_at = _pages(names_at + NAMES * NAME_SIZE)
        ring_at = _pages(changes_at + HEAD + changes * CHANGE_SIZE)
        size = _pages(ring_at + HEAD + capacity * RECORD_SIZE)
        return cls(pid, size, ring_at, capacity, changes_at, changes, names_at, NAMES, monotonic_ns, realtime_ns)

    def pack(self) -> bytes:
        """Its bytes."""
        sizes = RECORD_SIZE, CHANGE_SIZE, NAME_SIZE
        places = self.ring, self.capacity, self.changes, self.change_capacity, self.names, self.name_capacity
        clocks = CLOCK_MONOTONIC, CLOCK_REALTIME, self.monotonic_ns, self.realtime_ns, self.closed_ns
        return Struct(f"={HEADER}").pack(MAGIC, VERSION, ORDER, *sizes, self.pid, self.size, *places, *clocks)

    @classmethod
    def unpack(cls, data: bytes, size: int) -> tuple[str, FlightHeader]:
        """Read the header of a file of so many bytes: the struct module's sign for its byte order, and the header.

        Raises:
            ValueError: It is none, or one that this version cannot read; what is wrong, in a sentence without the file's name.
        """
        if data[: len(MAGIC)] != MAGIC:
            raise ValueError("it is no flight file: it does not begin with the word aioirqfd")
        if len(data) < Struct(f"={HEADER}").size:
            raise ValueError(f"it has {size} bytes, which is not even a header: it was cut")
        orders = {sign: Struct(f"{sign}8s2I").unpack_from(data)[2] for sign in "<>"}
        sign = next((sign for sign, order in orders.items() if order == ORDER), None)
        if sign is None:
            raise ValueError(f"its byte-order mark is {orders['<']:#x}, not {ORDER:#x}: it is damaged")
        words: tuple[int, ...] = Struct(f"{sign}{HEADER}").unpack_from(data)
        version, sizes, places, clocks, times = words[1], words[3:6], words[6:14], words[14:16], words[16:]
        if version != VERSION:
            raise ValueError(f"it is of version {version}, and this aioirqfd reads version {VERSION}")
        if sizes != (RECORD_SIZE, CHANGE_SIZE, NAME_SIZE):
            raise ValueError(f"its entries have {sizes[0]}, {sizes[1]} and {sizes[2]} bytes: it is damaged")
        if clocks != (CLOCK_MONOTONIC, CLOCK_REALTIME):
            raise ValueError(f"its clocks are {clocks[0]} and {clocks[1]}, which nobody here knows: it is damaged")
        header = cls(*places, *times)
        header._check(size)
        return sign, header

    def _check(self, size: int) -> None:
        rings = (self.ring, self.capacity, RECORD_SIZE), (self.changes, self.change_capacity, CHANGE_SIZE)
        for _, capacity, _ in rings:
            if not 1 <= capacity <= MOST or capacity & (capacity - 1):
                raise ValueError(
                    f"a ring of it has {capacity} places, which is no power of 2 up to {MOST}: it is damaged"
                )
        if self.name_capacity > 2**16:
            raise ValueError(f"it has {self.name_capacity} names: it is damaged")
        ends = [at + HEAD + capacity * width for at, capacity, width in rings]
        end = max(*ends, self.names + self.name_capacity * NAME_SIZE)
        if end > self.size:
            raise ValueError(f"its parts end at {end}, and it at {self.size}: it is damaged")
        if self.size > size:
            raise ValueError(f"it has {size} bytes of the {self.size} that its header says: it was cut")


def _pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
