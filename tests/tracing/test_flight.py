"""The flight recorder: what it remembers, in order, and what it forgets."""

from __future__ import annotations

import asyncio
import gc
import os
import struct

import pytest

from aioirqfd import EventFd, InjectionError, IrqchipPin, IrqManager, Msi, Retry, WorkQueue, nodes
from aioirqfd.counter import FlightRing
from aioirqfd.inspect import read, write
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import FlakySink, RecordingTracer
from aioirqfd.tracing import FlightKind, FlightRecorder


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


async def test_each_interrupt_leaves_its_steps_whichever_way_it_came():
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
    assert found[:2] == [("interrupt_seen", 5, 3), ("interrupt_injected", 5, 3)]
    # Two that were seen in one pass went to the sink in one call.
    assert [event for event, _, _ in found[2:]] == ["interrupt_seen"] * 2 + ["interrupt_injected"] * 2
    assert sorted(found[2:4]) == [("interrupt_seen", 5, 1), ("interrupt_seen", 6, 1)]
    assert sorted(found[4:]) == [("interrupt_injected", 5, 1), ("interrupt_injected", 6, 1)]
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
    steps = [(event.removeprefix("interrupt_"), gsi) for event, gsi, _ in interrupts(recorder)]
    assert [step for step, gsi in steps if gsi == 5] == ["seen", "deferred", "injected"]
    # No room at first: it was held, and dispatched anew when the other was through.
    assert [step for step, gsi in steps if gsi == 6] == ["seen", "deferred", "held", "seen", "deferred", "injected"]


async def test_what_the_sink_takes_its_time_for_is_noted_before():
    recorder = FlightRecorder()
    async with IrqManager(SlowSink(), tracer=recorder) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            kick.signal()
            await irqs.flush()
    steps = [record.event for record in recorder.records()[1:-1]]
    assert steps == ["interrupt_seen", "interrupt_deferred", "injecting", "interrupt_injected"]


async def test_what_holds_an_interrupt_is_noted():
    recorder = FlightRecorder()
    async with IrqManager(RecordingSink(), routing={}, unrouted="hold", tracer=recorder, name="vm") as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            kick.signal()
            await irqs.flush()
            await irqs.pause()
            irqs.resume()
            irqs.set_route(5, Msi(0, 1))
            await irqs.flush()
    kinds = [record.kind for record in recorder.records()]
    assert kinds == [
        FlightKind.BOUND,
        FlightKind.WAKEUP,
        FlightKind.UNROUTED,
        FlightKind.PAUSED,
        FlightKind.RESUMED,
        FlightKind.ROUTED,
        FlightKind.INJECTING,
        FlightKind.INJECTED,
        FlightKind.UNBOUND,
    ]


async def test_what_the_sink_watches_by_itself_is_noted_and_when_it_is_given_back():
    class Offloading(SlowSink):
        def offload(self, eventfd, interrupt, resamplefd) -> bool:
            return True

        def reclaim(self, eventfd, interrupt) -> bool:
            return False

    recorder = FlightRecorder()
    async with IrqManager(Offloading(), tracer=recorder) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5).mask()
    kinds = [record.kind for record in recorder.records()]
    assert kinds == [
        FlightKind.OFFLOADED,
        FlightKind.BOUND,
        FlightKind.MASKED,
        FlightKind.RECLAIMED,
        FlightKind.UNBOUND,
    ]


async def test_a_handler_leaves_its_wakeup_and_its_injection():
    recorder = FlightRecorder()

    async def on_wakeup(irqfd, count) -> None:
        pass

    async with IrqManager(RecordingSink(), tracer=recorder) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=7, wakeup=on_wakeup)
            kick.signal(4)
            await irqs.flush()
    steps = [(record.event, record.fields["gsi"], record.fields["count"]) for record in recorder.records()[1:-1]]
    assert steps == [
        ("interrupt_wakeup", 7, 4),
        ("handler_begun", 7, 4),
        ("handler_ended", 7, 4),
        ("interrupt_injected", 7, 4),
    ]


