"""The irqfd: the binding of an eventfd to a gsi.

The top half, :meth:`IrqFd.wakeup` and :meth:`IrqFd.defer`, runs on the loop's thread from within the drain: synchronous,
bounded, never raises. (For an irqfd that is idle, free and plain, not even that runs: the counter module hands its cached
interrupt to the sink by itself.) The bottom half, :meth:`IrqFd.inject`, is a coroutine on the manager's work queue.
"""

# pyright: reportPrivateUsage=false
# (an underscore on an EventFd says "for this package")
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from aioirqfd.errors import ClosedError, InjectionError
from aioirqfd.irqfd.interrupt import Interrupt
from aioirqfd.irqfd.resampler import is_level
from aioirqfd.irqfd.state import ACTIVE, OWING, TABLE, Action, Event, State
from aioirqfd.irqfd.workqueue import Work

if TYPE_CHECKING:
    from aioirqfd.eventfd import EventFd
    from aioirqfd.irqfd.interrupt import Route
    from aioirqfd.irqfd.manager import IrqManager

    WakeupHandler = Callable[["IrqFd", int], Awaitable[None]]
else:
    WakeupHandler = Callable


@final
@dataclass(slots=True)
class Mark:
    """Where an irqfd stood when a flush began: see :meth:`IrqFd.passed`."""

    owed: bool
    lane: int
    fast: int
    deferrals: int
    target: int


@dataclass(frozen=True, slots=True)
class IrqFdStatistics:
    """Counts of one irqfd since it was assigned.

    What a snapshot brought is injected by the manager that it is restored into, and was counted as a signal by the other one: there
    ``injections`` can be more than ``signals``.

    Attributes:
        signals: The sum of the counts that were taken out of its eventfd, less what was put back.
        wakeups: How often the loop noticed.
        injections: Interrupts that reached the sink (an offloaded irqfd's are the kernel's, and not counted).
        fast: Of these, how many the sink took at once.
        coalesced: Signals that shared an injection with another (row W02); those that are still owed do not count yet.
        dropped: Injections that went nowhere because the gsi had no route (rows W08, G11).
        retries: Attempts after a failure of the sink or a handler.
    """

    signals: int
    wakeups: int
    injections: int
    fast: int
    coalesced: int
    dropped: int
    retries: int


@final
class _LaneRun:
    """A run of an irqfd's handler by the counter module."""

    __slots__ = ("_irqfd",)

    def __init__(self, irqfd: IrqFd) -> None:
        self._irqfd = irqfd

    @property
    def running(self) -> object:
        return self._irqfd.lane


