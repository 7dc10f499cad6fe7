"""EventFd on both loops: reading, waiting, and being cancelled while at it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading

import pytest

from aioirqfd import EventFd, IrqManager, WouldBlock
from aioirqfd.sinks import RecordingSink
from tests.eventfd.helpers import FULL, in_thread, kernel_count, turns, waiting_reader
from tests.forks import in_child

# -------------------------------------------------------------------------------------------------------- reading


def test_read_nowait(efd):
    # Rows E12, E14.
    with pytest.raises(WouldBlock) as caught:
        efd.read_nowait()
    assert caught.value.errno == errno.EAGAIN
    assert isinstance(caught.value, BlockingIOError)
    efd.signal(2)
    efd.signal(3)
    assert efd.read_nowait() == 5
    with pytest.raises(WouldBlock):
        efd.read_nowait()


def test_a_semaphore_is_read_one_at_a_time():
    # Row E13.
    with EventFd(3, semaphore=True) as efd:
        assert [efd.read_nowait() for _ in range(3)] == [1, 1, 1]
        with pytest.raises(WouldBlock):
            efd.read_nowait()


async def test_read_takes_what_is_there_without_waiting(efd):
    efd.signal(5)
    assert await efd.read() == 5
    assert not efd._registered


@pytest.mark.parametrize("how", ["loop", "thread", "write", "write in a thread", "child", "child's signal"])
async def test_a_waiting_reader_is_woken(efd, how):
    task = await waiting_reader(efd)
    fd = efd.fileno()
    match how:
        case "loop":
            efd.signal(7)
        case "thread":
            in_thread(efd.signal, 7)
        case "write":
            os.eventfd_write(fd, 7)
        case "write in a thread":
            in_thread(os.eventfd_write, fd, 7)
        case "child":
            assert in_child(lambda: os.eventfd_write(fd, 7)) == 0
        case "child's signal":
            assert in_child(lambda: efd.signal(7)) == 0
    assert await task == 7
    assert kernel_count(efd) == efd._count == 0


async def test_a_waiting_reader_is_woken_by_a_signal_from_within_a_callback(efd):
    task = await waiting_reader(efd)
    asyncio.get_running_loop().call_soon(efd.signal, 3)
    assert await task == 3


@pytest.mark.parametrize("semaphore", [False, True])
async def test_readers_are_served_in_the_order_they_came(semaphore):
    # Row E15.
    with EventFd(semaphore=semaphore) as efd:
        order = []

        async def reader(number):
            order.append((number, await efd.read()))

        tasks = [asyncio.ensure_future(reader(number)) for number in range(4)]
        await turns()
        efd.signal(3)
        await turns()
        if semaphore:
            assert order == [(0, 1), (1, 1), (2, 1)]
        else:
            assert order == [(0, 3)]
        os.eventfd_write(efd.fileno(), 5)
        while len(order) < (4 if semaphore else 2):
            await asyncio.sleep(0)
        assert order[-1] == ((3, 1) if semaphore else (1, 5))
        if semaphore:
            assert efd.read_nowait() == 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_reader_that_comes_late_does_not_overtake(efd):
    first = await waiting_reader(efd)
    os.eventfd_write(efd.fileno(), 2)  # nobody has looked yet
    second = asyncio.ensure_future(efd.read())
    assert await first == 2
    efd.signal(3)
    assert await second == 3


async def test_a_hundred_readers_and_as_many_signals(efd):
    tasks = [asyncio.ensure_future(efd.read()) for _ in range(100)]
    await turns()
    for number in range(1, 101):
        efd.signal(number)
    assert await asyncio.gather(*tasks) == list(range(1, 101))
    assert efd._count == kernel_count(efd) == 0


async def test_wait_consumes_nothing(efd):
    task = await waiting_reader(efd, "wait")
    efd.signal(5)
    assert await task is None
    await efd.wait()
    await efd.wait()
    assert efd.read_nowait() == 5
    task = await waiting_reader(efd, "wait")
    os.eventfd_write(efd.fileno(), 2)
    await task
    assert kernel_count(efd) == 2


async def test_waiters_and_readers_in_one_line(efd):
    order = []

    async def join(name, method):
        order.append((name, await method()))

    tasks = [
        asyncio.ensure_future(join(name, method))
        for name, method in (("w1", efd.wait), ("r1", efd.read), ("w2", efd.wait), ("r2", efd.read))
    ]
    await turns()
    efd.signal(4)
    await turns()
    assert order == [("w1", None), ("r1", 4)]
    efd.signal(5)
    await asyncio.gather(*tasks)
    assert order[2:] == [("w2", None), ("r2", 5)]


async def test_iteration_ends_with_the_eventfd(efd):
    got = []

    async def consume():
        async for count in efd:
            got.append(count)  # noqa: PERF401  seen from outside while it goes on
        return "ended"

    task = asyncio.ensure_future(consume())
    await turns()
    for number in (1, 2, 3):
        efd.signal(number)
        await turns()
    efd.close()
    assert await task == "ended"
    assert got == [1, 2, 3]
    assert [count async for count in efd] == []


async def test_all_the_counts_of_several_threads_arrive(efd):
    def shout():
        for number in range(500):
            if number % 3:
                efd.signal(number % 7 + 1)
            else:
                os.eventfd_write(efd.fileno(), number % 7 + 1)

    threads = [threading.Thread(target=shout) for _ in range(3)]
    expected = 3 * sum(number % 7 + 1 for number in range(500))
    got = 0
    for thread in threads:
        thread.start()
    while got < expected:
        got += await efd.read()
    for thread in threads:
        thread.join()
    assert got == expected
    with pytest.raises(WouldBlock):
        efd.read_nowait()


# ---------------------------------------------------------------------------------------------------- cancellation


@pytest.mark.parametrize("method", ["read", "wait"])
async def test_a_cancelled_reader_takes_nothing(efd, method):
    task = await waiting_reader(efd, method)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not efd._listening
    efd.signal(3)
    assert kernel_count(efd) == 3


@pytest.mark.parametrize("count", [5, FULL])
async def test_a_count_that_was_handed_to_a_cancelled_reader_goes_back(efd, count):
    task = await waiting_reader(efd)
    efd.signal(count)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert kernel_count(efd) == count
    assert efd.read_nowait() == count


async def test_it_goes_to_the_next_reader(efd):
    first = await waiting_reader(efd)
    second = await waiting_reader(efd)
    efd.signal(5)
    first.cancel()
    assert await second == 5
    assert first.cancelled()


async def test_it_joins_what_was_signalled_since(efd):
    task = await waiting_reader(efd)
    efd.signal(5)
    efd.signal(2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert efd.read_nowait() == 7


async def test_a_time_limit_loses_no_count(efd):
    got = []
    for number in range(200):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                got.append(await efd.read())
        if number % 2:
            efd.signal(2)
        else:
            in_thread(efd.signal, 2)
        if number % 3 == 0:
            got.append(await efd.read())
    with contextlib.suppress(WouldBlock):
        while True:
            got.append(efd.read_nowait())
    assert sum(got) == 400


async def test_cancelling_at_every_step_loses_no_count(efd):
    got = []
    sent = 0
    for steps in range(8):
        for signal in (efd.signal, lambda n: in_thread(efd.signal, n), lambda n: os.eventfd_write(efd.fileno(), n)):
            task = asyncio.ensure_future(efd.read())
            if steps > 4:
                await turns(2)
            signal(3)
            sent += 3
            await turns(steps % 5)
            task.cancel()
            got += [each for each in await asyncio.gather(task, return_exceptions=True) if isinstance(each, int)]
    with contextlib.suppress(WouldBlock):
        while True:
            got.append(efd.read_nowait())
    assert sum(got) == sent == 72


async def test_a_coroutine_that_is_dropped_on_the_way_gives_its_count_back(efd):
    coroutine = efd.read()
    coroutine.send(None)
    efd.signal(5)
    coroutine.close()
    assert efd.read_nowait() == 5


class Compared(asyncio.Future):
    """A future that counts how often it is compared with another."""

    compared = 0
    __hash__ = asyncio.Future.__hash__

    def __eq__(self, other):
        type(self).compared += 1
        return self is other


@pytest.mark.parametrize("method", ["read", "wait"])
async def test_one_that_is_cancelled_among_thousands_is_not_searched_for(efd, method, monkeypatch):
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "create_future", lambda: Compared(loop=loop))
    readers = [asyncio.ensure_future(getattr(efd, method)()) for _ in range(2000)]
    await turns(2)
    Compared.compared = 0
    for reader in reversed(readers[1::2]):
        reader.cancel()
    await turns(3)
    assert Compared.compared < 2000
    assert len(efd._waiters) == 1000
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)


async def test_a_cancelled_waiter_among_readers(efd):
    waiter = await waiting_reader(efd, "wait")
    reader = await waiting_reader(efd)
    efd.signal(5)
    waiter.cancel()
    assert await reader == 5


@pytest.mark.parametrize("semaphore", [False, True])
async def test_wait_sees_of_a_bound_eventfd_what_a_read_would_take(semaphore):
    with EventFd(3, semaphore=semaphore) as efd:
        async with IrqManager(RecordingSink()) as irqs:
            irqfd = irqs.assign(efd, gsi=5)
            await irqs.flush()
            for count in [1, 1, 1] if semaphore else [3]:
                await efd.wait()
                assert efd.read_nowait() == count
            task = await waiting_reader(efd, "wait")
            efd.signal()
            await irqs.flush()
            await turns()
            assert not task.done(), "a signal is the irqfd's"
            await irqs.deassign(irqfd)
            efd.signal()
            await task
            assert efd.read_nowait() == 1
