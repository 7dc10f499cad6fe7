"""A flush waits for every signal that was sent before it, and for none that comes after."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from aioirqfd import EventFd, IrqManager, WorkQueue
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import GatedSink, RefusingSink
from tests.irqfd.helpers import count, pulse, turns, write


async def test_flush_waits_for_everybody_whatever_the_order_in_which_they_wait():
    # At the bound all but one wait in their eventfds, in the order of their signals and not of their assignment.
    sink = RefusingSink()
    async with IrqManager(sink, queue=WorkQueue(maxsize=1)) as irqs:
        kicks = [EventFd() for _ in range(20)]
        for gsi, kick in enumerate(kicks):
            irqs.assign(kick, gsi=gsi)
        for kick in reversed(kicks):
            write(kick)
            await asyncio.sleep(0)
        await irqs.flush()
        assert sorted(interrupt.gsi for interrupt in sink.interrupts) == list(range(20))
        for kick in kicks:
            write(kick)
        await irqs.flush()
        assert len(sink.interrupts) == 40
        for kick in kicks:
            kick.close()


async def test_flush_covers_a_signal_that_waits_behind_an_injection_of_its_own_irqfd():
    # Queued, and signalled again while the queue is full: the first injection is not yet the one that is waited for.
    sink = GatedSink()
    async with IrqManager(sink, queue=WorkQueue(maxsize=4)) as irqs:
        kicks = [EventFd() for _ in range(5)]
        for gsi, kick in enumerate(kicks):
            irqs.assign(kick, gsi=gsi)
        kicks[0].signal()
        await sink.wait_begun(1)
        for kick in kicks[1:]:
            kick.signal()
        kicks[1].signal()
        assert irqs.statistics().queue.queued == 4
        flushed = asyncio.ensure_future(irqs.flush())
        await turns()
        sink.release()
        await sink.wait_begun(2)  # gsi 1
        kicks[0].signal()  # not waited for
        sink.release()
        await sink.wait_begun(3)
        assert not flushed.done()
        while not flushed.done():
            sink.release()
            await asyncio.sleep(0)
        began_after = [interrupt.gsi for interrupt in sink.interrupts]
        assert set(began_after) >= {0, 1, 2, 3, 4}
        sink.open()
        for kick in kicks:
            kick.close()


@pytest.mark.parametrize("how", ["closed", "deassigned", "handler"])
async def test_flush_waits_for_what_is_being_deassigned(how):
    sink, gate = GatedSink(), asyncio.Event()

    async def on_wakeup(irqfd, count):
        await gate.wait()

    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=on_wakeup if how == "handler" else ())
            kick.signal()
            if how == "handler":
                await turns()
            if how == "closed":
                kick.close()
            deassigning = asyncio.ensure_future(irqs.deassign(irqfd))
            await turns()
            assert irqs.irqfds == ()
            flushing = asyncio.ensure_future(irqs.flush())
            await turns()
            assert not flushing.done()
            gate.set()
            await turns()
            assert not flushing.done()
            sink.open()
            await flushing
            assert sink.interrupts == [pulse(5)]
            await deassigning


async def test_flush_does_not_wait_for_signals_that_come_meanwhile():
    sink = GatedSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            kick.signal()
            await sink.wait_begun(1)
            flushed = asyncio.ensure_future(irqs.flush())
            await turns()
            kick.signal()
            sink.release()
            await flushed
            assert sink.interrupts == [pulse(5)]
            sink.open()


async def test_flush_does_not_wait_for_what_is_blocked():
    async with IrqManager(RecordingSink(), unrouted="hold") as irqs:
        with EventFd() as kick, EventFd() as held:
            irqs.assign(kick, gsi=5, masked=True)
            irqs.assign(held, gsi=999)
            kick.signal()
            write(held)
            await irqs.flush()
            await irqs.pause()
            kick.signal()
            await irqs.flush()


async def test_flush_ends_when_the_manager_closes_under_it():
    sink = GatedSink()
    irqs = IrqManager(sink)
    await irqs.__aenter__()
    with EventFd() as kick:
        irqs.assign(kick, gsi=5)
        kick.signal()
        flushed = asyncio.ensure_future(irqs.flush())
        await sink.wait_begun(1)
        with pytest.raises(KeyError):
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_exit(irqs)
                raise KeyError
        await flushed
        assert count(kick) == 1
