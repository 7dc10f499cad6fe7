"""No room for a descriptor, no /proc, an fd that was closed behind our back: each error is told as what it is, and nothing is half done."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os

import pytest

from aioirqfd import ClosedError, EventFd, EventFdBusyError, IrqManager, State
from aioirqfd.sinks import RecordingSink
from tests.conftest import open_fds
from tests.eventfd.helpers import kernel_count, turns, waiting_reader
from tests.forks import in_child, leave_proc

# ---------------------------------------------------------------------------------------------- no room for a descriptor


def is_full(error):
    return error.errno == errno.EMFILE and not isinstance(error, ClosedError)


async def test_reading_and_signalling_take_none(efd, no_room):
    with no_room():
        efd.signal(3)
        assert efd.read_nowait() == 3
        with pytest.raises(OSError) as caught:
            await efd.read()  # a loop's first takes the poller's
        assert is_full(caught.value)
        assert not efd._registered
        efd.signal(2**64 - 2)
        assert efd.signal(5) == 0
        assert efd.read_nowait() == 2**64 - 2
        efd.signal(2**64 - 5)
        assert efd.signal(5) == 3
    reader = asyncio.ensure_future(efd.read())
    assert await reader == 2**64 - 2


@pytest.mark.parametrize("leaving", [0, 1, 2, 3])
async def test_a_poller_that_is_half_made_is_not_there(efd, no_room, leaving):
    before = open_fds()
    made = False
    with no_room(leaving=leaving):
        reader = asyncio.ensure_future(efd.read())
        await turns(2)
        if reader.done():
            assert is_full(reader.exception())
        else:
            made = True
            efd.signal(2)
            assert await reader == 2
    if not made:
        assert open_fds() == before
    assert made or leaving < 3


def test_whether_it_is_an_eventfd_cannot_be_seen(efd, no_room):
    with no_room():
        with pytest.raises(OSError) as caught:
            EventFd.from_fd(efd.fileno())
        assert is_full(caught.value)
        with pytest.raises(OSError) as caught:
            _ = efd.id
        assert is_full(caught.value)
    number = efd.id
    with no_room():
        assert efd.id == number
    end, other = os.pipe()
    os.close(other)
    os.close(end)
    with no_room(), pytest.raises(OSError):
        EventFd.from_fd(2**30)


@pytest.mark.parametrize("semaphore", [False, True])
@pytest.mark.parametrize("by", ["irqfd", "eventfd", "close"])
@pytest.mark.parametrize("handler", [False, True])
async def test_deassign_and_close_take_none(no_room, semaphore, by, handler):
    sink = RecordingSink()
    told = []

    async def on_wakeup(_irqfd, count):
        told.append(count)

    with EventFd(2, semaphore=semaphore) as efd, EventFd() as resample:
        async with IrqManager(sink) as irqs:
            irqfd = irqs.assign(efd, gsi=1, wakeup=on_wakeup if handler else ())
            level = irqs.assign(EventFd(), gsi=9, resamplefd=resample)
            await irqs.flush()
            injected = len(sink.interrupts)
            os.eventfd_write(efd.fileno(), 3)
            with no_room():
                if by == "irqfd":
                    await irqs.deassign(irqfd)
                elif by == "eventfd":
                    await irqs.deassign(efd, gsi=1)
                else:
                    efd.close()
                    resample.close()
                    level.eventfd.close()
                    await irqs.flush()
            assert irqfd.state is State.CLOSED
            assert len(sink.interrupts) == injected + 1
            if handler:
                assert sum(told) == 5
            if by != "close":
                again = irqs.assign(efd, gsi=2)
                await irqs.deassign(again)
                level.eventfd.close()


async def test_a_resamplefd_that_is_closed_without_room_is_still_told(no_room):
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick, EventFd() as resample:
            other = os.dup(resample.fileno())
            irqs.assign(kick, gsi=9, resamplefd=resample)
            kick.signal()
            await irqs.flush()
            with no_room():
                resample.close()
            assert resample.closed
            irqs.ack(9)
            assert os.eventfd_read(other) == 1
    os.close(other)


async def test_assign_without_room_changes_nothing(no_room):
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd(1) as efd:
            for given in (efd, efd.fileno()):
                with no_room(), pytest.raises(OSError) as caught:
                    irqs.assign(given, gsi=1)
                assert is_full(caught.value)
            assert irqs.irqfds == ()
            assert kernel_count(efd) == 1
            irqs.assign(efd, gsi=1)
            with pytest.raises(EventFdBusyError):
                irqs.assign(efd, gsi=1)


# ------------------------------------------------------------------------------------------------------------- no /proc


def has_no_proc(error):
    return isinstance(error, FileNotFoundError) and str(error.filename).startswith("/proc/thread-self/fdinfo")


def test_without_proc_it_is_said_what_is_missing(efd):
    known = EventFd()
    number = known.id

    def child():
        leave_proc()
        with EventFd(3) as other:
            assert other.read_nowait() == 3
            assert other.signal(2**64 - 2) == 2**64 - 2
            assert other.signal(7) == 0
        for ask in (lambda: EventFd.from_fd(efd.fileno()), lambda: efd.id):
            with pytest.raises(OSError) as caught:
                ask()
            assert has_no_proc(caught.value)
        with pytest.raises(ClosedError):
            EventFd.from_fd(2**20)
        assert known.id == number

    assert in_child(child) == 0
    known.close()


def test_without_proc_irqfds_that_are_bound_go_on(efd):
    with EventFd() as unknown:

        async def use():
            asyncio.get_running_loop()
            sink = RecordingSink()
            async with IrqManager(sink) as irqs:
                irqs.assign(efd, gsi=1)
                leave_proc()
                with pytest.raises(OSError) as caught:
                    irqs.assign(unknown, gsi=2)
                assert has_no_proc(caught.value)
                assert len(irqs.irqfds) == 1
                efd.signal()
                os.eventfd_write(efd.fileno(), 1)
                await irqs.flush()
                assert len(sink.interrupts) == 2
                await irqs.deassign(efd, gsi=1)
                assert irqs.irqfds == ()

        assert in_child(lambda: asyncio.run(use())) == 0


# ----------------------------------------------------------------------------------------- closed behind the object's back


@pytest.fixture
def lost():
    """An EventFd whose fd can be closed behind its back, and a dup of it that somebody else has."""
    efd = EventFd()
    other = os.dup(efd.fileno())
    yield efd, other
    with contextlib.suppress(OSError):
        efd.close()
    os.close(other)


async def test_close_closes_all_else_and_says_so(lost):
    efd, _ = lost
    reader = await waiting_reader(efd)
    os.close(efd.fileno())
    with pytest.raises(OSError) as caught:
        efd.close()
    assert caught.value.errno == errno.EBADF
    assert efd.closed
    with pytest.raises(ClosedError):
        await reader
    efd.close()


@pytest.mark.parametrize("method", ["read", "wait"])
async def test_who_waits_is_told_at_the_next_event(lost, method):
    efd, other = lost
    readers = [await waiting_reader(efd, method) for _ in range(3)]
    os.close(efd.fileno())
    os.eventfd_write(other, 1)
    results = await asyncio.wait_for(asyncio.gather(*readers, return_exceptions=True), 60)
    assert [(type(result), getattr(result, "errno", None)) for result in results] == [(OSError, errno.EBADF)] * 3


async def test_an_event_is_injected_though_its_count_cannot_be_read(lost, monkeypatch):
    efd, other = lost
    errors = []
    monkeypatch.setattr("sys.unraisablehook", lambda args: errors.append(args.exc_value.errno))
    sink = RecordingSink()
    told = []

    async def on_wakeup(_irqfd, count):
        told.append(count)

    async with IrqManager(sink) as irqs:
        irqfd = irqs.assign(efd, gsi=1, wakeup=on_wakeup)
        os.close(efd.fileno())
        for count in range(1, 4):
            os.eventfd_write(other, 5)
            await irqs.flush()
            assert len(sink.interrupts) == count
        assert told == [1, 1, 1], "as often as the loop noticed: more is not to be known"
        assert errors == [errno.EBADF], "said once"
        await irqs.deassign(irqfd)
        assert irqfd.state is State.CLOSED


async def test_what_is_owed_when_it_is_deassigned_is_injected(lost, monkeypatch):
    efd, other = lost
    monkeypatch.setattr("sys.unraisablehook", lambda _args: None)
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        irqfd = irqs.assign(efd, gsi=1)
        os.close(efd.fileno())
        os.eventfd_write(other, 1)
        await irqs.deassign(irqfd)
        assert (irqfd.state, len(sink.interrupts)) == (State.CLOSED, 1)


async def test_what_was_counted_here_and_goes_nowhere_leaves_nothing_half_done(lost):
    # A semaphore's rest, which the deassign would have left in the eventfd.
    efd, _ = lost
    with EventFd(semaphore=True) as semaphore:
        fd = semaphore.fileno()
        async with IrqManager(RecordingSink()) as irqs:
            irqfd = irqs.assign(semaphore, gsi=1)
            semaphore.signal(5)
            spare = os.dup(fd)
            os.close(fd)
            with pytest.raises(OSError):
                await irqs.deassign(irqfd)
            os.dup2(spare, fd, inheritable=False)
            os.close(spare)
            await irqs.deassign(irqfd)
            assert (irqfd.state, irqs.irqfds) == (State.CLOSED, ())
            irqs.assign(semaphore, gsi=2)
    del efd
