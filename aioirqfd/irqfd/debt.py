"""What an irqfd owes once its signals have left the counter module: how many, and how far the injection that pays is done.

No I/O, no clock, no loop: numbers alone.

What must hold: a handler that has returned is never told again of the same signal, and the counts that each handler gets add up to
exactly the signals. An injection that failed goes on where it stopped, under its old number; what came meanwhile is the next one's.

Tempting, and wrong:

- one count for all: a retry would tell the first handlers twice of what only the last has not heard;
- a number for each attempt: a flush would take the end of a retry for the end of what was signalled between the two attempts;
- to give back, at a deassign, all that is not injected: who was told already would be told again by the next irqfd. One signal keeps the
  interrupt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from aioirqfd.irqfd.interrupt import Route

Done = tuple[int, int, int]
"""So many of the signals were told to so many handlers, and so many routes have had their interrupt."""
NOTHING_DONE: Done = (0, 0, 0)


@final
class Debt:
    """Signals that are owed, in two heaps: those that the handlers have not heard of, and those of the injection under way.

    Injections are numbered as they begin, so that a flush can tell when those it waits for are over.

    Attributes:
        count: Signalled, and not yet told to the handlers.
        told: Given to the handlers of the injection under way.
        stage: How many handlers and then routes of it are done; a retry goes on from there.
        routes: Whose stages these are.
        begun: The number of the last injection that has begun.
        finished: That of the last that has ended.
        covering: That of the first which begins after the last deferral.
        deferrals: How often something was added.
        returned: Signals that were put back into the eventfd.
        baseline: How much of what is owed is a snapshot's, since it was taken or restored; None: there is none.
        captured: Whether that is another manager's now.
    """

    __slots__ = (
        "baseline",
        "begun",
        "captured",
        "count",
        "covering",
        "deferrals",
        "finished",
        "returned",
        "routes",
        "stage",
        "told",
    )

    def __init__(self) -> None:
        self.count = self.told = self.stage = self.returned = 0
        self.begun = self.finished = self.covering = self.deferrals = 0
        self.routes: tuple[Route, ...] = ()
        self.baseline: int | None = None
        self.captured = False

    @property
    def owed(self) -> int:
        """What was signalled and is not injected; only of meaning while nothing runs."""
        return self.count + self.told

    def add(self, count: int) -> None:
        """Signals came that nobody has heard of."""
        self.count += count
        self.deferrals += 1
        self.covering = self.begun + 1

    def add_told(self, count: int, stage: int, routes: tuple[Route, ...]) -> None:
        """Signals came that were told to so many handlers already."""
        if stage and not self.stage:
            self.begun += 1  # by the handlers
        self.told += count
        self.stage = stage
        self.routes = routes
        self.deferrals += 1
        self.covering = max(self.covering, self.begun + (not stage))

    def note_unread(self, count: int) -> None:
        """So many signals had been seen and left unread: what they called for is still owed, and they are in its count."""
        more = max(count - self.owed, 0)
        self.count += more  # at once, for a signal handler may add to it at any call

    def begin(self) -> int:
        """An injection begins, or goes on where it failed: its number."""
        if not self.stage:
            self.begun += 1
        return self.begun

    def take(self, handlers: int) -> None:
        """An injection begins: if with its handlers, they are told of everything."""
        if self.stage == 0:
            self.told += self.count
            self.count = 0
            if not self.told:
                # No signal, but a line that is to be raised again where its gsi goes now.
                self.stage = handlers

    def follow(self, routes: tuple[Route, ...], handlers: int) -> None:
        """The handlers are through. Re-routed since the last attempt, the new routes have seen nothing yet."""
        if self.routes != routes:
            self.stage = handlers
            self.routes = routes

    def paid(self, number: int) -> bool:
        """That injection has ended well; whether signals came between two attempts, which it did not pay."""
        self.stage = self.told = 0
        self.finished = number
        return self.count > 0

    def untold(self, handlers: int) -> int:
        """What the eventfd is to have back: what one of the handlers has not heard of, and no signal twice for who has.

        Where all have heard of everything, 1: the interrupt is owed, and nothing else could keep it.
        """
        if handlers and self.told and self.stage >= handlers:
            return self.count or 1
        return self.owed

    def give_back(self, handlers: int) -> int:
        """Owe nothing any more; what the eventfd is to have back."""
        count = self.untold(handlers)
        self.count = self.told = self.stage = 0
        self.returned += count
        return count

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def capture(self, handlers: int, routes: tuple[Route, ...]) -> tuple[int, Done]:
        """How many signals are owed, and what of them is done. They are the snapshot's from here on."""
        self.baseline, self.captured = self.owed, True
        told = min(self.stage, handlers)
        routed = self.stage - told if self.routes == routes else 0
        return self.owed, (self.told, told, routed) if told or routed else NOTHING_DONE

    def release(self) -> None:
        """The manager goes on: what a snapshot took is injected here after all."""
        self.baseline, self.captured = None, False

    def withheld(self, handlers: int) -> int:
        """What of it is a snapshot's, and not the eventfd's to have back."""
        own = max(self.owed - (self.baseline or 0), 0)  # came since
        return max(self.untold(handlers) - own, 0)

    def leave(self, count: int, handlers: int) -> None:
        """So many of them are somebody else's."""
        self.count, self.told = max(self.untold(handlers) - count, 0), 0

    def restore(self, count: int, done: Done, handlers: int, routes: tuple[Route, ...]) -> int:
        """Stand as a snapshot says; how many signals of one's own, that were in no snapshot, are owed all the same."""
        own = self.owed - (self.baseline or 0)
        self.told, told, routed = done
        self.stage = told if told < handlers else handlers + routed
        self.routes = routes
        self.count = count + own - self.told
        self.baseline, self.captured = count, False
        return own
