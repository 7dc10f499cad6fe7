"""What the records say of each interrupt, and the trouble that they show, each kind by its sentence."""

from __future__ import annotations

import dataclasses

import pytest

from aioirqfd.flight import FlightKind
from aioirqfd.tracing import FlightLog, FlightRecord
from aioirqfd.tracing.flight_format import FlightHeader
from aioirqfd.tracing.journey import Journey, Journeys
from aioirqfd.tracing.trouble import troubles

K = FlightKind
MS = 1_000_000


def log(*steps: tuple[int, FlightKind, dict[str, object]], closed: bool = False, capacity: int = 1024) -> FlightLog:
    """A log of these steps; the file was made at the time 0."""
    header = FlightHeader.plan(capacity, 4, pid=1, monotonic_ns=0, realtime_ns=0)
    if closed:
        header = FlightHeader(**{name: getattr(header, name) for name in header.__slots__} | {"closed_ns": 1})
    records = [
        FlightRecord(time_ns, kind.event, fields, number, kind) for number, (time_ns, kind, fields) in enumerate(steps)
    ]
    return FlightLog(header, records, len(records), 0, 0, {}, {5: "timer"})


def irq(time_ns: int, kind: FlightKind, gsi: int = 5, *, fd: int = 7, count: int = 1):
    return time_ns, kind, {"gsi": gsi, "fd": fd, "count": count, "source": "Sink"}


def line(time_ns: int, kind: FlightKind, gsi: int = 5):
    return time_ns, kind, {"gsi": gsi, "fd": -1, "source": "Sink", "routes": 1}


def manager(time_ns: int, kind: FlightKind):
    return time_ns, kind, {"source": "Sink"}


def queue(time_ns: int, kind: FlightKind, **fields: object):
    return time_ns, kind, {"queue": 0, "source": "Disk queue 0", **fields}


def shape(journey: Journey) -> tuple[list[str], int, int | None]:
    return [step.event for step in journey.steps], journey.signals, journey.waited_ns


def named(of: FlightLog, fd: int = 7, name: str = "uart") -> FlightLog:
    """The same, where the irqfd of this fd has a name."""
    return dataclasses.replace(of, irqfds={("Sink", 5, fd): name})


def found(of: FlightLog) -> list[tuple[str, str]]:
    return [(trouble.what, trouble.text) for trouble in troubles(of, Journeys.of(of), slow_ns=10 * MS)]


def test_an_irqfd_is_called_by_its_name():
    of = named(log(irq(0, K.SEEN), irq(0, K.SEEN, fd=8), irq(20 * MS, K.FAILED, fd=9)))
    one, two, three = found(of)[:3]
    assert one[1].startswith("uart (gsi 5, fd 7, Sink): signalled")
    assert two[1].startswith("timer (gsi 5, fd 8, Sink): signalled")
    assert three[1].startswith("timer (gsi 5, fd 9, Sink): 1 attempts")


def test_a_line_that_is_not_acknowledged_is_its_irqfds():
    of = named(log(irq(0, K.SEEN), line(1, K.RAISED), irq(2, K.INJECTED), line(20 * MS, K.ROUTED, 6)))
    assert found(of) == [
        (
            "not_acknowledged",
            "uart (gsi 5, Sink): the line was raised at +0.000000 s and never acknowledged, for 20 ms",
        )
    ]


def test_a_plain_interrupt():
    of = log(irq(100, K.SEEN, count=3), irq(150, K.INJECTED, count=3))
    assert [shape(one) for one in Journeys.of(of).all] == [(["interrupt_seen", "interrupt_injected"], 3, 50)]
    assert found(of) == []


def test_what_is_signalled_while_it_waits_is_the_same_interrupt():
    of = log(irq(1, K.SEEN), irq(2, K.DEFERRED), irq(3, K.SEEN, count=2), irq(9, K.INJECTED))
    events = ["interrupt_seen", "interrupt_deferred", "interrupt_seen", "interrupt_injected"]
    assert [shape(one) for one in Journeys.of(of).all] == [(events, 3, 8)]


