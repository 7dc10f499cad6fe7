"""A semaphore eventfd whose signals are counted: every one is told, however many there are."""

from __future__ import annotations

import os

import pytest

from aioirqfd import EventFd, IrqManager
from aioirqfd.sinks import RecordingSink
from tests.eventfd.helpers import in_thread, kernel_count

COUNTS = pytest.mark.parametrize("count", [1, 255, 256, 257, 512, 1000, 70_000])


class Told:
    """A manager with one handler that counts."""

    def __init__(self):
        self.counts = []
        self.sink = RecordingSink()
        self.irqs = IrqManager(self.sink)

    async def on_wakeup(self, _irqfd, count):
        self.counts.append(count)

    async def __aenter__(self):
        await self.irqs.__aenter__()
        self.efd = EventFd(semaphore=True)
        self.irqfd = self.irqs.assign(self.efd, gsi=5, wakeup=self.on_wakeup)
        return self

    async def __aexit__(self, *exc):
        await self.irqs.__aexit__(*exc)
        self.efd.close()

    @property
    def total(self):
        return sum(self.counts)


def write(told, count):
    os.eventfd_write(told.efd.fileno(), count)


def write_and_signal(told, count):
    os.eventfd_write(told.efd.fileno(), (count + 1) // 2)
    if count > 1:
        in_thread(told.efd.signal, count // 2)


HOW = pytest.mark.parametrize("signal", [write, write_and_signal])


@COUNTS
@HOW
async def test_deassign(count, signal):
    async with Told() as told:
        signal(told, count)
        await told.irqs.deassign(told.irqfd)
        assert told.total == count
        assert kernel_count(told.efd) == told.efd._count == 0
        assert told.irqfd.statistics().signals == count


@COUNTS
@HOW
async def test_close_of_the_eventfd(count, signal):
    async with Told() as told:
        signal(told, count)
        told.efd.close()
        await told.irqs.flush()
        assert told.total == count


@COUNTS
@HOW
async def test_close_of_the_manager(count, signal):
    async with Told() as told:
        signal(told, count)
    assert told.total == count


@COUNTS
@HOW
async def test_flush(count, signal):
    async with Told() as told:
        signal(told, count)
        await told.irqs.flush()
        assert told.total == count


@COUNTS
@HOW
async def test_snapshot(count, signal):
    async with Told() as told, Told() as other:
        signal(told, count)
        await told.irqs.pause()
        state = told.irqs.snapshot()
        assert f"'count': {count}}}" in str(state["irqfds"])
        await other.irqs.pause()
        other.irqs.restore(state)
        other.irqs.resume()
        await other.irqs.flush()
        assert (told.total, other.total) == (0, count)


@COUNTS
@HOW
async def test_mask_and_unmask(count, signal):
    async with Told() as told:
        told.irqfd.mask()
        signal(told, count)
        await told.irqs.flush()
        assert told.total == 0
        told.irqfd.unmask()
        await told.irqs.flush()
        assert told.total == count


@pytest.mark.parametrize("unmasked", [False, True])
async def test_deassign_of_a_masked_one_leaves_all_of_it(unmasked):
    async with Told() as told:
        told.irqfd.mask()
        write(told, 1000)
        await told.irqs.deassign(told.irqfd)
        assert (told.total, kernel_count(told.efd)) == (0, 1000)
        irqfd = told.irqs.assign(told.efd, gsi=6, wakeup=told.on_wakeup, masked=not unmasked)
        irqfd.unmask()
        await told.irqs.flush()
        assert told.total == 1000


async def test_a_writer_that_goes_on_does_not_hold_a_flush():
    async with Told() as told:

        async def on_wakeup(_irqfd, count):
            told.counts.append(count)
            write(told, 300)

        irqfd = told.irqs.assign(EventFd(), gsi=7)
        await told.irqs.deassign(told.irqfd)
        told.irqfd = told.irqs.assign(told.efd, gsi=5, wakeup=on_wakeup)
        write(told, 300)
        await told.irqs.flush()
        assert told.total >= 300
        await told.irqs.deassign(told.irqfd)
        irqfd.eventfd.close()


async def test_what_nobody_could_ever_read_stays_in_the_eventfd():
    async with Told() as told:
        write(told, 2**64 - 2)
        await told.irqs.deassign(told.irqfd)
        assert told.total >= 2**20
        assert told.total + kernel_count(told.efd) == 2**64 - 2
