"""Following a request's descriptors to its buffers.

Most buffers are in one memory region, the *window*: that of the address that was looked up last. There a buffer is two comparisons and
a slice; elsewhere it is looked up, and the window moves there. What :mod:`aioirqfd.virtio.fast` cannot follow comes here.
"""

from __future__ import annotations

from typing import Final, final

from aioirqfd.virtio import ring
from aioirqfd.virtio.errors import GuestMemoryError, VirtqueueError
from aioirqfd.virtio.memory import GuestMemory, MappedRegion, Region

MAX_INDIRECT: Final = 1024
"""The longest indirect table that is taken, if the queue is not longer itself. Section 2.7.5.3.1 allows no more than the
queue's size, which drivers in use exceed."""
MAX_CHAIN: Final = 1024
"""The most buffers of a chain, as for QEMU's own devices, and as one preadv(2) takes. Section 2.7.5 allows as many as the
queue's size, but then a long queue's requests, which may share their descriptors, would be a thousand times what it holds."""
_MAX_BYTES: Final = 2**32 - 1
_GONE: Final = memoryview(b"")
_UNPACK: Final = ring.DESC.unpack_from
_NEXT: Final = ring.NEXT
_WRITE: Final = ring.WRITE
_INDIRECT: Final = ring.INDIRECT
_PLAIN: Final = ring.NEXT | ring.WRITE
_NOWHERE: Final = MappedRegion(Region(0, 0, 0, 0), _GONE)


@final
class Walker:
    """Follows the descriptors of one ring.

    Args:
        size: Entries of the ring.
        indirect: Whether ``INDIRECT_DESC`` was agreed on.

    Attributes:
        max_table: Bytes of the longest indirect table that is taken; 0: none is.
        window: The region where the last address was that had to be looked up.

    Threads: as the queue's.
    """

    __slots__ = ("_bound", "_desc", "_memory", "_size", "max_table", "window")

    def __init__(self, size: int, *, indirect: bool) -> None:
        longest = max(size, MAX_INDIRECT) if indirect else 0
        self.max_table = ring.DESC_SIZE * longest
        self._bound = range(min(size + longest, 1 + MAX_CHAIN))
        self._size = size
        self.map(_GONE, GuestMemory())

    def map(self, desc: memoryview, memory: GuestMemory) -> None:
        """From here on the descriptor table is this, and the guest's memory that."""
        self._desc = desc
        self._memory = memory
        self.window = _NOWHERE

    def walk(self, head: int) -> tuple[list[memoryview], list[memoryview], int]:
        """Follow a chain from its head: what it gives to read, to write, and the bytes of the latter.

        It is all in one piece, and looks up nothing twice, because it is what a request costs where there is no C.

        Raises:
            VirtqueueError: The chain breaks the rules.
        """
        table = self._desc
        limit = self._size
        direct = True
        region = self.window
        start, window, readable_view, writable_view = region.start, region.size, region.readable, region.writable
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        writable_size = 0
        address, length, flags, following = _UNPACK(table, head * 16)
        # A chain that never comes twice to the same descriptor ends within this bound, so one that does not is looped.
        # Comparisons and products, where masks and shifts would say more, because the interpreter has faster ones.
        for _ in self._bound:
            offset = address - start
            end = offset + length
            if flags > _PLAIN:
                if flags & _INDIRECT:
                    # 2.7.5.3.2: a chain may end in one indirect table, which decides on the rest of it.
                    if flags & _NEXT or not direct:
                        raise VirtqueueError("an indirect descriptor with NEXT, or within an indirect table")
                    if not length or length & 15 or length > self.max_table:
                        raise VirtqueueError(f"an indirect table of {length} bytes, or not agreed on (2.7.5.3.1)")
                    table = readable_view[offset:end] if offset >= 0 and end <= window else self._table(address, length)
                    direct = False
                    limit = length >> 4
                    address, length, flags, following = _UNPACK(table, 0)
                    continue
                flags &= _PLAIN  # bits without a meaning in split rings
            if length == 0:
                raise VirtqueueError("a buffer of no bytes")
            if flags >= _WRITE:
                if offset >= 0 and end <= window:
                    writable.append(writable_view[offset:end])
                else:
                    writable += self._look_up(address, length, write=True)
                    region = self.window
                    start, window = region.start, region.size
                    readable_view, writable_view = region.readable, region.writable
                writable_size += length
                if flags == _WRITE:
                    break
            else:
                if writable:
                    raise VirtqueueError("a buffer to read behind a buffer to write (2.7.4.2)")
                if offset >= 0 and end <= window:
                    readable.append(readable_view[offset:end])
                else:
                    readable += self._look_up(address, length, write=False)
                    region = self.window
                    start, window = region.start, region.size
                    readable_view, writable_view = region.readable, region.writable
                if flags == 0:
                    break
            if following >= limit:
                raise VirtqueueError(f"descriptor {following} in a table of {limit} (2.7.5)")
            address, length, flags, following = _UNPACK(table, following * 16)
        else:
            raise VirtqueueError(f"a looped chain (2.7.5.2), or one of more than {len(self._bound)} descriptors")
        if writable_size > _MAX_BYTES:
            raise VirtqueueError("a chain with more than 2**32-1 bytes to write: more than the used ring can tell of")
        return readable, writable, writable_size

    def _look_up(self, address: int, length: int, *, write: bool) -> list[memoryview]:
        """Find a buffer that is not in the window, and move the window there."""
        memory = self._memory
        try:
            views = memory.writable(address, length) if write else memory.readable(address, length)
            self.window = memory.find(address)
        except GuestMemoryError as error:
            raise VirtqueueError(str(error)) from error
        return views

    def _table(self, address: int, length: int) -> memoryview:
        """Find an indirect table that is not in the window; a copy, should it cross regions."""
        try:
            views = self._memory.readable(address, length)
        except GuestMemoryError as error:
            raise VirtqueueError(str(error)) from error
        return views[0] if len(views) == 1 else memoryview(b"".join(views))
