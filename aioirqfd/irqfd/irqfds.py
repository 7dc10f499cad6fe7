"""The irqfds of one manager: who is bound, who is leaving, who waits for a route; and the life that they share.

A user has the :class:`aioirqfd.IrqManager`, which is nothing but a face. What an irqfd asks of its manager it asks here, and each irqfd
that somebody holds keeps it (row C06). Neither the loop nor the sink does: a manager that is dropped open is noticed.

What must hold: an eventfd is bound to one irqfd of any manager, and to none whenever an assign or a deassign has raised. What owes an
injection is bound, or leaving. A table is in force when the sink has agreed to it, and not before.

Tempting, and wrong:

- to forget an irqfd with its deassign: what it owes is injected yet, and ``flush()`` and ``pause()`` wait for that too;
- to re-route lines before the sink has given back what it watches: one may be up, and has to move along;
- to pause without having read what was injected and left unread: it could not be told from what waits;
- to stop at the first irqfd that cannot be closed: the others have interrupts to deliver.
"""

from __future__ import annotations

import asyncio
import operator
import os
import warnings
import weakref
from functools import partial
from typing import TYPE_CHECKING, Final, final

from aioirqfd.counter import MAX, TopHalf
from aioirqfd.errors import ClosedError, SnapshotError, WrongLoopError
from aioirqfd.eventfd import EventFd, Poller
from aioirqfd.eventfd.loops import running_loop
from aioirqfd.eventfd.teardown import tear_down
from aioirqfd.integers import integer
from aioirqfd.irqfd import explain, identity, snapshot
from aioirqfd.irqfd.backpressure import Backpressure
from aioirqfd.irqfd.binding import Binding
from aioirqfd.irqfd.coroutine import coroutine_functions
from aioirqfd.irqfd.delivery import Delivery
from aioirqfd.irqfd.gsi import GsiAllocator
from aioirqfd.irqfd.irqfd import IrqFd
from aioirqfd.irqfd.life import Life, Stage
from aioirqfd.irqfd.lines import Lines
from aioirqfd.irqfd.offloading import Offloading
from aioirqfd.irqfd.routing import Routes, RoutingTable
from aioirqfd.irqfd.since import MANAGER
from aioirqfd.irqfd.trigger import Trigger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import CodeType

    from aioirqfd.irqfd.interrupt import Route
    from aioirqfd.irqfd.irqfd import WakeupHandler
    from aioirqfd.irqfd.resampler import Resampler
    from aioirqfd.irqfd.retry import Retry
    from aioirqfd.irqfd.sink import SinkTiers
    from aioirqfd.irqfd.workqueue import WorkQueue
    from aioirqfd.tracer import Tracer

MAX_GSI: Final = 2**32 - 1
_AT_ONCE: Final = 256
"""Irqfds that are shut before the loop gets a turn."""

_all: Final[weakref.WeakSet[Irqfds]] = weakref.WeakSet()


def _drop_inherited() -> None:
    """In a forked child: what the parent has bound is free here. The parent's pollers are gone already."""
    for irqfds in list(_all):
        irqfds.inherit()


os.register_at_fork(after_in_child=_drop_inherited)


