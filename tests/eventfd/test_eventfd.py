"""EventFd on both loops: making one, wrapping one, signalling it."""

from __future__ import annotations

import asyncio
import enum
import errno
import fcntl
import os
import resource

import pytest

from aioirqfd import ClosedError, EventFd, EventFdInvalidError, Poller, WouldBlock
from tests.eventfd.helpers import FULL, in_thread, info_of, kernel_count, turns, waiting_reader

# ---------------------------------------------------------------------------------------------------------- making one


@pytest.mark.parametrize("initial", [0, 1, 2**32 - 1])
@pytest.mark.parametrize("semaphore", [False, True])
def test_a_new_one_is_non_blocking_and_not_inherited(initial, semaphore):
    # Rows E02, E03, E25.
    with EventFd(initial, semaphore=semaphore) as efd:
        assert info_of(efd.fileno())[::2] == (initial, semaphore)
        assert efd.semaphore is semaphore
        assert fcntl.fcntl(efd.fileno(), fcntl.F_GETFL) == os.O_RDWR | os.O_NONBLOCK
        assert not os.get_inheritable(efd.fileno())
        assert not efd.closed


@pytest.mark.parametrize("initial", [-1, 2**32, 2**64])
def test_an_initial_count_out_of_range(initial):
    # Row E03: the system call takes 32 bits.
    with pytest.raises(ValueError, match=r"0\.\.2\*\*32-1"):
        EventFd(initial)


@pytest.mark.parametrize("initial", ["1", None, 1.5])
def test_an_initial_count_of_another_type(initial):
    with pytest.raises(TypeError):
        EventFd(initial)


def test_how_it_may_be_made():
    with pytest.raises(TypeError):
        EventFd(0, True)  # pyright: ignore[reportCallIssue]
    with EventFd(initial=3) as efd:
        assert efd.read_nowait() == 3


def test_no_fds_left():
    # Row E04.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(OSError) as caught:
            EventFd()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE


def test_its_id_is_the_same_for_every_dup(efd):
    # Row E25.
    with EventFd() as other:
        dup = os.dup(efd.fileno())
        with EventFd.from_fd(dup, owns=True) as same:
            assert same.id == efd.id == info_of(efd.fileno())[1]
            assert same.fileno() != efd.fileno()
            assert other.id != efd.id
            same.signal(3)
            assert efd.read_nowait() == 3


def test_its_repr(efd):
    assert repr(efd) == f"<EventFd fd={efd.fileno()}>"
    with EventFd(semaphore=True) as other:
        assert repr(other) == f"<EventFd fd={other.fileno()} semaphore>"
    assert repr(other) == "<EventFd closed semaphore>"


# ------------------------------------------------------------------------------------------------------ from_fd


def test_from_fd_leaves_flags_and_fd_alone():
    fd = os.eventfd(5, os.EFD_SEMAPHORE)
    try:
        with EventFd.from_fd(fd) as efd:
            assert (efd.fileno(), efd.semaphore) == (fd, True)
            assert [efd.read_nowait() for _ in range(5)] == [1] * 5
            with pytest.raises(WouldBlock):
                efd.read_nowait()
        assert fcntl.fcntl(fd, fcntl.F_GETFL) == os.O_RDWR
    finally:
        os.close(fd)
    owned = os.eventfd(0)
    EventFd.from_fd(owned, owns=True).close()
    with pytest.raises(OSError):
        os.fstat(owned)


def test_from_fd_of_something_else():
    # Row I08.
    end, other_end = os.pipe()
    os.close(other_end)
    with pytest.raises(EventFdInvalidError) as caught:
        EventFd.from_fd(end)
    assert caught.value.errno == errno.EINVAL
    os.close(end)
    for fd in (end, -1, 2**31 - 1, 2**32, 2**70):
        with pytest.raises(ClosedError) as closed:
            EventFd.from_fd(fd)
        assert closed.value.errno == errno.EBADF
    for wrong in ("0", None, 1.5):
        with pytest.raises(TypeError):
            EventFd.from_fd(wrong)  # pyright: ignore[reportArgumentType]


