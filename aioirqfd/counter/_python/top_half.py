"""TopHalf: what a manager does at once with an irqfd that is ready."""

# pyright: reportPrivateUsage=false
# (these classes see into each other, as C structures do)
from __future__ import annotations

import itertools
import operator
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple, cast, final

from aioirqfd.counter._python.core import BATCH, unraisable
from aioirqfd.counter._python.flight_ring import (
    DEFERRED,
    HANDLER_BEGUN,
    HANDLER_ENDED,
    HANDLER_RAISED,
    HELD,
    INJECTED,
    SEEN,
    WAKEUP,
)
from aioirqfd.counter._python.stepped import Stepped

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from aioirqfd.counter._python.core import Irqfd
    from aioirqfd.counter._python.drain import Drain
    from aioirqfd.counter._python.eventfd_ctx import EventFdCtx
    from aioirqfd.counter._python.flight_ring import FlightRing

_Ts = TypeVarTuple("_Ts")
_T = TypeVar("_T")
_SLICE: Final = 0.001


def _hand(ctx: EventFdCtx, irqfd: Irqfd, method: Callable[[int], object], count: int) -> None:
    """Give the irqfd what was signalled; it may fail, but not take the others down with it.

    What interrupts the call before it is noted there, the exception of a signal handler say, does not lose it: it is owed again.
    """
    try:
        method(max(count, 1))
    except BaseException as error:
        unraisable(error)
        if ctx._irqfd is irqfd and ctx._drain is not None:
            ctx._put_back(count)
            if ctx._owe():
                ctx._post()


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
        flight: FlightRing | None = None,
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
        self.flight = flight
        self.source = 0
        self.context: Context | None = None
        self._entered = False
        self.paused = False
        self.full = False

    @property
    def held(self) -> int:
        """How many irqfds wait here."""
        return len(self._held)

    @property
    def ready(self) -> int:
        """How many irqfds wait for their handler."""
        return len(self._ready)

    def within(self, drain: Drain, call: Callable[[*_Ts], _T], /, *args: *_Ts) -> _T:
        """Call it in the manager's context, with the drain dispatching."""
        nested, drain.dispatching = drain.dispatching, True
        try:
            return self._enter(call, *args)
        finally:
            drain.dispatching = nested

    def _enter(self, call: Callable[[*_Ts], _T], /, *args: *_Ts) -> _T:
        """Call it in the manager's context; from within such a call it is there already."""
        if self.context is None or self._entered:
            return call(*args)
        self._entered = True
        try:
            return self.context.run(call, *args)
        finally:
            self._entered = False

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
            irqfd, handler, who = ctx._irqfd, ctx._handler, ctx._who
            if irqfd is None:
                continue
            # Before any call: a signal handler that signals it there must not have another worker run it too.
            ctx._running, ctx._told = task, count
            if handler is None or ctx._interrupt is None:
                ctx._running, ctx._told = None, 0
                _hand(ctx, irqfd, irqfd.defer, count)
                if ctx._irqfd is irqfd and ctx._taken:
                    self._enqueue(ctx)
                self._tell_progress()
                continue
            self._note(HANDLER_BEGUN, ctx, count)
            try:
                if self.context is None:
                    await handler(who, count)
                else:
                    await Stepped(self.context.copy(), None, handler, who, count)
            except GeneratorExit:
                self._enter(irqfd.defer, count)
                self._enter(self._leave, ctx, irqfd)
                raise
            except BaseException as error:
                self._note(HANDLER_RAISED, ctx, count)
                ours = self._enter(irqfd.handler_failed, error, count)
                self._enter(self._leave, ctx, irqfd)
                if not ours:
                    raise
            else:
                self._note(HANDLER_ENDED, ctx, count)
                self._enter(self._deliver, ctx, irqfd, count)
            if time.monotonic() >= ends:
                return

    def _deliver(self, ctx: EventFdCtx, irqfd: Irqfd, count: int) -> None:
        """The handler has returned: inject."""
        # Perhaps deassigned and assigned anew while the handler ran: what is cached now is another irqfd's.
        if ctx._irqfd is irqfd and self._try_dispatching(ctx):
            ctx._fast += 1
            self._note(INJECTED, ctx, count)
        else:
            irqfd.rest(count)
        self._leave(ctx, irqfd)

    def _try_dispatching(self, ctx: EventFdCtx) -> bool:
        """Inject from without a pass. What the sink signals comes later: it is not entered from within itself."""
        drain, interrupt = ctx._drain, ctx._interrupt
        if drain is None or interrupt is None:
            return False
        nested, drain.dispatching = drain.dispatching, True
        try:
            return self._try_one(interrupt)
        finally:
            drain.dispatching = nested

    def _leave(self, ctx: EventFdCtx, irqfd: Irqfd) -> None:
        """The handler is through, or gone. Unless it is idle, what comes next is the irqfd's to decide."""
        bound = ctx._irqfd is irqfd  # not deassigned since; the eventfd may be another irqfd's by now
        if bound:
            ctx._running, ctx._told = None, 0
            if ctx._taken:
                self._enqueue(ctx)
        if not (bound and ctx._interrupt is not None):
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
                if released < BATCH and not drain.dispatching and drain._here():
                    drain._dispatch(ctx)
                else:
                    ctx._post()
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
            self._note_at(time.monotonic_ns(), kind, ctx, count)

    def _note_at(self, now: int, kind: int, ctx: EventFdCtx, count: int) -> None:
        if self.flight is not None:
            count = count if kind == HELD else max(count, 1)
            self.flight._write(now, kind, ctx._gsi, ctx._fd, count, self.source)

    def _still_owes(self, ctx: EventFdCtx) -> bool:
        return ctx._top_half is self and ctx._drain is not None and ctx._owed

    def _hold(self, ctx: EventFdCtx) -> None:
        if not ctx._held:
            self._note(HELD, ctx, 0)
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
                unraisable(another)

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

    def _defer(self, ctx: EventFdCtx, irqfd: Irqfd, count: int) -> None:
        self._note(DEFERRED, ctx, count)
        if (self.full or self.paused) and ctx._top_half is self:
            ctx._put_back(count)
            if ctx._owe():
                self._hold(ctx)
            return
        _hand(ctx, irqfd, irqfd.defer, count)

    def _flush(self, batch: list[EventFdCtx]) -> None:
        """Hand the lined-up irqfds to the sink."""
        taking: list[tuple[EventFdCtx, Irqfd, int]] = []
        interrupts: list[object] = []
        for ctx in batch:
            irqfd, interrupt = ctx._irqfd, ctx._interrupt
            if irqfd is None or ctx._top_half is not self or interrupt is None:
                # Masked, re-routed, unbound or bound elsewhere since, by a sink that was called in between: through the mailbox
                # once more.
                if ctx._owed:
                    ctx._post()
            elif ctx._discharge() and (count := ctx._consume()) is not None:
                ctx._wakeups += 1
                taking.append((ctx, irqfd, count))
                interrupts.append(interrupt)
        if not taking:
            return
        # One look at the clock for all that go to the sink in one call.
        now = time.monotonic_ns()
        for ctx, _, count in taking:
            self._note_at(now, SEEN, ctx, count)
        taken = self._try_many(interrupts)
        now = time.monotonic_ns()
        for index, (ctx, irqfd, count) in enumerate(taking):
            if index < taken if taken >= 0 else self._try_one(interrupts[index]):
                ctx._fast += 1
                self._note_at(now if taken >= 0 else time.monotonic_ns(), INJECTED, ctx, count)
            else:
                self._defer(ctx, irqfd, count)

    def _wakeup(self, ctx: EventFdCtx) -> None:
        """The slow top half: the irqfd decides."""
        lane = ctx._handler is not None and ctx._interrupt is not None
        no_room = lane and not ctx._queued_here and ctx._running is None and len(self._ready) >= self.room
        if self.paused or self.full or no_room:
            if ctx._owed:
                self._hold(ctx)
        elif ctx._discharge() and (count := ctx._consume()) is not None:
            irqfd = ctx._irqfd
            ctx._wakeups += 1
            self._note(WAKEUP, ctx, count)
            if lane and count:
                ctx._taken += count
                self._enqueue(ctx)
            elif irqfd is not None:
                _hand(ctx, irqfd, irqfd.wakeup, count)
