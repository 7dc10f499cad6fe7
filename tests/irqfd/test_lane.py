"""An irqfd with one handler, which the counter module runs: what is done to it while the handler runs, and while it waits to."""

from __future__ import annotations

import asyncio

import pytest

from aioirqfd import EventFd, InjectionError, IrqchipPin, IrqManager, Retry, State, WorkQueue
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import RefusingSink
from tests.irqfd.helpers import pulse, turns, write

NEVER = Retry(attempts=0)
AT_ONCE = Retry(attempts=2, initial=0, maximum=0)
ELSEWHERE = IrqchipPin("ioapic", 7)


class Handler:
    """Waits at a gate in each of its runs, and knows how many of them there are at once."""

    def __init__(self, *, fails=0):
        self.fails = fails
        self.counts = []
        self.done = []
        self.gates = []
        self.running = self.most = 0

    async def __call__(self, irqfd, count):
        gate = asyncio.Event()
        self.counts.append(count)
        self.gates.append(gate)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await gate.wait()
            if self.fails:
                self.fails -= 1
                raise OSError("the handler")
            self.done.append(count)
        finally:
            self.running -= 1

    def let_go(self):
        for gate in self.gates:
            gate.set()


# ------------------------------------------------------------------------------------- deassigned while its handler runs


@pytest.mark.trouble
@pytest.mark.parametrize("why", ["masked", "paused", "raised"])
async def test_what_may_not_be_injected_after_its_handler_goes_back_into_the_eventfd(why):
    sink = RecordingSink()
    handler = Handler(fails=why == "raised")
    irqs = await IrqManager(sink, retry=NEVER).__aenter__()
    with EventFd() as kick:
        irqfd = irqs.assign(kick, gsi=5, wakeup=handler)
        kick.signal(3)
        await turns()
        if why == "masked":
            irqfd.mask()
        pausing = asyncio.ensure_future(irqs.pause()) if why == "paused" else None
        await turns()
        deassigning = asyncio.ensure_future(irqs.deassign(irqfd))
        await turns()
        assert (handler.running, deassigning.done()) == (1, False)
        handler.let_go()
        await deassigning
        assert (irqfd.state, irqfd._binding.active, irqs._irqfds.leaving) == (State.CLOSED, False, set())
        # What its handler was told of is not told again: 1 goes back, which keeps the interrupt.
        back = 3 if why == "raised" else 1
        assert irqfd.statistics().signals == 3 - back
        if pausing is not None:
            await pausing
            irqs.resume()
        # The next one finds it (row P01).
        irqs.assign(kick, gsi=6)
        await irqs.flush()
        assert sink.interrupts == [pulse(6)]
        assert kick.read_nowait() == back
        if why == "raised":
            with pytest.raises(InjectionError):
                await irqs.aclose()
        await irqs.aclose()


async def test_masked_and_deassigned_by_its_own_handler():
    sink = RecordingSink()
    states = []

    async def on_wakeup(irqfd, count):
        irqfd.mask()
        await irqfd.aclose()
        states.append(irqfd.state)

    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=on_wakeup)
            kick.signal(2)
            await irqs.flush()
            assert states != [State.CLOSED]
            assert (irqfd.state, irqs._irqfds.leaving, sink.interrupts) == (State.CLOSED, set(), [])
            assert kick.read_nowait() == 1


@pytest.mark.trouble
async def test_an_int_whose_handler_fails_while_it_is_deassigned_is_let_go(eventfd_int):
    handler = Handler(fails=1)
    irqs = await IrqManager(RecordingSink(), retry=NEVER).__aenter__()
    irqfd = irqs.assign(eventfd_int, gsi=5, wakeup=handler)
    reference = irqfd.eventfd
    reference.signal(4)
    await turns()
    deassigning = asyncio.ensure_future(irqs.deassign(irqfd))
    await turns()
    handler.let_go()
    await deassigning
    assert reference.closed
    assert EventFd.from_fd(eventfd_int).read_nowait() == 4
    with pytest.raises(InjectionError):
        await irqs.aclose()


@pytest.fixture
def eventfd_int():
    with EventFd() as eventfd:
        yield eventfd.fileno()


# ------------------------------------------------------------------------------------------- never against itself


