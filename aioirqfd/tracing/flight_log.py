"""What a flight recorder has written, read by whoever: the program itself, another one while it runs, or anybody after it was killed.

What must hold: the bytes are not to be trusted. They may be cut, made up, or written at this very moment. A file is read, never mapped:
to read a mapped file that somebody cuts is to be killed.

An entry is whole if it was there before a first copy was made, was not overwritten until after the second, and carries the lap of its
place in both. Then what is in the second was written before it was begun.

A ring is copied in slices, of what is in it and no more, and taken apart when all of it is there. Tempting, and wrong: to take a slice
apart before the next one is copied. That takes longer than to write as much, so who writes all the time would overtake who reads.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Final, cast, final

from aioirqfd.flight import FlightKind
from aioirqfd.tracing.flight_format import (
    CHANGE,
    CHANGE_SIZE,
    GSI_NAME,
    HEAD,
    IRQFD_NAME,
    NAME,
    NAME_SIZE,
    OF_IRQFD,
    PAGE,
    RECORD,
    RECORD_SIZE,
    SOURCE_NAME,
    FlightHeader,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    _Said = tuple[str, dict[str, object], FlightKind | None]

TURNED_OFF: Final = "recorder_off"
TURNED_ON: Final = "recorder_on"
"""Changes that a recorder notes of itself: in between it has remembered nothing."""
_EVER: Final = 2**64
_SLICE: Final = 1 << 20
"""Bytes of a ring that are copied at one time, at most."""
_CACHED: Final = 4096
"""Sets of fields that are remembered while records are taken apart."""
_IN_FLIGHT: Final = 64
"""Threads that may be writing an entry each at one time."""
_INTERRUPT: Final = ("gsi", "count")
_LINE: Final = ("gsi", None)
_FIELDS: Final[dict[FlightKind, tuple[str, str | None]]] = {
    FlightKind.INJECTED: _INTERRUPT,
    FlightKind.DEFERRED: _INTERRUPT,
    FlightKind.HELD: _INTERRUPT,
    FlightKind.WAKEUP: _INTERRUPT,
    FlightKind.SEEN: _INTERRUPT,
    FlightKind.HANDLER_BEGUN: _INTERRUPT,
    FlightKind.HANDLER_ENDED: _INTERRUPT,
    FlightKind.HANDLER_RAISED: _INTERRUPT,
    FlightKind.DROPPED: _LINE,
    FlightKind.FAILED: _LINE,
    FlightKind.ACKED: _LINE,
    FlightKind.RAISED: _LINE,
    FlightKind.LOWERED: _LINE,
    FlightKind.MASKED: _LINE,
    FlightKind.UNMASKED: _LINE,
    FlightKind.ROUTED: ("gsi", "routes"),
    FlightKind.BOUND: ("gsi", "eventfd_id"),
    FlightKind.UNBOUND: _LINE,
    FlightKind.KICK: ("queue", None),
    FlightKind.REQUEST_BEGUN: ("queue", "head"),
    FlightKind.REQUEST_COMPLETED: ("queue", "head"),
    FlightKind.REQUESTS_SERVED: ("queue", "count"),
    FlightKind.REQUEST_FAILED: ("queue", "head"),
    FlightKind.CALL: ("queue", None),
    FlightKind.REGISTER_READ: ("region", "offset"),
    FlightKind.REGISTER_WRITTEN: ("region", "offset"),
    FlightKind.VECTOR: ("vector", None),
    FlightKind.INJECTING: _INTERRUPT,
    FlightKind.UNROUTED: _LINE,
    FlightKind.OFFLOADED: ("gsi", "eventfd_id"),
    FlightKind.RECLAIMED: ("gsi", "eventfd_id"),
    FlightKind.PAUSED: ("irqfds", None),
    FlightKind.RESUMED: ("held", None),
    FlightKind.BROKEN: _LINE,
}
"""What a record's key and value are called."""
_KNOWN: Final = {int(kind): (kind, kind.event, *names) for kind, names in _FIELDS.items()}
"""The same by the number, looked up once: there may be millions of records."""


class FlightFileError(ValueError):
    """A flight file that cannot be read: it is none, it was cut, it is damaged, or of another version."""


