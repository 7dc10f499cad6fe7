from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioirqfd import (
    ClosedError,
    EventFd,
    EventFdInvalidError,
    IoBus,
    IoEventFdExistsError,
    IoEventFdNotFoundError,
    IrqManager,
    WouldBlock,
)
from aioirqfd.sinks import RecordingSink

TOP = 2**64 - 1


def counts(doorbell):
    statistics = doorbell.statistics()
    return statistics.writes, statistics.values, statistics.overflowed


def test_values_come_in_the_order_they_were_written_beside_the_count():
    bus = IoBus()
    with EventFd() as eventfd:
        doorbell = bus.ioeventfd(eventfd, address=0x1000, values=4)
        for value, length in ((0, 1), (TOP, 8), (0x1234, 2)):
            assert bus.write(0x1000, value, length)
        assert counts(doorbell) == (3, 3, 0)
        assert eventfd.read_nowait() == 3
        assert doorbell.take_values() == [0, TOP, 0x1234]
        assert doorbell.take_values() == []
        assert counts(doorbell) == (3, 0, 0)


def test_the_last_values_stay_and_the_others_are_counted():
    bus = IoBus()
    with EventFd() as eventfd:
        doorbell = bus.ioeventfd(eventfd, address=0, values=3)
        for value in range(10):
            bus.write(0, value, 4)
        assert counts(doorbell) == (10, 3, 7)
        assert doorbell.take_values() == [7, 8, 9]
        bus.write(0, 10, 4)
        assert doorbell.take_values() == [10]
        assert counts(doorbell) == (11, 0, 7)
        assert eventfd.read_nowait() == 11


@given(st.integers(1, 4), st.lists(st.integers(0, 2**32 - 1) | st.none(), max_size=30))
def test_the_ring_is_a_bounded_queue(size, operations):
    bus = IoBus()
    model: deque[int] = deque(maxlen=size)
    written = lost = 0
    with EventFd() as eventfd:
        doorbell = bus.ioeventfd(eventfd, address=0, values=size)
        for value in operations:
            if value is None:
                assert doorbell.take_values() == list(model)
                model.clear()
            else:
                lost += len(model) == size
                written += 1
                model.append(value)
                bus.write(0, value, 4)
            assert counts(doorbell) == (written, len(model), lost)


def test_without_values_nothing_is_kept():
    bus = IoBus()
    with EventFd() as eventfd:
        doorbell = bus.ioeventfd(eventfd, address=0)
        bus.write(0, 7, 4)
        assert doorbell.take_values() == []
        assert counts(doorbell) == (1, 0, 0)


def test_what_does_not_match_is_not_kept():
    bus = IoBus()
    with EventFd() as eventfd:
        doorbell = bus.ioeventfd(eventfd, address=0, length=4, datamatch=7, values=4)
        assert not bus.write(0, 8, 4)
        assert not bus.write(0, 7, 2)
        assert not bus.write(1, 7, 4)
        assert not bus.write(0, 7, 4, space="pio")
        assert bus.write(0, 7, 4)
        assert doorbell.take_values() == [7]


@pytest.mark.parametrize("values", [-1, 2**20 + 1])
def test_a_ring_has_a_bound(values):
    bus = IoBus()
    with EventFd() as eventfd:
        with pytest.raises(ValueError, match="values"):
            bus.ioeventfd(eventfd, address=0, values=values)
        assert len(bus) == 0


def test_doorbells_that_share_an_eventfd_keep_their_values_apart():
    bus = IoBus()
    with EventFd() as eventfd:
        one = bus.ioeventfd(eventfd, address=0, values=4)
        two = bus.ioeventfd(eventfd, address=8, values=4)
        bus.write(0, 1, 4)
        bus.write(8, 2, 4)
        bus.write(0, 3, 4)
        assert (one.take_values(), two.take_values(), eventfd.read_nowait()) == ([1, 3], [2], 3)


def test_four_threads_lose_no_value_and_keep_each_their_order():
    bus = IoBus()
    threads, each = 4, 2000
    with EventFd() as eventfd:
        doorbell = bus.ioeventfd(eventfd, address=0, values=threads * each)
        taken: list[int] = []

        def vcpu(number):
            for value in range(each):
                assert bus.write(0, number << 32 | value, 8)

        writers = [threading.Thread(target=vcpu, args=(number,)) for number in range(threads)]
        for writer in writers:
            writer.start()
        while any(writer.is_alive() for writer in writers):
            taken += doorbell.take_values()
        for writer in writers:
            writer.join()
        taken += doorbell.take_values()
        for number in range(threads):
            assert [value & 0xFFFFFFFF for value in taken if value >> 32 == number] == list(range(each))
        assert len(taken) == threads * each
        assert counts(doorbell) == (threads * each, 0, 0)
        assert eventfd.read_nowait() == threads * each