@final
class Irqfds:
    """What ``struct kvm`` has of irqfds.

    Args:
        queue: The work queue.
        table: The first routing table.
        hold: Whether a gsi without a route waits for one.
        tiers: The sink.
        tracer: Hears what happens.
        retry: The back-off.
        on_error: Hears of irqfds that are given up.
        made_at: The code and line that made the manager.

    Attributes:
        bound: By eventfd-id, oldest first.
        leaving: Deassigned, and not through yet.
        poller: Its loop's, from when it is open until it is closed.
        pauses: So many times was it paused: a snapshot's owner knows whether it went on since.
    """

    def __init__(
        self,
        queue: WorkQueue,
        table: RoutingTable,
        tiers: SinkTiers,
        tracer: Tracer,
        retry: Retry,
        on_error: Callable[[Exception], object] | None,
        made_at: tuple[CodeType, int],
        *,
        hold: bool,
        name: str | None = None,
    ) -> None:
        self.life: Final = Life()
        self.queue: Final = queue
        self.routes: Final = Routes(table, self.life, hold=hold)
        self.delivery: Final = Delivery(tiers, tracer, retry, on_error, self.life, name)
        self.backpressure: Final = Backpressure(queue, self.delivery.emit, self.life)
        self.lines: Final = Lines(self.delivery, self.routes, self.backpressure)
        self.offloading: Final = Offloading(self.delivery, self.routes, self.lines, self._watch)
        flight = self.delivery.flight
        self._top_half = TopHalf(
            tiers.try_inject,
            tiers.try_inject_batch,
            self.delivery.fast_path_failed,
            self.backpressure.ready,
            self.backpressure.progress,
            None if flight is None else flight.ring,
        )
        self._top_half.source = 0 if flight is None else flight.source
        self._gsis: GsiAllocator | None = None
        self.bound: Final[dict[int, Binding]] = {}
        self.leaving: Final[set[Binding]] = set()
        self._unrouted: Final[set[Binding]] = set()
        self.poller: Poller | None = None
        self._closed: asyncio.Event | None = None
        self.pauses = 0
        # What a snapshot has of irqfds that were deassigned since: the eventfds, and how many signals.
        self._withheld: list[tuple[EventFd, int]] = []
        self._made_at = made_at
        if tiers.bind is not None:
            tiers.bind(_weakly(weakref.ref(self)))
        if tiers.set_routing is not None:
            tiers.set_routing(table)

    def __repr__(self) -> str:
        return f"<IrqManager {self.delivery.named}irqfds={len(self.bound)} sink={self.delivery.tiers.sink!r}>"

    # -- life --------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Begin, on the running loop."""
        if self.life.stage is not Stage.NEW:
            raise ClosedError("a manager is entered once")
        poller = Poller.get()
        poller.acquire()
        try:
            await self.queue.__aenter__()
            poller.acquire(self)
        finally:
            poller.release()
        self.life.stage = Stage.OPEN
        self.poller = poller
        self.delivery.open(poller, self._top_half)
        _all.add(self)
        self.backpressure.open(self._top_half, poller.drain)

    async def close(self, *, abort: bool) -> None:
        """Inject what was signalled, unless it is to be aborted; deassign everything, end the work queue."""
        self.queue.check_outside()
        poller = self.poller
        if poller is None or not self.life.open:
            if self._closed is not None:
                await self._closed.wait()
            return
        self._closed = asyncio.Event()
        self.life.stage = Stage.CLOSING
        irqfds = list(self.bound.values())
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
                    if not irqfd.closed:
                        await irqfd.drained()
                await self.queue.drain()
        finally:
            self.life.stage = Stage.ABORTING
            self.backpressure.forget()
            try:
                await self.queue.aclose()
            finally:
                for irqfd in [irqfd for irqfd in (*irqfds, *self.leaving) if not irqfd.closed]:
                    failed(irqfd.shut)
                    failed(irqfd.abandon)
                failed(self._drop_withheld)
                failed(poller.release)
                self.life.stage = Stage.CLOSED
                self.poller = None
                self.backpressure.progress()
                self._closed.set()
        if errors:
            raise errors[0]

    def __del__(self) -> None:
        self._abandon("")

    def loop_closed(self) -> None:
        """Called by the poller. Nothing runs any more: what is bound is free, and what was not injected is back in its eventfd."""
        self._abandon(", whose loop was closed")

    def _abandon(self, why: str) -> None:
        poller = getattr(self, "poller", None)  # none, if it was refused what it was given
        if poller is None or not self.life.open:
            return
        self.life.stage = Stage.ABORTING
        self.poller = None
        self.backpressure.forget()
        irqfds = [*self.bound.values(), *self.leaving]
        shut = [step for irqfd in irqfds for step in (irqfd.shut, irqfd.abandon)]
        tear_down(
            (self._warn_unclosed(why), *shut, self._drop_withheld, self.queue.abandon, partial(poller.release, self))
        )

    def _warn_unclosed(self, why: str) -> Callable[[], None]:
        code, line = self._made_at
        text = f"unclosed {self!r}{why}, made at {code.co_filename}:{line}"
        return partial(warnings.warn, text, ResourceWarning, stacklevel=2, source=self)

    def inherit(self) -> None:
        """In a forked child: its eventfds are nobody's here, and what is pending is pending in the parent."""
        self.life.stage = Stage.INHERITED
        for irqfd in self.bound.values():
            irqfd.inherit()
        self.bound.clear()
        self.offloading.irqfds.clear()
        self._unrouted.clear()

    @property
    def inherited(self) -> bool:
        """Whether this is a forked child's copy."""
        return self.life.inherited

    def check_here(self) -> None:
        """Raise unless the manager is open and its loop is running here.

        Raises:
            ClosedError: It is not entered, or closed.
            WrongLoopError: It belongs to another loop or to the parent process, or no loop is running.
        """
        if self.life.open and self.poller is not None:
            self.poller.check_here()
            return
        if self.inherited:
            raise WrongLoopError(f"{self!r} is the parent process's; a forked child makes a manager of its own")
        running_loop()
        if self.life.stage is Stage.NEW:
            raise ClosedError("the manager is not open; enter it with `async with` first")
        raise ClosedError("the manager is closed")

    # -- binding -----------------------------------------------------------------------------------------------------

    def bind(
        self,
        eventfd: EventFd | int,
        *,
        gsi: int,
        resamplefd: EventFd | int | None = None,
        wakeup: WakeupHandler | Sequence[WakeupHandler] | None = None,
        masked: bool = False,
        name: str | None = None,
        labels: Mapping[str, object] | None = None,
    ) -> Binding:
        """Bind an eventfd; whatever is raised, nothing was changed."""
        self.check_here()
        self.queue.check_open()
        gsi = integer(gsi, "a gsi", 0, MAX_GSI)
        handlers = coroutine_functions(wakeup, "a wakeup handler")
        references: list[EventFd] = []
        eventfd_id = -1
        try:
            trigger, eventfd_id = identity.eventfd_and_id(eventfd, references)
            resample = None if resamplefd is None else identity.eventfd_and_id(resamplefd, references)[0]
            identity.claim(trigger, eventfd_id, self.poller, references)
            half = Trigger(trigger, eventfd_id, references, name)
            irqfd = Binding(self, half, gsi=gsi, resamplefd=resample, handlers=handlers, masked=masked)
            irqfd.origin = self.delivery.origin(labels, name)
            irqfd.face = IrqFd(irqfd)
            if resample is not None:
                self.lines[gsi].join(irqfd)
            try:
                if not self.offloading.offload(irqfd):
                    self.offloading.reclaim_all(self.offloading.beside(irqfd))
                    self._watch(irqfd)
            except BaseException:
                self.lines.leave(irqfd, gsi)
                raise
        except BaseException:
            identity.release(eventfd_id, references)
            identity.close_all(references)
            raise
        irqfd.trigger.references = tuple(references)
        irqfd.trigger.bind(irqfd)
        self.bound[eventfd_id] = irqfd
        if masked:
            self.delivery.since.note(irqfd.eventfd_id)
        if self._gsis is not None:
            self._gsis.bind(gsi)
        self.delivery.trace(
            "irqfd_assigned", irqfd, resample=resample is not None, offloaded=irqfd.offloaded, masked=irqfd.masked
        )
        return irqfd

    def find(self, eventfd: EventFd | int, gsi: int) -> Binding | None:
        """The one of this eventfd and gsi."""
        irqfd = self.bound.get(identity.id_of(eventfd))
        return irqfd if irqfd is not None and irqfd.gsi == gsi else None

    def find_leaving(self, eventfd: EventFd | int, gsi: int) -> Binding | None:
        """The one of this eventfd and gsi that somebody deassigns just now."""
        key = identity.id_of(eventfd), gsi
        return next((irqfd for irqfd in self.leaving if (irqfd.eventfd_id, irqfd.gsi) == key), None)

    async def deassign(self, irqfd: Binding) -> None:
        """Unbind it, as a barrier; nothing happens if it is deassigned already, or another manager's."""
        if self.life.inherited:
            self.check_here()
        if irqfd.owner is not self or irqfd.closed:
            return
        if self.life.open:
            self.check_here()
        irqfd.shut()
        if not irqfd.closed:
            await irqfd.drained()

    def _watch(self, irqfd: Binding) -> None:
        irqfd.trigger.watch(self._top_half, irqfd, irqfd.gsi, irqfd.handlers, irqfd.face)
        irqfd.arm()

    # What an irqfd asks of its manager: see binding._Owner.

    def offload(self, irqfd: Binding) -> bool:
        """Let the sink watch its eventfd, if it can."""
        return self.offloading.offload(irqfd)

    def reclaim(self, irqfd: Binding) -> None:
        """It is masked: watch its eventfd here."""
        self.delivery.since.note(irqfd.eventfd_id)
        self.offloading.reclaim(irqfd)

    def wants_route(self, irqfd: Binding) -> None:
        """An interrupt is owed and blocked; if for want of a route, remember who waits for one."""
        if self.routes.holds(irqfd.gsi) and irqfd not in self._unrouted:
            self._unrouted.add(irqfd)
            self.delivery.trace("interrupt_held", irqfd)

    def leave(self, irqfd: Binding) -> None:
        """The eventfd is nobody's from here on; what it owes is the irqfd's."""
        if irqfd.offloaded:
            try:
                self.offloading.reclaim_one(irqfd)
            except BaseException as error:
                # The virtual machine is gone, and its irqfds with it (row C05).
                self.delivery.sink_failed("reclaim_failed", irqfd, error)
        poller = irqfd.trigger.eventfd_poller
        try:
            owed = irqfd.unwatch(whole=self.routes.paused)
            if owed:
                irqfd.wakeup(owed)
        finally:
            del self.bound[irqfd.trigger.eventfd_id]
            self.leaving.add(irqfd)
            self._unrouted.discard(irqfd)
            irqfd.trigger.let_go(poller)

    def finished(self, irqfd: Binding) -> None:
        """Nothing of the irqfd runs any more."""
        self.leaving.discard(irqfd)
        self.delivery.since.forget(irqfd.eventfd_id)
        if irqfd.resamplefd is not None:
            self.lines.leave(irqfd, irqfd.gsi)
        if irqfd.trigger.references:
            irqfd.trigger.close_references()
        if self.delivery.traced:
            self.delivery.trace("irqfd_deassigned", irqfd, **self.offloading.counts(irqfd))
        self.offloading.finished(irqfd)
        if self._gsis is not None and self.life.open:
            self._gsis.unbind(irqfd.gsi)  # last, for whoever waits for the gsi may take it here and now

    def withhold(self, eventfd: EventFd, count: int) -> bool:
        """An irqfd is deassigned whose signals a snapshot has: its eventfd gets them back if the manager resumes after all.

        False: there is no room for a dup. They are rather injected twice than lost.
        """
        if self.life.open:
            try:
                self._withheld.append((identity.reference(eventfd), count))
            except OSError:
                return False
        return True

    def _drop_withheld(self) -> None:
        withheld, self._withheld = self._withheld, []
        identity.close_all(eventfd for eventfd, _ in withheld)

    # -- routing -----------------------------------------------------------------------------------------------------

    def set_routing(self, table: RoutingTable) -> None:
        """Replace the whole table."""
        self.check_here()
        old = self._put_routing(table)
        self.delivery.emit("routing_changed", gsis=len(table), generation=self.routes.generation)
        self._move_along(lambda gsi: self.routes.of(gsi) != old.routes(gsi), self.lines.all())
        if self._gsis is not None:
            self._gsis.unrouted(*(old.keys() - table.keys()))

    def set_route(self, gsi: int, routes: Route | Sequence[Route]) -> None:
        """Change where one gsi goes."""
        self.check_here()
        table = self.routes.table.with_route(gsi, routes)
        self._put_route(operator.index(gsi), table)

    def reset_route(self, gsi: int) -> None:
        """Take back what was said of a gsi."""
        self.check_here()
        table = self.routes.table.without((gsi,))
        self._put_route(operator.index(gsi), table)

    def _put_route(self, gsi: int, table: RoutingTable) -> None:
        """Replace the table by one in which this gsi alone may be different."""
        if table is self.routes.table:
            return
        old = self._put_routing(table, gsi)
        self.delivery.routed(gsi, routes=len(self.routes.of(gsi)), generation=self.routes.generation)
        resampler = self.lines.get(gsi)
        self._move_along(lambda other: other == gsi, () if resampler is None else (resampler,))
        if self._gsis is not None and table.entries < old.entries:
            self._gsis.unrouted(*(() if gsi in table else (gsi,)))

    def _put_routing(self, table: RoutingTable, changed: int | None = None) -> RoutingTable:
        """Put it in force, if the sink agrees; the old one."""
        set_routing = self.delivery.tiers.set_routing
        if set_routing is not None:
            set_routing(table)
        return self.routes.replace(table, changed)

    def _move_along(self, changed: Callable[[int], bool], resamplers: Iterable[Resampler]) -> None:
        """Have what is bound to the gsis that changed follow; the resamplers are theirs, or more."""
        moved = [irqfd for irqfd in self.offloading.irqfds if changed(irqfd.gsi)]
        # First, for it may bring a line that is up, which then moves along.
        self.offloading.reclaim_all(moved)
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
        """Hands out the gsis that are free; made at the first need."""
        gsis = self._gsis
        if gsis is None:
            gsis = self._gsis = GsiAllocator(lambda gsi: gsi in self.routes.table)
            for irqfd in (*self.bound.values(), *self.leaving):
                gsis.bind(irqfd.gsi)
        return gsis

    # -- level-triggered lines ---------------------------------------------------------------------------------------

    def ack(self, gsi: int) -> None:
        """The guest's end of interrupt. Any thread."""
        if self.inherited:
            self.check_here()
        resampler = self.lines.get(gsi)
        if resampler is not None:
            resampler.ack()

    def resample(self, gsi: int) -> bool:
        """Tell the gsi's resamplefds without an end of interrupt; whether there were any. Any thread."""
        if self.inherited:
            self.check_here()
        resampler = self.lines.get(gsi)
        return resampler is not None and resampler.tell()

    def explain(self, irqfd: Binding) -> str:
        """What stops its interrupts."""
        return explain.of_irqfd(self, irqfd)

    # -- waiting, blocking -------------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Return once every signal sent before this call has been injected."""
        self.check_here()
        assert self.poller is not None
        drain = self.poller.drain
        self.queue.check_outside()
        drain.collect()
        # Mostly the sink takes it all here and now, and there is nothing to wait for.
        drain.run()
        # What is being deassigned owes its injections too.
        irqfds = (*self.bound.values(), *self.leaving)
        if not self.routes.paused:
            for irqfd in irqfds:
                irqfd.gather()
        marks = [(irqfd, irqfd.mark()) for irqfd in irqfds if irqfd.in_motion]
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

    async def pause(self) -> None:
        """Inject nothing from here on; return when nothing is being injected any more."""
        self.check_here()
        assert self.poller is not None
        drain = self.poller.drain
        self.queue.check_outside()
        if not self.routes.paused:
            # Counts that were injected and not read yet: from here on they could not be told from what waits.
            drain.read_unread(drain.unread)
            self.pauses += 1
            self.routes.paused = self._top_half.paused = True
            self.delivery.since.note(MANAGER)
            self.offloading.reclaim_all(list(self.offloading.irqfds))
            self.delivery.paused(irqfds=len(self.bound))
        await self.queue.drain()

    def resume(self) -> None:
        """Inject what has become pending, and go on."""
        self.check_here()
        if not self.routes.paused:
            return
        self.routes.paused = self._top_half.paused = False
        paused_for = self.delivery.since.forget(MANAGER)
        self.delivery.resumed(held=self._top_half.held, paused_for=paused_for)
        for resampler in self.lines.all():
            resampler.move_on(paused=False)
        for irqfd in list(self.bound.values()):
            irqfd.release()
            irqfd.unblock()
        for eventfd, count in self._withheld:
            eventfd.signal(min(count, MAX))
        self._drop_withheld()
        self._top_half.release()
        self.backpressure.progress()

    def snapshot(self) -> dict[str, object]:
        """Everything an interrupt can be in."""
        self._check_quiet()
        return snapshot.take(tuple(self.bound.values()), self.routes.table, self.lines)

    def restore(self, state: Mapping[str, object]) -> None:
        """Put a snapshot's state in here."""
        self._check_quiet()
        plan = snapshot.check(tuple(self.bound.values()), state)
        try:
            self.set_routing(plan.routing)
        except Exception as error:
            raise SnapshotError(f"routing: the sink refuses it: {error}") from error
        plan.put(self.lines)
        self._drop_withheld()

    def _check_quiet(self) -> None:
        """Raise unless nothing is being injected any more. A retry that waits for its time is not."""
        self.check_here()
        busy = any(irqfd.busy for irqfd in (*self.bound.values(), *self.leaving))
        if not self.routes.paused or not self.queue.idle or busy:
            raise SnapshotError("pause the manager first, and let it finish what it injects")

    @property
    def held(self) -> int:
        """How many irqfds wait in their eventfds until the manager resumes or its queue has room."""
        return self._top_half.held


def _weakly(reference: weakref.ref[Irqfds]) -> Callable[[int], None]:
    """The ack() of a manager that may be gone: who holds the sink does not hold it."""

    def ack(gsi: int) -> None:
        irqfds = reference()
        if irqfds is not None:
            irqfds.ack(gsi)

    return ack