async def test_a_blocking_eventfd_never_blocks_the_loop():
    fd = os.eventfd(0)
    try:
        with EventFd.from_fd(fd) as efd:
            task = await waiting_reader(efd)
            os.eventfd_write(fd, 4)
            assert await task == 4
            waiter = await waiting_reader(efd, "wait")
            in_thread(efd.signal, 2)
            await waiter
            assert efd.read_nowait() == 2
            assert efd.signal(FULL) == FULL
            assert efd.signal(3) == 0
    finally:
        os.close(fd)


# ------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("bad", [0, -1, 2**64 - 1, 2**64, -(2**70)])
@pytest.mark.parametrize("listening", [False, True])
async def test_a_signal_out_of_range_adds_nothing(efd, bad, listening):
    # Rows E06, E09: the kernel's write(0) is no signal here, and is refused.
    task = await waiting_reader(efd) if listening else None
    with pytest.raises(ValueError, match=r"a signal is 1\.\.2\*\*64-2"):
        efd.signal(bad)
    assert kernel_count(efd) == efd._count == 0
    if task:
        await turns()
        assert not task.done()
        efd.signal()
        assert await task == 1


@pytest.mark.parametrize("bad", ["x", None, 1.0, b"1"])
def test_a_signal_of_another_type(efd, bad):
    with pytest.raises(TypeError):
        efd.signal(bad)
    assert kernel_count(efd) == 0


class Number:
    """Another library's integer."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


class Named(enum.IntEnum):
    THREE = 3


@pytest.mark.parametrize("three", [Number(3), Named.THREE])
def test_an_integer_of_any_kind_is_a_plain_one(three):
    with EventFd(three) as efd:
        added = efd.signal(three)
        assert (added, type(added)) == (3, int)
        assert efd.read_nowait() == 6
        with EventFd.from_fd(Number(efd.fileno())) as same:
            assert (same.fileno(), type(same.fileno())) == (efd.fileno(), int)


@pytest.mark.parametrize("bad", [True, False, 1.0, "1", None, object()])
def test_a_bool_is_no_integer_nor_is_what_has_no_index(efd, bad):
    for call in (efd.signal, EventFd, EventFd.from_fd, lambda it: Poller.get(max_events=it)):
        with pytest.raises(
            TypeError, match=r"(a signal|an eventfd's first count|an fd|max_events) is an integer, not "
        ):
            in_a_loop(call, bad)
    assert kernel_count(efd) == 0


@pytest.mark.parametrize("bad", [0, -1, 2**20 + 1, 2**70])
def test_a_pass_has_a_bound(bad):
    with pytest.raises(ValueError, match=rf"^max_events is 1\.\.2\*\*20, not {bad}$"):
        in_a_loop(lambda it: Poller.get(max_events=it), bad)


def in_a_loop(call, value):
    async def run():
        call(value)

    asyncio.run(run())


def test_signals_saturate(efd):
    # Rows E07, E18.
    assert efd.signal(FULL - 1) == FULL - 1
    assert efd.signal(7) == 1
    assert efd.signal() == 0
    assert efd.read_nowait() == FULL


async def test_signals_saturate_while_somebody_listens(efd):
    waiter = await waiting_reader(efd, "wait")
    added = []
    in_thread(lambda: added.extend(map(efd.signal, (FULL - 1, 7, 1))))
    assert added == [FULL - 1, 1, 0]
    await waiter
    assert efd.read_nowait() == FULL


def test_where_nobody_listens_it_is_the_kernels(efd):
    dup = os.dup(efd.fileno())
    efd.signal(3)
    assert os.eventfd_read(dup) == 3
    os.eventfd_write(dup, 4)
    assert efd.read_nowait() == 4
    os.close(dup)
