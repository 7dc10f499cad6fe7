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
import operator
import os
import select
import sys
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol, SupportsIndex, final

from aioirqfd.errors import ClosedError, WouldBlock

if TYPE_CHECKING:
    from collections.abc import Callable

MAX: Final = 2**64 - 2
"""The highest count a write leaves in an eventfd; 2**64-1 is kept for a saturated in-kernel signal (rows E06, E18)."""
_MASK: Final = 2**64 - 1
_WORD: Final = 8
_BATCH: Final = 1024

_lock = threading.Lock()
"""Held for a few instructions around counts and debts, by whichever thread signals."""


class _Irqfd(Protocol):
    def wakeup(self, count: int, /) -> None: ...
    def defer(self, count: int, /) -> None: ...


def _amount(value: SupportsIndex, low: int, what: str) -> int:
    number = operator.index(value)
    if not low <= number <= MAX:
        raise ValueError(f"{what} is {low}..2**64-2, not {number}")
    return number


def fdinfo(fd: int, /) -> tuple[int, int, bool] | None:
    """(count, eventfd-id, semaphore) of an eventfd, consuming nothing; None for another kind of file (row E25).

    Raises:
        OSError: EBADF, the fd is not open.
    """
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


def _write_saturating(fd: int, n: int, *, blocking: bool) -> int:
    """Add what fits to the kernel's counter, and return it."""
    while n:
        # A write that does not fit is refused whole (row E07), and sleeps on a blocking fd (row E08): look first there.
        if blocking:
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
            added = min(n, MAX - self._value)
            self._value += added
        return added

    def read(self) -> int:
        """Take the count (1 of it, with ``semaphore=True``); WouldBlock at 0."""
        with _lock:
            value = min(self._value, 1) if self._semaphore else self._value
            self._value -= value
        if not value:
            raise WouldBlock
        return value


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
        "_held",
        "_interrupt",
        "_irqfd",
        "_leftover",
        "_linked",
        "_listening",
        "_owed",
        "_route_generation",
        "_semaphore",
        "_signals",
        "_top_half",
        "_wakeups",
        "_want_count",
    )

    def __init__(self, fd: int, *, semaphore: bool = False, blocking: bool = False) -> None:
        self._fd = fd
        self._semaphore = bool(semaphore)
        self._blocking = bool(blocking)
        self._count = self._signals = self._wakeups = self._fast = self._route_generation = 0
        self._drain: Drain | None = None
        self._top_half: TopHalf | None = None
        self._irqfd: _Irqfd | None = None
        self._interrupt: object = None
        self._listening = self._want_count = self._owed = self._linked = self._held = False
        self._event = self._fresh = self._leftover = False

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
        if self._fd < 0:
            raise ClosedError("the eventfd is closed")
        drain = self._drain
        if not self._listening or drain is None or drain.dead:
            return _write_saturating(self._fd, n, blocking=self._blocking)
        with _lock:
            added = min(n, MAX - self._count)
            self._count += added
            owes_now = not self._owed
            self._owed = True
        if owes_now:
            if not drain.dispatching and drain.thread == threading.get_ident():
                drain.dispatch(self)
            else:
                drain.post(self)
        return added

    def _settle(self) -> bool:
        with _lock:
            owed, self._owed = self._owed, False
        return owed

    def _owe(self) -> bool:
        with _lock:
            owed, self._owed = self._owed, True
        return not owed

    def _take_counted(self) -> int:
        with _lock:
            count = min(self._count, 1) if self._semaphore else self._count
            self._count -= count
        return count

    def _put_back(self, n: int) -> None:
        with _lock:
            added = min(n, MAX - self._count)
            self._count += added
        self._signals = (self._signals - added) & _MASK

    def _consume(self) -> int:
        """What this dispatch stands for; 0 when nothing is there, because somebody else read it."""
        total = self._take_counted()
        known = total > 0
        if self._event:
            fresh, self._event, self._fresh = self._fresh, False, False
            if fresh and not self._want_count:
                # What was there at assign time is injected once and stays until the next write (rows P01, P03, P04).
                self._leftover = known = True
            else:
                value = _read_now(self._fd, blocking=self._blocking) if self._fd >= 0 else 0
                self._leftover = False
                known = known or value > 0
                total += value
        self._signals = (self._signals + total) & _MASK
        return max(total, 1) if known else 0

    def _take(self) -> int:
        total = self._take_counted()
        if self._semaphore and total:
            return total
        return total + (_read_now(self._fd, blocking=self._blocking) if self._fd >= 0 else 0)

    def _spill(self) -> None:
        with _lock:
            rest, self._count = self._count, 0
        if rest and self._fd >= 0:
            _write_saturating(self._fd, rest, blocking=self._blocking)

    def _readable(self) -> bool:
        return self._count > 0 or (self._fd >= 0 and _has_count(self._fd))

    def _bind(self, top_half: TopHalf, irqfd: _Irqfd, want_count: bool, /) -> None:  # noqa: FBT001  the native signature
        if self._top_half is not None or self._drain is None:
            raise RuntimeError("_bind() takes a registered, unbound eventfd")
        self._top_half, self._irqfd, self._want_count = top_half, irqfd, want_count
        self._listening, self._leftover = True, False

    def _unbind(self) -> None:
        self._listening = self._want_count = self._event = self._fresh = self._leftover = False
        self._settle()
        self._interrupt = self._irqfd = self._top_half = None

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
        if self._drain is not None:
            self._drain.remove(self)


