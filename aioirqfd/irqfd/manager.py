"""The irqfd manager: what ``struct kvm`` is to irqfds.

It owns the irqfds of one virtual machine, their routing, the work queue and the resamplers, and stands between the drain of
its loop (below) and one interrupt sink (above).
"""

# pyright: reportPrivateUsage=false
# (the same)
from __future__ import annotations

import asyncio
import contextlib
import operator
import os
import sys
import time
import warnings
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, ParamSpec, Self, final, overload

from aioirqfd.counter import TopHalf
from aioirqfd.errors import ClosedError, EventFdBusyError, WrongLoopError
from aioirqfd.eventfd import EventFd, Poller
from aioirqfd.irqfd import identity, snapshot
from aioirqfd.irqfd.backpressure import Backpressure
from aioirqfd.irqfd.gsi import GsiAllocator
from aioirqfd.irqfd.guard import guarded, report
from aioirqfd.irqfd.interrupt import Interrupt
from aioirqfd.irqfd.irqfd import IrqFd
from aioirqfd.irqfd.lines import Lines
from aioirqfd.irqfd.offloading import Offloading
from aioirqfd.irqfd.resampler import is_level
from aioirqfd.irqfd.retry import Retry
from aioirqfd.irqfd.routing import RoutingTable
from aioirqfd.irqfd.sink import SinkTiers
from aioirqfd.irqfd.state import State
from aioirqfd.irqfd.workqueue import WorkQueue, WorkQueueStatistics
from aioirqfd.tracer import NULL_TRACER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from aioirqfd.counter import Drain
    from aioirqfd.irqfd.interrupt import Route
    from aioirqfd.irqfd.irqfd import WakeupHandler
    from aioirqfd.irqfd.resampler import Resampler
    from aioirqfd.irqfd.sink import InterruptSink
    from aioirqfd.tracer import Tracer

_P = ParamSpec("_P")
_U32: Final = 2**32
_AT_ONCE: Final = 256
"""Irqfds that are shut before the loop gets a turn."""
_NO_ROUTES: Final[tuple[Route, ...]] = ()

_managers: Final[weakref.WeakSet[IrqManager]] = weakref.WeakSet()


def _drop_inherited() -> None:
    """In a forked child: what the parent has bound is free here. The parent's pollers are gone already."""
    for manager in list(_managers):
        manager._let_go()


