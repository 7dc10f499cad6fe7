"""The fakes do what they say, or every test that leans on them is worth nothing."""

from __future__ import annotations

import asyncio

import pytest

from aioirqfd import BatchSink, FastSink, Interrupt, InterruptSink, IrqchipPin, Tracer
from aioirqfd.testing import FlakySink, GatedSink, RecordingTracer, RefusingSink

ONE, TWO = (Interrupt(gsi, IrqchipPin("ioapic", gsi)) for gsi in (1, 2))


async def test_a_gated_sink_lets_through_what_is_released_in_order():
    sink = GatedSink()
    first, second = asyncio.ensure_future(sink.inject(ONE)), asyncio.ensure_future(sink.inject(TWO))
    await sink.wait_begun(2)
    assert (sink.begun, sink.interrupts, sink.waiting) == ([ONE, TWO], [], 2)
    sink.release()
    await first
    assert (sink.interrupts, sink.waiting) == ([ONE], 1)
    sink.open()
    await second
    await sink.inject(ONE)
    assert sink.interrupts == [ONE, TWO, ONE]
    sink.shut()
    third = asyncio.ensure_future(sink.inject(TWO))
    await sink.wait_begun(4)
    third.cancel()
    with pytest.raises(asyncio.CancelledError):
        await third
    assert (sink.interrupts, sink.waiting) == ([ONE, TWO, ONE], 0)


async def test_a_flaky_sink_fails_as_often_as_told():
    sink = FlakySink(2)
    for _ in range(2):
        with pytest.raises(OSError, match="flaky"):
            await sink.inject(ONE)
    await sink.inject(ONE)
    assert (sink.attempts, sink.interrupts) == ([ONE] * 3, [ONE])
    sink.failures, sink.error = 1, KeyError("other")
    with pytest.raises(KeyError):
        await sink.inject(TWO)


async def test_a_refusing_sink_refuses_until_told_otherwise():
    sink = RefusingSink()
    assert sink.try_inject(ONE) is False
    await sink.inject(ONE)
    sink.refusing = False
    assert sink.try_inject(TWO) is True
    assert (sink.asked, sink.interrupts) == ([ONE], [ONE, TWO])


def test_the_fakes_have_the_tiers_that_they_claim():
    assert isinstance(GatedSink(), InterruptSink)
    assert not isinstance(GatedSink(), FastSink)
    assert isinstance(FlakySink(), InterruptSink)
    assert not isinstance(FlakySink(), FastSink)
    assert isinstance(RefusingSink(), FastSink)
    assert not isinstance(RefusingSink(), BatchSink)


def test_a_recording_tracer_keeps_events_in_order():
    tracer: Tracer = RecordingTracer(per_interrupt=True)
    assert isinstance(tracer, RecordingTracer)
    tracer.emit("a", gsi=1)
    tracer.emit("b")
    tracer.emit("a", gsi=2)
    assert tracer.names == ["a", "b", "a"]
    assert tracer.of("a") == [{"gsi": 1}, {"gsi": 2}]
    assert tracer.per_interrupt is True
    assert RecordingTracer().per_interrupt is False
