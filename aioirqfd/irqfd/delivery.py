"""How interrupts get to the sink, and who hears what became of them.

The sink is never entered from within itself: while it has an interrupt in its hands, what it signals on this loop waits for the next
pass. So nobody calls a sink but the counter module, :meth:`Delivery.try_inject` and :meth:`Delivery.inject`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast, final

from aioirqfd.counter import Stepped
from aioirqfd.errors import InjectionError
from aioirqfd.eventfd.loops import loop_here
from aioirqfd.flight import FlightKind, flight_of
from aioirqfd.irqfd.coroutine import plain_function
from aioirqfd.irqfd.guard import guarded, report
from aioirqfd.irqfd.retry import Retry
from aioirqfd.irqfd.since import Since
from aioirqfd.tracer import NULL_TRACER, failure, listens

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator

    from aioirqfd.counter import TopHalf
    from aioirqfd.eventfd import EventFd, Poller
    from aioirqfd.irqfd.interrupt import Interrupt
    from aioirqfd.irqfd.life import Life
    from aioirqfd.irqfd.sink import SinkTiers
    from aioirqfd.ratelimit import RateLimit
    from aioirqfd.tracer import Tracer

_REPEATABLE: Final = frozenset(
    {
        "irqfd_assigned",
        "irqfd_deassigned",
        "irqfd_masked",
        "irqfd_unmasked",
        "offload_failed",
        "reclaim_failed",
        "route_changed",
        "routing_changed",
    }
)
"""What becomes of irqfds and routes when a guest turns the bits of its registers to and fro."""

_RECORDED: Final = {
    kind.event: kind
    for kind in (
        FlightKind.MASKED,
        FlightKind.UNMASKED,
        FlightKind.UNBOUND,
        FlightKind.FAILED,
        FlightKind.UNROUTED,
        FlightKind.BROKEN,
    )
}
"""What becomes of an irqfd and has a record of its own in the flight ring, which is written however often it is repeated."""


_ROUTED, _INJECTED, _DROPPED = FlightKind.ROUTED, FlightKind.INJECTED, FlightKind.DROPPED  # at hand, as in binding.py


class Origin(NamedTuple):
    """Where an irqfd comes from.

    Attributes:
        labels: Fields that say whose it is; they come with each of its events.
        context: Where it was assigned. What is bound there with structlog comes out on its events, too.
        name: What it is called, for who reads a flight recorder's file; or None.
    """

    labels: Mapping[str, object]
    context: contextvars.Context
    name: str | None


def checked(labels: object) -> dict[str, object]:
    """A copy of an irqfd's labels.

    Raises:
        TypeError: They are none.
    """
    if not isinstance(labels, Mapping):
        raise TypeError(f"labels map names to values, as {{'queue': 2}} does; {labels!r} does not")
    given = cast("Mapping[object, object]", labels)
    found = {name: value for name, value in given.items() if isinstance(name, str)}
    if len(found) < len(given) or "event" in found:
        raise TypeError(
            f"labels map names to values, as {{'queue': 2}} does, and no name is 'event', the event's own; {labels!r} does not"
        )
    return found


class Vectors(Protocol):
    """A device's vectors, of which some have no irqfd yet."""

    def waiting(self) -> Iterator[tuple[str, str]]:
        """Of each of these that is signalled, its name, and what it waits for."""
        ...


class _Named(Protocol):
    """Whom an event is about."""

    @property
    def gsi(self) -> int: ...
    @property
    def eventfd(self) -> EventFd: ...
    @property
    def eventfd_id(self) -> int: ...
    @property
    def origin(self) -> Origin | None: ...