def test_what_is_signalled_while_the_handler_runs_is_another_one():
    of = log(
        irq(1, K.WAKEUP),
        irq(2, K.HANDLER_BEGUN),
        irq(3, K.WAKEUP, count=4),
        irq(4, K.HANDLER_ENDED),
        irq(5, K.INJECTED),
        irq(6, K.HANDLER_BEGUN),
        irq(7, K.HANDLER_ENDED),
        irq(8, K.INJECTED),
    )
    handled = ["interrupt_wakeup", "handler_begun", "handler_ended", "interrupt_injected"]
    assert [shape(one) for one in Journeys.of(of).all] == [(handled, 1, 4), (handled, 4, 5)]


def test_two_irqfds_of_one_gsi_are_told_apart_by_their_eventfds():
    of = log(irq(1, K.SEEN, fd=7), irq(2, K.SEEN, fd=8), irq(3, K.INJECTED, fd=7), irq(4, K.INJECTED, fd=8))
    assert [one.waited_ns for one in Journeys.of(of).all] == [2, 2]


def test_one_whose_beginning_was_overwritten_has_no_time():
    of = log(irq(1, K.INJECTED), capacity=1)
    assert [shape(one) for one in Journeys.of(of).all] == [(["interrupt_injected"], 0, None)]


def test_a_line_is_followed_to_its_acknowledgement():
    of = log(irq(1, K.WAKEUP), line(2, K.RAISED), irq(3, K.INJECTED), line(8, K.ACKED), line(9, K.LOWERED))
    (one,) = Journeys.of(of).all
    assert (one.raised_ns, one.injected_ns, one.acked_ns) == (2, 3, 8)
    assert [step.kind for step in one.steps] == [K.WAKEUP, K.RAISED, K.INJECTED, K.ACKED]
    assert found(of) == []


def test_an_interrupt_that_the_guest_acknowledges_before_the_sink_returns():
    of = log(irq(1, K.WAKEUP), line(2, K.RAISED), line(3, K.ACKED), line(4, K.LOWERED), irq(5, K.INJECTED))
    (one,) = Journeys.of(of).all
    assert (one.acked_ns, one.injected_ns) == (3, 5)


def test_a_request_is_followed_to_its_call():
    of = log(
        queue(1, K.KICK),
        queue(2, K.REQUEST_BEGUN, head=4),
        queue(5, K.REQUEST_COMPLETED, head=4),
        queue(6, K.CALL),
        queue(7, K.KICK),
        queue(8, K.REQUESTS_SERVED, count=3),
        queue(9, K.CALL),
    )
    (disk,) = Journeys.of(of).queues.values()
    requests = [(one.head, one.begun_ns, one.completed_ns, one.called_ns, one.count) for one in disk.requests]
    assert requests == [(4, 2, 5, 6, 1), (None, None, 8, 9, 3)]
    assert (disk.kicks, disk.calls, disk.idle_calls) == ([1, 7], [6, 9], [])
    assert found(of) == []


# -- trouble ----------------------------------------------------------------------------------------------------------

LATE = (50 * MS, K.KICK, {"queue": 9, "source": "another"})
WHO = "timer (gsi 5, fd 7, Sink)"


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ([irq(0, K.SEEN)], "the sink was called with it and has not returned"),
        ([irq(0, K.WAKEUP)], "it waits for a worker of the queue"),
        ([irq(0, K.HELD, count=0)], "it is held: the queue is full"),
        ([manager(0, K.PAUSED), irq(0, K.HELD, count=0)], "its manager is paused since +0.000000 s; resume() goes on"),
        ([manager(0, K.PAUSED), manager(0, K.RESUMED), irq(0, K.HELD)], "it is held: the queue is full"),
        ([irq(0, K.SEEN), irq(1, K.DEFERRED)], "the sink would not take it at once, and the work queue has it"),
        ([irq(0, K.WAKEUP), irq(1, K.HANDLER_BEGUN)], "its handler was called and has not returned for 50 ms"),
        ([irq(0, K.SEEN), irq(10 * MS, K.INJECTING)], "the sink has had it for 40 ms and has not answered"),
        (
            [irq(0, K.WAKEUP), irq(1, K.UNROUTED), irq(2, K.WAKEUP)],
            "its gsi has no route, it is held since +0.000000 s; give it one with set_route()",
        ),
        ([irq(0, K.WAKEUP), irq(1, K.UNROUTED), line(2, K.ROUTED)], "it waits for a worker of the queue"),
        ([irq(0, K.WAKEUP), irq(1, K.BROKEN)], "the sink or its handler has failed for good; resume() tries again"),
        ([irq(0, K.WAKEUP), line(1, K.MASKED)], "it waits for a worker of the queue"),
        ([irq(0, K.WAKEUP), irq(1, K.MASKED)], "it is masked since +0.000000 s"),
    ],
)
def test_a_signal_that_is_not_injected_is_named_with_the_reason(steps, why):
    text = f"{WHO}: signalled at +0.000000 s and not injected for 50 ms: {why}"
    assert ("not_injected", text) in found(log(*steps, LATE))