@final
@dataclass(frozen=True, slots=True)
class FlightRecord:
    """One thing that happened.

    Attributes:
        time_ns: When, by ``time.monotonic_ns()``.
        event: What, as a name: ``interrupt_seen``, ``interrupt_injected``, ... (:attr:`FlightKind.event`), or a state change's.
        fields: A record's ``gsi``, ``fd`` and ``count``, say, and the ``source`` that wrote it; or the state change's own. Records that
            say the same share them: change a copy.
        number: Its place in the sequence of records, from 0. A state change has that of the record that came next.
        kind: What, as a number; None: a state change.
    """

    time_ns: int
    event: str
    fields: Mapping[str, object]
    number: int = -1
    kind: FlightKind | None = None


@final
@dataclass(frozen=True, slots=True)
class FlightLog:
    """All that a flight recorder remembers.

    Attributes:
        header: When it was begun, by whom, and whether the program was done with it.
        records: Everything, in order.
        total: Records written since it was begun, with those that were overwritten.
        changes: State changes, likewise.
        first: The oldest record's number that was still there when it was read.
        torn: Records that were not whole: being written when the program was killed, or damaged.
        sources: Names of who wrote records, by number.
        gsis: Names of interrupts, by gsi.
        irqfds: Names of irqfds, by their manager's name, gsi and fd; of several that had these, one after the other, the last one's.
        until_ns: Nothing more had happened up to this time: when the program was done with it, or, while it runs, when it was read. 0:
            it was killed, and nobody knows.
    """

    header: FlightHeader
    records: list[FlightRecord]
    total: int
    changes: int
    torn: int
    sources: Mapping[int, str]
    gsis: Mapping[int, str] = field(default_factory=dict[int, str])
    until_ns: int = 0
    irqfds: Mapping[tuple[str, int, int], str] = field(default_factory=dict[tuple[str, int, int], str])
    first: int = 0

    @classmethod
    def read(
        cls,
        pread: Callable[[int, int], bytes],
        size: int,
        *,
        since: tuple[int, int] = (0, 0),
        whole: bool = True,
        now_ns: int = 0,
    ) -> FlightLog:
        """Read what can be read by an offset and a size.

        Args:
            pread: Reads; fewer bytes than asked for are an end.
            size: Bytes that there are.
            since: Of the records, and of the changes, those from this number on; those that were overwritten are ``torn``.
            whole: Nobody is writing; False: up to an entry that is perhaps being written just now.
            now_ns: The time by the writer's clock, where it runs yet.

        Raises:
            ValueError: It is no flight file, it was cut, or it is damaged.
        """
        sign, header = FlightHeader.unpack(pread(0, PAGE), size)
        # The changes first: the record behind which one stands is then in the records, too.
        form = Struct(f"{sign}{CHANGE}"), CHANGE_SIZE
        changes = _ring(sign, pread, header.changes, header.change_capacity, form, since[1], whole=whole)
        form = Struct(f"{sign}{RECORD}"), RECORD_SIZE
        records = _ring(sign, pread, header.ring, header.capacity, form, since[0], whole=whole)
        # The names last: whoever has written a record had one before.
        sources, gsis, irqfds = _names(sign, pread(header.names, header.name_capacity * NAME_SIZE))
        told = [_change(sign, data) for data in changes.entries(CHANGE_SIZE)]
        good = [change for change in told if change is not None]
        found = _merged(_records(sign, records, sources), good)
        torn = records.torn + len(told) - len(good)
        until_ns = header.closed_ns or now_ns
        return cls(header, found, records.total, changes.total, torn, sources, gsis, until_ns, irqfds, records.first)

    @property
    def closed(self) -> bool:
        """Whether the program was done with it; if not, it runs yet, or was killed."""
        return self.header.closed_ns != 0

    @property
    def overwritten(self) -> int:
        """Records that were overwritten by later ones, while it was read at last."""
        return max(0, self.first, self.total - self.header.capacity)

    def realtime_ns(self, time_ns: int) -> int:
        """A record's time in nanoseconds since 1970."""
        return self.header.realtime_ns + time_ns - self.header.monotonic_ns


def read_flight(path: str | os.PathLike[str]) -> FlightLog:
    """Read a flight recorder's file: of a program that runs, has ended, or was killed.

    Raises:
        OSError: The file cannot be read.
        FlightFileError: It is no flight file, or damaged. The message says which file, and what is wrong with it.
    """
    with Path(path).open("rb") as file:
        return _read(path, file.fileno(), since=(0, 0))


