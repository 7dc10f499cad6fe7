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
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, final

from aioirqfd.irqfd.guard import is_failure
from aioirqfd.irqfd.interrupt import Action, Interrupt, Route
from aioirqfd.irqfd.routing import is_level
from aioirqfd.irqfd.workqueue import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aioirqfd.eventfd import EventFd
    from aioirqfd.irqfd.backpressure import Backpressure
    from aioirqfd.irqfd.delivery import Delivery
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


class Moves(NamedTuple):
    """What is yet to be done with a line.

    Attributes:
        falling: Where it is, or may be, up, and is to be lowered.
        tell: It was acknowledged: everybody is told as soon as it is low.
        again: It is to be raised wherever its gsi goes.
    """

    falling: tuple[Route, ...]
    tell: bool
    again: bool


NO_MOVES: Final = Moves((), tell=False, again=False)


@final
class Resampler:
    """The line level of one gsi, and who is told when it is acknowledged."""

    __slots__ = (
        "_again",
        "_backpressure",
        "_busy",
        "_delivery",
        "_failures",
        "_falling",
        "_heirs",
        "_loop",
        "_low",
        "_notify_after",
        "_raised",
        "_routes",
        "_serial",
        "gsi",
        "members",
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
        self.work: Final = Work(self._move)
        """Lowers and raises the line where the sink takes its time."""
        self._delivery: Final = delivery
        self._routes: Final = routes
        self._backpressure: Final = backpressure
        self._low: Final = low
        self._loop = asyncio.get_running_loop()
        self._heirs: dict[EventFd, EventFd] = {}  # a resamplefd that its owner closed: our own reference to the eventfd
        self._raised: tuple[Interrupt, ...] = ()
        # Acknowledged, moved away, or refused by the sink, which may have raised it all the same; and not lowered yet.
        self._falling: tuple[Interrupt, ...] = ()
        self._again = False  # it was up when its gsi was re-routed, and is to be raised wherever that goes
        self._busy = threading.RLock()
        self._serial = asyncio.Lock()
        self._notify_after = False
        self._failures = 0  # of the sink to move the line, one after the other

    @property
    def asserted(self) -> bool:
        """Whether the line is up."""
        return bool(self._raised)

    @property
    def raised(self) -> tuple[Route, ...]:
        """Where the line is up."""
        return tuple(interrupt.route for interrupt in self._raised)

    @property
    def moves(self) -> Moves:
        """What is yet to be done with the line."""
        falling = tuple(interrupt.route for interrupt in self._falling)
        return Moves(falling, tell=self._notify_after, again=self._again)

    @property
    def empty(self) -> bool:
        """Whether no irqfd is left, and the line is low."""
        return not (self.members or self._raised or self._falling)

    def put(self, routes: Sequence[Route], moves: Moves) -> None:
        """Stand as a snapshot says: the sink, which is restored by itself, is told of lines that are up and were not.

        What is yet to be done with the line is done by :meth:`settle`.
        """
        with self._busy:
            wanted = [Interrupt(self.gsi, route, Action.ASSERT) for route in routes]
            falling = [Interrupt(self.gsi, route, Action.ASSERT) for route in moves.falling]
            # What was up here, or may have been, is none of the snapshot's.
            own = dict.fromkeys((*self._falling, *self._raised))
            self._falling = tuple(one for one in own if one not in wanted)
            self._raised = tuple(one for one in self._raised if one in wanted)
            slow = self._serial.locked() or not self._lower_now()
            self._falling = tuple(dict.fromkeys((*self._falling, *falling)))
            missing = [one.route for one in wanted if one not in self._raised]
            self._again = moves.again or (bool(missing) and (slow or not self._raise_now(missing)))
            self._notify_after = moves.tell

    def join(self, irqfd: Member) -> None:
        """An irqfd is assigned; a resamplefd that several share is told once for each (row R10)."""
        self.members.append(irqfd)
        _resamplefd(irqfd)._on_close(self._inherit)

    def leave(self, irqfd: Member) -> None:
        """An irqfd was deassigned. The last one to go lowers the line, and nobody is told (rows R13, R14)."""
        resamplefd = _resamplefd(irqfd)
        self.members.remove(irqfd)
        if self._notify_after and not irqfd.captured:
            # The end of interrupt came before, and only the sink has kept it from hearing.
            self._signal(resamplefd)
        if all(other.resamplefd is not resamplefd for other in self.members):
            resamplefd._not_on_close(self._inherit)
            heir = self._heirs.pop(resamplefd, None)
            if heir is not None:
                heir.close()
        if not self.members:
            self._again = False
            self._lower(notify=False)
        elif all(other.offloaded for other in self.members):
            self.hand_over()

    def _inherit(self, resamplefd: EventFd) -> None:
        # Its close means nothing to who shares the eventfd with its owner: they are still told (row R16).
        self._heirs[resamplefd] = resamplefd._bequeath()

    # -- raising -----------------------------------------------------------------------------------------------------

    def try_assert(self, routes: Sequence[Route]) -> bool:
        """Raise the line now, if the sink takes it at once."""
        if self._delivery.tiers.try_inject is None:
            return False
        with self._busy:
            return not self._serial.locked() and self._assert_now(routes)

    def _assert_now(self, routes: Sequence[Route]) -> bool:
        if self._delivery.tiers.try_inject is None:
            return False
        for route in routes:
            interrupt = Interrupt(self.gsi, route, Action.ASSERT)
            # Noted first: the sink may take the interrupt and have it acknowledged before it returns.
            news = self._note(interrupt)
            taken = False
            try:
                taken = self._delivery.try_inject(interrupt)
            finally:
                if news and not taken:
                    self._doubt(interrupt)
            if not taken:
                return False
        return True

    async def assert_line(self, routes: Sequence[Route]) -> None:
        """Raise the line, waiting for the sink where it has to."""
        async with self._serial:
            for route in routes:
                await self._assert(route)

    async def _assert(self, route: Route) -> None:
        interrupt = Interrupt(self.gsi, route, Action.ASSERT)
        # Noted first here too: an ack that comes meanwhile lowers it as soon as it is up.
        with self._busy:
            news = self._note(interrupt)
        try:
            await self._delivery.inject(interrupt)
        except BaseException:
            if news:
                with self._busy:
                    self._doubt(interrupt)
            raise

    def _note(self, interrupt: Interrupt) -> bool:
        self._falling = _without(self._falling, interrupt)
        news = interrupt not in self._raised
        if news:
            self._raised = (*self._raised, interrupt)
        return news

    def _doubt(self, interrupt: Interrupt) -> None:
        # It may be up: an IOAPIC keeps a line as it was set, though there was no room for the message. Lowering a line that is
        # low changes nothing, but one that nobody lowered would interrupt for ever.
        self._raised = _without(self._raised, interrupt)
        self._falling = (*_without(self._falling, interrupt), interrupt)

    # -- offloading --------------------------------------------------------------------------------------------------

    def adopt(self, interrupt: Interrupt) -> None:
        """A sink that watched the eventfd by itself gives it back with the line up: lowering it is the loop's business now."""
        with self._busy:
            self._note(interrupt)

    def hand_over(self) -> None:
        """A sink watches all the eventfds by itself now, and lowers the line."""
        if self._raised:
            self._lower(notify=False)

    # -- routing -----------------------------------------------------------------------------------------------------

    def reroute(self, routes: Sequence[Route]) -> None:
        """The gsi goes elsewhere now. A line that is up moves along, so no old pin stays stuck (better than row G12).

        One whose gsi lost its route is raised again as soon as there is one (row G13): its device waits to be told. Where a
        message is the new route, it is told: there is no line any more whose end of interrupt it could wait for.
        """
        with self._busy:
            up = self._again or bool(self._raised)
            gone = [one for one in self._raised if one.route not in routes]
            self._raised = tuple(one for one in self._raised if one.route in routes)
            self._falling = tuple(dict.fromkeys((*self._falling, *gone)))
            missing = len(self._raised) < len(routes)
            if routes and not is_level(routes):
                self._notify_after = self._notify_after or up
                self._again = False
            else:
                self._again = up and (missing or not routes)
        self.settle(paused=False)

    def settle(self, *, paused: bool) -> None:
        """Go on with what is yet to be done with the line.

        Args:
            paused: The manager is paused, so that what the sink has failed to do waits for its ``resume()``.
        """
        if paused or not (self._falling or self._again or self._notify_after):
            return
        with self._busy:
            missing = self._missing()
            slow = self._serial.locked() or not self._lower_now()
            slow = slow or (bool(missing) and not self._raise_now(missing))
        if slow:
            self._schedule()
        if not self._falling:
            self._tell_once()

    def _missing(self) -> list[Route]:
        """Where the line is to be raised again, and may be just now. There it is not lowered first."""
        if not self._again or self._routes.blocks(self.gsi):
            return []
        routes = self._routes.of(self.gsi)
        raised = self.raised
        missing = [route for route in routes if route not in raised]
        self._again = bool(missing) or not routes
        self._falling = tuple(one for one in self._falling if one.route not in missing)
        return missing

    def _raise_now(self, missing: Sequence[Route]) -> bool:
        try:
            if not self._assert_now(missing):
                return False
        except BaseException as error:
            self._delivery.fast_path_failed(error)
            return False
        self._again = False
        return True

    # -- lowering ----------------------------------------------------------------------------------------------------

    def ack(self) -> None:
        """End of interrupt: lower the line once, then tell everybody. Any thread."""
        self._lower(notify=True)

    def _lower(self, *, notify: bool) -> None:
        with self._busy:
            if notify:
                # Everybody is told, and signals again who still has a reason.
                self._notify_after = True
                self._again = False
            self._falling = tuple(dict.fromkeys((*self._falling, *self._raised)))
            self._raised = ()
            slow = self._serial.locked() or not self._lower_now()
        if slow:
            self._schedule()
        else:
            self._tell_once()

    def _schedule(self) -> None:
        if asyncio._get_running_loop() is self._loop:
            self._backpressure.schedule(self.work)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._backpressure.schedule, self.work)

    def _lower_now(self) -> bool:
        while self._falling:
            interrupt = self._falling[0]
            try:
                if not self._delivery.try_inject(Interrupt(self.gsi, interrupt.route, Action.DEASSERT)):
                    return False
            except BaseException as error:
                self._delivery.end_loop(error)
                return False  # the slow way meets the error again, and reports it
            self._falling = _without(self._falling, interrupt)
        return True

    # -- bottom half -------------------------------------------------------------------------------------------------

    async def _move(self) -> None:
        async with self._serial:
            with self._busy:
                self._missing()
            # A pin that cannot be lowered does not keep the line from being raised elsewhere.
            lowered = await self._lower_slowly()
            done = await self._raise_slowly() and lowered
        if not self._falling:
            self._tell_once()  # one that was acknowledged meanwhile is told when it is low
        if done:
            self._failures = 0
            self._low(self)

    async def _lower_slowly(self) -> bool:
        while self._falling:
            interrupt = self._falling[0]
            try:
                await self._delivery.inject(Interrupt(self.gsi, interrupt.route, Action.DEASSERT))
            except BaseException as error:
                if not is_failure(error):
                    raise
                self._failed("lowering_failed", error)
                return False
            with self._busy:
                self._falling = _without(self._falling, interrupt)
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
                self._failed("raising_failed", error)
                return False

    def _failed(self, event: str, error: BaseException) -> None:
        """The sink failed to lower or to raise the line: say so and try again later."""
        self._delivery.emit(event, gsi=self.gsi, error=repr(error))
        self._failures += 1
        if self._failures == self._delivery.retry.attempts + 1:
            self._delivery.trouble(
                f"gsi {self.gsi}: {event.replace('_', ' ')}; it is tried again every {self._delivery.retry.maximum} s",
                error,
            )
        # A paused manager's snapshot has what is yet to be done: it is the snapshot's, unless the manager resumes.
        self._delivery.call_later(self._delivery.retry.maximum, lambda: self.settle(paused=self._routes.paused))

    # -- telling -----------------------------------------------------------------------------------------------------

    def _tell_once(self) -> None:
        with self._busy:
            notify, self._notify_after = self._notify_after, False
        if notify:
            # Where the sink watches by itself, it has told: it hears of the end of interrupt first.
            self.tell(offloaded=False)

    def tell(self, *, offloaded: bool = True) -> bool:
        """Signal every resamplefd, the most recently assigned first; whether there were any. Any thread.

        Args:
            offloaded: Those too whose irqfds the sink watches.
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


def _without(interrupts: tuple[Interrupt, ...], interrupt: Interrupt) -> tuple[Interrupt, ...]:
    return tuple(other for other in interrupts if other != interrupt)
