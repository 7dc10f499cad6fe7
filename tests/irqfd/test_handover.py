"""Hand-overs between an irqfd and its sink: whatever the sink raises or closes on the way, a signal is injected once."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio

from aioirqfd import EventFd, IrqchipPin, IrqManager, Retry, State
from aioirqfd.irqfd import identity
from aioirqfd.sinks import RecordingSink
from tests.irqfd.helpers import OffloadingSink, SlowSink, asserted, deasserted, pulse, turns, write


class Interrupted(BaseException):
    """Neither an Exception nor what ends an event loop's callbacks."""


class NoAnswer:
    def __bool__(self):
        raise ValueError("neither true nor false")


ERRORS = [OSError("no"), asyncio.CancelledError(), Interrupted()]


@pytest_asyncio.fixture
async def ended():
    """What was to end the loop."""
    contexts = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context["exception"]))
    return contexts


def ends(error):
    return [error] if isinstance(error, Interrupted) else []


class Troubled(OffloadingSink):
    """Its offload() and reclaim() raise, or answer, what a test says; once."""

    def __init__(self):
        super().__init__(able=False)
        self.answers = []
        self.errors = []

    def offload(self, eventfd, interrupt, resamplefd):
        if self.answers:
            answer = self.answers.pop()
            if isinstance(answer, BaseException):
                raise answer
            return answer
        return super().offload(eventfd, interrupt, resamplefd)

    def reclaim(self, eventfd, interrupt):
        super().reclaim(eventfd, interrupt)
        if self.errors:
            raise self.errors.pop()


@pytest.mark.parametrize("answer", [*ERRORS, NoAnswer()])
async def test_what_is_pending_is_injected_where_the_sink_fails_to_take_the_eventfd_over(answer, ended):
    sink = Troubled()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, masked=True)
            kick.signal(3)
            sink.answers = [answer]
            irqfd.unmask()
            await irqs.flush()
            assert sink.interrupts == [pulse(5)]
            kick.signal()
            await irqs.flush()
            assert (irqfd.state, sink.interrupts, ended) == (State.IDLE, [pulse(5)] * 2, ends(answer))


@pytest.mark.parametrize("answer", [*ERRORS, NoAnswer()])
async def test_assign_raises_what_offload_has_raised_and_binds_nothing(answer):
    sink = Troubled()
    async with IrqManager(sink) as irqs:
        with EventFd(3) as kick:
            sink.answers = [answer]
            with pytest.raises(ValueError if isinstance(answer, NoAnswer) else type(answer)):
                irqs.assign(kick, gsi=5)
            assert (irqs.irqfds, irqs.statistics().offloaded) == ((), 0)
            irqs.assign(kick, gsi=5)
            await irqs.flush()
            assert sink.interrupts == [pulse(5)]


@pytest.mark.parametrize("error", ERRORS)
async def test_a_sink_that_does_not_let_go_leaves_nothing_half_shut(error, ended):
    sink = Troubled()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            sink.able = True
            irqfd = irqs.assign(kick, gsi=5)
            assert irqfd.offloaded
            sink.errors = [error]
            await irqs.deassign(irqfd)
            assert (irqfd.state, irqs.irqfds, irqs.statistics().offloaded) == (State.CLOSED, (), 0)
            assert irqfd.eventfd_id not in identity.bound
            sink.able = False
            irqs.assign(kick, gsi=5)
            kick.signal()
            await irqs.flush()
            await turns()
            assert (sink.interrupts, ended) == ([pulse(5)], ends(error))


@pytest.mark.parametrize("error", ERRORS)
async def test_one_that_the_sink_does_not_let_go_of_keeps_no_other_from_being_paused(error, ended):
    sink = Troubled()
    async with IrqManager(sink) as irqs:
        with EventFd() as first, EventFd() as second:
            sink.able = True
            irqfds = [irqs.assign(first, gsi=5), irqs.assign(second, gsi=6)]
            sink.errors = [error]
            await irqs.pause()
            assert [irqfd.offloaded for irqfd in irqfds] == [False, False]
            for eventfd in (first, second):
                eventfd.signal()
            sink.able = False
            irqs.resume()
            await irqs.flush()
            await turns()
            assert (sorted(sink.interrupts, key=str), ended) == ([pulse(5), pulse(6)], ends(error))


