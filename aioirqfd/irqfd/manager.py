"""The irqfd manager: what ``struct kvm`` is to irqfds.

It owns the irqfds of one virtual machine, their routing, the work queue and the resamplers, and stands between the drain of
its loop (below) and one interrupt sink (above).
"""

from __future__ import annotations

import asyncio
import operator
import os
import sys
import time
import warnings
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, ParamSpec, Self, final, overload

from aioirqfd.counter import MAX, FlightRing, TopHalf
from aioirqfd.errors import ClosedError, SnapshotError, WrongLoopError
from aioirqfd.eventfd import EventFd, Poller
from aioirqfd.eventfd.loops import running_loop
from aioirqfd.eventfd.teardown import tear_down
from aioirqfd.integers import integer
from aioirqfd.irqfd import identity, snapshot
from aioirqfd.irqfd.backpressure import Backpressure
from aioirqfd.irqfd.coroutine import coroutine_functions
from aioirqfd.irqfd.delivery import Delivery
from aioirqfd.irqfd.gsi import GsiAllocator
from aioirqfd.irqfd.irqfd import IrqFd
from aioirqfd.irqfd.lines import Lines
from aioirqfd.irqfd.offloading import Offloading
from aioirqfd.irqfd.retry import Retry
from aioirqfd.irqfd.routing import Routes, RoutingTable
from aioirqfd.irqfd.sink import SinkTiers
from aioirqfd.irqfd.trigger import Trigger
from aioirqfd.irqfd.workqueue import WorkQueue, WorkQueueStatistics
from aioirqfd.tracer import NULL_TRACER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from aioirqfd.irqfd.interrupt import Route
    from aioirqfd.irqfd.irqfd import WakeupHandler
    from aioirqfd.irqfd.resampler import Resampler
    from aioirqfd.irqfd.sink import InterruptSink
    from aioirqfd.tracer import Tracer

_P = ParamSpec("_P")
_MAX_GSI: Final = 2**32 - 1
_AT_ONCE: Final = 256
"""Irqfds that are shut before the loop gets a turn."""

_managers: Final[weakref.WeakSet[IrqManager]] = weakref.WeakSet()


