"""Level-triggered lines: asserted by a signal, lowered once at the end of interrupt, then everybody is told (rows R01 to R22)."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from aioirqfd import EventFd, IrqchipPin, IrqManager, Retry, WorkQueue, WouldBlock
from aioirqfd.irqfd.interrupt import Action
from aioirqfd.sinks import CallbackSink, RecordingSink
from aioirqfd.testing import FlakySink, GatedSink, RecordingTracer
from tests.irqfd.helpers import MSI, SlowSink, asserted, deasserted, pulse, turns

PIC, IOAPIC = IrqchipPin("pic", 9), IrqchipPin("ioapic", 9)
UP, DOWN = asserted(9), deasserted(9)


def count(eventfd):
    try:
        return eventfd.read_nowait()
    except WouldBlock:
        return 0


class Line:
    """A manager with a few level-triggered irqfds on gsi 9."""

    def __init__(self, sink, number=1, **options):
        self.sink = sink
        self.irqs = IrqManager(sink, **options)
        self.kicks = [EventFd() for _ in range(number)]
        self.unmasks = [EventFd() for _ in range(number)]

    async def __aenter__(self):
        await self.irqs.__aenter__()
        self.irqfds = [
            self.irqs.assign(kick, gsi=9, resamplefd=unmask)
            for kick, unmask in zip(self.kicks, self.unmasks, strict=True)
        ]
        return self

    async def __aexit__(self, *error):
        try:
            await self.irqs.__aexit__(*error)
        finally:
            for eventfd in (*self.kicks, *self.unmasks):
                eventfd.close()

    @property
    def told(self):
        return [count(unmask) for unmask in self.unmasks]


SINKS = pytest.mark.parametrize("make", [RecordingSink, SlowSink])


@SINKS
async def test_r01_it_stays_up_and_further_signals_are_in_the_same_interrupt(make):
    async with Line(make()) as line:
        for _ in range(3):
            line.kicks[0].signal()
            await line.irqs.flush()
        assert set(line.sink.interrupts) == {UP}
        assert line.irqs.statistics().asserted == 1
        assert line.irqs._irqfds.lines.asserted() == {9: (IOAPIC,)}
        assert line.told == [0]


@SINKS
async def test_r02_the_line_is_lowered_once_and_then_the_resamplefd_signalled(make):
    log = []
    sink = make()
    async with Line(sink) as line:

        async def listen():
            async for told in line.unmasks[0]:
                log.append((told, sink.interrupts[-1]))  # noqa: PERF401  what it is at that moment

        listener = asyncio.ensure_future(listen())
        line.kicks[0].signal()
        await line.irqs.flush()
        line.irqs.ack(9)
        await turns()
        assert sink.interrupts == [UP, DOWN]
        assert log == [(1, DOWN)]
        assert line.irqs.statistics().asserted == 0
        line.unmasks[0].close()
        await listener


async def test_r03_r04_everybody_is_told_newest_first_whoever_triggered():
    order = []
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        kicks = [EventFd() for _ in range(3)]
        unmasks = [EventFd() for _ in range(3)]
        for number, (kick, unmask) in enumerate(zip(kicks, unmasks, strict=True)):
            irqs.assign(kick, gsi=9, resamplefd=unmask)
            # Bound as an irqfd, a resamplefd is seen at the very moment it is signalled.
            irqs.assign(unmask, gsi=10 + number)
        kicks[0].signal()
        irqs.ack(9)
        order = [interrupt.gsi for interrupt in sink.interrupts]
        for eventfd in (*kicks, *unmasks):
            eventfd.close()
    assert order == [9, 9, 12, 11, 10]


async def test_r05_an_end_of_interrupt_that_the_line_did_not_cause_tells_them_too():
    async with Line(RecordingSink(), 2) as line:
        line.irqs.ack(9)
        assert line.told == [1, 1]
        assert line.sink.interrupts == []


async def test_r06_an_end_of_interrupt_elsewhere_tells_nobody():
    async with Line(RecordingSink()) as line:
        line.kicks[0].signal()
        line.irqs.ack(8)
        line.irqs.ack(4096)
        assert line.told == [0]
        assert line.sink.interrupts == [UP]


@SINKS
async def test_r07_r08_a_trigger_before_the_ack_is_swallowed_and_one_after_it_is_a_new_interrupt(make):
    async with Line(make(), 2) as line:
        line.kicks[0].signal()
        await line.irqs.flush()
        line.kicks[1].signal()
        await line.irqs.flush()
        line.irqs.ack(9)
        await turns()
        assert line.told == [1, 1]
        line.kicks[1].signal()  # it still has a reason
        await line.irqs.flush()
        assert line.sink.interrupts == [UP, UP, DOWN, UP]


async def test_r10_a_resamplefd_that_several_share_is_told_once_for_each():
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as unmask:
            kicks = [EventFd() for _ in range(3)]
            for kick in kicks:
                irqs.assign(kick, gsi=9, resamplefd=unmask)
            irqs.ack(9)
            assert unmask.read_nowait() == 3
            kicks[1].close()
            irqs.ack(9)
            assert unmask.read_nowait() == 2
            for kick in kicks:
                kick.close()


@SINKS
async def test_r13_r14_the_last_one_out_lowers_the_line_and_nobody_is_told(make):
    async with Line(make(), 2) as line:
        line.kicks[0].signal()
        await line.irqs.flush()
        await line.irqs.deassign(line.irqfds[0])
        assert line.sink.interrupts == [UP], "it stays as it is, even though that one asserted it"
        await line.irqs.deassign(line.irqfds[1])
        await turns()
        assert line.sink.interrupts == [UP, DOWN]
        assert line.told == [0, 0]
        assert line.irqs._irqfds.lines.asserted() == {}


async def test_r16_a_closed_resamplefd_keeps_nobody_from_hearing():
    async with Line(RecordingSink(), 3) as line:
        line.unmasks[2].close()
        line.kicks[0].signal()
        line.irqs.ack(9)
        assert [count(unmask) for unmask in line.unmasks[:2]] == [1, 1]
        assert line.sink.interrupts == [UP, DOWN]


async def test_r16_an_fd_closed_behind_its_back_keeps_nobody_from_hearing():
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    async with Line(RecordingSink()) as line:
        with EventFd() as kick:
            line.irqs.assign(kick, gsi=9, resamplefd=fd)
            os.close(fd)
            line.irqs.ack(9)
            assert line.told == [1]


@SINKS
async def test_r22_an_end_of_interrupt_after_the_deassign_tells_nobody(make):
    async with Line(make()) as line:
        line.kicks[0].signal()
        await line.irqs.flush()
        await line.irqs.deassign(line.irqfds[0])
        line.irqs.ack(9)
        await turns()
        assert line.told == [0]
        assert line.sink.interrupts == [UP, DOWN]


@SINKS
async def test_m07_a_message_has_no_line(make):
    sink = make()
    async with Line(sink, routing={9: MSI}) as line:
        line.kicks[0].signal()
        await line.irqs.flush()
        assert sink.interrupts == [pulse(9, MSI)]
        line.irqs.ack(9)
        assert sink.interrupts == [pulse(9, MSI)]


@SINKS
async def test_several_chips_are_raised_and_lowered_in_the_tables_order(make):
    async with Line(make(), routing={9: [PIC, IOAPIC]}) as line:
        line.kicks[0].signal()
        await line.irqs.flush()
        line.irqs.ack(9)
        await turns()
        assert line.sink.interrupts == [
            asserted(9, PIC),
            asserted(9, IOAPIC),
            deasserted(9, PIC),
            deasserted(9, IOAPIC),
        ]


async def test_an_ack_from_another_thread_finds_the_line_low_when_it_returns():
    async with Line(RecordingSink()) as line:
        levels = []

        def vcpu():
            for _ in range(200):
                raised.wait()
                raised.clear()
                line.irqs.ack(9)
                levels.append(line.sink.interrupts[-1])
                loop.call_soon_threadsafe(lowered.set)

        raised, lowered = threading.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        thread = threading.Thread(target=vcpu)
        thread.start()
        for _ in range(200):
            line.kicks[0].signal()
            raised.set()
            await lowered.wait()
            lowered.clear()
        thread.join()
        assert levels == [DOWN] * 200
        assert line.sink.interrupts == [UP, DOWN] * 200
        assert line.told == [200]


async def test_an_ack_from_another_thread_with_a_sink_that_takes_its_time():
    async with Line(SlowSink()) as line:
        line.kicks[0].signal()
        await line.irqs.flush()
        thread = threading.Thread(target=line.irqs.ack, args=(9,))
        thread.start()
        assert await line.unmasks[0].read() == 1
        thread.join()
        assert line.sink.interrupts == [UP, DOWN]


async def test_an_ack_while_the_line_is_being_raised_lowers_it_once_it_is_up():
    sink = GatedSink()
    async with Line(sink) as line:
        line.kicks[0].signal()
        await sink.wait_begun(1)
        line.irqs.ack(9)
        await turns()
        assert line.told == [0], "not before the line is low"
        sink.open()
        assert await line.unmasks[0].read() == 1
        assert sink.interrupts == [UP, DOWN]


async def test_an_ack_inside_the_sink_that_is_just_taking_it():
    # Auto-EOI: acknowledged before the sink has returned.
    class AutoEoi:
        def __init__(self):
            self.interrupts = []

        def bind(self, ack):
            self.ack = ack

        async def inject(self, interrupt):
            self.try_inject(interrupt)

        def try_inject(self, interrupt):
            self.interrupts.append(interrupt)
            if interrupt.action is Action.ASSERT:
                self.ack(interrupt.gsi)
            return True

    async with Line(AutoEoi()) as line:
        for _ in range(3):
            line.kicks[0].signal()
            await line.irqs.flush()
        assert line.sink.interrupts == [UP, DOWN] * 3
        assert line.irqs._irqfds.lines.asserted() == {}
        assert line.told == [3]


async def test_g12_rerouted_while_asserted_the_line_moves_along():
    async with Line(RecordingSink()) as line:
        line.kicks[0].signal()
        line.irqs.set_routing({9: PIC})
        assert line.sink.interrupts == [UP, DOWN, asserted(9, PIC)], "the old pin is not stuck"
        assert line.told == [0]
        line.irqs.set_routing({9: PIC, 5: MSI})
        assert len(line.sink.interrupts) == 3, "nothing changed for it"
        line.irqs.ack(9)
        assert line.sink.interrupts[3:] == [deasserted(9, PIC)]
        assert line.told == [1]


@pytest.mark.parametrize("workers", [1, 2])
async def test_g12_rerouted_while_asserted_with_a_slow_sink(workers):
    async with Line(SlowSink(), queue=WorkQueue(workers=workers)) as line:
        line.kicks[0].signal()
        await line.irqs.flush()
        line.irqs.set_routing({9: PIC})
        await turns()
        assert line.sink.interrupts == [UP, DOWN, asserted(9, PIC)]
        assert line.irqs._irqfds.lines.asserted() == {9: (PIC,)}
        line.irqs.ack(9)
        await turns()
        assert line.sink.interrupts[3:] == [deasserted(9, PIC)]
        assert line.told == [1]


@SINKS
async def test_g13_unrouted_while_asserted_and_held_it_comes_back_with_the_route(make):
    async with Line(make(), unrouted="hold") as line:
        line.kicks[0].signal()
        await line.irqs.flush()
        line.irqs.set_routing({})
        await turns()
        assert line.sink.interrupts == [UP, DOWN]
        assert line.irqs._irqfds.lines.asserted() == {}
        line.irqs.set_routing({9: PIC})
        await turns()
        assert line.sink.interrupts == [UP, DOWN, asserted(9, PIC)]
        line.irqs.ack(9)
        await turns()
        assert line.told == [1]
        assert line.irqfds[0].statistics().signals == 1


@SINKS
async def test_g13_unrouted_while_asserted_and_not_held_it_comes_back_with_the_route_too(make):
    async with Line(make()) as line:
        line.kicks[0].signal()
        await line.irqs.flush()
        line.irqs.set_route(9, ())
        await turns()
        assert line.sink.interrupts == [UP, DOWN]
        line.irqs.set_routing({5: MSI})
        await turns()
        assert line.sink.interrupts == [UP, DOWN], "still no route"
        line.irqs.set_route(9, PIC)
        await turns()
        assert line.sink.interrupts == [UP, DOWN, asserted(9, PIC)]
        line.irqs.ack(9)
        await turns()
        assert line.told == [1]
        line.irqs.set_route(9, IOAPIC)
        await turns()
        assert len(line.sink.interrupts) == 4, "once"


async def test_a_line_that_comes_back_is_no_signal():
    seen = []

    async def handler(irqfd, number):
        seen.append(number)

    async with IrqManager(RecordingSink(), unrouted="hold") as irqs:
        with EventFd() as kick, EventFd() as unmask:
            irqfd = irqs.assign(kick, gsi=9, resamplefd=unmask, wakeup=handler)
            kick.signal(2)
            await irqs.flush()
            irqs.set_routing({})
            irqs.set_routing({9: PIC})
            await irqs.flush()
            assert irqs._irqfds.lines.asserted() == {9: (PIC,)}
            assert seen == [2]
            irqs.set_routing({})
            await irqs.deassign(irqfd)
            assert count(kick) == 0


async def test_a_failing_assertion_is_tried_again():
    sink = FlakySink(2)
    async with Line(sink, retry=Retry(5, 0, 0)) as line:
        line.kicks[0].signal()
        await line.irqs.flush()
        assert sink.attempts == [UP] * 3
        assert line.irqs._irqfds.lines.asserted() == {9: (IOAPIC,)}


async def test_a_failing_lowering_is_reported_and_tried_again_before_anybody_is_told():
    sink, tracer = FlakySink(0), RecordingTracer()
    async with Line(sink, retry=Retry(5, 0, 0.001), tracer=tracer) as line:
        line.kicks[0].signal()
        await line.irqs.flush()
        sink.failures = 2
        line.irqs.ack(9)
        assert await line.unmasks[0].read() == 1
        assert sink.attempts == [UP, DOWN, DOWN, DOWN]
        assert len(tracer.of("lowering_failed")) == 2


@pytest.mark.trouble
async def test_a_line_raised_elsewhere_while_its_lowering_is_tried_again_is_not_lowered_with_it():
    sink = FlakySink(0)
    async with Line(sink, retry=Retry(5, 0, 0.001)) as line:
        line.kicks[0].signal()
        await line.irqs.flush()
        sink.failures = 1
        line.irqs.set_routing({9: PIC})
        while line.sink.interrupts[-1] != DOWN:
            await asyncio.sleep(0)
        await turns()
        assert line.irqs._irqfds.lines.asserted() == {9: (PIC,)}
        assert sorted(map(repr, sink.interrupts)) == sorted(map(repr, [UP, asserted(9, PIC), DOWN]))


class FailsToLowerOnce:
    """Says no to the first lowering, and only when it is let."""

    def __init__(self):
        self.attempts = []
        self.let = asyncio.Event()

    async def inject(self, interrupt):
        self.attempts.append(interrupt)
        if interrupt == DOWN and not self.let.is_set():
            await self.let.wait()
            raise OSError(5, "not now")


@pytest.mark.trouble
async def test_a_line_that_is_raised_again_while_its_lowering_is_tried_again_stays_up():
    sink = FailsToLowerOnce()
    async with Line(sink, 2, retry=Retry(5, 0, 0)) as line:
        line.kicks[0].signal()
        await line.irqs.flush()
        line.irqs.ack(9)
        while sink.attempts != [UP, DOWN]:
            await asyncio.sleep(0)
        line.kicks[1].signal()
        while line.irqs.statistics().queue.queued == 0:
            await asyncio.sleep(0)  # until it stands in the queue, and so before the second attempt
        sink.let.set()
        # One acknowledgement, of which both are told once: the first device's, before the second raised the line.
        assert await line.unmasks[0].read() == 1
        assert await line.unmasks[1].read() == 1
        await line.irqs.flush()
        assert line.irqs._irqfds.lines.asserted() == {9: (IOAPIC,)}
        assert sink.attempts == [UP, DOWN, UP]
        line.irqs.ack(9)
        assert await line.unmasks[1].read() == 1
        assert await line.unmasks[0].read() == 1
        assert sink.attempts == [UP, DOWN, UP, DOWN]
        assert line.irqs._irqfds.lines.asserted() == {}


async def test_a_fast_sink_that_refuses_to_lower_is_asked_by_the_queue():
    class Sink:
        def __init__(self):
            self.interrupts = []

        def try_inject(self, interrupt):
            if interrupt.action is Action.DEASSERT:
                raise OSError("busy")
            self.interrupts.append(interrupt)
            return True

        async def inject(self, interrupt):
            self.interrupts.append(interrupt)

    async with Line(Sink()) as line:
        line.kicks[0].signal()
        line.irqs.ack(9)
        assert await line.unmasks[0].read() == 1
        assert line.sink.interrupts == [UP, DOWN]


async def test_assigned_again_while_the_old_line_is_still_being_lowered():
    # The new assertion must come after the old lowering, or the line would be low with a signal owed.
    sink = GatedSink()
    async with Line(sink, queue=WorkQueue(workers=4)) as line:
        line.kicks[0].signal()
        await sink.wait_begun(1)
        sink.release()
        await line.irqs.flush()
        await line.irqs.deassign(line.irqfds[0])
        await sink.wait_begun(2)
        line.irqs.assign(line.kicks[0], gsi=9, resamplefd=line.unmasks[0])
        line.kicks[0].signal()
        await turns()
        assert sink.begun == [UP, DOWN], "not yet"
        sink.open()
        await line.irqs.flush()
        assert sink.interrupts == [UP, DOWN, UP]


async def test_closing_the_manager_lowers_what_is_up():
    seen = []

    async def inject(interrupt):
        await asyncio.sleep(0)
        seen.append(interrupt)

    async with Line(CallbackSink(inject), 2) as line:
        line.kicks[1].signal()
        await line.irqs.flush()
    assert seen == [UP, DOWN]


async def test_resample_without_an_end_of_interrupt():
    async with Line(RecordingSink(), 2) as line:
        line.kicks[0].signal()
        assert line.irqs.resample(9) is True
        assert line.irqs.resample(8) is False
        assert line.told == [1, 1]
        assert line.sink.interrupts == [UP]


async def test_plain_and_level_triggered_irqfds_on_one_gsi():
    async with Line(RecordingSink()) as line:
        with EventFd() as plain:
            line.irqs.assign(plain, gsi=9)
            plain.signal()
            line.kicks[0].signal()
            line.irqs.ack(9)
            assert line.sink.interrupts == [pulse(9), UP, DOWN]
            assert line.told == [1]
