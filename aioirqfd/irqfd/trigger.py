"""The irqfd's half of its eventfd: whatever is asked of the eventfd's inside is asked here.

From the moment it is left, what the eventfd counts is another irqfd's; what had been counted until then stays known.

What must hold: no other file of this floor looks behind an EventFd's underscore, and nothing stays half bound when one of these calls
raises, for want of a descriptor or by a signal handler.

Tempting, and wrong:

- to read an eventfd that is not owed: what it held when it was bound is left to be read until somebody signals again (row P03), and of a
  semaphore all but one stays whole (row P05);
- to ask the eventfd for its counts after it was left: it may be bound again, and they are the new irqfd's;
- to look for a signal off the loop's thread: only the drain, on its own, may take an event from the epoll.
"""

# pyright: reportPrivateUsage=false
# (an underscore on an EventFd says "for this package"; this is where the package does)
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, final

from aioirqfd.eventfd.loops import loop_here
from aioirqfd.irqfd import identity

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import CellType

    from aioirqfd.counter import TopHalf
    from aioirqfd.counter._python.core import Irqfd
    from aioirqfd.eventfd import EventFd, Poller
    from aioirqfd.eventfd.eventfd import Bound


class Counts(NamedTuple):
    """What the counter module has counted for an irqfd."""

    signals: int
    wakeups: int
    fast: int


Found = tuple[int, int]
"""What a look into the eventfd brought to light: signals that call for an injection, and signals that were seen before, and left unread."""


