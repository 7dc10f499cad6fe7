"""Guest to host: doorbells. A write that matches signals an eventfd instead of being carried out (``KVM_IOEVENTFD``)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, Literal, Self, final

from aioirqfd.errors import (
    ClosedError,
    IoEventFdExistsError,
    IoEventFdInvalidError,
    IoEventFdNotFoundError,
)

if TYPE_CHECKING:
    from types import TracebackType

    from aioirqfd.eventfd import EventFd

    Space = Literal["pio", "mmio"]

_LENGTHS: Final = frozenset({0, 1, 2, 4, 8})
_U64: Final = 2**64


@final
class IoEventFd:
    """One doorbell on an :class:`IoBus`; made by :meth:`IoBus.ioeventfd`. A context manager that takes it off the bus."""

    __slots__ = ("_bus", "address", "datamatch", "eventfd", "length", "space")

    def __init__(
        self, bus: IoBus, eventfd: EventFd, address: int, length: int, datamatch: int | None, space: Space
    ) -> None:
        self._bus = bus
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def matches(self, value: int, length: int) -> bool:
        """Whether a write of that value and length rings it (rows O11, O12, O13)."""
        return (not self.length or length == self.length) and (self.datamatch is None or self.datamatch == value)

    def collides(self, length: int, datamatch: int | None) -> bool:
        """Whether another doorbell at the same address of the same space is refused (row O07)."""
        if not self.length or not length:
            return True
        if self.length != length:
            return False
        return self.datamatch is None or datamatch is None or self.datamatch == datamatch


@final
class IoBus:
    """The addresses of a machine's doorbells, port space and memory space apart (row O08).

    Threads:
        :meth:`write` from any thread, typically a vCPU's; registration from any thread too.
    """

    __slots__ = ("_doorbells", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # A write looks without the lock: the tuples are replaced, never changed.
        self._doorbells: dict[tuple[str, int], tuple[IoEventFd, ...]] = {}

    def ioeventfd(
        self,
        eventfd: EventFd,
        *,
        address: int,
        length: int = 0,
        datamatch: int | None = None,
        space: Space = "mmio",
    ) -> IoEventFd:
        """Put a doorbell on the bus.

        Args:
            eventfd: What a matching write signals; stays the caller's, and may hang at many addresses (row O19).
            address: 0..2**64-1.
            length: Bytes a write must have: 1, 2, 4, 8, or 0 for any (row O12).
            datamatch: The value a write must have, compared as an unsigned 64-bit number (row O13); None for any.
            space: ``"pio"`` or ``"mmio"``.

        Raises:
            IoEventFdInvalidError: EINVAL: another length (O01), a datamatch with length 0 (O02), address + length beyond 2**64
                (O03), a value out of range, another space.
            ClosedError: EBADF: the eventfd is closed (O05).
            IoEventFdExistsError: EEXIST: it collides with one that is there (O07).
        """
        if length not in _LENGTHS:
            raise IoEventFdInvalidError(f"a doorbell has 0, 1, 2, 4 or 8 bytes, not {length!r}")
        if not 0 <= address < _U64 or (length and address + length >= _U64):
            raise IoEventFdInvalidError(f"no room for {length} bytes at {address:#x}")
        if datamatch is not None and (not length or not 0 <= datamatch < _U64):
            raise IoEventFdInvalidError("a datamatch is 0..2**64-1, and needs a length")
        if space not in {"pio", "mmio"}:
            raise IoEventFdInvalidError(f"a space is 'pio' or 'mmio', not {space!r}")
        if eventfd.closed:
            raise ClosedError("the eventfd is closed")
        doorbell = IoEventFd(self, eventfd, address, length, datamatch, space)
        with self._lock:
            there = self._doorbells.get((space, address), ())
            if any(other.collides(length, datamatch) for other in there):
                raise IoEventFdExistsError(f"{doorbell!r} collides with {there!r}")
            self._doorbells[space, address] = (*there, doorbell)
        return doorbell

    def deassign(
        self,
        eventfd: EventFd,
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
        """
        wanted = eventfd.id
        for doorbell in self._doorbells.get((space, address), ()):
            same = (doorbell.length, doorbell.datamatch) == (length, datamatch)
            if same and not doorbell.eventfd.closed and doorbell.eventfd.id == wanted:
                self.discard(doorbell)
                return
        raise IoEventFdNotFoundError(f"{space} {address:#x}/{length}")

    def discard(self, doorbell: IoEventFd) -> None:
        """Take this very doorbell off, if it is there."""
        key = (doorbell.space, doorbell.address)
        with self._lock:
            left = tuple(other for other in self._doorbells.get(key, ()) if other is not doorbell)
            if left:
                self._doorbells[key] = left
            else:
                self._doorbells.pop(key, None)

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
                try:
                    doorbell.eventfd.signal()
                except ClosedError:
                    # Better than the kernel, which swallows such writes for ever (row O18).
                    self.discard(doorbell)
                    return False
                return True
        return False

    def __len__(self) -> int:
        return sum(map(len, self._doorbells.values()))