@pytest.mark.parametrize("how", ["masked", "rerouted", "paused"])
@pytest.mark.parametrize("workers", [1, 2])
async def test_signalled_in_between_its_handler_is_not_run_against_itself(how, workers):
    sink = RecordingSink()
    handler = Handler()
    async with IrqManager(sink, queue=WorkQueue(workers=workers)) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=handler)
            kick.signal(10)
            await turns()
            pausing = None
            if how == "masked":
                irqfd.mask()
                kick.signal(3)
                irqfd.unmask()
            elif how == "paused":
                pausing = asyncio.ensure_future(irqs.pause())
                await turns()
                kick.signal(3)
                irqs.resume()
            else:
                irqs.set_route(5, ELSEWHERE)
                kick.signal(3)
            await turns()
            assert (handler.counts, irqfd.statistics().coalesced) == ([10], 0)
            handler.let_go()
            await turns()
            handler.let_go()
            if pausing is not None:
                await pausing
            await irqs.flush()
            assert (handler.most, handler.done) == (1, [10, 3])
            assert sink.interrupts == [pulse(5, ELSEWHERE if how == "rerouted" else None)] * 2
            assert irqfd.state is State.IDLE


async def test_the_barrier_waits_for_a_handler_that_was_signalled_and_rerouted_meanwhile():
    sink = RecordingSink()
    handler = Handler()
    async with IrqManager(sink, queue=WorkQueue(workers=2)) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=handler)
            kick.signal()
            await turns()
            irqs.set_route(5, ELSEWHERE)
            kick.signal()
            await turns()
            deassigning = asyncio.ensure_future(irqs.deassign(irqfd))
            for number in range(2):
                await turns()
                assert (len(handler.gates), deassigning.done()) == (number + 1, False)
                handler.let_go()
            await deassigning
            assert (irqfd.state, handler.running, handler.most) == (State.CLOSED, 0, 1)
            assert sink.interrupts == [pulse(5, ELSEWHERE)] * 2


async def test_a_handler_that_signals_and_deassigns_its_own_irqfd_is_not_run_within_itself():
    sink = RecordingSink()
    depth = []
    counts = []

    async def on_wakeup(irqfd, count):
        assert not depth
        depth.append(1)
        counts.append(count)
        if len(counts) == 1:
            irqfd.mask()
            kick.signal(3)
            irqfd.unmask()
            await irqs.deassign(irqfd)
        depth.pop()

    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=on_wakeup)
            kick.signal(2)
            await irqs.flush()
            await irqs.queue.drain()
            assert (counts, irqfd.state) == ([2, 3], State.CLOSED)
            assert sink.interrupts == [pulse(5)] * 2


async def test_signalled_and_rerouted_under_a_handler_that_fails_every_count_is_told():
    sink = RecordingSink()
    handler = Handler(fails=1)
    async with IrqManager(sink, queue=WorkQueue(workers=2), retry=AT_ONCE) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=handler)
            kick.signal(10)
            await turns()
            irqs.set_route(5, ELSEWHERE)
            kick.signal(3)
            await turns()
            while irqfd.state is not State.IDLE:
                handler.let_go()
                await turns(1)
            assert (sum(handler.done), handler.most) == (13, 1)
            assert len(sink.interrupts) == len(handler.done)


async def test_what_waited_for_the_resume_is_not_overtaken_by_the_handlers_lane():
    # Its count waited in line for the handler when the manager was paused, so from then on the bottom half has it.
    sink = RecordingSink()
    handler = Handler()
    async with IrqManager(sink, queue=WorkQueue(workers=2)) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=handler)
            kick.signal(10)
            await irqs.pause()
            assert irqfd.state is State.PENDING
            irqs.resume()
            await turns()
            kick.signal(3)
            await turns()
            assert (handler.counts, handler.running) == ([10], 1)
            while irqfd.state is not State.IDLE:
                handler.let_go()
                await turns(1)
            assert (handler.done, handler.most) == ([10, 3], 1)
            assert sink.interrupts == [pulse(5)] * 2


async def test_refused_while_deassigned_it_is_injected_all_the_same():
    sink = RefusingSink()
    handler = Handler()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=handler)
            kick.signal()
            await turns()
            deassigning = asyncio.ensure_future(irqs.deassign(irqfd))
            await turns()
            handler.let_go()
            await deassigning
            assert (irqfd.state, sink.interrupts) == (State.CLOSED, [pulse(5)])


# ------------------------------------------------------------------------------------------------------ bound anew