@final
class Trigger:
    """An eventfd on behalf of an irqfd.

    Args:
        eventfd: The eventfd.
        eventfd_id: The kernel's number of it.
        claimant: Who has claimed it.
        name: What the program calls the irqfd, if it calls it anything.

    Attributes:
        why_masked: Says why it is masked, where that is not the program's own doing but a vector's; None: it is the program's.
    """

    __slots__ = ("_claimant", "_final", "_run", "eventfd", "eventfd_id", "left", "name", "references", "why_masked")

    def __init__(self, eventfd: EventFd, eventfd_id: int, claimant: object, name: str | None = None) -> None:
        self.eventfd = eventfd
        self.eventfd_id = eventfd_id
        self._claimant = claimant
        self.name = name
        self.why_masked: Callable[[], str | None] | None = None
        self.left = False
        self.references: tuple[EventFd, ...] = ()
        """What was made for ints, and is closed with the irqfd."""
        self._run: tuple[object, int] | None = None  # when it was left: the task that ran the handler, and the count
        self._final: tuple[int, int, int] | None = None  # the counts, when it was let go
        eventfd._signals = eventfd._wakeups = eventfd._fast = 0

    # -- looking -----------------------------------------------------------------------------------------------------

    @property
    def poller(self) -> Poller | None:
        """Who hears of it, unless it was left."""
        eventfd = self.eventfd
        return eventfd._poller if eventfd._registered and not self.left else None

    @property
    def eventfd_poller(self) -> Poller | None:
        """On which loop the eventfd is used, if on any."""
        return self.eventfd._poller

    @property
    def counts(self) -> Counts:
        """What was counted."""
        eventfd = self.eventfd
        return Counts(*(self._final or (eventfd._signals, eventfd._wakeups, eventfd._fast)))

    @property
    def fast(self) -> int:
        """How many interrupts the sink took at once."""
        return self.eventfd._fast if self._final is None else self._final[2]

    @property
    def owed(self) -> bool:
        """Whether a signal was seen and has not come to the top half."""
        return not self.left and self.eventfd._owed

    @property
    def engaged(self) -> bool:
        """Whether the counter module has something of it: a signal, a count that waits for the handler, or its run."""
        if self.left:
            return self._run is not None
        eventfd = self.eventfd
        return eventfd._owed or eventfd._queued or eventfd._running is not None

    @property
    def held(self) -> bool:
        """Whether it waits for the manager to resume, or for room."""
        return self.eventfd._held

    @property
    def lined_up(self) -> bool:
        """Whether a count waits for the handler."""
        return not self.left and self.eventfd._queued

    @property
    def running(self) -> object:
        """The task that runs the handler by the counter module just now, or None."""
        if not self.left:
            return self.eventfd._running
        return None if self._run is None else self._run[0]

    @property
    def untold(self) -> int:
        """What was counted for the handler and is not injected."""
        if not self.left:
            return self.eventfd._taken + self.eventfd._told
        return 0 if self._run is None else self._run[1]

    def ran(self) -> None:
        """The handler is through."""
        self._run = None

    def look(self) -> bool:
        """Whether a signal is there, seen or not yet. In another thread than the loop's: as far as it was seen."""
        poller = self.poller
        if poller is None:
            return False
        if loop_here() is poller.loop:
            poller.drain.collect()
        return self.eventfd._owed

    def look_unread(self) -> bool:
        """Whether there may be counts that were injected and left unread, and nothing else. Nothing off the loop."""
        poller = self.poller
        if poller is None or loop_here() is not poller.loop:
            return False
        # What was there when it was bound is left to be read, until somebody signals again (row P03). So is a semaphore's rest,
        # always.
        return not (self.look() or self.eventfd._leftover or self.eventfd.semaphore)

    def empty(self) -> Found:
        """Read everything. The loop's thread."""
        poller = self.poller
        if poller is None:
            return 0, 0
        before = self.eventfd._signals
        owed = poller.drain.read_out(self.eventfd)
        return owed, self.eventfd._signals - before - owed

    # -- telling -----------------------------------------------------------------------------------------------------

    def arm(self, route: CellType | None) -> None:
        """The cell with what the counter module may inject by itself, as long as it is in there."""
        self.eventfd._arm(route)

    def woken(self) -> None:
        """A dispatch that the counter module did not make."""
        self.eventfd._wakeups += 1

    def taken(self) -> None:
        """The sink took it at once, of which the counter module did not hear."""
        self.eventfd._fast += 1

    # -- binding -----------------------------------------------------------------------------------------------------

    @property
    def bound(self) -> bool:
        """Whether the eventfd knows of its irqfd."""
        return self.eventfd._binding is not None

    def bind(self, irqfd: Bound) -> None:
        """It is the irqfd's."""
        self.eventfd._binding = irqfd

    def watch(
        self, top_half: TopHalf, irqfd: Irqfd, gsi: int, handlers: Sequence[Callable[..., Awaitable[None]]], who: object
    ) -> None:
        """Have the loop hear of it; what it holds is an event. The handlers are called with who."""
        eventfd = self.eventfd
        # Registered already, by waiting readers: anew, so that what it holds is an event of the irqfd's.
        eventfd._detach()
        eventfd._attach()
        eventfd._gsi = gsi
        eventfd._bind(top_half, irqfd, bool(handlers), handlers[0] if len(handlers) == 1 else None, who)

    def unwatch(self, *, whole: bool) -> Found:
        """Leave the loop: what was signalled up to here and is not injected. What comes later stays in the eventfd.

        Args:
            whole: A semaphore's rest stays whole; a deassign takes one of it, as the kernel's does (row P05).
        """
        eventfd = self.eventfd
        owed = unread = 0
        poller = eventfd._poller
        if poller is not None and eventfd._registered:
            poller.drain.collect()
            if eventfd._owed or not (eventfd._semaphore and whole):
                before = eventfd._signals
                owed = poller.drain.read_out(eventfd)
                unread = eventfd._signals - before - owed
        recalled = eventfd._recall()
        eventfd._unbind()
        try:
            eventfd._spill()
        finally:
            eventfd._detach()
        if owed:
            eventfd._wakeups += 1
        return owed + recalled, unread

    def leave(self) -> None:
        """From here on, what the eventfd says is another irqfd's."""
        eventfd = self.eventfd
        if eventfd._running is not None:
            self._run = eventfd._running, eventfd._told
        self.left = True

    def let_go(self, poller: Poller | None) -> None:
        """It is nobody's; who waits to read it goes on."""
        eventfd = self.eventfd
        self._final = eventfd._signals, eventfd._wakeups, eventfd._fast
        eventfd._binding = None
        identity.release(self.eventfd_id, self._claimant)
        if poller is not None and eventfd._waiters:
            eventfd._go_on_waiting(poller)

    def inherit(self) -> None:
        """In a forked child: it is nobody's here."""
        eventfd = self.eventfd
        self.left = True
        if eventfd._poller is not None:
            eventfd._recall()
            eventfd._unbind()
        eventfd._binding = None
        eventfd._waiters = None
        self.close_references()

    def close_references(self) -> None:
        """Close what was made for ints."""
        if self.references:
            references, self.references = self.references, ()
            identity.close_all(references)
