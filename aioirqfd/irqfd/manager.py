"""The irqfd manager: what ``struct kvm`` is to irqfds.

It owns the irqfds of one virtual machine, their routing, the work queue and the resamplers, and stands between the drain of
its loop (below) and one interrupt sink (above).
"""

# pyright: reportPrivateUsage=false
# (the same)
from __future__ import annotations

import asyncio
import operator
import warnings
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Self, final

from aioirqfd.counter import TopHalf
from aioirqfd.errors import ClosedError, EventFdBusyError, QueueFullError, WrongLoopError
from aioirqfd.eventfd import EventFd, Poller
from aioirqfd.irqfd import snapshot
from aioirqfd.irqfd.interrupt import Action, Interrupt
from aioirqfd.irqfd.irqfd import IrqFd
from aioirqfd.irqfd.resampler import Resampler, is_level
from aioirqfd.irqfd.retry import Retry
from aioirqfd.irqfd.routing import RoutingTable
from aioirqfd.irqfd.sink import SinkTiers
from aioirqfd.irqfd.state import ACTIVE, State
from aioirqfd.irqfd.workqueue import WorkQueue, WorkQueueStatistics
from aioirqfd.tracer import NULL_TRACER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from aioirqfd.irqfd.interrupt import Route
    from aioirqfd.irqfd.irqfd import WakeupHandler
    from aioirqfd.irqfd.sink import InterruptSink
    from aioirqfd.irqfd.workqueue import Work
    from aioirqfd.tracer import Tracer

_U32: Final = 2**32
_AT_ONCE: Final = 256
"""Irqfds that are shut before the loop gets a turn."""
_NO_ROUTES: Final[tuple[Route, ...]] = ()

_bound: Final[set[int]] = set()
"""The eventfd-ids that are bound, by whichever manager of this process (row I12)."""


@dataclass(frozen=True, slots=True)
class IrqManagerStatistics:
    """Counts of a manager, as they are now.

    Attributes:
        irqfds: Assigned.
        offloaded: Of these, watched by the sink itself.
        held: Of these, signalled, and waiting in their eventfds until the manager resumes or its queue has room.
        broken: Of these, given up after the sink failed.
        asserted: Level-triggered lines that are up.
        dropped: Interrupts of this manager that had no route.
        queue: The work queue's.
    """

    irqfds: int
    offloaded: int
    held: int
    broken: int
    asserted: int
    dropped: int
    queue: WorkQueueStatistics


