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
# (as in manager.py)
from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from typing import TYPE_CHECKING, Final, final

from aioirqfd.eventfd import EventFd
from aioirqfd.irqfd.interrupt import Action, Interrupt, IrqchipPin
from aioirqfd.irqfd.workqueue import Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aioirqfd.irqfd.interrupt import Route
    from aioirqfd.irqfd.manager import IrqManager


@final
class Resampler:
    """The line level of one gsi, and who is told when it is acknowledged."""

    __slots__ = (
        "_busy",
        "_falling",
        "_heirs",
        "_loop",
        "_manager",
        "_notify",
        "_notify_after",
        "_raised",
        "_serial",
        "_work",
        "gsi",
        "stranded",
    )

    def __init__(self, manager: IrqManager, gsi: int) -> None:
        self.gsi: Final = gsi
        self._manager = manager
        self._loop = asyncio.get_running_loop()
        self._notify: list[EventFd] = []
        self._heirs: dict[EventFd, EventFd] = {}  # a resamplefd that its owner closed: our own reference to the eventfd
        self._raised: tuple[Interrupt, ...] = ()
        self._falling: tuple[Interrupt, ...] = ()  # acknowledged or moved away, but the sink has not lowered it yet
        self._busy = threading.RLock()
        self._serial = asyncio.Lock()
        self._work = Work(self._lower_slowly)
        self._notify_after = False
        self.stranded = False
        """Whether the line was up when the gsi lost its route."""

    @property
    def asserted(self) -> bool:
        """Whether the line is up."""
        return bool(self._raised)

    @property
    def raised(self) -> tuple[Route, ...]:
        """Where the line is up."""
        return tuple(interrupt.route for interrupt in self._raised)

    def put(self, routes: Sequence[Route]) -> None:
        """Stand as a snapshot says: the sink, which is restored by itself, is told of lines that are up and were not."""
        wanted = tuple(Interrupt(self.gsi, route, Action.ASSERT) for route in routes)
        if set(wanted) == set(self._raised):
            return
        self._lower(notify=False)
        if wanted:
            self._manager.reassert(self.gsi)

    @property
    def empty(self) -> bool:
        """Whether no resamplefd is left, and the line is low."""
        return not (self._notify or self._raised or self._falling)

    def join(self, resamplefd: EventFd) -> None:
        """An irqfd was assigned; a resamplefd that several share is told once for each (row R10)."""
        self._notify.append(resamplefd)
        resamplefd._on_close(self._inherit)

    def leave(self, resamplefd: EventFd) -> None:
        """An irqfd was deassigned. The last one to go lowers the line, and nobody is told (rows R13, R14)."""
        for index, other in enumerate(self._notify):
            if other is resamplefd:
                del self._notify[index]
                break
        if resamplefd not in self._notify:
            resamplefd._not_on_close(self._inherit)
            heir = self._heirs.pop(resamplefd, None)
            if heir is not None:
                heir.close()
        if not self._notify:
            self._lower(notify=False)

    def _inherit(self, resamplefd: EventFd) -> None:
        # Its close means nothing to who shares the eventfd with its owner: they are still told (row R16).
        self._heirs[resamplefd] = EventFd.from_fd(os.dup(resamplefd.fileno()), owns=True)

    def try_assert(self, routes: Sequence[Route]) -> bool:
        """Raise the line now, if the sink takes it at once."""
        try_inject = self._manager.tiers.try_inject
        if try_inject is None:
            return False
        with self._busy:
            if self._serial.locked():
                return False
            for route in routes:
                interrupt = Interrupt(self.gsi, route, Action.ASSERT)
                # Noted first: the sink may take the interrupt and have it acknowledged before it returns.
                news = self._note(interrupt)
                taken = False
                try:
                    taken = try_inject(interrupt)
                finally:
                    if news and not taken:
                        self._forget(interrupt)
                if not taken:
                    return False
        return True

    async def assert_line(self, routes: Sequence[Route]) -> None:
        """Raise the line, waiting for the sink where it has to."""
        async with self._serial:
            for route in routes:
                interrupt = Interrupt(self.gsi, route, Action.ASSERT)
                # Noted first here too: an ack that comes meanwhile lowers it as soon as it is up.
                with self._busy:
                    news = self._note(interrupt)
                try:
                    await self._manager.tiers.inject(interrupt)
                except BaseException:
                    if news:
                        with self._busy:
                            self._forget(interrupt)
                    raise

    def adopt(self, interrupt: Interrupt) -> None:
        """A sink that watched the eventfd by itself gives it back with the line up: lowering it is the loop's business now."""
        with self._busy:
            self._note(interrupt)

    def hand_over(self) -> None:
        """A sink watches the eventfd by itself now, and lowers the line; unless others here need to hear of its ack too."""
        if len(self._notify) == 1 and self._raised:
            self._lower(notify=False)

    def reroute(self, routes: Sequence[Route]) -> None:
        """The gsi goes elsewhere now. A line that is up moves along, so no old pin stays stuck (better than row G12).

        One whose gsi lost its route is raised again as soon as there is one (row G13): its device waits to be told.
        """
        kept = tuple(interrupt for interrupt in self._raised if interrupt.route in routes)
        if len(kept) == len(self._raised) == len(routes):
            return
        self.stranded = not routes and not self._manager.holds(self.gsi)
        self._lower(notify=False)
        self._manager.reassert(self.gsi)

    def ack(self) -> None:
        """End of interrupt: lower the line once, then tell everybody. Any thread."""
        self._lower(notify=True)

    def _note(self, interrupt: Interrupt) -> bool:
        self._falling = tuple(other for other in self._falling if other != interrupt)
        news = interrupt not in self._raised
        if news:
            self._raised = (*self._raised, interrupt)
        return news

    def _forget(self, interrupt: Interrupt) -> None:
        self._raised = tuple(other for other in self._raised if other != interrupt)

    def _lower(self, *, notify: bool) -> None:
        with self._busy:
            self._notify_after = self._notify_after or notify
            self._falling = (*self._falling, *(one for one in self._raised if one not in self._falling))
            self._raised = ()
            slow = self._serial.locked() or not self._lower_now()
        if not slow:
            self._tell_once()
        elif asyncio._get_running_loop() is self._loop:
            self._manager.backpressure.schedule(self._work)
        else:
            self._loop.call_soon_threadsafe(self._manager.backpressure.schedule, self._work)

    def _lower_now(self) -> bool:
        try_inject = self._manager.tiers.try_inject
        while self._falling:
            interrupt = self._falling[0]
            try:
                if try_inject is None or not try_inject(Interrupt(self.gsi, interrupt.route, Action.DEASSERT)):
                    return False
            except Exception:
                return False  # the slow way meets the error again, and reports it
            self._falling = tuple(other for other in self._falling if other != interrupt)
        return True

    async def _lower_slowly(self) -> None:
        async with self._serial:
            while self._falling:
                interrupt = self._falling[0]
                try:
                    await self._manager.tiers.inject(Interrupt(self.gsi, interrupt.route, Action.DEASSERT))
                except Exception as error:
                    self._manager.report_lowering(self._work, self.gsi, error)
                    return
                with self._busy:
                    self._falling = tuple(other for other in self._falling if other != interrupt)
        self._tell_once()
        self._manager.drop_resampler(self)

    def _tell_once(self) -> None:
        with self._busy:
            notify, self._notify_after = self._notify_after, False
        if notify:
            self.tell()

    def tell(self) -> bool:
        """Signal every resamplefd, the most recently assigned first; whether there were any. Any thread."""
        notify = tuple(self._notify)
        for resamplefd in reversed(notify):
            # One that was closed behind its object's back must not keep the others from hearing.
            with contextlib.suppress(OSError):
                self._heirs.get(resamplefd, resamplefd).signal()
        return bool(notify)


def is_level(routes: Sequence[Route]) -> bool:
    """Whether a resample irqfd with these routes drives a line; an MSI has none and is just sent (row M07)."""
    return bool(routes) and isinstance(routes[0], IrqchipPin)
