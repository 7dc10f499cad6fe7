"""Doorbells when something fails: nothing is half done, nothing is taken for something else, and numbers are plain ones."""

from __future__ import annotations

import copy
import errno
import gc
import os
import pickle

import pytest

from aioirqfd import EventFd, IoBus, IoEventFdExistsError, IoEventFdInvalidError
from tests.integers import int64
from tests.irqfd.helpers import room_for_fds


@pytest.fixture
def bus():
    return IoBus()


@pytest.fixture
def efd():
    with EventFd() as efd:
        yield efd


def test_other_libraries_integers_become_plain_ones(bus, efd):
    doorbell = bus.ioeventfd(efd, address=int64(0x1000), length=int64(4), datamatch=int64(7), values=int64(3))
    kept = (doorbell.address, doorbell.length, doorbell.datamatch)
    assert kept == (0x1000, 4, 7)
    assert {type(number) for number in kept} == {int}
    assert bus.write(0x1000, 7, 4)
    bus.deassign(int64(efd.fileno()), address=int64(0x1000), length=int64(4), datamatch=int64(7))
    assert len(bus) == 0
    any_value = bus.ioeventfd(efd, address=0, values=1)
    assert bus.write(0, int64(9), 4)
    (value,) = any_value.take_values()
    assert (value, type(value)) == (9, int)


@pytest.mark.parametrize("name", ["address", "datamatch", "values"])
@pytest.mark.parametrize("value", [True, False])
def test_a_bool_is_no_number(bus, efd, name, value):
    with pytest.raises(TypeError, match=f"is an integer, not {value}"):
        bus.ioeventfd(efd, **{"address": 0, "length": 4, name: value})
    with pytest.raises(IoEventFdInvalidError, match=f"bytes, not {value}"):
        bus.ioeventfd(efd, address=0, length=value)
    assert len(bus) == 0


@pytest.mark.parametrize("room", [0, 1])
def test_no_room_for_its_own_descriptor_and_a_look_at_it(bus, efd, room):
    with room_for_fds(room), pytest.raises(OSError, match="Too many open files") as caught:
        bus.ioeventfd(efd.fileno(), address=0)
    assert caught.value.errno == errno.EMFILE
    assert (len(bus), bus.write(0, 1, 4)) == (0, False)
    with room_for_fds(2), bus.ioeventfd(efd.fileno(), address=0):
        assert bus.write(0, 1, 4)


def test_a_doorbell_that_cannot_be_looked_at_is_not_taken_for_dead(bus, efd):
    doorbell = bus.ioeventfd(efd, address=0)
    with room_for_fds(0):
        with pytest.raises(IoEventFdExistsError):
            bus.ioeventfd(efd, address=0)
        assert doorbell.dead is False
    assert bus.write(0, 1, 4)


def test_one_whose_number_is_another_files_by_now_is_dead(bus):
    fd = os.eventfd(0)
    doorbell = bus.ioeventfd(EventFd.from_fd(fd), address=0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, fd)
    assert doorbell.dead is True
    os.close(null)
    os.close(fd)


class Failing:
    """In place of an eventfd: fails as it is told to."""

    closed = False

    def __init__(self, *errors):
        self.errors = list(errors)

    def signal(self):
        if error := self.errors.pop(0):
            raise error


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt(), OSError(errno.EBADF, "closed")])
def test_a_write_that_did_not_ring_is_not_among_the_values(bus, efd, error):
    doorbell = bus.ioeventfd(efd, address=0, values=2)
    doorbell.eventfd = Failing(None, None, error)
    assert [doorbell.ring(value) for value in (1, 2)] == [True, True]
    if getattr(error, "errno", 0) == errno.EBADF:
        assert doorbell.ring(2) is False
    else:
        with pytest.raises(type(error)):
            doorbell.ring(2)
    statistics = doorbell.statistics()
    assert (statistics.writes, statistics.values, statistics.overflowed) == (2, 2, 0)
    assert doorbell.take_values() == [1, 2], "the oldest is there again"


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
def test_nothing_is_copied(bus, efd, how):
    with bus.ioeventfd(efd.fileno(), address=0) as doorbell:
        for one in (bus, doorbell):
            with pytest.raises(TypeError, match="cannot be copied or pickled"):
                how(one)
        gc.collect()
        assert bus.write(0, 1, 4)
        assert efd.read_nowait() == 1
