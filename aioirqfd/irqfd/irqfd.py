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
    Mark = tuple[bool, int, int, int, State]
else:
    WakeupHandler = Callable


@dataclass(frozen=True, slots=True)
class IrqFdStatistics:
    """Counts of one irqfd since it was assigned.

    Attributes:
        signals: The sum of the counts that were taken out of its eventfd.
        wakeups: How often the loop noticed.
        injections: Interrupts that reached the sink (an offloaded irqfd's are the kernel's, and not counted).
        fast: Of these, how many the sink took at once.
        coalesced: Signals that shared an injection with another (row W02).
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
class IrqFd:
    """An eventfd bound to a gsi. Made by :meth:`IrqManager.assign`."""

    __slots__ = (
        "__weakref__",
        "_begun",
        "_closing",
        "_count",
        "_dropped",
        "_error",
        "_failures",
        "_finished",
        "_handlers",
        "_manager",
        "_masked",
        "_offloaded",
        "_retries",
        "_retry",
        "_stage",
        "_stage_generation",
        "_state",
        "_taken",
        "_work",
        "captured",
        "dropped_under",
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
        self.eventfd_id = eventfd_id
        self.gsi = gsi
        self.resamplefd = resamplefd
        self._manager = manager
        self._handlers = handlers
        self._masked = masked
        self._state = State.IDLE
        self._work: Work | None = None
        self._closing = False
        self._offloaded: Interrupt | None = None
        self._count = 0  # signalled, and not yet given to the handlers
        self._taken = 0  # given to the handlers of the injection under way
        self._stage = 0  # how many handlers and routes of it are done; a retry goes on from there
        self._stage_generation = 0
        self._begun = self._finished = self._failures = self._retries = self._dropped = 0
        self._error: Exception | None = None
        self._retry: asyncio.TimerHandle | None = None
        self.captured: int | None = None
        """What a snapshot took with it: that many signals are not this manager's to give back."""
        self.dropped_under = -1
        """The routing generation whose lack of a route was traced."""

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
        """Whether an injection is owed and has not begun; right also for signals that are still inside the eventfd."""
        if self._state in OWING:
            return True
        self.settle()
        return self._state in OWING or self.eventfd._owed

    @property
    def error(self) -> Exception | None:
        """What the sink raised, while the irqfd is broken."""
        return self._error

    def statistics(self) -> IrqFdStatistics:
        """The counts as they are now."""
        self.settle()
        eventfd = self.eventfd
        injections = eventfd._fast + self._finished - self._dropped
        return IrqFdStatistics(
            signals=eventfd._signals,
            wakeups=eventfd._wakeups,
            injections=injections,
            fast=eventfd._fast,
            coalesced=max(eventfd._signals - eventfd._fast - self._finished, 0),
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
        self._masked = True
        self.take_back()
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
        if self._state is State.IDLE and not self._blocked and not self._handlers and self._inject_now():
            self.eventfd._fast += 1
            return
        self.defer(count)

    def defer(self, count: int, /) -> None:
        """The same, when the sink would not take it at once. Called by the drain."""
        self._count += count
        if self._closing and self._state is State.CLOSED:
            # A sink that refused, and in the same breath deassigned: the signal goes back where it came from.
            self._give_back()
            return
        self._step(Event.SIGNAL)

    def _inject_now(self) -> bool:
        """Try the sink without waiting: True if it has taken it, or if there is nowhere to take it to."""
        manager = self._manager
        routes = manager.routes(self.gsi)
        if not routes:
            self._finished += 1
            self._drop()
            return True
        route = routes[0]
        try:
            if self.resamplefd is not None and is_level(routes):
                taken = manager.resampler(self.gsi).try_assert(routes)
            elif len(routes) > 1 or manager.tiers.try_inject is None:
                return False  # several chips: always by the work queue (row M05)
            else:
                taken = manager.tiers.try_inject(Interrupt(self.gsi, route))
        except Exception as error:
            manager.fast_path_failed(error)
            return False
        if taken:
            manager.trace_interrupt("interrupt_injected", self, fast=True)
        return bool(taken)

    def arm(self) -> None:
        """Tell the counter module whether it may inject by itself: an idle, free, plain irqfd with one route."""
        interrupt = None
        if self._state is State.IDLE and not self._handlers and not self._blocked and not self._closing:
            interrupt = self._manager.cached_interrupt(self.gsi, level=self.resamplefd is not None)
        self.eventfd._arm(interrupt)

    @property
    def _blocked(self) -> bool:
        return self._masked or self._manager.blocks(self.gsi)

    def _step(self, event: Event) -> Action:
        before = self._state
        self._state, action = TABLE[self._blocked][before][event]
        if action is Action.SCHEDULE:
            if before is State.IDLE:
                self.eventfd._arm(None)
            self._manager.schedule(self)
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
            await self._deliver()
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                self._step(Event.ABORT)
                self._after()
                raise
            # Not this task was cancelled, but something a handler or the sink was waiting for.
            self._failed(error)
        except Exception as error:
            self._failed(error)
        else:
            self._failures = self._stage = self._taken = 0
            self._finished = begun
            if self._step(Event.DONE) is Action.NONE and self._state is State.IDLE:
                self.arm()
        self._after()

    async def _deliver(self) -> None:
        manager = self._manager
        handlers = self._handlers
        if self._stage == 0:
            self._taken += self._count
            self._count = 0
        while self._stage < len(handlers):
            await handlers[self._stage](self, self._taken)
            self._stage += 1
        routes = manager.routes(self.gsi)
        if self._stage_generation != manager.generation:
            # A new table since the last attempt: the new routes have seen nothing yet.
            self._stage = len(handlers)
            self._stage_generation = manager.generation
        if not routes:
            self._drop()
        elif self.resamplefd is not None and is_level(routes):
            resampler = manager.resampler(self.gsi)
            if not (handlers and resampler.try_assert(routes)):
                await resampler.assert_line(routes)
        else:
            await self._deliver_pulses(routes)
        manager.trace_interrupt("interrupt_injected", self, fast=False)

    async def _deliver_pulses(self, routes: tuple[Route, ...]) -> None:
        tiers = self._manager.tiers
        done = len(self._handlers)
        for route in routes[self._stage - done :]:
            interrupt = Interrupt(self.gsi, route)
            # The top half did not ask the sink where there are handlers to run first.
            if not (self._handlers and tiers.try_inject is not None and tiers.try_inject(interrupt)):
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
        self._step(Event.RETRY)

    def _after(self) -> None:
        if self._closing and self._state not in ACTIVE:
            self._finish()
        self._manager.progress()

    # -- blocking, offloading, closing -------------------------------------------------------------------------------

    def settle(self) -> None:
        """Bring what the eventfd holds into this object; nothing is injected by it."""
        poller = self.eventfd._poller
        if poller is not None and not self._closing and self.eventfd._registered and not self.eventfd._leftover:
            owed = poller.drain.settle(self.eventfd)
            if owed:
                self.eventfd._wakeups += 1
                self.wakeup(owed)

    def unblock(self) -> None:
        """Unmasked, resumed or routed: inject what is pending, or let the sink watch the eventfd again."""
        if self._blocked or self._closing:
            return
        if self._state in {State.IDLE, State.PENDING} and self._hand_over():
            return
        if self._step(Event.UNBLOCK) is Action.NONE:
            self.arm()

    def _hand_over(self) -> bool:
        interrupt = self._manager.offload(self)
        if interrupt is None:
            return False
        self._offloaded = interrupt
        if self._state is State.PENDING:
            # The kernel watches already, so a signal is all it takes.
            self._state = State.IDLE
            self._give_back()
        return True

    def hand_over(self) -> bool:
        """Let the sink watch the eventfd, if it can; signals that are there are then the sink's."""
        return not self._blocked and self._state is State.IDLE and self._hand_over()

    def take_back(self) -> None:
        """Watch the eventfd here again, if the sink did."""
        if self._offloaded is not None:
            interrupt, self._offloaded = self._offloaded, None
            self._manager.reclaim(self, interrupt)

    def on_eventfd_closing(self) -> None:
        """The eventfd is about to be closed (row C04): deassign; what is owed is injected all the same (row W03)."""
        self.shut()

    def shut(self) -> None:
        """The part of deassign that does not wait: from here on the eventfd is nobody's."""
        if self._closing:
            return
        self._closing = True
        self._manager.shut(self)
        if self._retry is not None:
            self._retry.cancel()
            self._retry_now()
        if self._state not in ACTIVE:
            self._finish()

    async def drained(self) -> None:
        """Wait until nothing of it runs or will run."""
        while self._state in ACTIVE:
            work = self.work
            if work.running is not None and work.running is asyncio.current_task():
                return  # a handler that deassigns its own irqfd
            await self._manager.flush_work(work)

    @property
    def owed_count(self) -> int:
        """What was signalled and is not injected; only of meaning while nothing runs."""
        return self._count + self._taken

    def put(self, *, masked: bool, pending: bool, count: int) -> None:
        """Stand as a snapshot says. The manager is paused."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._masked = masked
        self._count, self._taken, self._stage, self._failures = count, 0, 0, 0
        self._error = None
        self._state = State.PENDING if pending else State.IDLE
        if pending:
            self._manager.note_pending(self)

    def abandon(self) -> None:
        """The work queue is gone: whatever was on it goes back into the eventfd."""
        if self._closing and self._state is not State.CLOSED:
            self._finish()

    def mark(self) -> Mark:
        """Where it stands, for :meth:`passed`."""
        eventfd = self.eventfd
        return (eventfd._owed, eventfd._wakeups, eventfd._fast, self._begun, self._state)

    def passed(self, mark: Mark) -> bool:
        """Whether every signal from before the mark is injected, or will not be for the time being."""
        owed, wakeups, fast, begun, state = mark
        eventfd = self.eventfd
        if self._closing and self._state not in ACTIVE:
            return True
        if owed and eventfd._owed and eventfd._wakeups == wakeups:
            return False  # still on its way to the top half
        if self._state not in ACTIVE or (owed and eventfd._fast > fast):
            return True
        return self._finished > begun or (self._finished == begun and state is State.INJECTING and not owed)

    def _finish(self) -> None:
        if self.captured is not None:
            self._count = max(self._count + self._taken - self.captured, 0)
            self._taken = 0
            if self._count:
                self._give_back()
        elif self._state in OWING or self._count or self._taken:
            self._give_back()
        self._state = State.CLOSED
        self._manager.finished(self)

    def _give_back(self) -> None:
        """What could not be injected is put back into the eventfd, where the next assign finds it (row P01)."""
        count, self._count, self._taken, self._stage = self._count + self._taken, 0, 0, 0
        try:
            self.eventfd.signal(min(max(count, 1), 2**64 - 2))
        except (ClosedError, OSError) as error:
            self._manager.trace("interrupt_abandoned", self, count=count, error=repr(error))
