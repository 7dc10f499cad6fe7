"""Level-triggered lines: one resampler for each gsi that has resample irqfds.

A signal asserts the line and it stays up. The guest's end of interrupt (ack) lowers it once and then signals every resamplefd
of the gsi, the most recently assigned first (rows R02, R03, R04); whoever still has a reason to interrupt signals again. A
second trigger before the ack is in the same interrupt (row R07), which is why everybody is told.

An ack can come from any thread, typically a vCPU's. The line must be low before that vCPU looks again, so where the sink has
``try_inject`` it is lowered right there, under a lock that orders it against an assertion by the loop; the sink calls ``ack``
outside its own locks, so the order of locks is always resampler, then sink. What a sink does inside ``try_inject`` for a
level-triggered line runs under the resampler's lock: it must not wait there for a thread that may be acknowledging.
"""

# pyright: reportPrivateUsage=false
# (an underscore on an EventFd says "for this package")
from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol, final

from aioirqfd.eventfd.loops import loop_here
from aioirqfd.flight import FlightKind
from aioirqfd.irqfd.guard import is_failure
from aioirqfd.irqfd.interrupt import Action, Interrupt
from aioirqfd.irqfd.line_level import LOW, LineLevel
from aioirqfd.irqfd.routing import is_level
from aioirqfd.irqfd.workqueue import Work
from aioirqfd.tracer import failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aioirqfd.eventfd import EventFd
    from aioirqfd.irqfd.backpressure import Backpressure
    from aioirqfd.irqfd.delivery import Delivery
    from aioirqfd.irqfd.interrupt import Route
    from aioirqfd.irqfd.routing import Routes


class Member(Protocol):
    """A resample irqfd, as its line sees it."""

    @property
    def resamplefd(self) -> EventFd | None:
        """Who is told."""

    @property
    def offloaded(self) -> bool:
        """Whether the sink watches its eventfd, and tells."""
        ...

    @property
    def captured(self) -> bool:
        """Whether what is to be told is a snapshot's."""
        ...


_RAISED, _ACKED, _LOWERED = FlightKind.RAISED, FlightKind.ACKED, FlightKind.LOWERED  # at hand, as in binding.py