@final
class TopHalf:
    """What one manager does with a ready irqfd at once. Never raises, never waits."""

    def __init__(
        self,
        try_inject: Callable[..., bool] | None = None,
        try_inject_batch: Callable[..., int] | None = None,
        on_error: Callable[[Exception], object] | None = None,
    ) -> None:
        self._try_inject = try_inject
        self._try_inject_batch = try_inject_batch
        self._on_error = on_error
        self._held: deque[EventFdCtx] = deque()
        self.paused = False
        self.full = False
        self.generation = 0

    @property
    def held(self) -> int:
        """How many irqfds wait here."""
        return len(self._held)

    def release(self) -> int:
        """Dispatch what was held, until the queue is full again; return how many irqfds that were."""
        held, self._held = deque(self._held), deque()
        released = 0
        while held and not self.full and not self.paused:
            ctx = held.popleft()
            ctx._held = False
            drain = ctx._drain
            if drain is not None and ctx._owed:
                if released < _BATCH and not drain.dispatching and drain.thread == threading.get_ident():
                    drain.dispatch(ctx)
                else:
                    drain.post(ctx)
            released += 1
        self._held.extendleft(reversed(held))  # these keep their place before whatever was held just now
        return released

    def _hold(self, ctx: EventFdCtx) -> None:
        if not ctx._held:
            ctx._held = True
            self._held.append(ctx)

    def _report(self, error: Exception) -> None:
        if self._on_error is not None:
            self._on_error(error)

    def _try_one(self, interrupt: object) -> bool:
        if self._try_inject is None:
            return False
        try:
            return bool(self._try_inject(interrupt))
        except Exception as error:
            self._report(error)
            return False

    def _try_many(self, interrupts: list[object]) -> int:
        """How many of them, from the front, the sink took at once; -1: ask for each."""
        if self._try_inject_batch is None or len(interrupts) == 1:
            return -1
        try:
            taken = operator.index(self._try_inject_batch(interrupts))
        except Exception as error:
            self._report(error)
            return 0
        if not 0 <= taken <= len(interrupts):
            self._report(ValueError(f"try_inject_batch() returned {taken} for {len(interrupts)} interrupts"))
            return min(max(taken, 0), len(interrupts))
        return taken

    def _defer(self, ctx: EventFdCtx, irqfd: _Irqfd, count: int) -> None:
        if (self.full or self.paused) and ctx._top_half is self:
            ctx._put_back(count)
            if ctx._owe():
                self._hold(ctx)
            return
        irqfd.defer(count)

    def flush(self, batch: list[EventFdCtx]) -> None:
        """Hand the lined-up irqfds to the sink."""
        taking: list[tuple[EventFdCtx, _Irqfd, int]] = []
        interrupts: list[object] = []
        for ctx in batch:
            irqfd = ctx._irqfd
            if irqfd is None or not ctx._is_fast():
                # Masked, re-routed or unbound since, by a sink that was called in between: through the mailbox once more.
                if ctx._drain is not None and ctx._owed:
                    ctx._drain.post(ctx)
            elif ctx._settle() and (count := ctx._consume()):
                ctx._wakeups += 1
                taking.append((ctx, irqfd, count))
                interrupts.append(ctx._interrupt)
        if not taking:
            return
        taken = self._try_many(interrupts)
        for index, (ctx, irqfd, count) in enumerate(taking):
            if index < taken if taken >= 0 else self._try_one(interrupts[index]):
                ctx._fast += 1
            else:
                self._defer(ctx, irqfd, count)

    def wakeup(self, ctx: EventFdCtx) -> None:
        """The slow top half: the irqfd decides."""
        if self.paused or self.full:
            if ctx._owed:
                self._hold(ctx)
        elif ctx._settle() and (count := ctx._consume()):
            irqfd = ctx._irqfd
            ctx._wakeups += 1
            if irqfd is not None:
                irqfd.wakeup(count)


