"""The flight recorder: what happened of late, at the price of a few nanoseconds a step.

The counter module writes one binary record for each step of an interrupt into a ring of fixed size: in memory, or in a file that is there
when the program was killed. Nothing is rendered until somebody asks, typically after something went wrong.

Tempting, and wrong:

- to open the file that is there and to truncate it: whoever has it mapped yet, a program that is about to end say, is killed by SIGBUS.
  The new file is made beside it, and takes its name when it is whole;
- to leave the file sparse: a full disk would kill the program at some interrupt (SIGBUS again). All of it is allocated at the start.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import mmap
import os
import tempfile
import threading
import time
import weakref
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Final, Self, final

from aioirqfd import nodes
from aioirqfd.counter import FlightRing
from aioirqfd.integers import integer
from aioirqfd.tracer import listens
from aioirqfd.tracing import latency
from aioirqfd.tracing.flight_format import (
    CHANGE,
    CHANGE_ROOM,
    CHANGE_SIZE,
    CLOSED_AT,
    GSI_NAME,
    HEAD,
    IRQFD_NAME,
    IRQFD_NAMES,
    MOST,
    NAME,
    NAME_ROOM,
    NAME_SIZE,
    OF_IRQFD,
    OF_IRQFD_ROOM,
    SOURCE_NAME,
    FlightHeader,
)
from aioirqfd.tracing.flight_log import TURNED_OFF, TURNED_ON, FlightLog, FlightRecord

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from aioirqfd.tracer import Tracer

_WORD: Final = Struct("=Q")
_LAP: Final = Struct("=I")
_CHANGE: Final = Struct(f"={CHANGE}")
_NAME: Final = Struct(f"={NAME}")
_OF_IRQFD: Final = Struct(f"={OF_IRQFD}")
_POPULATE_WRITE: Final = 23  # MADV_POPULATE_WRITE, which the mmap module has no name for

_all: Final[weakref.WeakSet[FlightRecorder]] = weakref.WeakSet()


def _let_go() -> None:
    """In a forked child: the file is the parent's."""
    for recorder in list(_all):
        recorder.inherit()


os.register_at_fork(after_in_child=_let_go)


