"""Counter: a real eventfd's arithmetic without the fd, in both implementations; and fdinfo."""

from __future__ import annotations

import errno
import importlib
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioirqfd.counter import _python
from aioirqfd.errors import WouldBlock

try:
    BOTH = (importlib.import_module("aioirqfd.counter._native"), _python)
except ImportError:
    BOTH = (_python,)

MAX = 2**64 - 2
EDGES = (1, 2, 3, 2**32 - 1, 2**32, 2**63, MAX - 1, MAX)


class Index:
    """Not an int, but says which one it stands for."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


class Float:
    def __index__(self):
        raise ZeroDivisionError


# -------------------------------------------------------------------------------------------------- against an eventfd


class Kernel:
    """An os.eventfd with a Counter's interface: what the kernel refuses whole is added as far as it fits."""

    def __init__(self, initial, *, semaphore):
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC | (os.EFD_SEMAPHORE if semaphore else 0))
        self.semaphore = semaphore
        if initial:
            os.eventfd_write(self.fd, initial)

    @property
    def value(self):
        info = _python.fdinfo(self.fd)
        assert info is not None
        return info[0]

    def signal(self, n):
        room = MAX - self.value
        try:
            os.eventfd_write(self.fd, n)
        except BlockingIOError:
            assert n > room
            if room:
                os.eventfd_write(self.fd, room)
            return room
        assert n <= room
        return n

    def read(self):
        try:
            return os.eventfd_read(self.fd)
        except BlockingIOError:
            raise WouldBlock from None


amounts = st.sampled_from(EDGES) | st.integers(1, MAX)
operations = st.lists(st.one_of(amounts, st.just("read")), max_size=30)


@given(initial=st.sampled_from((0, *EDGES)) | st.integers(0, MAX), semaphore=st.booleans(), script=operations)
def test_both_implementations_agree_with_a_real_eventfd(initial, semaphore, script):
    kernel = Kernel(initial, semaphore=semaphore)
    try:
        counters = [kernel, *(module.Counter(initial, semaphore=semaphore) for module in BOTH)]
        for step in script:
            results = []
            for one in counters:
                try:
                    results.append(one.read() if step == "read" else one.signal(step))
                except WouldBlock:
                    results.append("would block")
            assert len(set(results)) == 1, (step, results)
            assert len({one.value for one in counters}) == 1
    finally:
        os.close(kernel.fd)


# ----------------------------------------------------------------------------------------- the two say the same of each limit


def outcome(call):
    """What a call gives, or how it refuses, to the letter."""
    try:
        result = call()
    except Exception as error:
        return type(error), str(error)
    return type(result), result


def ring_capacity(module, value):
    # Memory for the larger ones is not to be had.
    number = value.value if isinstance(value, Index) else value
    return module.FlightRing(number % 5000 if isinstance(number, int) and 5000 < number <= 2**28 else value).capacity


def ctx_signal(module, value):
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        return module.EventFdCtx(fd).signal(value)
    finally:
        os.close(fd)


TAKEN_IN = {
    "count": lambda module, value: module.Counter(value).value,
    "signal": lambda module, value: module.Counter().signal(value),
    "eventfd's signal": ctx_signal,
    "fd": lambda module, value: module.fdinfo(value),
    "max_events": lambda module, value: module.Drain(value).max_events,
    "capacity": ring_capacity,
}
integers = st.sampled_from([low + off for low in (0, 2**20, 2**28, 2**31, 2**32, 2**63, 2**64) for off in range(-3, 4)])
anything = st.one_of(
    integers,
    st.integers(-(2**70), 2**70),
    integers.map(Index),
    st.booleans(),
    st.none(),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.just(Float()),
)


@pytest.mark.skipif(len(BOTH) < 2, reason="there is one implementation")
@pytest.mark.parametrize("what", TAKEN_IN)
@given(value=anything)
def test_both_implementations_refuse_the_same_in_the_same_words(what, value):
    first, second = (outcome(lambda module=module: TAKEN_IN[what](module, value)) for module in BOTH)
    assert first == second
    assert first[0] in {int, type(None), tuple, TypeError, ValueError, OSError, ZeroDivisionError}


# ---------------------------------------------------------------------------------------------------------- by itself


def test_it_saturates_and_says_what_it_added(counter):
    one = counter.Counter(MAX - 1)
    assert [one.signal(1), one.signal(1), one.signal(MAX)] == [1, 0, 0]
    assert one.value == MAX
    assert one.read() == MAX
    assert one.signal(MAX) == MAX
    assert one.read() == MAX
    one.signal(MAX - 3)
    assert one.signal(MAX) == 3


def test_a_read_takes_all_and_then_would_block(counter):
    one = counter.Counter()
    assert (one.value, one.semaphore) == (0, False)
    with pytest.raises(WouldBlock) as caught:
        one.read()
    assert caught.value.errno == errno.EAGAIN
    assert one.signal() == 1
    assert one.signal(4) == 4
    assert one.value == 5
    assert one.read() == 5
    assert one.value == 0