async def test_a_handler_that_raises_and_its_retries_are_there():
    recorder = FlightRecorder()
    runs = 0

    async def on_wakeup(irqfd, count) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise ValueError(count)

    async with IrqManager(RecordingSink(), tracer=recorder, retry=Retry(initial=0)) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=7, wakeup=on_wakeup)
            kick.signal(4)
            await irqs.flush()
    events = [record.event for record in recorder.records()[1:-1]]
    assert events == [
        "interrupt_wakeup",
        "handler_begun",
        "handler_raised",
        "injection_failed",
        "injection_retried",
        "handler_begun",
        "handler_ended",
        "interrupt_injected",
    ]


async def test_a_line_goes_up_and_is_acknowledged():
    recorder = FlightRecorder()
    routing = {4: IrqchipPin("pic", 4)}
    async with IrqManager(RecordingSink(), routing=routing, tracer=recorder) as irqs:
        with EventFd() as kick, EventFd() as resample:
            irqs.assign(kick, gsi=4, resamplefd=resample)
            kick.signal()
            irqs.ack(4)
    events = [record.event for record in recorder.records()[1:-1]]
    assert events == ["interrupt_wakeup", "line_raised", "interrupt_injected", "line_acked", "line_lowered"]


@pytest.mark.trouble
async def test_what_has_no_route_is_dropped_each_time():
    recorder = FlightRecorder()
    async with IrqManager(RecordingSink(), routing={}, tracer=recorder) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=4)
            kick.signal()
            await irqs.flush()
            kick.signal()
            await irqs.flush()
            irqs.set_route(4, Msi(0, 1))
    kinds = [record.kind for record in recorder.records()]
    assert kinds.count(FlightKind.DROPPED) == 2
    # What a change has to say beside is said there.
    (routed,) = [record.fields for record in recorder.records() if record.kind is FlightKind.ROUTED]
    assert (routed["gsi"], routed["routes"], routed["generation"]) == (4, 1, 1)


