"""Where a level-triggered line is up, where it is to be lowered, and what is to be done once it is low: values, without a sink.

Of each place that the line's gsi goes, or went, it is

=========  =========================================  ==========================================================
low        in neither tuple                           nobody has raised it, or it was lowered since
up         in ``raised``                              noted before the sink is asked, which may end it meanwhile
falling    in ``falling``                             ended, left behind by a new route, or in doubt: it may be up
=========  =========================================  ==========================================================

What must hold: a place that was asked to be up is in one of the two until it was lowered, whatever failed in between. A line in doubt is
lowered, because that changes nothing where it is low, and one that nobody lowers interrupts for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aioirqfd.irqfd.interrupt import Route


class LineLevel(NamedTuple):
    """The level of one gsi's line. Never changed: each move gives another one, so any thread may look.

    Attributes:
        raised: Where it is up.
        falling: Where it is, or may be, up, and is to be lowered.
        tell: It was acknowledged: everybody is told as soon as it is low.
        again: It is to be raised wherever its gsi goes.
    """

    raised: tuple[Route, ...] = ()
    falling: tuple[Route, ...] = ()
    tell: bool = False
    again: bool = False

    @property
    def moving(self) -> bool:
        """Whether something is yet to be done with it."""
        return bool(self.falling or self.tell or self.again)

    def rising(self, route: Route) -> LineLevel:
        """About to be raised: what ends it from here on finds it up."""
        raised = self.raised if route in self.raised else (*self.raised, route)
        return LineLevel(raised, _without(self.falling, (route,)), self.tell, self.again)

    def doubtful(self, route: Route) -> LineLevel:
        """The sink has not said that it is up: an IOAPIC keeps a line as it was set, though there was no room for the message."""
        falling = (*_without(self.falling, (route,)), route)
        return LineLevel(_without(self.raised, (route,)), falling, self.tell, self.again)

    def ending(self, *, tell: bool, again: bool) -> LineLevel:
        """To be lowered everywhere, and told then; and not to be raised again, unless it was to be and may."""
        falling = self.raised if not self.falling else tuple(dict.fromkeys((*self.falling, *self.raised)))
        return LineLevel((), falling, tell or self.tell, again and self.again)

    def lowered(self, route: Route) -> LineLevel:
        """Low there; or up again, if it was raised meanwhile."""
        return LineLevel(self.raised, _without(self.falling, (route,)), self.tell, self.again)

    def told(self) -> LineLevel:
        """Everybody was told."""
        return LineLevel(self.raised, self.falling, False, self.again) if self.tell else self

    def within(self, routes: Sequence[Route]) -> LineLevel:
        """To be lowered everywhere else."""
        gone = _without(self.raised, routes)
        return LineLevel(
            _without(self.raised, gone), tuple(dict.fromkeys((*self.falling, *gone))), self.tell, self.again
        )

    def rerouted(self, routes: Sequence[Route], *, level: bool) -> LineLevel:
        """Its gsi goes elsewhere; ``level``: to pins. One that is up moves along, by way of :meth:`missing`.

        Where a message is the new route, everybody is told: there is no line any more whose end of interrupt they could wait for.
        """
        up = self.again or bool(self.raised)
        raised, falling, tell, _ = self.within(routes)
        if routes and not level:
            return LineLevel(raised, falling, tell or up)
        return LineLevel(raised, falling, tell, up and (not routes or len(raised) < len(routes)))

    def missing(self, routes: Sequence[Route]) -> tuple[LineLevel, tuple[Route, ...]]:
        """Where it is to be raised again, and the level until then: there it is not lowered first."""
        if not self.again:
            return self, ()
        missing = _without(routes, self.raised)
        return LineLevel(self.raised, _without(self.falling, missing), self.tell, bool(missing) or not routes), missing


LOW: Final = LineLevel()


def _without(routes: Sequence[Route], others: Iterable[Route]) -> tuple[Route, ...]:
    return tuple(route for route in routes if route not in others) if routes else ()
