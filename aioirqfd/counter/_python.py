"""The counter module in pure Python: the specification of the native one, and what runs where there was no compiler.

Four nouns. :class:`Counter` counts. :class:`EventFdCtx` is the in-process half of an eventfd. :class:`Drain` is the private
epoll of one loop, with a mailbox for the signals of other threads. :class:`TopHalf` is what a manager does at once with an
irqfd that is ready.

An irqfd *owes* a dispatch from the moment a signal was seen until its dispatch begins, and an irqfd that owes is in exactly
one place: the mailbox, the pass that is under way, or its manager's ``held`` list. Whoever dispatches clears the debt
*before* taking the count, so a signal that comes later makes a new one. That is the whole of "no interrupt is ever lost".

Where this differs from the native module: it reads the eventfd at every event (it never leaves a count unread),
and a lock stands in for the atomics.
"""

# pyright: reportPrivateUsage=false
# (these classes see into each other, as C structures do)
from __future__ import annotations

import contextlib
import errno
import itertools
import operator
import os
import select
import sys
import threading
import time
import weakref
from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, Final, Protocol, SupportsIndex, cast, final

from aioirqfd.errors import ClosedError, WouldBlock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    _Handler = Callable[..., Awaitable[object]]

MAX: Final = 2**64 - 2
"""The highest count a write leaves in an eventfd; 2**64-1 is kept for a saturated in-kernel signal (rows E06, E18)."""
_MASK: Final = 2**64 - 1
_WORD: Final = 8
_BATCH: Final = 1024
_SLICE: Final = 0.001
_SEMAPHORE_AT_ONCE: Final = 256
_RECORD: Final = Struct("=QQIiBxxxI")
_INJECTED, _DEFERRED, _HELD, _WAKEUP = 1, 2, 3, 4

_lock = threading.RLock()
"""Held for a few instructions around counts and debts, by whichever thread signals.

Reentrant, because a Python signal handler or a finaliser may signal in the middle of them. The order of the instructions
allows for that: each look and its change stand together.
"""
# A thread that signals just now does not exist in a forked child, and would never let go of it there.
os.register_at_fork(after_in_child=_lock._at_fork_reinit)  # type: ignore[attr-defined]


