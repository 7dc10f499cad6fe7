"""Who finds a count each time never waits, and the others of the loop get their turn all the same."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from aioirqfd import EventFd, IrqManager
from aioirqfd.eventfd import eventfd as module
from aioirqfd.sinks import RecordingSink


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by a fifth of a millisecond at each look."""

    class Clock:
        now = 1.0

        def look(self):
            self.now += 0.0002
            return self.now

    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock.look)
    return clock


class Turns:
    """Counts the loop's turns, for as long as it is let."""

    def __init__(self):
        self.count = 0
        self.loop = asyncio.get_running_loop()
        self.handle = self.loop.call_soon(self.turn)

    def turn(self):
        self.count += 1
        self.handle = self.loop.call_soon(self.turn)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.cancel()


async def iterate(efd, steps):
    async for _ in efd:
        efd.signal()
        steps -= 1
        if not steps:
            return


async def read(efd, steps):
    for _ in range(steps):
        await efd.read()
        efd.signal()


async def wait(efd, steps):
    for _ in range(steps):
        await efd.wait()


@pytest.mark.parametrize("how", [iterate, read, wait])
@pytest.mark.usefixtures("clock")
async def test_an_eventfd_that_is_never_empty(how):
    with EventFd(1) as efd, Turns() as turns:
        await how(efd, 100)
        assert 15 <= turns.count <= 25


@pytest.mark.usefixtures("clock")
async def test_a_semaphore_that_holds_much():
    with EventFd(101, semaphore=True) as efd, Turns() as turns:
        for _ in range(100):
            assert await efd.read() == 1
        assert 15 <= turns.count <= 25
        assert not efd._registered


async def test_a_body_that_takes_long_gives_way_each_time(clock):
    with EventFd(1) as efd, Turns() as turns:
        for _ in range(20):
            await efd.read()
            efd.signal()
            clock.now += 0.01
        assert turns.count == 19


@pytest.mark.usefixtures("clock")
async def test_who_waits_does_not_give_way_beside():
    with EventFd() as efd:
        with Turns() as turns:
            for _ in range(50):
                efd.signal()
                task = asyncio.ensure_future(efd.read())
                await task
            before = turns.count
        with Turns() as turns:
            for _ in range(50):
                task = asyncio.ensure_future(efd.read())
                await asyncio.sleep(0)
                efd.signal()
                await task
            assert turns.count <= 4 * before
        assert efd._line().turn_ends == 0.0


async def test_cancelled_while_it_gives_way_nothing_is_consumed(clock):
    with EventFd(1) as efd:
        assert await efd.read() == 1
        efd.signal(5)
        clock.now += 1
        task = asyncio.ensure_future(efd.read())
        await asyncio.sleep(0)
        assert not task.done()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert efd.read_nowait() == 5
        assert not efd._registered


@pytest.mark.parametrize("method", ["read", "wait"])
async def test_closed_while_it_gives_way(clock, method):
    # It was there when it was asked for.
    with EventFd(1) as efd:
        assert await efd.read() == 1
        efd.signal(5)
        clock.now += 1
        task = asyncio.ensure_future(getattr(efd, method)())
        await asyncio.sleep(0)
        assert not task.done()
        efd.close()
        assert await task == (5 if method == "read" else None)


@pytest.mark.parametrize("close_first", [False, True])
async def test_cancelled_and_closed_while_it_gives_way(clock, close_first):
    with EventFd(1) as efd:
        other = os.dup(efd.fileno())
        assert await efd.read() == 1
        efd.signal(5)
        clock.now += 1
        task = asyncio.ensure_future(efd.read())
        await asyncio.sleep(0)
        for step in (efd.close, task.cancel) if close_first else (task.cancel, efd.close):
            step()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert os.eventfd_read(other) == 5
        os.close(other)


def test_without_a_loop_there_is_nobody_to_give_way_to(efd, clock):
    for count in range(1, 5):
        efd.signal(count)
        clock.now += 1
        with pytest.raises(StopIteration) as done:
            efd.read().send(None)
        assert done.value.value == count


async def test_a_semaphore_with_a_handler_lets_others_have_their_turn():
    told = []

    async def handler(_irqfd, count):
        told.append(count)

    async with IrqManager(RecordingSink()) as irqs:
        with EventFd(5000, semaphore=True) as efd, Turns() as turns:
            irqs.assign(efd, gsi=5, wakeup=handler)
            while sum(told) < 5000:
                await asyncio.sleep(0)
            assert max(told) <= 256 * 2
            assert turns.count >= 5000 // 512
