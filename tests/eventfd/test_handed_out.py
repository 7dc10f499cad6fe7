"""A count that was handed to a reader who does not come for it: it goes back, though the eventfd is closed by then."""

from __future__ import annotations

import asyncio
import os

import pytest

from aioirqfd import ClosedError, EventFd
from tests.conftest import open_fds
from tests.eventfd.helpers import in_thread, waiting_reader
from tests.forks import in_child


@pytest.fixture(params=[False, True], ids=["not owned", "owned"])
def shared(request):
    """An EventFd, and another fd of the same eventfd that somebody else has."""
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    other = os.dup(fd)
    efd = EventFd.from_fd(fd, owns=request.param)
    yield efd, other
    efd.close()
    os.close(other)
    if not request.param:
        os.close(fd)


def left(fd):
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def cancel_then_close(reader, efd):
    reader.cancel()
    efd.close()


def close_then_cancel(reader, efd):
    efd.close()
    reader.cancel()


ORDERS = pytest.mark.parametrize("end", [cancel_then_close, close_then_cancel])
HOW = pytest.mark.parametrize("how", ["signal", "thread", "write"])


async def hand_out(efd, readers, how, count):
    """Until the last of them has its count, and none has come for it."""
    if how == "signal":
        efd.signal(count)
    elif how == "thread":
        in_thread(efd.signal, count)
    else:
        os.eventfd_write(efd.fileno(), count)
    waiters = efd._waiters
    while len(waiters) > len(readers) - 1 or not waiters.owed:
        await asyncio.sleep(0)


@ORDERS
@HOW
async def test_cancelled_and_closed_in_one_turn(shared, end, how):
    efd, other = shared
    before = open_fds()
    reader = await waiting_reader(efd)
    await hand_out(efd, [reader], how, 5)
    end(reader, efd)
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert left(other) == 5
    after = open_fds()
    assert {fd: what for fd, what in after.items() if what != before.get(fd)} == {}


@HOW
async def test_who_is_not_cancelled_gets_it(shared, how):
    efd, other = shared
    reader = await waiting_reader(efd)
    await hand_out(efd, [reader], how, 5)
    efd.close()
    assert await reader == 5
    assert left(other) == 0


@ORDERS
async def test_several(shared, end):
    efd, other = shared
    readers = [await waiting_reader(efd) for _ in range(4)]
    for count, _ in zip((1, 10, 100), readers, strict=False):
        efd.signal(count)
    readers[1].cancel()
    end(readers[2], efd)
    results = await asyncio.gather(*readers, return_exceptions=True)
    assert results[0] == 1
    assert [type(result) for result in results[1:]] == [asyncio.CancelledError, asyncio.CancelledError, ClosedError]
    assert left(other) == 110


async def test_a_coroutine_that_is_dropped_after_the_close(shared):
    efd, other = shared
    coroutine = efd.read()
    coroutine.send(None)
    efd.signal(5)
    efd.close()
    coroutine.close()
    assert left(other) == 5


@ORDERS
async def test_without_room_for_a_descriptor(shared, end, no_room):
    efd, other = shared
    owns = efd._owns
    cancelled = await waiting_reader(efd)
    reader = await waiting_reader(efd)
    efd.signal(5)
    efd.signal(7)
    with no_room():
        end(cancelled, efd)
    assert efd.closed
    results = await asyncio.gather(cancelled, reader, return_exceptions=True)
    if owns:
        assert (type(results[0]), results[1]) == (asyncio.CancelledError, 7)
        assert left(other) == 5
    else:
        # An fd that is not ours may be closed from here on: the counts are back, and whoever was to get one is told.
        assert left(other) == 12
        assert [type(result) for result in results] == [asyncio.CancelledError, ClosedError]


async def test_a_forked_child_gives_nothing_back(efd):
    coroutine = efd.read()
    coroutine.send(None)
    efd.signal(5)

    def child():
        asyncio._set_running_loop(None)
        coroutine.close()
        efd.close()

    other = os.dup(efd.fileno())
    assert in_child(child) == 0
    assert left(other) == 0
    coroutine.close()
    assert left(other) == 5
    os.close(other)