class _Unraisable:
    """Raises where nobody can catch it, which the interpreter reports to ``sys.unraisablehook``."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __del__(self) -> None:
        raise self.error


def _unraisable(error: BaseException) -> None:
    _Unraisable(error)


class _Irqfd(Protocol):
    def wakeup(self, count: int, /) -> None: ...
    def defer(self, count: int, /) -> None: ...
    def rest(self, count: int, /) -> None: ...
    def left(self) -> None: ...
    def handler_failed(self, error: BaseException, count: int, /) -> bool: ...


class _Kick(Protocol):
    @property
    def gsi(self) -> int: ...


def _amount(value: SupportsIndex, low: int, what: str) -> int:
    number = int(operator.index(value))
    if not low <= number <= MAX:
        raise ValueError(f"{what} is {low}..2**64-2, not {number}")
    return number


def fdinfo(fd: int, /) -> tuple[int, int, bool] | None:
    """(count, eventfd-id, semaphore) of an eventfd, consuming nothing; None for another kind of file (row E25).

    Raises:
        OSError: EBADF, the fd is not open.
    """
    fd = operator.index(fd)
    try:
        with open(f"/proc/thread-self/fdinfo/{fd}", encoding="ascii") as file:  # noqa: PTH123  a hot path
            fields = dict(line.split(":", 1) for line in file if ":" in line)
    except FileNotFoundError:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None
    if "eventfd-count" not in fields:
        return None
    return (
        int(fields["eventfd-count"], 16),
        int(fields.get("eventfd-id", "-1")),
        fields.get("eventfd-semaphore", "0").strip() == "1",
    )


def walk(
    table: memoryview, head: int, readable: memoryview, writable: memoryview, start: int, max_table: int, /
) -> tuple[list[memoryview], list[memoryview], int] | None:
    """Follow the descriptors of a virtqueue's request, if there is a faster way than its own: here there is none.

    Args:
        table: The descriptor table.
        head: The first descriptor, which is in the table.
        readable: The window: the part of the guest's memory where most of it is, read-only.
        writable: The same, writable.
        start: The window's first guest-physical address.
        max_table: Bytes of the longest indirect table; 0: none are agreed on.

    Returns:
        What is to be read, to be written, and how many bytes the latter are; None: walk yourself.
    """
    del table, head, readable, writable, start, max_table
    return None


@final
class Transfer:
    """Serves a ring's plain reads and writes of a file, if there is a faster way than a handler: here there is none.

    Args:
        desc: The descriptor table.
        avail: The available ring.
        used: The used ring.
        chains: By head, the chain that is out, or None.
        regions: Each region's first guest-physical address, and its bytes.
        inflight: The queue's part of the inflight buffer, or None.
        max_table: Bytes of the longest indirect table; 0: none are agreed on.
        event_idx: Whether ``EVENT_IDX`` is agreed on.
        fd: The file.
        size: Its bytes.
        read_at_once: The longest read that is to be made, bytes.
        write_at_once: The longest write that is to be made, bytes.
        batch: How many requests at most are published together, 1..255.
        batch_bytes: With so many bytes moved, no more are.
    """

    def __init__(
        self,
        desc: memoryview,
        avail: memoryview,
        used: memoryview,
        chains: Sequence[object],
        regions: tuple[tuple[int, memoryview], ...],
        inflight: memoryview | None,
        *,
        max_table: int,
        event_idx: bool,
        fd: int,
        size: int,
        read_at_once: int,
        write_at_once: int,
        batch: int,
        batch_bytes: int,
    ) -> None:
        pass

    def serve(self, next_avail: int, used_idx: int, unsignalled: int, force: bool, /) -> int:  # noqa: FBT001
        """Serve what can be.

        Args:
            next_avail: Where the available ring goes on.
            used_idx: Where the used ring does.
            unsignalled: How many answers were published, and not asked about yet.
            force: Call for the next answer in any case.

        Returns:
            How many requests were served (& 255); and 256: the ring was empty then, with 512: call, and 1024: it is not
            empty any more.
        """
        del next_avail, used_idx, unsignalled, force
        return 0

    def taken(self) -> tuple[int, int, int, int] | None:
        """What kicks had served since the last look.

        Returns:
            None if nothing; else how many requests, how many calls were wanted and how many were not, and how many answers
            were not asked about yet.
        """
        return None


@final
class Kicks:
    """Where the kicks of a device's queues go, gsi n being queue n's. Here to ``on_kick``, all of them.

    Args:
        on_kick: Called with the queue.
        transfers: By queue, the :class:`Transfer` that may serve it just now, or None.
        calls: By queue, the eventfd to signal then, or None.
    """

    def __init__(
        self,
        on_kick: Callable[[int], object],
        transfers: list[Transfer | None],
        calls: Sequence[EventFdCtx | None],
    ) -> None:
        del transfers, calls
        self._on_kick = on_kick

    def try_inject(self, interrupt: _Kick, /) -> bool:
        """Serve the queue that its gsi names."""
        self._on_kick(interrupt.gsi)
        return True


def begin(coroutine: Coroutine[object, object, object], /) -> tuple[bool, object]:
    """Drive a coroutine up to where it waits, or to its end.

    Returns:
        Whether it has ended, and what it returned, or yielded.
    """
    try:
        return False, coroutine.send(None)
    except StopIteration as stop:
        return True, stop.value


def _read_now(fd: int, *, blocking: bool) -> int:
    """What a read gives, 0 when it would block; never waits, even on a blocking fd (row E14)."""
    try:
        if blocking:
            word = bytearray(_WORD)
            os.preadv(fd, [word], -1, os.RWF_NOWAIT)
            return int.from_bytes(word, sys.byteorder)
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def _has_count(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return any(mask & select.POLLIN for _, mask in poller.poll(0))


def _has_room(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    return any(mask & select.POLLOUT for _, mask in poller.poll(0))


def _write_saturating(fd: int, n: int, *, blocking: bool) -> int:
    """Add what fits to the kernel's counter, and return it."""
    while n:
        # A write that does not fit is refused whole (row E07), and sleeps on a blocking fd (row E08): look first there.
        if blocking and (n > 1 or not _has_room(fd)):
            info = fdinfo(fd)
            n = min(n, MAX - min(info[0], MAX)) if info else n
        try:
            if n:
                os.eventfd_write(fd, n)
        except BlockingIOError:
            info = fdinfo(fd)
            n = min(n, MAX - min(info[0], MAX)) if info else n
        else:
            break
    return n


