"""Trouble that shows in the records of a flight recorder, named in a sentence each, the worst first."""

from __future__ import annotations

import re
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, NamedTuple

from aioirqfd.flight import FlightKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aioirqfd.tracing.flight_log import FlightLog, FlightRecord
    from aioirqfd.tracing.journey import Irq, Journey, Journeys, Queue

STORM: Final = 1000
"""Signals of one irqfd within a tenth of a second."""
_STORM_NS: Final = 100_000_000
_WORKER: Final = "it waits for a worker of the queue"
_WHY: Final = {
    FlightKind.SEEN: "the sink was called with it and has not returned",
    FlightKind.WAKEUP: _WORKER,
    FlightKind.HELD: "it is held: the queue is full",
    FlightKind.DEFERRED: "the sink would not take it at once, and the work queue has it",
    FlightKind.HANDLER_ENDED: "its handler has returned, and the sink has not taken it",
    FlightKind.HANDLER_RAISED: "its handler raised, and it is tried again",
    FlightKind.FAILED: "the sink or its handler has raised, and it is tried again",
    FlightKind.BROKEN: "the sink or its handler has failed for good; resume() tries again",
    FlightKind.UNROUTED: _WORKER,
    FlightKind.RAISED: "its line was raised, and the sink has not returned",
}
"""Where it stands after its last step, if nothing else is known to hold it."""
_QUEUED: Final = frozenset({FlightKind.WAKEUP, FlightKind.HELD, FlightKind.DEFERRED, FlightKind.UNROUTED})
_MOST_NAMED: Final = 3
_PIN: Final = "pin"
"""What the irqfd of a PCI device's interrupt pin is called."""
_VECTOR: Final = "vector "
"""What that of a vector begins with."""
VECTORS: Final = re.compile(r"(?P<device>.*)-vectors(?P<number> \d+)?")
"""What the manager of a PCI device's interrupts is called; one of several of the same name has a number."""


class Trouble(NamedTuple):
    """One trouble.

    Attributes:
        what: Which: ``not_injected``, ``not_acknowledged``, ``storm``, ``long_wait``, ``no_interrupt``, ``no_completion``,
            ``dropped``, ``failed``, ``handler_raised``, ``not_completed``, ``wrong_vector``, ``not_sent``.
        text: A sentence.
        time_ns: When it began.
        gsi: Whose; None: it is a queue's.
    """

    what: str
    text: str
    time_ns: int
    gsi: int | None = None


def seconds(ns: int) -> str:
    """A span of time, as people read it."""
    for unit, size in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if abs(ns) >= size:
            return f"{ns / size:.3g} {unit}" if abs(ns) < 1000 * size else f"{ns / size:.0f} {unit}"
    return f"{ns} ns"


def name(irq: Irq, log: FlightLog) -> str:
    """An interrupt, as people call it."""
    given, where = called(irq, log), f"fd {irq.fd}, {irq.source or 'unnamed'}"
    return f"{given} (gsi {irq.gsi}, {where})" if given else f"gsi {irq.gsi} ({where})"


def called(irq: tuple[str, int, int], log: FlightLog) -> str | None:
    """Its name: the irqfd's own, or else the gsi's; None: it has none. By the manager's name, the gsi and the fd."""
    return log.irqfds.get(irq) or log.gsis.get(irq[1])


def troubles(log: FlightLog, journeys: Journeys, *, slow_ns: int) -> list[Trouble]:
    """All that there is.

    Args:
        log: The file, for its names and its end.
        journeys: What is looked at.
        slow_ns: Waiting that long is trouble.
    """
    return [
        *_not_injected(log, journeys, slow_ns),
        *_not_acknowledged(log, journeys, slow_ns),
        *_counted(log, journeys),
        *_of_queues(log, journeys, slow_ns),
        *_astray(log, journeys, slow_ns),
        *_storms(log, journeys),
        *_long_waits(log, journeys, slow_ns),
    ]


def _at(log: FlightLog, time_ns: int) -> str:
    return f"at {(time_ns - log.header.monotonic_ns) / 1e9:+.6f} s"


def _not_injected(log: FlightLog, journeys: Journeys, slow_ns: int) -> Iterator[Trouble]:
    for journey in journeys.open():
        age = journeys.until_ns - journey.at_ns
        # What was on its way when the program was killed, or just now, is none.
        if age >= slow_ns or log.closed:
            why = _why(journey, log, journeys)
            text = f"{name(journey.irq, log)}: signalled {_at(log, journey.at_ns)} and not injected for {seconds(age)}: {why}"
            yield Trouble("not_injected", text, journey.at_ns, journey.irq.gsi)


