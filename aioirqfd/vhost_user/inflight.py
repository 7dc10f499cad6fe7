"""The inflight buffer: what a back-end must remember to lose no request when it crashes.

The buffer is shared memory that the front-end keeps while back-ends come and go (vhost-user, section "Inflight I/O
tracking"; protocol feature ``INFLIGHT_SHMFD``). Each queue has a part of it::

    queue   u64 features = 0, u16 version = 1, u16 desc_num, u16 last_batch_head, u16 used_idx, then for each descriptor
    desc    u8 inflight, 5 bytes unused, u16 next, u64 counter

How each moment of a crash is survived:

* fetched but not marked: the request is still in the available ring past ``used_idx`` + requests in flight, and is
  fetched again;
* marked, or linked into a batch, but not in the used ring: it is in flight, and is handed out again, oldest first;
* in the used ring but still marked: the used ring's index differs from ``used_idx`` by the size of that last batch,
  whose requests hang together from ``last_batch_head``: their marks are cleared.

So a request may be executed twice, but is never lost and never answered twice.

How large a queue's part is. A front-end asks for the buffer before it knows its guest's rings: QEMU asks for room for 128
descriptors, and then a firmware runs a ring of 256 and Linux one of 1024. So a buffer of ours has room for :data:`ROOM` at
least, however little was asked for. When it comes back, QEMU describes it by what it has asked for, not by what it got: the
buffer itself is believed instead (:meth:`InflightBuffer.map`).
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self, final

from aioirqfd.vhost_user.messages import Inflight
from aioirqfd.virtio.errors import GuestMemoryError, InflightError
from aioirqfd.virtio.memory import map_shared
from aioirqfd.virtio.ring import MAX_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_QUEUES: Final = 1024
"""The most queues a buffer is made or mapped for."""
ROOM: Final = 1024
"""The descriptors of each queue that a front-end's buffer has room for at least: the largest ring that QEMU's devices have."""
_HEAD: Final = 16
_DESC: Final = 16
_ALIGN: Final = 64
_VERSION: Final = 1
# Places in a queue's part, in units of the view that reads them.
_VERSION_H: Final = 4
_DESC_NUM_H: Final = 5
_LAST_BATCH_HEAD_H: Final = 6
_USED_IDX_H: Final = 7
_WORD: Final = 0xFFFF


def queue_stride(queue_size: int) -> int:
    """Return the bytes that a queue of ``queue_size`` descriptors takes: its part, up to a multiple of 64."""
    return -(-(_HEAD + _DESC * queue_size) // _ALIGN) * _ALIGN


@final
class InflightQueue:
    """One queue's part of the buffer.

    Args:
        view: The part, writable, :func:`queue_stride` bytes, aligned to 8.
        queue_size: How many descriptors it has room for.

    Raises:
        InflightError: It was written by somebody with another layout. A part that is all zeros is new, and is made
            ready.

    Threads: as the queue it belongs to.
    """

    __slots__ = ("_bytes", "_counter", "_quads", "_words", "queue_size", "view")

    def __init__(self, view: memoryview, queue_size: int) -> None:
        self.queue_size = queue_size
        view = view[: _HEAD + _DESC * queue_size]
        self.view = self._bytes = view
        self._words = view.cast("H")
        self._quads = view.cast("Q")
        self._counter = 0
        version = self._words[_VERSION_H]
        if version == 0:
            self._words[_DESC_NUM_H] = queue_size
            self._words[_VERSION_H] = _VERSION
        elif version != _VERSION or self._words[_DESC_NUM_H] != queue_size:
            raise InflightError(
                f"an inflight queue of version {version} and {self._words[_DESC_NUM_H]} descriptors, not {queue_size}"
            )

    def begin(self, head: int) -> None:
        """Mark a request as in flight, before anything is done with it."""
        # The counter first: a mark without its place in the order is worth nothing.
        self._quads[3 + 2 * head] = self._counter
        self._counter += 1
        self._bytes[_HEAD + _DESC * head] = 1

    def link(self, head: int) -> None:
        """Add a request to the batch that is about to go into the used ring."""
        words = self._words
        words[11 + 8 * head] = words[_LAST_BATCH_HEAD_H]
        words[_LAST_BATCH_HEAD_H] = head

    def commit(self, heads: Iterable[int], used_idx: int) -> None:
        """Forget the requests of a batch, once the used ring's index says that they are done.

        Args:
            heads: The batch.
            used_idx: The used ring's index, 16 bits.
        """
        for head in heads:
            self._bytes[_HEAD + _DESC * head] = 0
        self._words[_USED_IDX_H] = used_idx

    def recover(self, used_idx: int) -> list[int]:
        """Bring the part in line with the used ring, and return the heads in flight, oldest first.

        To be called once, before the queue runs. On a new or a cleanly stopped queue it returns nothing.

        Args:
            used_idx: The used ring's index as it is in memory.
        """
        words = self._words
        batch = (used_idx - words[_USED_IDX_H]) & _WORD
        # More than a ring can hold: no crash, but a ring that was set up anew since. The batch list means nothing then.
        if batch <= self.queue_size:
            head = words[_LAST_BATCH_HEAD_H]
            for _ in range(batch):
                if head >= self.queue_size:
                    raise InflightError(f"descriptor {head} in the last batch of {self.queue_size}")
                self._bytes[_HEAD + _DESC * head] = 0
                head = words[11 + 8 * head]
        words[_USED_IDX_H] = used_idx
        marks = self._bytes[_HEAD::_DESC]
        quads = self._quads
        heads = [head for head, mark in enumerate(marks) if mark]
        heads.sort(key=lambda head: quads[3 + 2 * head])
        # Numbered anew from 0, which keeps the order and leaves no counter, forged or not, that could run over.
        for number, head in enumerate(heads):
            quads[3 + 2 * head] = number
        self._counter = len(heads)
        return heads


@final
class InflightBuffer:
    """The whole buffer, for all queues. Owns its fd.

    Made by :meth:`create` for ``GET_INFLIGHT_FD``, by :meth:`map` for ``SET_INFLIGHT_FD``. Views into it, as an
    :class:`InflightQueue` has them, stay good after :meth:`close`.

    Attributes:
        description: Its shape, as it is.
    """

    __slots__ = ("_fd", "_view", "description")

    def __init__(self, fd: int, view: memoryview, description: Inflight) -> None:
        self._fd = fd
        self._view = view
        self.description = description

    @classmethod
    def create(cls, num_queues: int, queue_size: int) -> Self:
        """Make a new buffer, all zeros, whose size can no longer change.

        Args:
            num_queues: 1..1024.
            queue_size: Descriptors of each queue, 1..32768.

        Raises:
            InflightError: Out of range, or the system has no memory for it.
        """
        _check_shape(num_queues, queue_size)
        size = queue_stride(queue_size) * num_queues
        try:
            fd = os.memfd_create("vhost-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise InflightError(f"no inflight buffer: {error}") from error
        try:
            os.ftruncate(fd, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
            view, _ = map_shared(fd, size, 0)
        except (OSError, GuestMemoryError) as error:
            os.close(fd)
            raise InflightError(f"no inflight buffer: {error}") from error
        return cls(fd, view, Inflight(size, 0, num_queues, queue_size))

    @classmethod
    def map(cls, description: Inflight, fd: int, *, require_seal: bool = False) -> Self:
        """Map a buffer that the front-end has kept.

        Its parts may be larger than the description says. What the first queue's part says of itself is believed; where
        it says nothing, because it is new, the parts are as large as there is room for.

        Args:
            description: Its shape, as the front-end says.
            fd: Owned from here on, and closed if this fails.
            require_seal: Refuse a buffer that the front-end may still shrink.

        Raises:
            InflightError: It is too small for its shape, or cannot be mapped.
        """
        try:
            view, shape = _map(description, fd, require_seal=require_seal)
        except GuestMemoryError as error:
            os.close(fd)
            raise InflightError(f"the inflight buffer cannot be mapped: {error}") from error
        except InflightError:
            os.close(fd)
            raise
        return cls(fd, view, shape)

    def fileno(self) -> int:
        """Return the fd, to send with the reply; -1 after :meth:`close`."""
        return self._fd

    def queue(self, index: int) -> InflightQueue:
        """Return a queue's part.

        Raises:
            InflightError: The buffer has no such queue, or the part is malformed.
        """
        if not 0 <= index < self.description.num_queues:
            raise InflightError(f"no queue {index} in an inflight buffer of {self.description.num_queues}")
        stride = queue_stride(self.description.queue_size)
        return InflightQueue(self._view[index * stride : (index + 1) * stride], self.description.queue_size)

    def part(self, index: int, size: int) -> InflightQueue | None:
        """Return the part for a queue whose ring has ``size`` entries; None if there is no room for it.

        Then what is there is of another ring. It is forgotten, not to be taken for a later one's.

        Raises:
            InflightError: The part is malformed.
        """
        if index < self.description.num_queues:
            if size <= self.description.queue_size:
                return self.queue(index)
            self.forget(index)
        return None

    def clear(self, count: int) -> None:
        """Make the first ``count`` queues' parts new: nothing is in flight there, and no ring is to be gone on with."""
        for index in range(min(count, self.description.num_queues)):
            self.forget(index)

    def forget(self, index: int) -> None:
        """Make one queue's part new."""
        stride = queue_stride(self.description.queue_size)
        self._view[index * stride : (index + 1) * stride] = bytes(stride)

    def close(self) -> None:
        """Close the fd. Idempotent; the memory lives as long as a view of it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_shape(num_queues: int, queue_size: int) -> None:
    if not (1 <= num_queues <= MAX_QUEUES and 1 <= queue_size <= MAX_SIZE):
        raise InflightError(f"an inflight buffer of {num_queues} queues of {queue_size} descriptors")


def _map(description: Inflight, fd: int, *, require_seal: bool) -> tuple[memoryview, Inflight]:
    """Map a buffer; return it, and its shape as it is."""
    need = _needed(description)
    view, _ = map_shared(fd, need, description.mmap_offset, require_seal=require_seal)
    size = _queue_size(view.cast("H"), description)
    if size == description.queue_size:
        return view, description
    shape = replace(description, queue_size=size)
    view, _ = map_shared(fd, _needed(shape), description.mmap_offset, require_seal=require_seal)
    return view, shape


def _queue_size(first: memoryview, description: Inflight) -> int:
    """How many descriptors each part has room for; ``first`` is the first queue's, in words."""
    asked = description.queue_size
    if first[_VERSION_H] == _VERSION:
        return max(int(first[_DESC_NUM_H]), asked)
    if first[_VERSION_H]:
        return asked  # somebody else's: to be refused where it is used
    stride = description.mmap_size // description.num_queues // _ALIGN * _ALIGN
    if stride == queue_stride(asked):
        return asked
    room = min((stride - _HEAD) // _DESC, MAX_SIZE)
    return max(asked, 1 << (room.bit_length() - 1))  # a ring's size is a power of 2


def _needed(description: Inflight) -> int:
    _check_shape(description.num_queues, description.queue_size)
    need = queue_stride(description.queue_size) * description.num_queues
    if description.mmap_size < need or description.mmap_offset % 8:
        raise InflightError(f"an inflight buffer needs {need} aligned bytes: {description}")
    return need
