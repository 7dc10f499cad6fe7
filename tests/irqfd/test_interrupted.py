"""A signal handler runs between any two calls of functions: wherever it signals or masks, nothing is lost, and nobody sleeps on.

Not by luck: a profile function stands in for the signal handler, and does its part at the n-th call or return within the
package, for every n that there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

import pytest

import aioirqfd
from aioirqfd import EventFd, IrqManager, State, Work, WorkQueue
from aioirqfd.testing import RefusingSink
from tests.irqfd.helpers import SlowSink

PACKAGE = str(Path(aioirqfd.__file__).parent)
LIMIT = 60.0


@contextlib.contextmanager
def interrupted(number, call):
    """Have it called at the n-th moment of the block; the list that is given has something in it when that has come."""
    moments = [number]
    came = []

    def profile(frame, event, arg):
        if event == "c_call" or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        moments[0] -= 1
        if not moments[0]:
            sys.setprofile(None)
            came.append(frame.f_code.co_qualname)
            call()

    sys.setprofile(profile)
    try:
        yield came
    finally:
        sys.setprofile(None)


async def moments(scenario):
    """Run the scenario once for each moment that there is in it."""
    counted = 0
    came = ["at first"]
    while came:
        counted += 1
        async with asyncio.timeout(LIMIT):
            came = await scenario(counted)
    assert counted > 20, "nothing was interrupted"


class Handlers:
    """So many handlers, and what each was told."""

    def __init__(self, count):
        self.told = [0] * count
        self.running = 0
        self.all = [self._handler(index) for index in range(count)]

    def _handler(self, index):
        async def handler(irqfd, count):
            assert not self.running
            self.running += 1
            await asyncio.sleep(0)
            self.running -= 1
            self.told[index] += count

        return handler


@pytest.mark.parametrize(
    ("make", "handlers", "workers"), [(SlowSink, 0, 1), (SlowSink, 1, 2), (RefusingSink, 1, 2), (RefusingSink, 2, 2)]
)
async def test_it_signals_the_same_irqfd(make, handlers, workers):
    async def scenario(number):
        sink, told = make(), Handlers(handlers)
        async with IrqManager(sink, queue=WorkQueue(workers=workers)) as irqs:
            with EventFd() as kick:
                irqfd = irqs.assign(kick, gsi=5, wakeup=told.all)
                with interrupted(number, lambda: kick.signal(10)) as came:
                    kick.signal()
                    await irqs.flush()
                    while irqfd.state is not State.IDLE:
                        await asyncio.sleep(0)
                await irqs.flush()
                assert irqfd.state is State.IDLE, came
                sent = 11 if came else 1
                assert told.told == [sent] * handlers, came
                assert irqfd.statistics().signals == sent, came
                assert 1 <= len(sink.interrupts) <= 2
                return came

    await moments(scenario)


@pytest.mark.parametrize("handlers", [0, 1])
async def test_it_signals_an_irqfd_that_finds_the_queue_full(handlers):
    async def scenario(number):
        sink, told, others = SlowSink(), Handlers(handlers), Handlers(handlers)
        async with IrqManager(sink, queue=WorkQueue(1)) as irqs:
            with EventFd() as kick, EventFd() as other, EventFd() as third:
                irqfd = irqs.assign(kick, gsi=5, wakeup=told.all)
                another = irqs.assign(other, gsi=6, wakeup=others.all)
                masked = irqs.assign(third, gsi=7, masked=True)
                third.signal()
                with interrupted(number, lambda: (kick.signal(10), other.signal(10))) as came:
                    for eventfd in (kick, other):
                        eventfd.signal()
                    masked.unmask()
                    await irqs.flush()
                await irqs.flush()
                assert {irqfd.state, another.state, masked.state} == {State.IDLE}, came
                assert told.told == others.told == [11 if came else 1] * handlers, came
                assert {interrupt.gsi for interrupt in sink.interrupts} == {5, 6, 7}
                return came

    await moments(scenario)


@pytest.mark.parametrize("workers", [1, 2])
async def test_it_queues_the_same_item(workers):
    async def scenario(number):
        running = ran = 0

        async def item():
            nonlocal running, ran
            assert not running
            running += 1
            await asyncio.sleep(0)
            running -= 1
            ran += 1

        async with WorkQueue(workers=workers) as queue:
            work = Work(item)
            with interrupted(number, lambda: queue.schedule(work)) as came:
                queue.schedule(work)
                await queue.drain()
            await queue.drain()
            assert (queue.idle, queue.waiting, work.pending) == (True, 0, False), came
            assert 1 <= ran <= 2
            statistics = queue.statistics()
            assert statistics.completed == statistics.scheduled == ran, came
            return came

    await moments(scenario)


@pytest.mark.parametrize("handlers", [1, 2])
async def test_it_masks_and_unmasks(handlers):
    async def scenario(number):
        sink, told = SlowSink(), Handlers(handlers)
        async with IrqManager(sink) as irqs:
            with EventFd() as kick:
                irqfd = irqs.assign(kick, gsi=5, wakeup=told.all)

                def call():
                    irqfd.mask()
                    kick.signal(10)
                    irqfd.unmask()

                with interrupted(number, call) as came:
                    kick.signal()
                    await irqs.flush()
                await irqs.flush()
                assert irqfd.state is State.IDLE, came
                assert told.told == [11 if came else 1] * handlers, came
                assert sink.interrupts
                return came

    await moments(scenario)