def test_what_was_on_its_way_when_the_program_was_killed_is_no_trouble():
    assert found(log(irq(0, K.SEEN), (5 * MS, K.KICK, LATE[2]))) == []


def test_what_is_not_injected_when_the_program_is_done_is_trouble_at_once():
    assert [what for what, _ in found(log(irq(0, K.SEEN), closed=True))] == ["not_injected"]
    assert found(log(irq(0, K.SEEN), irq(1, K.UNBOUND), closed=True)) == []


def test_a_line_that_nobody_acknowledges_is_named():
    of = log(irq(0, K.WAKEUP), line(MS, K.RAISED), irq(2 * MS, K.INJECTED), LATE)
    text = "timer (gsi 5, Sink): the line was raised at +0.001000 s and never acknowledged, for 49 ms"
    assert found(of) == [("not_acknowledged", text)]


def test_drops_failures_and_handlers_that_raise_are_counted():
    of = log(
        irq(1, K.WAKEUP),
        irq(2, K.DROPPED),
        irq(3, K.WAKEUP),
        irq(4, K.HANDLER_BEGUN),
        irq(5, K.HANDLER_RAISED),
        irq(6, K.FAILED),
        irq(7, K.HANDLER_BEGUN),
        irq(8, K.HANDLER_ENDED),
        irq(9, K.INJECTED),
    )
    assert found(of) == [
        ("dropped", f"{WHO}: 1 dropped, for there was no route; give it one with set_route(), first at +0.000000 s"),
        ("failed", f"{WHO}: 1 attempts to inject failed, first at +0.000000 s"),
        ("handler_raised", f"{WHO}: its handler raised 1 times, first at +0.000000 s"),
    ]


def test_a_storm_is_named_with_its_rate():
    steps = [step for at in range(1500) for step in (irq(at * 80_000, K.SEEN), irq(at * 80_000 + 9, K.INJECTED))]
    assert found(log(*steps, capacity=4096)) == [
        ("storm", f"{WHO}: a storm, 1251 interrupts within 0.1 s from +0.000000 s"),
    ]


def test_long_waits_are_counted_and_the_longest_is_told():
    of = log(irq(0, K.SEEN), irq(12 * MS, K.INJECTED), irq(20 * MS, K.SEEN), irq(50 * MS, K.INJECTED))
    text = f"{WHO}: 2 waited 10 ms or longer, the longest 30 ms at +0.020000 s"
    assert found(of) == [("long_wait", text)]


def test_a_completion_without_an_interrupt_and_an_interrupt_without_a_completion():
    of = log(
        queue(0, K.REQUEST_BEGUN, head=1),
        queue(1, K.REQUEST_COMPLETED, head=1),
        queue(2, K.CALL),
        queue(3, K.CALL),
        queue(4, K.REQUEST_BEGUN, head=2),
        queue(5, K.REQUEST_COMPLETED, head=2),
        queue(6, K.REQUEST_BEGUN, head=3),
        LATE,
    )
    silent = "1 completions without an interrupt, the first at +0.000000 s; right where the driver has asked for none"
    assert found(of) == [
        ("no_interrupt", f"Disk queue 0: {silent}"),
        ("no_completion", "Disk queue 0: 1 interrupts without a completion, the first at +0.000000 s"),
        (
            "not_completed",
            "Disk queue 0: 1 requests were begun and not completed, the oldest at +0.000000 s, 50 ms ago",
        ),
    ]


