"""At the bound nothing is lost and nothing grows: what does not fit stays in the eventfds."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import tracemalloc

import pytest

from aioirqfd import EventFd, InjectionError, IrqManager, Msi, Retry, State, WorkQueue
from aioirqfd.testing import FlakySink, GatedSink, RecordingTracer, RefusingSink
from tests.irqfd.helpers import turns, write

IRQFDS, SIGNALS = 1000, 100


class MillisecondSink:
    """Takes 1 ms for each interrupt, and remembers when it last began one for each gsi."""

    def __init__(self):
        self.begun = {}
        self.injections = 0
        self.most = self.running = 0

    async def inject(self, interrupt):
        self.begun[interrupt.gsi] = self.clock()
        self.injections += 1
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.001)
        self.running -= 1

    clock = staticmethod(time.monotonic)


@pytest.mark.slow
@pytest.mark.parametrize("handler", [False, True])
async def test_a_thousand_irqfds_signalled_from_a_thread_through_a_queue_of_one(handler):
    sink = MillisecondSink()
    last = {}
    counted = dict.fromkeys(range(IRQFDS), 0)

    async def on_wakeup(irqfd, count):
        counted[irqfd.gsi] += count

    routing = {gsi: Msi(0xFEE00000, gsi) for gsi in range(IRQFDS)}
    async with IrqManager(sink, routing=routing, queue=WorkQueue(maxsize=1)) as irqs:
        kicks = [EventFd() for _ in range(IRQFDS)]
        irqfds = [irqs.assign(kick, gsi=gsi, wakeup=on_wakeup if handler else ()) for gsi, kick in enumerate(kicks)]

        def device():
            for round_ in range(SIGNALS):
                for gsi, kick in enumerate(kicks):
                    last[gsi] = sink.clock()
                    (kick.signal if (round_ + gsi) % 2 else lambda kick=kick: write(kick))()

        thread = threading.Thread(target=device)
        thread.start()
        most = 0
        while thread.is_alive():
            most = max(most, irqs.statistics().queue.queued)
            await asyncio.sleep(0.001)
        thread.join()
        await irqs.flush()
        assert most <= 1
        assert irqs.statistics().held == 0
        assert {irqfd.state for irqfd in irqfds} == {State.IDLE}
        assert [gsi for gsi in range(IRQFDS) if sink.begun[gsi] < last[gsi]] == []
        assert [irqfd.statistics().signals for irqfd in irqfds] == [SIGNALS] * IRQFDS
        assert sink.injections == sum(irqfd.statistics().injections for irqfd in irqfds) <= IRQFDS * SIGNALS
        assert sink.most == 1
        if handler:
            assert set(counted.values()) == {SIGNALS}
        for kick in kicks:
            kick.close()


async def test_memory_is_flat_while_signals_pile_up():
    sink = GatedSink()
    async with IrqManager(sink, queue=WorkQueue(maxsize=1)) as irqs:
        kicks = [EventFd() for _ in range(24)]
        for gsi, kick in enumerate(kicks):
            irqs.assign(kick, gsi=gsi)

        async def pile_up(rounds):
            for _ in range(rounds):
                for kick in kicks:
                    kick.signal()
                    write(kick)
                await turns(2)

        await pile_up(20)
        tracemalloc.start()
        try:
            await pile_up(20)
            gc.collect()  # where Python has no GIL, it collects the later the more there is from other tests
            before = tracemalloc.get_traced_memory()[0]
            await pile_up(200)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        # 9600 signals; a byte for each would show.
        assert grown < 4096
        sink.open()
        await irqs.flush()
        assert sorted({interrupt.gsi for interrupt in sink.interrupts}) == list(range(24))
        for kick in kicks:
            kick.close()


@pytest.mark.parametrize("maxsize", [1, 2, 7])
@pytest.mark.parametrize("workers", [1, 3])
async def test_every_irqfd_gets_its_turn_again_and_again(maxsize, workers):
    sink, tracer = RefusingSink(), RecordingTracer()
    async with IrqManager(sink, queue=WorkQueue(maxsize=maxsize, workers=workers), tracer=tracer) as irqs:
        kicks = [EventFd() for _ in range(24)]
        irqfds = [irqs.assign(kick, gsi=gsi) for gsi, kick in enumerate(kicks)]
        for number in range(1, 6):
            for kick in kicks:
                (write if number % 2 else EventFd.signal)(kick)
            await irqs.flush()
            assert [irqfd.statistics().injections for irqfd in irqfds] == [number] * 24
        names = [name for name in tracer.names if name.startswith("queue")]
        assert names[:2] == ["queue_full", "queue_resumed"]
        assert names == ["queue_full", "queue_resumed"] * (len(names) // 2)
        assert {fields["maxsize"] for fields in tracer.of("queue_full")} == {maxsize}
        after = tracer.of("queue_resumed")[0]["after"]
        assert isinstance(after, float)
        assert after >= 0
        for kick in kicks:
            kick.close()


async def test_full_the_counts_stay_whole_inside_the_eventfds():
    sink = GatedSink()
    counts = []

    async def on_wakeup(irqfd, count):
        counts.append((irqfd.gsi, count))

    async with IrqManager(sink, queue=WorkQueue(maxsize=1)) as irqs:
        kicks = [EventFd() for _ in range(4)]
        irqfds = [irqs.assign(kick, gsi=gsi, wakeup=on_wakeup) for gsi, kick in enumerate(kicks)]
        for number in range(3):
            for gsi, kick in enumerate(kicks):
                (kick.signal if number else lambda kick=kick, gsi=gsi: write(kick, gsi + 1))()
            await turns()
        assert irqs.statistics().held >= 2
        assert all(irqfd.pending for irqfd in irqfds[1:])
        sink.open()
        await irqs.flush()
        assert irqs.statistics().held == 0
        for gsi in range(4):
            assert sum(count for other, count in counts if other == gsi) == gsi + 3
        for kick in kicks:
            kick.close()


async def test_what_waits_for_room_waits_once_and_a_flush_that_is_given_up_not_at_all():
    sink = GatedSink()
    async with IrqManager(sink, queue=WorkQueue(maxsize=1)) as irqs:
        with EventFd() as line, EventFd() as resample, EventFd() as one, EventFd() as two:
            irqs.assign(line, gsi=9, resamplefd=resample)
            irqs.assign(one, gsi=1)
            irqs.assign(two, gsi=2)
            line.signal()
            await sink.wait_begun(1)
            one.signal()
            for _ in range(3):
                irqs.ack(9)
                flushing = asyncio.ensure_future(irqs.flush())
                await turns()
                flushing.cancel()
                await turns()
            assert (len(irqs._irqfds.backpressure._waiting), irqs._irqfds.backpressure._waiters) == (1, [])
            sink.open()
            await irqs.flush()
            await irqs.queue.drain()
            assert resample.read_nowait() == 1
            assert sorted(interrupt.gsi for interrupt in sink.interrupts) == [1, 9, 9]


async def test_full_and_closed_by_an_exception_everything_is_back_in_its_eventfd():
    sink = GatedSink()
    kicks = [EventFd() for _ in range(8)]
    with pytest.raises(KeyError):
        async with IrqManager(sink, queue=WorkQueue(maxsize=2)) as irqs:
            for gsi, kick in enumerate(kicks):
                irqs.assign(kick, gsi=gsi)
            for kick in kicks:
                kick.signal(3)
            await sink.wait_begun(1)
            for kick in kicks:
                kick.signal(4)
            raise KeyError
    assert [kick.read_nowait() for kick in kicks] == [7] * 8
    for kick in kicks:
        kick.close()


@pytest.mark.trouble
async def test_full_and_failing_and_closed():

    sink = FlakySink(10**6)
    kicks = [EventFd() for _ in range(8)]
    with pytest.raises(InjectionError):
        async with IrqManager(sink, queue=WorkQueue(maxsize=1), retry=Retry(3, 0, 0)) as irqs:
            for gsi, kick in enumerate(kicks):
                irqs.assign(kick, gsi=gsi)
            for kick in kicks:
                kick.signal(3)
            await turns(5)
            for kick in kicks:
                kick.signal(1)
    assert [kick.read_nowait() for kick in kicks] == [4] * 8
    for kick in kicks:
        kick.close()