async def test_a_wakeup_handler_finds_the_values_of_its_count():
    bus, seen = IoBus(), []
    with EventFd() as eventfd:
        doorbell = bus.ioeventfd(eventfd, address=0, values=100)

        async def handler(_irqfd, count):
            values = doorbell.take_values()
            seen.append((count, values))

        async with IrqManager(RecordingSink()) as irqs:
            irqs.assign(eventfd, gsi=5, wakeup=handler)

            def vcpu():
                for value in range(50):
                    bus.write(0, value, 4)

            await asyncio.to_thread(vcpu)
            await irqs.flush()
    assert [value for _, values in seen for value in values] == list(range(50))
    assert sum(count for count, _ in seen) == 50


def test_a_value_is_there_before_its_wakeup():
    # A write on the loop's own thread runs the sink at once.
    class Sink:
        def __init__(self):
            self.values = []

        async def inject(self, interrupt):
            raise AssertionError

        def try_inject(self, interrupt):
            self.values.append(doorbell.take_values())
            return True

    sink, bus = Sink(), IoBus()

    async def main():
        async with IrqManager(sink) as irqs:
            irqs.assign(eventfd, gsi=5)
            for value in range(3):
                bus.write(0, value, 4)

    with EventFd() as eventfd:
        doorbell = bus.ioeventfd(eventfd, address=0, values=8)
        asyncio.run(main())
    assert sink.values == [[0], [1], [2]]


# -- closed eventfds (row O18) ---------------------------------------------------------------------------------------


def closed_by_its_owner(eventfd):
    eventfd.close()


def closed_behind_its_back(eventfd):
    os.close(eventfd.fileno())


def foreign():
    return EventFd.from_fd(os.eventfd(0))


@pytest.mark.parametrize(("make", "close"), [(EventFd, closed_by_its_owner), (foreign, closed_behind_its_back)])
@pytest.mark.parametrize("values", [0, 4])
def test_a_write_to_a_doorbell_whose_eventfd_is_closed_is_the_callers_again(make, close, values):
    bus, eventfd = IoBus(), make()
    doorbell = bus.ioeventfd(eventfd, address=0, values=values)
    assert bus.write(0, 1, 4)
    close(eventfd)
    assert bus.write(0, 2, 4) is False
    assert (len(bus), doorbell.take_values()) == (0, [1][:values])
    assert (bus.statistics().doorbells, bus.statistics().writes, bus.statistics().detached) == (0, 1, 1)
    assert bus.write(0, 3, 4) is False
    assert bus.statistics().detached == 1


@pytest.mark.parametrize(("make", "close"), [(EventFd, closed_by_its_owner), (foreign, closed_behind_its_back)])
def test_the_address_of_a_closed_eventfd_is_free(make, close):
    bus, gone = IoBus(), make()
    bus.ioeventfd(gone, address=0, length=4, datamatch=7)
    with EventFd() as eventfd, EventFd() as other:
        bus.ioeventfd(other, address=0, length=4, datamatch=8)
        with pytest.raises(IoEventFdExistsError):
            bus.ioeventfd(eventfd, address=0, length=4, datamatch=7)
        close(gone)
        doorbell = bus.ioeventfd(eventfd, address=0, length=4, datamatch=7)
        assert (len(bus), bus.statistics().detached) == (2, 1)
        assert bus.write(0, 7, 4)
        assert bus.write(0, 8, 4)
        assert (eventfd.read_nowait(), other.read_nowait(), doorbell.dead) == (1, 1, False)


def test_a_live_doorbell_stays_when_another_one_is_refused():
    bus = IoBus()
    with EventFd() as eventfd:
        bus.ioeventfd(eventfd, address=0)
        with pytest.raises(IoEventFdExistsError):
            bus.ioeventfd(eventfd, address=0, length=4)
        assert (len(bus), bus.statistics().detached) == (1, 0)


def test_a_doorbell_that_is_closed_is_not_detached():
    bus = IoBus()
    with EventFd() as eventfd:
        with bus.ioeventfd(eventfd, address=0) as doorbell:
            bus.write(0, 1, 1)
        doorbell.close()
        assert (bus.statistics().doorbells, bus.statistics().writes, bus.statistics().detached) == (0, 1, 0)


