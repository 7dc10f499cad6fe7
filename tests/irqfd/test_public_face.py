"""The lines that the README and the documentation promise, as they stand there."""

from __future__ import annotations

import asyncio
import os

import pytest

import aioirqfd
from aioirqfd import EventFd, IrqchipPin, IrqManager, Msi, WorkQueue
from aioirqfd.sinks import RecordingSink
from tests.irqfd.helpers import asserted, deasserted, pulse


async def test_an_irqfd_from_assign_to_deassign():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:  # no routing given: GSI n is pin n
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal()
            os.eventfd_write(kick.fileno(), 1)
            await irqs.flush()
            assert sink.interrupts == [pulse(5), pulse(5)]
            stats = irqfd.statistics()
            assert (stats.signals, stats.injections, stats.coalesced) == (2, 2, 0)
            await irqs.deassign(irqfd)
            kick.signal()
            await irqs.flush()
            assert len(sink.interrupts) == 2


async def test_the_other_two_ways_to_end_it():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            await irqfd.aclose()
            assert irqs.irqfds == ()
            irqs.assign(kick, gsi=6)
        assert irqs.irqfds == ()


async def test_a_coroutine_wakeup_handler():
    sink = RecordingSink()
    seen = []

    async def on_wakeup(irqfd, count):
        await asyncio.sleep(0)
        seen.append((irqfd.gsi, count, list(sink.interrupts)))

    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5, wakeup=on_wakeup)
            kick.signal(3)
            await irqs.flush()
    assert seen == [(5, 3, [])], "handlers run before the injection"
    assert sink.interrupts == [pulse(5)]


async def test_a_level_triggered_line_and_its_end_of_interrupt():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick, EventFd() as unmask:
            irqs.assign(kick, gsi=9, resamplefd=unmask)
            kick.signal()
            irqs.ack(9)
            assert unmask.read_nowait() == 1
            assert sink.interrupts == [asserted(9), deasserted(9)]


async def test_a_new_routing_table():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick, EventFd() as other:
            irqs.assign(kick, gsi=5)
            irqs.assign(other, gsi=9)
            irqs.set_routing(
                {5: Msi(address=0xFEE00000, data=0x31), 9: [IrqchipPin("pic", 9), IrqchipPin("ioapic", 9)]}
            )
            kick.signal()
            other.signal()
            await irqs.flush()
    assert sink.interrupts == [
        pulse(5, Msi(address=0xFEE00000, data=0x31)),
        pulse(9, IrqchipPin("pic", 9)),
        pulse(9, IrqchipPin("ioapic", 9)),
    ]


async def test_masking():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            irqfd.mask()
            assert irqfd.pending is False
            kick.signal()
            await irqs.flush()  # masked ones stay pending
            assert irqfd.pending is True
            assert sink.interrupts == []
            irqfd.unmask()
            await irqs.flush()
            assert irqfd.pending is False
            assert sink.interrupts == [pulse(5)]


async def test_pause_snapshot_restore_resume():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            await irqs.pause()
            kick.signal()
            state = irqs.snapshot()
            irqs.restore(state)
            irqs.resume()
            await irqs.flush()
    assert sink.interrupts == [pulse(5)]


async def test_a_queue_of_ones_own():
    queue = WorkQueue(maxsize=1024, workers=1)
    irqs = IrqManager(RecordingSink(), queue=queue, unrouted="drop")
    async with irqs:
        assert queue.inside is False
        queue.check_open()
    with pytest.raises(aioirqfd.ClosedError):
        queue.check_open()


async def test_a_doorbell():
    with EventFd() as efd:
        assert efd.signal(3) == 3
        assert efd.read_nowait() == 3
        with pytest.raises(aioirqfd.WouldBlock):
            efd.read_nowait()
        efd.signal()
        assert await efd.read() == 1
        efd.signal()
        await efd.wait()
        assert efd.read_nowait() == 1
        counts = []

        async def iterate():
            async for count in efd:
                counts.append(count)  # noqa: PERF401  a line of the public face

        reader = asyncio.ensure_future(iterate())
        efd.signal(2)
        await asyncio.sleep(0)
    await reader
    assert counts == [2]


def test_a_semaphore():
    with EventFd(2, semaphore=True) as efd:
        assert [efd.read_nowait(), efd.read_nowait()] == [1, 1]


async def test_nothing_but_what_is_for_users_is_to_be_seen():
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            assert seen(irqfd) == (
                "aclose error eventfd eventfd_id explain gsi held mask masked name offloaded pending resamplefd resume state"
                " statistics unmask"
            )
    assert seen(irqs) == (
        "ack aclose assign deassign explain find flush gsis inspect irqfds name pause paused queue resample reset_route restore resume"
        " routing set_route set_routing snapshot statistics"
    )


def seen(thing):
    return " ".join(name for name in dir(thing) if not name.startswith("_"))