def test_a_semaphore_gives_one_at_a_time(counter):
    one = counter.Counter(2, semaphore=True)
    assert one.semaphore is True
    assert [one.read(), one.read()] == [1, 1]
    with pytest.raises(WouldBlock):
        one.read()
    one.signal(MAX)
    assert one.read() == 1
    assert one.value == MAX - 1


@pytest.mark.parametrize("value", [0, -1, MAX + 1, 2**64, 2**70, -(2**70)])
def test_an_amount_out_of_range_changes_nothing(counter, value):
    one = counter.Counter(7)
    with pytest.raises(ValueError, match=r"^a signal is 1\.\.2\*\*64-2, not -?\d+$"):
        one.signal(value)
    assert one.value == 7


@pytest.mark.parametrize("value", [-1, MAX + 1, 2**70])
def test_an_initial_count_out_of_range(counter, value):
    with pytest.raises(ValueError, match=r"^a count is 0\.\.2\*\*64-2, not -?\d+$"):
        counter.Counter(value)


@pytest.mark.parametrize("value", ["1", 1.0, None, b"\x01", [1], True, False])
def test_an_amount_of_another_type(counter, value):
    one = counter.Counter(7)
    with pytest.raises(TypeError, match=r"^a signal is an integer, not "):
        one.signal(value)
    with pytest.raises(TypeError, match=r"^a count is an integer, not "):
        counter.Counter(value)
    assert one.value == 7


def test_what_stands_for_an_int_is_one(counter):
    one = counter.Counter(Index(3))
    assert one.signal(Index(4)) == 4
    added = one.signal(Index(1))
    assert (added, type(added), one.value, type(one.value)) == (1, int, 8, int)
    with pytest.raises(ZeroDivisionError):
        one.signal(Float())
    assert one.value == 8


def test_how_it_may_be_called(counter):
    assert counter.Counter(initial=3).value == 3
    for bad in (
        lambda: counter.Counter(0, True),
        lambda: counter.Counter(0, other=1),
        lambda: counter.Counter().signal(1, 2),
        lambda: counter.Counter().signal(n=1),
        lambda: counter.Counter().read(1),
    ):
        with pytest.raises(TypeError):
            bad()
    with pytest.raises(AttributeError):
        counter.Counter().value = 3
    with pytest.raises(AttributeError):
        counter.Counter().other = 3


def test_max_is_the_highest_count_that_a_write_leaves(counter):
    assert counter.MAX == MAX
    assert counter.Counter(counter.MAX).value == MAX


def test_threads_add_up_and_take_apart_exactly(counter):
    one = counter.Counter()
    taken = []
    writers_done = threading.Event()

    def reader():
        mine = 0
        while True:
            last = writers_done.is_set()
            try:
                mine += one.read()
            except WouldBlock:
                if last:
                    break
        taken.append(mine)

    def writer():
        for _ in range(5000):
            assert one.signal(3) == 3

    readers = [threading.Thread(target=reader) for _ in range(2)]
    writers = [threading.Thread(target=writer) for _ in range(3)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    writers_done.set()
    for thread in readers:
        thread.join()
    assert sum(taken) == 3 * 5000 * 3
    assert one.value == 0


# -------------------------------------------------------------------------------------------------------------- fdinfo


@pytest.mark.parametrize("semaphore", [False, True])
def test_fdinfo_tells_count_id_and_kind_and_takes_nothing(counter, semaphore):
    fd = os.eventfd(7, os.EFD_CLOEXEC | (os.EFD_SEMAPHORE if semaphore else 0))
    dup = os.dup(fd)
    other = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        count, number, kind = counter.fdinfo(fd)
        assert (count, kind) == (7, semaphore)
        assert type(kind) is bool
        assert counter.fdinfo(dup) == (7, number, semaphore)
        assert counter.fdinfo(other)[1] != number
        assert os.eventfd_read(fd) == (1 if semaphore else 7)
        os.eventfd_write(other, MAX)
        assert counter.fdinfo(other)[0] == MAX
    finally:
        for each in (fd, dup, other):
            os.close(each)


def test_fdinfo_of_something_else(counter):
    end, other_end = os.pipe()
    os.close(other_end)
    try:
        assert counter.fdinfo(end) is None
        # An int of the C kind would be cut down to the fd that is open.
        for fd in (-1, 2**31 - 1, 2**32 + end, 2**64 + end, -(2**70)):
            with pytest.raises(OSError) as caught:
                counter.fdinfo(fd)
            assert caught.value.errno == errno.EBADF
    finally:
        os.close(end)
    with pytest.raises(OSError) as caught:
        counter.fdinfo(end)
    assert caught.value.errno == errno.EBADF
    for wrong in ("0", "../../status", 1.0, None):
        with pytest.raises(TypeError):
            counter.fdinfo(wrong)