@final
class Counter:
    """A saturating 64-bit counter with the reads and writes of an eventfd. Safe from any thread."""

    __slots__ = ("_semaphore", "_value")

    def __init__(self, initial: SupportsIndex = 0, *, semaphore: bool = False) -> None:
        self._value = _amount(initial, 0, "a count")
        self._semaphore = bool(semaphore)

    @property
    def value(self) -> int:
        """The count, 0..2**64-2; nothing is consumed."""
        return self._value

    @property
    def semaphore(self) -> bool:
        """Whether a read takes 1 instead of all."""
        return self._semaphore

    def signal(self, n: SupportsIndex = 1, /) -> int:
        """Add n (1..2**64-2), as much as fits below 2**64-2; return what was added."""
        n = _amount(n, 1, "a signal")
        with _lock:
            before = self._value
            self._value = after = before + n if n <= MAX - before else MAX
        return after - before

    def read(self) -> int:
        """Take the count (1 of it, with ``semaphore=True``); WouldBlock at 0."""
        with _lock:
            value = self._value
            if self._semaphore and value:
                self._value, value = value - 1, 1
            else:
                self._value = 0
        if not value:
            raise WouldBlock
        return value


@final
class FlightRing:
    """The last interrupts, as binary records."""

    def __init__(self, capacity: int = 65536) -> None:
        if not 1 <= capacity <= 2**28:
            raise ValueError("a flight ring has room for 1..2**28 records")
        self.capacity = 1 << (capacity - 1).bit_length()
        self.total = 0
        self._records: deque[bytes] = deque(maxlen=self.capacity)

    def put(self, kind: int, gsi: int, fd: int, count: int, /) -> None:
        """Write one record, now."""
        self._records.append(_RECORD.pack(time.monotonic_ns(), count & _MASK, gsi, fd, kind, 0))
        self.total += 1

    def snapshot(self) -> bytes:
        """The records there are, oldest first, 32 bytes each: struct format "=QQIiBxxxI"."""
        return b"".join(self._records)


