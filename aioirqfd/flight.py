"""What the flight recorder has a record of, and how a part of the package comes to write one.

A part that is given a tracer asks :func:`flight_of` once, when it is made. Where the tracer is no flight recorder the answer is None, and
nothing more is done.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, Protocol, cast, final

from aioirqfd.counter import FlightRing

if TYPE_CHECKING:
    from aioirqfd.tracer import Tracer


class FlightKind(enum.IntEnum):
    """What a record is of. The numbers are the file format's, and stay."""

    INJECTED = 1
    """The sink took it."""
    DEFERRED = 2
    """The sink would not take it at once: to the work queue."""
    HELD = 3
    """The manager is paused or its queue full: it waits in its eventfd."""
    WAKEUP = 4
    """A signal was seen, and goes to a handler, or the slow way for another reason."""
    SEEN = 5
    """A signal was seen, and goes to the sink at once."""
    HANDLER_BEGUN = 6
    """A wakeup handler was called."""
    HANDLER_ENDED = 7
    """It returned."""
    HANDLER_RAISED = 8
    """It raised, or was cancelled."""
    DROPPED = 9
    """There is no route: the signal is gone, as in the kernel."""
    FAILED = 10
    """An attempt to inject has raised."""
    ACKED = 11
    """The guest's end of interrupt."""
    RAISED = 12
    """The line goes up."""
    LOWERED = 13
    """The line is down."""
    MASKED = 14
    """Signals are kept from here on."""
    UNMASKED = 15
    """And no longer."""
    ROUTED = 16
    """The gsi goes elsewhere; ``value`` is the number of its routes."""
    BOUND = 17
    """An eventfd was assigned to a gsi; ``value`` is the kernel's number of it."""
    UNBOUND = 18
    """It was deassigned."""
    KICK = 19
    """A queue of a device was looked into. The key of this and the next five is the queue's number."""
    REQUEST_BEGUN = 20
    """A request was taken from the ring; ``value`` is its head."""
    REQUEST_COMPLETED = 21
    """Its answer is in the ring; ``value`` is its head."""
    REQUESTS_SERVED = 22
    """So many requests (``value``) were taken and answered without Python; the time is that of the last."""
    CALL = 23
    """The driver is interrupted."""
    REQUEST_FAILED = 24
    """A request's handler raised; ``value`` is its head."""
    REGISTER_READ = 25
    """A PCI device's region (key) was read; ``value`` is the offset."""
    REGISTER_WRITTEN = 26
    """It was written."""
    VECTOR = 27
    """A PCI device interrupts by a vector (key); 4294967295 is the pin."""
    INJECTING = 28
    """The sink's ``inject()`` is awaited with it. What is signalled from here on is another interrupt."""
    UNROUTED = 29
    """It waits for its gsi to get a route."""
    OFFLOADED = 30
    """The sink watches the eventfd by itself from here on (KVM does): what is signalled has no record."""
    RECLAIMED = 31
    """And no longer: this process watches it again."""
    PAUSED = 32
    """The manager injects nothing from here on; the key is the number of its irqfds."""
    RESUMED = 33
    """It goes on; the key is the number of those that were held."""
    BROKEN = 34
    """The sink or a handler has failed for good: the irqfd is given up until ``resume()``."""

    @property
    def event(self) -> str:
        """Its name as an event, as :meth:`FlightRecorder.replay <aioirqfd.tracing.FlightRecorder.replay>` tells it."""
        return _EVENTS.get(self, self.name.lower())


_EVENTS = {
    FlightKind.INJECTED: "interrupt_injected",
    FlightKind.DEFERRED: "interrupt_deferred",
    FlightKind.HELD: "interrupt_held",
    FlightKind.WAKEUP: "interrupt_wakeup",
    FlightKind.SEEN: "interrupt_seen",
    FlightKind.DROPPED: "interrupt_dropped",
    FlightKind.FAILED: "injection_failed",
    FlightKind.ACKED: "line_acked",
    FlightKind.RAISED: "line_raised",
    FlightKind.LOWERED: "line_lowered",
    FlightKind.MASKED: "irqfd_masked",
    FlightKind.UNMASKED: "irqfd_unmasked",
    FlightKind.ROUTED: "route_changed",
    FlightKind.BOUND: "irqfd_assigned",
    FlightKind.UNBOUND: "irqfd_deassigned",
    FlightKind.KICK: "queue_kicked",
    FlightKind.CALL: "call_written",
    FlightKind.UNROUTED: "interrupt_held",
    FlightKind.OFFLOADED: "irqfd_offloaded",
    FlightKind.RECLAIMED: "irqfd_reclaimed",
    FlightKind.PAUSED: "manager_paused",
    FlightKind.RESUMED: "manager_resumed",
    FlightKind.BROKEN: "irqfd_broken",
}


class Recorder(Protocol):
    """What is known here of a flight recorder, which is defined on a floor above."""

    ring: FlightRing

    def source(self, name: str, /, *, like: int | None = None) -> int:
        """A number for whoever is called so; ``like``: who is of the same device."""
        ...

    def name_irqfd(self, source: int, gsi: int, fd: int, name: str | None, /) -> None:
        """What an irqfd is called that this one writes of; None: nothing."""
        ...

    def waits(self, source: int, /) -> dict[tuple[int, int], list[int]]:
        """How long interrupts that it wrote waited, ns, the shortest first; by gsi and eventfd."""
        ...


@final
class Flight:
    """One who writes records: a manager, a queue, a device.

    Attributes:
        recorder: Whose they are.
        ring: Where they go.
        source: The number in each of them.
    """

    __slots__ = ("recorder", "ring", "source")

    def __init__(self, recorder: Recorder, source: int) -> None:
        self.recorder = recorder
        self.ring = recorder.ring
        self.source = source

    def put(self, kind: FlightKind, key: int, value: int = 0, *, fd: int = -1, flags: int = 0) -> None:
        """Write a record, now. Any thread."""
        self.ring.put(kind, key, fd, value, self.source, flags)

    def bound(self, gsi: int, value: int, fd: int, name: str | None) -> None:
        """An irqfd of this name was bound. Any thread."""
        self.recorder.name_irqfd(self.source, gsi, fd, name)  # first: who reads the record finds the name
        self.put(FlightKind.BOUND, gsi, value, fd=fd)


def flight_of(tracer: Tracer, name: str) -> Flight | None:
    """Whoever is called ``name`` writes into this tracer's ring; None: it has none.

    A tracer that stands before another one has that as its attribute ``tracer``, and is looked behind.
    """
    recorder = _recorder(tracer)
    return None if recorder is None else Flight(recorder, recorder.source(name))


def is_recorded(tracer: Tracer) -> bool:
    """Whether this tracer is a flight recorder, or stands before one."""
    return _recorder(tracer) is not None


_DEEPEST: Final = 16
"""Tracers that may stand before each other."""


def _recorder(tracer: object) -> Recorder | None:
    # By what it has, not by its type: that is defined on a floor above. One that has every attribute, a Mock say, has no end.
    for _ in range(_DEEPEST):
        if isinstance(getattr(tracer, "ring", None), FlightRing):
            return cast("Recorder", tracer)
        tracer = getattr(tracer, "tracer", None)
    return None