@final
class Resampler:
    """The line level of one gsi, and who is told when it is acknowledged."""

    __slots__ = (
        "_backpressure",
        "_busy",
        "_delivery",
        "_failures",
        "_heirs",
        "_loop",
        "_low",
        "_routes",
        "_serial",
        "gsi",
        "holders",
        "level",
        "members",
        "raised_at",
        "work",
    )

    def __init__(
        self,
        gsi: int,
        delivery: Delivery,
        routes: Routes,
        backpressure: Backpressure,
        low: Callable[[Resampler], None],
    ) -> None:
        self.gsi: Final = gsi
        self.members: Final[list[Member]] = []
        """The gsi's resample irqfds, oldest first."""
        self.holders: Final[dict[object, None]] = {}
        """The irqfds that have asked for it to be up since it was lowered; for whoever looks."""
        self.level: LineLevel = LOW  # moved under the lock
        self.work: Final = Work(self._move)  # lowers and raises the line where the sink takes its time
        self._delivery: Final = delivery
        self._routes: Final = routes
        self._backpressure: Final = backpressure
        self._low: Final = low
        self._loop = asyncio.get_running_loop()
        self._heirs: dict[EventFd, EventFd] = {}  # a resamplefd that its owner closed: our own reference to the eventfd
        self._busy = threading.RLock()
        self._serial = asyncio.Lock()
        self.raised_at = 0.0
        """By the monotonic clock, when it went up, or was asked to."""
        self._failures = 0  # of the sink to move the line, one after the other

    @property
    def asserted(self) -> bool:
        """Whether the line is up."""
        return bool(self.level.raised)

    @property
    def raised(self) -> tuple[Route, ...]:
        """Where the line is up."""
        return self.level.raised

    @property
    def empty(self) -> bool:
        """Whether no irqfd is left, and the line is low.

        :meta private:
        """
        return not (self.members or self.level.raised or self.level.falling)

    def put(self, level: LineLevel) -> None:
        """Stand as a snapshot says: the sink, which is restored by itself, is told of lines that are up and were not.

        What is yet to be done with the line is done by :meth:`move_on`.

        :meta private:
        """
        with self._busy:
            # What was up here, or may have been, is none of the snapshot's.
            raised, falling, _, _ = self.level.within(level.raised)
            self.level = LineLevel(raised, tuple(one for one in falling if one not in level.raised))
            slow = not self._lower_now()
            missing = [route for route in level.raised if route not in raised]
            falling = tuple(dict.fromkeys((*self.level.falling, *level.falling)))
            self.level = LineLevel(self.level.raised, falling, level.tell, level.again or bool(missing))
            if missing and not slow and self._raise_now(missing):
                self.level = self.level._replace(again=level.again)

    def join(self, irqfd: Member) -> None:
        """An irqfd is assigned; a resamplefd that several share is told once for each (row R10).

        :meta private:
        """
        self.members.append(irqfd)
        _resamplefd(irqfd)._on_close(self._inherit)

    def leave(self, irqfd: Member) -> None:
        """An irqfd was deassigned. The last one to go lowers the line, and nobody is told (rows R13, R14).

        :meta private:
        """
        resamplefd = _resamplefd(irqfd)
        self.members.remove(irqfd)
        self.holders.pop(irqfd, None)
        if self.level.tell and not irqfd.captured:
            # The end of interrupt came before, and only the sink has kept it from hearing.
            self._signal(resamplefd)
        if all(other.resamplefd is not resamplefd for other in self.members):
            resamplefd._not_on_close(self._inherit)
            heir = self._heirs.pop(resamplefd, None)
            if heir is not None:
                heir.close()
        if not self.members:
            self._lower(tell=False, again=False)
        elif all(other.offloaded for other in self.members):
            self.offload()

    def _inherit(self, resamplefd: EventFd) -> None:
        # Its close means nothing to who shares the eventfd with its owner: they are still told (row R16).
        self._heirs[resamplefd] = resamplefd._bequeath()

    # -- raising -----------------------------------------------------------------------------------------------------

    def try_assert(self, routes: Sequence[Route], who: object) -> bool:
        """Raise the line now for an irqfd, if the sink takes it at once.

        :meta private:
        """
        if self._delivery.tiers.try_inject is None:
            return False
        with self._busy:
            self.holders[who] = None
            return not self._serial.locked() and self._assert_now(routes)

    def _assert_now(self, routes: Sequence[Route]) -> bool:
        if self._delivery.tiers.try_inject is None:
            return False
        for route in routes:
            interrupt = Interrupt(self.gsi, route, Action.ASSERT)
            # Noted first: the sink may take the interrupt and have it acknowledged before it returns.
            news = self._rising(route)
            taken = False
            try:
                taken = self._delivery.try_inject(interrupt)
            finally:
                if news and not taken:
                    self.level = self.level.doubtful(route)
            if not taken:
                return False
        return True

    def _rising(self, route: Route) -> bool:
        """Note that it is about to be raised there; whether it was not. Under the lock."""
        raised = self.level.raised
        if not raised:
            self.raised_at = time.monotonic()
        self.level = self.level.rising(route)
        if route not in raised:
            self._delivery.note(_RAISED, self.gsi)
        return route not in raised

    async def assert_line(self, routes: Sequence[Route], who: object) -> None:
        """Raise the line for an irqfd, waiting for the sink where it has to.

        :meta private:
        """
        self.holders[who] = None
        async with self._serial:
            for route in routes:
                await self._assert(route)

    async def _assert(self, route: Route) -> None:
        # Noted first here too: an ack that comes meanwhile lowers it as soon as it is up.
        with self._busy:
            news = self._rising(route)
        try:
            await self._delivery.inject(Interrupt(self.gsi, route, Action.ASSERT))
        except BaseException:
            if news:
                with self._busy:
                    self.level = self.level.doubtful(route)
            raise

    # -- offloading --------------------------------------------------------------------------------------------------

    def reclaim(self, route: Route) -> None:
        """A sink that watched the eventfd by itself gives it back with the line up: lowering it is the loop's business now.

        :meta private:
        """
        with self._busy:
            self.level = self.level.rising(route)

    def offload(self) -> None:
        """A sink watches all the eventfds by itself now, and lowers the line.

        :meta private:
        """
        if self.level.raised:
            self._lower(tell=False)

    # -- routing -----------------------------------------------------------------------------------------------------

    def reroute(self, routes: Sequence[Route]) -> None:
        """The gsi goes elsewhere now. A line that is up moves along, so no old pin stays stuck (better than row G12).

        One whose gsi lost its route is raised again as soon as there is one (row G13): its device waits to be told. Where a
        message is the new route, it is told: there is no line any more whose end of interrupt it could wait for.

        :meta private:
        """
        with self._busy:
            self.level = self.level.rerouted(routes, level=is_level(routes))
        self.move_on(paused=False)

    def move_on(self, *, paused: bool) -> None:
        """Go on with what is yet to be done with the line.

        Args:
            paused: The manager is paused, so that what the sink has failed to do waits for its ``resume()``.

        :meta private:
        """
        if paused or not self.level.moving:
            return
        with self._busy:
            missing = self._missing()
            slow = not self._lower_now() or (bool(missing) and not self._raise_now(missing))
        if slow:
            self._schedule()
        if not self.level.falling:
            self._tell_once()

    def _missing(self) -> tuple[Route, ...]:
        """Where the line is to be raised again, and may be just now."""
        if not self.level.again or self._routes.blocks(self.gsi):
            return ()
        self.level, missing = self.level.missing(self._routes.of(self.gsi))
        return missing

    def _raise_now(self, missing: Sequence[Route]) -> bool:
        try:
            if not self._assert_now(missing):
                return False
        except BaseException as error:
            self._delivery.fast_path_failed(error)
            return False
        self.level = self.level._replace(again=False)
        return True

    # -- lowering ----------------------------------------------------------------------------------------------------

    def ack(self) -> None:
        """End of interrupt: lower the line once, then tell everybody. Any thread.

        :meta private:
        """
        self._delivery.note(_ACKED, self.gsi)
        self._lower(tell=True, again=False)

    def _lower(self, *, tell: bool, again: bool = True) -> None:
        with self._busy:
            self.holders.clear()
            self.level = self.level.ending(tell=tell, again=again)
            slow = not self._lower_now()
        if slow:
            self._schedule()
        else:
            self._tell_once()

    def _schedule(self) -> None:
        if loop_here() is self._loop:
            self._backpressure.schedule(self.work)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._backpressure.schedule, self.work)

    def _lower_now(self) -> bool:
        if self._serial.locked():
            return False
        while self.level.falling:
            route = self.level.falling[0]
            try:
                if not self._delivery.try_inject(Interrupt(self.gsi, route, Action.DEASSERT)):
                    return False
            except BaseException as error:
                self._delivery.end_loop(error)
                return False  # the slow way meets the error again, and reports it
            self.level = self.level.lowered(route)
            self._delivery.note(_LOWERED, self.gsi)
        return True

    # -- bottom half -------------------------------------------------------------------------------------------------

    async def _move(self) -> None:
        async with self._serial:
            with self._busy:
                self._missing()
            # A pin that cannot be lowered does not keep the line from being raised elsewhere.
            lowered = await self._lower_slowly()
            done = await self._raise_slowly() and lowered
        if not self.level.falling:
            self._tell_once()  # one that was acknowledged meanwhile is told when it is low
        if done:
            self._failures = 0
            self._low(self)

    async def _lower_slowly(self) -> bool:
        while self.level.falling:
            route = self.level.falling[0]
            try:
                await self._delivery.inject(Interrupt(self.gsi, route, Action.DEASSERT))
            except BaseException as error:
                if not is_failure(error):
                    raise
                self._sink_failed("lowering_failed", error)
                return False
            with self._busy:
                self.level = self.level.lowered(route)
                self._delivery.note(_LOWERED, self.gsi)
        return True

    async def _raise_slowly(self) -> bool:
        while True:
            with self._busy:
                missing = self._missing()
            if not missing:
                return True
            try:
                await self._assert(missing[0])
            except BaseException as error:
                if not is_failure(error):
                    raise
                self._sink_failed("raising_failed", error)
                return False

    def _sink_failed(self, event: str, error: BaseException) -> None:
        """The sink failed to lower or to raise the line: say so and try again later."""
        self._delivery.emit(event, gsi=self.gsi, **failure(error))
        self._failures += 1
        if self._failures == self._delivery.retry.attempts + 1:
            self._delivery.trouble(
                f"gsi {self.gsi}: {event.replace('_', ' ')}; it is tried again every {self._delivery.retry.maximum} s",
                error,
            )
        # A paused manager's snapshot has what is yet to be done: it is the snapshot's, unless the manager resumes.
        self._delivery.call_later(self._delivery.retry.maximum, lambda: self.move_on(paused=self._routes.paused))

    # -- telling -----------------------------------------------------------------------------------------------------

    def _tell_once(self) -> None:
        with self._busy:
            tell, self.level = self.level.tell, self.level.told()
        if tell:
            # Where the sink watches by itself, it has told: it hears of the end of interrupt first.
            self.tell(offloaded=False)

    def tell(self, *, offloaded: bool = True) -> bool:
        """Signal every resamplefd, the most recently assigned first; whether there were any. Any thread.

        Args:
            offloaded: Those too whose irqfds the sink watches.

        :meta private:
        """
        members = tuple(irqfd for irqfd in self.members if offloaded or not irqfd.offloaded)
        for irqfd in reversed(members):
            self._signal(_resamplefd(irqfd))
        return bool(members)

    def _signal(self, resamplefd: EventFd) -> None:
        # One that was closed behind its object's back must not keep the others from hearing.
        with contextlib.suppress(OSError):
            self._heirs.get(resamplefd, resamplefd).signal()


def _resamplefd(irqfd: Member) -> EventFd:
    assert irqfd.resamplefd is not None
    return irqfd.resamplefd