class EventFdCtx:
    """The in-process half of an eventfd; base class of :class:`aioirqfd.EventFd`.

    While somebody in this process listens, signals are counted here and dispatched without a system call; otherwise they are
    written to the fd, for whoever else holds it.
    """

    __slots__ = (
        "__weakref__",
        "_blocking",
        "_count",
        "_drain",
        "_event",
        "_fast",
        "_fd",
        "_fresh",
        "_generation",
        "_gsi",
        "_handler",
        "_held",
        "_interrupt",
        "_irqfd",
        "_leftover",
        "_listening",
        "_owed",
        "_posted_to",
        "_queued_here",
        "_route_generation",
        "_running",
        "_semaphore",
        "_signals",
        "_taken",
        "_told",
        "_top_half",
        "_wakeups",
        "_want_count",
    )

    def __init__(self, fd: int, *, semaphore: bool = False, blocking: bool = False) -> None:
        self._fd = operator.index(fd)
        self._semaphore = bool(semaphore)
        self._blocking = bool(blocking)
        self._generation = 0  # of its registration
        self._posted_to: Drain | None = None  # whose mailbox it is in
        self._count = self._signals = self._wakeups = self._fast = self._route_generation = 0
        self._drain: Drain | None = None
        self._top_half: TopHalf | None = None
        self._irqfd: _Irqfd | None = None
        self._interrupt: object = None
        self._listening = self._want_count = self._owed = self._held = False
        self._event = self._fresh = self._leftover = False
        self._gsi = 0
        self._handler: _Handler | None = None
        self._taken = 0  # counted for the handler, not given to it yet
        self._queued_here = False  # in its top half's ready queue
        self._running: object = None  # the task that runs the handler just now, while bound
        self._told = 0  # the count that it was given

    @property
    def _queued(self) -> bool:
        return self._taken > 0

    @property
    def _registered(self) -> bool:
        return self._drain is not None

    def signal(self, n: SupportsIndex = 1, /) -> int:
        """Add n (1..2**64-2) to the count, saturating at 2**64-2, and wake whoever listens.

        On the thread of the loop that listens the wakeup runs at once, unless it is called from within a wakeup; from
        elsewhere the loop is woken. Where nobody in this process listens, it is a write(2) to the fd.

        Args:
            n: How much to add, 1..2**64-2.

        Returns:
            What was added: n, or less when the count is near its top.

        Raises:
            ValueError: n is out of range; nothing was added.
            ClosedError: The eventfd is closed.

        Threads:
            Safe from any thread and, through the fd, from any process.

        Source:
            eventfd(2); rows E07, E18.
        """
        n = _amount(n, 1, "a signal")
        # Looking whether somebody listens, and counting where, is one step: the loop's thread may be about to stop listening,
        # and then takes what was counted here along (_spill).
        with _lock:
            if self._fd < 0:
                raise ClosedError("the eventfd is closed")
            drain = self._drain
            if not self._listening or drain is None or drain.dead:
                return _write_saturating(self._fd, n, blocking=self._blocking)
            added = self._add(n)
            owes_now = self._owe()
        if owes_now:
            if not drain.dispatching and drain.here():
                drain.dispatch(self)
            else:
                drain.post(self)
        return added

    def _add(self, n: int) -> int:
        with _lock:
            before = self._count
            self._count = after = before + n if n <= MAX - before else MAX
        return after - before

    def _settle(self) -> bool:
        with _lock:
            owed, self._owed = self._owed, False
        return owed

    def _owe(self) -> bool:
        with _lock:
            owed, self._owed = self._owed, True
        return not owed

    @property
    def _by_ones(self) -> bool:
        """Whether a dispatch takes 1: of a semaphore (row P06), but not if somebody has to be told of every signal."""
        return self._semaphore and not self._want_count

    def _take_counted(self, *, by_ones: bool) -> int:
        with _lock:
            count = self._count
            if by_ones and count:
                self._count = count - 1
                return 1
            self._count = 0
        return count

    def _put_back(self, n: int) -> None:
        """Undo a _consume whose injection could not even be queued: the next dispatch finds n again."""
        if n:
            self._signals = (self._signals - self._add(n)) & _MASK
            return
        self._event = True
        if self._leftover:
            self._leftover, self._fresh = False, True

    def _consume(self) -> int | None:
        """What this dispatch stands for; 0: what was left unread; None: nothing is there, because somebody else read it."""
        by_ones = self._by_ones
        total = self._take_counted(by_ones=by_ones)
        known = total > 0
        # What was there at assign time goes with the next signal, wherever that comes from (row P04).
        if self._event or (self._leftover and total):
            injected = not self._event  # then what the kernel holds is what was there at assign time
            fresh, self._event, self._fresh = self._fresh, False, False
            if fresh and not self._want_count:
                # What was there at assign time is injected once and stays until the next write (rows P01, P03, P04).
                self._leftover = known = True
            else:
                # Of a semaphore one in all, wherever it is.
                value = 0 if by_ones and total else self._read_kernel()
                self._leftover = False
                known = known or value > 0
                if injected:
                    # Taken along, and owed no injection of its own.
                    self._signals = (self._signals + value) & _MASK
                    value = 0
                if total + value > _MASK:
                    # Two counters near the top: hand on one now and the other by a dispatch of its own.
                    value -= self._add(value)
                    if self._owe() and self._drain is not None:
                        self._drain.post(self)
                total += value
        self._signals = (self._signals + total) & _MASK
        return total if known else None

    def _read_kernel(self) -> int:
        """A dispatch's part of the kernel's counter."""
        value = 0
        with contextlib.suppress(OSError):
            value = _read_now(self._fd, blocking=self._blocking) if self._fd >= 0 else 0
            if value and self._semaphore and self._want_count:
                while value < _SEMAPHORE_AT_ONCE and _read_now(self._fd, blocking=self._blocking):
                    value += 1
                if value == _SEMAPHORE_AT_ONCE:
                    # No event comes for the rest.
                    self._event = True
                    if self._owe() and self._drain is not None:
                        self._drain.post(self)
        return value

    def _take(self) -> int:
        total = self._take_counted(by_ones=self._semaphore)
        if self._fd < 0 or (self._semaphore and total):
            return total
        try:
            value = _read_now(self._fd, blocking=self._blocking)
        except OSError:
            self._add(total)
            raise
        if total + value > _MASK:
            value -= self._add(value)
        return total + value

    def _spill(self) -> None:
        with _lock:
            rest = self._count
            if rest and self._fd >= 0:
                # What does not fit in there stays here, for the next read.
                self._count = rest - _write_saturating(self._fd, rest, blocking=self._blocking)

    def _readable(self) -> bool:
        return self._count > 0 or (self._fd >= 0 and _has_count(self._fd))

    def _dispatch(self) -> None:
        """Do now what the drain's next pass would; nothing from within a pass. The loop's thread."""
        if self._drain is not None and not self._drain.dispatching and self._owed:
            self._drain.dispatch(self)

    def _bind(self, top_half: TopHalf, irqfd: _Irqfd, want_count: bool, handler: _Handler | None, /) -> None:  # noqa: FBT001  the native signature
        if self._top_half is not None or self._drain is None:
            raise RuntimeError("_bind() takes a registered, unbound eventfd")
        self._top_half, self._irqfd, self._want_count = top_half, irqfd, want_count
        self._handler = handler
        self._listening, self._leftover = True, False

    def _unbind(self) -> None:
        self._listening = self._want_count = self._event = self._fresh = self._leftover = False
        self._settle()
        if self._top_half is not None:
            self._top_half._unhold(self)
        self._running, self._told = None, 0  # a handler that is under way is the old irqfd's, and knows it
        self._interrupt = self._irqfd = self._top_half = self._handler = None

    def _recall(self) -> int:
        """Take back the count that waits for the handler."""
        count, self._taken, self._queued_here = self._taken, 0, False
        return count

    def _arm(self, interrupt: object, /) -> None:
        if self._top_half is None:
            interrupt = None
        else:
            self._route_generation = self._top_half.generation
        self._interrupt = interrupt

    def _is_fast(self) -> bool:
        top_half = self._top_half
        return (
            top_half is not None
            and self._interrupt is not None
            and not top_half.paused
            and self._route_generation == top_half.generation
        )

    def _on_ready(self) -> None:
        """A registered eventfd without an irqfd became readable."""

    def __del__(self) -> None:
        drain: Drain | None = getattr(self, "_drain", None)
        if drain is not None:
            drain.remove(self)


