"""What the records of a flight recorder say of each interrupt: from its signal to its injection, and to the end of interrupt.

Of one irqfd there are two at a time at most: one whose handler runs, or that is being injected, and one that was signalled meanwhile.
What is signalled while another signal waits is the same interrupt. Where the attempt fails before a handler has returned, the next one
takes both: see :class:`aioirqfd.irqfd.debt.Debt`.

The records may begin in the middle, for older ones were overwritten. A journey whose beginning is not there is not whole, and nothing
is said of its time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, final

from aioirqfd.flight import FlightKind
from aioirqfd.tracing.flight_log import TURNED_ON

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aioirqfd.tracing.flight_log import FlightLog, FlightRecord

BEGINNINGS = frozenset({FlightKind.SEEN, FlightKind.WAKEUP})
"""Of a signal that was read from its eventfd."""
_ENDS = frozenset({FlightKind.INJECTED, FlightKind.DROPPED})
_GONE = frozenset({FlightKind.UNBOUND, FlightKind.OFFLOADED})
"""What waits is not this irqfd's any more: the next one's of its eventfd, or the kernel's."""
_FAILURES = frozenset({FlightKind.HANDLER_RAISED, FlightKind.FAILED, FlightKind.BROKEN})


class Irq(NamedTuple):
    """Whose interrupt it is.

    Attributes:
        source: The manager's name.
        gsi: The gsi.
        fd: The eventfd.
    """

    source: str
    gsi: int
    fd: int


@final
@dataclass(slots=True)
class Journey:
    """One interrupt.

    Attributes:
        irq: Whose it is.
        steps: Its records, in order.
        whole: Whether its beginning is there.
        signals: How many were seen; each at least one.
        injected_ns: When the sink had it; None: it has not.
        ended: It will not be injected: it was dropped, or the irqfd deassigned.
        raised_ns: When its line went up.
        acked_ns: When the guest acknowledged it.
        taken: Whether what is signalled from here on is another interrupt.
        told: Whether that stays so when the attempt fails: a handler has returned.
        running: The step that it is in: its handler was called, or the sink's ``inject()``. None: it waits.
    """

    irq: Irq
    steps: list[FlightRecord]
    whole: bool
    signals: int = 0
    injected_ns: int | None = None
    ended: bool = False
    raised_ns: int | None = None
    acked_ns: int | None = None
    taken: bool = False
    told: bool = False
    running: FlightRecord | None = None

    @property
    def at_ns(self) -> int:
        """The time of its first record."""
        return self.steps[0].time_ns

    @property
    def waited_ns(self) -> int | None:
        """From the first record to the injection."""
        return self.injected_ns - self.at_ns if self.whole and self.injected_ns is not None else None

    def add(self, record: FlightRecord) -> None:
        """One more step."""
        self.steps.append(record)
        before, kind = self.running, record.kind
        if kind is FlightKind.HANDLER_BEGUN or kind is FlightKind.INJECTING:
            # Twice in one attempt: the first of its routes has had it, and a retry goes on behind that.
            self.told = self.told or (before is not None and before.kind is FlightKind.INJECTING)
            self.taken, self.running = True, record
        elif kind is FlightKind.HANDLER_ENDED:
            self.taken = self.told = True
            self.running = None
        elif kind in _FAILURES:
            self.taken, self.running = self.told, None


@final
@dataclass(slots=True)
class Request:
    """One request of a device's queue, or several that were served without Python.

    Attributes:
        source: The device's queue.
        queue: Its number.
        head: The request's; None: served without Python.
        begun_ns: When it was taken from the ring; None: that is not there.
        completed_ns: When its answer was in the ring; None: it is not.
        called_ns: When the driver was interrupted after that; None: it was not.
        count: How many.
    """

    source: str
    queue: int
    head: int | None
    begun_ns: int | None
    completed_ns: int | None = None
    called_ns: int | None = None
    count: int = 1

    @property
    def at_ns(self) -> int:
        """The time of its first record."""
        return self.begun_ns or self.completed_ns or 0


@final
@dataclass(slots=True)
class Queue:
    """What a device's queue has done.

    Attributes:
        source: Its name in the file.
        number: Its number.
        kicks: When it was looked into.
        requests: All of them.
        calls: When the driver was interrupted.
        idle_calls: Of these, such as had no completion since the one before.
    """

    source: str
    number: int
    kicks: list[int] = field(default_factory=list[int])
    requests: list[Request] = field(default_factory=list[Request])
    calls: list[int] = field(default_factory=list[int])
    idle_calls: list[int] = field(default_factory=list[int])
    open: dict[int, Request] = field(default_factory=dict[int, Request])
    uncalled: list[Request] = field(default_factory=list[Request])


