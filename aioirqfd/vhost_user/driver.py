"""The other side, for tests of devices: guest memory of one's own, and a driver for a queue in it.

A device is tested without a guest: :class:`DriverMemory` is the guest's RAM, :class:`DriverQueue` puts requests into a
ring there and takes the answers out, and a ``aioirqfd.virtio.virtqueue.VirtQueue``, or a whole back-end over
a socket, serves it.

::

    with DriverMemory(1 << 20) as ram:
        driver = DriverQueue(ram, 8)
        memory = GuestMemory.map([ram.region], [os.dup(ram.fileno())])
        queue = VirtQueue(memory, 8, driver.address(0), features=driver.features)
        driver.request([b"ping"], [16])
        chain = queue.pop()
        queue.push(chain, chain.write(chain.read().upper()))
        assert driver.collect()[0].data == b"PING"
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, final

from aioirqfd import fence
from aioirqfd.vhost_user.errors import VhostUserError
from aioirqfd.vhost_user.messages import MemoryRegion, VringAddr
from aioirqfd.virtio import ring
from aioirqfd.virtio.features import VirtioFeature

if TYPE_CHECKING:
    from collections.abc import Sequence

USER_BASE: Final = 0x7F00_0000_0000
"""Where the front-end pretends to have the memory mapped: far from the guest's addresses, so that a mix-up shows."""
_WORD: Final = 0xFFFF
_STEP: Final = 16


class DriverError(VhostUserError):
    """The driver's side cannot go on: no room, or the device gave back what it was never given."""