def _hand(ctx: EventFdCtx, irqfd: _Irqfd, method: Callable[[int], object], count: int) -> None:
    """Give the irqfd what was signalled; it may fail, but not take the others down with it.

    What interrupts the call before it is noted there, the exception of a signal handler say, does not lose it: it is owed again.
    """
    try:
        method(max(count, 1))
    except BaseException as error:
        _unraisable(error)
        if ctx._irqfd is irqfd and ctx._drain is not None:
            ctx._put_back(count)
            if ctx._owe():
                ctx._drain.post(ctx)


@final
class TopHalf:
    """What one manager does with a ready irqfd at once. Never raises, never waits."""

    def __init__(
        self,
        try_inject: Callable[..., bool] | None = None,
        try_inject_batch: Callable[..., int] | None = None,
        on_error: Callable[[Exception], object] | None = None,
        on_ready: Callable[[], object] | None = None,
        on_progress: Callable[[], object] | None = None,
    ) -> None:
        self._try_inject = try_inject
        self._try_inject_batch = try_inject_batch
        self._on_error = on_error
        self._on_ready = on_ready
        self._on_progress = on_progress
        self._held: dict[EventFdCtx, None] = {}
        self._ready: deque[EventFdCtx] = deque()
        self.room = sys.maxsize
        self.watched = False
        self.flight: FlightRing | None = None
        self.paused = False
        self.full = False
        self.generation = 0

    @property
    def held(self) -> int:
        """How many irqfds wait here."""
        return len(self._held)

    @property
    def ready(self) -> int:
        """How many irqfds wait for their handler."""
        return len(self._ready)

    def _enqueue(self, ctx: EventFdCtx) -> None:
        """Line the irqfd up for its handler; its count is in ``_taken``."""
        if not ctx._queued_here and ctx._running is None:
            ctx._queued_here = True
            self._ready.append(ctx)
            if self._on_ready is not None:
                self._on_ready()

    async def run_ready(self, task: object, /) -> None:
        """Run the handlers of ready irqfds, one after the other, and inject; until none is left, or for a millisecond."""
        ends = time.monotonic() + _SLICE
        while self._ready:
            ctx = self._ready.popleft()
            if not ctx._queued_here or ctx._top_half is not self:
                continue  # taken back in the meantime; perhaps it waits in another manager's, on another loop, by now
            ctx._queued_here = False
            count, ctx._taken = ctx._taken, 0
            irqfd, handler = ctx._irqfd, ctx._handler
            if irqfd is None:
                continue
            if handler is None or not ctx._is_fast():
                _hand(ctx, irqfd, irqfd.defer, count)
                self._tell_progress()
                continue
            ctx._running, ctx._told = task, count
            try:
                await handler(irqfd, count)
            except GeneratorExit:
                irqfd.defer(count)
                self._leave(ctx, irqfd)
                raise
            except BaseException as error:
                ours = irqfd.handler_failed(error, count)
                self._leave(ctx, irqfd)
                if not ours:
                    raise
            else:
                # Perhaps deassigned and assigned anew while the handler ran: what is cached now is another irqfd's.
                if ctx._irqfd is irqfd and ctx._is_fast() and self._try_dispatching(ctx):
                    ctx._fast += 1
                    self._note(_INJECTED, ctx, count)
                else:
                    irqfd.rest(count)
                self._leave(ctx, irqfd)
            if time.monotonic() >= ends:
                return

    def _try_dispatching(self, ctx: EventFdCtx) -> bool:
        """Inject from without a pass. What the sink signals comes later: it is not entered from within itself."""
        drain = ctx._drain
        if drain is None:
            return False
        nested, drain.dispatching = drain.dispatching, True
        try:
            return self._try_one(ctx._interrupt)
        finally:
            drain.dispatching = nested

    def _leave(self, ctx: EventFdCtx, irqfd: _Irqfd) -> None:
        """The handler is through, or gone. Unless it is idle, what comes next is the irqfd's to decide."""
        bound = ctx._irqfd is irqfd  # not deassigned since; the eventfd may be another irqfd's by now
        if bound:
            ctx._running, ctx._told = None, 0
            if ctx._taken:
                self._enqueue(ctx)
        if not (bound and ctx._is_fast()):
            irqfd.left()
        self._tell_progress()

    def _tell_progress(self) -> None:
        if self.watched and self._on_progress is not None:
            self._on_progress()

    def release(self) -> int:
        """Dispatch what was held, until the queue is full again; return how many irqfds that were."""
        held, self._held = self._held, {}
        for ctx in held:
            ctx._held = False
        released = 0
        for ctx in held:
            if self.full or self.paused:
                break
            drain = ctx._drain
            if drain is not None and self._still_owes(ctx):
                if released < _BATCH and not drain.dispatching and drain.here():
                    drain.dispatch(ctx)
                else:
                    drain.post(ctx)
            released += 1
        # The rest keeps its place, before whatever was held just now.
        newer, self._held = self._held, {}
        for ctx in newer:
            ctx._held = False
        for ctx in (*itertools.islice(held, released, None), *newer):
            if self._still_owes(ctx):
                self._hold(ctx)
        return released

    def _note(self, kind: int, ctx: EventFdCtx, count: int) -> None:
        if self.flight is not None:
            self.flight.put(kind, ctx._gsi, ctx._fd, count if kind == _HELD else max(count, 1))

    def _still_owes(self, ctx: EventFdCtx) -> bool:
        return ctx._top_half is self and ctx._drain is not None and ctx._owed

    def _hold(self, ctx: EventFdCtx) -> None:
        if not ctx._held:
            self._note(_HELD, ctx, 0)
            ctx._held = True
            self._held[ctx] = None

    def _unhold(self, ctx: EventFdCtx) -> None:
        """It is being unbound: the next manager has to hold it anew."""
        if ctx._held:
            ctx._held = False
            del self._held[ctx]

    def _report(self, error: BaseException) -> None:
        if self._on_error is not None:
            try:
                # Whatever it is, it must not take the others in the batch down; who has to know of an interrupt decides there.
                self._on_error(cast("Exception", error))
            except BaseException as another:
                _unraisable(another)

    def _try_one(self, interrupt: object) -> bool:
        if self._try_inject is None:
            return False
        try:
            return bool(self._try_inject(interrupt))
        except BaseException as error:
            self._report(error)
            return False

    def _try_many(self, interrupts: list[object]) -> int:
        """How many of them, from the front, the sink took at once; -1: ask for each."""
        n = len(interrupts)
        if self._try_inject_batch is None or n == 1:
            return -1
        try:
            taken = operator.index(self._try_inject_batch(interrupts))
        except BaseException as error:
            self._report(error)
            return 0
        if not 0 <= taken <= n:
            self._report(ValueError(f"try_inject_batch() returned {taken} for {n} interrupts"))
            return min(max(taken, 0), n)
        return taken

    def _defer(self, ctx: EventFdCtx, irqfd: _Irqfd, count: int) -> None:
        self._note(_DEFERRED, ctx, count)
        if (self.full or self.paused) and ctx._top_half is self:
            ctx._put_back(count)
            if ctx._owe():
                self._hold(ctx)
            return
        _hand(ctx, irqfd, irqfd.defer, count)

    def flush(self, batch: list[EventFdCtx]) -> None:
        """Hand the lined-up irqfds to the sink."""
        taking: list[tuple[EventFdCtx, _Irqfd, int]] = []
        interrupts: list[object] = []
        for ctx in batch:
            irqfd = ctx._irqfd
            if irqfd is None or ctx._top_half is not self or not ctx._is_fast():
                # Masked, re-routed, unbound or bound elsewhere since, by a sink that was called in between: through the mailbox
                # once more.
                if ctx._drain is not None and ctx._owed:
                    ctx._drain.post(ctx)
            elif ctx._settle() and (count := ctx._consume()) is not None:
                ctx._wakeups += 1
                taking.append((ctx, irqfd, count))
                interrupts.append(ctx._interrupt)
        if not taking:
            return
        taken = self._try_many(interrupts)
        for index, (ctx, irqfd, count) in enumerate(taking):
            if index < taken if taken >= 0 else self._try_one(interrupts[index]):
                ctx._fast += 1
                self._note(_INJECTED, ctx, count)
            else:
                self._defer(ctx, irqfd, count)

    def wakeup(self, ctx: EventFdCtx) -> None:
        """The slow top half: the irqfd decides."""
        lane = ctx._handler is not None and ctx._is_fast()
        no_room = lane and not ctx._queued_here and ctx._running is None and len(self._ready) >= self.room
        if self.paused or self.full or no_room:
            if ctx._owed:
                self._hold(ctx)
        elif ctx._settle() and (count := ctx._consume()) is not None:
            irqfd = ctx._irqfd
            ctx._wakeups += 1
            self._note(_WAKEUP, ctx, count)
            if lane and count:
                ctx._taken += count
                self._enqueue(ctx)
            elif irqfd is not None:
                _hand(ctx, irqfd, irqfd.wakeup, count)