@final
class Journeys:
    """The journeys of a log.

    Args:
        records: In order.
        whole: The records go back to the beginning: what has no beginning there never had one.
        until_ns: Nothing more has happened up to this time; the last record's where that is later.

    Attributes:
        all: In the order of their first records.
        queues: By source.
        vectors: By source and vector, when a PCI device interrupted by it.
        raised: By source and gsi, when a line that is up went up.
        masked: Since when irqfds are masked.
        unrouted: Since when they wait for a route.
        offloaded: Since when the sink watches their eventfds by itself.
        broken: Since when they are given up.
        paused: By source, since when a manager is paused.
        whole: The records go back to the beginning.
        gap_ns: When the recorder was last turned on; 0: never. What was before may have gone on meanwhile.
        begun_ns: The first record's time.
        ended_ns: The last one's.
        until_ns: What is under way then has had no further step.
    """

    def __init__(self, records: Iterable[FlightRecord], *, whole: bool = True, until_ns: int = 0) -> None:
        self.all: list[Journey] = []
        self.queues: dict[str, Queue] = {}
        self.vectors: dict[tuple[str, int], list[int]] = {}
        self.raised: dict[tuple[str, int], tuple[int, Journey | None]] = {}
        self.masked: dict[Irq, int] = {}
        self.unrouted: dict[Irq, int] = {}
        self.offloaded: dict[Irq, int] = {}
        self.broken: dict[Irq, int] = {}
        self.paused: dict[str, int] = {}
        self.begun_ns = self.ended_ns = self.gap_ns = 0
        self.whole = whole
        self._open: dict[Irq, deque[Journey]] = {}
        self._last: dict[tuple[str, int], Journey] = {}
        for record in records:
            self._add(record)
        self.until_ns = max(self.ended_ns, until_ns)

    @classmethod
    def of(cls, log: FlightLog) -> Journeys:
        """Those of a file."""
        return cls(log.records, whole=not log.overwritten, until_ns=log.until_ns)

    def open(self) -> list[Journey]:
        """Those that are not injected, and may be yet."""
        return [journey for journeys in self._open.values() for journey in journeys]

    def ahead(self, journey: Journey) -> Journey | None:
        """The one before it, of the same irqfd, which is not injected yet."""
        first = self._open[journey.irq][0]
        return None if first is journey else first

    def running(self, source: str) -> list[Journey]:
        """Those of a manager whose handler runs, or that the sink has and has not taken."""
        return [one for one in self.open() if one.irq.source == source and one.running is not None]

    def _add(self, record: FlightRecord) -> None:
        self.begun_ns = self.begun_ns or record.time_ns
        self.ended_ns = max(self.ended_ns, record.time_ns)
        kind, fields = record.kind, record.fields
        if kind is None:
            if record.event == TURNED_ON:
                self._lose(record.time_ns)
            return
        source = str(fields.get("source", ""))
        if "queue" in fields:
            self._queue(record, source, as_number(fields["queue"]))
        elif "gsi" in fields:
            irq = Irq(source, as_number(fields["gsi"]), as_number(fields.get("fd", -1)))
            if kind in {FlightKind.RAISED, FlightKind.ACKED, FlightKind.LOWERED}:
                self._line(record, kind, irq)
            elif kind is FlightKind.ROUTED:
                if fields.get("routes"):
                    for one in [one for one in self.unrouted if (one.source, one.gsi) == (source, irq.gsi)]:
                        del self.unrouted[one]
            elif kind is not FlightKind.BOUND:
                self._note(record, kind, irq)
        elif kind is FlightKind.VECTOR:
            self.vectors.setdefault((source, as_number(fields["vector"])), []).append(record.time_ns)
        elif kind is FlightKind.PAUSED:
            self.paused[source] = record.time_ns
        elif kind is FlightKind.RESUMED:
            self.paused.pop(source, None)

    def _note(self, record: FlightRecord, kind: FlightKind, irq: Irq) -> None:
        """How the irqfd stands from here on; and a step of its interrupt, where it is one."""
        match kind:
            case FlightKind.MASKED:
                self.masked[irq] = record.time_ns
                return
            case FlightKind.UNMASKED:
                self.masked.pop(irq, None)
                return
            case FlightKind.RECLAIMED:
                self.offloaded.pop(irq, None)
                return
            case FlightKind.UNROUTED:
                self.unrouted[irq] = record.time_ns
            case FlightKind.OFFLOADED:
                self.offloaded[irq] = record.time_ns
            case FlightKind.BROKEN:
                self.broken[irq] = record.time_ns
            case FlightKind.UNBOUND:
                for state in (self.masked, self.unrouted, self.offloaded, self.broken):
                    state.pop(irq, None)
            case FlightKind.HANDLER_BEGUN | FlightKind.INJECTING | FlightKind.INJECTED:
                self.unrouted.pop(irq, None)
                self.broken.pop(irq, None)
            case _:
                pass
        self._step(record, kind, irq)

    def _lose(self, time_ns: int) -> None:
        """The recorder was off: what became of all that was under way is not known."""
        for journey in self.open():
            journey.ended = True
        self._open.clear()
        self.raised.clear()
        for state in (self.masked, self.unrouted, self.offloaded, self.broken, self.paused):
            state.clear()
        for queue in self.queues.values():
            queue.open.clear()
            queue.uncalled.clear()
        self.whole, self.gap_ns = False, time_ns

    def _step(self, record: FlightRecord, kind: FlightKind, irq: Irq) -> None:
        waiting = self._open.setdefault(irq, deque())
        if kind in _GONE:
            for journey in waiting:
                journey.add(record)
                journey.ended = True
            waiting.clear()
            return
        fresh = kind in BEGINNINGS or kind is FlightKind.HELD
        found: Journey | None = None
        if not fresh:
            found = waiting[0] if waiting else None
        elif waiting and not waiting[-1].taken:
            found = waiting[-1]
        journey = found or Journey(irq, [], whole=fresh)
        if found is None:
            self.all.append(journey)
            waiting.append(journey)
            self._last[irq.source, irq.gsi] = journey
        journey.add(record)
        if kind in BEGINNINGS:
            journey.signals += as_number(record.fields.get("count", 1))
        if kind in _ENDS:
            waiting.popleft()
            journey.ended = kind is not FlightKind.INJECTED
            if kind is FlightKind.INJECTED:
                journey.injected_ns = record.time_ns
        elif kind in _FAILURES and not journey.taken and len(waiting) > 1:
            self._join(journey, waiting.pop())

    def _join(self, journey: Journey, later: Journey) -> None:
        """The next attempt takes both."""
        del self.all[next(place for place in range(len(self.all) - 1, -1, -1) if self.all[place] is later)]
        journey.steps[-1:-1] = later.steps  # before the failure
        journey.signals += later.signals
        self._last[journey.irq.source, journey.irq.gsi] = journey

    def _line(self, record: FlightRecord, kind: FlightKind, irq: Irq) -> None:
        key = irq.source, irq.gsi
        if kind is FlightKind.RAISED:
            journey = self._last.get(key)
            if journey is not None and journey.raised_ns is None:
                journey.raised_ns = record.time_ns
                journey.steps.append(record)
            self.raised[key] = record.time_ns, journey
        elif kind is FlightKind.ACKED:
            _, journey = self.raised.get(key, (0, None))
            if journey is not None and journey.acked_ns is None:
                journey.acked_ns = record.time_ns
                journey.steps.append(record)
        else:
            self.raised.pop(key, None)

    def _queue(self, record: FlightRecord, source: str, number: int) -> None:
        queue = self.queues.setdefault(source, Queue(source, number))
        now, fields = record.time_ns, record.fields
        match record.kind:
            case FlightKind.KICK:
                queue.kicks.append(now)
            case FlightKind.REQUEST_BEGUN:
                head = as_number(fields.get("head"))
                request = queue.open[head] = Request(source, number, head, now)
                queue.requests.append(request)
            case FlightKind.REQUEST_COMPLETED:
                head = as_number(fields.get("head"))
                if head not in queue.open:
                    queue.requests.append(Request(source, number, head, None))
                    queue.open[head] = queue.requests[-1]
                request = queue.open.pop(head)
                request.completed_ns = now
                queue.uncalled.append(request)
            case FlightKind.REQUESTS_SERVED:
                request = Request(source, number, None, None, now, count=as_number(fields.get("count")))
                queue.requests.append(request)
                queue.uncalled.append(request)
            case FlightKind.CALL:
                queue.calls.append(now)
                # Of the first one it is not known, where the records begin in the middle.
                if not queue.uncalled and (self.whole or len(queue.calls) > 1):
                    queue.idle_calls.append(now)
                for request in queue.uncalled:
                    request.called_ns = now
                queue.uncalled.clear()
            case _:
                pass


def as_number(value: object) -> int:
    """A field that is a number in any file that this package has written."""
    return value if isinstance(value, int) else -1