def _drop_inherited() -> None:
    """In a forked child: what the parent has bound is free here. The parent's pollers are gone already."""
    for manager in list(_managers):
        manager._let_go()  # pyright: ignore[reportPrivateUsage]


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
        routing: The first routing table. Without one, the sink's own (:class:`aioirqfd.ChipSink`): an interrupt controller has
            gsi n at its pin n; a sink that says nothing gets every gsi there is, gsi n as pin n.
        queue: The work queue; the manager enters and leaves it. Without one, ``WorkQueue()``.
        unrouted: What becomes of a signal whose gsi has no route: ``"drop"`` it, counted and traced, as the kernel does
            (rows W08, G11), or ``"hold"`` it until a route appears.
        tracer: Hears what happens.
        on_error: Called with each :class:`InjectionError` when an irqfd is given up; should not raise. What it raises, or the
            tracer, goes to the loop's exception handler. So does trouble itself, once, with its traceback, where there is no
            tracer: an irqfd that is given up, unless there is an ``on_error``; the first interrupt of an irqfd that is dropped;
            a line that the sink does not lower; signals that cannot be put back.
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
        if unrouted not in ("drop", "hold"):
            raise ValueError(f"unrouted is 'drop' or 'hold', not {unrouted!r}")
        tiers = SinkTiers(sink)
        self.queue: Final = queue if queue is not None else WorkQueue()
        self.routes: Final = Routes(
            _table(tiers.default_routing() if routing is None else routing), hold=unrouted == "hold"
        )
        self.delivery: Final = Delivery(tiers, tracer, retry if retry is not None else Retry(), on_error)
        self.backpressure: Final = Backpressure(self.queue, self.delivery.emit)
        self.lines: Final = Lines(self.delivery, self.routes, self.backpressure)
        self.offloading: Final = Offloading(self.delivery, self.routes, self.lines, self._watch)
        self._top_half = TopHalf(
            tiers.try_inject,
            tiers.try_inject_batch,
            _weakly(self._fast_path_failed),
            self.backpressure.ready,
            self.backpressure.progress,
        )
        # A tracer with a ring (the flight recorder) has the counter module write into it.
        ring = getattr(tracer, "ring", None)
        self._top_half.flight = ring if isinstance(ring, FlightRing) else None
        self._gsis: GsiAllocator | None = None
        self._irqfds: dict[int, IrqFd] = {}  # by eventfd-id, oldest first
        self._leaving: set[IrqFd] = set()
        self._unrouted: set[IrqFd] = set()
        self._poller: Poller | None = None
        self._closed: asyncio.Event | None = None
        self._entered = False
        self.pauses = 0
        """So many times was it paused: a snapshot's owner knows whether it went on since."""
        self._paused_since = 0.0
        # What a snapshot has of irqfds that were deassigned since: the eventfds, and how many signals.
        self._withheld: list[tuple[EventFd, int]] = []
        self.inherited = False
        """Whether this is a forked child's copy, and the manager another process's (row I17)."""
        frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        self._made_at = (frame.f_code, frame.f_lineno)
        if tiers.bind is not None:
            tiers.bind(_weakly(self.ack))
        if tiers.set_routing is not None:
            tiers.set_routing(self.routing)

    def __repr__(self) -> str:
        return f"<IrqManager irqfds={len(self._irqfds)} sink={self.delivery.tiers.sink!r}>"

    # -- life --------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._entered:
            raise ClosedError("a manager is entered once")
        poller = Poller.get()
        poller.acquire()
        try:
            await self.queue.__aenter__()
            poller.acquire(self)
        finally:
            poller.release()
        self._entered = True
        self._poller = poller
        self.delivery.open(poller, self._top_half)
        _managers.add(self)
        self.backpressure.open(self._top_half, poller.drain)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close(abort=exc_type is not None)
        if exc_type is None and self.delivery.first_error is not None:
            raise self.delivery.first_error

    async def aclose(self) -> None:
        """Inject what was signalled, deassign everything, end the work queue; idempotent: a second call waits for the first.

        Raises:
            InjectionError: The first one there was; what it was about is back in its eventfd.
            RuntimeError: Called from within a wakeup handler or the sink; nothing was changed.

        Cancellation:
            Cuts it short: what was not injected goes back into its eventfd. Everything is closed all the same.
        """
        await self._close(abort=False)
        error, self.delivery.first_error = self.delivery.first_error, None
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
        self.delivery.raising = False
        irqfds = list(self._irqfds.values())
        errors: list[Exception] = []

        def failed(close: Callable[[], object]) -> None:
            # One that cannot be closed properly, for its fd is gone say, must not cost the others their injections.
            try:
                close()
            except Exception as error:
                errors.append(error)

        try:
            if not abort:
                for index, irqfd in enumerate(irqfds, 1):
                    failed(irqfd.shut)
                    if index % _AT_ONCE == 0:
                        await asyncio.sleep(0)
                for irqfd in irqfds:
                    await irqfd.drained()
                await self.queue.drain()
        finally:
            self.routes.aborting = True
            self.backpressure.forget()
            try:
                await self.queue.aclose()
            finally:
                for irqfd in [*irqfds, *self._leaving]:
                    failed(irqfd.shut)
                    failed(irqfd.abandon)
                failed(self._drop_withheld)
                failed(poller.release)
                self.backpressure.progress()
                self._closed.set()
        if errors:
            raise errors[0]

    def __del__(self) -> None:
        if getattr(self, "_poller", None) is not None and not self.inherited:
            self._abandon("")

    def loop_closed(self) -> None:
        """Called by the poller. Nothing runs any more: what is bound is free, and what was not injected is back in its eventfd."""
        if self._poller is not None and not self.inherited:
            self._abandon(", whose loop was closed")

    def _abandon(self, why: str) -> None:
        poller, self._poller = self._poller, None
        assert poller is not None
        self.routes.aborting = True
        self.delivery.raising = False
        self.backpressure.forget()
        irqfds = [*self._irqfds.values(), *self._leaving]
        shut = [step for irqfd in irqfds for step in (irqfd.shut, irqfd.abandon)]
        tear_down(
            (self._warn_unclosed(why), *shut, self._drop_withheld, self.queue.abandon, partial(poller.release, self))
        )

    def _warn_unclosed(self, why: str) -> Callable[[], None]:
        code, line = self._made_at
        text = f"unclosed {self!r}{why}, made at {code.co_filename}:{line}"
        return partial(warnings.warn, text, ResourceWarning, stacklevel=2, source=self)

    def check_here(self) -> None:
        """Raise unless the manager is open and its loop is running here.

        Raises:
            ClosedError: It is not entered, or closed.
            WrongLoopError: It belongs to another loop, or none is running.
        """
        if self.inherited:
            raise WrongLoopError(f"{self!r} is the parent process's; a forked child makes a manager of its own")
        if self._poller is None:
            running_loop()
            raise ClosedError(
                "the manager is closed"
                if self._entered
                else "the manager is not open; enter it with `async with` first"
            )
        self._poller.check_here()

    @property
    def poller(self) -> Poller | None:
        """Its loop's poller, while it is open."""
        return self._poller

    @property
    def _open(self) -> Poller:
        self.check_here()
        assert self._poller is not None
        return self._poller

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
        wakeup: WakeupHandler | Sequence[WakeupHandler] | None = None,
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
            wakeup: A coroutine function, or several, or None, run by the work queue before each injection with the irqfd and the
                count; the counts they get add up to exactly the signals, of a semaphore too. A handler that has returned is not told
                again of what it was told: if the irqfd is deassigned before that injection, 1 goes back into the eventfd to keep
                the interrupt. One that has raised is told again.
            masked: Begin masked.

        Returns:
            The irqfd.

        Raises:
            WrongLoopError: No loop is running, or another one than the manager's.
            ClosedError: EBADF: the manager, an eventfd or an fd is not open; or somebody else has cancelled the work queue's
                tasks.
            TypeError: Not an EventFd and not an int; a gsi that is no integer, or a bool; a handler that is a plain function.
            ValueError: The gsi is out of range.
            EventFdInvalidError: EINVAL: an fd is no eventfd.
            EventFdBusyError: EBUSY: the eventfd is bound already, by any manager, through any dup (row I12).
            OSError: EMFILE, where an int is given and there is no room for the dup.
        """
        self.check_here()
        self.queue.check_open()
        gsi = integer(gsi, "a gsi", 0, _MAX_GSI)
        handlers = coroutine_functions(wakeup, "a wakeup handler")
        references: list[EventFd] = []
        try:
            trigger, eventfd_id = identity.eventfd_and_id(eventfd, references)
            resample = None if resamplefd is None else identity.eventfd_and_id(resamplefd, references)[0]
            identity.check_free(trigger, eventfd_id, self._poller)
            irqfd = IrqFd(
                self, Trigger(trigger, eventfd_id), gsi=gsi, resamplefd=resample, handlers=handlers, masked=masked
            )
            if resample is not None:
                self.lines[gsi].join(irqfd)
            try:
                if not self.offloading.offload(irqfd):
                    self.offloading.take_back_all(self.offloading.beside(irqfd))
                    self._watch(irqfd)
            except BaseException:
                self.lines.leave(irqfd, gsi)
                raise
        except BaseException:
            identity.close_all(references)
            raise
        irqfd.trigger.references = references
        identity.bound.add(eventfd_id)
        irqfd.trigger.bind(irqfd)
        self._irqfds[eventfd_id] = irqfd
        if self._gsis is not None:
            self._gsis.bind(gsi)
        self.delivery.trace(
            "irqfd_assigned", irqfd, resample=resample is not None, offloaded=irqfd.offloaded, masked=masked
        )
        return irqfd

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
        if self.inherited:
            self.check_here()
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
        if not irqfd.owned_by(self) or irqfd.closed:
            return
        if self._poller is not None:
            self.check_here()
        irqfd.shut()
        await irqfd.drained()

    def _let_go(self) -> None:
        """In a forked child: its eventfds are nobody's here, and what is pending is pending in the parent."""
        self.inherited = True
        for irqfd in self._irqfds.values():
            irqfd.inherit()
        self._irqfds.clear()
        self.offloading.irqfds.clear()
        self._unrouted.clear()

    def _watch(self, irqfd: IrqFd) -> None:
        irqfd.trigger.watch(self._top_half, irqfd, irqfd.gsi, irqfd.handlers)
        irqfd.arm()

    # What an irqfd asks of its manager: see irqfd.Owner.

    def offload(self, irqfd: IrqFd) -> bool:
        """Let the sink watch its eventfd, if it can."""
        return self.offloading.offload(irqfd)

    def take_back(self, irqfd: IrqFd) -> None:
        """Watch its eventfd here."""
        self.offloading.take_back(irqfd)

    def wants_route(self, irqfd: IrqFd) -> None:
        """An interrupt is owed and blocked; if for want of a route, remember who waits for one."""
        if self.routes.holds(irqfd.gsi) and irqfd not in self._unrouted:
            self._unrouted.add(irqfd)
            self.delivery.trace("interrupt_held", irqfd)

    def leaving(self, irqfd: IrqFd) -> None:
        """The eventfd is nobody's from here on; what it owes is the irqfd's."""
        try:
            self.offloading.reclaim(irqfd)
        except BaseException as error:
            # The virtual machine is gone, and its irqfds with it (row C05).
            self.delivery.sink_failed("reclaim_failed", irqfd, error)
        poller = irqfd.trigger.eventfd_poller
        try:
            owed = irqfd.unwatch(whole=self.routes.paused)
            if owed:
                irqfd.wakeup(owed)
        finally:
            del self._irqfds[irqfd.eventfd_id]
            self._leaving.add(irqfd)
            self._unrouted.discard(irqfd)
            irqfd.trigger.let_go(poller)

    def finished(self, irqfd: IrqFd) -> None:
        """Nothing of the irqfd runs any more."""
        self._leaving.discard(irqfd)
        if irqfd.resamplefd is not None:
            self.lines.leave(irqfd, irqfd.gsi)
        irqfd.trigger.close_references()
        if self.delivery.traced:
            counts = irqfd.statistics()
            self.delivery.trace(
                "irqfd_deassigned",
                irqfd,
                signals=counts.signals,
                injections=counts.injections,
                coalesced=counts.coalesced,
                dropped=counts.dropped,
            )
        if self._gsis is not None and self._poller is not None:
            self._gsis.unbind(irqfd.gsi)  # last, for whoever waits for the gsi may take it here and now

    def withhold(self, eventfd: EventFd, count: int) -> bool:
        """An irqfd is deassigned whose signals a snapshot has: its eventfd gets them back if the manager resumes after all.

        False: there is no room for a dup. They are rather injected twice than lost.
        """
        if self._poller is not None and not self.inherited:
            try:
                self._withheld.append((identity.reference(eventfd), count))
            except OSError:
                return False
        return True

    def _drop_withheld(self) -> None:
        withheld, self._withheld = self._withheld, []
        identity.close_all(eventfd for eventfd, _ in withheld)

    # -- routing -----------------------------------------------------------------------------------------------------

    @property
    def routing(self) -> RoutingTable:
        """The table in force."""
        return self.routes.table

    def set_routing(self, routing: RoutingTable | Mapping[int, Route | Sequence[Route]]) -> None:
        """Replace the routing table as a whole (``KVM_SET_GSI_ROUTING``). Bound irqfds see it on their next event (row G10).

        A level-triggered line that is up moves along with its gsi. With ``unrouted="hold"``, what waited for a route that is
        there now is injected. What this table does not have goes nowhere, also where a default table had a pin for every gsi.

        Raises:
            RoutingError: EINVAL; the old table stays in force (row G09).
            TypeError: Not a mapping.
            WrongLoopError: Not called on the manager's loop.
        """
        self.check_here()
        table = _table(routing)
        old = self._put_routing(table)
        self.delivery.emit("routing_changed", gsis=len(table), generation=self.routes.generation)
        self._move_along(lambda gsi: self.routes.of(gsi) != old.routes(gsi), self.lines.all())
        if self._gsis is not None:
            self._gsis.unrouted(*(old.keys() - table.keys()))

    def _put_routing(self, table: RoutingTable, changed: int | None = None) -> RoutingTable:
        """Put it in force, if the sink agrees; the old one."""
        set_routing = self.delivery.tiers.set_routing
        if set_routing is not None:
            set_routing(table)
        old = self.routes.replace(table, changed)
        self._top_half.generation = self.routes.generation
        return old

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
        table = self.routing.with_route(gsi, routes)
        self._put_route(operator.index(gsi), table)

    def reset_route(self, gsi: int) -> None:
        """Take back what was said of a gsi, with one that came from :attr:`gsis` for instance.

        It is unrouted then, or goes, from 24 on, where a default table sends it. Raises as :meth:`set_route` does.
        """
        self.check_here()
        table = self.routing.without((gsi,))
        self._put_route(operator.index(gsi), table)

    def _put_route(self, gsi: int, table: RoutingTable) -> None:
        if table is self.routing:
            return
        old = self._put_routing(table, gsi)
        self.delivery.emit("route_changed", gsi=gsi, routes=len(self.routes.of(gsi)), generation=self.routes.generation)
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
                resampler.reroute(self.routes.of(resampler.gsi))
        for irqfd in moved:
            irqfd.unblock()
        for irqfd in [irqfd for irqfd in self._unrouted if self.routes.of(irqfd.gsi)]:
            self._unrouted.discard(irqfd)
            irqfd.unblock()

    @property
    def gsis(self) -> GsiAllocator:
        """Hands out the gsis that are free, from 24 on, to whoever needs one for a while; made at the first need.

        Free is what no table has a route for and no irqfd is assigned to; that a default table has a pin for every gsi does not
        count. :class:`aioirqfd.MsixTable` takes its gsis here. Assign what is to come later to gsis below 24, or to one taken here.
        """
        gsis = self._gsis
        if gsis is None:
            gsis = self._gsis = GsiAllocator(lambda gsi: gsi in self.routing)
            for irqfd in (*self._irqfds.values(), *self._leaving):
                gsis.bind(irqfd.gsi)
        return gsis

    # -- level-triggered lines ---------------------------------------------------------------------------------------

    def ack(self, gsi: int) -> None:
        """The guest's end of interrupt: lower the line, then signal every resamplefd of the gsi, newest first (rows R02, R03).

        A gsi without resample irqfds is ignored (row R06).

        Raises:
            WrongLoopError: In a forked child, whose copy of the manager has no lines (row I17).

        Threads:
            Any. With a sink that has ``try_inject`` the line is low when this returns.
        """
        if self.inherited:
            self.check_here()
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
        if self.inherited:
            self.check_here()
        resampler = self.lines.get(gsi)
        return resampler is not None and resampler.tell()

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
        # Mostly the sink takes it all here and now, and there is nothing to wait for.
        drain.run()
        # What is being deassigned owes its injections too.
        irqfds = (*self._irqfds.values(), *self._leaving)
        if not self.routes.paused:
            for irqfd in irqfds:
                irqfd.gather()
        marks = [(irqfd, irqfd.mark()) for irqfd in irqfds if irqfd.unsettled]
        works = [resampler.work for resampler in self.lines.all()]
        lines = [work for work in works if work.pending or work.running is not None]
        for irqfd, mark in marks:
            while not self.routes.paused and not irqfd.passed(mark):
                if irqfd.trigger.owed and not irqfd.trigger.held:
                    drain.run()
                    await asyncio.sleep(0)
                else:
                    self.backpressure.check_alive()
                    await self.backpressure.next_progress()
        for work in lines:
            await self.backpressure.flush(work)

    # -- blocking ----------------------------------------------------------------------------------------------------

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
        if not self.routes.paused:
            # Counts that were injected and not read yet: from here on they could not be told from what waits.
            drain.settle_unread(drain.unread)
            self.pauses += 1
            self.routes.paused = self._top_half.paused = True
            self._paused_since = time.monotonic()
            self.offloading.take_back_all(list(self.offloading.irqfds))
            self.delivery.emit("manager_paused", irqfds=len(self._irqfds))
        await self.queue.drain()

    def resume(self) -> None:
        """Inject what has become pending, and go on; nothing happens if the manager is not paused.

        Raises:
            WrongLoopError: Not called on the manager's loop.
        """
        self.check_here()
        if not self.routes.paused:
            return
        self.routes.paused = self._top_half.paused = False
        paused_for = time.monotonic() - self._paused_since
        self.delivery.emit("manager_resumed", held=self._top_half.held, paused_for=paused_for)
        for resampler in self.lines.all():
            resampler.settle(paused=False)
        for irqfd in self.irqfds:
            irqfd.debt.release()
            irqfd.unblock()
        for eventfd, count in self._withheld:
            eventfd.signal(min(count, MAX))
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
        self._check_settled()
        return snapshot.take(self.irqfds, self.routing, self.lines)

    def restore(self, state: Mapping[str, object]) -> None:
        """Put a snapshot's state into this manager, whose irqfds are assigned as they were; it must be paused.

        Raises:
            SnapshotError: The state is malformed, of another version, or does not fit; or the manager is not paused, or
                something is being injected yet. Nothing was changed.
            WrongLoopError: Not called on the manager's loop.
        """
        self.check_here()
        self._check_settled()
        plan = snapshot.check(self.irqfds, state)
        try:
            self.set_routing(plan.routing)
        except Exception as error:
            raise SnapshotError(f"routing: the sink refuses it: {error}") from error
        plan.put(self.lines)
        self._drop_withheld()

    @property
    def paused(self) -> bool:
        """Whether nothing is injected for the time being."""
        return self.routes.paused

    def _check_settled(self) -> None:
        """Raise unless nothing is being injected any more. A retry that waits for its time is not."""
        busy = any(irqfd.busy for irqfd in (*self._irqfds.values(), *self._leaving))
        if not self.routes.paused or not self.queue.idle or busy:
            raise SnapshotError("pause the manager first, and let it finish what it injects")

    # -- what happened -----------------------------------------------------------------------------------------------

    def statistics(self) -> IrqManagerStatistics:
        """The counts as they are now; looks at every irqfd."""
        return IrqManagerStatistics(
            irqfds=len(self._irqfds),
            offloaded=len(self.offloading.irqfds),
            held=self._top_half.held,
            broken=sum(irqfd.error is not None for irqfd in self._irqfds.values()),
            asserted=sum(resampler.asserted for resampler in self.lines.all()),
            dropped=self.delivery.dropped,
            queue=self.queue.statistics(),
        )

    def _fast_path_failed(self, error: BaseException) -> None:
        self.delivery.fast_path_failed(error)


def _table(routing: RoutingTable | Mapping[int, Route | Sequence[Route]]) -> RoutingTable:
    if not isinstance(routing, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  callers without a type checker
        raise TypeError(f"a routing table maps gsis to routes; {routing!r} does not")
    return routing if isinstance(routing, RoutingTable) else RoutingTable(routing)


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
