"""The flight recorder: what it remembers, in order, and what it forgets."""

from __future__ import annotations

import os

import pytest

from aioirqfd import EventFd, IrqManager, WorkQueue
from aioirqfd.counter import FlightRing
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import RecordingTracer
from aioirqfd.tracing import FlightRecorder


def interrupts(recorder: FlightRecorder) -> list[tuple[str, object, object]]:
    return [
        (record.event, record.fields["gsi"], record.fields["count"])
        for record in recorder.records()
        if record.event.startswith("interrupt_") and "eventfd_id" not in record.fields
    ]


class SlowSink:
    """Would block each time."""

    def __init__(self) -> None:
        self.gsis: list[int] = []

    def try_inject(self, interrupt) -> bool:
        return False

    async def inject(self, interrupt) -> None:
        self.gsis.append(interrupt.gsi)


async def test_each_interrupt_leaves_one_record_whichever_way_it_came():
    recorder = FlightRecorder()
    async with IrqManager(RecordingSink(), tracer=recorder) as irqs:
        with EventFd() as one, EventFd() as two:
            irqs.assign(one, gsi=5)
            irqs.assign(two, gsi=6)
            one.signal(3)
            os.eventfd_write(one.fileno(), 1)
            os.eventfd_write(two.fileno(), 1)
            await irqs.flush()
    found = interrupts(recorder)
    assert found[0] == ("interrupt_injected", 5, 3)
    assert sorted(found[1:]) == [("interrupt_injected", 5, 1), ("interrupt_injected", 6, 1)]
    times = [record.time_ns for record in recorder.records()]
    assert times == sorted(times)


async def test_a_deferred_and_a_held_interrupt_say_so():
    recorder = FlightRecorder()
    sink = SlowSink()
    async with IrqManager(sink, queue=WorkQueue(maxsize=1), tracer=recorder) as irqs:
        with EventFd() as one, EventFd() as two:
            irqs.assign(one, gsi=5)
            irqs.assign(two, gsi=6)
            one.signal()
            two.signal()
            await irqs.flush()
            assert sink.gsis == [5, 6]
    events = [event for event, _, _ in interrupts(recorder)]
    assert events == ["interrupt_deferred", "interrupt_deferred", "interrupt_held", "interrupt_deferred"]


async def test_a_handler_leaves_its_wakeup_and_its_injection():
    recorder = FlightRecorder()

    async def on_wakeup(irqfd, count) -> None:
        pass

    async with IrqManager(RecordingSink(), tracer=recorder) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=7, wakeup=on_wakeup)
            kick.signal(4)
            await irqs.flush()
    assert interrupts(recorder) == [("interrupt_wakeup", 7, 4), ("interrupt_injected", 7, 4)]


async def test_state_changes_stand_between_the_interrupts():
    recorder = FlightRecorder()
    async with IrqManager(RecordingSink(), tracer=recorder) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal()
            irqfd.mask()
    assert [record.event for record in recorder.records()][:3] == [
        "irqfd_assigned",
        "interrupt_injected",
        "irqfd_masked",
    ]


async def test_replay_tells_another_tracer_everything():
    recorder = FlightRecorder()
    async with IrqManager(RecordingSink(), tracer=recorder) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            kick.signal()
    heard = RecordingTracer()
    assert recorder.replay(heard) == 3
    names = [event for event, _ in heard.events]
    assert names == ["irqfd_assigned", "interrupt_injected", "irqfd_deassigned"]
    assert all("time_ns" in fields for _, fields in heard.events)


def test_the_ring_keeps_the_last_ones():
    ring = FlightRing(3)
    assert ring.capacity == 4
    for number in range(10):
        ring.put(1, number, 7, 2**64 - 2)
    assert ring.total == 10
    records = ring.snapshot()
    assert len(records) == 4 * 32
    recorder = FlightRecorder(4)
    for number in range(10):
        recorder.ring.put(1, number, 7, 2**64 - 2)
    assert [(record.fields["gsi"], record.fields["count"]) for record in recorder.records()] == [
        (number, 2**64 - 2) for number in range(6, 10)
    ]


@pytest.mark.parametrize("capacity", [0, -1, 2**28 + 1])
def test_a_ring_without_room_is_refused(capacity):
    with pytest.raises(ValueError, match="flight ring"):
        FlightRing(capacity)
