"""The binding of an eventfd to a gsi, which a user holds as an :class:`aioirqfd.IrqFd`.

The top half, :meth:`Binding.wakeup` and :meth:`Binding.defer`, runs on the loop's thread from within the drain: synchronous,
bounded, never raises. (For an irqfd that is idle, free and plain, not even that runs: the counter module hands its cached
interrupt to the sink by itself.) The bottom half is a coroutine on the manager's work queue: :mod:`aioirqfd.irqfd.injection`.

What must hold: a signal is in one place at any time, the eventfd, the counter module, the debt or the sink's hands; and whatever is
raised on the way from one to the next, by a sink, a tracer or a signal handler of the program's, leaves it in one of them. The state
is moved by :meth:`Binding.step` and by nothing else.

Tempting, and wrong:

- to look at the state, call something, and then move it: a signal handler may signal at any call. Looked up and moved is one step;
- to let an idle irqfd stay armed when it becomes anything else: the counter module would inject beside the bottom half;
- to schedule while its handler runs: the irqfd would run against itself. ``left()`` schedules, when the handler is through;
- to shut in any other order: first the eventfd is nobody's, then what it holds is taken, and last it may be bound anew.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, final

from aioirqfd.counter import MAX
from aioirqfd.errors import ClosedError
from aioirqfd.irqfd.debt import Debt, Done
from aioirqfd.irqfd.injection import Injection
from aioirqfd.irqfd.interrupt import Interrupt
from aioirqfd.irqfd.routing import is_level
from aioirqfd.irqfd.state import ACTIVE, OWING, TABLE, Action, Event, State, shown
from aioirqfd.irqfd.statistics import IrqFdStatistics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aioirqfd.eventfd import EventFd
    from aioirqfd.irqfd.backpressure import Backpressure
    from aioirqfd.irqfd.delivery import Delivery, Origin
    from aioirqfd.irqfd.lines import Lines
    from aioirqfd.irqfd.routing import Routes
    from aioirqfd.irqfd.trigger import Trigger
    from aioirqfd.irqfd.workqueue import Work

# What runs at each signal has them at hand: before Python 3.12, to look a member up in its class costs as much as three calls.
_IDLE, _PENDING, _INJECTING, _CLOSED = State.IDLE, State.PENDING, State.INJECTING, State.CLOSED
_SIGNAL, _CLOSE, _SCHEDULE = Event.SIGNAL, Event.CLOSE, Action.SCHEDULE


class _Owner(Protocol):
    """What an irqfd asks of its manager."""

    @property
    def delivery(self) -> Delivery: ...
    @property
    def routes(self) -> Routes: ...
    @property
    def lines(self) -> Lines: ...
    @property
    def backpressure(self) -> Backpressure: ...
    @property
    def inherited(self) -> bool: ...

    def check_here(self) -> None: ...
    def offload(self, binding: Binding, /) -> bool: ...
    def reclaim(self, binding: Binding, /) -> None: ...
    def wants_route(self, binding: Binding, /) -> None: ...
    def leave(self, binding: Binding, /) -> None: ...
    def finished(self, binding: Binding, /) -> None: ...
    def withhold(self, eventfd: EventFd, count: int, /) -> bool: ...
    async def deassign(self, binding: Binding, /) -> None: ...
    def explain(self, binding: Binding, /) -> str: ...


@final
@dataclass(slots=True)
class Mark:
    """Where an irqfd stood when a flush began: see :meth:`Binding.passed`."""

    owed: bool
    lane: int
    fast: int
    deferrals: int
    target: int


@final
class Binding:
    """An eventfd bound to a gsi.

    Attributes:
        owner: What it shares with the other irqfds of its manager.
        gsi: The gsi, 0..2**32-1.
        resamplefd: Signalled at each end of interrupt, or None for an edge-triggered one.
        trigger: Its half of the eventfd.
        handlers: Run before each injection.
        masked: Whether signals are kept.
        closing: Whether its eventfd is nobody's any more.
        offloaded_as: What the sink injects that watches the eventfd itself; None: no sink does.
        origin: Whose it is, for its events; None: nobody hears of them.
        face: What the user holds, and the handlers are called with; gone when it is deassigned.
    """

    __slots__ = (
        "_debt",
        "_delivery",
        "_dropped",
        "_dropped_under",
        "_injection",
        "_routes",
        "_state",
        "closing",
        "face",
        "gsi",
        "handlers",
        "masked",
        "offloaded_as",
        "origin",
        "owner",
        "resamplefd",
        "trigger",
    )

    def __init__(
        self,
        owner: _Owner,
        trigger: Trigger,
        *,
        gsi: int,
        resamplefd: EventFd | None,
        handlers: tuple[Callable[..., Awaitable[None]], ...],
        masked: bool,
    ) -> None:
        self.gsi: Final = gsi
        self.resamplefd: Final = resamplefd
        self.trigger: Final = trigger
        self.handlers: Final = handlers
        self.masked = bool(masked)
        self.face: object
        self.closing = False
        self.offloaded_as: Interrupt | None = None
        self.owner: Final = owner
        self._delivery: Final = owner.delivery
        self.origin: Origin | None = None
        self._routes: Final = owner.routes
        self._state = _IDLE
        self._debt: Debt | None = None
        self._injection: Injection | None = None
        self._dropped = 0
        self._dropped_under = -1  # the routing generation whose lack of a route was traced

    # -- for the user: see IrqFd -------------------------------------------------------------------------------------

    @property
    def eventfd(self) -> EventFd:
        """The trigger."""
        return self.trigger.eventfd

    @property
    def eventfd_id(self) -> int:
        """The kernel's number of it."""
        return self.trigger.eventfd_id

    @property
    def state(self) -> State:
        """Where it stands, for who looks."""
        trigger = self.trigger
        running, waiting = trigger.running is not None, trigger.lined_up
        return shown(self._state, running=running, waiting=waiting, signalled=trigger.look())

    @property
    def offloaded(self) -> bool:
        """Whether the sink itself watches the eventfd."""
        return self.offloaded_as is not None

    @property
    def pending(self) -> bool:
        """Whether an injection is owed and has not begun."""
        return self._state in OWING or self.trigger.lined_up or self.trigger.look()

    @property
    def error(self) -> Exception | None:
        """What the sink raised, while it is broken."""
        return None if self._injection is None else self._injection.error

    def statistics(self) -> IrqFdStatistics:
        """The counts as they are now."""
        self.read_out()
        counts, injection = self.trigger.counts, self._injection
        owed, returned = (0, 0) if self._debt is None else (self._debt.owed, self._debt.returned)
        signals = max(counts.signals - returned, 0)
        injections = counts.fast + (0 if injection is None else injection.slow)
        return IrqFdStatistics(
            signals=signals,
            wakeups=counts.wakeups,
            injections=injections,
            fast=counts.fast,
            coalesced=max(signals - owed - self.trigger.untold - injections - self._dropped, 0),
            dropped=self._dropped,
            retries=0 if injection is None else injection.retries,
        )

    def mask(self) -> None:
        """Keep signals pending."""
        self._check()
        if self.masked:
            return
        self._delivery.trace("irqfd_masked", self)
        self.read_out()
        self.masked = True
        try:
            self.owner.reclaim(self)
        finally:
            self.arm()

    def unmask(self) -> None:
        """Inject what is pending, and further signals as they come."""
        self._check()
        if not self.masked:
            return
        self.masked = False
        self._delivery.since.forget(self.eventfd_id)
        self._delivery.trace("irqfd_unmasked", self, pending=self._state is _PENDING)
        self.unblock()

    def resume(self) -> None:
        """Inject again after it was marked broken."""
        self._check()
        if self._state is State.BROKEN:
            self.injection.forget()
        self.step(Event.RESUME)

    async def aclose(self) -> None:
        """Deassign it."""
        await self.owner.deassign(self)

    def _check(self) -> None:
        self.owner.check_here()
        if self.closing:
            raise ClosedError("the irqfd is deassigned")

    # -- top half: called by the counter module ----------------------------------------------------------------------

    def wakeup(self, count: int, /) -> None:
        """The eventfd was signalled ``count`` times."""
        self.arm()
        if self._state is _IDLE and not self._blocked and not self.handlers:
            if not self._routes.of(self.gsi):
                self.dropped()
                return
            if self._inject_now():
                self.trigger.taken()
                return
        self.defer(count)

    def defer(self, count: int, /) -> None:
        """The same, when the sink would not take it at once."""
        self.debt.add(count)
        if self.closing and self._state is _CLOSED:
            # A sink that refused, and in the same breath deassigned: the signal goes back where it came from.
            self._give_back()
            return
        try:
            self.step(_SIGNAL)
        except BaseException:
            self.debt.count -= count  # it is owed again
            raise

    def rest(self, count: int, /) -> None:
        """The handler has run, and the sink would not take the interrupt at once, or may not any more."""
        self.debt.add_told(count, len(self.handlers), self._routes.of(self.gsi))
        self.step(_SIGNAL)

    def left(self) -> None:
        """Its handler is through, and it is not idle: go on where it stands."""
        self.trigger.ran()
        if self._state is State.QUEUED:
            self.owner.backpressure.schedule(self.work)
        self.ended()

    def handler_failed(self, error: BaseException, count: int, /) -> bool:
        """The handler raised; False: the error is the worker's own."""
        self.debt.add_told(count, 0, self.debt.routes)
        self.step(Event.RUN)
        return self.injection.failed(error)

    def _inject_now(self) -> bool:
        """Try the sink without waiting."""
        delivery, routes = self._delivery, self._routes.of(self.gsi)
        try:
            if self.resamplefd is not None and is_level(routes):
                taken = self.owner.lines[self.gsi].try_assert(routes, self)
            elif len(routes) != 1:
                return False  # several chips: always by the work queue (row M05)
            else:
                taken = delivery.try_inject(Interrupt(self.gsi, routes[0]))
        except BaseException as error:
            # Whatever it is, the interrupt was not taken, and its count is out of the eventfd already.
            delivery.fast_path_failed(error)
            return False
        if taken:
            delivery.injected(self, fast=True)
        return taken

    def arm(self) -> None:
        """Tell the counter module whether it may inject by itself: an idle, free, plain irqfd with one route."""
        route = None
        plain = self._state is _IDLE and self._delivery.fast and len(self.handlers) <= 1
        if plain and not (self._blocked or self.closing):
            route = self._routes.pulse(self.gsi, level=self.resamplefd is not None)
        self.trigger.arm(route)

    @property
    def _blocked(self) -> bool:
        return self.masked or self._routes.blocks(self.gsi)

    def dropped(self) -> None:
        """An interrupt had no route."""
        before, self._dropped_under = self._dropped_under, self._routes.generation
        self._dropped += 1
        self._delivery.drop(self, first=before < 0, anew=before != self._dropped_under)

    # -- the state machine -------------------------------------------------------------------------------------------

    def step(self, event: Event) -> Action:
        """Move by the table, and do what the move asks for."""
        # Looked up and moved in one step: a signal handler that signals runs at any call of a function.
        blocked = event is not _CLOSE and self._blocked  # what is closed is closed
        before = self._state
        self._state, action = TABLE[blocked][before][event]
        if before is _IDLE and self._state is not _IDLE and not self.closing:
            self.trigger.arm(None)  # once it is closing, the eventfd is another's
        if action is _SCHEDULE:
            # An irqfd never runs against itself: while its handler runs, left() does it.
            if self.trigger.running is None:
                try:
                    self.owner.backpressure.schedule(self.work)
                except BaseException:
                    self._state = before  # interrupted, by a signal handler's exception say
                    raise
        elif self._state is _PENDING:
            self.owner.wants_route(self)
        return action

    @property
    def injection(self) -> Injection:
        """Its bottom half; made at the first need."""
        if self._injection is None:
            self._injection = Injection(self, self.debt, self.handlers, self._delivery, self._routes, self.owner.lines)
        return self._injection

    @property
    def work(self) -> Work:
        """Its item on the work queue."""
        return self.injection.work

    def ended(self) -> None:
        """An attempt is over, one way or another."""
        if self.closing and not self.active:
            self._finish()
        self.owner.backpressure.progress()

    def unblock(self) -> None:
        """Unmasked, resumed or routed: inject what is pending, or let the sink watch the eventfd again."""
        if self.closing or self.offloaded:
            return
        if self._blocked:
            if self._state is _PENDING:
                self.owner.wants_route(self)
            return
        if self.owner.offload(self):
            return
        if self.step(Event.UNBLOCK) is Action.NONE:
            self.arm()

    # -- what is owed ------------------------------------------------------------------------------------------------

    @property
    def debt(self) -> Debt:
        """What it owes; made at the first need, which an irqfd whose sink takes all at once never has."""
        if self._debt is None:
            self._debt = Debt()
        return self._debt

    def read_out(self) -> None:
        """Count what was injected without a read; what is owed stays where it is. Nothing happens off the loop."""
        if self.trigger.look_unread():
            self._empty()

    def take_owed(self) -> None:
        """Take what is owed and is not to be injected just now. Called on the loop's thread alone."""
        if self.trigger.owed:
            self._empty()

    def gather(self) -> None:
        """Take at once what is owed of a semaphore whose signals are counted: a dispatch takes some, and a flush is for all."""
        if self.handlers and self.eventfd.semaphore:
            self.take_owed()

    def _empty(self) -> None:
        owed, unread = self.trigger.empty()
        self.note_unread(unread)
        if owed:
            self.trigger.woken()
            self.defer(owed)
            self.arm()

    def unwatch(self, *, whole: bool) -> int:
        """Leave the loop: what was signalled up to here and is not injected. What comes later stays in the eventfd."""
        owed, unread = self.trigger.unwatch(whole=whole)
        if unread:
            self.note_unread(unread)
        return owed

    def note_unread(self, count: int) -> None:
        """So many signals had been seen and left unread: if what they called for is still owed, they are in its count."""
        if self._state in OWING:
            self.debt.note_unread(count)

    def capture(self) -> tuple[bool, int, Done]:
        """For a snapshot: whether an injection is owed, how many signals, and what of it is done."""
        if self.trigger.look() or (self._state in OWING and not self.eventfd.semaphore):
            self._empty()
        count, done = self.debt.capture(len(self.handlers), self._routes.of(self.gsi))
        return self._state in OWING, count, done

    @property
    def captured(self) -> bool:
        """Whether what is owed, and what is to be told, is a snapshot's."""
        return self._debt is not None and self._debt.captured

    def release(self) -> None:
        """The manager goes on: what a snapshot took is injected here after all."""
        if self._debt is not None:
            self._debt.release()

    def restore(self, *, masked: bool, pending: bool, count: int, done: Done) -> None:
        """Stand as a snapshot says. The manager is paused, and its routing is the snapshot's."""
        if self._injection is not None:
            self._injection.forget()
        no_snapshot = self.debt.baseline is None
        own = self.debt.restore(count, done, len(self.handlers), self._routes.of(self.gsi))
        # What is owed here and was in no snapshot is owed all the same.
        pending = pending or own > 0 or (no_snapshot and self._state in OWING)
        self.masked = masked
        self.step(Event.HAND_OVER)
        if pending:
            self.step(_SIGNAL)
        self.arm()

    # -- offloading --------------------------------------------------------------------------------------------------

    @property
    def free(self) -> bool:
        """Whether a sink may watch the eventfd by itself, as far as it is the irqfd's to say."""
        free = not (self.closing or self._blocked or self.handlers)
        return free and self._state in {_IDLE, _PENDING}

    def note_offload(self, interrupt: Interrupt, count: int) -> None:
        """The sink watches the eventfd now, and injects what was signalled before: a signal is all it takes."""
        self.offloaded_as = interrupt
        self.debt.count += count
        if count or self._state is _PENDING:
            self.step(Event.HAND_OVER)
            self._give_back()

    # -- closing -----------------------------------------------------------------------------------------------------

    def on_eventfd_closing(self) -> None:
        """The eventfd is about to be closed (row C04): deassign; what is owed is injected all the same (row W03)."""
        self.shut()

    def shut(self) -> None:
        """The part of deassign that does not wait: from here on the eventfd is nobody's."""
        if self.closing:
            return
        self.closing = True
        self.trigger.leave()
        try:
            self.owner.leave(self)
        finally:
            # Whatever was raised on the way, an fd that was closed behind our back say: nothing stays bound, or half shut.
            if self._injection is not None:
                self._injection.retry_now()
            # Within a pass, one of its signals may be in the sink's hands, which refuses it perhaps: then it is injected yet.
            if not self.active and not self._delivery.call_soon(self._finish_idle):
                self._finish()

    @property
    def active(self) -> bool:
        """Whether something of it runs, or is about to."""
        return self._state in ACTIVE or self.trigger.lined_up or self.trigger.running is not None

    @property
    def in_motion(self) -> bool:
        """The same, or a signal that has not come to the top half."""
        return self._state in ACTIVE or self.trigger.engaged

    @property
    def closed(self) -> bool:
        """Whether nothing of it will run any more."""
        return self._state is _CLOSED

    @property
    def busy(self) -> bool:
        """The same, but for a retry that waits for its time."""
        return self.active and self._state is not State.RETRYING

    async def drained(self) -> None:
        """Wait until nothing of it runs or will run."""
        here = asyncio.current_task()
        backpressure = self.owner.backpressure
        queue = backpressure.queue
        while self.trigger.running is not None:
            if queue.waits.circle(self.trigger, here):
                return  # a handler that deassigns its own irqfd, or one whose handler waits for this one
            with queue.waits.noted(self.trigger):
                await backpressure.next_progress()
        while self._state in ACTIVE:
            work = self.work
            if work.running is not None and work.running is asyncio.current_task():
                return  # a handler that deassigns its own irqfd
            if not work.pending and work.running is None and not backpressure.waits_for_room(work):
                # Somebody else has cancelled the workers, or we would never get here.
                self.abandon()
                backpressure.check_alive()
                return
            if not await backpressure.flush(work):
                return  # a handler that deassigns an irqfd whose handler is deassigning its own

    def abandon(self) -> None:
        """The work queue is gone: whatever was on it goes back into the eventfd."""
        if self.closing:
            self._finish()

    def _finish_idle(self) -> None:
        if not self.active:
            self._finish()

    def inherit(self) -> None:
        """In a forked child: it is the parent's."""
        self.closing = True
        self.step(_CLOSE)
        self.trigger.inherit()

    def _finish(self) -> None:
        if self._state is _CLOSED:
            return
        debt = self._debt
        if debt is not None and debt.captured:
            taken = debt.withheld(len(self.handlers))
            debt.leave(taken if taken and self.owner.withhold(self.eventfd, taken) else 0, len(self.handlers))
        if debt is not None and debt.owed:
            self._give_back()
        self.step(_CLOSE)
        self.owner.finished(self)
        del self.face  # the two would keep each other until the collector comes

    def _give_back(self) -> None:
        """What could not be injected is put back into the eventfd, where the next assign finds it (row P01)."""
        count = self.debt.give_back(len(self.handlers))
        if self.owner.inherited:
            return  # what is pending is pending in the parent process
        try:
            self.eventfd.signal(min(max(count, 1), MAX))
        except (ClosedError, OSError) as error:
            self._delivery.abandoned(self, count, error)

    # -- flushing ----------------------------------------------------------------------------------------------------

    def mark(self) -> Mark:
        """Where it stands, for :meth:`passed`."""
        target = self.debt.begun + (self._state is not _INJECTING) if self._state in ACTIVE else 0
        lane = self.trigger.lined_up + (self.trigger.running is not None)
        return Mark(
            self.trigger.owed, lane, self.trigger.fast, 0 if self._debt is None else self._debt.deferrals, target
        )

    def passed(self, mark: Mark) -> bool:
        """Whether every signal from before the mark is injected, or will not be for the time being."""
        trigger = self.trigger
        if mark.owed or mark.lane:
            if trigger.fast - mark.fast >= mark.owed + mark.lane:
                return True
            if self.debt.deferrals > mark.deferrals:
                mark.target = self.debt.covering
            elif trigger.engaged:
                return False  # still on its way to the top half, or to its handler
            mark.owed = False
            mark.lane = 0
        return self._state not in ACTIVE or self.debt.finished >= mark.target
