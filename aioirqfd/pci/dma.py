"""The guest's memory as a device reaches it: by addresses that its VMM has mapped, and no others.

A mapping that came with a file descriptor is memory of this process; one without is reached by asking the VMM, through a
:class:`Remote`. Whoever has mapped it may take it away at any time, and waits until nobody uses it any more: that is what the
context manager of :meth:`Dma.view` is for.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from bisect import bisect_right
from typing import TYPE_CHECKING, Final, Protocol, final

from aioirqfd.fence import fence
from aioirqfd.mapping import MappingError, map_shared
from aioirqfd.pci.errors import DmaError, DmaMapError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from aioirqfd.pci.interception import Interception

MAX_MAPS: Final = 65535
"""Mappings at one time, unless it is said otherwise."""
MAX_TRANSFER: Final = 1 << 30
"""Bytes of one :meth:`Dma.read`: a guest says how many, and must not be able to use up this process's memory."""
_LIMIT: Final = 2**64


class DmaWatcher(Protocol):
    """Who keeps views of the guest's memory for longer than a ``with``, and so must know when it changes."""

    def mapped(self) -> None:
        """There is a mapping more."""

    async def unmapped(self, memory: memoryview) -> None:
        """A mapping has gone from the table; its VMM waits until this has let go of the memory."""

    async def gone(self) -> None:
        """All mappings have, with the VMM."""


class Remote(Protocol):
    """Memory of a VMM that gave no file descriptor for it."""

    async def read(self, address: int, size: int) -> bytes:
        """Return what is there. Raises DmaError."""
        ...

    async def write(self, address: int, data: bytes) -> None:
        """Put something there. Raises DmaError."""
        ...