@pytest.mark.parametrize("error", ERRORS)
async def test_a_line_is_taken_back_as_a_whole_whatever_the_first_one_raises(error):
    sink = Troubled()
    async with IrqManager(sink) as irqs:
        with EventFd() as first, EventFd() as second, EventFd() as resample:
            sink.able = True
            irqfds = [irqs.assign(kick, gsi=9, resamplefd=resample) for kick in (first, second)]
            assert [irqfd.offloaded for irqfd in irqfds] == [True, True]
            sink.errors = [error]
            with pytest.raises(type(error)):
                irqfds[0].mask()
            assert [irqfd.offloaded for irqfd in irqfds] == [False, False]
            assert irqfds[0].masked
            first.signal()
            second.signal()
            await irqs.flush()
            assert (irqfds[0].pending, sink.interrupts) == (True, [asserted(9)])


# ------------------------------------------------------------------------------------------- closed within a pass


@pytest.mark.parametrize("tier", ["try_inject", "try_inject_batch", "wakeup"])
@pytest.mark.parametrize("closed", [5, 6])
async def test_an_eventfd_that_the_sink_closes_before_it_refuses_is_injected_all_the_same(tier, closed):
    class Sink(SlowSink):
        def try_inject(self, interrupt):
            kicks[closed].close()
            return False

    class Batch(Sink):
        def try_inject_batch(self, interrupts):
            kicks[closed].close()
            return 0

    sink = Batch() if tier == "try_inject_batch" else Sink()
    kicks = {gsi: EventFd() for gsi in (5, 6)}
    async with IrqManager(sink) as irqs:
        irqfds = [irqs.assign(kick, gsi=gsi) for gsi, kick in kicks.items()]
        if tier == "wakeup":
            irqs.set_route(closed, IrqchipPin("ioapic", closed + 10))  # by the slow top half once
        for kick in kicks.values():
            write(kick)
        await turns()
        await irqs.flush()
        assert sorted(interrupt.gsi for interrupt in sink.interrupts) == [5, 6]
        assert irqfds[closed - 5].state is State.CLOSED
        assert [irqfd.gsi for irqfd in irqs.irqfds] == [11 - closed]
    kicks[11 - closed].close()


# ------------------------------------------------------------------------------------------- lines


class Reluctant:
    """Its inject() fails to do something with a line, so often, because what it waits for is cancelled."""

    def __init__(self):
        self.failing = {}
        self.interrupts = []

    async def inject(self, interrupt):
        if self.failing.get(interrupt.action.name):
            self.failing[interrupt.action.name] -= 1
            answer = asyncio.get_running_loop().create_future()
            answer.cancel()
            await answer
        self.interrupts.append(interrupt)


async def test_a_line_is_moved_although_what_the_sink_waited_for_was_cancelled():
    sink = Reluctant()
    route = IrqchipPin("ioapic", 10)
    async with IrqManager(sink, retry=Retry(attempts=2, initial=0, maximum=0)) as irqs:
        with EventFd() as kick, EventFd() as resample:
            irqs.assign(kick, gsi=9, resamplefd=resample)
            kick.signal()
            await irqs.flush()
            sink.failing = {"DEASSERT": 1}
            irqs.ack(9)
            assert await resample.read() == 1
            assert sink.interrupts == [asserted(9), deasserted(9)]
            kick.signal()
            await irqs.flush()
            sink.failing = {"DEASSERT": 1, "ASSERT": 1}
            irqs.set_route(9, route)
            await turns(50)
            assert sink.interrupts[2:] == [asserted(9), deasserted(9), asserted(9, route)]


@pytest.mark.parametrize("error", ERRORS)
async def test_a_line_is_lowered_and_told_although_try_inject_raised(error, ended):
    class Sink(RecordingSink):  # pyright: ignore[reportGeneralTypeIssues]  final for users
        def try_inject(self, interrupt):
            if errors:
                raise errors.pop()
            return super().try_inject(interrupt)

    errors = []
    sink = Sink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick, EventFd() as resample:
            irqs.assign(kick, gsi=9, resamplefd=resample)
            kick.signal()
            errors.append(error)
            irqs.ack(9)
            assert await resample.read() == 1
            assert (sink.interrupts, ended) == ([asserted(9), deasserted(9)], ends(error))