def _read(path: str | os.PathLike[str], fd: int, *, since: tuple[int, int], whole: bool = True) -> FlightLog:
    try:
        size = os.fstat(fd).st_size
        header = FlightHeader.unpack(_pread(fd, 0, PAGE), size)[1]
        now_ns = 0 if _ended(header) else time.monotonic_ns()
        return FlightLog.read(lambda at, length: _pread(fd, at, length), size, since=since, whole=whole, now_ns=now_ns)
    except ValueError as error:
        raise FlightFileError(f"{os.fspath(path)}: {error}") from None


def _pread(fd: int, at: int, size: int) -> bytes:
    """All of it, for which the kernel takes more than one call beyond 2 GiB."""
    parts: list[bytes] = []
    while size and (part := os.pread(fd, size, at)):
        parts.append(part)
        at, size = at + len(part), size - len(part)
    return b"".join(parts)


def follow_flight(
    path: str | os.PathLike[str], *, interval: float = 0.2, sleep: Callable[[float], object] = time.sleep
) -> Iterator[FlightLog]:
    """Read a flight recorder's file while it is written: all that is there, and then what is new, again and again.

    It ends when the program has ended, or was done with its recorder.

    Args:
        path: The file.
        interval: Seconds between two looks.
        sleep: Waits.

    Yields:
        A log, of whose records each comes once; those that were overwritten before they were read are counted as its ``torn``.

    Raises:
        OSError: The file cannot be read.
        FlightFileError: It is no flight file, or damaged.
    """
    with Path(path).open("rb") as file:
        since = 0, 0
        while True:
            # Asked before the look: what was written until then is in it.
            ended = _ended(_read(path, file.fileno(), since=(_EVER, _EVER)).header)
            log = _read(path, file.fileno(), since=since, whole=ended)
            since = log.total, log.changes
            yield log
            if ended:
                return
            sleep(interval)


