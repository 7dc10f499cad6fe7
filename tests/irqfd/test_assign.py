"""What an assign looks at and in which order, what was there before it, and fds that stay the caller's."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import pathlib

import pytest

from aioirqfd import Action, ClosedError, EventFd, EventFdBusyError, EventFdInvalidError, IrqManager, WouldBlock
from aioirqfd.sinks import RecordingSink
from tests.irqfd.helpers import CLOSED_FD, SlowSink, pulse, turns, write

OPEN_FDS = pathlib.Path("/proc/self/fd")


async def test_i02_the_order_of_checks(pipe):
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick, EventFd() as free:
            irqs.assign(kick, gsi=5)
            for eventfd, resamplefd, error, code in (
                (CLOSED_FD, CLOSED_FD, ClosedError, errno.EBADF),
                (pipe, CLOSED_FD, EventFdInvalidError, errno.EINVAL),
                (kick, CLOSED_FD, ClosedError, errno.EBADF),
                (kick, pipe, EventFdInvalidError, errno.EINVAL),
                (kick, free, EventFdBusyError, errno.EBUSY),
            ):
                with pytest.raises(error) as caught:
                    irqs.assign(eventfd, gsi=9, resamplefd=resamplefd)
                assert caught.value.errno == code
            assert [irqfd.gsi for irqfd in irqs.irqfds] == [5]
            assert irqs.statistics().asserted == 0
            irqs.ack(9)
            irqs.assign(free, gsi=9)


async def test_i12_an_eventfd_is_bound_to_one_irqfd_however_it_is_called():
    async with IrqManager(RecordingSink()) as irqs, IrqManager(RecordingSink()) as others:
        with EventFd() as kick, EventFd() as unmask:
            irqfd = irqs.assign(kick, gsi=5)
            dup = os.dup(kick.fileno())
            for manager in (irqs, others):
                for eventfd in (kick, kick.fileno(), dup, EventFd.from_fd(dup)):
                    for gsi, resamplefd in ((5, None), (6, None), (9, unmask)):
                        with pytest.raises(EventFdBusyError) as caught:
                            manager.assign(eventfd, gsi=gsi, resamplefd=resamplefd)
                        assert caught.value.errno == errno.EBUSY
            assert irqs.irqfds == (irqfd,)
            assert others.irqfds == ()
            await irqs.deassign(irqfd)
            await others.deassign(others.assign(dup, gsi=6))
            os.close(dup)


async def test_i13_i16_several_eventfds_on_one_gsi_and_odd_but_legal_pairs():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as one, EventFd() as two, EventFd() as three:
            irqs.assign(one, gsi=5)
            irqs.assign(two, gsi=5)
            irqs.assign(three, gsi=9, resamplefd=three)
            one.signal()
            two.signal()
            assert sink.interrupts == [pulse(5)] * 2
            three.signal()
            for _ in range(3):
                irqs.ack(9)  # every end of interrupt triggers again (row R12)
            assert [interrupt.action for interrupt in sink.interrupts[2:]] == [Action.ASSERT, Action.DEASSERT] * 3 + [
                Action.ASSERT
            ]


@pytest.mark.parametrize("gsi", [0, 23, 24, 4095, 4096, 2**32 - 1])
async def test_i11_the_gsi_need_not_be_routed(gsi):
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick:
            assert irqs.assign(kick, gsi=gsi).gsi == gsi


async def test_p01_p03_p04_what_is_there_is_injected_once_and_stays_until_the_next_write():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd(3) as kick:
            irqs.assign(kick, gsi=5)
            await irqs.flush()
            assert sink.interrupts == [pulse(5)]
            assert kick.read_nowait() == 3
            write(kick, 2)
            await irqs.flush()
            assert sink.interrupts == [pulse(5)] * 2
            with pytest.raises(WouldBlock):
                kick.read_nowait()


async def test_an_int_stays_the_callers():
    sink = RecordingSink()
    fd = os.eventfd(0, os.EFD_CLOEXEC)  # a blocking one, too
    async with IrqManager(sink) as irqs:
        irqfd = irqs.assign(fd, gsi=5)
        os.eventfd_write(fd, 1)
        await irqs.flush()
        await irqs.deassign(irqfd)
        irqs.assign(fd, gsi=6)
    del irqfd
    gc.collect()
    assert sink.interrupts == [pulse(5)]
    os.close(fd)


async def test_w03_an_int_written_and_then_closed_loses_nothing():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        fd = os.eventfd(0, os.EFD_CLOEXEC)
        irqfd = irqs.assign(fd, gsi=5)
        os.eventfd_write(fd, 3)
        os.close(fd)
        await turns()
        assert sink.interrupts == [pulse(5)]
        assert irqfd.statistics().signals == 3


async def test_who_takes_over_the_number_of_an_int_is_left_alone():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        trigger, resample = os.eventfd(0, os.EFD_CLOEXEC), os.eventfd(0, os.EFD_CLOEXEC)
        irqs.assign(trigger, gsi=5, resamplefd=resample)
        heard = EventFd.from_fd(os.dup(resample), owns=True)
        numbers = {trigger, resample}
        os.close(trigger)
        os.close(resample)
        strangers = [EventFd(7) for _ in numbers]
        assert {stranger.fileno() for stranger in strangers} == numbers
        irqs.ack(5)
        await irqs.flush()
        assert heard.read_nowait() == 1
        assert [stranger.read_nowait() for stranger in strangers] == [7, 7]
        assert sink.interrupts == []
        for eventfd in (heard, *strangers):
            eventfd.close()


@pytest.mark.parametrize("wrong", ["trigger", "resamplefd", "busy"])
async def test_an_int_that_is_refused_leaves_no_fd(wrong, pipe):
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    async with IrqManager(RecordingSink()) as irqs:
        irqfd = irqs.assign(fd, gsi=5)
        other = os.eventfd(0, os.EFD_CLOEXEC)
        before = len(list(OPEN_FDS.iterdir()))
        with pytest.raises((EventFdInvalidError, EventFdBusyError)):
            irqs.assign(
                {"trigger": pipe, "resamplefd": other, "busy": fd}[wrong],
                gsi=6,
                resamplefd=pipe if wrong == "resamplefd" else other,
            )
        assert len(list(OPEN_FDS.iterdir())) == before
        os.close(other)
        await irqs.deassign(irqfd)
    os.close(fd)


async def test_an_int_whose_irqfd_is_deassigned_while_its_sink_refuses_is_injected_all_the_same():
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    class Sink(SlowSink):
        def try_inject(self, interrupt):
            irqfd._binding.shut()
            return False

    sink = Sink()
    async with IrqManager(sink) as irqs:
        irqfd = irqs.assign(fd, gsi=5)
        os.eventfd_write(fd, 1)
        await turns()
        assert sink.interrupts == [pulse(5)]
        assert irqfd.eventfd.closed
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fd)
    os.close(fd)


async def test_readers_that_wait_hear_nothing_while_it_is_bound_and_again_afterwards():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            reader = asyncio.ensure_future(kick.read())
            await turns()
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal(2)
            write(kick, 2)
            await irqs.flush()
            await turns()
            assert not reader.done()  # row P09
            injected = len(sink.interrupts)
            assert injected >= 1
            await irqs.deassign(irqfd)
            kick.signal(7)
            assert await reader == 7
            assert len(sink.interrupts) == injected
