"""Faults of a sink, between a manager and whoever gets its interrupts."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from aioirqfd import EventFd, IrqManager
from aioirqfd.faults import Delay, Drop, Duplicate, Faults, Match, Misroute, Spurious, Withhold
from aioirqfd.irqfd.interrupt import Action, IrqchipPin, Msi
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import FlakySink, RecordingTracer, RefusingSink

ROUTES = {gsi: Msi(address=0xFEE0_0000, data=gsi) for gsi in range(4)}


@pytest.fixture
def faults(clock):
    with contextlib.closing(Faults(clock=clock, nonconforming=True)) as faults:
        yield faults


@contextlib.asynccontextmanager
async def managed(faults, sink, routes=ROUTES):
    async with IrqManager(faults.wrap(sink), routing=routes) as manager:
        with contextlib.ExitStack() as stack:
            eventfds = {gsi: stack.enter_context(EventFd()) for gsi in routes}

            async def signal(gsi):
                eventfds[gsi].signal()
                await manager.flush()

            for gsi, eventfd in eventfds.items():
                manager.assign(eventfd, gsi=gsi)
            yield signal


def gsis(sink):
    return [interrupt.gsi for interrupt in sink.interrupts]


@pytest.mark.parametrize("sink", [RecordingSink, RefusingSink, lambda: FlakySink(0)], ids=["fast", "refusing", "slow"])
async def test_the_second_is_lost(faults, sink):
    sink = sink()
    async with managed(faults, sink) as signal:
        lost = faults.add(Match("interrupt", gsi=2, nth=2), Drop())
        for gsi in (2, 1, 2, 2):
            await signal(gsi)
        assert gsis(sink) == [2, 1, 2]
        assert lost.hits == 1


async def test_elsewhere_late_and_again(faults, clock):
    sink = RecordingSink()
    async with managed(faults, sink) as signal:
        faults.add(Match("interrupt", gsi=0), Misroute(to=3))
        faults.add(Match("interrupt", gsi=1), Delay(1))
        faults.add(Match("interrupt", gsi=2), Duplicate(times=2, gap=1))
        for gsi in (0, 1, 2):
            await signal(gsi)
        assert gsis(sink) == [3, 2]
        clock.advance(1)
        assert gsis(sink) == [3, 2, 1, 2]
        clock.advance(1)
        assert gsis(sink) == [3, 2, 1, 2, 2]


@pytest.mark.trouble
async def test_one_that_is_late_is_tried_until_it_is_taken(faults, clock):
    sink = FlakySink(2)
    async with managed(faults, sink) as signal:
        faults.add(Match("interrupt", gsi=1), Delay(1))
        await signal(1)
        assert sink.attempts == []
        clock.advance(1)
        while not sink.interrupts:
            await asyncio.sleep(0)
        assert len(sink.attempts) == 3


async def test_for_nothing(faults, clock):
    sink = RecordingSink()
    async with managed(faults, sink) as signal:
        await signal(1)
        tracer = faults._tracer = RecordingTracer()
        faults.add(Match("interrupt", gsi=1), Spurious(every=1))
        clock.advance(2)
        assert gsis(sink) == [1, 1, 1]
        assert [hit["gsi"] for hit in tracer.of("fault_hit")] == [1, 1]


async def test_a_line_is_stuck(faults):
    sink = RecordingSink()
    async with IrqManager(faults.wrap(sink), routing={4: IrqchipPin("ioapic", 4)}) as manager:
        with EventFd() as trigger, EventFd() as resample:
            stuck = faults.add(Match("deassert", gsi=4), Withhold())
            manager.assign(trigger, gsi=4, resamplefd=resample)
            trigger.signal()
            await manager.flush()
            manager.ack(4)
            await manager.flush()
            assert [interrupt.action for interrupt in sink.interrupts] == [Action.ASSERT]
            stuck.release()
            assert [interrupt.action for interrupt in sink.interrupts] == [Action.ASSERT, Action.DEASSERT]


async def test_what_else_a_sink_can_do_is_there(faults):
    class Table:
        def __init__(self):
            self.tables = []
            self.interrupts = []

        async def inject(self, interrupt):
            self.interrupts.append(interrupt)

        def set_routing(self, table):
            self.tables.append(table)

    sink = Table()
    async with managed(faults, sink) as signal:
        assert len(sink.tables) >= 1
        await signal(1)
    assert gsis(sink) == [1]


@pytest.mark.trouble
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_late_interrupt_that_the_sink_fails_is_tried_again_and_that_is_said_once(faults, at_once):
    class Failing:
        def __init__(self):
            self.left = 3

        if at_once:

            def try_inject(self, interrupt):
                raise OSError(5, "not now")

        async def inject(self, interrupt):
            self.left -= 1
            if self.left:
                raise OSError(5, "not now")
            taken.append(interrupt.gsi)

    taken, said = [], []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context["message"]))
    async with managed(faults, Failing()) as signal:
        late = faults.add(Match("interrupt", gsi=1), Withhold())
        await signal(1)
        assert (taken, said) == ([], [])
        late.release()
        while not taken:
            await asyncio.sleep(0)
    assert taken == [1]
    assert said == ["aioirqfd: the sink fails a late interrupt of gsi 1, which is tried again until it is taken"]
