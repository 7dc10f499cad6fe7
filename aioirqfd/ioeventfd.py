"""Guest to host: doorbells. A write that matches signals an eventfd instead of being carried out (``KVM_IOEVENTFD``).

Two things the kernel's do not do. A doorbell can carry what was written, in a bounded ring beside the count. And one whose
eventfd is closed comes off the bus, where the kernel's goes on swallowing writes, and keeps the address, for ever (row O18).
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import deque
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Final, Literal, Self, final

from aioirqfd import nodes
from aioirqfd.counter import Counter
from aioirqfd.errors import (
    ClosedError,
    EventFdInvalidError,
    IoEventFdExistsError,
    IoEventFdInvalidError,
    IoEventFdNotFoundError,
)
from aioirqfd.eventfd import EventFd
from aioirqfd.integers import plain
from aioirqfd.uncopied import refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    Space = Literal["pio", "mmio"]

_LENGTHS: Final = frozenset({0, 1, 2, 4, 8})
_U64: Final = 2**64
_MAX_VALUES: Final = 2**20


@dataclass(frozen=True, slots=True)
class IoEventFdStatistics:
    """Counts of one doorbell since it was put on the bus.

    Attributes:
        writes: Guest writes that it took.
        values: Written values that wait to be taken.
        overflowed: Values that were lost because the ring was full; their writes are in the count all the same.
    """

    writes: int
    values: int
    overflowed: int


@dataclass(frozen=True, slots=True)
class IoBusStatistics:
    """Counts of a bus.

    Attributes:
        doorbells: On it now.
        writes: Guest writes that its doorbells took, since it was made.
        detached: Doorbells that came off because their eventfd was closed.
    """

    doorbells: int
    writes: int
    detached: int


@final
class IoEventFd:
    """One doorbell on an :class:`IoBus`; made by :meth:`IoBus.ioeventfd`. A context manager that takes it off the bus."""

    __slots__ = (
        "_bus",
        "_lock",
        "_off",
        "_overflowed",
        "_reference",
        "_values",
        "_writes",
        "address",
        "datamatch",
        "eventfd",
        "length",
        "space",
    )

    def __init__(
        self,
        bus: IoBus,
        eventfd: EventFd,
        address: int,
        length: int,
        datamatch: int | None,
        space: Space,
        values: int,
        reference: int | None,
    ) -> None:
        self._bus = bus
        self._reference = reference  # the fd of the eventfd, if it is the doorbell's to close
        self._lock = threading.Lock()
        self._values: deque[int] | None = deque(maxlen=values) if values else None
        self._overflowed = 0
        self._off = False
        self._writes = Counter()
        self.eventfd: Final = eventfd
        self.address: Final = address
        self.length: Final = length
        self.datamatch: Final = datamatch
        self.space: Final = space

    def __repr__(self) -> str:
        match = "" if self.datamatch is None else f" datamatch={self.datamatch:#x}"
        return f"<IoEventFd {self.space} {self.address:#x}/{self.length}{match}>"

    def close(self) -> None:
        """Take it off the bus; idempotent. The eventfd stays its owner's."""
        self._bus.discard(self)

    def release(self) -> None:
        """It is off the bus: close what was made for an fd that was given as an int; idempotent. Any thread.

        :meta private:
        """
        with self._lock:
            self._off = True
            fd, self._reference = self._reference, None
        if fd is not None:
            try:
                self.eventfd.close()
            finally:
                os.close(fd)

    def __reduce__(self) -> tuple[object, ...]:
        raise refusal(self, "It is a place on its bus: put another doorbell on a bus where you need one.")

    def __del__(self) -> None:
        # A bus is dropped as it is, and its doorbells with it.
        if getattr(self, "_reference", None) is not None:
            self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def take_values(self) -> list[int]:
        """What was written since the last call, oldest first; at most the last ``values`` of it.

        A value is here before its write is in the eventfd's count, so whoever has read the count finds at least so many, but
        for those that overflowed. Nothing is here unless the doorbell was made with ``values``.

        Threads:
            Any.
        """
        if self._values is None:
            return []
        with self._lock:
            taken = list(self._values)
            self._values.clear()
        return taken

    @property
    def keeps_values(self) -> bool:
        """Whether it keeps what is written; then whoever signals its eventfd without this process has lost something.

        :meta private:
        """
        return self._values is not None

    def statistics(self) -> IoEventFdStatistics:
        """The counts as they are now. Any thread."""
        with self._lock:
            waiting = len(self._values) if self._values is not None else 0
            return IoEventFdStatistics(self._writes.value, waiting, self._overflowed)

    @property
    def dead(self) -> bool:
        """Whether it was taken off, or its eventfd was closed, by its owner or behind its back.

        :meta private:
        """
        try:
            return self._off or self.eventfd.closed or self.eventfd.id < 0
        except EventFdInvalidError:
            return True  # the number is another file's by now
        except OSError as error:
            return error.errno == errno.EBADF  # and not if there was no room for a look, say

    def ring(self, value: int) -> bool:
        """Take a write that matches; False, and it is not taken, if the eventfd is closed. Any thread.

        :meta private:
        """
        if self.eventfd.closed:
            return False
        oldest: list[int] = []
        if self._values is not None:
            # Not under the lock any more when the eventfd is signalled: its wakeup may run here and now, and take values.
            value = index(value)
            with self._lock:
                if len(self._values) == self._values.maxlen:
                    oldest.append(self._values.popleft())
                    self._overflowed += 1
                self._values.append(value)
        try:
            self.eventfd.signal()
        except BaseException as error:
            self._take_off(value, oldest)
            if isinstance(error, OSError) and error.errno == errno.EBADF:
                return False
            raise
        self._writes.signal()
        return True

    def _take_off(self, value: int, oldest: list[int]) -> None:
        """Its eventfd did not hear of a write, which is the caller's to carry out: it is not to be seen twice."""
        values = self._values
        if values is None:
            return
        with self._lock:
            if value not in values:
                return  # somebody has taken it already
            values.reverse()
            values.remove(value)
            values.extend(oldest)
            values.reverse()
            self._overflowed -= len(oldest)

    def matches(self, value: int, length: int) -> bool:
        """Whether a write of that value and length rings it (rows O11, O12, O13).

        :meta private:
        """
        return (not self.length or length == self.length) and (self.datamatch is None or self.datamatch == value)

    def collides(self, length: int, datamatch: int | None) -> bool:
        """Whether another doorbell at the same address of the same space is refused (row O07).

        :meta private:
        """
        if not self.length or not length:
            return True
        if self.length != length:
            return False
        return self.datamatch is None or datamatch is None or self.datamatch == datamatch


