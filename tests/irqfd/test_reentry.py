"""A sink is never entered from within itself on the loop's thread: pulses, lines up and down, at once and slowly."""

from __future__ import annotations

import threading

import pytest

from aioirqfd import Action, EventFd, IrqchipPin, IrqManager, Work, WorkQueue
from aioirqfd.sinks import RecordingSink
from tests.irqfd.helpers import asserted, deasserted, pulse, turns


class LockedSink:
    """One plain lock around everything; signals another device at each interrupt of gsi 9, as to a chip behind this one."""

    def __init__(self, *, fast):
        self.lock = threading.Lock()
        self.fast = fast
        self.interrupts = []
        self.others = []

    def _take(self, interrupt):
        assert self.lock.acquire(blocking=False), "entered from within itself"
        self.interrupts.append(interrupt)
        if interrupt.gsi == 9:
            for other in self.others:
                other.signal()
        self.lock.release()

    async def inject(self, interrupt):
        self._take(interrupt)

    def try_inject(self, interrupt):
        if self.fast:
            self._take(interrupt)
        return self.fast


async def handler(irqfd, count):
    pass


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("handlers", [0, 1, 2])
async def test_a_pulse(fast, handlers):
    sink = LockedSink(fast=fast)
    async with IrqManager(sink) as irqs:
        with EventFd() as kick, EventFd() as other:
            sink.others.append(other)
            irqs.assign(other, gsi=5)
            irqs.assign(kick, gsi=9, wakeup=[handler] * handlers)
            kick.signal()
            await irqs.flush()
            await irqs.flush()
            assert sink.interrupts == [pulse(9), pulse(5)]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("handlers", [0, 1])
async def test_a_line_up_moved_and_down(fast, handlers):
    sink = LockedSink(fast=fast)
    async with IrqManager(sink) as irqs:
        with EventFd() as kick, EventFd() as unmask, EventFd() as other:
            sink.others.append(other)
            irqs.assign(other, gsi=5)
            irqs.assign(kick, gsi=9, resamplefd=unmask, wakeup=[handler] * handlers)
            kick.signal()
            await irqs.flush()
            await irqs.flush()
            assert sink.interrupts == [asserted(9), pulse(5)]
            irqs.set_route(9, IrqchipPin("ioapic", 10))
            for _ in range(3):
                await irqs.flush()
            moved = [one for one in sink.interrupts[2:] if one.gsi == 9]
            assert moved == [deasserted(9), asserted(9, IrqchipPin("ioapic", 10))]
            irqs.ack(9)
            for _ in range(3):
                await irqs.flush()
            assert sink.interrupts[-2:] == [deasserted(9, IrqchipPin("ioapic", 10)), pulse(5)]
            assert unmask.read_nowait() == 1


@pytest.mark.parametrize("fast", [True, False])
async def test_a_resamplefd_that_is_a_trigger_hears_when_the_line_is_low(fast):
    # Acknowledged while it moves to another pin: lowered first, then told (rows R02, R03).
    log = []

    class Sink:
        async def inject(self, interrupt):
            self.note(interrupt)
            await turns(2)

        def try_inject(self, interrupt):
            if fast:
                self.note(interrupt)
            return fast

        def note(self, interrupt):
            log.append((interrupt.gsi, interrupt.action))
            if interrupt.action is Action.ASSERT and interrupt.route.pin == 10:
                irqs.ack(9)

    async with IrqManager(Sink()) as irqs:
        with EventFd() as kick, EventFd() as unmask:
            irqs.assign(kick, gsi=9, resamplefd=unmask)
            irqs.assign(unmask, gsi=5)
            kick.signal()
            await irqs.flush()
            irqs.set_route(9, IrqchipPin("ioapic", 10))
            for _ in range(4):
                await irqs.flush()
    assert log == [
        (9, Action.ASSERT),
        (9, Action.DEASSERT),
        (9, Action.ASSERT),
        (9, Action.DEASSERT),
        (5, Action.PULSE),
    ]


@pytest.mark.parametrize("maxsize", [1, 2, 5])
async def test_a_program_s_own_work_that_fills_the_queue_holds_nobody(maxsize):
    queue, sink, told = WorkQueue(maxsize=maxsize), RecordingSink(), []

    async def on_wakeup(irqfd, count):
        told.append(count)

    async def nothing():
        pass

    async with IrqManager(sink, queue=queue) as irqs:
        with EventFd() as kick, EventFd() as other:
            irqs.assign(kick, gsi=5, wakeup=on_wakeup)
            irqs.assign(other, gsi=6, wakeup=[on_wakeup] * 2)
            for _ in range(maxsize):
                queue.schedule(Work(nothing))
            kick.signal(7)
            other.signal(8)
            assert irqs.statistics().held == 2  # both, for the queue has told that it is full
            await queue.drain()
            await irqs.flush()
            assert (sorted(told), irqs.statistics().held) == ([7, 8, 8], 0)
            assert sorted(one.gsi for one in sink.interrupts) == [5, 6]
