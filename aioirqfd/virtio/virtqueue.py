"""A split virtqueue, the device's side: requests out of the guest's memory, and answers back.

Nothing that the driver writes is believed. Every index, length and address is read once, checked, and used from the copy. What breaks the
rules raises :class:`VirtqueueError` and stops the queue for good: it lets go of the guest's memory and every later call raises
:class:`VirtqueueStoppedError`. To start again, make a new object. Source: virtio 1.2, section 2.7; each check names its paragraph.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Final, final

from aioirqfd import fence
from aioirqfd.virtio import ring
from aioirqfd.virtio.chain import Chain
from aioirqfd.virtio.errors import ChainError, GuestMemoryError, InflightError, VirtqueueError, VirtqueueStoppedError
from aioirqfd.virtio.fast import Transfer, walk
from aioirqfd.virtio.features import VirtioFeature
from aioirqfd.virtio.memory import GuestMemory
from aioirqfd.virtio.served import BATCH, BATCH_BYTES, CALL, COUNT, RESTED
from aioirqfd.virtio.statistics import VirtqueueStatistics
from aioirqfd.virtio.walker import Walker

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aioirqfd.virtio.blockfile import BlockFile
    from aioirqfd.virtio.parts import InflightPart, RingAddress

_WORD: Final = 0xFFFF
_HIGH: Final = 2**32
_GONE: Final = memoryview(b"")
_IDX: Final = ring.IDX
_BLK_FLUSH: Final = 1 << 9  # VIRTIO_BLK_F_FLUSH: without it, no write may stay in the page cache


@final
class VirtQueue:
    """One run of a ring: from its start to its stop.

    Args:
        memory: The guest's memory.
        size: Entries, a power of 2 in 1..32768.
        address: Where the ring lies, in the front-end's addresses.
        base: The available ring's index to begin with (``SET_VRING_BASE``).
        features: The features agreed on; ``EVENT_IDX`` and ``INDIRECT_DESC`` count here, and with a ``file`` ``FLUSH``.
        inflight: The queue's part of the inflight buffer, or None. It outranks ``base``: what was in flight comes again
            first, then the ring goes on behind it.
        file: What :meth:`transfer` moves bytes to and from, or None.

    Raises:
        VirtqueueError: Not a power of 2, misaligned, not in one memory region, or the inflight part does not fit.

    Threads: not safe; one thread at a time.
    """

    __slots__ = (
        "_address",
        "_avail",
        "_chains",
        "_desc",
        "_event_idx",
        "_file",
        "_flush",
        "_force_notify",
        "_inflight",
        "_lock",
        "_mask",
        "_memory",
        "_next_avail",
        "_notified",
        "_popped",
        "_pushed",
        "_repeated",
        "_resubmit",
        "_resubmitted",
        "_seen_avail",
        "_signalled",
        "_stopped",
        "_suppressed",
        "_transfer",
        "_used",
        "_used_idx",
        "_used_words",
        "_walker",
        "size",
    )

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        address: RingAddress,
        *,
        base: int = 0,
        features: int = 0,
        inflight: InflightPart | None = None,
        file: BlockFile | None = None,
    ) -> None:
        if sys.byteorder != "little":
            raise VirtqueueError("virtqueues are served on little-endian machines only")
        if not 1 <= size <= ring.MAX_SIZE or size & (size - 1):
            raise VirtqueueError(f"a queue's size is a power of 2 up to {ring.MAX_SIZE}, not {size}")
        self.size = size
        self._mask = size - 1
        self._address = address
        self._event_idx = bool(features & VirtioFeature.EVENT_IDX)
        self._walker = Walker(size, indirect=bool(features & VirtioFeature.INDIRECT_DESC))
        self._lock = threading.Lock()
        self._stopped: str | None = None
        self._chains: list[Chain | None] = [None] * size  # the chains that the device has, by head
        self._popped = self._notified = self._suppressed = self._resubmitted = self._repeated = 0
        self._pushed: int = 0
        self._signalled: int = 0
        self._force_notify = True
        self._resubmit: deque[int] = deque()
        self._inflight: InflightPart | None = None
        self._file = file
        self._flush = bool(features & _BLK_FLUSH)
        self._transfer: Transfer | None = None
        self._map(memory)
        self._used_idx = self._used_words[_IDX]
        self._next_avail = self._seen_avail = base & _WORD
        if inflight is not None:
            self._recover(inflight)
        self._set_transfer()
        self.enable_kicks()

    def _map(self, memory: GuestMemory) -> None:
        address, size = self._address, self.size
        for name, at, align in (
            ("descriptor table", address.descriptor, ring.DESC_ALIGN),
            ("available ring", address.available, ring.AVAIL_ALIGN),
            ("used ring", address.used, ring.USED_ALIGN),
        ):
            if at % align:
                raise VirtqueueError(f"the {name} at {at:#x} is not aligned to {align}")
        try:
            desc = memory.user_view(address.descriptor, ring.DESC_SIZE * size)
            avail = memory.user_view(address.available, ring.avail_size(size))
            used = memory.user_view(address.used, ring.used_size(size))
        except GuestMemoryError as error:
            raise VirtqueueError(f"a ring is not in the guest's memory: {error}") from error
        self._memory = memory
        self._desc = desc.toreadonly()
        self._walker.map(self._desc, memory)
        self._avail = avail.toreadonly().cast("H")
        self._used = used[4 : 4 + 8 * size].cast("Q")  # an entry in one store: head low, bytes written high
        self._used_words = used.cast("H")

    def _set_transfer(self) -> None:
        file = self._file
        self._transfer = None
        if file is not None:
            self._transfer = Transfer(
                self._desc,
                self._avail,
                self._used_words,
                self._chains,
                tuple((region.start, region.writable) for region in self._memory.regions),
                None if self._inflight is None else self._inflight.view,
                max_table=self._walker.max_table,
                event_idx=self._event_idx,
                fd=file.fd,
                size=file.size,
                read_at_once=file.read_at_once,
                write_at_once=file.write_at_once if file.writable and self._flush else 0,
                batch=BATCH,
                batch_bytes=BATCH_BYTES,
            )

    def _recover(self, inflight: InflightPart) -> None:
        if inflight.queue_size < self.size:
            raise VirtqueueError(f"the inflight buffer has room for {inflight.queue_size} descriptors, not {self.size}")
        try:
            heads = inflight.recover(self._used_idx)
        except InflightError as error:
            raise VirtqueueError(f"the inflight buffer is broken: {error}") from error
        for head in heads:
            if head >= self.size:
                raise VirtqueueError(f"descriptor {head} of {self.size} in flight")
        self._inflight = inflight
        self._resubmit.extend(heads)
        self._next_avail = self._seen_avail = (self._used_idx + len(heads)) & _WORD

    # Requests from the driver.

    def lend(self) -> Transfer | None:
        """What may serve the ring at each kick from here on, where the last :meth:`transfer` left it at rest.

        Before any other call, :meth:`sync`; and then it must serve no more, unless all that was done is
        :meth:`statistics`.
        """
        return None if self._resubmit else self._transfer

    def sync(self) -> None:
        """Count what was served behind this object's back."""
        taken = None if self._transfer is None else self._transfer.taken()
        if taken is not None:
            count, notified, suppressed, unsignalled = taken
            self._next_avail = self._seen_avail = (self._next_avail + count) & _WORD
            self._used_idx = (self._used_idx + count) & _WORD
            self._popped += count
            self._pushed += count
            self._signalled = self._pushed - unsignalled
            if notified or suppressed:
                self._force_notify = False
            self._notified += notified
            self._suppressed += suppressed

    def transfer(self) -> int:
        """Serve the requests at the front of the ring that only move bytes to or from the file, and give them back.

        Returns:
            0 where there is none, or no file; else bits of :mod:`aioirqfd.virtio.served`: how many in ``COUNT``, how much work they were
            from ``WORK`` on, and ``RESTED`` if that was all there is. Then the driver is to kick for the next one, and ``CALL`` and
            ``MORE`` say what :meth:`finish` would. Else go on with :meth:`pop`, and ask :meth:`need_notify`.
        """
        transfer = self._transfer
        if transfer is None or self._resubmit:
            return 0
        self.sync()
        served = transfer.serve(self._next_avail, self._used_idx, self._pushed - self._signalled, self._force_notify)
        if served:
            count = served & COUNT
            self._next_avail = self._seen_avail = (self._next_avail + count) & _WORD
            self._used_idx = (self._used_idx + count) & _WORD
            self._popped += count
            self._pushed += count
            if served & RESTED:
                self._signalled = self._pushed
                self._force_notify = False
                if served & CALL:
                    self._notified += 1
                else:
                    self._suppressed += 1
        return served

    def pop(self) -> Chain | None:
        """Take the next request, or None if there is none.

        Returns:
            The chain; it must be pushed back, in any order.

        Raises:
            VirtqueueError: The ring is broken, and stopped now.
            VirtqueueStoppedError: It had been stopped.
        """
        next_avail = self._next_avail
        if self._resubmit:
            head = self._resubmit[0]
            fresh = False
        else:
            if next_avail == self._seen_avail:
                if self._stopped is not None:
                    raise VirtqueueStoppedError(self._stopped)
                self._seen_avail = seen = self._avail[_IDX]
                if seen == next_avail:
                    return None
                if (seen - next_avail) & _WORD > self.size:
                    ahead = (seen - next_avail) & _WORD
                    raise self._break(f"the available index runs {ahead} ahead in a ring of {self.size}")
                if not fence.ORDERED:
                    fence.fence(self._lock)
            head = self._avail[2 + (next_avail & self._mask)]
            if head >= self.size:
                raise self._break(f"descriptor {head} of {self.size}")
            if self._chains[head] is not None:
                # Only a driver gone wrong offers what it has not got back. Let through, requests would pile up here.
                raise self._break(f"chain {head} offered again before it was used")
            fresh = True

        # Nearly every chain is within the window and by the rules, and needs no Python; the others do.
        walker = self._walker
        window = walker.window
        found = walk(self._desc, head, window.readable, window.writable, window.start, walker.max_table)
        if found is None:
            try:
                found = walker.walk(head)
            except VirtqueueError as error:
                raise self._break(str(error)) from error.__cause__
        readable, writable, writable_size = found

        chain = Chain()
        chain.head = head
        chain.readable = readable
        chain.writable = writable
        chain.writable_size = writable_size
        self._chains[head] = chain
        self._popped += 1
        if fresh:
            if self._inflight is not None:
                self._inflight.begin(head)
            self._next_avail = (next_avail + 1) & _WORD
        else:
            self._resubmit.popleft()
            self._resubmitted += 1
        return chain

    # Answers to the driver.

    def push(self, chain: Chain, written: int = 0) -> None:
        """Give a chain back. The driver sees it at once; whether to call is :meth:`need_notify`'s to say.

        Args:
            chain: A chain of this queue, not pushed yet.
            written: How many bytes of its writable buffers, from the first on, were written: 0..``writable_size``.

        Raises:
            ChainError: Not a chain of this queue, pushed before, or more bytes than it has room for.
            VirtqueueStoppedError: The queue has been stopped; the chain is void.
        """
        head = chain.head
        try:
            if self._chains[head] is not chain or not 0 <= written <= chain.writable_size:
                raise self._misuse(chain, written)
        except IndexError:
            raise self._misuse(chain, written) from None
        self._chains[head] = None
        used_idx = self._used_idx
        self._used[used_idx & self._mask] = head + written * _HIGH
        self._used_idx = used_idx = (used_idx + 1) & _WORD
        self._pushed += 1
        if not fence.ORDERED:
            fence.fence(self._lock)
        if self._inflight is None:
            self._used_words[_IDX] = used_idx
        else:
            self._inflight.link(head)
            self._used_words[_IDX] = used_idx
            self._inflight.commit((head,), used_idx)

    def push_batch(self, answers: Iterable[tuple[Chain, int]]) -> int:
        """Give several chains back, which the driver sees all at once.

        Args:
            answers: Pairs as :meth:`push` takes them, in the order that the driver is to see.

        Returns:
            How many.

        Raises:
            ChainError: As :meth:`push`, for any of them; then none was given back.
            VirtqueueStoppedError: The queue has been stopped.
        """
        batch = list(answers)
        chains = self._chains
        for number, (chain, written) in enumerate(batch):
            if not self._is_mine(chain) or not 0 <= written <= chain.writable_size:
                for earlier, _ in batch[:number]:
                    chains[earlier.head] = earlier
                raise self._misuse(chain, written)
            chains[chain.head] = None
        used_idx = self._used_idx
        for chain, written in batch:
            self._used[used_idx & self._mask] = chain.head + written * _HIGH
            used_idx = (used_idx + 1) & _WORD
            if self._inflight is not None:
                self._inflight.link(chain.head)
        self._publish(used_idx, () if self._inflight is None else [chain.head for chain, _ in batch])
        self._pushed += len(batch)
        return len(batch)

    def _publish(self, used_idx: int, heads: Sequence[int]) -> None:
        """Let the driver see what is in the used ring up to this index: the answers to these requests."""
        if not fence.ORDERED:
            fence.fence(self._lock)
        self._used_words[_IDX] = self._used_idx = used_idx
        if self._inflight is not None:
            self._inflight.commit(heads, used_idx)

    def forget(self, chain: Chain) -> None:
        """Never answer a chain: it is no longer with the device, and the driver does not get it back. For :mod:`aioirqfd.faults`.

        As after :meth:`push_again`, the next run must begin at a ``base``.

        Raises:
            ChainError: It is not with this queue's device.
            VirtqueueStoppedError: The queue has been stopped.
        """
        if not self._is_mine(chain):
            raise self._misuse(chain, 0)
        self._chains[chain.head] = None
        self._repeated -= 1

    def push_again(self, head: int, written: int) -> None:
        """Give an answer that the driver has had once more, which no device may do: to see what a driver makes of it.

        From here on the used ring's index tells no longer how many requests were answered. The next run must begin at a
        ``base``: from an inflight buffer it would begin too far ahead.

        Args:
            head: The chain's first descriptor, 0..``size`` - 1.
            written: What is said to have been written, 0..2**32-1.

        Raises:
            VirtqueueStoppedError: The queue has been stopped.
        """
        if self._stopped is not None:
            raise VirtqueueStoppedError(self._stopped)
        self._used[self._used_idx & self._mask] = head + written * _HIGH
        self._publish((self._used_idx + 1) & _WORD, ())
        self._pushed += 1
        self._repeated += 1

    def need_notify(self) -> bool:
        """Whether the driver wants to hear of what was pushed since this was last asked (section 2.7.7).

        Ask once after each batch, and signal the call eventfd if True: the answer is remembered as given. The first
        time, with ``EVENT_IDX``, it is True if anything was pushed, because an earlier run's last call is not known.
        """
        if self._pushed == self._signalled:
            return False
        if self._stopped is not None:
            raise VirtqueueStoppedError(self._stopped)
        fence.fence(self._lock)
        return self._wanted()

    def _wanted(self) -> bool:
        """What :meth:`need_notify` says, behind a fence that came after the push."""
        new = self._pushed - self._signalled
        self._signalled = self._pushed
        if self._event_idx:
            used_event = self._avail[2 + self.size]
            wanted = self._force_notify or (self._used_idx - used_event - 1) & _WORD < new
            self._force_notify = False
        else:
            wanted = not self._avail[0] & ring.NO_INTERRUPT
        if wanted:
            self._notified += 1
        else:
            self._suppressed += 1
        return wanted

    def defer_notify(self) -> None:
        """The driver will hear later of what :meth:`need_notify` said yes to: with the next batch it says yes again.

        With ``EVENT_IDX`` it would say no otherwise, because the driver's index stands still until it hears.
        """
        self._force_notify = True

    def finish(self, answers: Sequence[tuple[Chain, int]]) -> tuple[bool, bool]:
        """Give the last chains back and go to rest: :meth:`push_batch`, :meth:`need_notify` and :meth:`enable_kicks`.

        One fence does for all: both of the driver's indexes that tell what it wants are read behind it, and both that
        tell what it gets, the used index and where to kick, are written before.

        Args:
            answers: As for :meth:`push_batch`; none, if what :meth:`transfer` served was all.

        Returns:
            Whether to call, and whether there is a request already for which no kick may come.

        Raises:
            ChainError: As :meth:`push_batch`.
            VirtqueueStoppedError: The queue has been stopped.
        """
        if len(answers) == 1:
            self.push(*answers[0])
        else:
            self.push_batch(answers)
        if self._event_idx:
            self._used_words[2 + 4 * self.size] = self._next_avail
        else:
            self._used_words[0] = 0
        fence.fence(self._lock)
        return self._wanted(), bool(self._resubmit) or self._avail[_IDX] != self._next_avail

    # Kicks.

    def disable_kicks(self) -> None:
        """Tell the driver not to kick: the device is at it anyway. A hint; it may kick nevertheless.

        With ``EVENT_IDX`` nothing needs to be written: the index that the driver is to kick at lies behind it already.
        """
        if not self._event_idx and self._stopped is None:
            self._used_words[0] = ring.NO_NOTIFY

    def enable_kicks(self) -> bool:
        """Tell the driver to kick for the next request.

        Returns:
            Whether there is one already, for which no kick may come: pop again.

        Raises:
            VirtqueueStoppedError: The queue has been stopped.
        """
        if self._stopped is not None:
            raise VirtqueueStoppedError(self._stopped)
        if self._event_idx:
            self._used_words[2 + 4 * self.size] = self._next_avail
        else:
            self._used_words[0] = 0
        fence.fence(self._lock)
        return bool(self._resubmit) or self._avail[_IDX] != self._next_avail

    # Changes and the end.

    def set_memory(self, memory: GuestMemory, *, piecewise: bool = False) -> None:
        """Go on with another memory table. Chains out already keep the old memory.

        Args:
            memory: The table.
            piecewise: It is on its way from one state to another. To move or resize a region a front-end takes it away
                first, under a running ring. Such a ring stays with the table that it has until it is in one again.

        Raises:
            VirtqueueError: The ring is not in the new table; the queue is stopped.
            VirtqueueStoppedError: The queue had been stopped.
        """
        if self._stopped is not None:
            raise VirtqueueStoppedError(self._stopped)
        self.sync()
        try:
            self._map(memory)
        except VirtqueueError as error:
            if piecewise:
                return
            self._stop(str(error))
            raise
        self._set_transfer()

    def set_file(self, file: BlockFile | None) -> None:
        """Go on with another file, or with the same one at another size; nothing happens if the queue has been stopped."""
        if self._stopped is None:
            self.sync()
            self._file = file
            self._set_transfer()

    def stop(self) -> int:
        """End this run and let go of the guest's memory. Idempotent.

        Chains that are still out (:attr:`in_flight`) are void: wait for them first, unless an inflight buffer keeps
        them for the next run.

        Returns:
            The available ring's next index, the answer to ``GET_VRING_BASE``.
        """
        if self._stopped is None:
            self.sync()
            self._stop("the queue has been stopped")
        return self._next_avail

    @property
    def stopped(self) -> str | None:
        """Why the queue has stopped, or None while it runs."""
        return self._stopped

    @property
    def in_flight(self) -> int:
        """How many chains the device holds: popped, not pushed."""
        return self._popped - (self._pushed - self._repeated)

    def uses(self, memory: memoryview) -> bool:
        """Whether the ring, or a chain that is out, lies in this mapping."""
        mapping = memory.obj
        if any(view.obj is mapping for view in (self._desc, self._avail, self._used)):
            return True
        out = [chain for chain in self._chains if chain is not None]
        return any(view.obj is mapping for chain in out for view in (*chain.readable, *chain.writable))

    def statistics(self) -> VirtqueueStatistics:
        """Return what the queue has done since it was made."""
        self.sync()
        return VirtqueueStatistics(self._popped, self._pushed, self._resubmitted, self._notified, self._suppressed)

    def _stop(self, reason: str) -> None:
        self._stopped = reason
        # pop() has no check of its own: with equal indexes and nothing to resubmit it comes to where the reason is told.
        self._seen_avail = self._next_avail
        self._resubmit.clear()
        self._chains = []  # with which every push, too, comes to where the reason is told
        self._desc = self._avail = self._used = self._used_words = _GONE
        self._memory = GuestMemory()
        self._walker.map(_GONE, self._memory)
        self._inflight = self._transfer = None

    def _break(self, reason: str) -> VirtqueueError:
        self._stop(reason)
        return VirtqueueError(reason)

    def _is_mine(self, chain: Chain) -> bool:
        return chain.head < len(self._chains) and self._chains[chain.head] is chain

    def _misuse(self, chain: Chain, written: int) -> ChainError | VirtqueueStoppedError:
        if self._stopped is not None:
            return VirtqueueStoppedError(self._stopped)
        if not self._is_mine(chain):
            return ChainError(
                f"{chain!r} is not with this queue's device: pushed already, another queue's, or from before a reset"
            )
        return ChainError(f"{written} bytes written into {chain!r}")

    def __repr__(self) -> str:
        state = "running" if self._stopped is None else f"stopped: {self._stopped}"
        return f"<VirtQueue of {self.size}, {self.in_flight} in flight, {state}>"