@final
class Drain:
    """The private epoll of one loop. Edge-triggered; every event is read, so a stale one finds nothing and is dropped."""

    def __init__(self, max_events: int = _BATCH) -> None:
        if not 1 <= max_events <= 2**20:
            raise ValueError("max_events is 1..2**20")
        self.max_events = max_events
        self.thread = threading.get_ident()
        self.dispatching = False
        self.dead = False
        self.unread = 0
        # Weak, as the native module's table is: an eventfd that is dropped leaves by itself.
        self._tenants: weakref.WeakValueDictionary[int, EventFdCtx] = weakref.WeakValueDictionary()
        self.attached = 0
        self._mailbox: deque[EventFdCtx] = deque()
        self._woken = False
        self._epoll = select.epoll()
        self._wakefd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wakefd, select.EPOLLIN | select.EPOLLET)

    def fileno(self) -> int:
        """The epoll's fd, -1 once closed."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def add(self, ctx: EventFdCtx, /) -> None:
        """Register an eventfd; a count that is there is an event."""
        if ctx._drain is not None or self.dead:
            raise RuntimeError("add() takes an unregistered eventfd, and an open drain")
        ctx._fresh = _has_count(ctx._fd)
        self._epoll.register(ctx._fd, select.EPOLLIN | select.EPOLLET)
        ctx._event = False
        ctx._drain = self
        self._tenants[ctx._fd] = ctx
        self.attached += 1

    def remove(self, ctx: EventFdCtx, /) -> None:
        """Take it out again; no event of it is dispatched from here on."""
        if ctx._drain is not self:
            raise TypeError("remove() takes an EventFdCtx of this drain")
        ctx._drain = None
        self.attached -= 1
        if self._tenants.get(ctx._fd) is ctx:
            del self._tenants[ctx._fd]
        if not self.dead:
            # The fd may have been closed behind our back.
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(ctx._fd)

    def post(self, ctx: EventFdCtx) -> None:
        """Post an owed ctx; from any thread."""
        with _lock:
            if ctx._linked:
                return
            ctx._linked = True
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
            if ctx._is_fast():
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
            ctx._on_ready()

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
        events = self._epoll.poll(0, self.max_events)
        # The mailbox first: what was held back for want of room comes through it, and must not be overtaken for ever.
        with _lock:
            self._woken = False
            mail = min(len(self._mailbox), self.max_events)
        ready: list[EventFdCtx] = []
        for _ in range(mail):
            with _lock:
                ctx = self._mailbox.popleft()
                ctx._linked = False
            ready.append(ctx)
        if self._mailbox:
            self._wake()
        ready += self._owing(events)
        self.dispatching = True
        try:
            batches: dict[TopHalf, list[EventFdCtx]] = {}
            slow: list[EventFdCtx] = []
            for ctx in ready:
                if ctx._top_half is not None and ctx._is_fast():
                    batches.setdefault(ctx._top_half, []).append(ctx)
                else:
                    slow.append(ctx)
            for top_half, batch in batches.items():
                top_half.flush(batch)
            for ctx in slow:
                if ctx._owed:
                    self._slow(ctx)
        finally:
            self.dispatching = False
        return len(ready)

    def collect(self) -> None:
        """Note every event there is as owed, dispatching nothing."""
        full = not self.dead
        while full:
            events = self._epoll.poll(0, self.max_events)
            full = len(events) == self.max_events
            for ctx in self._owing(events):
                self.post(ctx)

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
        leftover = ctx._leftover or ctx._fresh
        was_leftover, ctx._leftover = ctx._leftover, False
        ctx._event = ctx._fresh = False
        total = ctx._take_counted()
        value = 0
        if not (ctx._semaphore and total):
            value = _read_now(ctx._fd, blocking=ctx._blocking)
        ctx._signals = (ctx._signals + total + value) & _MASK
        if not due and ctx._semaphore and leftover:
            value = 0  # one of what was there when it was bound: injected then
        elif not due and was_leftover:
            value = max(value - old, 0)
        owed = total + value
        return max(owed, 1) if due else owed

    def settle_unread(self, limit: int, /) -> int:
        """Nothing to do: this module reads at every event."""
        del limit
        return 0

    def close(self) -> None:
        """Close the epoll; idempotent. Also for a forked child, where it leaves the parent's registrations alone."""
        self.dead = True
        if not self._epoll.closed:
            self._epoll.close()
            os.close(self._wakefd)
        self._mailbox.clear()

    def __del__(self) -> None:
        if hasattr(self, "_wakefd"):
            self.close()