# -- fds, strings ----------------------------------------------------------------------------------------------------


def test_a_plain_fd_will_do():
    bus = IoBus()
    with EventFd() as eventfd:
        bus.ioeventfd(eventfd.fileno(), address=0, length=4)
        assert bus.write(0, 1, 4)
        assert eventfd.read_nowait() == 1
        copy = os.dup(eventfd.fileno())
        bus.deassign(copy, address=0, length=4)
        os.close(copy)
        with pytest.raises(IoEventFdNotFoundError):
            bus.deassign(eventfd, address=0, length=4)
        with pytest.raises(WouldBlock):
            eventfd.read_nowait()


def test_an_fd_may_be_closed_and_its_number_be_anothers():
    bus = IoBus()
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    device = os.dup(fd)
    doorbell = bus.ioeventfd(fd, address=0, values=2)
    os.close(fd)
    stranger = os.eventfd(0, os.EFD_NONBLOCK)
    assert stranger == fd
    assert bus.write(0, 1, 4)
    assert os.eventfd_read(device) == 1
    with pytest.raises(BlockingIOError):
        os.eventfd_read(stranger)
    assert not doorbell.dead
    bus.deassign(device, address=0)
    assert (doorbell.eventfd.closed, bus.write(0, 1, 4), doorbell.take_values()) == (True, False, [1])
    doorbell.close()
    os.close(stranger)
    os.close(device)


def open_fds():
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize("how", ["closed", "refused", "dropped"])
def test_the_reference_to_a_plain_fd_is_closed_with_the_doorbell(how):
    with EventFd() as eventfd:
        before = open_fds()
        bus = IoBus()
        doorbell = bus.ioeventfd(eventfd.fileno(), address=0)
        assert len(open_fds() - before) == 1
        if how == "closed":
            doorbell.close()
        elif how == "refused":
            with pytest.raises(IoEventFdExistsError):
                bus.ioeventfd(eventfd.fileno(), address=0, length=4)
            doorbell.close()
        del doorbell, bus
        gc.collect()
        assert open_fds() - before == set()
        eventfd.signal()
        assert eventfd.read_nowait() == 1


def test_an_fd_that_is_no_eventfd():
    bus = IoBus()
    reader, writer = os.pipe()
    for call in (bus.ioeventfd, bus.deassign):
        with pytest.raises(EventFdInvalidError):
            call(reader, address=0)
    os.close(reader)
    os.close(writer)
    for call in (bus.ioeventfd, bus.deassign):
        with pytest.raises(ClosedError):
            call(reader, address=0)
    assert len(bus) == 0


def test_a_string_instruction_rings_once_for_each_element():
    bus = IoBus()
    with EventFd() as eventfd:
        doorbell = bus.ioeventfd(eventfd, address=0x3F8, length=1, space="pio", values=8)
        assert bus.write_bytes(0x3F8, b"ABCD", 1) == []
        assert (eventfd.read_nowait(), doorbell.take_values()) == (4, [0x41, 0x42, 0x43, 0x44])
        assert bus.write_bytes(0x3F8, b"ABCD", 2) == [0x4241, 0x4443]
        assert bus.write_bytes(0x3F8, b"", 1) == []
        with pytest.raises(WouldBlock):
            eventfd.read_nowait()


def test_the_elements_that_do_not_match_are_the_callers():
    bus = IoBus()
    with EventFd() as eventfd:
        bus.ioeventfd(eventfd, address=0, length=2, datamatch=0x0201)
        assert bus.write_bytes(0, b"\x01\x02\x03\x04\x01\x02", 2, space="mmio") == [0x0403]
        assert eventfd.read_nowait() == 2


@pytest.mark.parametrize(("data", "length"), [(b"abc", 2), (b"a", 0), (b"a", -1)])
def test_a_string_is_a_whole_number_of_elements(data, length):
    bus = IoBus()
    with EventFd() as eventfd:
        bus.ioeventfd(eventfd, address=0, space="pio")
        with pytest.raises(ValueError, match="whole number"):
            bus.write_bytes(0, data, length)
        with pytest.raises(WouldBlock):
            eventfd.read_nowait()


def test_5000_doorbells():
    # Row O22.
    bus = IoBus()
    with EventFd() as eventfd:
        for number in range(5000):
            bus.ioeventfd(eventfd, address=number * 4, length=4, values=1)
        for number in range(5000):
            assert bus.write(number * 4, number, 4)
        assert (len(bus), eventfd.read_nowait(), bus.statistics().writes) == (5000, 5000, 5000)