@final
class DriverMemory:
    """A piece of guest RAM in a sealed memfd, with a simple allocator.

    Args:
        size: Bytes, a multiple of the page size.
        guest_address: Where the guest sees it.
        user_address: Where the front-end says it has it.
        mmap_offset: Where it begins in the fd.
    """

    __slots__ = ("_fd", "_free", "_top", "region", "view")

    def __init__(
        self, size: int, *, guest_address: int = 0, user_address: int = USER_BASE, mmap_offset: int = 0
    ) -> None:
        self._fd = os.memfd_create("driver-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._fd, mmap_offset + size)
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.region = MemoryRegion(guest_address, size, user_address, mmap_offset)
        self.view = memoryview(mmap.mmap(self._fd, mmap_offset + size))[mmap_offset:]
        self._top = 0
        self._free: dict[int, list[int]] = {}

    def fileno(self) -> int:
        """Return the memfd; give away a ``dup`` of it."""
        return self._fd

    def allocate(self, size: int, *, align: int = _STEP) -> int:
        """Return the guest address of ``size`` unused bytes.

        Raises:
            DriverError: There are no more.
        """
        size = -(-max(size, 1) // _STEP) * _STEP
        free = self._free.get(size)
        if free and align <= _STEP:
            return free.pop()
        offset = -(-self._top // align) * align
        if offset + size > self.region.size:
            raise DriverError(f"no {size} bytes left of {self.region.size}")
        self._top = offset + size
        return self.region.guest_address + offset

    def release(self, address: int, size: int) -> None:
        """Take an allocation back."""
        size = -(-max(size, 1) // _STEP) * _STEP
        self._free.setdefault(size, []).append(address)

    def at(self, address: int, size: int) -> memoryview:
        """Return a writable view of a guest-physical range, which must be in here."""
        offset = address - self.region.guest_address
        if not 0 <= offset <= self.region.size - size:
            raise DriverError(f"{size} bytes at {address:#x} are not in here")
        return self.view[offset : offset + size]

    def user(self, address: int) -> int:
        """Return the front-end's address for a guest address."""
        return address - self.region.guest_address + self.region.user_address

    def close(self) -> None:
        """Close the fd. Idempotent; the memory lives as long as a view of it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            self.close()


@final
@dataclass(frozen=True, slots=True)
class Used:
    """An answer that the driver has taken out of the used ring.

    Args:
        head: The request's number, as :meth:`DriverQueue.request` returned it.
        written: How many bytes the device says it has written.
        data: These bytes.
    """

    head: int
    written: int
    data: bytes


@final
@dataclass(frozen=True, slots=True)
class _Sent:
    descriptors: tuple[int, ...]
    buffers: tuple[tuple[int, int], ...]
    writable: tuple[tuple[int, int], ...]
    tables: tuple[tuple[int, int], ...]


@final
class DriverQueue:
    """The driver's side of a split virtqueue, as a guest has it.

    Args:
        memory: Where the ring and the buffers go.
        size: Entries, a power of 2.
        event_idx: Use ``EVENT_IDX``.
        indirect: Put each request into an indirect table of its own.

    Raises:
        DriverError: The memory is too small.
    """

    __slots__ = (
        "_avail",
        "_collected",
        "_desc",
        "_event_idx",
        "_free",
        "_indirect",
        "_kicked",
        "_lock",
        "_next",
        "_places",
        "_sent",
        "_used",
        "_used_words",
        "memory",
        "size",
    )

    def __init__(self, memory: DriverMemory, size: int, *, event_idx: bool = True, indirect: bool = False) -> None:
        self.memory = memory
        self.size = size
        self._event_idx = event_idx
        self._indirect = indirect
        desc = memory.allocate(ring.DESC_SIZE * size)
        avail = memory.allocate(ring.avail_size(size))
        used = memory.allocate(ring.used_size(size))
        self._places = (desc, avail, used)
        self._desc = memory.at(desc, ring.DESC_SIZE * size)
        self._avail = memory.at(avail, ring.avail_size(size)).cast("H")
        self._used = memory.at(used, ring.used_size(size))
        self._used_words = self._used.cast("H")
        self._lock = threading.Lock()
        self._free = list(range(size - 1, -1, -1))
        self._sent: dict[int, _Sent] = {}
        self._next = self._kicked = self._collected = 0

    @property
    def features(self) -> VirtioFeature:
        """The feature bits that this queue relies on."""
        features = VirtioFeature.VERSION_1
        if self._event_idx:
            features |= VirtioFeature.EVENT_IDX
        if self._indirect:
            features |= VirtioFeature.INDIRECT_DESC
        return features

    @property
    def outstanding(self) -> int:
        """How many requests the device has."""
        return len(self._sent)

    def address(self, index: int) -> VringAddr:
        """Return the ``SET_VRING_ADDR`` payload for this ring as queue ``index``."""
        desc, avail, used = (self.memory.user(place) for place in self._places)
        return VringAddr(index, 0, descriptor=desc, used=used, available=avail)

    def request(self, readable: Sequence[bytes], writable: Sequence[int] = (), *, publish: bool = True) -> int:
        """Put a request into the ring.

        Args:
            readable: For each buffer that the device may read, its bytes.
            writable: For each buffer that the device may write, its size.
            publish: Let the device see it now; else with the next one, or :meth:`publish`.

        Returns:
            The request's number.

        Raises:
            DriverError: No descriptor or memory is free.
        """
        count = len(readable) + len(writable)
        need = 1 if self._indirect else count
        if not count or need > len(self._free):
            raise DriverError(f"{need} descriptors wanted, {len(self._free)} free")
        memory = self.memory
        buffers = [(memory.allocate(len(data)), len(data)) for data in readable]
        for (address, size), data in zip(buffers, readable, strict=True):
            memory.at(address, size)[:] = data
        answers = [(memory.allocate(size), size) for size in writable]
        entries = [(address, size, 0) for address, size in buffers]
        entries += [(address, size, ring.WRITE) for address, size in answers]
        tables: tuple[tuple[int, int], ...] = ()
        if self._indirect:
            size = ring.DESC_SIZE * count
            place = memory.allocate(size)
            tables = ((place, size),)
            self._fill(memory.at(place, size), entries, list(range(count)))
            entries = [(place, size, ring.INDIRECT)]
        descriptors = [self._free.pop() for _ in entries]
        self._fill(self._desc, entries, descriptors)
        head = descriptors[0]
        self._sent[head] = _Sent(tuple(descriptors), (*buffers, *answers), tuple(answers), tables)
        self.offer(head)
        if publish:
            self.publish()
        return head

    def descriptor(self, index: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        """Write any descriptor, however wrong: for tests of a device against hostile guests."""
        ring.DESC.pack_into(self._desc, ring.DESC_SIZE * index, address, length, flags, following)

    def offer(self, head: int) -> None:
        """Put any head into the available ring, not published yet."""
        self._avail[2 + self._next % self.size] = head & _WORD
        self._next = (self._next + 1) & _WORD

    def publish(self, index: int | None = None) -> None:
        """Let the device see all that was offered; or write any index, however wrong."""
        if not fence.ORDERED:
            fence.fence(self._lock)
        self._avail[ring.IDX] = self._next if index is None else index & _WORD

    def kick_needed(self) -> bool:
        """Whether the device wants a kick for what was published since this was last asked."""
        new = (self._next - self._kicked) & _WORD
        if not new:
            return False
        self._kicked = self._next
        fence.fence(self._lock)
        if self._event_idx:
            return (self._next - self._used_words[ring.avail_event_word(self.size)] - 1) & _WORD < new
        return not self._used_words[0] & ring.NO_NOTIFY

    def collect(self) -> list[Used]:
        """Take all answers out of the used ring, oldest first.

        Raises:
            DriverError: The device gave back a request that it did not have, or claims more bytes than there was room
                for.
        """
        answers: list[Used] = []
        while self._collected != self._used_words[ring.IDX]:
            if not fence.ORDERED:
                fence.fence(self._lock)
            head, written = ring.USED_ELEM.unpack_from(self._used, 4 + 8 * (self._collected % self.size))
            self._collected = (self._collected + 1) & _WORD
            sent = self._sent.pop(head, None)
            if sent is None or written > sum(size for _, size in sent.writable):
                raise DriverError(f"the device gave back chain {head} with {written} bytes")
            data = b"".join(bytes(self.memory.at(address, size)) for address, size in sent.writable)[:written]
            self._free.extend(reversed(sent.descriptors))
            for address, size in (*sent.buffers, *sent.tables):
                self.memory.release(address, size)
            answers.append(Used(head, written, data))
        return answers

    def enable_calls(self) -> bool:
        """Ask for a call with the next answer; return whether there is one already, for which none may come."""
        if self._event_idx:
            self._avail[ring.used_event_word(self.size)] = self._collected
        else:
            self._avail[0] = 0
        fence.fence(self._lock)
        return self._used_words[ring.IDX] != self._collected

    def disable_calls(self) -> None:
        """Ask for no calls. With ``EVENT_IDX`` this means: none until the index has gone all the way round."""
        if self._event_idx:
            self._avail[ring.used_event_word(self.size)] = (self._collected - 1) & _WORD
        else:
            self._avail[0] = ring.NO_INTERRUPT

    @staticmethod
    def _fill(table: memoryview, entries: Sequence[tuple[int, int, int]], places: Sequence[int]) -> None:
        for number, (address, size, flags) in enumerate(entries):
            last = number + 1 == len(entries)
            following = 0 if last else places[number + 1]
            ring.DESC.pack_into(
                table, ring.DESC_SIZE * places[number], address, size, flags | (0 if last else ring.NEXT), following
            )
