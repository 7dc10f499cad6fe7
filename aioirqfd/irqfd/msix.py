"""MSI-X: a device's vectors, each an eventfd, a message, a mask bit and a pending bit.

What the guest sees is the table and the pending-bit array of the PCI specification (PCI Local Bus 3.0, section 6.8.2). What
is behind it: an eventfd for each vector, and, once the guest has unmasked it for the first time, a gsi that is routed to the
vector's message and an irqfd between the two.

A masked vector loses nothing and hides nothing. While it has an irqfd, that is masked and what is signalled stays pending in
it; while it has none, the signals stay in the eventfd. The pending bit looks at both, so it is right also for what another
thread or process has just written (the kernel's irqfds bypass it). Changing a message never passes through a state without a
route, in which the kernel would drop signals (row W08): the order is always mask, deassign, route, assign, unmask.
"""

# pyright: reportPrivateUsage=false
# (an underscore on an IrqManager says "for this package")
from __future__ import annotations

import contextlib
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Self, final

from aioirqfd import nodes
from aioirqfd.counter import fdinfo
from aioirqfd.errors import ClosedError, EventFdBusyError, RoutingError, SnapshotError, WouldBlock
from aioirqfd.integers import plain
from aioirqfd.irqfd import manager_node, msix_node, msix_snapshot
from aioirqfd.irqfd.identity import check_free, close_all, eventfd_and_id
from aioirqfd.irqfd.interrupt import Msi
from aioirqfd.irqfd.msix_bindings import VectorBindings
from aioirqfd.irqfd.msix_vector import MASK_BIT, Held, MsixVector
from aioirqfd.uncopied import refusal

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from aioirqfd.eventfd import EventFd
    from aioirqfd.irqfd.manager import IrqManager

MAX_VECTORS: Final = 2048
"""Vectors a function may have: the table-size field has eleven bits."""
_ENTRY: Final = 16
_PAGE: Final = 4096
_SIZES: Final = frozenset({4, 8})
_U32_MASK: Final = 2**32 - 1
_PBA_WORD: Final = 64


@dataclass(frozen=True, slots=True)
class MsixStatistics:
    """Counts of a :class:`MsixTable`, as they are now.

    Attributes:
        vectors: The table's size.
        unmasked: Vectors whose interrupts are injected.
        assigned: Vectors that have a gsi and an irqfd, masked ones too.
        waiting: Vectors that are unmasked, but for which there was no gsi.
    """

    vectors: int
    unmasked: int
    assigned: int
    waiting: int