@final
class IrqFd:
    """An eventfd bound to a gsi. Made by :meth:`IrqManager.assign`."""

    __slots__ = (
        "__weakref__",
        "_baseline",
        "_begun",
        "_captured",
        "_closing",
        "_count",
        "_covering",
        "_deferrals",
        "_dropped",
        "_dropped_under",
        "_error",
        "_failures",
        "_final",
        "_finished",
        "_handlers",
        "_lane",
        "_manager",
        "_masked",
        "_offloaded",
        "_references",
        "_retries",
        "_retry",
        "_returned",
        "_slow",
        "_stage",
        "_stage_routes",
        "_state",
        "_taken",
        "_work",
        "eventfd",
        "eventfd_id",
        "gsi",
        "resamplefd",
    )

    def __init__(
        self,
        manager: IrqManager,
        eventfd: EventFd,
        *,
        eventfd_id: int,
        gsi: int,
        resamplefd: EventFd | None,
        handlers: tuple[WakeupHandler, ...],
        masked: bool,
    ) -> None:
        self.eventfd = eventfd
        """The trigger. For an fd that was given as an int it is a reference of the irqfd's own, closed when it is deassigned."""
        self.eventfd_id = eventfd_id
        """The kernel's number of the eventfd, in which all its dups agree (row E25)."""
        self.gsi = gsi
        """The gsi it is bound to, 0..2**32-1."""
        self.resamplefd = resamplefd
        """Signalled at each end of interrupt, or None for an edge-triggered irqfd."""
        self._references: list[EventFd] = []  # what it closes itself
        self._manager = manager
        self._handlers = handlers
        self._masked = masked
        self._state = State.IDLE
        self._work: Work | None = None
        self._closing = False
        self._lane: tuple[object, int] | None = (
            None  # when it was deassigned: the task that ran its handler, and the count
        )
        self._offloaded: Interrupt | None = None
        self._count = 0  # signalled, and not yet given to the handlers
        self._taken = 0  # given to the handlers of the injection under way
        self._stage = 0  # how many handlers and routes of it are done; a retry goes on from there
        self._stage_routes: tuple[Route, ...] = ()
        # Injections are numbered as they begin; _covering is the number of the first that begins after the last deferral.
        self._begun = self._finished = self._covering = 0
        self._deferrals = self._failures = self._retries = self._dropped = self._slow = self._returned = 0
        self._final: tuple[int, int, int] | None = None
        self._error: Exception | None = None
        self._retry: asyncio.TimerHandle | None = None
        # How much of what is owed is a snapshot's, since it was taken or restored here, and whether that is another's now.
        self._baseline: int | None = None
        self._captured = False
        self._dropped_under = -1  # the routing generation whose lack of a route was traced

    def __repr__(self) -> str:
        masked = " masked" if self._masked else ""
        return f"<IrqFd gsi={self.gsi} eventfd-id={self.eventfd_id} {self._state.name}{masked}>"

    # -- what a user sees --------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Where it stands."""
        return self._state

    @property
    def masked(self) -> bool:
        """Whether it is masked."""
        return self._masked

    @property
    def offloaded(self) -> bool:
        """Whether the sink itself watches the eventfd (``KVM_IRQFD``)."""
        return self._offloaded is not None

    @property
    def pending(self) -> bool:
        """Whether an injection is owed and has not begun; right also for signals that are still inside the eventfd.

        Threads:
            The manager's loop.
        """
        eventfd = self.eventfd
        poller = eventfd._poller
        if self._state in OWING or self._lined_up or self._closing or poller is None or not eventfd._registered:
            return self._state in OWING or self._lined_up
        poller.drain.collect()
        return eventfd._owed

    @property
    def error(self) -> Exception | None:
        """What the sink raised, while the irqfd is broken."""
        return self._error

    def statistics(self) -> IrqFdStatistics:
        """The counts as they are now.

        Threads:
            The manager's loop: what was injected without its count having been read is read now.
        """
        self.settle()
        eventfd = self.eventfd
        signals, wakeups, fast = self._final or (eventfd._signals, eventfd._wakeups, eventfd._fast)
        signals = max(signals - self._returned, 0)
        injections = fast + self._slow
        return IrqFdStatistics(
            signals=signals,
            wakeups=wakeups,
            injections=injections,
            fast=fast,
            coalesced=max(signals - self.owed_count - self._untold - injections - self._dropped, 0),
            dropped=self._dropped,
            retries=self._retries,
        )

    def mask(self) -> None:
        """Keep signals pending instead of injecting them; idempotent. What is being injected just now is still injected.

        Raises:
            ClosedError: The irqfd is deassigned.
            WrongLoopError: Not called on the manager's loop.
        """
        self._check()
        if self._masked:
            return
        self._manager.trace("irqfd_masked", self)
        self.settle()
        self._masked = True
        self._manager.offloading.take_back(self)
        self.arm()

    def unmask(self) -> None:
        """Inject what is pending, and further signals as they come; idempotent.

        Raises:
            ClosedError: The irqfd is deassigned.
            WrongLoopError: Not called on the manager's loop.
        """
        self._check()
        if not self._masked:
            return
        self._masked = False
        self._manager.trace("irqfd_unmasked", self, pending=self._state is State.PENDING)
        self.unblock()

    def resume(self) -> None:
        """Inject again after the irqfd was marked broken; nothing happens if it is not.

        Raises:
            ClosedError: The irqfd is deassigned.
            WrongLoopError: Not called on the manager's loop.
        """
        self._check()
        self._failures = 0
        self._error = None
        self._step(Event.RESUME)

    async def aclose(self) -> None:
        """Deassign it; the same as :meth:`IrqManager.deassign`. Idempotent."""
        await self._manager.deassign(self)

    def _check(self) -> None:
        self._manager.check_here()
        if self._closing:
            raise ClosedError("the irqfd is deassigned")

    # -- top half ----------------------------------------------------------------------------------------------------

    def wakeup(self, count: int, /) -> None:
        """The eventfd was signalled ``count`` times. Called by the drain."""
        self.arm()
        if self._state is State.IDLE and not self._blocked and not self._handlers:
            routes = self._manager.routes(self.gsi)
            if not routes:
                self._drop()
                return
            if self._inject_now(routes):
                self.eventfd._fast += 1
                return
        self.defer(count)

    def defer(self, count: int, /) -> None:
        """The same, when the sink would not take it at once. Called by the drain."""
        self._count += count
        self._deferrals += 1
        self._covering = self._begun + 1
        if self._closing and self._state is State.CLOSED:
            # A sink that refused, and in the same breath deassigned: the signal goes back where it came from.
            self._give_back()
            return
        try:
            self._step(Event.SIGNAL)
        except BaseException:
            self._count -= count  # it is owed again
            raise

    def rest(self, count: int, /) -> None:
        """The handler has run, and the sink would not take the interrupt at once, or may not any more. Called by a worker."""
        self._taken += count
        self._stage = len(self._handlers)
        self._stage_routes = self._manager.routes(self.gsi)
        self._deferrals += 1
        self._covering = self._begun + 1
        self._step(Event.SIGNAL)

    def left(self) -> None:
        """Its handler is through, and it is not idle: go on where it stands. Called by a worker."""
        self._lane = None
        if self._state is State.QUEUED:
            self._manager.backpressure.schedule(self.work)
        self._after()

    def handler_failed(self, error: BaseException, count: int, /) -> bool:
        """The handler raised. Called by a worker; False: the error is the worker's own."""
        self._taken += count
        self._stage = 0
        self._deferrals += 1
        self._covering = self._begun + 1
        self._state = State.INJECTING
        self.eventfd._arm(None)
        ours = self._is_ours(error)
        if ours:
            self._failed(error)
        else:
            self._step(Event.ABORT)
        return ours

    @staticmethod
    def _is_ours(error: BaseException) -> bool:
        """Whether the irqfd has to deal with it: not if the worker itself was cancelled or the program is to end."""
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            return task is not None and not task.cancelling()
        return isinstance(error, Exception)

    def _inject_now(self, routes: tuple[Route, ...]) -> bool:
        """Try the sink without waiting."""
        manager = self._manager
        route = routes[0]
        try:
            if self.resamplefd is not None and is_level(routes):
                taken = manager.lines[self.gsi].try_assert(routes)
            elif len(routes) > 1 or manager.tiers.try_inject is None:
                return False  # several chips: always by the work queue (row M05)
            else:
                taken = manager.try_inject(Interrupt(self.gsi, route))
        except BaseException as error:
            # Whatever it is, the interrupt was not taken, and its count is out of the eventfd already.
            manager.fast_path_failed(error)
            return False
        if taken:
            manager.trace_interrupt("interrupt_injected", self, fast=True)
        return bool(taken)

    def arm(self) -> None:
        """Tell the counter module whether it may inject by itself: an idle, free, plain irqfd with one route."""
        interrupt = None
        if self._state is State.IDLE and len(self._handlers) <= 1 and not self._blocked and not self._closing:
            interrupt = self._manager.cached_interrupt(self.gsi, level=self.resamplefd is not None)
        self.eventfd._arm(interrupt)

    @property
    def _blocked(self) -> bool:
        return self._masked or self._manager.blocks(self.gsi)

    def _step(self, event: Event) -> Action:
        before = self._state
        self._state, action = TABLE[self._blocked][before][event]
        if before is State.IDLE and self._state is not State.IDLE:
            self.eventfd._arm(None)
        if action is Action.SCHEDULE:
            # An irqfd never runs against itself: while its handler runs, left() does it.
            if self.lane is None:
                try:
                    self._manager.backpressure.schedule(self.work)
                except BaseException:
                    self._state = before  # interrupted, by a signal handler's exception say
                    raise
        elif self._state is State.PENDING:
            self._manager.note_pending(self)
        return action

    # -- bottom half -------------------------------------------------------------------------------------------------

    @property
    def work(self) -> Work:
        """Its item on the work queue; made at the first need."""
        work = self._work
        if work is None:
            work = self._work = Work(self.inject)
        return work

    async def inject(self) -> None:
        """Run the handlers, then hand the interrupt to the sink. Called by the work queue."""
        if self._step(Event.START) is not Action.INJECT:
            self._after()
            return
        self._begun += 1
        begun = self._begun
        try:
            delivered = await self._deliver()
        except BaseException as error:
            if not self._is_ours(error):
                self._step(Event.ABORT)
                raise
            # Whatever the sink or a handler raised; also when what they were waiting for was cancelled.
            self._failed(error)
        else:
            if not delivered:
                # Since it began, its gsi has lost its route, and is to be held.
                self._step(Event.ABORT)
                return
            self._failures = self._stage = self._taken = 0
            self._finished = begun
            if self._count and self._state is State.INJECTING:
                # Signalled between two attempts: the handlers, or the first routes, have not seen it.
                self._step(Event.SIGNAL)
            if self._step(Event.DONE) is Action.NONE and self._state is State.IDLE:
                self.arm()
        finally:
            self._after()

    async def _deliver(self) -> bool:
        """One attempt, from where the last one stopped; False if the gsi is to be held for want of a route."""
        manager = self._manager
        handlers = self._handlers
        if self._stage == 0:
            self._taken += self._count
            self._count = 0
            if not self._taken:
                # No signal, but a line that is to be raised again where its gsi goes now.
                self._stage = len(handlers)
        while self._stage < len(handlers):
            await handlers[self._stage](self, self._taken)
            self._stage += 1
        routes = manager.routes(self.gsi)
        if self._stage_routes != routes:
            # Re-routed since the last attempt: the new routes have seen nothing yet.
            self._stage = len(handlers)
            self._stage_routes = routes
        if not routes:
            if manager.holds(self.gsi):
                return False
            self._drop()
            return True
        if self.resamplefd is not None and is_level(routes):
            resampler = manager.lines[self.gsi]
            if not (handlers and resampler.try_assert(routes)):
                await resampler.assert_line(routes)
        else:
            await self._deliver_pulses(routes)
        self._slow += 1
        manager.trace_interrupt("interrupt_injected", self, fast=False)
        return True

    async def _deliver_pulses(self, routes: tuple[Route, ...]) -> None:
        tiers = self._manager.tiers
        done = len(self._handlers)
        for route in routes[self._stage - done :]:
            interrupt = Interrupt(self.gsi, route)
            # The top half did not ask the sink where there are handlers to run first.
            if not (self._handlers and self._manager.try_inject(interrupt)):
                await tiers.inject(interrupt)
            self._stage += 1

    def _drop(self) -> None:
        self._dropped += 1
        self._manager.dropped(self)

    def _failed(self, error: BaseException) -> None:
        self._failures += 1
        retry = self._manager.retry
        if self._closing or self._failures > retry.attempts:
            self._step(Event.GIVE_UP)
            failure = InjectionError(f"gsi {self.gsi}: {error!r}")
            failure.__cause__ = error
            self._error = failure
            self._manager.broken(self, failure)
            return
        self._step(Event.FAIL)
        delay = retry.delay(self._failures)
        self._manager.trace("injection_failed", self, attempt=self._failures, retry_in=delay, error=repr(error))
        self._retry = asyncio.get_running_loop().call_later(delay, self._retry_now)

    def _retry_now(self) -> None:
        self._retry = None
        self._retries += 1
        self._manager.trace("injection_retried", self, attempt=self._failures + 1)
        self._step(Event.RETRY)

    def _after(self) -> None:
        if self._closing and not self.active:
            self._finish()
        self._manager.backpressure.progress()

    # -- blocking, offloading, closing -------------------------------------------------------------------------------

    def settle(self) -> None:
        """Count what was injected without a read; what is owed stays where it is. Nothing happens off the loop."""
        eventfd = self.eventfd
        poller = eventfd._poller
        if poller is None or self._closing or not eventfd._registered or asyncio._get_running_loop() is not poller.loop:
            return
        poller.drain.collect()
        # What was there when it was bound is left to be read, until somebody signals again (row P03).
        # So is a semaphore's rest, always.
        if not eventfd._owed and not eventfd._leftover and not eventfd.semaphore:
            self._settle()

    def settle_owed(self) -> None:
        """Take what is owed and is not to be injected just now. Called on the loop's thread alone."""
        if self.eventfd._owed and not self._closing:
            self._settle()

    def _settle(self) -> None:
        eventfd = self.eventfd
        poller = eventfd._poller
        if poller is not None and eventfd._registered:
            before = eventfd._signals
            owed = poller.drain.settle(eventfd)
            self.note_unread(eventfd._signals - before - owed)
            if owed:
                eventfd._wakeups += 1
                self.defer(owed)
                self.arm()

    def capture(self) -> tuple[bool, int, tuple[int, int, int]]:
        """For a snapshot: whether an injection is owed, and how many signals; they are the snapshot's from here on.

        And what of it is done: how many of the signals were told to how many handlers, and how many routes have had it.
        """
        eventfd = self.eventfd
        if eventfd._poller is not None and eventfd._registered:
            eventfd._poller.drain.collect()
            if eventfd._owed or (self._state in OWING and not eventfd.semaphore):
                self._settle()
        self._baseline = self.owed_count
        self._captured = True
        handlers = min(self._stage, len(self._handlers))
        routes = self._stage - handlers if self._stage_routes == self._manager.routes(self.gsi) else 0
        done = (self._taken, handlers, routes) if handlers or routes else (0, 0, 0)
        return self._state in OWING, self._baseline, done

    @property
    def captured(self) -> bool:
        """Whether what is owed, and what is to be told, is a snapshot's."""
        return self._captured

    def release_capture(self) -> None:
        """The manager goes on: what a snapshot took is injected here after all."""
        self._baseline = None
        self._captured = False

    def unblock(self) -> None:
        """Unmasked, resumed or routed: inject what is pending, or let the sink watch the eventfd again."""
        if self._closing or self.offloaded:
            return
        if self._blocked:
            if self._state is State.PENDING:
                self._manager.note_pending(self)
            return
        if self.free and self._manager.offloading.offload(self):
            return
        if self._step(Event.UNBLOCK) is Action.NONE:
            self.arm()

    @property
    def free(self) -> bool:
        """Whether a sink may watch the eventfd by itself, as far as it is the irqfd's to say."""
        free = not (self._closing or self._blocked or self._handlers)
        return free and self._state in {State.IDLE, State.PENDING}

    def hand_over(self) -> bool:
        """Let the sink watch the eventfd, if it can; signals that are there are then the sink's."""
        return self.free and self._manager.offloading.offload(self)

    def handed_over(self, interrupt: Interrupt, count: int) -> None:
        """The sink watches the eventfd now, and injects what was signalled before: a signal is all it takes."""
        self._offloaded = interrupt
        self._count += count
        if count or self._state is State.PENDING:
            self._state = State.IDLE
            self._give_back()

    def take_back(self) -> None:
        """Watch the eventfd here again, if the sink did."""
        if self._offloaded is not None:
            interrupt, self._offloaded = self._offloaded, None
            self._manager.offloading.reclaim(self, interrupt)

    def on_eventfd_closing(self) -> None:
        """The eventfd is about to be closed (row C04): deassign; what is owed is injected all the same (row W03)."""
        self.shut()

    def shut(self) -> None:
        """The part of deassign that does not wait: from here on the eventfd is nobody's."""
        if self._closing:
            return
        self._closing = True
        if self.eventfd._running is not None:
            self._lane = self.eventfd._running, self.eventfd._told
        self._manager.shut(self)
        if self._retry is not None:
            self._retry.cancel()
            self._retry_now()
        if not self.active:
            self._finish()

    @property
    def active(self) -> bool:
        """Whether something of it runs, or is about to."""
        return self._state in ACTIVE or self._lined_up or self.lane is not None

    @property
    def busy(self) -> bool:
        """The same, but for a retry that waits for its time."""
        return self.active and self._state is not State.RETRYING

    @property
    def lane(self) -> object:
        """The task that runs its handler by the counter module just now, or None."""
        if not self._closing:
            return self.eventfd._running
        return None if self._lane is None else self._lane[0]

    # Once it is deassigned, what the eventfd says is another irqfd's.

    @property
    def _lined_up(self) -> bool:
        return not self._closing and self.eventfd._queued

    @property
    def owed(self) -> bool:
        """Whether a signal was seen and has not come to the top half."""
        return not self._closing and self.eventfd._owed

    @property
    def _untold(self) -> int:
        if not self._closing:
            return self.eventfd._taken + self.eventfd._told
        return 0 if self._lane is None else self._lane[1]

    async def drained(self) -> None:
        """Wait until nothing of it runs or will run."""
        here = asyncio.current_task()
        queue, backpressure = self._manager.queue, self._manager.backpressure
        while self.lane is not None:
            if queue.waits_for(_LaneRun(self), here):
                return  # a handler that deassigns its own irqfd, or one whose handler waits for this one
            with queue.waiting_for(_LaneRun(self)):
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

    @property
    def owed_count(self) -> int:
        """What was signalled and is not injected; only of meaning while nothing runs."""
        return self._count + self._taken

    def note_unread(self, count: int) -> None:
        """So many signals had been seen and left unread: if what they called for is still owed, they are in its count."""
        if self._state in OWING:
            self._count += max(count - self.owed_count, 0)

    def put(self, *, masked: bool, pending: bool, count: int, done: tuple[int, int, int]) -> None:
        """Stand as a snapshot says. The manager is paused, and its routing is the snapshot's."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        # What is owed here and was in no snapshot is owed all the same.
        own = self.owed_count - (self._baseline or 0)
        pending = pending or own > 0 or (self._baseline is None and self._state in OWING)
        self._masked = masked
        self._taken, handlers, routes = done
        self._stage = handlers if handlers < len(self._handlers) else len(self._handlers) + routes
        self._stage_routes = self._manager.routes(self.gsi)
        self._count, self._failures = count + own - self._taken, 0
        self._baseline, self._captured = count, False
        self._error = None
        self._state = State.PENDING if pending else State.IDLE
        self.arm()
        if pending:
            self._manager.note_pending(self)

    def abandon(self) -> None:
        """The work queue is gone: whatever was on it goes back into the eventfd."""
        if self._closing and self._state is not State.CLOSED:
            self._finish()

    def mark(self) -> Mark:
        """Where it stands, for :meth:`passed`."""
        target = self._begun + (self._state is not State.INJECTING) if self._state in ACTIVE else 0
        lane = self._lined_up + (self.lane is not None)
        return Mark(self.owed, lane, self._fast, self._deferrals, target)

    def passed(self, mark: Mark) -> bool:
        """Whether every signal from before the mark is injected, or will not be for the time being."""
        if mark.owed or mark.lane:
            if self._fast - mark.fast >= mark.owed + mark.lane:
                return True
            if self._deferrals > mark.deferrals:
                mark.target = self._covering
            elif self._lined_up or self.lane is not None or self.owed:
                return False  # still on its way to the top half, or to its handler
            mark.owed = False
            mark.lane = 0
        return self._state not in ACTIVE or self._finished >= mark.target

    @property
    def _fast(self) -> int:
        return self._final[2] if self._final else self.eventfd._fast

    def freeze(self) -> None:
        """The eventfd counts for somebody else from here on."""
        eventfd = self.eventfd
        self._final = (eventfd._signals, eventfd._wakeups, eventfd._fast)

    def _finish(self) -> None:
        if self._captured:
            taken = min(self._baseline or 0, self.owed_count)
            if taken and not self._manager.withhold(self.eventfd, taken):
                taken = 0
            self._count = max(self.owed_count - taken, 0)
            self._taken = 0
        if self._count or self._taken:
            self._give_back()
        self._state = State.CLOSED
        self._manager.finished(self)

    def _give_back(self) -> None:
        """What could not be injected is put back into the eventfd, where the next assign finds it (row P01)."""
        count, self._count, self._taken, self._stage = self.owed_count, 0, 0, 0
        self._returned += count
        if self._manager.inherited:
            return  # what is pending is pending in the parent process
        try:
            self.eventfd.signal(min(max(count, 1), 2**64 - 2))
        except (ClosedError, OSError) as error:
            self._manager.trace("interrupt_abandoned", self, count=count, error=repr(error))