@final
class Drain:
    """The private epoll of one loop. Edge-triggered; every event is read, so a stale one finds nothing and is dropped.

    Args:
        max_events: The bound of one pass, for each of its two sources.
        loop: The loop that runs it.
        running_loop: Tells which loop runs in the thread that asks. Without it, the drain's thread is whichever ran it last.
    """

    def __init__(
        self, max_events: int = _BATCH, loop: object = None, running_loop: Callable[[], object] | None = None
    ) -> None:
        if not 1 <= max_events <= 2**20:
            raise ValueError("max_events is 1..2**20")
        self.max_events = max_events
        self._loop = loop
        self._running_loop = running_loop
        self.thread = threading.get_ident()
        self.dispatching = False
        self.dead = False
        self.unread = 0
        # Weak, as the native module's table is: an eventfd that is dropped leaves by itself.
        self._tenants: weakref.WeakValueDictionary[int, EventFdCtx] = weakref.WeakValueDictionary()
        # Which registration an fd number stands for: the number may have been closed and reused behind our back.
        self._generations: dict[int, int] = {}
        self._registrations = 0
        self.attached = 0
        self._mailbox: deque[EventFdCtx] = deque()
        self._woken = False
        self._epoll = select.epoll()
        self._wakefd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wakefd, select.EPOLLIN | select.EPOLLET)

    def here(self) -> bool:
        """Whether this is its thread: the one in which its loop is running now, not the one that has run it last."""
        if self._running_loop is None:
            return self.thread == threading.get_ident()
        return self._running_loop() is self._loop

    def fileno(self) -> int:
        """The epoll's fd, -1 once closed."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def add(self, ctx: EventFdCtx, /) -> None:
        """Register an eventfd; a count that is there is an event."""
        if ctx._drain is not None or self.dead:
            raise RuntimeError("add() takes an unregistered eventfd, and an open drain")
        ctx._fresh = _has_count(ctx._fd)
        self._epoll.register(ctx._fd, select.EPOLLIN | select.EPOLLET)
        self._registrations += 1
        self._generations[ctx._fd] = ctx._generation = self._registrations
        ctx._event = False
        self._tenants[ctx._fd] = ctx
        self.attached += 1
        with _lock:
            if ctx._posted_to is not None and ctx._posted_to is not self:
                # It has changed loops with a post under way there.
                ctx._posted_to._mailbox.remove(ctx)
                ctx._posted_to = None
            ctx._drain = self
            if ctx._count and ctx._owe():
                self.post(ctx)

    def remove(self, ctx: EventFdCtx, /) -> None:
        """Take it out again; no event of it is dispatched from here on."""
        if ctx._drain is not self:
            raise TypeError("remove() takes an EventFdCtx of this drain")
        ctx._drain = None
        self.attached -= 1
        # Its debt goes with it: what is counted stays counted, and is an event again wherever it is added next.
        ctx._settle()
        ctx._event = ctx._fresh = False
        if self._generations.get(ctx._fd) == ctx._generation:
            del self._generations[ctx._fd]
            self._tenants.pop(ctx._fd, None)
            if not self.dead:
                with contextlib.suppress(OSError, ValueError):
                    self._epoll.unregister(ctx._fd)

    def post(self, ctx: EventFdCtx) -> None:
        """Post an owed ctx; from any thread."""
        with _lock:
            if self.dead or ctx._posted_to is not None:
                return
            ctx._posted_to = self
            self._mailbox.append(ctx)
            wake, self._woken = not self._woken, True
            if wake:
                self._wake()

    def _wake(self) -> None:
        os.eventfd_write(self._wakefd, 1)

    def dispatch(self, ctx: EventFdCtx) -> None:
        """One eventfd at once: a signal on the loop's own thread."""
        self.dispatching = True
        try:
            if ctx._handler is None and ctx._is_fast():
                assert ctx._top_half is not None
                ctx._top_half.flush([ctx])
            else:
                self._slow(ctx)
        finally:
            self.dispatching = False

    def _slow(self, ctx: EventFdCtx) -> None:
        if ctx._top_half is not None:
            ctx._top_half.wakeup(ctx)
        elif ctx._settle():
            ctx._event = False
            try:
                ctx._on_ready()
            except BaseException as error:
                _unraisable(error)

    def _owing(self, events: list[tuple[int, int]]) -> list[EventFdCtx]:
        """The eventfds among the events that did not owe a dispatch before, and do now."""
        found: list[EventFdCtx] = []
        # All are looked up before any is dispatched, so an fd number that changes hands meanwhile misleads nobody.
        for fd, _ in events:
            ctx = self._tenants.get(fd)
            if ctx is not None:
                ctx._event = True
                if ctx._owe():
                    found.append(ctx)
        return found

    def run(self) -> int:
        """One pass: take at most max_events from the epoll and as many from the mailbox, and dispatch them; return how many."""
        if self.dead or self.dispatching:
            return 0
        self.thread = threading.get_ident()  # a loop may be run by one thread after another
        events = self._epoll.poll(0, self.max_events)
        # The mailbox first: what was held back for want of room comes through it, and must not be overtaken for ever.
        with _lock:
            self._woken = False
            mail = min(len(self._mailbox), self.max_events)
        ready: list[EventFdCtx] = []
        self.dispatching = True
        try:
            for _ in range(mail):
                with _lock:
                    ctx = self._mailbox.popleft()
                    ctx._posted_to = None
                ready.append(ctx)
            if self._mailbox:
                self._wake()
            ready += self._owing(events)
            batches: dict[TopHalf, list[EventFdCtx]] = {}
            slow: list[EventFdCtx] = []
            for ctx in ready:
                if ctx._top_half is not None and ctx._handler is None and ctx._is_fast():
                    batches.setdefault(ctx._top_half, []).append(ctx)
                else:
                    slow.append(ctx)
            for top_half, batch in batches.items():
                top_half.flush(batch)
            for ctx in slow:
                if ctx._drain is self and ctx._owed:
                    self._slow(ctx)
        except BaseException:
            # A Python signal handler may raise anywhere. Who still owes must be in one place all the same.
            for ctx in ready:
                if ctx._drain is self and ctx._owed and not ctx._held:
                    self.post(ctx)
            raise
        finally:
            self.dispatching = False
        return len(ready)

    def collect(self) -> None:
        """Note every event there is as owed, dispatching nothing."""
        full = not self.dead
        # The epoll hands out in the order of arrival: after so many events nothing is left from before the call, however busy
        # the writers are. The wake-up counts too.
        left = self.attached + 1
        woken = False
        while full:
            events = self._epoll.poll(0, self.max_events)
            left -= len(events)
            full = len(events) == self.max_events and left > 0
            woken = woken or any(fd == self._wakefd for fd, _ in events)
            for ctx in self._owing(events):
                self.post(ctx)
        if woken and self._mailbox:
            self._wake()  # nobody wakes for mail that is there already

    def settle(self, ctx: EventFdCtx, /) -> int:
        """Empty the eventfd; return what of it was not injected yet (0: nothing is owed)."""
        if ctx._drain is not self:
            raise TypeError("settle() takes an EventFdCtx of this drain")
        if self.dead:
            return 0
        info = fdinfo(ctx._fd) if ctx._leftover else None
        old = info[0] if info else 0
        self.collect()
        due = ctx._settle()
        was_leftover, ctx._leftover = ctx._leftover, False
        ctx._event = ctx._fresh = False
        by_ones = ctx._by_ones
        total = ctx._take_counted(by_ones=by_ones)
        value = 0 if by_ones and total else ctx._read_kernel()
        ctx._signals = (ctx._signals + total + value) & _MASK
        if not due and by_ones:
            # One of its rest, which is owed no injection (row P05); unless it was written since the first look.
            self.collect()
            if not ctx._settle():
                total = value = 0
            ctx._event = False
        elif not due and was_leftover:
            value = max(value - old, 0)
        return min(total + value, _MASK)  # 0 although it was due: somebody else has taken it meanwhile

    def settle_unread(self, limit: int, /) -> int:
        """Nothing to do: this module reads at every event."""
        del limit
        return 0

    def close(self) -> None:
        """Close the epoll; idempotent."""
        with _lock:
            self.dead = True
            if not self._epoll.closed:
                self._epoll.close()
                os.close(self._wakefd)
            while self._mailbox:
                self._mailbox.popleft()._posted_to = None

    def abandon(self) -> None:
        """Close it in a forked child: the parent keeps its registrations, and what it has counted is the parent's alone."""
        for ctx in list(self._tenants.values()):
            ctx._count = 0
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_wakefd"):
            self.close()