@final
class Delivery:
    """One manager's sink, tracer and errors.

    Attributes:
        tiers: What the sink can do.
        fast: Whether the counter module may hand interrupts to the sink by itself.
        per_interrupt: Whether the tracer is told of each interrupt.
        retry: The back-off.
        flight: Writes into the tracer's ring, if it has one.
        name: The manager's, or None.
        first_error: The first that an irqfd was given up for.
        dropped: Interrupts that had no route.
        since: What the program holds back, and since when.
        vectors: Whose vectors are injected here, by its ``id()``.
    """

    __slots__ = (
        "_heard",
        "_life",
        "_on_error",
        "_poller",
        "_top_half",
        "context",
        "dropped",
        "emit",
        "fast",
        "first_error",
        "flight",
        "name",
        "per_interrupt",
        "retry",
        "since",
        "tiers",
        "traced",
        "vectors",
    )

    def __init__(
        self,
        tiers: SinkTiers,
        tracer: Tracer,
        retry: Retry,
        on_error: Callable[[Exception], object] | None,
        life: Life,
        name: str | None = None,
    ) -> None:
        self.tiers: Final = tiers
        self.retry: Final = retry
        self.name: Final = name
        self.emit = guarded(tracer, **({} if name is None else {"manager": name})).emit
        self.traced: Final = tracer is not NULL_TRACER
        self.flight: Final = flight_of(tracer, name or type(tiers.sink).__qualname__)
        self._heard: Final = self.traced and listens(tracer)
        self.per_interrupt: Final = bool(tracer.per_interrupt)
        self.fast: Final = tiers.try_inject is not None and not self.per_interrupt
        if not isinstance(retry, Retry):  # pyright: ignore[reportUnnecessaryIsInstance]  callers without a type checker
            raise TypeError(f"retry is an aioirqfd.Retry, not {retry!r}")
        self._on_error: Final = None if on_error is None else plain_function(on_error, "on_error")
        self._poller: Poller | None = None
        self._top_half: TopHalf
        self.context: contextvars.Context
        self.first_error: Exception | None = None
        self.dropped = 0
        self.since: Final = Since()
        self.vectors: Final[weakref.WeakValueDictionary[int, Vectors]] = weakref.WeakValueDictionary()
        self._life: Final = life

    @property
    def named(self) -> str:
        """The manager's name, for its ``repr()``."""
        return "" if self.name is None else f"{self.name!r} "

    def open(self, poller: Poller, top_half: TopHalf) -> None:
        """Begin, on this loop. What is called of the sink's, the tracer's and the handlers' runs in the context of this call."""
        self._poller = poller
        self._top_half = top_half
        self.context = top_half.context = contextvars.copy_context()

    def try_inject(self, interrupt: Interrupt) -> bool:
        """Have the sink take it at once, if it can. Any thread, for that of an ack."""
        try_inject, poller = self.tiers.try_inject, self._poller
        if try_inject is None or poller is None:
            return False
        if loop_here() is not poller.loop:
            # A context is in use by one thread at a time.
            return bool(self.context.copy().run(try_inject, interrupt))
        return bool(self._top_half.within(poller.drain, try_inject, interrupt))

    def inject(self, interrupt: Interrupt) -> Awaitable[None]:
        """Hand it to the sink, which may take its time. In each step that it takes it is not entered from within itself."""
        assert self._poller is not None
        return Stepped(None, self._poller.drain, self.tiers.inject, interrupt)

    # -- what happened -----------------------------------------------------------------------------------------------

    def origin(self, labels: Mapping[str, object] | None, name: str | None) -> Origin | None:
        """What is to be remembered of an irqfd that is being assigned here and now."""
        return Origin(labels or {}, contextvars.copy_context(), name) if self.traced else None

    def trace(self, event: str, who: _Named, /, **fields: object) -> None:
        """Tell the tracer something about an irqfd: in the context that there is, with the variables from where it was assigned."""
        if self.traced:
            assert who.origin is not None
            eventfd = who.eventfd
            fd = -1 if eventfd.closed else eventfd.fileno()
            if self.flight is not None:
                if (kind := _RECORDED.get(event)) is not None:
                    self.flight.put(kind, who.gsi, who.eventfd_id, fd=fd)
                elif event == "irqfd_assigned":
                    self.flight.bound(who.gsi, who.eventfd_id, fd, who.origin.name)
            told = {**who.origin.labels, "gsi": who.gsi, "fd": fd, "eventfd_id": who.eventfd_id, **fields}
            contextvars.copy_context().run(self._emit_within, who.origin.context, event, told)

    def _emit_within(self, context: contextvars.Context, event: str, fields: dict[str, object]) -> None:
        for variable, value in context.items():
            variable.set(value)
        self.emit(event, **fields)

    @contextlib.contextmanager
    def limited(self, limit: RateLimit) -> Generator[None]:
        """What is done meanwhile is a guest's doing, which can repeat it at will: it is traced in time, and counted."""
        emit = self.emit

        def in_time(event: str, /, **fields: object) -> None:
            suppressed = limit.admit((event, fields.get("gsi"))) if event in _REPEATABLE else 0
            if suppressed is not None:
                emit(event, **fields, **({"suppressed": suppressed} if suppressed else {}))

        self.emit = in_time
        try:
            yield
        finally:
            self.emit = emit

    def note(self, kind: FlightKind, key: int, value: int = 0) -> None:
        """Something has become of a gsi, of its line or of the manager, of which only a flight recorder hears. Any thread."""
        if self.flight is not None:
            self.flight.put(kind, key, value)

    def note_irqfd(self, kind: FlightKind, who: _Named, value: int = 1) -> None:
        """The same of an irqfd."""
        if self.flight is not None:
            eventfd = who.eventfd
            self.flight.put(kind, who.gsi, value, fd=-1 if eventfd.closed else eventfd.fileno())

    def paused(self, *, irqfds: int) -> None:
        """The manager injects nothing from here on."""
        self.note(FlightKind.PAUSED, irqfds)
        self.emit("manager_paused", irqfds=irqfds)

    def resumed(self, *, held: int, paused_for: float) -> None:
        """It goes on."""
        self.note(FlightKind.RESUMED, held)
        self.emit("manager_resumed", held=held, paused_for=paused_for)

    def routed(self, gsi: int, *, routes: int, generation: int) -> None:
        """A gsi goes elsewhere."""
        self.note(_ROUTED, gsi, routes)
        self.emit("route_changed", gsi=gsi, routes=routes, generation=generation)

    def injected(self, who: _Named, *, fast: bool) -> None:
        """An interrupt reached the sink, of which the counter module did not hear."""
        self.note_irqfd(_INJECTED, who)
        if self.per_interrupt:
            self.trace("interrupt_injected", who, fast=fast)

    def drop(self, who: _Named, *, first: bool, anew: bool) -> None:
        """An interrupt had no route: told once for each irqfd, and traced once for each of its tables."""
        self.dropped += 1
        self.note_irqfd(_DROPPED, who)
        if first:
            error = InjectionError(f"gsi {who.gsi} has no route")
            self.trouble(
                f"interrupts of gsi {who.gsi} are dropped, as the kernel does; give it a route with set_route(),"
                " or keep them with IrqManager(..., unrouted='hold')",
                error,
            )
        if anew:
            self.trace("interrupt_dropped", who)

    def fast_path_failed(self, error: BaseException) -> None:
        """``try_inject`` raised; the work queue tries again."""
        self.emit("fast_path_failed", **failure(error))
        self.end_loop(error)

    def sink_failed(self, event: str, who: _Named, error: BaseException) -> None:
        """Another of its functions raised, and the irqfd goes on without."""
        self.trace(event, who, **failure(error))
        self.end_loop(error)

    def end_loop(self, error: BaseException) -> None:
        """Ctrl-C or sys.exit() is not the sink's failure. The interrupt is safe; now let it end the loop. Any thread."""
        if not isinstance(error, (Exception, asyncio.CancelledError)) and self._life.open and self._poller is not None:
            self._poller.loop.call_soon_threadsafe(_raise, error)

    def broken(self, who: _Named, error: Exception) -> None:
        """The sink failed for good."""
        self.trace("irqfd_broken", who, **failure(error.__cause__ or error))
        if self._on_error is None:
            self.trouble(f"gsi {who.gsi} is given up until resume(), its interrupt is kept", error)
        if self.first_error is None:
            self.first_error = error
        if self._on_error is not None:
            try:
                self._on_error(error)
            except Exception as another:
                report(f"aioirqfd: on_error raised: {self._on_error!r}", another)

    def abandoned(self, who: _Named, count: int, error: Exception) -> None:
        """Signals could not be put back into their eventfd."""
        self.trace("interrupt_abandoned", who, count=count, **failure(error))
        self.trouble(f"{count} signals of gsi {who.gsi} could not be put back into {who.eventfd!r}", error)

    def trouble(self, message: str, error: BaseException) -> None:
        """Something is wrong for good: where nobody listens, the loop's exception handler hears of it."""
        if not self._heard:
            report(f"aioirqfd: {message}", error)

    def call_later(self, seconds: float, call: Callable[[], object]) -> None:
        """Call it on the loop, if that goes on."""
        if self._life.open and self._poller is not None:
            self._poller.loop.call_later(seconds, call)

    def call_soon(self, call: Callable[[], object]) -> bool:
        """Call it after the pass that is under way; False: none is, or not in this thread."""
        poller = self._poller
        if poller is None or not poller.drain.dispatching or loop_here() is not poller.loop:
            return False
        poller.loop.call_soon(call)
        return True


def _raise(error: BaseException) -> None:
    raise error