@final
class MsixTable:
    """The MSI-X table and pending-bit array of one device function.

    Made disabled, with every vector masked, as after a reset; the device may signal all the same: it stays pending.

    Args:
        manager: Injects. Its routes of the gsis that the table takes from ``manager.gsis`` are the table's: change the others
            with :meth:`IrqManager.set_route`, or keep these when you replace the whole table.
        vectors: 1..2048.
        eventfds: An eventfd for each vector that has one of its own; they stay the caller's. An int is an fd, which may be
            closed at any time: the table has a reference (a dup) of its own. The others are made by the table when they are
            first asked for, so a vector that is not used costs no fd.
        devid: The requester id that messages carry, where the interrupt controller wants one; else None.
        pba_offset: Where the pending-bit array begins, in bytes from the start of the table: a multiple of 8 behind the table.
            Without it, the next 4 KiB page.
        name: The device's name, by the field ``device`` of its events, which say the vector, too; and its own in
            :mod:`aioirqfd.inspect`, where without one it is a number.

    Raises:
        ValueError: A number is out of range, the name cannot be part of a path, or an eventfd is for a vector that is not there.
        ClosedError: EBADF: an eventfd is not open.
        EventFdInvalidError: EINVAL: an fd is no eventfd.
        EventFdBusyError: EBUSY: one eventfd for two vectors: it can interrupt by one alone (row I12).

    An async context manager; :meth:`aclose` deassigns everything and gives the gsis back. Close it before the manager.

    Whatever the guest writes raises nothing in the device's path. An access that the specification leaves undefined is
    ignored, a message that cannot be sent leaves its vector pending until there is a better one, and both are traced.

    Threads:
        The loop's thread, as for the manager; WrongLoopError from another one, as from another loop. The eventfds are
        signalled from anywhere.
    """

    ENABLE: ClassVar = 0x8000
    """Bit of the message-control register: MSI-X is enabled."""
    FUNCTION_MASK: ClassVar = 0x4000
    """Bit of the message-control register: every vector is masked."""

    __slots__ = (
        "__weakref__",
        "_bindings",
        "_closed",
        "_devid",
        "_enabled",
        "_function_mask",
        "_irqfds",
        "_pba_offset",
        "_vectors",
    )

    def __init__(
        self,
        manager: IrqManager,
        *,
        vectors: int,
        eventfds: Mapping[int, EventFd | int] | None = None,
        devid: int | None = None,
        pba_offset: int | None = None,
        name: str | None = None,
    ) -> None:
        name = nodes.check_name(name, "an MSI-X table")
        count = plain(vectors, MAX_VECTORS + 1)
        if not count:
            raise ValueError(f"an MSI-X table has 1..{MAX_VECTORS} vectors, not {vectors!r}")
        table_end = count * _ENTRY
        start = -(-table_end // _PAGE) * _PAGE if pba_offset is None else plain(pba_offset, 2**64)
        if start is None or start < table_end or start % 8:
            raise ValueError(
                f"the pending-bit array begins at a multiple of 8 from {table_end} on, not at {pba_offset!r}"
            )
        irqfds = self._irqfds = manager._irqfds
        self._devid = Msi(0, 0, devid).devid
        self._pba_offset = start
        self._enabled = self._function_mask = self._closed = False
        self._vectors = tuple(MsixVector(number) for number in range(count))
        self._bindings = VectorBindings(
            irqfds, self._devid, self._wanted, self._stop, {} if name is None else {"device": name}
        )
        references: list[EventFd] = []
        try:
            self._put_eventfds(eventfds or {}, references)
        except BaseException:
            close_all(references)
            raise
        nodes.add("msix", self, _node, name=name, loop=_loop)
        irqfds.delivery.vectors[id(self)] = self

    def _put_eventfds(self, eventfds: Mapping[int, EventFd | int], references: list[EventFd]) -> None:
        taken: dict[int, int] = {}
        for number, eventfd in eventfds.items():
            vector = self._vector(number)
            held, eventfd_id = eventfd_and_id(eventfd, references)
            vector.held = Held(held, eventfd_id, reference=held is not eventfd)
            if taken.setdefault(vector.eventfd_id, number) != number:
                raise EventFdBusyError(
                    f"one eventfd for the vectors {taken[vector.eventfd_id]} and {number}: give each vector one of its own"
                )

    def __repr__(self) -> str:
        state = "closed" if self._closed else "enabled" if self._enabled else "disabled"
        return f"<MsixTable vectors={len(self._vectors)} {state}{' masked' if self._function_mask else ''}>"

    def __len__(self) -> int:
        return len(self._vectors)

    def __reduce__(self) -> tuple[object, ...]:
        raise refusal(self, "Take its snapshot() while the manager is paused, and restore() that into another table.")

    # -- life --------------------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Deassign every vector, give the gsis back, and close the eventfds that the table made; idempotent.

        What is pending stays in the eventfds that are the caller's, but for what a snapshot of the still paused manager took.

        Cancellation:
            Everything is closed all the same; only the wait for what is being injected is given up.
        """
        self._closed = True
        nodes.discard(self)
        self._irqfds.delivery.vectors.pop(id(self), None)
        await self._bindings.aclose(self._vectors)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    # -- the device's side -------------------------------------------------------------------------------------------

    def eventfd(self, vector: int, /) -> EventFd:
        """The eventfd whose signals are this vector's interrupts; made now if it has none.

        Raises:
            ValueError: There is no such vector.
            ClosedError: The table is closed.
            OSError: EMFILE and the like.
        """
        entry = self._vector(vector)
        if self._closed:
            raise ClosedError("the MSI-X table is closed: make another one")
        eventfd = entry.eventfd
        if eventfd is None:
            self._check_here()
            entry.held = Held.made()
            self._bindings.update(entry)
            eventfd = entry.eventfd
            assert eventfd is not None
        return eventfd

    def signal(self, vector: int, /) -> None:
        """Interrupt: injected if the vector is unmasked, else pending. Raises as :meth:`eventfd` does."""
        self.eventfd(vector).signal()

    async def set_eventfd(self, vector: int, eventfd: EventFd | int, /) -> None:
        """Give a vector another eventfd, while it is in use; returns once nothing of the old one is being injected.

        What is pending in an eventfd that the table made moves along; the caller's own keeps it. The one that the vector has
        already stays as it is.

        Raises:
            ValueError: There is no such vector.
            ClosedError: EBADF: the table or the eventfd is closed.
            EventFdInvalidError: EINVAL: the fd is no eventfd.
            EventFdBusyError: EBUSY: it is another vector's, or bound by another irqfd (row I12). Whatever is raised, also if it
                has become so while we waited, the vector has the one that it had.

        Cancellation:
            The vector has the other one all the same; what the table's own holds follows when its injection is over.
        """
        entry = self._vector(vector)
        if self._closed:
            raise ClosedError("the MSI-X table is closed: make another one")
        references: list[EventFd] = []
        try:
            new, new_id = eventfd_and_id(eventfd, references)
            if new is entry.eventfd:
                return
            self._check_here()
            self._check_new(entry, new, new_id)
        except BaseException:
            close_all(references)
            raise
        await self._bindings.replace(entry, new, new_id, reference=new is not eventfd)

    def _check_new(self, entry: MsixVector, new: EventFd, new_id: int) -> None:
        for other in self._vectors:
            has = other.eventfd_id == new_id and other is not entry
            if has and other.eventfd is not None and not other.eventfd.closed:
                raise EventFdBusyError(
                    f"{new!r} is the eventfd of vector {other.number}: give each vector one of its own"
                )
        if not (entry.bound and new_id == entry.eventfd_id):
            check_free(new, new_id, self._irqfds.poller)

    async def set_message(self, vector: int, /, *, address: int, data: int) -> None:
        """Change a vector's message, while signals arrive, as a barrier: after it returns, nothing is sent to the old one.

        A guest's own writes are no barrier: what the sink was already taking when they came is still delivered by them.

        Args:
            vector: Which one; its mask bit is left as it is.
            address: 64-bit message address, a multiple of 4.
            data: 32-bit message data.

        Raises:
            ValueError: There is no such vector.
            RoutingError: EINVAL: the message is out of range, or its address is no multiple of 4; nothing was changed.

        Cancellation:
            The message is changed all the same; only the wait is given up.
        """
        entry = self._vector(vector)
        self._check_here()
        message = Msi(address, data, self._devid)
        if message.address % 4:
            raise RoutingError(f"an MSI-X message address is a multiple of 4, not {message.address:#x}")
        irqfd = entry.irqfd
        entry.changing += 1
        try:
            self._bindings.update(entry)
            entry.address, entry.data = message.address, message.data
            if irqfd is not None and irqfd.active:
                await self._irqfds.backpressure.flush(irqfd.work)
        finally:
            entry.changing -= 1
            self._bindings.update(entry)

    # -- the guest's side: the message-control register --------------------------------------------------------------

    @property
    def control(self) -> int:
        """The 16-bit message-control register: enable, function mask, and the table size less one."""
        enabled = self.ENABLE if self._enabled else 0
        return enabled | (self.FUNCTION_MASK if self._function_mask else 0) | (len(self._vectors) - 1)

    def write_control(self, value: int, /) -> None:
        """The guest writes the message-control register; the size field is read-only.

        Disabling masks every vector and gives its gsi back. Interrupts stay pending meanwhile.
        """
        self._check_here()
        enabled, function_mask = bool(value & self.ENABLE), bool(value & self.FUNCTION_MASK)
        if (enabled, function_mask) == (self._enabled, self._function_mask):
            return
        kind = enabled, function_mask
        self._bindings.tell("msix_control", kind=kind, enabled=enabled, function_mask=function_mask)
        self._enabled, self._function_mask = enabled, function_mask
        for vector in self._vectors:
            self._bindings.update(vector)
        if not enabled:
            self._bindings.retire(self._vectors)

    @property
    def enabled(self) -> bool:
        """Whether MSI-X is enabled."""
        return self._enabled

    @property
    def function_mask(self) -> bool:
        """Whether every vector is masked."""
        return self._function_mask

    def reset(self) -> None:
        """Registers as after a reset: disabled, every vector masked, messages zero. Signals stay pending.

        So for a driver that gives MSI-X up while its device goes on. See :meth:`reset_function` for a reset of the device.
        """
        self._check_here()
        for vector in self._vectors:
            vector.address = vector.data = 0
            vector.control = MASK_BIT
        self.write_control(0)

    async def reset_function(self) -> int:
        """A reset of the function (FLR): as :meth:`reset`, and the pending-bit array is clear.

        The one place where interrupts are thrown away, because a guest that resets a device asks for that: what the eventfds
        hold, and what is signalled before this returns. What the sink was already taking is still delivered, before it returns.

        Returns:
            How many signals were thrown away.

        Cancellation:
            The registers are reset all the same; signals may stay pending.
        """
        irqfds = [vector.irqfd for vector in self._vectors if vector.irqfd is not None]
        self.reset()
        self._bindings.retire(self._vectors)
        for irqfd in irqfds:
            await irqfd.drained()
        for vector in self._vectors:
            vector.captured = None
        return sum(_emptied(vector.eventfd) for vector in self._vectors if vector.eventfd is not None)

    # -- the guest's side: table and pending-bit array ---------------------------------------------------------------

    @property
    def pba_offset(self) -> int:
        """Where the pending-bit array begins."""
        return self._pba_offset

    @property
    def size(self) -> int:
        """Bytes from the start of the table to the end of the pending-bit array."""
        return self._pba_offset + -(-len(self._vectors) // _PBA_WORD) * 8

    def read(self, offset: int, size: int, /) -> int:
        """The guest reads 4 or 8 bytes, aligned to their size; anything else gives 0.

        Args:
            offset: In bytes from the table's start; the pending-bit array is at ``pba_offset``.
            size: 4 or 8.

        Returns:
            The little-endian value, as the guest gets it.

        Raises:
            WrongLoopError: The pending bits are asked for elsewhere than on the manager's loop.
        """
        offset, size = operator.index(offset), operator.index(size)
        if size not in _SIZES or offset % size or not 0 <= offset <= self.size - size:
            self._ignore(offset, size, write=False)
            return 0
        value = self._read_dword(offset)
        return value | self._read_dword(offset + 4) << 32 if size == 8 else value

    def write(self, offset: int, value: int, size: int, /) -> None:
        """The guest writes 4 or 8 bytes, aligned to their size; anything else, and the pending-bit array, is left alone.

        Eight bytes take effect at once: an address or, with the mask bit, a message is never seen half-written.

        Args:
            offset: In bytes from the table's start.
            value: The little-endian value, 0..2**64-1; of one for 4 bytes the upper half is ignored.
            size: 4 or 8.

        Raises:
            WrongLoopError: Not called on the manager's loop.
        """
        offset, value, size = operator.index(offset), operator.index(value), operator.index(size)
        if size not in _SIZES or offset % size or not 0 <= offset <= len(self._vectors) * _ENTRY - size:
            self._ignore(offset, size, write=True)
            return
        self._check_here()
        vector = self._vectors[offset // _ENTRY]
        for dword in range(size // 4):
            vector.write(offset % _ENTRY // 4 + dword, value >> 32 * dword & _U32_MASK)
        self._bindings.update(vector)

    def _ignore(self, offset: int, size: int, *, write: bool) -> None:
        aligned = size in _SIZES and offset % size == 0
        kind = write, size if size in _SIZES else None, aligned
        self._bindings.tell("msix_access_ignored", kind=kind, write=write, offset=offset, size=size)

    def _read_dword(self, offset: int) -> int:
        if offset < len(self._vectors) * _ENTRY:
            return self._vectors[offset // _ENTRY].read(offset % _ENTRY // 4)
        if offset < self._pba_offset:
            return 0
        self._check_here()
        first = (offset - self._pba_offset) * 8
        vectors = self._vectors[first : first + 32]
        return sum(vector.pending << bit for bit, vector in enumerate(vectors))

    # -- the same, for a device that has its own idea of registers ---------------------------------------------------

    def mask(self, vector: int, /) -> None:
        """Set the vector's mask bit. Raises ValueError if there is no such vector."""
        self._check_here()
        entry = self._vector(vector)
        entry.control |= MASK_BIT
        self._bindings.update(entry)

    def unmask(self, vector: int, /) -> None:
        """Clear the vector's mask bit. Raises ValueError if there is no such vector."""
        self._check_here()
        entry = self._vector(vector)
        entry.control &= ~MASK_BIT
        self._bindings.update(entry)

    def masked(self, vector: int, /) -> bool:
        """The vector's mask bit. Raises ValueError if there is no such vector."""
        return bool(self._vector(vector).control & MASK_BIT)

    def pending(self, vector: int, /) -> bool:
        """The vector's pending bit: an interrupt is owed, wherever its signal is. Raises ValueError if there is no such vector."""
        self._check_here()
        return self._vector(vector).pending

    def gsi(self, vector: int, /) -> int | None:
        """The gsi the vector has, if it has one now. Raises ValueError if there is no such vector."""
        return self._vector(vector).gsi

    def statistics(self) -> MsixStatistics:
        """The counts as they are now; looks at every vector."""
        return MsixStatistics(
            vectors=len(self._vectors),
            unmasked=sum(vector.active for vector in self._vectors),
            assigned=sum(vector.gsi is not None for vector in self._vectors),
            waiting=sum(vector.starved for vector in self._vectors),
        )

    # -- snapshot ----------------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, object]:
        """The table as a JSON-able dict: registers, gsis, and what is in eventfds without an irqfd.

        What the irqfds hold is in the manager's own snapshot; take both while it is paused.

        Raises:
            SnapshotError: The manager is not paused.
        """
        return msix_snapshot.take(self._irqfds, self._vectors, self._enabled, self._function_mask)

    def restore(self, state: Mapping[str, object]) -> None:
        """Put a snapshot's state into this table, which must not have been enabled, before the manager restores its own.

        Raises:
            SnapshotError: The state is malformed, of another version or size, the manager is not paused, or a gsi or eventfd
                is in use already. Nothing was changed.
        """
        if self._closed or self._enabled or any(vector.gsi is not None for vector in self._vectors):
            raise SnapshotError("a snapshot is restored into a table that is open and was not used")
        checked = msix_snapshot.check(self._irqfds, self._vectors, state)
        msix_snapshot.put(self._irqfds, self._vectors, checked, self._devid, self._bindings.idle)
        self._enabled, self._function_mask = checked.enabled, checked.function_mask
        for vector in self._vectors:
            self._bindings.update(vector)

    def _check_here(self) -> None:
        with contextlib.suppress(ClosedError):
            self._irqfds.check_here()

    # -- vectors -----------------------------------------------------------------------------------------------------

    def _vector(self, number: int) -> MsixVector:
        found = plain(number, len(self._vectors))
        if found is None:
            raise ValueError(f"vectors are 0..{len(self._vectors) - 1}, not {number!r}")
        return self._vectors[found]

    def _wanted(self, vector: MsixVector) -> bool:
        enabled = self._enabled and not self._function_mask and not self._closed
        return enabled and not vector.control & MASK_BIT and not vector.changing and vector.eventfd is not None

    def _stop(self, vector: MsixVector) -> str | None:
        return msix_node.stop(vector, enabled=self._enabled, function_mask=self._function_mask)

    def waiting(self) -> Iterator[tuple[str, str]]:
        """Of each vector that is signalled and has no irqfd, its name, and what it waits for.

        :meta private:
        """
        for vector in self._vectors:
            if not vector.bound and vector.pending:
                yield self._bindings.name(vector), self._stop(vector) or "it is just being made active"


def _node(table: MsixTable) -> Mapping[str, object]:
    bindings = table._bindings
    state = {"enabled": table._enabled, "function_mask": table._function_mask}
    return msix_node.of_table(table._irqfds, table._vectors, state, stop=table._stop, name=bindings.name)


def _loop(table: MsixTable) -> asyncio.AbstractEventLoop | None:
    return manager_node.loop_of(table._irqfds)


def _emptied(eventfd: EventFd) -> int:
    """Take what the eventfd holds, of a semaphore one by one; what was there."""
    if eventfd.closed or eventfd._binding is not None:
        return 0
    total = 0
    info = fdinfo(eventfd.fileno()) if eventfd.semaphore else None
    for _ in range(min(info[0], _U32_MASK) if info is not None else 1):
        try:
            total += eventfd.read_nowait()
        except WouldBlock:
            break
    return total