@final
class IoBus:
    """The addresses of a machine's doorbells, port space and memory space apart (row O08).

    Args:
        name: Its name in :mod:`aioirqfd.inspect`; without one it is a number.
        changed: Called whenever a doorbell has come off, in the thread that has taken it off: for who has it registered elsewhere, too.

    Threads:
        :meth:`write` from any thread, typically a vCPU's; registration from any thread too.
    """

    __slots__ = ("__weakref__", "_changed", "_detached", "_doorbells", "_gone", "_lock")

    def __init__(self, *, name: str | None = None, changed: Callable[[], None] | None = None) -> None:
        name = nodes.check_name(name, "a bus")
        self._changed = changed
        self._lock = threading.Lock()
        self._detached = 0
        self._gone = 0  # writes that doorbells took which are not on the bus any more
        # A write looks without the lock: the tuples are replaced, never changed.
        self._doorbells: dict[tuple[str, int], tuple[IoEventFd, ...]] = {}
        nodes.add("buses", self, IoBus._node, name=name)

    def ioeventfd(
        self,
        eventfd: EventFd | int,
        *,
        address: int,
        length: int = 0,
        datamatch: int | None = None,
        space: Space = "mmio",
        values: int = 0,
    ) -> IoEventFd:
        """Put a doorbell on the bus.

        Those that are at the address already, and whose eventfd is closed, come off first (better than row O18).

        Args:
            eventfd: What a matching write signals; stays the caller's, and may hang at many addresses (row O19). An int is an
                eventfd's fd, which may be closed at any time: the doorbell has a reference (a dup) of its own until it is taken
                off, as the kernel's has.
            address: 0..2**64-1.
            length: Bytes a write must have: 1, 2, 4, 8, or 0 for any (row O12).
            datamatch: The value a write must have, compared as an unsigned 64-bit number (row O13); None for any.
            space: ``"pio"`` or ``"mmio"``.
            values: How many written values are kept for :meth:`IoEventFd.take_values`, 0..2**20. When there are more, the
                oldest is lost, and counted.

        Raises:
            IoEventFdInvalidError: EINVAL: another length (O01), a datamatch with length 0 (O02), address + length beyond 2**64
                (O03), a value out of range, another space.
            ValueError: ``values`` is out of range.
            TypeError: ``address`` or ``datamatch`` is no integer.
            ClosedError: EBADF: the eventfd is closed (O05).
            EventFdInvalidError: EINVAL: the fd is no eventfd (O05).
            IoEventFdExistsError: EEXIST: it collides with one that is there (O07).
            OSError: EMFILE, where an int is given and there is no room for the dup.
        """
        number = plain(length, _U64)
        if number not in _LENGTHS:
            raise IoEventFdInvalidError(f"a doorbell has 0, 1, 2, 4 or 8 bytes, not {length!r}")
        length = number
        address = _integer("an address", address)
        if not 0 <= address < _U64:
            raise IoEventFdInvalidError(f"an address is 0..2**64-1, not {address:#x}")
        if length and address + length >= _U64:
            raise IoEventFdInvalidError(f"no room for {length} bytes at {address:#x}")
        if datamatch is not None:
            datamatch = _integer("a datamatch", datamatch)
            if not (length and 0 <= datamatch < _U64):
                raise IoEventFdInvalidError(
                    f"a datamatch is 0..2**64-1, and needs a length; not {datamatch} of {length} bytes"
                )
        if space not in {"pio", "mmio"}:
            raise IoEventFdInvalidError(f"a space is 'pio' or 'mmio', not {space!r}")
        values = _integer("values", values)
        if not 0 <= values <= _MAX_VALUES:
            raise ValueError(f"a doorbell keeps 0..{_MAX_VALUES} values, not {values}")
        doorbell = self._make(eventfd, address, length, datamatch, space, values)
        for other in self._doorbells.get((space, address), ()):
            if other.dead:
                self._detach(other)
        with self._lock:
            there = self._doorbells.get((space, address), ())
            collides = any(other.collides(length, datamatch) for other in there)
            if not collides:
                self._doorbells[space, address] = (*there, doorbell)
        if collides:
            doorbell.release()
            raise IoEventFdExistsError(f"{doorbell!r} collides with {there!r}")
        return doorbell

    def _make(
        self, eventfd: EventFd | int, address: int, length: int, datamatch: int | None, space: Space, values: int
    ) -> IoEventFd:
        """A doorbell that is not on the bus."""
        if isinstance(eventfd, EventFd):
            if eventfd.closed:
                raise ClosedError(f"a doorbell rings an open eventfd, not {eventfd!r}")
            return IoEventFd(self, eventfd, address, length, datamatch, space, values, None)
        EventFd.from_fd(eventfd)
        with contextlib.ExitStack() as undo:
            reference = os.dup(eventfd)
            undo.callback(os.close, reference)
            # Not the owner, for the doorbell is.
            own = EventFd.from_fd(reference)
            doorbell = IoEventFd(self, own, address, length, datamatch, space, values, reference)
            undo.pop_all()
        return doorbell

    def deassign(
        self,
        eventfd: EventFd | int,
        *,
        address: int,
        length: int = 0,
        datamatch: int | None = None,
        space: Space = "mmio",
    ) -> None:
        """Take off the doorbell that matches in every field, the eventfd compared by identity of the kernel object (row O09).

        Raises:
            IoEventFdNotFoundError: ENOENT: there is none.
            ClosedError: EBADF: the eventfd is closed.
            EventFdInvalidError: EINVAL: the fd is no eventfd.
            TypeError: ``address`` or ``datamatch`` is no integer.
        """
        address = _integer("an address", address)
        match = plain(length, _U64), None if datamatch is None else _integer("a datamatch", datamatch)
        wanted = (eventfd if isinstance(eventfd, EventFd) else EventFd.from_fd(eventfd)).id
        for doorbell in self._doorbells.get((space, address), ()):
            same = (doorbell.length, doorbell.datamatch) == match
            # Of two threads that take it off at the same time, one is told that it is not there.
            if same and not doorbell.dead and doorbell.eventfd.id == wanted and self.discard(doorbell):
                return
        raise IoEventFdNotFoundError(
            f"no doorbell of this eventfd at {space} {address:#x} with length {length!r} and datamatch {datamatch!r}"
        )

    def __reduce__(self) -> tuple[object, ...]:
        raise refusal(self, "It is what the threads of one machine share: make another bus for another machine.")

    def discard(self, doorbell: IoEventFd) -> bool:
        """Take this very doorbell off; whether it was there.

        :meta private:
        """
        key = (doorbell.space, doorbell.address)
        with self._lock:
            there = self._doorbells.get(key, ())
            left = tuple(other for other in there if other is not doorbell)
            if left:
                self._doorbells[key] = left
            else:
                self._doorbells.pop(key, None)
            if len(left) == len(there):
                return False
            self._gone += doorbell.statistics().writes
        doorbell.release()
        if self._changed is not None:
            self._changed()
        return True

    def _detach(self, doorbell: IoEventFd) -> None:
        if self.discard(doorbell):
            with self._lock:
                self._detached += 1

    def write(self, address: int, value: int, length: int, *, space: Space = "mmio") -> bool:
        """A guest's write: signal the doorbell that matches (at most one does).

        Args:
            address: Exactly the doorbell's (row O11).
            value: Unsigned, as the guest wrote it.
            length: Bytes written: 1, 2, 4 or 8.
            space: ``"pio"`` or ``"mmio"``.

        Returns:
            Whether a doorbell took it; otherwise the write is the caller's to carry out.

        Threads:
            Any.
        """
        for doorbell in self._doorbells.get((space, address), ()):
            if doorbell.matches(value, length):
                if doorbell.ring(value):
                    return True
                # Better than the kernel, which swallows such writes for ever (row O18).
                self._detach(doorbell)
                return False
        return False

    def write_bytes(self, address: int, data: bytes, length: int, *, space: Space = "pio") -> list[int]:
        """A guest's string instruction: so many writes to one address, each of ``length`` bytes, little-endian (row O15).

        Args:
            address: As for :meth:`write`.
            data: The elements one after the other, as an exit to user space hands them over.
            length: Bytes of an element: 1, 2, 4 or 8.
            space: ``"pio"`` or ``"mmio"``.

        Returns:
            The elements that no doorbell took, in their order: they are the caller's to carry out.

        Raises:
            ValueError: The data is no whole number of elements; nothing was written.

        Threads:
            Any.
        """
        if length < 1 or len(data) % length:
            raise ValueError(f"{len(data)} bytes are no whole number of {length}-byte elements")
        elements = [int.from_bytes(data[start : start + length], "little") for start in range(0, len(data), length)]
        return [value for value in elements if not self.write(address, value, length, space=space)]

    def statistics(self) -> IoBusStatistics:
        """The counts as they are now; looks at every doorbell. Any thread."""
        with self._lock:
            doorbells = [doorbell for there in self._doorbells.values() for doorbell in there]
            writes = self._gone + sum(doorbell.statistics().writes for doorbell in doorbells)
            return IoBusStatistics(len(doorbells), writes, self._detached)

    def _node(self) -> Mapping[str, object]:
        """What there is to see of it, in the tree of :mod:`aioirqfd.inspect`."""
        doorbells = [doorbell for there in self._doorbells.copy().values() for doorbell in there]
        return {
            **nodes.counts(self.statistics()),
            "doorbells": nodes.Child(lambda: {_name(one): _doorbell(one) for one in doorbells}),
        }

    def __len__(self) -> int:
        return sum(map(len, self._doorbells.values()))


def _name(doorbell: IoEventFd) -> str:
    match = "" if doorbell.datamatch is None else f"={doorbell.datamatch:#x}"
    return f"{doorbell.space}:{doorbell.address:#x}:{doorbell.length}{match}"


def _doorbell(doorbell: IoEventFd) -> Mapping[str, object]:
    eventfd_id = None
    if not doorbell.dead:
        with contextlib.suppress(OSError):  # its fd was closed by somebody else
            eventfd_id = doorbell.eventfd.id
    return {
        "space": doorbell.space,
        "address": f"{doorbell.address:#x}",
        "length": doorbell.length,
        "datamatch": doorbell.datamatch,
        "eventfd_id": eventfd_id,
        "dead": doorbell.dead,
        **nodes.counts(doorbell.statistics()),
    }


def _integer(name: str, value: int) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} is an integer, not {value!r}")
    try:
        return index(value)
    except TypeError:
        raise TypeError(f"{name} is an integer, not {value!r}") from None