def _why(journey: Journey, log: FlightLog, journeys: Journeys) -> str:
    """What it waits for: in the order in which a signal comes by, as :mod:`aioirqfd.irqfd.explain` has it."""
    irq = journey.irq
    if journey.running is not None:
        return _said(journey.running, journeys)
    for since, text in (
        (journeys.paused.get(irq.source), "its manager is paused since {}; resume() goes on"),
        (journeys.masked.get(irq), "it is masked since {}"),
        (journeys.unrouted.get(irq), "its gsi has no route, it is held since {}; give it one with set_route()"),
    ):
        if since is not None:
            return text.format(_at(log, since)[3:])
    if irq in journeys.broken:
        return _WHY[FlightKind.BROKEN]
    ahead = journeys.ahead(journey)
    if ahead is not None:
        standing = "" if ahead.running is None else f": {_said(ahead.running, journeys)}"
        return f"it waits for the one before, signalled {_at(log, ahead.at_ns)}{standing}"
    last, before = ([step.kind for step in reversed(journey.steps) if step.kind in _WHY] + [None, None])[:2]
    if last is None:
        return "its beginning was overwritten"
    if last is FlightKind.HELD and not journeys.whole:
        return "it is held: the manager is paused, or its queue is full"
    if last is FlightKind.FAILED and before is FlightKind.HANDLER_RAISED:
        last = before  # of which the one is the other's consequence
    return _WHY[last] + (_workers(journey, log, journeys) if last in _QUEUED else "")


def _said(step: FlightRecord, journeys: Journeys) -> str:
    """Of what runs: what, and for how long."""
    age = seconds(journeys.until_ns - step.time_ns)
    if step.kind is FlightKind.HANDLER_BEGUN:
        return f"its handler was called and has not returned for {age}"
    return f"the sink has had it for {age} and has not answered"


def _workers(journey: Journey, log: FlightLog, journeys: Journeys) -> str:
    """What the workers of its queue do meanwhile, as far as it is known: a queue may be shared."""
    running = [one for one in journeys.running(journey.irq.source) if one.irq != journey.irq]
    if not running:
        return ""
    said = [f"{name(one.irq, log)}, {_said(one.running, journeys)}" for one in running[:_MOST_NAMED] if one.running]
    more = f"; and {len(running) - _MOST_NAMED} more" if len(running) > _MOST_NAMED else ""
    return f"; the workers have {'; '.join(said)}{more}"


def _not_acknowledged(log: FlightLog, journeys: Journeys, slow_ns: int) -> Iterator[Trouble]:
    for (source, gsi), (raised_ns, journey) in journeys.raised.items():
        age = journeys.until_ns - raised_ns
        if age >= slow_ns:
            given = log.gsis.get(gsi) if journey is None else called(journey.irq, log)
            who = f"{given} (gsi {gsi}, {source})" if given else f"gsi {gsi} ({source})"
            text = f"{who}: the line was raised {_at(log, raised_ns)} and never acknowledged, for {seconds(age)}"
            yield Trouble("not_acknowledged", text, raised_ns, gsi)


_COUNTED: Final = {
    FlightKind.DROPPED: ("dropped", "{} dropped, for there was no route; give it one with set_route()"),
    FlightKind.FAILED: ("failed", "{} attempts to inject failed"),
    FlightKind.HANDLER_RAISED: ("handler_raised", "its handler raised {} times"),
}


def _counted(log: FlightLog, journeys: Journeys) -> Iterator[Trouble]:
    for kind, (what, sentence) in _COUNTED.items():
        counts: Counter[Irq] = Counter()
        first: dict[Irq, int] = {}
        for journey in journeys.all:
            for step in journey.steps:
                if step.kind is kind:
                    counts[journey.irq] += 1
                    first.setdefault(journey.irq, step.time_ns)
        for irq, count in counts.most_common():
            yield Trouble(
                what, f"{name(irq, log)}: {sentence.format(count)}, first {_at(log, first[irq])}", first[irq], irq.gsi
            )


def _of_queues(log: FlightLog, journeys: Journeys, slow_ns: int) -> Iterator[Trouble]:
    end = journeys.until_ns
    for source, queue in journeys.queues.items():
        late = [one for one in queue.uncalled if one.completed_ns is not None and end - one.completed_ns >= slow_ns]
        if late and late[0].completed_ns is not None:
            count = sum(one.count for one in late)
            why = _another(queue, late[0].completed_ns, journeys) or "right where the driver has asked for none"
            text = (
                f"{source}: {count} completions without an interrupt, the first {_at(log, late[0].completed_ns)}; {why}"
            )
            yield Trouble("no_interrupt", text, late[0].completed_ns)
        if queue.idle_calls:
            count, first = len(queue.idle_calls), queue.idle_calls[0]
            text = f"{source}: {count} interrupts without a completion, the first {_at(log, first)}"
            yield Trouble("no_completion", text, first)
        stuck = [one for one in queue.open.values() if one.begun_ns is not None and end - one.begun_ns >= slow_ns]
        if stuck and (begun := stuck[0].begun_ns) is not None:
            text = f"{source}: {len(stuck)} requests were begun and not completed, the oldest {_at(log, begun)}, {seconds(end - begun)} ago"
            yield Trouble("not_completed", text, begun)


