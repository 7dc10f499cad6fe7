"""EventFd on both loops: closing it, other loops, other threads, other processes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import select
import warnings
import weakref

import pytest

from aioirqfd import ClosedError, EventFd, WouldBlock, WrongLoopError
from tests.eventfd.helpers import FULL, in_thread, turns, waiting_reader
from tests.forks import in_child

# --------------------------------------------------------------------------------------------------------- closing


async def test_close_wakes_everybody(efd):
    readers = [await waiting_reader(efd, method) for method in ("read", "wait", "read")]
    efd.close()
    for task in readers:
        with pytest.raises(ClosedError) as caught:
            await task
        assert caught.value.errno == errno.EBADF


async def test_a_count_that_was_handed_out_before_the_close_arrives(efd):
    task = await waiting_reader(efd)
    efd.signal(5)
    efd.close()
    assert await task == 5


async def test_what_was_counted_here_is_the_kernels_after_the_close():
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    efd = EventFd.from_fd(fd)
    task = await waiting_reader(efd)
    in_thread(efd.signal, 5)
    efd.close()
    with pytest.raises(ClosedError):
        await task
    assert os.eventfd_read(fd) == 5
    os.close(fd)


async def test_after_the_close(efd):
    fd = efd.fileno()
    efd.close()
    efd.close()
    assert efd.closed
    assert repr(efd) == "<EventFd closed>"
    with pytest.raises(OSError):
        os.fstat(fd)
    for use in (efd.fileno, efd.signal, efd.read_nowait, lambda: efd.id, efd.__enter__):
        with pytest.raises(ClosedError):
            use()
    for wait in (efd.read, efd.wait):
        with pytest.raises(ClosedError):
            await wait()
    # The argument comes first, as in the kernel.
    with pytest.raises(ValueError, match="a signal is"):
        efd.signal(0)


async def test_a_reused_fd_number_is_not_ours(efd):
    task = await waiting_reader(efd)
    number = efd.fileno()
    efd.close()
    with EventFd() as other:
        assert other.fileno() == number
        other.signal(3)
        with pytest.raises(ClosedError):
            await task
        with pytest.raises(ClosedError):
            efd.signal()
        efd.close()
        assert other.read_nowait() == 3


@pytest.mark.parametrize("registered", [False, True])
async def test_dropped_open_it_warns_with_the_place_of_making(registered):
    efd = EventFd()
    line = test_dropped_open_it_warns_with_the_place_of_making.__code__.co_firstlineno + 2
    fd = efd.fileno()
    if registered:
        task = await waiting_reader(efd)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        del task
        await turns()  # the loop lets go of the task's exception, whose traceback knows the eventfd
        assert efd._registered
    gone = weakref.ref(efd)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del efd
        gc.collect()
    assert [each.category for each in caught] == [ResourceWarning]
    assert str(caught[0].message) == f"unclosed <EventFd fd={fd}>, made at {__file__}:{line}"
    with pytest.raises(OSError):
        os.fstat(fd)
    caught.clear()  # a warning knows its source
    assert gone() is None


def test_where_warnings_are_errors_it_is_closed_all_the_same(monkeypatch):
    errors = []
    monkeypatch.setattr("sys.unraisablehook", lambda args: errors.append(args.exc_type))
    efd = EventFd()
    fd = efd.fileno()
    del efd
    gc.collect()
    assert errors == [ResourceWarning]
    with pytest.raises(OSError):
        os.fstat(fd)


def test_dropped_open_somebody_elses_fd_is_left_open():
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    EventFd.from_fd(fd)
    gc.collect()
    os.close(fd)


def test_one_that_could_not_be_made_says_nothing_when_it_goes():
    with pytest.raises(ValueError, match="first count"):
        EventFd(-1)
    with pytest.raises(ClosedError):
        EventFd.from_fd(-1)
    EventFd.__new__(EventFd)
    gc.collect()


# ------------------------------------------------------------------------------------------- other loops and threads


def test_without_a_loop(efd):
    efd.signal(3)
    assert efd.read_nowait() == 3
    coroutine = efd.read()
    with pytest.raises(WrongLoopError):
        coroutine.send(None)
    efd.signal(2)
    assert efd.read_nowait() == 2


def test_one_loop_after_another(efd):
    async def use():
        task = await waiting_reader(efd)
        in_thread(efd.signal, 2)
        return await task

    for _ in range(3):
        assert asyncio.run(use()) == 2
    efd.signal(1)
    assert efd.read_nowait() == 1


def test_while_another_loop_waits(efd):
    loop, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        task = loop.run_until_complete(waiting_reader(efd))

        async def intrude(method):
            with pytest.raises(WrongLoopError):
                await getattr(efd, method)()

        for method in ("read", "wait"):
            other.run_until_complete(intrude(method))
        efd.signal(3)
        assert loop.run_until_complete(task) == 3

        async def use():
            task = await waiting_reader(efd)
            in_thread(efd.signal, 2)
            return await task

        assert other.run_until_complete(use()) == 2
    finally:
        loop.close()
        other.close()


@pytest.mark.parametrize("signalled", ["here", "in a thread", "by a write", "not before"])
def test_a_loop_that_was_closed_over_a_waiting_reader(efd, signalled):
    # Its reader is gone for good; the count is not.
    loop = asyncio.new_event_loop()
    coroutine = efd.read()

    async def begin():
        return coroutine.send(None)

    abandoned = loop.run_until_complete(begin())
    abandoned.add_done_callback(print)  # a call on a closed loop, if anybody made it
    if signalled == "in a thread":
        in_thread(efd.signal, 5)
    loop.close()
    if signalled == "here":
        efd.signal(5)
    elif signalled == "by a write":
        os.eventfd_write(efd.fileno(), 5)

    async def read():
        assert await (asyncio.wait_for(efd.read(), 60) if signalled != "not before" else later()) == 5
        # It is not deaf for what comes after, either.
        task = await waiting_reader(efd)
        in_thread(efd.signal, 6)
        assert await task == 6
        task = await waiting_reader(efd)
        os.eventfd_write(efd.fileno(), 7)
        assert await task == 7

    async def later():
        task = await waiting_reader(efd)
        in_thread(efd.signal, 5)
        return await task

    asyncio.run(read())
    abandoned.remove_done_callback(print)
    coroutine.close()
    with pytest.raises(WouldBlock):
        efd.read_nowait()


def test_a_post_that_is_under_way_when_the_loop_is_closed(efd):
    async def wait_and_go(post):
        task = await waiting_reader(efd, "wait")
        if post:
            in_thread(efd.signal, 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(wait_and_go(True))
    loop.close()

    async def read():
        assert await efd.read() == 2
        task = await waiting_reader(efd)
        in_thread(efd.signal, 3)
        assert await task == 3

    asyncio.run(read())


async def test_signals_and_reads_from_another_thread(efd):
    got = []
    efd.signal(5)
    in_thread(lambda: got.append(efd.read_nowait()))
    task = await waiting_reader(efd)

    def steal():
        efd.signal(3)
        got.append(efd.read_nowait())

    in_thread(steal)
    assert got == [5, 3]
    await turns()
    assert not task.done()
    efd.signal(1)
    assert await task == 1


# ------------------------------------------------------------------------------------------------- other processes


async def test_a_reader_in_another_process_gets_what_nobody_here_waits_for(efd):
    efd.signal(3)
    assert in_child(lambda: os._exit(0 if os.eventfd_read(efd.fileno()) == 3 else 5)) == 0
    task = await waiting_reader(efd)
    in_thread(efd.signal, 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    # Nobody listens any more: what was counted here is the kernel's, for anyone to read.
    assert efd._count == 0
    assert in_child(lambda: os._exit(0 if os.eventfd_read(efd.fileno()) == 2 else 5)) == 0
    with pytest.raises(WouldBlock):
        efd.read_nowait()


@pytest.mark.parametrize("nonblocking", [False, True])
def test_whoever_shares_it_may_make_it_blocking_and_neither_reads_nor_writes_sleep(nonblocking):
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK * nonblocking)
    with EventFd.from_fd(fd, owns=True) as efd:
        os.set_blocking(fd, True)
        with pytest.raises(WouldBlock):
            efd.read_nowait()
        assert efd.signal(FULL - 1) == FULL - 1
        assert [efd.signal() for _ in range(3)] == [1, 0, 0]
        assert efd.signal(5) == 0
        assert efd.read_nowait() == FULL
        assert os.get_blocking(fd)


async def test_a_reader_here_and_one_in_another_process_share_without_loss(efd):
    fd = efd.fileno()
    result, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        total = 0
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        while total < 10_000:
            poller.poll(50)
            try:
                total += os.eventfd_read(fd)
            except BlockingIOError:
                continue
            if total >= 2**40:
                break
        os.write(theirs, total.to_bytes(8, "little"))
        os._exit(0)
    os.close(theirs)
    mine = 0
    sent = 0
    for number in range(1, 301):
        os.eventfd_write(fd, number)
        sent += number
        with contextlib.suppress(WouldBlock):
            mine += efd.read_nowait()
    # What tells the other one to stop: more than anybody sends otherwise.
    os.eventfd_write(fd, 2**40)
    sent += 2**40
    theirs_total = int.from_bytes(os.read(result, 8), "little")
    os.waitpid(child, 0)
    os.close(result)
    with contextlib.suppress(WouldBlock):
        mine += efd.read_nowait()
    assert mine + theirs_total == sent


async def test_a_waiting_reader_whose_count_was_taken_by_another_process_waits_on(efd):
    task = await waiting_reader(efd)
    os.eventfd_write(efd.fileno(), 3)
    assert in_child(lambda: os._exit(0 if os.eventfd_read(efd.fileno()) == 3 else 5)) == 0
    await turns()
    assert not task.done()
    os.eventfd_write(efd.fileno(), 4)
    assert await task == 4


async def test_a_child_can_wait_on_what_its_parent_waits_on(efd):
    task = await waiting_reader(efd)
    in_thread(efd.signal, 100)  # counted here, not yet read: the parent's alone

    def child():
        asyncio._set_running_loop(None)
        signal_end, poll_end = os.pipe()
        os.close(signal_end)
        os.close(poll_end)

        async def read():
            mine = await waiting_reader(efd)
            efd.signal(7)
            return await mine

        loop = asyncio.SelectorEventLoop()
        got = loop.run_until_complete(read())
        loop.close()
        os._exit(0 if got == 7 else 5)

    assert in_child(child) == 0
    assert await task == 100
    task = await waiting_reader(efd)
    efd.signal(3)
    assert await task == 3
    task = await waiting_reader(efd)
    os.eventfd_write(efd.fileno(), 4)
    assert await task == 4


async def test_a_child_that_closes_it_leaves_the_parents_alone(efd):
    task = await waiting_reader(efd)

    def child():
        asyncio._set_running_loop(None)
        efd.close()
        assert efd.closed

    assert in_child(child) == 0
    os.eventfd_write(efd.fileno(), 4)
    assert await task == 4
    task = await waiting_reader(efd)
    efd.signal(2)
    assert await task == 2