@final
class _Mapping:
    __slots__ = ("address", "end", "leaving", "readable", "size", "users", "view", "writable")

    def __init__(self, address: int, size: int, view: memoryview | None, *, readable: bool, writable: bool) -> None:
        self.address = address
        self.size = size
        self.end = address + size
        self.view = view
        self.readable = readable
        self.writable = writable
        self.users = 0
        self.leaving: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<{self.address:#x}..{self.end - 1:#x}>"


@final
class Dma:
    """A device's way to the guest's memory. Made by what serves the device; a device has it as ``self.dma``.

    Addresses are what a driver puts into the device's registers and rings: bus addresses, 64 bits.

    Args:
        max_maps: How many mappings there may be at one time.

    Attributes:
        watchers: Told of each change.

    Threads:
        :meth:`view`, :meth:`views` and :meth:`fence` from any; the rest the loop's.
    """

    def __init__(self, *, max_maps: int = MAX_MAPS) -> None:
        self.remote: Remote | None = None
        self.interception: Interception | None = None
        self.watchers: list[DmaWatcher] = []
        self.limit: Final = max_maps
        self._lock = threading.Lock()
        self._fence = threading.Lock()
        # Replaced, never changed: other threads look without the lock.
        self._table: tuple[list[int], list[_Mapping]] = ([], [])

    def __repr__(self) -> str:
        return f"<Dma {self._table[1]}>"

    def __len__(self) -> int:
        return len(self._table[1])

    # -- the device's side -------------------------------------------------------------------------------------------

    async def read(self, address: int, size: int) -> bytes:
        """Return a copy of what is there. It may touch several mappings.

        Args:
            address: Where.
            size: Bytes: 0..2**30.

        Raises:
            DmaError: A part of it is not mapped, or not readable; or its VMM would not give it.

        Cancellation:
            Of no effect on memory that came with a file descriptor: there is nothing to wait for.
        """
        if not 0 <= size <= MAX_TRANSFER:
            raise DmaError(f"{size} bytes at {address:#x}: a transfer has 0..{MAX_TRANSFER}")
        if self.interception is not None:
            return await self.interception.dma_read(address, size, lambda: self._read(address, size))
        return await self._read(address, size)

    async def _read(self, address: int, size: int) -> bytes:
        parts: list[bytes] = []
        for one, start, length in self._pieces(address, size, write=False):
            if one.view is not None:
                parts.append(bytes(one.view[start : start + length]))
            else:
                with self._using(one):
                    parts.append(await self._remote(one).read(one.address + start, length))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Put something there. It may touch several mappings.

        Raises:
            DmaError: A part of it is not mapped, or not writable: then nothing was written. Or its VMM would not take it.

        Cancellation:
            As for :meth:`read`; elsewhere a part may have been written.
        """
        if self.interception is not None:
            await self.interception.dma_write(address, bytes(data), lambda data: self._write(address, data))
        else:
            await self._write(address, data)

    async def _write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        at = 0
        view = memoryview(data).cast("B") if not isinstance(data, bytes) else memoryview(data)
        for one, start, length in self._pieces(address, len(view), write=True):
            piece = view[at : at + length]
            at += length
            if one.view is not None:
                one.view[start : start + length] = piece
            else:
                with self._using(one):
                    await self._remote(one).write(one.address + start, bytes(piece))

    @contextlib.contextmanager
    def view(self, address: int, size: int, *, writable: bool = False) -> Generator[memoryview]:
        """Lend a range without a copy: ``with dma.view(address, 4096) as data``.

        It is released at the end. Until then the mapping cannot go, and its VMM waits: be short. Where the mapping is
        going away already, there are no new views.

        Args:
            address: Where.
            size: Bytes, in one mapping.
            writable: To be written to, too.

        Raises:
            DmaError: It is not mapped, not all in one mapping, not allowed, or came without a file descriptor, or a fault may be
                made of the transfer (:mod:`aioirqfd.faults`): use :meth:`read`.
        """
        with self.views(((address, size),), writable=writable) as (lent,):
            yield lent

    def views(
        self, pieces: Iterable[tuple[int, int]], *, writable: bool = False
    ) -> contextlib.AbstractContextManager[list[memoryview[int]]]:
        """Lend several ranges, ``(address, size)`` each, as :meth:`view` lends one: what ``os.preadv`` and ``os.pwritev`` take.

        Raises:
            DmaError: On entering, as of :meth:`view`, for any of them: then none is lent.
        """
        return _Lent(self._lend, self._used, pieces, writable)

    def _lend(self, piece: tuple[int, int], writable: bool) -> tuple[_Mapping, memoryview[int]]:  # noqa: FBT001
        address, size = piece
        found = self._pieces(address, size, write=writable)
        if self.interception is not None:
            raise DmaError(f"{address:#x} is lent to nobody while faults are made: use read() and write()")
        if len(found) != 1:
            raise DmaError(f"{size} bytes at {address:#x} are in {len(found)} mappings: take a view of each")
        ((one, start, length),) = found
        memory = one.view
        if memory is None:
            raise DmaError(f"{address:#x} was mapped without a file descriptor: use read() and write()")
        self._use(one)
        view = memory[start : start + length]
        return one, view if writable else view.toreadonly()

    async def gather(self, pieces: Iterable[tuple[int, int]]) -> bytes:
        """Return what is in several places, ``(address, size)`` each, one after the other. Raises as :meth:`read` does."""
        return b"".join([await self.read(address, size) for address, size in pieces])

    async def scatter(self, pieces: Iterable[tuple[int, int]], data: bytes | bytearray | memoryview) -> int:
        """Put data into several places, ``(address, size)`` each, until it is used up; return how many bytes found room.

        Raises as :meth:`write` does; what was written before stays written.
        """
        view = memoryview(data).cast("B")
        done = 0
        for address, size in pieces:
            if done == len(view):
                break
            piece = view[done : done + size]
            await self.write(address, piece)
            done += len(piece)
        return done

    def fence(self) -> None:
        """Let what was written before be seen by the guest before what is read after it is read: a full memory barrier.

        For a device that tells its driver what to wake it for, and then looks once more; without it both could go to sleep.
        """
        fence(self._fence)

    def mappings(self) -> list[tuple[int, memoryview]]:
        """Address and memory of each mapping that came with a file descriptor, and may be read and written; in order.

        Whoever keeps one of them is a :class:`DmaWatcher`.
        """
        return [
            (one.address, one.view) for one in self._table[1] if one.view is not None and one.readable and one.writable
        ]

    def _pieces(self, address: int, size: int, *, write: bool) -> Sequence[tuple[_Mapping, int, int]]:
        """The parts of a range, all of them checked before the first is used."""
        starts, table = self._table
        index = bisect_right(starts, address) - 1
        if index >= 0:
            one = table[index]
            if size and address + size <= one.end and (one.writable if write else one.readable):
                return ((one, address - one.address, size),)
        found: list[tuple[_Mapping, int, int]] = []
        at, left = address, size
        while left > 0:
            one = table[index] if 0 <= index < len(table) else _NOWHERE
            if not one.address <= at < one.end:
                raise DmaError(f"{size} bytes at {address:#x}: {at:#x} is not mapped")
            if not (one.writable if write else one.readable):
                raise DmaError(f"{size} bytes at {address:#x}: {at:#x} is not {'writable' if write else 'readable'}")
            length = min(left, one.end - at)
            found.append((one, at - one.address, length))
            at += length
            left -= length
            index += 1
        return found

    def _remote(self, one: _Mapping) -> Remote:
        if self.remote is None:
            raise DmaError(f"{one!r} was mapped without a file descriptor, and there is nobody to ask for it")
        return self.remote

    @contextlib.contextmanager
    def _using(self, one: _Mapping) -> Generator[None]:
        self._use(one)
        try:
            yield
        finally:
            self._used(one)

    def _use(self, one: _Mapping) -> None:
        with self._lock:
            if one.leaving is not None:
                raise DmaError(f"{one!r} is being unmapped")
            one.users += 1

    def _used(self, one: _Mapping) -> None:
        with self._lock:
            one.users -= 1
            leaving = None if one.users else one.leaving
        if leaving is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                leaving.get_loop().call_soon_threadsafe(_done, leaving)

    # -- the VMM's side ----------------------------------------------------------------------------------------------

    def map(
        self,
        address: int,
        size: int,
        *,
        fd: int | None = None,
        offset: int = 0,
        memory: memoryview | None = None,
        readable: bool = True,
        writable: bool = True,
        require_seal: bool = False,
    ) -> None:
        """Map a range of the guest's memory.

        Args:
            address: Its first address.
            size: Bytes, at least 1.
            fd: The file that it is a part of; only borrowed. None, and no ``memory``: it is reached by asking its VMM.
            offset: Where in the file.
            memory: The range itself, memory of this process, in place of a file.
            readable: The device may read it.
            writable: The device may write it.
            require_seal: Refuse a file that may still shrink.

        Raises:
            DmaMapError: EEXIST, it overlaps another one; ENOSPC, there are too many; EINVAL, it is no range of addresses, or
                the file cannot be mapped. Nothing was changed.
        """
        starts, table = self._table
        if size < 1 or address < 0 or address + size > _LIMIT:
            raise DmaMapError(errno.EINVAL, f"{size} bytes at {address:#x} are no range of addresses")
        index = bisect_right(starts, address)
        for other in table[max(index - 1, 0) : index + 1]:
            if other.address < address + size and address < other.end:
                raise DmaMapError(errno.EEXIST, f"{size} bytes at {address:#x} overlap {other!r}")
        if len(table) >= self.limit:
            raise DmaMapError(errno.ENOSPC, f"there are {self.limit} mappings already")
        view = memory
        if view is not None and (len(view) != size or fd is not None):
            raise DmaMapError(
                errno.EINVAL, f"{size} bytes at {address:#x}: the memory has {len(view)}, and takes no file"
            )
        if fd is not None:
            try:
                view, _ = map_shared(fd, size, offset, require_seal=require_seal)
            except MappingError as error:
                raise DmaMapError(errno.EINVAL, f"{size} bytes at {address:#x}: {error}") from error
        mapping = _Mapping(address, size, view, readable=readable, writable=writable)
        self._table = ([*starts[:index], address, *starts[index:]], [*table[:index], mapping, *table[index:]])
        for watcher in self.watchers:
            watcher.mapped()

    async def unmap(self, address: int, size: int) -> None:
        """Take a mapping away, once nobody uses it.

        Raises:
            DmaMapError: ENOENT: there is none with this very address and size.

        Cancellation:
            It is gone for the device all the same; only the wait is given up.
        """
        starts, table = self._table
        index = bisect_right(starts, address) - 1
        if index < 0 or (table[index].address, table[index].size) != (address, size):
            raise DmaMapError(errno.ENOENT, f"no mapping of {size} bytes at {address:#x}")
        one = table[index]
        self._table = (starts[:index] + starts[index + 1 :], table[:index] + table[index + 1 :])
        if one.view is not None:
            for watcher in self.watchers:
                await watcher.unmapped(one.view)
        await self._unused(one)

    async def unmap_all(self) -> None:
        """Take all mappings away, once nobody uses them. Cancellation as for :meth:`unmap`."""
        table = self._table[1]
        self._table = ([], [])
        if table:
            for watcher in self.watchers:
                await watcher.gone()
        for one in table:
            await self._unused(one)

    async def _unused(self, one: _Mapping) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            one.leaving = waiting
            if not one.users:
                waiting.set_result(None)
        try:
            await waiting
        finally:
            one.view = None  # a view that is still lent keeps the memory alive by itself


@final
class _Lent:
    """Ranges while they are lent. A class, for a disk lends some with each command, and a generator would cost it twice as much."""

    __slots__ = ("_give_back", "_lend", "_pieces", "_used", "_views", "_writable")

    def __init__(
        self,
        lend: Callable[[tuple[int, int], bool], tuple[_Mapping, memoryview[int]]],
        give_back: Callable[[_Mapping], None],
        pieces: Iterable[tuple[int, int]],
        writable: bool,  # noqa: FBT001  as the method that makes it has it
    ) -> None:
        self._lend = lend
        self._give_back = give_back
        self._pieces = pieces
        self._writable = writable
        self._used: list[_Mapping] = []
        self._views: list[memoryview[int]] = []

    def __enter__(self) -> list[memoryview[int]]:
        lend, writable = self._lend, self._writable
        try:
            for piece in self._pieces:
                one, view = lend(piece, writable)
                self._used.append(one)
                self._views.append(view)
        except BaseException:
            self.__exit__()
            raise
        return self._views

    def __exit__(self, *_: object) -> None:
        try:
            for view in self._views:
                view.release()
        finally:
            for one in self._used:
                self._give_back(one)


_NOWHERE: Final = _Mapping(0, 0, None, readable=False, writable=False)


def _done(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
