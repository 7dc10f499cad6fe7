"""A deassign is a barrier: what was signalled before is injected or goes back, and nothing of it runs any more."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from aioirqfd import ClosedError, EventFd, EventFdBusyError, EventFdInvalidError, Interrupt, IrqManager, State
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import GatedSink, RefusingSink
from tests.irqfd.helpers import CLOSED_FD, MSI, SlowSink, count, pulse, turns, write


async def test_i14_deassign_of_what_is_not_there_does_nothing():
    async with IrqManager(RecordingSink()) as irqs, IrqManager(RecordingSink()) as others:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            await others.deassign(irqfd)
            assert irqs.irqfds == (irqfd,)
            await irqs.deassign(irqfd)
            await irqs.deassign(irqfd)


async def test_i14_i15_an_irqfd_by_its_eventfd_and_gsi(pipe):
    sink = RecordingSink()
    with EventFd() as eventfd, EventFd() as never:
        async with IrqManager(sink, routing={5: MSI}) as irqs, IrqManager(RecordingSink()) as others:
            closed = EventFd()
            closed.close()
            for wrong, error in ((CLOSED_FD, ClosedError), (closed, ClosedError), (pipe, EventFdInvalidError)):
                with pytest.raises(error):
                    await irqs.deassign(wrong, gsi=5)
            with pytest.raises(TypeError, match="and its gsi"):
                await irqs.deassign(eventfd)  # pyright: ignore[reportCallIssue, reportArgumentType]
            with pytest.raises(TypeError, match="not both"):
                await irqs.deassign(irqs.assign(never, gsi=7), gsi=7)  # pyright: ignore[reportCallIssue, reportArgumentType]
            await irqs.deassign(never, gsi=7)
            twin = os.dup(eventfd.fileno())
            with EventFd.from_fd(twin) as dup:
                for given in (eventfd, dup, twin):
                    irqfd = irqs.assign(eventfd, gsi=5)
                    assert [irqs.find(key, gsi=5) for key in (eventfd, dup, twin, never)] == [irqfd, irqfd, irqfd, None]
                    assert (irqs.find(given, gsi=6), others.find(given, gsi=5)) == (None, None)
                    await irqs.deassign(given, gsi=6)
                    await others.deassign(given, gsi=5)
                    os.eventfd_write(twin, 1)
                    await irqs.deassign(given, gsi=5)
                    assert (irqs.irqfds, irqfd.state, sink.interrupts.pop()) == ((), State.CLOSED, Interrupt(5, MSI))
                    await irqs.deassign(given, gsi=5)
            os.close(twin)
            with pytest.raises(EventFdBusyError):
                irqs.assign(irqs.assign(never, gsi=5).eventfd, gsi=6)


async def test_i20_deassigned_by_its_key_twice_both_wait():
    sink = GatedSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            kick.signal()
            waiting = [asyncio.ensure_future(irqs.deassign(kick, gsi=5)) for _ in range(2)]
            other = asyncio.ensure_future(irqs.deassign(kick, gsi=6))
            await turns()
            assert [task.done() for task in (*waiting, other)] == [False, False, True]
            sink.open()
            await asyncio.gather(*waiting)
            assert sink.interrupts == [pulse(5)]


@pytest.mark.parametrize("make", [RecordingSink, SlowSink, RefusingSink])
@pytest.mark.parametrize("how", ["here", "fd", "thread"])
async def test_i20_deassign_is_a_barrier(make, how):
    sink = make()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            for number in range(1, 51):
                irqfd = irqs.assign(kick, gsi=5)
                if how == "here":
                    kick.signal()
                elif how == "fd":
                    write(kick)
                else:
                    thread = threading.Thread(target=kick.signal)
                    thread.start()
                    thread.join()
                await irqs.deassign(irqfd)
                assert len(sink.interrupts) == number
                assert irqfd.state is State.CLOSED
                assert count(kick) == 0


@pytest.mark.parametrize("make", [RecordingSink, SlowSink])
async def test_w03_write_then_close_loses_nothing(make):
    sink = make()
    async with IrqManager(sink) as irqs:
        for number in range(50):
            with EventFd() as kick:
                irqs.assign(kick, gsi=5)
                (kick.signal if number % 2 else lambda kick=kick: write(kick))()
        assert irqs.irqfds == ()
    assert len(sink.interrupts) == 50


async def test_a_signal_that_comes_after_stays_in_the_eventfd_for_the_next_one():
    sink = GatedSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal()
            await sink.wait_begun(1)
            leaving = asyncio.ensure_future(irqs.deassign(irqfd))
            await turns()
            assert not leaving.done()
            kick.signal(4)
            write(kick, 2)
            sink.open()
            await leaving
            assert sink.interrupts == [pulse(5)]
            irqs.assign(kick, gsi=6)
            await irqs.flush()
            assert sink.interrupts == [pulse(5), pulse(6)]
            assert kick.read_nowait() == 6


@pytest.mark.parametrize("why", ["masked", "paused", "unrouted"])
async def test_what_may_not_be_injected_goes_back_into_the_eventfd(why):
    sink = RecordingSink()
    async with IrqManager(sink, unrouted="hold", routing={5: MSI}) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            if why == "masked":
                irqfd.mask()
            elif why == "paused":
                await irqs.pause()
            else:
                irqs.set_routing({})
            kick.signal(4)
            await turns()
            await irqs.deassign(irqfd)
            assert (sink.interrupts, irqfd.state) == ([], State.CLOSED)
            assert count(kick) == 4


async def test_a_cancelled_deassign_has_deassigned_all_the_same():
    sink = GatedSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal()
            await sink.wait_begun(1)
            leaving = asyncio.ensure_future(irqs.deassign(irqfd))
            await turns()
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            assert irqs.irqfds == ()
            irqs.assign(kick, gsi=6)
            sink.open()
            await irqs.deassign(irqfd)
            assert irqfd.state is State.CLOSED
            assert sink.interrupts == [pulse(5)]


async def test_two_tasks_deassign_the_same_irqfd():
    sink = GatedSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal()
            both = [asyncio.ensure_future(irqs.deassign(irqfd)) for _ in range(2)]
            await sink.wait_begun(1)
            await turns()
            assert not any(task.done() for task in both)
            sink.open()
            await asyncio.gather(*both)
            assert sink.interrupts == [pulse(5)]


async def test_a_sink_that_closes_an_eventfd_while_it_is_asked():
    class Sink:
        def __init__(self):
            self.interrupts = []

        def try_inject(self, interrupt):
            victim.close()
            return False

        async def inject(self, interrupt):
            self.interrupts.append(interrupt)

    sink = Sink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick, EventFd() as victim:
            irqs.assign(kick, gsi=5)
            irqs.assign(victim, gsi=6)
            write(kick)
            await irqs.flush()
            assert sink.interrupts == [pulse(5)]
            assert [irqfd.gsi for irqfd in irqs.irqfds] == [5]