@final
class IrqManager:
    """Binds eventfds to interrupts: assign, deassign, routing, ack, pause, snapshot.

    Args:
        sink: Where injections go; see :class:`aioirqfd.InterruptSink` for its tiers.
        routing: The first routing table; without one, gsi n is pin n of the IOAPIC.
        queue: The work queue; the manager enters and leaves it. Without one, ``WorkQueue()``.
        unrouted: What becomes of a signal whose gsi has no route: ``"drop"`` it, counted and traced, as the kernel does
            (rows W08, G11), or ``"hold"`` it until a route appears.
        tracer: Hears what happens.
        on_error: Called with each :class:`InjectionError` when an irqfd is given up; must not raise.
        retry: The back-off after a failed injection.

    Used as ``async with``. Leaving it normally injects what was signalled and deassigns everything; the first
    :class:`InjectionError` of its time is raised then. Leaving it by an exception cancels what runs, and what was not
    injected is put back into its eventfd.

    Threads:
        Everything belongs to the loop it was entered on, but :meth:`ack`, which any thread may call.
    """

    def __init__(
        self,
        sink: InterruptSink,
        *,
        routing: RoutingTable | Mapping[int, Route | Sequence[Route]] | None = None,
        queue: WorkQueue | None = None,
        unrouted: Literal["drop", "hold"] = "drop",
        tracer: Tracer = NULL_TRACER,
        on_error: Callable[[Exception], object] | None = None,
        retry: Retry | None = None,
    ) -> None:
        if unrouted not in {"drop", "hold"}:
            raise ValueError(f"unrouted is 'drop' or 'hold', not {unrouted!r}")
        self.tiers: Final = SinkTiers(sink)
        self.queue: Final = queue if queue is not None else WorkQueue()
        self.retry: Final = retry if retry is not None else Retry()
        self._routing = RoutingTable.default() if routing is None else _table(routing)
        self._hold = unrouted == "hold"
        self._tracer = tracer
        self._per_interrupt = bool(tracer.per_interrupt)
        self._on_error = on_error
        self._top_half = TopHalf(self.tiers.try_inject, self.tiers.try_inject_batch, self.fast_path_failed)
        self._cached: dict[int, Interrupt] = {}
        self._irqfds: dict[IrqFd, None] = {}
        self._offloaded: set[IrqFd] = set()
        self._unrouted: set[IrqFd] = set()
        self._resamplers: dict[int, Resampler] = {}
        self._waiting: deque[Work] = deque()
        self._flushers: list[asyncio.Future[None]] = []
        self._poller: Poller | None = None
        self._entered = False
        self._paused = False
        self._aborting = False
        self._dropped = 0
        self._first_error: Exception | None = None
        if self.tiers.bind is not None:
            self.tiers.bind(self.ack)
        if self.tiers.set_routing is not None:
            self.tiers.set_routing(self._routing)

    def __repr__(self) -> str:
        return f"<IrqManager irqfds={len(self._irqfds)} sink={self.tiers.sink!r}>"

    # -- life --------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._entered:
            raise ClosedError("a manager is entered once")
        await self.queue.__aenter__()
        self._entered = True
        self._poller = Poller.get()
        self._poller.acquire()
        self.queue.on_room = self._room
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close(abort=exc_type is not None)
        if exc_type is None and self._first_error is not None:
            raise self._first_error

    async def aclose(self) -> None:
        """Inject what was signalled, deassign everything, end the work queue; idempotent.

        Raises:
            InjectionError: The first one there was; what it was about is back in its eventfd.

        Cancellation:
            Cuts it short: what was not injected goes back into its eventfd. Everything is closed all the same.
        """
        await self._close(abort=False)
        error, self._first_error = self._first_error, None
        if error is not None:
            raise error

    async def _close(self, *, abort: bool) -> None:
        poller, self._poller = self._poller, None
        if poller is None:
            return
        irqfds = list(self._irqfds)
        try:
            if not abort:
                for index, irqfd in enumerate(irqfds, 1):
                    irqfd.shut()
                    if index % _AT_ONCE == 0:
                        await asyncio.sleep(0)
                for irqfd in irqfds:
                    await irqfd.drained()
                await self.queue.drain()
        finally:
            self._aborting = True
            try:
                await self.queue.aclose()
            finally:
                for irqfd in irqfds:
                    irqfd.shut()
                    irqfd.abandon()
                poller.release()
                self.progress()

    def __del__(self) -> None:
        poller = getattr(self, "_poller", None)
        if poller is None:
            return
        warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        self._poller = None
        self._aborting = True
        for irqfd in list(self._irqfds):
            irqfd.shut()
            irqfd.abandon()
        self.queue.abandon()
        poller.release()

    def check_here(self) -> None:
        """Raise unless the manager is open and its loop is running here.

        Raises:
            ClosedError: It is not entered, or closed.
            WrongLoopError: It belongs to another loop, or none is running.
        """
        if self._poller is None:
            if asyncio._get_running_loop() is None:
                raise WrongLoopError("this needs a running event loop")
            raise ClosedError("the manager is not open")
        self._poller.check_here()

    @property
    def _open(self) -> Poller:
        self.check_here()
        assert self._poller is not None
        return self._poller

    # -- assign and deassign -----------------------------------------------------------------------------------------

    @property
    def irqfds(self) -> tuple[IrqFd, ...]:
        """The assigned irqfds, oldest first."""
        return tuple(self._irqfds)

    def assign(
        self,
        eventfd: EventFd | int,
        *,
        gsi: int,
        resamplefd: EventFd | int | None = None,
        wakeup: WakeupHandler | Sequence[WakeupHandler] = (),
        masked: bool = False,
    ) -> IrqFd:
        """Bind an eventfd to a gsi (``KVM_IRQFD``). Synchronous, as the ioctl is; what the eventfd holds counts as a signal (row P01).

        Args:
            eventfd: The trigger; an int is an eventfd's fd that stays the caller's.
            gsi: 0..2**32-1; one without a route is accepted (row I11).
            resamplefd: Makes the gsi level-triggered for this irqfd: a signal raises the line, :meth:`ack` lowers it and
                signals the resamplefd. An int stays the caller's.
            wakeup: A coroutine function, or several, run by the work queue before each injection with the irqfd and the
                count; the counts they get add up to exactly the signals.
            masked: Begin masked.

        Returns:
            The irqfd.

        Raises:
            WrongLoopError: No loop is running, or another one than the manager's.
            ClosedError: EBADF: the manager, an eventfd or an fd is not open.
            TypeError: Not an EventFd and not an int.
            ValueError: The gsi is out of range.
            EventFdInvalidError: EINVAL: an fd is no eventfd.
            EventFdBusyError: EBUSY: the eventfd is bound already, by any manager, through any dup (row I12).

            Whatever is raised, nothing was changed. The order of the checks is the kernel's (row I02).
        """
        poller = self._open
        if not 0 <= operator.index(gsi) < _U32:
            raise ValueError(f"a gsi is 0..2**32-1, not {gsi}")
        handlers = (wakeup,) if callable(wakeup) else tuple(wakeup)
        if not all(map(callable, handlers)):
            raise TypeError(f"a wakeup handler is a coroutine function, not {wakeup!r}")
        trigger, eventfd_id = _eventfd(eventfd)
        resample = None if resamplefd is None else _eventfd(resamplefd)[0]
        if eventfd_id in _bound:
            raise EventFdBusyError(f"fd {trigger.fileno()}")
        if trigger._poller is not None and trigger._poller is not poller and trigger._waiters:
            raise WrongLoopError("the eventfd is in use on another event loop")
        irqfd = IrqFd(
            self, trigger, eventfd_id=eventfd_id, gsi=gsi, resamplefd=resample, handlers=handlers, masked=masked
        )
        if not irqfd.hand_over():
            self._watch(irqfd)
        _bound.add(eventfd_id)
        trigger._binding = irqfd
        self._irqfds[irqfd] = None
        if resample is not None:
            self.resampler(gsi).join(resample)
        self.trace("irqfd_assigned", irqfd, resample=resample is not None, offloaded=irqfd.offloaded, masked=masked)
        return irqfd

    async def deassign(self, irqfd: IrqFd) -> None:
        """Unbind an irqfd, as a barrier: what was signalled before has been injected, and nothing of it runs or will run (row I20).

        What cannot be injected (it is masked, the manager is paused, the sink is broken) goes back into the eventfd, where the
        next assign finds it. An irqfd that is deassigned already, or another manager's, is left alone, without an error
        (row I14). From within its own wakeup handler it returns at once; that injection is the last.

        Raises:
            WrongLoopError: Not called on the manager's loop.

        Cancellation:
            The irqfd is deassigned all the same; only the wait for what runs is given up.
        """
        if irqfd._manager is not self or irqfd.state is State.CLOSED:
            return
        if self._poller is not None:
            self.check_here()
        irqfd.shut()
        await irqfd.drained()

    def _watch(self, irqfd: IrqFd) -> None:
        eventfd = irqfd.eventfd
        if eventfd._poller is not self._poller:
            eventfd._detach()
        if eventfd._registered:
            # It has waiting readers; register it anew, so that what it holds is an event of the irqfd's.
            eventfd._detach()
        eventfd._attach()
        eventfd._bind(self._top_half, irqfd, bool(irqfd._handlers))
        irqfd.arm()

    def shut(self, irqfd: IrqFd) -> None:
        """The eventfd is nobody's from here on; what it owes is the irqfd's."""
        eventfd = irqfd.eventfd
        if irqfd.offloaded:
            irqfd.take_back()
        self._unwatch(irqfd)
        eventfd._binding = None
        if eventfd._waiters:
            eventfd._attach()
            eventfd._listening = True
        _bound.discard(irqfd.eventfd_id)
        self._irqfds.pop(irqfd, None)
        self._unrouted.discard(irqfd)

    def _unwatch(self, irqfd: IrqFd) -> None:
        """Leave the poller, and hand over what was signalled up to here; what comes later stays in the eventfd."""
        eventfd = irqfd.eventfd
        poller = eventfd._poller
        owed = 0
        if poller is not None and eventfd._registered:
            owed = poller.drain.settle(eventfd)
        eventfd._unbind()
        eventfd._spill()
        eventfd._detach()
        if owed:
            eventfd._wakeups += 1
            irqfd.wakeup(owed)

    def finished(self, irqfd: IrqFd) -> None:
        """Nothing of the irqfd runs any more."""
        if irqfd.resamplefd is not None:
            resampler = self._resamplers.get(irqfd.gsi)
            if resampler is not None:
                resampler.leave(irqfd.resamplefd)
                if resampler.empty:
                    del self._resamplers[irqfd.gsi]
        self.trace("irqfd_deassigned", irqfd)

    # -- routing -----------------------------------------------------------------------------------------------------

    @property
    def routing(self) -> RoutingTable:
        """The table in force."""
        return self._routing

    @property
    def generation(self) -> int:
        """Counts the tables."""
        return self._top_half.generation

    def set_routing(self, routing: RoutingTable | Mapping[int, Route | Sequence[Route]]) -> None:
        """Replace the routing table as a whole (``KVM_SET_GSI_ROUTING``). Bound irqfds see it on their next event (row G10).

        A level-triggered line that is up moves along with its gsi. With ``unrouted="hold"``, what waited for a route that is
        there now is injected.

        Raises:
            RoutingError: EINVAL; the old table stays in force (row G09).
            WrongLoopError: Not called on the manager's loop.
        """
        self.check_here()
        table = _table(routing)
        if self.tiers.set_routing is not None:
            self.tiers.set_routing(table)
        old, self._routing = self._routing, table
        self._cached.clear()
        self._top_half.generation += 1
        self._tracer.emit("routing_changed", gsis=len(table), generation=self.generation)
        for gsi, resampler in list(self._resamplers.items()):
            if resampler.asserted and self.routes(gsi) != old.get(gsi, _NO_ROUTES):
                resampler.reroute(self.routes(gsi))
        for irqfd in list(self._offloaded):
            if self.routes(irqfd.gsi) != old.get(irqfd.gsi, _NO_ROUTES):
                irqfd.take_back()
                irqfd.unblock()
        for irqfd in list(self._unrouted):
            if irqfd.gsi in table:
                self._unrouted.discard(irqfd)
                irqfd.unblock()

    def routes(self, gsi: int) -> tuple[Route, ...]:
        """Where the gsi goes now; empty: nowhere."""
        return self._routing.get(gsi, _NO_ROUTES)

    def cached_interrupt(self, gsi: int, *, level: bool) -> Interrupt | None:
        """The one Interrupt of the gsi, if the counter module may inject it by itself."""
        if self.tiers.try_inject is None or self._per_interrupt:
            return None
        routes = self.routes(gsi)
        if len(routes) != 1 or (level and is_level(routes)):
            return None
        interrupt = self._cached.get(gsi)
        if interrupt is None:
            interrupt = self._cached[gsi] = Interrupt(gsi, routes[0])
        return interrupt

    # -- level-triggered lines ---------------------------------------------------------------------------------------

    def ack(self, gsi: int) -> None:
        """The guest's end of interrupt: lower the line, then signal every resamplefd of the gsi, newest first (rows R02, R03).

        A gsi without resample irqfds is ignored (row R06).

        Threads:
            Any. With a sink that has ``try_inject`` the line is low when this returns.
        """
        resampler = self._resamplers.get(gsi)
        if resampler is not None:
            resampler.ack()

    def resample(self, gsi: int) -> bool:
        """Signal the gsi's resamplefds without an end of interrupt (row R21).

        For an interrupt controller whose guest unmasks a line that is pending: a source that has gone quiet then does not
        interrupt, and one that has not signals again.

        Returns:
            Whether there was anybody to tell.

        Threads:
            Any.
        """
        resampler = self._resamplers.get(gsi)
        return resampler is not None and resampler.tell()

    def resampler(self, gsi: int) -> Resampler:
        """The gsi's one resampler; made at the first need."""
        resampler = self._resamplers.get(gsi)
        if resampler is None:
            resampler = self._resamplers[gsi] = Resampler(self, gsi)
        return resampler

    def reassert(self, gsi: int) -> None:
        """The line was up when its gsi was re-routed: raise it where it goes now."""
        routes = self.routes(gsi)
        if is_level(routes) and not self.resampler(gsi).try_assert(routes):
            for irqfd in self._irqfds:
                if irqfd.gsi == gsi and irqfd.resamplefd is not None:
                    irqfd.defer(0)
                    return

    def report_lowering(self, work: Work, gsi: int, error: Exception) -> None:
        """The sink failed to lower a line: say so and try again later."""
        self._tracer.emit("lowering_failed", gsi=gsi, error=repr(error))
        if self._poller is not None:
            self._poller.loop.call_later(self.retry.maximum, self.schedule_work, work)

    def asserted(self) -> dict[int, tuple[Route, ...]]:
        """The lines that are up, and where."""
        return {gsi: resampler.raised for gsi, resampler in self._resamplers.items() if resampler.asserted}

    def put_asserted(self, asserted: Mapping[int, Sequence[Route]]) -> None:
        """Make the level-triggered lines stand as a snapshot says."""
        for gsi, resampler in self._resamplers.items():
            resampler.put(asserted.get(gsi, _NO_ROUTES))

    # -- the work queue ----------------------------------------------------------------------------------------------

    def schedule(self, irqfd: IrqFd) -> None:
        """Queue the irqfd's bottom half."""
        self.schedule_work(irqfd.work)

    def schedule_work(self, work: Work) -> None:
        """Queue an item, or let it wait for room. At the bound, signals wait in their eventfds from here on."""
        if not self._entered or self._aborting:
            return
        try:
            self.queue.schedule(work)
        except QueueFullError:
            self._waiting.append(work)
        if self.queue.full and not self._top_half.full:
            self._top_half.full = True
            self.queue.watch_room()
            self._tracer.emit("queue_full", maxsize=self.queue.maxsize)

    def _room(self) -> None:
        while self._waiting and not self.queue.full:
            self.queue.schedule(self._waiting.popleft())
        if self.queue.full:
            self.queue.watch_room()
            return
        self._top_half.full = False
        self._tracer.emit("queue_resumed", held=self._top_half.held)
        if not self._paused:
            self._top_half.release()

    async def flush_work(self, work: Work) -> None:
        """Wait for what is queued or running of an item, wherever it waits."""
        while work in self._waiting:
            await self._next_progress()
        await self.queue.flush(work)

    async def flush(self) -> None:
        """Return once every signal sent before this call, from anywhere, has been injected.

        What is masked, broken, or held for want of a route stays pending and is not waited for; nor is anything while the
        manager is paused. Signals sent meanwhile do not prolong it. An offloaded irqfd is the kernel's business.

        Raises:
            WrongLoopError: Not called on the manager's loop.
        """
        drain = self._open.drain
        drain.collect()
        marks = [(irqfd, irqfd.mark()) for irqfd in self._irqfds if irqfd.eventfd._owed or irqfd.state in ACTIVE]
        for irqfd, mark in marks:
            while not self._paused and not irqfd.passed(mark):
                if irqfd.eventfd._owed and not irqfd.eventfd._held and drain.run():
                    await asyncio.sleep(0)
                else:
                    await self._next_progress()

    def progress(self) -> None:
        """An injection has ended, one way or another."""
        if self._flushers:
            flushers, self._flushers = self._flushers, []
            for waiter in flushers:
                if not waiter.done():
                    waiter.set_result(None)

    async def _next_progress(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flushers.append(waiter)
        await waiter

    # -- blocking ----------------------------------------------------------------------------------------------------

    def blocks(self, gsi: int) -> bool:
        """Whether nothing may be injected for the gsi just now."""
        return self._paused or self._aborting or (self._hold and gsi not in self._routing)

    def note_pending(self, irqfd: IrqFd) -> None:
        """An interrupt is owed and blocked; if for want of a route, remember who waits for one."""
        if self._hold and irqfd.gsi not in self._routing and irqfd not in self._unrouted:
            self._unrouted.add(irqfd)
            self.trace("interrupt_held", irqfd)

    async def pause(self) -> None:
        """Inject nothing from here on; return when nothing is being injected any more. Signals wait in their eventfds.

        Raises:
            WrongLoopError: Not called on the manager's loop.
        """
        self.check_here()
        if not self._paused:
            self._paused = self._top_half.paused = True
            for irqfd in list(self._offloaded):
                irqfd.take_back()
            self._tracer.emit("manager_paused", irqfds=len(self._irqfds))
        await self.queue.drain()

    def resume(self) -> None:
        """Inject what has become pending, and go on; nothing happens if the manager is not paused.

        Raises:
            WrongLoopError: Not called on the manager's loop.
        """
        self.check_here()
        if not self._paused:
            return
        self._paused = self._top_half.paused = False
        self._tracer.emit("manager_resumed", held=self._top_half.held)
        for irqfd in list(self._irqfds):
            irqfd.captured = None
            irqfd.unblock()
        self._top_half.release()
        self.progress()

    def snapshot(self) -> dict[str, object]:
        """Everything an interrupt can be in, as a JSON-able dict: see :mod:`aioirqfd.irqfd.snapshot`.

        Raises:
            SnapshotError: The manager is not paused.
            WrongLoopError: Not called on the manager's loop.
        """
        self.check_here()
        return snapshot.take(self, paused=self._paused)

    def restore(self, state: Mapping[str, object]) -> None:
        """Put a snapshot's state into this manager, whose irqfds are assigned as they were; it must be paused.

        Raises:
            SnapshotError: The state is malformed, of another version, or does not fit; or the manager is not paused. Nothing
                was changed.
            WrongLoopError: Not called on the manager's loop.
        """
        self.check_here()
        snapshot.put(self, state, paused=self._paused)

    # -- offloading --------------------------------------------------------------------------------------------------

    def offload(self, irqfd: IrqFd) -> Interrupt | None:
        """Let the sink watch the eventfd itself, if it can: the interrupt it will deliver, or None."""
        routes = self.routes(irqfd.gsi)
        if self.tiers.offload is None or irqfd._handlers or len(routes) != 1 or self._per_interrupt:
            return None
        level = irqfd.resamplefd is not None and is_level(routes)
        interrupt = Interrupt(irqfd.gsi, routes[0], Action.ASSERT if level else Action.PULSE)
        watched = irqfd.eventfd._binding is irqfd
        if watched:
            self._unwatch(irqfd)
            if irqfd.state in ACTIVE:
                self._watch(irqfd)
                return None
        if not self.tiers.offload(irqfd.eventfd, interrupt, irqfd.resamplefd if level else None):
            if watched:
                self._watch(irqfd)
            return None
        self._offloaded.add(irqfd)
        return interrupt

    def reclaim(self, irqfd: IrqFd, interrupt: Interrupt) -> None:
        """Watch an offloaded eventfd here again."""
        self._offloaded.discard(irqfd)
        if self.tiers.reclaim is not None and not irqfd.eventfd.closed:
            self.tiers.reclaim(irqfd.eventfd, interrupt)
            self._watch(irqfd)

    # -- what happened -----------------------------------------------------------------------------------------------

    def statistics(self) -> IrqManagerStatistics:
        """The counts as they are now; looks at every irqfd."""
        return IrqManagerStatistics(
            irqfds=len(self._irqfds),
            offloaded=len(self._offloaded),
            held=self._top_half.held,
            broken=sum(irqfd.state is State.BROKEN for irqfd in self._irqfds),
            asserted=sum(resampler.asserted for resampler in self._resamplers.values()),
            dropped=self._dropped,
            queue=self.queue.statistics(),
        )

    def trace(self, event: str, irqfd: IrqFd, /, **fields: object) -> None:
        """Tell the tracer something about an irqfd."""
        tracer = self._tracer
        if tracer is not NULL_TRACER:
            tracer.emit(event, gsi=irqfd.gsi, fd=irqfd.eventfd._fd, eventfd_id=irqfd.eventfd_id, **fields)

    def trace_interrupt(self, event: str, irqfd: IrqFd, /, **fields: object) -> None:
        """The same, for what happens at every interrupt."""
        if self._per_interrupt:
            self.trace(event, irqfd, **fields)

    def dropped(self, irqfd: IrqFd) -> None:
        """An interrupt had no route. Traced once for each irqfd and table."""
        self._dropped += 1
        if irqfd.dropped_under != self.generation:
            irqfd.dropped_under = self.generation
            self.trace("interrupt_dropped", irqfd)

    def fast_path_failed(self, error: Exception) -> None:
        """``try_inject`` raised; the work queue tries again."""
        self._tracer.emit("fast_path_failed", error=repr(error))

    def broken(self, irqfd: IrqFd, error: Exception) -> None:
        """The sink failed for good."""
        self.trace("irqfd_broken", irqfd, error=repr(error.__cause__))
        if self._first_error is None:
            self._first_error = error
        if self._on_error is not None:
            self._on_error(error)


def _table(routing: RoutingTable | Mapping[int, Route | Sequence[Route]]) -> RoutingTable:
    return routing if isinstance(routing, RoutingTable) else RoutingTable(routing)


def _eventfd(value: EventFd | int) -> tuple[EventFd, int]:
    """The eventfd and its id; EBADF, EINVAL (row I08)."""
    if isinstance(value, EventFd):
        return value, value.id
    eventfd = EventFd.from_fd(operator.index(value))
    return eventfd, eventfd.id
