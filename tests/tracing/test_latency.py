"""How long interrupts waited of late, as a running program says it: the same as ``aioirqfd trace`` counts of the same records."""

# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportOptionalMemberAccess=false
# pyright: reportCallIssue=false, reportOptionalSubscript=false, reportGeneralTypeIssues=false
# (what is read is JSON, of whose inside no type checker knows)
from __future__ import annotations

import random

import pytest

from aioirqfd import EventFd, IrqManager, nodes
from aioirqfd.flight import FlightKind, flight_of
from aioirqfd.inspect import read
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import RecordingTracer
from aioirqfd.tracer import NullTracer
from aioirqfd.tracing import FlightRecorder, latency
from aioirqfd.tracing.journey import Journeys

K = FlightKind


def by_trace(recorder):
    """What the journeys say, by gsi and eventfd."""
    found = {}
    for journey in Journeys.of(recorder.log()).all:
        if journey.waited_ns is not None:
            found.setdefault((journey.irq.gsi, journey.irq.fd), []).append(journey.waited_ns)
    return {key: sorted(waits) for key, waits in found.items()}


STEPS = (K.SEEN, K.WAKEUP, K.HELD, K.DEFERRED, K.HANDLER_BEGUN, K.HANDLER_ENDED, K.HANDLER_RAISED, K.FAILED)
STEPS += (K.INJECTING, K.UNROUTED, K.BROKEN)
ENDS = (K.INJECTED, K.DROPPED, K.UNBOUND, K.OFFLOADED)
OTHERS = (K.RECLAIMED, K.MASKED, K.UNMASKED, K.RAISED, K.ACKED, K.LOWERED, K.ROUTED, K.KICK, K.CALL, K.REQUEST_BEGUN)


@pytest.mark.parametrize("seed", range(20))
def test_it_is_what_trace_says(seed):
    dice = random.Random(seed)
    recorder = FlightRecorder(capacity=1024)
    flight = flight_of(recorder, "vm")
    for _ in range(dice.choice((10, 500, 1024))):
        kind = dice.choice(dice.choice((STEPS, STEPS, (K.INJECTED,), ENDS, OTHERS)))
        flight.put(kind, dice.choice((5, 6)), 1, fd=dice.choice((7, 8)))
    assert recorder.waits(flight.source) == by_trace(recorder)


def test_of_a_ring_that_has_gone_round_the_last_records_are_looked_at(monkeypatch):
    monkeypatch.setattr(latency, "LOOKED_AT", 8)
    recorder = FlightRecorder(capacity=16)
    flight = flight_of(recorder, "vm")
    for _ in range(11):
        flight.put(K.SEEN, 5, 1, fd=7)
        flight.put(K.INJECTED, 5, 1, fd=7)
    assert len(recorder.waits(flight.source)[5, 7]) == 4
    flight.put(K.SEEN, 5, 1, fd=7)  # now the first that is looked at is an end without a beginning
    assert len(recorder.waits(flight.source)[5, 7]) == 3


def test_another_irqfd_of_that_number_begins_anew_and_another_manager_is_another():
    recorder = FlightRecorder()
    one, other = flight_of(recorder, "one"), flight_of(recorder, "other")
    for flight in (one, other):
        flight.put(K.SEEN, 5, 1, fd=7)
        flight.put(K.INJECTED, 5, 1, fd=7)
    one.put(K.BOUND, 5, 99, fd=7)
    assert recorder.waits(one.source) == {}
    assert list(recorder.waits(other.source)) == [(5, 7)]


def test_what_was_under_way_when_it_was_turned_off_is_no_latency():
    recorder = FlightRecorder()
    flight = flight_of(recorder, "vm")
    flight.put(K.SEEN, 5, 1, fd=7)
    flight.put(K.INJECTED, 5, 1, fd=7)
    flight.put(K.SEEN, 5, 1, fd=7)
    recorder.on = False
    recorder.on = True
    flight.put(K.INJECTED, 5, 1, fd=7)
    assert recorder.waits(flight.source) == {}


async def test_a_manager_shows_it_by_the_names_of_its_irqfds():
    recorder = FlightRecorder()
    async with IrqManager(RecordingSink(), name="latencies", tracer=recorder) as irqs:
        with EventFd() as uart, EventFd() as nic:
            irqs.assign(uart, gsi=4, name="uart")
            irqs.assign(nic, gsi=5, name="nic")
            for _ in range(3):
                uart.signal()
                await irqs.flush()
            shown = read("managers/latencies/latency")
            waits = shown["irqfds"].pop("uart")
            assert shown == {"recorder": nodes.key_of(recorder), "on": True, "irqfds": {}}
            ((_, spans),) = recorder.waits(irqs._irqfds.delivery.flight.source).items()
            expected = [span / 1000 for span in (spans[1], spans[2], spans[2])]
            assert [waits[name] for name in ("count", "p50_us", "p99_us", "longest_us")] == [3, *expected]
            recorder.on = False
            assert read("managers/latencies/latency") == {"recorder": nodes.key_of(recorder), "on": False, "irqfds": {}}
            assert "latency" not in read("managers/latencies")


async def test_without_a_recorder_it_says_so():
    for tracer in (NullTracer(), RecordingTracer()):
        async with IrqManager(RecordingSink(), name="latencies", tracer=tracer):
            assert read("managers/latencies/latency") == {"recorder": None, "on": False, "irqfds": {}}


async def test_nothing_is_computed_while_nobody_asks(monkeypatch):
    recorder = FlightRecorder()
    monkeypatch.setattr(FlightRecorder, "waits", lambda *_: pytest.fail("it was looked at"))
    async with IrqManager(RecordingSink(), name="latencies", tracer=recorder) as irqs:
        with EventFd() as uart:
            irqs.assign(uart, gsi=4, name="uart")
            uart.signal()
            await irqs.flush()
            irqs.inspect()
            read()