async def test_bound_anew_by_its_own_handler_the_new_irqfd_is_heard_at_once():
    sink = RecordingSink()
    log = []

    async def new_handler(irqfd, count):
        log.append(("new", count))
        told.set()

    async def old_handler(irqfd, count):
        log.append(("old", count))
        await irqfd.aclose()
        irqs.assign(kick, gsi=6, wakeup=new_handler)
        kick.signal(3)
        await told.wait()
        log.append(("old", "ends"))

    told = asyncio.Event()
    async with IrqManager(sink, queue=WorkQueue(workers=2)) as irqs:
        with EventFd() as kick:
            old = irqs.assign(kick, gsi=5, wakeup=old_handler)
            kick.signal(2)
            await turns()
            await irqs.flush()
            assert log == [("old", 2), ("new", 3), ("old", "ends")]
            assert sorted(interrupt.gsi for interrupt in sink.interrupts) == [5, 6]
            assert (old.state, irqs._irqfds.leaving) == (State.CLOSED, set())


class SignallingSink:
    """Signals from within try_inject, and knows how deep it is in itself."""

    def __init__(self):
        self.depth = self.deepest = 0
        self.interrupts = []
        self.other: EventFd | None = None

    async def inject(self, interrupt):
        raise AssertionError("it takes everything at once")

    def try_inject(self, interrupt):
        self.depth += 1
        self.deepest = max(self.deepest, self.depth)
        self.interrupts.append(interrupt)
        if interrupt.gsi == 5 and self.other is not None:
            self.other.signal()
        self.depth -= 1
        return True


@pytest.mark.parametrize("handlers", [0, 1, 2])
@pytest.mark.parametrize("how", ["signalled", "deassigned"])
async def test_a_sink_that_signals_is_not_entered_from_within_itself(how, handlers):
    async def on_wakeup(irqfd, count):
        pass

    sink = SignallingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick, EventFd() as other:
            sink.other = other
            irqfd = irqs.assign(kick, gsi=5, wakeup=[on_wakeup] * handlers)
            irqs.assign(other, gsi=6)
            if how == "deassigned":
                write(kick)
                await irqs.deassign(irqfd)
            else:
                kick.signal()
            await irqs.flush()
            await irqs.flush()
            assert (sink.deepest, sink.interrupts) == (1, [pulse(5), pulse(6)])


# ------------------------------------------------------------------------------------------------------ statistics


async def test_what_waits_for_the_handler_or_is_with_it_is_not_coalesced_yet():
    handler = Handler()
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=handler)
            kick.signal(7)
            assert (irqfd.statistics().signals, irqfd.statistics().coalesced) == (7, 0)
            await turns()
            assert (handler.running, irqfd.statistics().coalesced) == (1, 0)
            kick.signal(2)
            assert (irqfd.statistics().signals, irqfd.statistics().coalesced) == (9, 0)
            handler.let_go()
            await turns()
            assert (irqfd.statistics().injections, irqfd.statistics().coalesced) == (1, 6)
            handler.let_go()
            await irqs.flush()
            assert (irqfd.statistics().injections, irqfd.statistics().coalesced) == (2, 7)


# ------------------------------------------------------------------------------------------------------ a full semaphore


@pytest.mark.parametrize("handlers", [1, 2])
@pytest.mark.parametrize("count", [1, 255, 256, 257, 512, 5000])
@pytest.mark.parametrize("held_by", ["nobody", "mask", "pause", "route", "handler"])
async def test_a_flush_waits_for_all_that_a_semaphore_holds(held_by, count, handlers):
    told = [0] * handlers
    gate = asyncio.Event()

    def teller(index):
        async def handler(irqfd, count):
            await gate.wait()
            told[index] += count

        return handler

    async with IrqManager(RecordingSink(), unrouted="hold") as irqs:
        with EventFd(semaphore=True) as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=[teller(n) for n in range(handlers)], masked=held_by == "mask")
            first = 0
            if held_by == "pause":
                await irqs.pause()
            if held_by == "route":
                irqs.set_route(5, ())
            if held_by == "handler":
                first = 1
                kick.signal()
                await turns()
            kick.signal()
            if count > 1:
                write(kick, count - 1)
            if held_by == "mask":
                irqfd.unmask()
            if held_by == "pause":
                irqs.resume()
            if held_by == "route":
                irqs.set_route(5, IrqchipPin("ioapic", 5))
            flush = asyncio.ensure_future(irqs.flush())
            await turns()
            assert not flush.done()
            gate.set()
            await flush
            assert told == [first + count] * handlers
            assert irqfd.state is State.IDLE
            assert irqfd.statistics().signals == first + count