async def test_state_changes_stand_between_the_interrupts():
    recorder = FlightRecorder()
    async with IrqManager(RecordingSink(), tracer=recorder) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal()
            irqfd.mask()
    assert [record.event for record in recorder.records()][:4] == [
        "irqfd_assigned",
        "interrupt_seen",
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
    assert recorder.replay(heard) == 4
    names = [event for event, _ in heard.events]
    assert names == ["irqfd_assigned", "interrupt_seen", "interrupt_injected", "irqfd_deassigned"]
    assert all("time_ns" in fields for _, fields in heard.events)


def test_the_ring_keeps_the_last_ones():
    ring = FlightRing(3)
    assert ring.capacity == 4
    for number in range(10):
        ring.put(1, number, 7, 2**64 - 2)
    assert ring.total == 10
    recorder = FlightRecorder(capacity=4)
    for number in range(10):
        recorder.ring.put(1, number, 7, 2**64 - 2)
    assert [(record.fields["gsi"], record.fields["count"]) for record in recorder.records()] == [
        (number, 2**64 - 2) for number in range(6, 10)
    ]


@pytest.mark.parametrize("capacity", [0, -1, 2**28 + 1])
def test_a_ring_without_room_is_refused(capacity):
    with pytest.raises(ValueError, match="flight ring"):
        FlightRing(capacity)


def test_a_capacity_in_the_place_of_the_path_is_refused_with_the_fix():
    with pytest.raises(TypeError, match="write capacity=4"):
        FlightRecorder(4)  # type: ignore[arg-type]


def test_another_tracer_hears_of_the_changes_too():
    heard = RecordingTracer()
    recorder = FlightRecorder(tracer=heard)
    recorder.emit("irqfd_assigned", gsi=5)
    assert heard.events == [("irqfd_assigned", {"gsi": 5})]
    assert recorder.per_interrupt == heard.per_interrupt


def test_two_of_one_name_are_told_apart():
    recorder = FlightRecorder()
    assert [recorder.source("Disk"), recorder.source("Net"), recorder.source("Disk")] == [1, 2, 3]
    recorder.ring.put(1, 0, 7, 1, 3)
    assert recorder.records()[0].fields == {"gsi": 0, "fd": 7, "count": 1, "source": "Disk 2"}


def test_there_is_an_end_to_names_and_they_are_shared_then():
    recorder = FlightRecorder()
    numbers = [recorder.source("Disk") for _ in range(2054)]
    assert numbers[:2048] == list(range(1, 2049))
    assert set(numbers[2048:]) == {1}


def test_a_change_that_is_too_long_is_cut_where_it_is_longest():
    recorder = FlightRecorder()
    recorder.emit("injection_failed", gsi=5, error="x" * 1000)
    recorder.emit("routing_changed", **{f"field{number}": "y" * 50 for number in range(40)})
    first, second = recorder.records()
    assert (first.fields["gsi"], first.fields["error"]) == (5, "x" * 125 + "...")
    assert (second.event, second.fields) == ("routing_changed", {})


def test_changes_are_kept_apart_from_a_storm():
    recorder = FlightRecorder(capacity=8)
    recorder.emit("irqfd_assigned", gsi=5)
    for _ in range(100):
        recorder.ring.put(5, 5, 7, 1)
    assert recorder.records()[0].event == "irqfd_assigned"
    assert (recorder.log().total, recorder.log().overwritten) == (100, 92)


@pytest.mark.parametrize("word", [0, 1, 2**31, 2**32 - 1, 2**32, 2**64 - 1, -1])
def test_numbers_are_cut_to_their_fields(word):
    memory = bytearray(64 + 32)
    FlightRing(1, memory).put(1, word, word, word, word, word)
    _, value, key, fd, source, kind, flags, lap = struct.unpack("=QQIiHBBI", memory[64:])
    assert (value, key, source, kind, flags) == (word % 2**64, word % 2**32, word % 2**16, 1, word % 2**8)
    assert (fd % 2**32, lap) == (word % 2**32, 1)


def test_a_ring_in_a_circle_of_garbage_keeps_its_memory_to_the_end():
    def make() -> None:
        circle: list[object] = [FlightRing(2, memoryview(bytearray(128)))]
        circle.append(circle)

    for _ in range(100):
        make()
    gc.collect()


def test_a_ring_lives_in_the_memory_it_is_given():
    memory = bytearray(64 + 64 + 2 * 32)
    ring = FlightRing(2, memory, 64)
    for number in range(3):
        ring.put(1, number, -1, 0)
    assert memory[64] == 3
    assert [key for _, _, key, *_ in struct.iter_unpack("=QQIiHBBI", memory[128:])] == [2, 1]
    with pytest.raises(ValueError, match="not to be had at 128 of 192 bytes"):
        FlightRing(2, memory, 128)
    with pytest.raises((TypeError, BufferError)):
        FlightRing(2, bytes(192), 64)  # type: ignore[arg-type]


async def test_a_recorder_alone_does_not_keep_trouble_from_being_heard():
    heard = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context["exception"]))
    with pytest.raises(InjectionError) as raised:
        async with IrqManager(FlakySink(1), retry=Retry(0), tracer=FlightRecorder()) as irqs:
            with EventFd() as kick:
                irqs.assign(kick, gsi=5)
                kick.signal()
                await irqs.flush()
    assert heard == [raised.value]


async def test_a_recorder_that_is_off_remembers_nothing_and_passes_on():
    heard = RecordingTracer()
    recorder = FlightRecorder(tracer=heard, name="box")
    path = f"tracers/{nodes.key_of(recorder)}"
    async with IrqManager(RecordingSink(), tracer=recorder) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            before = recorder.records()
            write(f"{path}/on", value=False)
            kick.signal()
            irqfd.mask()
            assert [record.event for record in recorder.records()[len(before) :]] == ["recorder_off"]
            assert heard.events[-1][0] == "irqfd_masked"
            write(f"{path}/on", value=True)
            irqfd.unmask()
            kick.signal()
            await irqs.flush()
            events = [record.event for record in recorder.records()[len(before) :]]
    assert events == ["recorder_off", "recorder_on", "irqfd_unmasked", "interrupt_seen", "interrupt_injected"]
    shown = {"type": "FlightRecorder", "path": None, "capacity": 65536, "total": recorder.ring.total, "on": True}
    assert read(path) == shown


def test_a_recorder_is_on_or_off():
    recorder = FlightRecorder(name="switch")
    with pytest.raises(ValueError, match="on is one of yes, on, true, no, off, false, not 1"):
        write(f"tracers/{nodes.key_of(recorder)}/on", value=1)
    with pytest.raises(TypeError, match="on is True or False, not 1"):
        recorder.on = 1  # type: ignore[assignment]
