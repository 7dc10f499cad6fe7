"""Drain: the private epoll of one loop, and the mailbox beside it."""

# pyright: reportPrivateUsage=false
# (these classes see into each other, as C structures do)
from __future__ import annotations

import contextlib
import os
import select
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, final

from aioirqfd.counter._python.core import BATCH, MASK, lock, unraisable
from aioirqfd.counter._python.eventfd_ctx import SEMAPHORE_AT_MOST
from aioirqfd.counter._python.fd import fdinfo, has_count
from aioirqfd.integers import integer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aioirqfd.counter._python.eventfd_ctx import EventFdCtx
    from aioirqfd.counter._python.top_half import TopHalf


@final
class Drain:
    """The private epoll of one loop. Edge-triggered; every event is read, so a stale one finds nothing and is dropped.

    Args:
        max_events: The bound of one pass, for each of its two sources.
        loop: The loop that runs it.
        running_loop: Tells which loop runs in the thread that asks. Without it, the drain's thread is whichever ran it last.
        current_task: Tells whether a task of a loop is in the middle of a step; asyncio's own dict of them will do. Without it,
            nobody sleeps.
    """

    def __init__(
        self,
        max_events: int = BATCH,
        loop: object = None,
        running_loop: Callable[[], object] | None = None,
        current_task: Callable[[object], object] | Mapping[object, object] | None = None,
    ) -> None:
        self.max_events = integer(max_events, "max_events", 1, 2**20)
        self._loop = loop
        self._running_loop = running_loop
        self._current_task = current_task
        self._thread = threading.get_ident()
        self.dispatching = False
        self._passing = False  # in run(), which the loop itself has called: it is awake
        self._nudged = False  # woken by nudge(), and not come round since
        self._dead = False
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
        try:
            self._wakefd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except BaseException:
            self._epoll.close()
            raise
        self._epoll.register(self._wakefd, select.EPOLLIN | select.EPOLLET)

    def _here(self) -> bool:
        """Whether this is its thread: the one in which its loop is running now, not the one that has run it last."""
        if self._running_loop is None:
            return self._thread == threading.get_ident()
        return self._running_loop() is self._loop

    def fileno(self) -> int:
        """The epoll's fd, -1 once closed."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def add(self, ctx: EventFdCtx, /) -> None:
        """Register an eventfd; a count that is there is an event."""
        with lock:
            if ctx._drain is not None or self._dead:
                raise RuntimeError("add() takes an unregistered eventfd, and an open drain")
            fresh = has_count(ctx._fd)
            try:
                self._epoll.register(ctx._fd, select.EPOLLIN | select.EPOLLET)
            except FileExistsError:
                if ctx._fd in self._generations:
                    raise
                # A leftover: it was closed behind our back, which no unregister undoes (row E22), and is back under its number.
                self._epoll.modify(ctx._fd, select.EPOLLIN | select.EPOLLET)
            self._registrations += 1
            self._generations[ctx._fd] = ctx._generation = self._registrations
            ctx._fresh, ctx._event = fresh, False
            self._tenants[ctx._fd] = ctx
            self.attached += 1
            if ctx._posted_to is not None and ctx._posted_to is not self:
                # It has changed loops with a post under way there.
                ctx._posted_to._mailbox.remove(ctx)
                ctx._posted_to = None
            ctx._drain = self
            if ctx._count and ctx._owe():
                self._post(ctx)

    def remove(self, ctx: EventFdCtx, /) -> None:
        """Take it out again; no event of it is dispatched from here on."""
        with lock:
            if ctx._drain is not self:
                raise TypeError("remove() takes an EventFdCtx of this drain")
            ctx._drain = None
            self.attached -= 1
            # Its debt goes with it: what is counted stays counted, and is an event again wherever it is added next.
            ctx._discharge()
            ctx._event = ctx._fresh = False
            if self._generations.get(ctx._fd) == ctx._generation:
                del self._generations[ctx._fd]
                self._tenants.pop(ctx._fd, None)
                if not self._dead:
                    with contextlib.suppress(OSError, ValueError):
                        self._epoll.unregister(ctx._fd)

    def _post(self, ctx: EventFdCtx) -> None:
        """Post an owed ctx; from any thread."""
        with lock:
            if self._dead or ctx._posted_to is not None:
                return
            ctx._posted_to = self
            self._mailbox.append(ctx)
            wake, self._woken = not self._woken, True
            if wake:
                self._wake()

    def _wake(self) -> None:
        os.eventfd_write(self._wakefd, 1)

    def nudge(self) -> None:
        """Something was made ready on the loop's thread, a future or a callback: wake the loop, if it may be asleep.

        To be on that thread is not to be inside the loop: a signal handler, or another greenlet, runs there while the loop is in
        its selector, which does not look again by itself. Once, until it has come round.
        """
        ask = self._current_task
        if self._passing or self._nudged or self._dead or ask is None:
            return
        if (ask(self._loop) if callable(ask) else ask.get(self._loop)) is None:
            self._nudged = True
            self._wake()

    def _dispatch(self, ctx: EventFdCtx) -> None:
        """One eventfd at once: a signal on the loop's own thread."""
        self.dispatching = True
        try:
            if ctx._handler is None and ctx._interrupt is not None:
                assert ctx._top_half is not None
                ctx._top_half._enter(ctx._top_half._flush, [ctx])
            else:
                self._slow(ctx)
        finally:
            self.dispatching = False
            self.nudge()

    def _slow(self, ctx: EventFdCtx) -> None:
        if ctx._top_half is not None:
            ctx._top_half._enter(ctx._top_half._wakeup, ctx)
        elif ctx._discharge():
            ctx._event = False
            try:
                ctx._on_ready()
            except BaseException as error:
                unraisable(error)

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
        if self._dead or self.dispatching:
            return 0
        self._thread = threading.get_ident()  # a loop may be run by one thread after another
        events = self._epoll.poll(0, self.max_events)
        # The mailbox first: what was held back for want of room comes through it, and must not be overtaken for ever.
        with lock:
            self._woken = False
            mail = min(len(self._mailbox), self.max_events)
        ready: list[EventFdCtx] = []
        self.dispatching = self._passing = True
        self._nudged = False
        try:
            for _ in range(mail):
                with lock:
                    ctx = self._mailbox.popleft()
                    ctx._posted_to = None
                ready.append(ctx)
            if self._mailbox:
                self._wake()
            ready += self._owing(events)
            batches: dict[TopHalf, list[EventFdCtx]] = {}
            slow: list[EventFdCtx] = []
            for ctx in ready:
                if ctx._top_half is not None and ctx._handler is None and ctx._interrupt is not None:
                    batches.setdefault(ctx._top_half, []).append(ctx)
                else:
                    slow.append(ctx)
            for top_half, batch in batches.items():
                top_half._enter(top_half._flush, batch)
            for ctx in slow:
                if ctx._drain is self and ctx._owed:
                    self._slow(ctx)
        except BaseException:
            # A Python signal handler may raise anywhere. Who still owes must be in one place all the same.
            for ctx in ready:
                if ctx._drain is self and ctx._owed and not ctx._held:
                    self._post(ctx)
            raise
        finally:
            self.dispatching = self._passing = False
        return len(ready)

    def collect(self) -> None:
        """Note every event there is as owed, dispatching nothing."""
        full = not self._dead
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
                self._post(ctx)
        if woken and (self._mailbox or self._nudged):
            self._wake()  # nobody wakes for mail that is there already, nor twice for what is ready

    def read_out(self, ctx: EventFdCtx, /) -> int:
        """Empty the eventfd; return what of it was not injected yet (0: nothing is owed)."""
        if ctx._drain is not self:
            raise TypeError("read_out() takes an EventFdCtx of this drain")
        if self._dead:
            return 0
        was_leftover = ctx._leftover
        old = self._look(ctx) if was_leftover else 0
        self.collect()
        due = ctx._discharge()
        ctx._leftover = ctx._event = ctx._fresh = False
        by_ones = ctx._by_ones
        total = ctx._take_counted(by_ones=by_ones)
        read = 0 if by_ones and total else ctx._read_kernel(SEMAPHORE_AT_MOST)
        value = read or 0
        ctx._signals = (ctx._signals + total + value) & MASK
        if due and read is None and not total:
            value = 1  # nobody else has read it
        if not due and by_ones:
            # One of its rest, which is owed no injection (row P05); unless it was written since the first look.
            self.collect()
            if not ctx._discharge():
                total = value = 0
            ctx._event = False
        elif not due and was_leftover:
            value = max(value - old, 0)
        return min(total + value, MASK)  # 0 although it was due: somebody else has taken it meanwhile

    @staticmethod
    def _look(ctx: EventFdCtx) -> int:
        """What the kernel's counter holds. Where fdinfo cannot be read, 0: rather injected twice than lost."""
        try:
            info = fdinfo(ctx._fd)
        except OSError:
            return 0
        return info[0] if info else 0

    def read_unread(self, limit: int, /) -> int:
        """Nothing to do: this module reads at every event."""
        del limit
        return 0

    def tenants(self) -> list[EventFdCtx]:
        """The eventfds that are registered."""
        return list(self._tenants.values())

    def close(self) -> None:
        """Close the epoll; idempotent."""
        with lock:
            self._dead = True
            if not self._epoll.closed:
                self._epoll.close()
                os.close(self._wakefd)
            while self._mailbox:
                self._mailbox.popleft()._posted_to = None

    def abandon(self) -> None:
        """Close it in a forked child: the parent keeps its registrations, and what it has counted is the parent's alone."""
        for ctx in self.tenants():
            ctx._count = 0
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_wakefd"):
            self.close()