os.register_at_fork(after_in_child=_drop_inherited)


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
        on_error: Called with each :class:`InjectionError` when an irqfd is given up; should not raise. What it raises, or the
            tracer, goes to the loop's exception handler.
        retry: The back-off after a failed injection.

    Used as ``async with``. Leaving it normally injects what was signalled and deassigns everything; the first
    :class:`InjectionError` of its time is raised then. Leaving it by an exception cancels what runs, and what was not
    injected is put back into its eventfd.

    Its work queue's tasks are its own. If somebody else cancels them (a program that cancels every task that there is),
    nothing is run any more: :meth:`assign`, :meth:`flush` and all else that would wait raise :class:`ClosedError`. What is signalled
    from then on and the sink does not take at once is back in its eventfd when the manager is closed.

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
        self._tracer = guarded(tracer)
        self.per_interrupt: Final = bool(tracer.per_interrupt)
        self._on_error = on_error
        self.backpressure: Final = Backpressure(self.queue, self._tracer)
        self._top_half = TopHalf(
            self.tiers.try_inject,
            self.tiers.try_inject_batch,
            _weakly(self.fast_path_failed),
            self.backpressure.ready,
            self.backpressure.progress,
        )
        # A tracer with a ring (the flight recorder) has the counter module write into it.
        self._top_half.flight = getattr(tracer, "ring", None)
        self._cached: dict[int, Interrupt] = {}
        self._gsis: GsiAllocator | None = None
        self._irqfds: dict[int, IrqFd] = {}  # by eventfd-id, oldest first
        self._leaving: set[IrqFd] = set()
        self.offloading: Final = Offloading(self)
        self._unrouted: set[IrqFd] = set()
        self.lines: Final = Lines(self)
        self._poller: Poller | None = None
        self._drain: Drain | None = None
        self._closed: asyncio.Event | None = None
        self._entered = False
        self._paused = False
        self._pauses = 0  # so many times, so that a snapshot's owner knows whether it went on since
        self._aborting = False
        self._dropped = 0
        self._paused_since = 0.0
        # What a snapshot has of irqfds that were deassigned since: the eventfds, and how many signals.
        self._withheld: list[tuple[EventFd, int]] = []
        self._first_error: Exception | None = None
        self._process = os.getpid()
        frame = sys._getframe(1)
        self._made_at = (frame.f_code, frame.f_lineno)
        if self.tiers.bind is not None:
            self.tiers.bind(_weakly(self.ack))
        if self.tiers.set_routing is not None:
            self.tiers.set_routing(self._routing)

    def __repr__(self) -> str:
        return f"<IrqManager irqfds={len(self._irqfds)} sink={self.tiers.sink!r}>"

    # -- life --------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._entered:
            raise ClosedError("a manager is entered once")
        await self.queue.__aenter__()
        try:
            poller = Poller.get()
        except BaseException:
            await self.queue.aclose()
            raise
        self._entered = True
        self._poller = poller
        self._drain = poller.drain
        _managers.add(self)
        poller.acquire()
        self.backpressure.open(self._top_half)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close(abort=exc_type is not None)
        if exc_type is None and self._first_error is not None:
            raise self._first_error

    async def aclose(self) -> None:
        """Inject what was signalled, deassign everything, end the work queue; idempotent: a second call waits for the first.

        Raises:
            InjectionError: The first one there was; what it was about is back in its eventfd.
            RuntimeError: Called from within a wakeup handler or the sink; nothing was changed.

        Cancellation:
            Cuts it short: what was not injected goes back into its eventfd. Everything is closed all the same.
        """
        await self._close(abort=False)
        error, self._first_error = self._first_error, None
        if error is not None:
            raise error

    async def _close(self, *, abort: bool) -> None:
        self.queue.check_outside()
        poller, self._poller = self._poller, None
        if poller is None:
            if self._closed is not None:
                await self._closed.wait()
            return
        self._closed = asyncio.Event()
        self.backpressure.closing = True
        irqfds = list(self._irqfds.values())
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
            self.backpressure.forget()
            try:
                await self.queue.aclose()
            finally:
                try:
                    for irqfd in [*irqfds, *self._leaving]:
                        irqfd.shut()
                        irqfd.abandon()
                finally:
                    self._drop_withheld()
                    poller.release()
                    self.backpressure.progress()
                    self._closed.set()

    def __del__(self) -> None:
        poller = getattr(self, "_poller", None)
        if poller is None or self.inherited:
            return
        try:
            code, line = self._made_at
            warnings.warn(
                f"unclosed {self!r}, made at {code.co_filename}:{line}", ResourceWarning, stacklevel=2, source=self
            )
        finally:
            self._poller = None
            self._aborting = True
            self.backpressure.forget()
            for irqfd in [*self._irqfds.values(), *self._leaving]:
                irqfd.shut()
                irqfd.abandon()
            self._drop_withheld()
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

    @property
    def inherited(self) -> bool:
        """Whether this is a forked child's copy, and the manager another process's."""
        return os.getpid() != self._process

    # -- assign and deassign -----------------------------------------------------------------------------------------

    @property
    def irqfds(self) -> tuple[IrqFd, ...]:
        """The assigned irqfds, oldest first."""
        return tuple(self._irqfds.values())

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

        Whatever is raised, nothing was changed. The order of the checks is the kernel's (row I02).

        Args:
            eventfd: The trigger. An int is an eventfd's fd that stays the caller's and may be closed at any time: the irqfd
                has a reference (a dup) of its own, as the kernel's has, and what was written is injected all the same (W03).
            gsi: 0..2**32-1; one without a route is accepted (row I11).
            resamplefd: Makes the gsi level-triggered for this irqfd: a signal raises the line, :meth:`ack` lowers it and
                signals the resamplefd. An int stays the caller's too, and may be closed.
            wakeup: A coroutine function, or several, run by the work queue before each injection with the irqfd and the
                count; the counts they get add up to exactly the signals, of a semaphore too.
            masked: Begin masked.

        Returns:
            The irqfd.

        Raises:
            WrongLoopError: No loop is running, or another one than the manager's.
            ClosedError: EBADF: the manager, an eventfd or an fd is not open; or somebody else has cancelled the work queue's
                tasks.
            TypeError: Not an EventFd and not an int.
            ValueError: The gsi is out of range.
            EventFdInvalidError: EINVAL: an fd is no eventfd.
            EventFdBusyError: EBUSY: the eventfd is bound already, by any manager, through any dup (row I12).
            OSError: EMFILE, where an int is given and there is no room for the dup.
        """
        self.check_here()
        self.queue.check_open()
        if not 0 <= operator.index(gsi) < _U32:
            raise ValueError(f"a gsi is 0..2**32-1, not {gsi}")
        handlers = (wakeup,) if callable(wakeup) else tuple(wakeup)
        if not all(map(callable, handlers)):
            raise TypeError(f"a wakeup handler is a coroutine function, not {wakeup!r}")
        references: list[EventFd] = []
        try:
            trigger, eventfd_id = identity.eventfd_and_id(eventfd, references)
            resample = None if resamplefd is None else identity.eventfd_and_id(resamplefd, references)[0]
            self.check_free(trigger, eventfd_id)
            irqfd = IrqFd(
                self, trigger, eventfd_id=eventfd_id, gsi=gsi, resamplefd=resample, handlers=handlers, masked=masked
            )
            trigger._signals = trigger._wakeups = trigger._fast = 0
            if resample is not None:
                self.lines[gsi].join(irqfd)
            try:
                if not irqfd.hand_over():
                    self.offloading.take_back_all(self.offloading.beside(irqfd))
                    self.watch(irqfd)
            except BaseException:
                self.lines.leave(irqfd)
                raise
        except BaseException:
            identity.close_all(references)
            raise
        irqfd._references = references
        identity.bound.add(eventfd_id)
        trigger._binding = irqfd
        self._irqfds[eventfd_id] = irqfd
        self.trace("irqfd_assigned", irqfd, resample=resample is not None, offloaded=irqfd.offloaded, masked=masked)
        return irqfd

    def check_free(self, trigger: EventFd, eventfd_id: int) -> None:
        """Raise unless the eventfd can be bound here (row I12)."""
        if eventfd_id in identity.bound:
            raise EventFdBusyError(f"fd {trigger.fileno()} is bound to an irqfd already")
        poller = trigger._poller
        if poller is not None and poller is not self._poller and trigger._waiters and not poller.gone:
            raise WrongLoopError("the eventfd is in use on another event loop")

    def find(self, eventfd: EventFd | int, *, gsi: int) -> IrqFd | None:
        """The irqfd by the kernel's key: the eventfd, any dup of which will do, and the gsi (row I14). None: there is none here.

        Raises:
            ClosedError: EBADF: the eventfd or the fd is not open.
            TypeError: Not an EventFd and not an int.
            EventFdInvalidError: EINVAL: the fd is no eventfd.
        """
        irqfd = self._irqfds.get(identity.id_of(eventfd))
        return irqfd if irqfd is not None and irqfd.gsi == gsi else None

    @overload
    async def deassign(self, irqfd: IrqFd, /) -> None: ...
    @overload
    async def deassign(self, eventfd: EventFd | int, /, *, gsi: int) -> None: ...
    async def deassign(self, irqfd: IrqFd | EventFd | int, /, *, gsi: int | None = None) -> None:
        """Unbind an irqfd, as a barrier: what was signalled before has been injected, and nothing of it runs or will run (row I20).

        Instead of the irqfd its eventfd, or any dup or fd of that, and its gsi will do, as for the ioctl. Where nothing is bound
        like that, nothing happens (row I14).

        What cannot be injected (it is masked, the manager is paused, the sink is broken) goes back into the eventfd, where the
        next assign finds it. An irqfd that is deassigned already, or another manager's, is left alone, without an error
        (row I14). From within its own wakeup handler it returns at once; that injection is the last. This goes for the task
        that runs the handler: one that the handler has started and waits for, in a task group or by ``asyncio.wait_for()`` in
        Python 3.11, would wait for the handler in turn. ``asyncio.timeout()`` starts none.

        Raises:
            WrongLoopError: Not called on the manager's loop.
            TypeError: An eventfd without a gsi, an irqfd with one, or what is neither.
            ClosedError: EBADF: it was given by an eventfd or an fd that is not open (row I15). Or somebody else has cancelled
                the work queue's tasks: what was not injected is back in the eventfd.
            EventFdInvalidError: EINVAL: it was given by an fd that is no eventfd (row I15).

        Cancellation:
            The irqfd is deassigned all the same; only the wait for what runs is given up.
        """
        if self._poller is not None and self.inherited:
            self.check_here()  # a forked child's copy is no manager of anything (row I17)
        if not isinstance(irqfd, IrqFd):
            if gsi is None:
                raise TypeError("an irqfd, or an eventfd and its gsi")
            found = self.find(irqfd, gsi=gsi)
            if found is None:
                # Perhaps another task is deassigning it just now: a barrier all the same.
                key = identity.id_of(irqfd), gsi
                found = next((one for one in self._leaving if (one.eventfd_id, one.gsi) == key), None)
                if found is None:
                    return
            irqfd = found
        elif gsi is not None:
            raise TypeError("an irqfd, or an eventfd and its gsi; not both")
        if irqfd._manager is not self or irqfd.state is State.CLOSED:
            return
        if self._poller is not None:
            self.check_here()
        irqfd.shut()
        await irqfd.drained()

    def _let_go(self) -> None:
        """In a forked child: its eventfds are nobody's here, and what is pending is pending in the parent."""
        for irqfd in self._irqfds.values():
            irqfd._closing, irqfd._state = True, State.CLOSED
            eventfd = irqfd.eventfd
            if eventfd._poller is not None:
                eventfd._recall()
                eventfd._unbind()
            eventfd._binding = None
            eventfd._waiters = None
            references, irqfd._references = irqfd._references, []
            identity.close_all(references)
        self._irqfds.clear()
        self.offloading.irqfds.clear()
        self._unrouted.clear()

    def watch(self, irqfd: IrqFd) -> None:
        """Have the loop hear of its eventfd; what that holds is an event."""
        eventfd = irqfd.eventfd
        if eventfd._poller is not self._poller:
            eventfd._detach()
        if eventfd._registered:
            # It has waiting readers; register it anew, so that what it holds is an event of the irqfd's.
            eventfd._detach()
        eventfd._attach()
        eventfd._gsi = irqfd.gsi
        handlers = irqfd._handlers
        eventfd._bind(self._top_half, irqfd, bool(handlers), handlers[0] if len(handlers) == 1 else None)
        irqfd.arm()

    def shut(self, irqfd: IrqFd) -> None:
        """The eventfd is nobody's from here on; what it owes is the irqfd's."""
        eventfd = irqfd.eventfd
        if irqfd.offloaded:
            try:
                irqfd.take_back()
            except Exception as error:
                # The virtual machine is gone, and its irqfds with it (row C05).
                self.trace("reclaim_failed", irqfd, error=repr(error))
        poller = eventfd._poller
        owed = self.unwatch(irqfd)
        if owed:
            irqfd.wakeup(owed)
        irqfd.freeze()
        eventfd._binding = None
        identity.bound.discard(irqfd.eventfd_id)
        del self._irqfds[irqfd.eventfd_id]
        self._leaving.add(irqfd)
        self._unrouted.discard(irqfd)
        if eventfd._waiters and poller is not None and not poller.gone:
            # They wait on the manager's loop, which need not be running just now.
            with contextlib.suppress(OSError):
                poller.attach(eventfd)
                eventfd._poller = poller
                eventfd._listening = True

    def unwatch(self, irqfd: IrqFd) -> int:
        """Leave the poller; what was signalled up to here and is not injected. What comes later stays in the eventfd."""
        eventfd = irqfd.eventfd
        poller = eventfd._poller
        owed = 0
        if poller is not None and eventfd._registered:
            poller.drain.collect()
            # A deassign takes one of a semaphore's rest, as the kernel's does (row P05); a migration leaves it whole.
            if eventfd._owed or not (eventfd.semaphore and self._paused):
                before = eventfd._signals
                owed = poller.drain.settle(eventfd)
                irqfd.note_unread(eventfd._signals - before - owed)
        recalled = eventfd._recall()
        eventfd._unbind()
        eventfd._spill()
        eventfd._detach()
        if owed:
            eventfd._wakeups += 1
        return owed + recalled

    def finished(self, irqfd: IrqFd) -> None:
        """Nothing of the irqfd runs any more."""
        self._leaving.discard(irqfd)
        self.lines.leave(irqfd)
        references, irqfd._references = irqfd._references, []
        if references and self._poller is not None and self._poller.drain.dispatching:
            # What the sink just refused is yet to be given back.
            self._poller.loop.call_soon(identity.close_all, references)
        else:
            identity.close_all(references)
        if self._tracer is not NULL_TRACER:
            counts = irqfd.statistics()
            self.trace(
                "irqfd_deassigned",
                irqfd,
                signals=counts.signals,
                injections=counts.injections,
                coalesced=counts.coalesced,
                dropped=counts.dropped,
            )

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
            TypeError: Not a mapping.
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
        self._move_along(lambda gsi: self.routes(gsi) != old.get(gsi, _NO_ROUTES), self.lines.all())
        if self._gsis is not None:
            self._gsis.unrouted(*(old.keys() - table.keys()))

    def set_route(self, gsi: int, routes: Route | Sequence[Route]) -> None:
        """Change where one gsi goes, and leave the rest of the table alone; all or nothing, as :meth:`set_routing`.

        What it costs does not grow with what the loop watches. Nothing happens if it goes there already.

        Args:
            gsi: 0..4095.
            routes: One route, several to different chips, or none (``()``): then the gsi is unrouted.

        Raises:
            RoutingError: EINVAL; the old route stays in force (row G09).
            WrongLoopError: Not called on the manager's loop.
        """
        self.check_here()
        old = self._routing
        table = old.with_route(gsi, routes)
        if table is old:
            return
        if self.tiers.set_routing is not None:
            self.tiers.set_routing(table)
        self._routing = table
        self._cached.pop(gsi, None)
        self._top_half.generation += 1
        self._tracer.emit("route_changed", gsi=gsi, routes=len(self.routes(gsi)), generation=self.generation)
        resampler = self.lines.get(gsi)
        self._move_along(lambda other: other == gsi, () if resampler is None else (resampler,))
        if self._gsis is not None and table.entries < old.entries:
            self._gsis.unrouted(*(() if gsi in table else (gsi,)))

    def _move_along(self, changed: Callable[[int], bool], resamplers: Iterable[Resampler]) -> None:
        """Have what is bound to the gsis that changed follow; the resamplers are theirs, or more."""
        moved = [irqfd for irqfd in self.offloading.irqfds if changed(irqfd.gsi)]
        # First, for it may bring a line that is up, which then moves along.
        self.offloading.take_back_all(moved)
        for resampler in resamplers:
            if changed(resampler.gsi):
                resampler.reroute(self.routes(resampler.gsi))
        for irqfd in moved:
            irqfd.unblock()
        for irqfd in [irqfd for irqfd in self._unrouted if irqfd.gsi in self._routing]:
            self._unrouted.discard(irqfd)
            irqfd.unblock()

    @property
    def gsis(self) -> GsiAllocator:
        """Hands out the gsis that are not routed, from 24 on, to whoever needs one for a while; made at the first need.

        :class:`aioirqfd.MsixTable` takes its gsis here. Assign what has no route yet to gsis below 24, or to one taken here.
        """
        gsis = self._gsis
        if gsis is None:
            gsis = self._gsis = GsiAllocator(lambda gsi: gsi in self._routing)
        return gsis

    def routes(self, gsi: int) -> tuple[Route, ...]:
        """Where the gsi goes now; empty: nowhere."""
        return self._routing.get(gsi, _NO_ROUTES)

    def cached_interrupt(self, gsi: int, *, level: bool) -> Interrupt | None:
        """The one Interrupt of the gsi, if the counter module may inject it by itself."""
        if self.tiers.try_inject is None or self.per_interrupt:
            return None
        routes = self.routes(gsi)
        if len(routes) != 1 or (level and is_level(routes)):
            return None
        interrupt = self._cached.get(gsi)
        if interrupt is None:
            interrupt = self._cached[gsi] = Interrupt(gsi, routes[0])
        return interrupt

    def try_inject(self, interrupt: Interrupt) -> bool:
        """Have the sink take it at once, if it can. What it signals meanwhile comes later: it is not entered from within itself."""
        try_inject, drain = self.tiers.try_inject, self._drain
        if try_inject is None or drain is None:
            return False
        nested, drain.dispatching = drain.dispatching, True
        try:
            return bool(try_inject(interrupt))
        finally:
            drain.dispatching = nested

    # -- level-triggered lines ---------------------------------------------------------------------------------------

    def ack(self, gsi: int) -> None:
        """The guest's end of interrupt: lower the line, then signal every resamplefd of the gsi, newest first (rows R02, R03).

        A gsi without resample irqfds is ignored (row R06).

        Threads:
            Any. With a sink that has ``try_inject`` the line is low when this returns.
        """
        resampler = self.lines.get(gsi)
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
        resampler = self.lines.get(gsi)
        return resampler is not None and resampler.tell()

    def line_failed(self, event: str, resampler: Resampler, error: Exception) -> None:
        """The sink failed to lower or to raise a line: say so and try again later."""
        self._tracer.emit(event, gsi=resampler.gsi, error=repr(error))
        if self._poller is not None:
            self._poller.loop.call_later(self.retry.maximum, self._settle_line, resampler)

    def _settle_line(self, resampler: Resampler) -> None:
        # A paused manager's snapshot has what is yet to be done: it is the snapshot's, unless the manager resumes.
        resampler.settle(paused=self._paused)

    # -- waiting -----------------------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Return once every signal sent before this call, from anywhere, has been injected.

        What is masked, broken, or held for want of a route stays pending and is not waited for; nor is anything while the
        manager is paused. Signals sent meanwhile do not prolong it. An offloaded irqfd is the kernel's business.

        Raises:
            WrongLoopError: Not called on the manager's loop.
            RuntimeError: Called from within a wakeup handler or the sink, which would wait for itself.
            ClosedError: Somebody else has cancelled the work queue's tasks.
        """
        drain = self._open.drain
        self.queue.check_outside()
        drain.collect()
        # What is being deassigned owes its injections too.
        irqfds = (*self._irqfds.values(), *self._leaving)
        marks = [(irqfd, irqfd.mark()) for irqfd in irqfds if irqfd.owed or irqfd.active]
        works = [resampler.work for resampler in self.lines.all()]
        lines = [work for work in works if work.pending or work.running is not None]
        for irqfd, mark in marks:
            while not self._paused and not irqfd.passed(mark):
                if irqfd.owed and not irqfd.eventfd._held:
                    drain.run()
                    await asyncio.sleep(0)
                else:
                    self.backpressure.check_alive()
                    await self.backpressure.next_progress()
        for work in lines:
            await self.backpressure.flush(work)

    # -- blocking ----------------------------------------------------------------------------------------------------

    def blocks(self, gsi: int) -> bool:
        """Whether nothing may be injected for the gsi just now."""
        return self._paused or self._aborting or self.holds(gsi)

    def holds(self, gsi: int) -> bool:
        """Whether the gsi waits for a route."""
        return self._hold and gsi not in self._routing

    def note_pending(self, irqfd: IrqFd) -> None:
        """An interrupt is owed and blocked; if for want of a route, remember who waits for one."""
        if self.holds(irqfd.gsi) and irqfd not in self._unrouted:
            self._unrouted.add(irqfd)
            self.trace("interrupt_held", irqfd)

    async def pause(self) -> None:
        """Inject nothing from here on; return when nothing is being injected any more. Signals wait in their eventfds.

        Raises:
            WrongLoopError: Not called on the manager's loop.
            RuntimeError: Called from within a wakeup handler or the sink, which would wait for itself.

        Cancellation:
            The manager is paused all the same; only the wait is given up.
        """
        drain = self._open.drain
        self.queue.check_outside()
        if not self._paused:
            # Counts that were injected and not read yet: from here on they could not be told from what waits.
            drain.settle_unread(drain.unread)
            self._pauses += 1
            self._paused = self._top_half.paused = True
            self._paused_since = time.monotonic()
            self.offloading.take_back_all(list(self.offloading.irqfds))
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
        paused_for = time.monotonic() - self._paused_since
        self._tracer.emit("manager_resumed", held=self._top_half.held, paused_for=paused_for)
        for resampler in self.lines.all():
            resampler.settle(paused=False)
        for irqfd in self.irqfds:
            irqfd.release_capture()
            irqfd.unblock()
        for eventfd, count in self._withheld:
            eventfd.signal(min(count, 2**64 - 2))
        self._drop_withheld()
        self._top_half.release()
        self.backpressure.progress()

    def snapshot(self) -> dict[str, object]:
        """Everything an interrupt can be in, as a JSON-able dict: see the module ``aioirqfd.irqfd.snapshot``.

        Raises:
            SnapshotError: The manager is not paused; or something is being injected yet, because :meth:`pause` was given up.
            WrongLoopError: Not called on the manager's loop.
        """
        self.check_here()
        return snapshot.take(self, paused=self._paused and self._settled)

    def restore(self, state: Mapping[str, object]) -> None:
        """Put a snapshot's state into this manager, whose irqfds are assigned as they were; it must be paused.

        Raises:
            SnapshotError: The state is malformed, of another version, or does not fit; or the manager is not paused, or
                something is being injected yet. Nothing was changed.
            WrongLoopError: Not called on the manager's loop.
        """
        self.check_here()
        snapshot.put(self, state, paused=self._paused and self._settled)
        self._drop_withheld()

    def withhold(self, eventfd: EventFd, count: int) -> bool:
        """An irqfd is deassigned whose signals a snapshot has: its eventfd gets them back if the manager resumes after all.

        False: there is no room for a dup. They are rather injected twice than lost.
        """
        if self._poller is not None and not self.inherited:
            try:
                self._withheld.append((EventFd._reference(eventfd.fileno()), count))
            except OSError:
                return False
        return True

    def _drop_withheld(self) -> None:
        withheld, self._withheld = self._withheld, []
        identity.close_all(eventfd for eventfd, _ in withheld)

    @property
    def _settled(self) -> bool:
        """Whether nothing is being injected any more. A retry that waits for its time is not."""
        return self.queue.idle and not any(irqfd.busy for irqfd in (*self._irqfds.values(), *self._leaving))

    # -- what happened -----------------------------------------------------------------------------------------------

    def statistics(self) -> IrqManagerStatistics:
        """The counts as they are now; looks at every irqfd."""
        return IrqManagerStatistics(
            irqfds=len(self._irqfds),
            offloaded=len(self.offloading.irqfds),
            held=self._top_half.held,
            broken=sum(irqfd.state is State.BROKEN for irqfd in self._irqfds.values()),
            asserted=sum(resampler.asserted for resampler in self.lines.all()),
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
        if self.per_interrupt:
            self.trace(event, irqfd, **fields)

    def dropped(self, irqfd: IrqFd) -> None:
        """An interrupt had no route. Traced once for each irqfd and table."""
        self._dropped += 1
        if irqfd._dropped_under != self.generation:
            irqfd._dropped_under = self.generation
            self.trace("interrupt_dropped", irqfd)

    def fast_path_failed(self, error: BaseException) -> None:
        """``try_inject`` raised; the work queue tries again."""
        self._tracer.emit("fast_path_failed", error=repr(error))
        if not isinstance(error, (Exception, asyncio.CancelledError)) and self._poller is not None:
            # Ctrl-C or sys.exit() is not the sink's failure. The interrupt is safe; now let it end the loop.
            self._poller.loop.call_soon(_raise, error)

    def broken(self, irqfd: IrqFd, error: Exception) -> None:
        """The sink failed for good."""
        self.trace("irqfd_broken", irqfd, error=repr(error.__cause__))
        if self._first_error is None:
            self._first_error = error
        if self._on_error is not None:
            try:
                self._on_error(error)
            except Exception as another:
                report(f"aioirqfd: on_error raised: {self._on_error!r}", another)


def _table(routing: RoutingTable | Mapping[int, Route | Sequence[Route]]) -> RoutingTable:
    if not isinstance(routing, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  callers without a type checker
        raise TypeError(f"a routing table maps gsis to routes; {routing!r} does not")
    return routing if isinstance(routing, RoutingTable) else RoutingTable(routing)


def _raise(error: BaseException) -> None:
    raise error


def _weakly(method: Callable[_P, object]) -> Callable[_P, None]:
    """Call a method of an object that may be gone.

    anyio keeps the tasks of a task group alive for as long as they wait, and with them the work queue and all that it calls: a
    manager that is dropped open could not be noticed.
    """
    reference = weakref.WeakMethod(method)

    def call(*args: _P.args, **kwargs: _P.kwargs) -> None:
        target = reference()
        if target is not None:
            target(*args, **kwargs)

    return call
