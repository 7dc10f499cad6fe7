"""The irqfd manager: what ``struct kvm`` is to irqfds.

It owns the irqfds of one virtual machine, their routing, the work queue and the resamplers, and stands between the drain of
its loop (below) and one interrupt sink (above).
"""

# pyright: reportPrivateUsage=false
# (an underscore on an IrqFd says "for this package")
from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal, Self, final, overload

from aioirqfd import nodes
from aioirqfd.integers import integer
from aioirqfd.irqfd import explain, manager_node
from aioirqfd.irqfd.delivery import checked
from aioirqfd.irqfd.irqfd import IrqFd
from aioirqfd.irqfd.irqfds import MAX_GSI, Irqfds
from aioirqfd.irqfd.retry import Retry
from aioirqfd.irqfd.routing import RoutingTable
from aioirqfd.irqfd.sink import SinkTiers
from aioirqfd.irqfd.statistics import IrqManagerStatistics
from aioirqfd.irqfd.workqueue import WorkQueue
from aioirqfd.tracer import NULL_TRACER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from aioirqfd.eventfd import EventFd
    from aioirqfd.irqfd.binding import Binding
    from aioirqfd.irqfd.gsi import GsiAllocator
    from aioirqfd.irqfd.interrupt import Route
    from aioirqfd.irqfd.irqfd import WakeupHandler
    from aioirqfd.irqfd.sink import InterruptSink
    from aioirqfd.tracer import Tracer


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
        name: What it is called in its ``repr()``, by the field ``manager`` of its events and in :mod:`aioirqfd.inspect`; there one that is
            taken gets a number behind it, and without one it is a number.

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
        name: str | None = None,
    ) -> None:
        if unrouted not in ("drop", "hold"):
            raise ValueError(f"unrouted is 'drop' or 'hold', not {unrouted!r}")
        if queue is not None and not isinstance(queue, WorkQueue):  # pyright: ignore[reportUnnecessaryIsInstance]  callers without a type checker
            raise TypeError(f"queue is an aioirqfd.WorkQueue, not {queue!r}")
        self._name = nodes.check_name(name, "a manager")
        self.queue: Final = queue if queue is not None else WorkQueue()
        """The work queue that it was given, or its own."""
        tiers = SinkTiers(sink)
        frame = sys._getframe(1)
        self._irqfds = Irqfds(
            self.queue,
            _table(tiers.default_routing() if routing is None else routing),
            tiers,
            tracer,
            retry if retry is not None else Retry(),
            on_error,
            (frame.f_code, frame.f_lineno),
            hold=unrouted == "hold",
            name=name,
        )

    def __repr__(self) -> str:
        return repr(self._irqfds)

    @property
    def name(self) -> str | None:
        """What it is called."""
        return self._irqfds.delivery.name

    # -- life --------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self._irqfds.open()
        nodes.add("managers", self._irqfds, manager_node.of_manager, name=self._name, loop=manager_node.loop_of)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._irqfds.close(abort=exc_type is not None)
        finally:
            nodes.discard(self._irqfds)
        error = self._irqfds.delivery.first_error
        if exc_type is None and error is not None:
            raise error

    async def aclose(self) -> None:
        """Inject what was signalled, deassign everything, end the work queue; idempotent: a second call waits for the first.

        Raises:
            InjectionError: The first one there was; what it was about is back in its eventfd.
            RuntimeError: Called from within a wakeup handler or the sink; nothing was changed.

        Cancellation:
            Cuts it short: what was not injected goes back into its eventfd. Everything is closed all the same.
        """
        try:
            await self._irqfds.close(abort=False)
        finally:
            if not self._irqfds.life.open:
                nodes.discard(self._irqfds)
        delivery = self._irqfds.delivery
        error, delivery.first_error = delivery.first_error, None
        if error is not None:
            raise error

    # -- assign and deassign -----------------------------------------------------------------------------------------

    @property
    def irqfds(self) -> tuple[IrqFd, ...]:
        """The assigned irqfds, oldest first."""
        return tuple(_face(irqfd) for irqfd in self._irqfds.bound.values())

    def assign(
        self,
        eventfd: EventFd | int,
        *,
        gsi: int,
        resamplefd: EventFd | int | None = None,
        wakeup: WakeupHandler | Sequence[WakeupHandler] | None = None,
        masked: bool = False,
        name: str | None = None,
        labels: Mapping[str, object] | None = None,
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
            name: What it is called where somebody looks (:mod:`aioirqfd.inspect`): a device, a queue, a vector.
            labels: Fields that each of its events has, beside its own: ``{"device": "disk", "queue": 2}``. With structlog, what is
                bound with ``structlog.contextvars`` where this is called comes out on its events, too.

        Returns:
            The irqfd.

        Raises:
            WrongLoopError: No loop is running, or another one than the manager's.
            ClosedError: EBADF: the manager, an eventfd or an fd is not open; or somebody else has cancelled the work queue's
                tasks.
            TypeError: Not an EventFd and not an int; a gsi that is no integer, or a bool; a handler that is a plain function; labels
                that are no mapping of names.
            ValueError: The gsi is out of range, or the name cannot be part of a path.
            EventFdInvalidError: EINVAL: an fd is no eventfd.
            EventFdBusyError: EBUSY: the eventfd is bound already, by any manager, through any dup (row I12).
            OSError: EMFILE, where an int is given and there is no room for the dup.
        """
        name = nodes.check_name(name, "an irqfd")
        whose = None if labels is None else checked(labels)
        return _face(
            self._irqfds.bind(
                eventfd, gsi=gsi, resamplefd=resamplefd, wakeup=wakeup, masked=masked, name=name, labels=whose
            )
        )

    def find(self, eventfd: EventFd | int, *, gsi: int) -> IrqFd | None:
        """The irqfd by the kernel's key: the eventfd, any dup of which will do, and the gsi (row I14). None: there is none here.

        Raises:
            ClosedError: EBADF: the eventfd or the fd is not open.
            TypeError: Not an EventFd and not an int.
            EventFdInvalidError: EINVAL: the fd is no eventfd.
        """
        irqfd = self._irqfds.find(eventfd, gsi)
        return None if irqfd is None else _face(irqfd)

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
        if isinstance(irqfd, IrqFd):
            if gsi is not None:
                raise TypeError("an irqfd, or an eventfd and its gsi; not both")
            binding: Binding | None = irqfd._binding
        elif gsi is None:
            raise TypeError("an irqfd, or an eventfd and its gsi")
        else:
            if self._irqfds.inherited:
                self._irqfds.check_here()
            # Perhaps another task is deassigning it just now: a barrier all the same.
            binding = self._irqfds.find(irqfd, gsi) or self._irqfds.find_leaving(irqfd, gsi)
        if binding is not None:
            await self._irqfds.deassign(binding)

    # -- routing -----------------------------------------------------------------------------------------------------

    @property
    def routing(self) -> RoutingTable:
        """The table in force."""
        return self._irqfds.routes.table

    def set_routing(self, routing: RoutingTable | Mapping[int, Route | Sequence[Route]]) -> None:
        """Replace the routing table as a whole (``KVM_SET_GSI_ROUTING``). Bound irqfds see it on their next event (row G10).

        A level-triggered line that is up moves along with its gsi. With ``unrouted="hold"``, what waited for a route that is
        there now is injected. What this table does not have goes nowhere, also where a default table had a pin for every gsi.

        Raises:
            RoutingError: EINVAL; the old table stays in force (row G09).
            TypeError: Not a mapping.
            WrongLoopError: Not called on the manager's loop.
        """
        self._irqfds.set_routing(_table(routing))

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
        self._irqfds.set_route(gsi, routes)

    def reset_route(self, gsi: int) -> None:
        """Take back what was said of a gsi, with one that came from :attr:`gsis` for instance.

        It is unrouted then, or goes, from 24 on, where a default table sends it. Raises as :meth:`set_route` does.
        """
        self._irqfds.reset_route(gsi)

    @property
    def gsis(self) -> GsiAllocator:
        """Hands out the gsis that are free, from 24 on, to whoever needs one for a while; made at the first need.

        Free is what no table has a route for and no irqfd is assigned to; that a default table has a pin for every gsi does not
        count. :class:`aioirqfd.MsixTable` takes its gsis here. Assign what is to come later to gsis below 24, or to one taken here.
        """
        return self._irqfds.gsis

    # -- level-triggered lines ---------------------------------------------------------------------------------------

    def ack(self, gsi: int) -> None:
        """The guest's end of interrupt: lower the line, then signal every resamplefd of the gsi, newest first (rows R02, R03).

        A gsi without resample irqfds is ignored (row R06).

        Raises:
            WrongLoopError: In a forked child, whose copy of the manager has no lines (row I17).

        Threads:
            Any. With a sink that has ``try_inject`` the line is low when this returns.
        """
        self._irqfds.ack(gsi)

    def resample(self, gsi: int) -> bool:
        """Signal the gsi's resamplefds without an end of interrupt (row R21).

        For an interrupt controller whose guest unmasks a line that is pending: a source that has gone quiet then does not
        interrupt, and one that has not signals again.

        Returns:
            Whether there was anybody to tell.

        Threads:
            Any.
        """
        return self._irqfds.resample(gsi)

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
        await self._irqfds.flush()

    # -- blocking ----------------------------------------------------------------------------------------------------

    async def pause(self) -> None:
        """Inject nothing from here on; return when nothing is being injected any more. Signals wait in their eventfds.

        Raises:
            WrongLoopError: Not called on the manager's loop.
            RuntimeError: Called from within a wakeup handler or the sink, which would wait for itself.

        Cancellation:
            The manager is paused all the same; only the wait is given up.
        """
        await self._irqfds.pause()

    def resume(self) -> None:
        """Inject what has become pending, and go on; nothing happens if the manager is not paused.

        Raises:
            WrongLoopError: Not called on the manager's loop.
        """
        self._irqfds.resume()

    def snapshot(self) -> dict[str, object]:
        """Everything an interrupt can be in, as a JSON-able dict: see the module ``aioirqfd.irqfd.snapshot``.

        Raises:
            SnapshotError: The manager is not paused; or something is being injected yet, because :meth:`pause` was given up.
            WrongLoopError: Not called on the manager's loop.
        """
        return self._irqfds.snapshot()

    def restore(self, state: Mapping[str, object]) -> None:
        """Put a snapshot's state into this manager, whose irqfds are assigned as they were; it must be paused.

        Raises:
            SnapshotError: The state is malformed, of another version, or does not fit; or the manager is not paused, or
                something is being injected yet. Nothing was changed.
            WrongLoopError: Not called on the manager's loop.
        """
        self._irqfds.restore(state)

    @property
    def paused(self) -> bool:
        """Whether nothing is injected for the time being."""
        return self._irqfds.routes.paused

    # -- what happened -----------------------------------------------------------------------------------------------

    def explain(self, gsi: int) -> str:
        """:meth:`IrqFd.explain` of the irqfds of a gsi, a line for each; or why there is none.

        Raises:
            TypeError: The gsi is no integer.
            ValueError: It is out of range.

        Threads:
            The manager's loop.
        """
        return explain.of_gsi(self._irqfds, integer(gsi, "a gsi", 0, MAX_GSI))

    def inspect(self, path: str = "", depth: int | None = None) -> object:
        """What there is to see of it just now, as a value that ``json`` takes: :mod:`aioirqfd.inspect` describes the tree.

        Args:
            path: Which part: ``"irqfds"``, ``"gsi/5"``, ``"gsi/5/explain"``; all of it without one.
            depth: How many levels of parts below it, 0 or more; None: all.

        Raises:
            LookupError: There is no such part, and what there is instead.

        Threads:
            The manager's loop; from elsewhere use :func:`aioirqfd.inspect.read`.
        """
        return nodes.look(manager_node.of_manager(self._irqfds), nodes.split(path), depth)

    def statistics(self) -> IrqManagerStatistics:
        """The counts as they are now; looks at every irqfd."""
        irqfds = self._irqfds
        return IrqManagerStatistics(
            irqfds=len(irqfds.bound),
            offloaded=len(irqfds.offloading.irqfds),
            held=irqfds.held,
            broken=sum(irqfd.error is not None for irqfd in irqfds.bound.values()),
            asserted=len(irqfds.lines.asserted()),
            dropped=irqfds.delivery.dropped,
            queue=self.queue.statistics(),
        )


def _table(routing: RoutingTable | Mapping[int, Route | Sequence[Route]]) -> RoutingTable:
    if not isinstance(routing, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  callers without a type checker
        raise TypeError(f"a routing table maps gsis to routes; {routing!r} does not")
    return routing if isinstance(routing, RoutingTable) else RoutingTable(routing)


def _face(irqfd: Binding) -> IrqFd:
    assert isinstance(irqfd.face, IrqFd)
    return irqfd.face
