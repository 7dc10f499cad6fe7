"""A paused manager injects nothing, and loses nothing."""

from __future__ import annotations

import asyncio

import pytest

from aioirqfd import EventFd, IrqManager, Retry, State
from aioirqfd.testing import FlakySink, GatedSink
from tests.irqfd.helpers import SlowSink, pulse, turns, write


async def test_paused_nothing_is_injected_and_nothing_lost():
    sink = SlowSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick, EventFd() as other:
            first, second = irqs.assign(kick, gsi=5), irqs.assign(other, gsi=6)
            kick.signal()
            await irqs.pause()
            before = list(sink.interrupts)
            await irqs.pause()
            assert before in ([], [pulse(5)])
            kick.signal()
            write(other)
            await turns()
            assert sink.interrupts == before
            assert (first.pending, second.pending) == (True, True)
            irqs.resume()
            irqs.resume()
            await irqs.flush()
            assert sink.interrupts in ([pulse(5), pulse(6)], [pulse(5), pulse(5), pulse(6)])
            kick.signal()
            await irqs.flush()
            assert sink.interrupts[-1] == pulse(5)


async def test_pause_waits_for_the_injection_under_way():
    sink = GatedSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            kick.signal()
            await sink.wait_begun(1)
            pausing = asyncio.ensure_future(irqs.pause())
            await turns()
            kick.signal()
            assert not pausing.done()
            sink.open()
            await pausing
            assert sink.interrupts == [pulse(5)]
            irqs.resume()
            await irqs.flush()
            assert sink.interrupts == [pulse(5)] * 2


async def test_a_cancelled_pause_has_paused_all_the_same():
    sink = GatedSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            kick.signal()
            await sink.wait_begun(1)
            pausing = asyncio.ensure_future(irqs.pause())
            await turns()
            pausing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pausing
            kick.signal()
            sink.open()
            await turns()
            assert sink.interrupts == [pulse(5)]
            irqs.resume()
            await irqs.flush()
            assert sink.interrupts == [pulse(5)] * 2


async def test_a_retry_that_comes_due_while_paused_waits_for_the_resume():
    sink = FlakySink(1)
    async with IrqManager(sink, retry=Retry(5, 3600, 3600)) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal()
            while irqfd.state is not State.RETRYING:
                await asyncio.sleep(0)
            await irqs.pause()
            (binding,) = irqs._irqfds.bound.values()
            binding.injection.retry_now()
            assert (irqfd.state, len(sink.attempts)) == (State.PENDING, 1)
            irqs.resume()
            await irqs.flush()
            assert sink.interrupts == [pulse(5)]