@final
class FlightRecorder:
    """A :class:`aioirqfd.Tracer` that remembers the last steps of interrupts, and the last state changes.

    ::

        with FlightRecorder("/dev/shm/vmm.flight", capacity=1 << 20) as recorder:
            async with IrqManager(sink, tracer=recorder) as irqs:
                ...

    Args:
        path: The file to remember in, which takes the place of one that is there; its mode is 0600. None: memory alone. In a file
            system in memory (``/dev/shm``, ``/run``) writing costs the same as without a file; on a disk, the first record in each
            page after the kernel has written it out costs a microsecond more.
        capacity: Records to remember, 1..2**28, rounded up to a power of 2; 32 bytes each, and an interrupt leaves two or more.
        changes: State changes to remember, 1..2**28, rounded up to a power of 2; 512 bytes each.
        tracer: Hears of the state changes, too.
        name: What it is called in :mod:`aioirqfd.inspect`, where it can be turned off and on; None: a number.

    Attributes:
        ring: Where the records are written; the managers, queues and devices that have this tracer do.
        per_interrupt: As the other tracer's.

    Raises:
        OSError: There is no such folder, or no room for all of the file.
        ValueError: The capacity is out of its range.

    Threads: any, all methods. A forked child does not write into its parent's file, but remembers in memory from there on.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        capacity: int = 65536,
        changes: int = 1024,
        tracer: Tracer | None = None,
        name: str | None = None,
    ) -> None:
        if isinstance(path, int):
            raise TypeError(f"FlightRecorder({path}): the first argument is a path; write capacity={path}")
        self._header = header = FlightHeader.plan(
            integer(capacity, "a flight ring's capacity", 1, MOST),
            integer(changes, "the number of changes", 1, MOST),
            pid=os.getpid(),
            monotonic_ns=time.monotonic_ns(),
            realtime_ns=time.time_ns(),
        )
        name = nodes.check_name(name, "a tracer")
        self.path: Final = None if path is None else Path(path)
        """The file, or None."""
        self._memory: mmap.mmap | bytearray = _anonymous(header) if self.path is None else _file(self.path, header)
        self.ring: Final = FlightRing(header.capacity, memoryview(self._memory), header.ring)
        self.per_interrupt = tracer is not None and bool(tracer.per_interrupt)
        self._tracer = tracer
        self._lock = threading.RLock()
        self._names: dict[tuple[int, ...], int] = {}  # by what it is and its numbers: the place in the table
        self._irqfds = 0  # how many of them are irqfds'
        self._sources: dict[str, int] = {}
        self._counts: dict[int, int] = {}  # by source, which of its name it is
        self._on_since = 0  # the record's number
        _all.add(self)
        nodes.add("tracers", self, _node, name=name)

    def __repr__(self) -> str:
        where = "memory" if self.path is None else str(self.path)
        return f"<FlightRecorder in {where}: {self.ring.total} records>"

    @property
    def on(self) -> bool:
        """Whether it remembers; it does, at first. What happens while it is off is not there afterwards. Any thread."""
        return self.ring.on

    @on.setter
    def on(self, value: bool) -> None:
        if not isinstance(value, bool):  # pyright: ignore[reportUnnecessaryIsInstance]  callers without a type checker
            raise TypeError(f"a FlightRecorder's on is True or False, not {value!r}")
        with self._lock:
            if value is not self.ring.on:
                self._on_since = self.ring.total
                self.ring.on = value
                # Whoever reads is to know that there is a gap, and of what was under way no end.
                self._remember(TURNED_ON if value else TURNED_OFF, {})

    @property
    def listens(self) -> bool:
        """Whether the other tracer hears of trouble. Without one it goes to the loop's exception handler: nobody listens to a recorder."""
        return self._tracer is not None and listens(self._tracer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Note in the file that the program is done with it: no reader waits for more. Idempotent.

        What has the recorder for its tracer yet may go on to write.
        """
        with self._lock:
            if not _WORD.unpack_from(self._memory, CLOSED_AT)[0]:
                _WORD.pack_into(self._memory, CLOSED_AT, time.monotonic_ns())

    def inherit(self) -> None:
        """In a forked child: the file is the parent's, and what is remembered here is in memory.

        :meta private:
        """
        self._lock = threading.RLock()
        if self.path is not None:
            on, self.ring.on = self.ring.on, False  # nothing goes into the file, if there is no room for another place
            copy = _anonymous(self._header, populate=False)
            names_end = self._header.names + self._header.name_capacity * NAME_SIZE
            copy[:names_end] = self._memory[:names_end]
            self._memory = copy
            self.ring.settle(memoryview(copy), self._header.ring)
            self._on_since = 0
            self.ring.on = on

    # -- writing -----------------------------------------------------------------------------------------------------

    def emit(self, event: str, /, **fields: object) -> None:
        """Remember a state change, with as much of its fields as there is room for."""
        try:
            if self.on:
                self._remember(event, {name: value for name, value in fields.items() if name != "exc_info"})
        finally:
            if self._tracer is not None:
                self._tracer.emit(event, **fields)

    def _remember(self, event: str, fields: dict[str, object]) -> None:
        text = _shortened(event, fields)
        with self._lock:
            memory, header = self._memory, self._header
            number = _WORD.unpack_from(memory, header.changes)[0]
            _WORD.pack_into(memory, header.changes, number + 1)
            lap, place = divmod(number, header.change_capacity)
            at = header.changes + HEAD + place * CHANGE_SIZE
            lap_at = at + _CHANGE.size - _LAP.size
            _LAP.pack_into(memory, lap_at, 0)
            _CHANGE.pack_into(memory, at, time.monotonic_ns(), self.ring.total, len(text), 0, 0)
            memory[at + _CHANGE.size : at + _CHANGE.size + len(text)] = text
            _LAP.pack_into(memory, lap_at, lap + 1 & 0xFFFFFFFF)

    def source(self, name: str, /, *, like: int | None = None) -> int:
        """A number for whoever writes records, by which a reader finds the name. A second one of that name gets a 2 behind it.

        There is room for 1024 names, whatever else has one; beyond that those of one name have one number.

        Args:
            name: At most 56 bytes of it are kept.
            like: Another source's number: what it has behind its name, this one gets, too.
        """
        with self._lock:
            counts = itertools.count(1) if like is None else (self._counts.get(like, 1),)
            names = ((name if count == 1 else f"{name} {count}", count) for count in counts)
            one, count = next(((one, count) for one, count in names if one not in self._sources), (None, 1))
            if one is None:
                return self._sources[name]
            number = len(self._sources) + 1
            if not self._put_name(SOURCE_NAME, number, one):
                return self._sources.get(name, 0)
            self._sources[one] = number
            self._counts[number] = count
            return number

    def name(self, gsi: int, name: str) -> None:
        """Call an interrupt by a name, which readers show beside its gsi. Nothing happens when the table is full.

        Args:
            gsi: The gsi, 0..2**32-1.
            name: At most 56 bytes of it are kept.
        """
        with self._lock:
            self._put_name(GSI_NAME, integer(gsi, "a gsi", 0, 2**32 - 1), name)

    def name_irqfd(self, source: int, gsi: int, fd: int, name: str | None) -> None:
        """Call an irqfd by its name, for readers of what this source wrote of it; None: it has none, whoever was there before.

        :meta private:
        """
        key = IRQFD_NAME, source, gsi, fd
        with self._lock:
            if key not in self._names:
                if name is None or self._irqfds >= IRQFD_NAMES:
                    return
                self._irqfds += 1
            at = self._name_at(key)
            if at is not None:
                data = _name(name or "", OF_IRQFD_ROOM)
                _OF_IRQFD.pack_into(self._memory, at, 0, len(data), source, gsi, fd, data)
                self._memory[at] = IRQFD_NAME if name else 0

    def _put_name(self, what: int, number: int, text: str) -> bool:
        at = self._name_at((what, number))
        if at is None:
            return False
        data = _name(text, NAME_ROOM)
        _NAME.pack_into(self._memory, at, 0, len(data), 0, number, data)
        self._memory[at] = what  # last: from here on it is there
        return True

    def _name_at(self, key: tuple[int, ...]) -> int | None:
        """Where in the table its entry is; None: there is no room."""
        place = self._names.setdefault(key, len(self._names))
        if place >= self._header.name_capacity:
            del self._names[key]
            return None
        return self._header.names + place * NAME_SIZE

    # -- reading -----------------------------------------------------------------------------------------------------

    def log(self) -> FlightLog:
        """All that is remembered, as :func:`read_flight` returns it of a file."""
        memory = self._memory
        now_ns = time.monotonic_ns()
        return FlightLog.read(lambda at, size: bytes(memory[at : at + size]), len(memory), now_ns=now_ns)

    def records(self) -> list[FlightRecord]:
        """Everything remembered, in order. Interrupts that went to the sink in one call carry the same time."""
        return self.log().records

    def waits(self, source: int, /) -> dict[tuple[int, int], list[int]]:
        """From each of the last signals to its injection, ns, the shortest first; by gsi and eventfd. Since it was turned on.

        :meta private:
        """
        return latency.waits(memoryview(self._memory), self._header, source, since=self._on_since)

    def replay(self, tracer: Tracer) -> int:
        """Tell another tracer everything, with the field ``time_ns``; return how much that was."""
        records = self.records()
        for record in records:
            tracer.emit(record.event, time_ns=record.time_ns, **record.fields)
        return len(records)


def _node(recorder: FlightRecorder) -> Mapping[str, object]:
    """What there is to see of it, and to write."""

    def put(on: object) -> None:
        recorder.on = nodes.switched("on", on)

    return {
        "type": type(recorder).__qualname__,
        "path": None if recorder.path is None else str(recorder.path),
        "capacity": recorder.ring.capacity,
        "total": recorder.ring.total,
        "on": nodes.Setting(recorder.on, put),
    }


def _anonymous(header: FlightHeader, *, populate: bool = True) -> mmap.mmap:
    memory = mmap.mmap(-1, header.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    packed = header.pack()
    memory[: len(packed)] = packed
    if populate:
        _populate(memory)
    return memory


def _file(path: Path, header: FlightHeader) -> mmap.mmap:
    path = path.resolve()  # a link stays one, to the new file
    if path.exists() and not path.is_file():
        raise FileExistsError(
            errno.EEXIST, "a flight recorder would take the place of what is no regular file", str(path)
        )
    fd, made = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        try:
            os.posix_fallocate(fd, 0, header.size)
            os.pwrite(fd, header.pack(), 0)
            memory = mmap.mmap(fd, header.size)
            _populate(memory)
            Path(made).replace(path)
        finally:
            os.close(fd)
    except BaseException as error:
        Path(made).unlink()
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
    return memory


def _populate(memory: mmap.mmap) -> None:
    """Have all its pages there, which the first lap would fault in one by one. An old kernel does not know how; then it does."""
    with contextlib.suppress(OSError):
        memory.madvise(_POPULATE_WRITE)


def _name(text: str, room: int) -> bytes:
    """As much of it as there is room for, in bytes, without half a character."""
    return text.encode("utf-8", "replace")[:room].decode("utf-8", "ignore").encode()


def _shortened(event: str, fields: dict[str, object]) -> bytes:
    """A change as JSON, of the room that there is: values too long are cut, the longest first, and left out at last."""
    told: dict[str, object] = {**fields, "event": event}
    for longest in (None, 128, 32, 8):
        if longest is not None:
            told = {name: _cut(value, longest) for name, value in told.items()} | {"event": event}
        try:
            text = json.dumps(told, default=repr, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError):
            continue  # JSON has no word for one of them: in words, which is what comes next
        if len(text) <= CHANGE_ROOM:
            return text
    return json.dumps({"event": event[:32]}).encode()


def _cut(value: object, longest: int) -> object:
    if value is None or isinstance(value, int | float):
        return value
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