def _another(queue: Queue, completed_ns: int, journeys: Journeys) -> str | None:
    """Which other queue of the device was interrupted, for nothing of its own, after a completion that nobody was told of."""
    device = queue.source.rpartition(" queue ")[0]
    for other in journeys.queues.values():
        calls = [at for at in other.idle_calls if at >= completed_ns]
        if calls and other is not queue and other.source.rpartition(" queue ")[0] == device:
            return f"{other.source} was interrupted {len(calls)} times in its place: the wrong vector"
    return None


def _astray(log: FlightLog, journeys: Journeys, slow_ns: int) -> Iterator[Trouble]:
    """A PCI device's vector that was injected, and another one went out in its place, or none."""
    injected: dict[tuple[str, int], list[Journey]] = {}
    for journey in journeys.all:
        # The pin interrupts once for many.
        if journey.injected_ns is not None and called(journey.irq, log) != _PIN:
            injected.setdefault((journey.irq.source, journey.irq.gsi), []).append(journey)
    surplus = {key: len(sent) - len(injected.get(key, ())) for key, sent in journeys.vectors.items()}
    for (source, vector), own in injected.items():
        sent = journeys.vectors.get((source, vector), [])
        missing = len(own) - len(sent)
        others = [other for (whose, other), more in surplus.items() if whose == source and more > 0]
        if journeys.whole and missing > 0 and others:
            text = (
                f"{name(own[0].irq, log)}: {missing} of {len(own)} interrupts went out by vector {others[0]},"
                f" which nobody had signalled, the first of all {_at(log, own[0].at_ns)}: the wrong vector"
            )
            yield Trouble("wrong_vector", text, own[0].at_ns, vector)
        elif VECTORS.fullmatch(source) and (called(own[0].irq, log) or "").startswith(_VECTOR):
            # Each goes out while it is injected; one that came later tells of all before it.
            since = max([journeys.gap_ns, *sent[-1:]])
            kept = [one for one in own if one.whole and _before_injection(one) > since]
            if kept and (begun := kept[0].injected_ns) is not None and journeys.until_ns - begun >= slow_ns:
                text = (
                    f"{name(kept[0].irq, log)}: {len(kept)} injected and not sent on, the first {_at(log, begun)},"
                    f" {seconds(journeys.until_ns - begun)} ago: a fault that was set drops it, or keeps it back"
                )
                yield Trouble("not_sent", text, begun, vector)


def _before_injection(journey: Journey) -> int:
    """The time of the step before the sink had it."""
    return max(step.time_ns for step in journey.steps if step.kind is not FlightKind.INJECTED)


def _storms(log: FlightLog, journeys: Journeys) -> Iterator[Trouble]:
    times: dict[Irq, deque[int]] = {}
    worst: dict[Irq, tuple[int, int]] = {}
    for journey in journeys.all:
        window = times.setdefault(journey.irq, deque())
        window.append(journey.at_ns)
        while window[-1] - window[0] > _STORM_NS:
            window.popleft()
        if len(window) >= STORM and len(window) > worst.get(journey.irq, (0, 0))[0]:
            worst[journey.irq] = len(window), window[0]
    for irq, (count, time_ns) in worst.items():
        text = f"{name(irq, log)}: a storm, {count} interrupts within 0.1 s from {_at(log, time_ns)[3:]}"
        yield Trouble("storm", text, time_ns, irq.gsi)


def _long_waits(log: FlightLog, journeys: Journeys, slow_ns: int) -> Iterator[Trouble]:
    slow: dict[Irq, list[Journey]] = {}
    for journey in journeys.all:
        if (journey.waited_ns or 0) >= slow_ns:
            slow.setdefault(journey.irq, []).append(journey)
    for irq, found in slow.items():
        worst = max(found, key=lambda one: one.waited_ns or 0)
        text = (
            f"{name(irq, log)}: {len(found)} waited {seconds(slow_ns)} or longer, the longest "
            f"{seconds(worst.waited_ns or 0)} {_at(log, worst.at_ns)}"
        )
        yield Trouble("long_wait", text, worst.at_ns, irq.gsi)