def _ended(header: FlightHeader) -> bool:
    if header.closed_ns:
        return True
    try:
        os.kill(header.pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False


def _head(sign: str, pread: Callable[[int, int], bytes], at: int) -> int:
    data = pread(at, 8)
    if len(data) < 8:
        raise ValueError("it was cut while it was read")
    return int(Struct(f"{sign}Q").unpack(data)[0])


@dataclass(slots=True)
class _Ring:
    """What was found in a ring.

    Attributes:
        total: How many entries there were, up to one that is being written.
        slices: Such as are whole and follow each other: the first one's number, and their bytes.
        torn: How many were not whole.
        first: The oldest one's number that was there, where all were asked for.
    """

    total: int
    slices: deque[tuple[int, bytes]] = field(default_factory=deque[tuple[int, bytes]])
    torn: int = 0
    first: int = 0

    def keep(self, number: int, data: bytes, count: int, size: int, bad: Sequence[int]) -> None:
        """So many entries from this number on are whole, but for these."""
        self.torn += len(bad)
        begin = 0
        for end in (*bad, count):
            if end > begin:
                self.slices.append((number + begin, data[begin * size : end * size]))
            begin = end + 1

    def taken(self) -> Iterator[tuple[int, bytes]]:
        """The slices, which are forgotten one by one."""
        while self.slices:
            yield self.slices.popleft()

    def entries(self, size: int) -> Iterator[bytes]:
        """The entries, of so many bytes."""
        for _, data in self.taken():
            yield from (data[at : at + size] for at in range(0, len(data), size))


def _ring(
    sign: str,
    pread: Callable[[int, int], bytes],
    at: int,
    capacity: int,
    form: tuple[Struct, int],
    since: int,
    *,
    whole: bool,
) -> _Ring:
    """The entries of a ring that are whole, from a number on.

    ``whole``: nobody is writing one of the last any more, so that one that is not whole will not be.
    """
    layout, size = form
    ring = _Ring(_head(sign, pread, at))
    laps = Struct(f"{sign}{layout.size - 4}xI{size - layout.size}x")
    number = max(since, ring.total - capacity, 0)
    if since:
        ring.torn = max(0, number - since)
    while number < ring.total:
        turn, begin = divmod(number, capacity)
        count = min(ring.total - number, capacity - begin, _SLICE // size)
        first, second = (pread(at + HEAD + begin * size, count * size) for _ in range(2))
        if not len(first) == len(second) == count * size:
            raise ValueError("it was cut while it was read")
        oldest = _head(sign, pread, at) - capacity
        if oldest > number:  # who writes has overtaken us
            oldest = min(oldest, ring.total)
            if since:
                ring.torn += oldest - number
            else:
                # There is to be no gap: what was before it is as good as overwritten.
                ring.slices.clear()
                ring.torn, ring.first = 0, oldest
            number = oldest
            continue
        wanted = turn + 1 & 0xFFFFFFFF
        copies = (second,) if first == second else (first, second)
        read = (enumerate(laps.iter_unpack(copy)) for copy in copies)
        bad = sorted({place for copy in read for place, (lap,) in copy if lap != wanted})
        if not whole and (written := [place for place in bad if number + place >= ring.total - _IN_FLIGHT]):
            count = written[0]
            ring.total = number + count
            bad = bad[: -len(written)]
        ring.keep(number, second, count, size, bad)
        number += count
    return ring


def _names(sign: str, table: bytes) -> tuple[dict[int, str], dict[int, str], dict[tuple[str, int, int], str]]:
    """Those of sources, gsis and irqfds."""
    sources: dict[int, str] = {}
    gsis: dict[int, str] = {}
    found: list[tuple[int, int, int, str]] = []
    plain, of_irqfd = Struct(f"{sign}{NAME}"), Struct(f"{sign}{OF_IRQFD}")
    for at in range(0, len(table) // NAME_SIZE * NAME_SIZE, NAME_SIZE):
        if table[at] in {SOURCE_NAME, GSI_NAME}:
            what, length, _, number, text = plain.unpack_from(table, at)
            (sources if what == SOURCE_NAME else gsis)[number] = text[:length].decode("utf-8", "replace")
        elif table[at] == IRQFD_NAME:
            _, length, source, gsi, fd, text = of_irqfd.unpack_from(table, at)
            found.append((source, gsi, fd, text[:length].decode("utf-8", "replace")))
    # As Journeys call them. An entry of a source that has no name may stand anywhere.
    return sources, gsis, {(sources.get(source, ""), gsi, fd): name for source, gsi, fd, name in found}


def _records(sign: str, ring: _Ring, sources: Mapping[int, str]) -> list[FlightRecord]:
    # Most records say what another one has said. That is made once, and takes memory once.
    said: dict[tuple[int, ...], _Said] = {}
    found: list[FlightRecord] = []
    unpack = Struct(f"{sign}{RECORD}").iter_unpack
    for first, data in ring.taken():
        for number, words in enumerate(unpack(data), first):
            what = words[1:7]
            one = said.get(what)
            if one is None:
                if len(said) >= _CACHED:
                    said.clear()
                one = said[what] = _said(what, sources)
            event, fields, kind = one
            found.append(FlightRecord(words[0], event, fields, number, kind))
    return found


def _said(words: tuple[int, ...], sources: Mapping[int, str]) -> _Said:
    """What a record says but for its time: the event, its fields, its kind."""
    value, key, fd, source, kind, flags = words
    known = _KNOWN.get(kind)
    if known is None:
        # Of a later version, which may add kinds.
        return "unknown", {"kind": kind, "key": key, "fd": fd, "value": value, "flags": flags}, None
    named, event, key_name, value_name = known
    fields: dict[str, object] = {key_name: key}
    if fd >= 0 or key_name == "gsi":
        fields["fd"] = fd
    if value_name is not None:
        fields[value_name] = value
    if source in sources:
        fields["source"] = sources[source]
    return event, fields, named


def _change(sign: str, data: bytes) -> FlightRecord | None:
    form = Struct(f"{sign}{CHANGE}")
    time_ns, number, length, _, _ = form.unpack_from(data)
    try:
        told: object = json.loads(data[form.size : form.size + length])
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict):
        return None
    fields = cast("dict[str, object]", told)
    event = fields.pop("event", None)
    return FlightRecord(time_ns, event, fields, number) if isinstance(event, str) else None


def _merged(records: list[FlightRecord], changes: list[FlightRecord]) -> list[FlightRecord]:
    """In order. What a record says and, right behind it, a change in more words, is said once."""
    if not changes:
        return records
    found: list[FlightRecord] = []
    place = 0
    for change in changes:
        while place < len(records) and records[place].number < change.number:
            found.append(records[place])
            place += 1
        if found and _same(found[-1], change):
            record = found.pop()
            fields = {**record.fields, **change.fields}
            found.append(FlightRecord(record.time_ns, record.event, fields, record.number, record.kind))
        else:
            found.append(change)
    return [*found, *records[place:]]


def _same(record: FlightRecord, change: FlightRecord) -> bool:
    alike = record.kind is not None and record.event == change.event and record.number == change.number - 1
    return alike and record.fields.get("gsi") == change.fields.get("gsi")