def test_what_was_under_way_while_the_recorder_was_off_is_no_trouble():
    before = log(
        irq(1, K.SEEN), irq(2, K.MASKED, 4), irq(3, K.WAKEUP, 4), line(4, K.RAISED), queue(5, K.REQUEST_BEGUN, head=1)
    )
    after = log(irq(900 * MS, K.SEEN), irq(900 * MS + 1, K.INJECTED))
    gap = FlightRecord(800 * MS, "recorder_on", {})
    records = [*before.records, gap, *after.records]
    of = FlightLog(before.header, records, len(records), 1, 0, {}, {})
    assert found(FlightLog(before.header, [*before.records, *after.records], len(records), 1, 0, {}, {})) != []
    assert found(of) == []
    assert [journey.ended for journey in Journeys.of(of).all] == [True, True, False]


# -- several at once ---------------------------------------------------------------------------------------------------


def test_what_is_signalled_while_the_sink_has_one_is_another_and_waits_for_it():
    of = log(irq(0, K.SEEN), irq(1, K.DEFERRED), irq(2 * MS, K.INJECTING), irq(3 * MS, K.WAKEUP, count=2), LATE)
    assert [shape(one)[1] for one in Journeys.of(of).all] == [1, 2]
    answered = "the sink has had it for 48 ms and has not answered"
    assert [text.partition(" and not injected for ")[2] for _, text in found(of)] == [
        f"50 ms: {answered}",
        f"47 ms: it waits for the one before, signalled at +0.000000 s: {answered}",
    ]


@pytest.mark.parametrize("begun", [K.HANDLER_BEGUN, K.INJECTING])
def test_an_attempt_that_fails_takes_along_what_came_meanwhile(begun):
    of = log(
        irq(1, K.WAKEUP), irq(2, begun), irq(3, K.WAKEUP, count=2), irq(4, K.FAILED), irq(5, begun), irq(9, K.INJECTED)
    )
    assert [(one.signals, one.injected_ns) for one in Journeys.of(of).all] == [(3, 9)]
    assert [what for what, _ in found(of)] == ["failed"]


def test_an_attempt_that_fails_behind_its_handler_does_not():
    of = log(
        irq(1, K.WAKEUP),
        irq(2, K.HANDLER_BEGUN),
        irq(3, K.HANDLER_ENDED),
        irq(4, K.INJECTING),
        irq(5, K.FAILED),
        irq(6, K.WAKEUP, count=2),
        irq(7, K.INJECTING),
        irq(8, K.INJECTED),
        irq(9, K.INJECTED),
    )
    assert [(one.signals, one.injected_ns) for one in Journeys.of(of).all] == [(1, 8), (2, 9)]


def test_who_waits_for_a_worker_is_told_what_the_workers_do():
    of = log(irq(0, K.WAKEUP, 6), irq(1, K.HANDLER_BEGUN, 6), irq(2, K.WAKEUP), LATE)
    busy = "gsi 6 (fd 7, Sink), its handler was called and has not returned for 50 ms"
    assert [text.partition(" ms: ")[2] for _, text in found(of)] == [
        "its handler was called and has not returned for 50 ms",
        f"it waits for a worker of the queue; the workers have {busy}",
    ]


def test_what_is_offloaded_is_the_kernels():
    of = log(irq(0, K.WAKEUP), irq(1, K.OFFLOADED), irq(2, K.RECLAIMED), irq(3, K.OFFLOADED), LATE)
    assert list(Journeys.of(of).offloaded.values()) == [3]
    assert found(of) == []


def test_what_hangs_last_is_as_old_as_the_look_at_it():
    of = log(irq(0, K.SEEN), irq(1, K.INJECTING))
    journeys = Journeys(of.records, until_ns=3000 * MS)
    (one,) = troubles(of, journeys, slow_ns=10 * MS)
    assert one.text.endswith("not injected for 3 s: the sink has had it for 3 s and has not answered")
