"""The manager: the kernel's order of checks, binding and unbinding, barriers, offloading, pausing, and every way to an end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import pathlib
import threading
import warnings

import pytest

from aioirqfd import (
    Action,
    ClosedError,
    EventFd,
    EventFdBusyError,
    EventFdInvalidError,
    InjectionError,
    Interrupt,
    IrqchipPin,
    IrqManager,
    Retry,
    State,
    WorkQueue,
    WouldBlock,
)
from aioirqfd.counter import fdinfo
from aioirqfd.sinks import CallbackSink, RecordingSink
from aioirqfd.testing import FlakySink, GatedSink, RecordingTracer, RefusingSink
from tests.irqfd.helpers import MSI, OTHER_MSI, OffloadingSink, SlowSink, pulse, turns, write

CLOSED_FD = 10**6
OPEN_FDS = pathlib.Path("/proc/self/fd")


def count(eventfd):
    try:
        return eventfd.read_nowait()
    except WouldBlock:
        return 0


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader
    os.close(reader)
    os.close(writer)


# ------------------------------------------------------------------------------------------------------------- assign


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


# ----------------------------------------------------------------------------------------------------------- deassign


async def test_i14_deassign_of_what_is_not_there_does_nothing():
    async with IrqManager(RecordingSink()) as irqs, IrqManager(RecordingSink()) as others:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            await others.deassign(irqfd)
            assert irqs.irqfds == (irqfd,)
            await irqs.deassign(irqfd)
            await irqs.deassign(irqfd)


async def test_i14_i15_an_irqfd_by_its_eventfd_and_gsi(pipe):
    sink = RecordingSink()
    with EventFd() as eventfd, EventFd() as never:
        async with IrqManager(sink, routing={5: MSI}) as irqs, IrqManager(RecordingSink()) as others:
            closed = EventFd()
            closed.close()
            for wrong, error in ((CLOSED_FD, ClosedError), (closed, ClosedError), (pipe, EventFdInvalidError)):
                with pytest.raises(error):
                    await irqs.deassign(wrong, gsi=5)
            with pytest.raises(TypeError, match="and its gsi"):
                await irqs.deassign(eventfd)  # pyright: ignore[reportCallIssue, reportArgumentType]
            with pytest.raises(TypeError, match="not both"):
                await irqs.deassign(irqs.assign(never, gsi=7), gsi=7)  # pyright: ignore[reportCallIssue, reportArgumentType]
            await irqs.deassign(never, gsi=7)
            twin = os.dup(eventfd.fileno())
            with EventFd.from_fd(twin) as dup:
                for given in (eventfd, dup, twin):
                    irqfd = irqs.assign(eventfd, gsi=5)
                    assert [irqs.find(key, gsi=5) for key in (eventfd, dup, twin, never)] == [irqfd, irqfd, irqfd, None]
                    assert (irqs.find(given, gsi=6), others.find(given, gsi=5)) == (None, None)
                    await irqs.deassign(given, gsi=6)
                    await others.deassign(given, gsi=5)
                    os.eventfd_write(twin, 1)
                    await irqs.deassign(given, gsi=5)
                    assert (irqs.irqfds, irqfd.state, sink.interrupts.pop()) == ((), State.CLOSED, Interrupt(5, MSI))
                    await irqs.deassign(given, gsi=5)
            os.close(twin)
            with pytest.raises(EventFdBusyError):
                irqs.assign(irqs.assign(never, gsi=5).eventfd, gsi=6)


async def test_i20_deassigned_by_its_key_twice_both_wait():
    sink = GatedSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            kick.signal()
            waiting = [asyncio.ensure_future(irqs.deassign(kick, gsi=5)) for _ in range(2)]
            other = asyncio.ensure_future(irqs.deassign(kick, gsi=6))
            await turns()
            assert [task.done() for task in (*waiting, other)] == [False, False, True]
            sink.open()
            await asyncio.gather(*waiting)
            assert sink.interrupts == [pulse(5)]


@pytest.mark.parametrize("make", [RecordingSink, SlowSink, RefusingSink])
@pytest.mark.parametrize("how", ["here", "fd", "thread"])
async def test_i20_deassign_is_a_barrier(make, how):
    sink = make()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            for number in range(1, 51):
                irqfd = irqs.assign(kick, gsi=5)
                if how == "here":
                    kick.signal()
                elif how == "fd":
                    write(kick)
                else:
                    thread = threading.Thread(target=kick.signal)
                    thread.start()
                    thread.join()
                await irqs.deassign(irqfd)
                assert len(sink.interrupts) == number
                assert irqfd.state is State.CLOSED
                assert count(kick) == 0


@pytest.mark.parametrize("make", [RecordingSink, SlowSink])
async def test_w03_write_then_close_loses_nothing(make):
    sink = make()
    async with IrqManager(sink) as irqs:
        for number in range(50):
            with EventFd() as kick:
                irqs.assign(kick, gsi=5)
                (kick.signal if number % 2 else lambda kick=kick: write(kick))()
        assert irqs.irqfds == ()
    assert len(sink.interrupts) == 50


async def test_a_signal_that_comes_after_stays_in_the_eventfd_for_the_next_one():
    sink = GatedSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal()
            await sink.wait_begun(1)
            leaving = asyncio.ensure_future(irqs.deassign(irqfd))
            await turns()
            assert not leaving.done()
            kick.signal(4)
            write(kick, 2)
            sink.open()
            await leaving
            assert sink.interrupts == [pulse(5)]
            irqs.assign(kick, gsi=6)
            await irqs.flush()
            assert sink.interrupts == [pulse(5), pulse(6)]
            assert kick.read_nowait() == 6


@pytest.mark.parametrize("why", ["masked", "paused", "unrouted"])
async def test_what_may_not_be_injected_goes_back_into_the_eventfd(why):
    sink = RecordingSink()
    async with IrqManager(sink, unrouted="hold", routing={5: MSI}) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            if why == "masked":
                irqfd.mask()
            elif why == "paused":
                await irqs.pause()
            else:
                irqs.set_routing({})
            kick.signal(4)
            await turns()
            await irqs.deassign(irqfd)
            assert (sink.interrupts, irqfd.state) == ([], State.CLOSED)
            assert count(kick) == 4


async def test_a_cancelled_deassign_has_deassigned_all_the_same():
    sink = GatedSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal()
            await sink.wait_begun(1)
            leaving = asyncio.ensure_future(irqs.deassign(irqfd))
            await turns()
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            assert irqs.irqfds == ()
            irqs.assign(kick, gsi=6)
            sink.open()
            await irqs.deassign(irqfd)
            assert irqfd.state is State.CLOSED
            assert sink.interrupts == [pulse(5)]


async def test_two_tasks_deassign_the_same_irqfd():
    sink = GatedSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal()
            both = [asyncio.ensure_future(irqs.deassign(irqfd)) for _ in range(2)]
            await sink.wait_begun(1)
            await turns()
            assert not any(task.done() for task in both)
            sink.open()
            await asyncio.gather(*both)
            assert sink.interrupts == [pulse(5)]


async def test_a_sink_that_closes_an_eventfd_while_it_is_asked():
    class Sink:
        def __init__(self):
            self.interrupts = []

        def try_inject(self, interrupt):
            victim.close()
            return False

        async def inject(self, interrupt):
            self.interrupts.append(interrupt)

    sink = Sink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick, EventFd() as victim:
            irqs.assign(kick, gsi=5)
            irqs.assign(victim, gsi=6)
            write(kick)
            await irqs.flush()
            assert sink.interrupts == [pulse(5)]
            assert [irqfd.gsi for irqfd in irqs.irqfds] == [5]


# -------------------------------------------------------------------------------------------------------------- flush


async def test_flush_waits_for_everybody_whatever_the_order_in_which_they_wait():
    # At the bound all but one wait in their eventfds, in the order of their signals and not of their assignment.
    sink = RefusingSink()
    async with IrqManager(sink, queue=WorkQueue(maxsize=1)) as irqs:
        kicks = [EventFd() for _ in range(20)]
        for gsi, kick in enumerate(kicks):
            irqs.assign(kick, gsi=gsi)
        for kick in reversed(kicks):
            write(kick)
            await asyncio.sleep(0)
        await irqs.flush()
        assert sorted(interrupt.gsi for interrupt in sink.interrupts) == list(range(20))
        for kick in kicks:
            write(kick)
        await irqs.flush()
        assert len(sink.interrupts) == 40
        for kick in kicks:
            kick.close()


async def test_flush_covers_a_signal_that_waits_behind_an_injection_of_its_own_irqfd():
    # Queued, and signalled again while the queue is full: the first injection is not yet the one that is waited for.
    sink = GatedSink()
    async with IrqManager(sink, queue=WorkQueue(maxsize=4)) as irqs:
        kicks = [EventFd() for _ in range(5)]
        for gsi, kick in enumerate(kicks):
            irqs.assign(kick, gsi=gsi)
        kicks[0].signal()
        await sink.wait_begun(1)
        for kick in kicks[1:]:
            kick.signal()
        kicks[1].signal()
        assert irqs.statistics().queue.queued == 4
        flushed = asyncio.ensure_future(irqs.flush())
        await turns()
        sink.release()
        await sink.wait_begun(2)  # gsi 1
        kicks[0].signal()  # not waited for
        sink.release()
        await sink.wait_begun(3)
        assert not flushed.done()
        while not flushed.done():
            sink.release()
            await asyncio.sleep(0)
        began_after = [interrupt.gsi for interrupt in sink.interrupts]
        assert set(began_after) >= {0, 1, 2, 3, 4}
        sink.open()
        for kick in kicks:
            kick.close()


@pytest.mark.parametrize("how", ["closed", "deassigned", "handler"])
async def test_flush_waits_for_what_is_being_deassigned(how):
    sink, gate = GatedSink(), asyncio.Event()

    async def on_wakeup(irqfd, count):
        await gate.wait()

    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=on_wakeup if how == "handler" else ())
            kick.signal()
            if how == "handler":
                await turns()
            if how == "closed":
                kick.close()
            deassigning = asyncio.ensure_future(irqs.deassign(irqfd))
            await turns()
            assert irqs.irqfds == ()
            flushing = asyncio.ensure_future(irqs.flush())
            await turns()
            assert not flushing.done()
            gate.set()
            await turns()
            assert not flushing.done()
            sink.open()
            await flushing
            assert sink.interrupts == [pulse(5)]
            await deassigning


async def test_flush_does_not_wait_for_signals_that_come_meanwhile():
    sink = GatedSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            kick.signal()
            await sink.wait_begun(1)
            flushed = asyncio.ensure_future(irqs.flush())
            await turns()
            kick.signal()
            sink.release()
            await flushed
            assert sink.interrupts == [pulse(5)]
            sink.open()


async def test_flush_does_not_wait_for_what_is_blocked():
    async with IrqManager(RecordingSink(), unrouted="hold") as irqs:
        with EventFd() as kick, EventFd() as held:
            irqs.assign(kick, gsi=5, masked=True)
            irqs.assign(held, gsi=999)
            kick.signal()
            write(held)
            await irqs.flush()
            await irqs.pause()
            kick.signal()
            await irqs.flush()


async def test_flush_ends_when_the_manager_closes_under_it():
    sink = GatedSink()
    irqs = IrqManager(sink)
    await irqs.__aenter__()
    with EventFd() as kick:
        irqs.assign(kick, gsi=5)
        kick.signal()
        flushed = asyncio.ensure_future(irqs.flush())
        await sink.wait_begun(1)
        with pytest.raises(KeyError):
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_exit(irqs)
                raise KeyError
        await flushed
        assert count(kick) == 1


# ------------------------------------------------------------------------------------------------------------- pausing


async def test_paused_nothing_is_injected_and_nothing_lost():
    sink = SlowSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick, EventFd() as other:
            first, second = irqs.assign(kick, gsi=5), irqs.assign(other, gsi=6)
            kick.signal()
            await irqs.pause()
            before = list(sink.interrupts)
            await irqs.pause()
            assert before in ([], [pulse(5)])
            kick.signal()
            write(other)
            await turns()
            assert sink.interrupts == before
            assert (first.pending, second.pending) == (True, True)
            irqs.resume()
            irqs.resume()
            await irqs.flush()
            assert sink.interrupts in ([pulse(5), pulse(6)], [pulse(5), pulse(5), pulse(6)])
            kick.signal()
            await irqs.flush()
            assert sink.interrupts[-1] == pulse(5)


async def test_pause_waits_for_the_injection_under_way():
    sink = GatedSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            kick.signal()
            await sink.wait_begun(1)
            pausing = asyncio.ensure_future(irqs.pause())
            await turns()
            kick.signal()
            assert not pausing.done()
            sink.open()
            await pausing
            assert sink.interrupts == [pulse(5)]
            irqs.resume()
            await irqs.flush()
            assert sink.interrupts == [pulse(5)] * 2


async def test_a_cancelled_pause_has_paused_all_the_same():
    sink = GatedSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            kick.signal()
            await sink.wait_begun(1)
            pausing = asyncio.ensure_future(irqs.pause())
            await turns()
            pausing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pausing
            kick.signal()
            sink.open()
            await turns()
            assert sink.interrupts == [pulse(5)]
            irqs.resume()
            await irqs.flush()
            assert sink.interrupts == [pulse(5)] * 2


async def test_a_retry_that_comes_due_while_paused_waits_for_the_resume():
    sink = FlakySink(1)
    async with IrqManager(sink, retry=Retry(5, 0.001, 0.001)) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal()
            while irqfd.state is not State.RETRYING:
                await asyncio.sleep(0)
            await irqs.pause()
            while irqfd.state is State.RETRYING:
                await asyncio.sleep(0)
            assert (irqfd.state, len(sink.attempts)) == (State.PENDING, 1)
            irqs.resume()
            await irqs.flush()
            assert sink.interrupts == [pulse(5)]


# ---------------------------------------------------------------------------------------------------------- offloading


async def test_offloaded_the_sink_watches_and_the_loop_does_not():
    sink = OffloadingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick, EventFd() as unmask:
            irqfd = irqs.assign(kick, gsi=5)
            level = irqs.assign(unmask, gsi=9, resamplefd=kick)
            assert (irqfd.offloaded, level.offloaded, irqs.statistics().offloaded) == (True, True, 2)
            assert sink.log == [
                ("offload", kick, pulse(5), None),
                ("offload", unmask, Interrupt(9, IrqchipPin("ioapic", 9), Action.ASSERT), kick),
            ]
            kick.signal(3)
            await irqs.flush()
            assert sink.interrupts == []
            assert os.eventfd_read(kick.fileno()) == 3, "in the kernel's counter, where the sink sees it"
            await irqs.deassign(irqfd)
            assert sink.log[2:] == [("reclaim", kick, pulse(5))]
            assert irqfd.offloaded is False


@pytest.mark.parametrize("why", ["handler", "several routes", "no route", "masked", "per interrupt", "unable"])
async def test_what_is_not_offloaded(why):
    sink = OffloadingSink(able=why != "unable")

    async def handler(irqfd, number):
        pass

    tracer = RecordingTracer(per_interrupt=why == "per interrupt")
    async with IrqManager(sink, tracer=tracer) as irqs:
        if why == "several routes":
            irqs.set_routing({5: [IrqchipPin("pic", 5), IrqchipPin("ioapic", 5)]})
        if why == "no route":
            irqs.set_routing({})
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=handler if why == "handler" else (), masked=why == "masked")
            assert irqfd.offloaded is False
            assert sink.log == []


@pytest.mark.parametrize("how", ["mask", "pause"])
async def test_masked_or_paused_it_is_taken_back_and_handed_over_again_with_what_came_meanwhile(how):
    sink = OffloadingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            if how == "mask":
                irqfd.mask()
            else:
                await irqs.pause()
            assert irqfd.offloaded is False
            write(kick, 2)
            await turns()
            assert irqfd.pending is True
            assert sink.interrupts == []
            (irqfd.unmask if how == "mask" else irqs.resume)()
            await irqs.flush()
            if irqfd.offloaded:
                assert sink.interrupts == []
                assert os.eventfd_read(kick.fileno()) >= 1, "the signal is the sink's now"
            else:
                assert sink.interrupts == [pulse(5)]


async def test_masked_with_nothing_pending_it_is_offloaded_again():
    sink = OffloadingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            irqfd.mask()
            irqfd.unmask()
            assert irqfd.offloaded is True
            assert [entry[0] for entry in sink.log] == ["offload", "reclaim", "offload"]


async def test_what_the_sink_injected_is_not_said_to_be_nothing():
    tracer = RecordingTracer()
    async with IrqManager(OffloadingSink(), tracer=tracer) as irqs:
        for masked, masked_later, ended in (
            (False, False, {"offloaded": True}),
            (False, True, {"offloaded": True}),  # though not at its end
            (True, False, {"signals": 0, "injections": 0, "coalesced": 0, "dropped": 0}),
        ):
            with EventFd() as kick:
                irqfd = irqs.assign(kick, gsi=5, masked=masked)
                if masked_later:
                    kick.signal()
                    assert os.eventfd_read(kick.fileno()) == 1, "by the sink"
                    irqfd.mask()
                await irqs.deassign(irqfd)
                about = {"gsi": 5, "fd": kick.fileno(), "eventfd_id": kick.id}
                assert tracer.of("irqfd_deassigned")[-1] == about | ended
    assert irqs.offloading._were == set()


@pytest.mark.trouble
async def test_rerouted_an_offloaded_irqfd_is_offloaded_anew():
    sink = OffloadingSink()
    async with IrqManager(sink, routing={5: MSI}) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            irqs.set_routing({5: MSI, 6: MSI})
            assert len(sink.log) == 1, "nothing changed for it"
            irqs.set_routing({5: OTHER_MSI})
            assert sink.log[1:] == [("reclaim", kick, pulse(5, MSI)), ("offload", kick, pulse(5, OTHER_MSI), None)]
            irqs.set_routing({})
            assert irqfd.offloaded is False
            kick.signal()
            await irqs.flush()
            assert irqs.statistics().dropped == 1


async def test_a_busy_eventfd_is_refused_and_nothing_changed():
    sink = OffloadingSink()
    sink.error = EventFdBusyError("another virtual machine has it")
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            with pytest.raises(EventFdBusyError):
                irqs.assign(kick, gsi=5)
            assert irqs.irqfds == ()
            sink.error = None
            assert irqs.assign(kick, gsi=5).offloaded


async def test_a_sink_that_will_not_take_it_over_again_leaves_it_to_the_loop():
    sink, tracer = OffloadingSink(), RecordingTracer()
    async with IrqManager(sink, tracer=tracer) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            irqfd.mask()
            sink.error = EventFdBusyError("another virtual machine has it")
            irqfd.unmask()
            assert (irqfd.offloaded, irqfd.masked) == (False, False)
            assert len(tracer.of("offload_failed")) == 1
            kick.signal()
            await irqs.flush()
            assert sink.interrupts == [pulse(5)]
            sink.error = None


async def test_a_sink_that_is_gone_does_not_keep_the_manager_from_closing():
    sink, tracer = OffloadingSink(), RecordingTracer()
    async with IrqManager(sink, tracer=tracer) as irqs:
        with EventFd() as kick, EventFd() as other:
            irqs.assign(kick, gsi=5)
            irqs.assign(other, gsi=6)
            sink.error = OSError(errno.EBADF, "the virtual machine is closed")
            await irqs.aclose()
            assert irqs.irqfds == ()
            assert len(tracer.of("reclaim_failed")) == 2
            async with IrqManager(RecordingSink()) as others:
                others.assign(kick, gsi=5)


# ------------------------------------------------------------------------------------------------------------- closing


def bound():
    from aioirqfd.irqfd import identity

    return set(identity.bound)


@pytest.fixture(autouse=True)
def nothing_stays_bound():
    before = bound()
    yield
    assert bound() == before


async def test_leaving_normally_injects_what_was_signalled():
    sink = SlowSink()
    with EventFd() as kick, EventFd() as other:
        async with IrqManager(sink) as irqs:
            irqs.assign(kick, gsi=5)
            irqs.assign(other, gsi=6)
            kick.signal()
            write(other)
        assert sorted(interrupt.gsi for interrupt in sink.interrupts) == [5, 6]
        assert (count(kick), count(other)) == (0, 0)
        kick.signal()
        assert count(kick) == 1, "the eventfd goes on"


async def test_more_irqfds_than_are_shut_in_one_go():
    sink = SlowSink()
    kicks = [EventFd() for _ in range(600)]
    async with IrqManager(sink) as irqs:
        for gsi, kick in enumerate(kicks):
            irqs.assign(kick, gsi=gsi % 24)
        for kick in kicks:
            kick.signal()
    assert len(sink.interrupts) == 600
    for kick in kicks:
        kick.close()


async def test_an_exception_in_the_body_puts_back_what_was_not_injected():
    sink = GatedSink()
    irqfds = []
    with EventFd() as kick, EventFd() as other, EventFd() as third:
        with pytest.raises(KeyError):
            async with IrqManager(sink) as irqs:
                irqfds = [irqs.assign(eventfd, gsi=5 + n) for n, eventfd in enumerate((kick, other, third))]
                kick.signal(2)
                other.signal(3)
                await sink.wait_begun(1)
                kick.signal(4)
                write(third, 5)
                raise KeyError
        assert sink.interrupts == []
        assert [count(eventfd) for eventfd in (kick, other)] == [6, 3]
        # Where nobody asks for the count, what came from outside may stand for itself by a 1.
        assert 1 <= count(third) <= 5
        assert {irqfd.state for irqfd in irqfds} == {State.CLOSED}


async def test_cancellation_of_the_body():
    sink = GatedSink()
    with EventFd() as kick:

        async def body():
            async with IrqManager(sink) as irqs:
                irqs.assign(kick, gsi=5)
                kick.signal(2)
                await asyncio.sleep(3600)

        task = asyncio.ensure_future(body())
        await sink.wait_begun(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert count(kick) == 2


async def test_cancellation_while_it_closes():
    sink = GatedSink()
    with EventFd() as kick, EventFd() as other:

        async def body():
            async with IrqManager(sink) as irqs:
                irqs.assign(kick, gsi=5)
                irqs.assign(other, gsi=6)
                kick.signal(2)
                other.signal(3)

        task = asyncio.ensure_future(body())
        await sink.wait_begun(1)
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (count(kick), count(other), sink.interrupts) == (2, 3, [])


async def test_closing_while_paused_puts_everything_back():
    sink = RecordingSink()
    with EventFd() as kick:
        async with IrqManager(sink) as irqs:
            irqs.assign(kick, gsi=5)
            await irqs.pause()
            kick.signal()
            write(kick)
            await turns()
        assert (sink.interrupts, count(kick)) == ([], 2)


async def test_a_task_that_deassigns_while_the_manager_is_torn_down_does_not_hang():
    sink = GatedSink()
    leaving = []
    with contextlib.ExitStack() as stack:
        kicks = [stack.enter_context(EventFd()) for _ in range(3)]
        with pytest.raises(KeyError):
            async with IrqManager(sink, queue=WorkQueue(maxsize=1)) as irqs:
                irqfds = [irqs.assign(kick, gsi=5 + n, masked=True) for n, kick in enumerate(kicks)]
                for kick, irqfd in zip(kicks, irqfds, strict=True):
                    kick.signal()
                    irqfd.unmask()
                leaving = [asyncio.ensure_future(irqs.deassign(irqfd)) for irqfd in irqfds]
                await sink.wait_begun(1)
                await turns()
                raise KeyError
        await asyncio.gather(*leaving)
        assert [count(kick) for kick in kicks] == [1, 1, 1]


async def test_an_irqfd_that_was_leaving_when_the_manager_is_torn_down_gives_back_too():
    sink = GatedSink()
    with EventFd() as kick, EventFd() as other:
        with pytest.raises(KeyError):
            async with IrqManager(sink) as irqs:
                irqs.assign(kick, gsi=5)
                irqfd = irqs.assign(other, gsi=6)
                kick.signal(2)
                other.signal(3)
                await sink.wait_begun(1)
                leaving = asyncio.ensure_future(irqs.deassign(irqfd))
                await turns()
                leaving.cancel()
                await turns()
                raise KeyError
        assert (count(kick), count(other)) == (2, 3)


async def test_aclose_from_another_task_and_twice():
    sink = RecordingSink()
    irqs = IrqManager(sink)
    await irqs.__aenter__()
    with EventFd() as kick:
        irqs.assign(kick, gsi=5)
        write(kick)
        await asyncio.ensure_future(irqs.aclose())
        await irqs.aclose()
        assert sink.interrupts == [pulse(5)]


async def test_a_second_aclose_waits_for_the_first():
    sink = GatedSink()
    irqs = await IrqManager(sink).__aenter__()
    with EventFd() as kick:
        irqs.assign(kick, gsi=5)
        kick.signal()
        closing = [asyncio.ensure_future(irqs.aclose()) for _ in range(3)]
        await turns()
        closing.pop().cancel()
        await turns()
        assert [task.done() for task in closing] == [False, False]
        sink.open()
        await asyncio.gather(*closing)
        assert (sink.interrupts, irqs.queue._host) == ([pulse(5)], None)
        await irqs.aclose()


async def test_a_handler_that_closes_a_manager_which_is_being_closed_is_told_so():
    errors = []

    async def on_wakeup(irqfd, count):
        await gate.wait()
        with pytest.raises(RuntimeError, match="wait for the very") as caught:
            await irqs.aclose()
        errors.append(caught.value)

    gate = asyncio.Event()
    sink = RecordingSink()
    irqs = await IrqManager(sink).__aenter__()
    with EventFd() as kick:
        irqs.assign(kick, gsi=5, wakeup=on_wakeup)
        kick.signal()
        closing = asyncio.ensure_future(irqs.aclose())
        await turns()
        gate.set()
        await closing
        assert (len(errors), sink.interrupts) == (1, [pulse(5)])


async def test_a_second_entry_is_refused():
    irqs = IrqManager(RecordingSink())
    async with irqs:
        with pytest.raises(ClosedError):
            await irqs.__aenter__()
    with pytest.raises(ClosedError):
        await irqs.__aenter__()


async def test_a_poller_that_cannot_be_made_leaves_no_task(monkeypatch):
    from aioirqfd.irqfd import irqfds

    def fail(cls):
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(irqfds.Poller, "get", classmethod(fail))
    with pytest.raises(OSError, match="too many"):
        await IrqManager(RecordingSink()).__aenter__()


@pytest.mark.trouble
async def test_the_first_error_is_raised_when_it_closes_and_not_over_another_one():
    for how in ("normal", "exception"):
        with EventFd() as kick:
            expected = InjectionError if how == "normal" else KeyError
            with pytest.raises(expected):
                async with IrqManager(FlakySink(99), retry=Retry(0)) as irqs:
                    irqs.assign(kick, gsi=5)
                    kick.signal(2)
                    await irqs.flush()
                    if how == "exception":
                        raise KeyError
            assert count(kick) == 2


async def test_workers_cancelled_by_somebody_else_hang_nobody():
    sink = SlowSink()
    irqs = IrqManager(sink)
    await irqs.__aenter__()
    with EventFd() as kick, EventFd() as other:
        irqs.assign(kick, gsi=5)
        irqfd = irqs.assign(other, gsi=6)
        await turns()
        for task in asyncio.all_tasks():
            if task.get_name().startswith("aioirqfd"):
                task.cancel()
        await turns()
        kick.signal(3)
        with pytest.raises(ClosedError):
            await irqs.flush()
        other.signal(2)
        with contextlib.suppress(ClosedError):
            await irqs.deassign(irqfd)
        with contextlib.suppress(ClosedError):
            await irqs.aclose()
        assert (count(kick), count(other), sink.interrupts) == (3, 2, [])


@pytest.mark.parametrize("handlers", [0, 1, 2])
async def test_with_its_workers_cancelled_nothing_can_be_assigned_and_what_is_signalled_goes_back(handlers):
    sink = RefusingSink()

    async def on_wakeup(irqfd, count):
        raise AssertionError("nothing is run any more")

    irqs = await IrqManager(sink).__aenter__()
    with EventFd() as kick, EventFd() as other, EventFd() as free:
        irqs.assign(kick, gsi=5, wakeup=[on_wakeup] * handlers)
        irqfd = irqs.assign(other, gsi=6, wakeup=[on_wakeup] * handlers)
        for task in asyncio.all_tasks():
            if task.get_name().startswith("aioirqfd"):
                task.cancel()
        kick.signal()  # queued when the workers end
        await turns()
        kick.signal(2)
        write(kick, 4)
        other.signal(5)
        await turns()
        before = irqs.irqfds
        for call in (lambda: irqs.assign(free, gsi=7), lambda: irqs.assign(CLOSED_FD, gsi=7)):
            with pytest.raises(ClosedError, match="work queue"):
                call()
        for wait in (irqs.flush, lambda: irqs.deassign(irqfd), irqs.pause):
            with pytest.raises(ClosedError, match="work queue"):
                await wait()
        assert (irqs.irqfds, irqfd.state, count(other)) == (before[:1], State.CLOSED, 5)
        with contextlib.suppress(ClosedError):
            await irqs.aclose()
        assert (count(kick), sink.interrupts, irqs.irqfds) == (7, [], ())


@pytest.fixture
def new_loop(request):
    """Loops of the test's own, of the kind that it is run on."""
    import uvloop

    loops = []

    def make(kind):
        loop = asyncio.new_event_loop() if kind == "asyncio" else uvloop.new_event_loop()
        loops.append(loop)
        return loop

    yield make
    for loop in loops:
        if not loop.is_closed():
            loop.close()


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_a_loop_that_is_stopped_under_it(new_loop, kind):
    loop = new_loop(kind)
    loop.set_exception_handler(lambda *_: None)  # asyncio's own word on the pending tasks
    sink = GatedSink()
    kick = EventFd()

    async def body():
        async with IrqManager(sink) as irqs:
            irqs.assign(kick, gsi=5)
            kick.signal(2)
            await sink.wait_begun(1)
            loop.stop()
            await asyncio.sleep(3600)

    task = loop.create_task(body())
    loop.run_forever()
    # What asyncio.run() does then.
    for pending in asyncio.all_tasks(loop):
        pending.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.run_until_complete(asyncio.sleep(0))
    assert asyncio.all_tasks(loop) == set()
    loop.close()
    assert count(kick) == 2
    kick.close()


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
@pytest.mark.parametrize("how", ["eventfd", "another loop"])
def test_an_eventfd_with_a_reader_that_is_closed_while_its_loop_stands_still(new_loop, how, kind):
    loop = new_loop(kind)
    kick = EventFd()
    sink = RecordingSink()

    async def begin():
        reader = asyncio.ensure_future(kick.read())
        await turns()
        irqs = await IrqManager(sink).__aenter__()
        return irqs, irqs.assign(kick, gsi=5), reader

    async def end():
        with EventFd() as fresh:
            irqs.assign(fresh, gsi=6)  # it has the id of the other
            fresh.signal()
            await irqs.aclose()
        with pytest.raises(ClosedError):
            await reader

    irqs, irqfd, reader = loop.run_until_complete(begin())
    if how == "eventfd":
        kick.close()
    else:

        async def close():
            kick.close()

        new_loop(kind).run_until_complete(close())
    assert (kick.closed, irqfd.state, irqs.irqfds) == (True, State.CLOSED, ())
    loop.run_until_complete(end())
    assert sink.interrupts == [pulse(6)]


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_a_loop_that_is_stopped_and_closed_with_the_manager_open(new_loop, kind):
    loop = new_loop(kind)
    loop.set_exception_handler(lambda *_: None)
    sink = RecordingSink()
    kick = EventFd()

    async def enter():
        irqs = IrqManager(sink)
        await irqs.__aenter__()
        irqs.assign(kick, gsi=5, masked=True)
        kick.signal(2)
        return irqs

    irqs = loop.run_until_complete(enter())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.close()
        messages = [str(warning.message) for warning in caught]
        assert [
            text for text in messages if "unclosed <IrqManager irqfds=1 " in text and "whose loop was closed" in text
        ]
        kick.signal(3)
        total = os.dup(kick.fileno())
        kick.close()
        del irqs
        gc.collect()
        gc.collect()
    assert os.eventfd_read(total) == 5
    os.close(total)


async def test_a_dropped_manager_warns_and_leaves_nothing():
    sink = RecordingSink()
    tasks = asyncio.all_tasks()
    dup = -1

    async def drop():
        nonlocal dup
        irqs = IrqManager(sink)
        await irqs.__aenter__()
        kick = EventFd()
        dup = os.dup(kick.fileno())
        irqs.assign(kick, gsi=5, masked=True)
        irqs.assign(EventFd(), gsi=9, resamplefd=EventFd())
        kick.signal(2)

    contexts = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await drop()
        await turns()
        gc.collect()
        await turns()
        gc.collect()
    messages = [str(warning.message) for warning in caught if warning.category is ResourceWarning]
    line = drop.__code__.co_firstlineno + 2
    wanted = f"made at {__file__}:{line}"
    assert [message for message in messages if "unclosed <IrqManager irqfds=2" in message and wanted in message], (
        messages
    )
    assert asyncio.all_tasks() == tasks
    assert os.eventfd_read(dup) == 2
    os.close(dup)


async def drop_one():
    """A manager that nobody refers to, but itself; the eventfd in which what it owes will be."""
    irqs = IrqManager(RecordingSink())
    await irqs.__aenter__()
    kick = EventFd()
    fd = os.dup(kick.fileno())
    irqs.assign(kick, gsi=5, masked=True)
    kick.signal(2)
    return fd


def test_a_manager_that_is_dropped_while_its_loop_stands_still(new_loop):
    for kind in ("asyncio", "uvloop"):
        loop = new_loop(kind)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fd = loop.run_until_complete(drop_one())
            gc.collect()
        assert [warning for warning in caught if "unclosed <IrqManager irqfds=1 " in str(warning.message)]
        loop.run_until_complete(turns())
        assert asyncio.all_tasks(loop) == set()
        assert os.eventfd_read(fd) == 2
        os.close(fd)


async def test_a_manager_that_is_dropped_by_the_collector_in_another_thread():
    tasks = asyncio.all_tasks()
    reading = asyncio.get_running_loop().remove_reader
    threads = []

    def noting(fd):
        threads.append(threading.current_thread())
        return reading(fd)

    gc.disable()
    try:
        fd = await drop_one()
        asyncio.get_running_loop().remove_reader = noting
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            await asyncio.to_thread(gc.collect)
            await turns()
    finally:
        gc.enable()
        del asyncio.get_running_loop().remove_reader
    assert [warning for warning in caught if "unclosed <IrqManager irqfds=1 " in str(warning.message)]
    assert asyncio.all_tasks() == tasks
    assert os.eventfd_read(fd) == 2
    os.close(fd)
    assert threads == [threading.main_thread()]


async def test_a_dropped_manager_whose_sink_watches():
    sink = OffloadingSink()

    async def drop():
        irqs = IrqManager(sink)
        await irqs.__aenter__()
        irqs.assign(EventFd(), gsi=5)

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await drop()
        await turns()
        sink.log.clear()
        gc.collect()
        await turns()
        gc.collect()
    assert any("unclosed <IrqManager" in str(warning.message) for warning in caught)


async def test_a_forked_child_neither_disturbs_nor_steals():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if not child:
                status = 1
                try:
                    kick.signal(2)  # a plain write there (row I17)
                    write(kick)
                    kick.close()
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0
            assert irqfd.pending is True
            await irqs.flush()
            assert sink.interrupts == [pulse(5)]
            assert irqfd.statistics().signals == 3
            kick.signal()
            assert len(sink.interrupts) == 2


@pytest.mark.parametrize("by_fd", [False, True])
@pytest.mark.parametrize("bound_by_fd", [False, True])
async def test_what_was_bound_when_it_was_forked_is_free_in_the_child(by_fd, bound_by_fd):
    sink = RecordingSink()

    async def in_the_child(kick):
        others = RecordingSink()
        async with IrqManager(others) as other_irqs:
            irqfd = other_irqs.assign(kick.fileno() if by_fd else kick, gsi=6)
            irqfd.eventfd.signal(2)
            await other_irqs.flush()
            assert others.interrupts == [pulse(6)]
            await other_irqs.deassign(irqfd)
        kick.close()

    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick.fileno() if bound_by_fd else kick, gsi=5)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if not child:
                status = 1
                try:
                    asyncio._set_running_loop(None)
                    loop = asyncio.SelectorEventLoop()
                    loop.run_until_complete(in_the_child(kick))
                    loop.close()
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0
            assert irqfd.state is State.IDLE
            write(kick)
            await irqs.flush()
            assert sink.interrupts == [pulse(5)]
            with pytest.raises(EventFdBusyError):
                irqs.assign(kick, gsi=6)


@pytest.mark.parametrize("how", ["dropped", "closed"])
async def test_what_is_pending_is_the_parents_whatever_a_forked_child_does(how):
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        kick = EventFd()
        irqfd = irqs.assign(kick, gsi=5, masked=True)
        kick.signal(2)
        assert irqfd.state is State.PENDING
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            status = 1
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ResourceWarning)
                    if how == "dropped":
                        irqs._irqfds.__del__()
                    kick.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert fdinfo(kick.fileno()) == (0, kick.id, False)
        irqfd.unmask()
        await irqs.flush()
        assert sink.interrupts == [pulse(5)]
        assert irqfd.statistics().signals == 2
        kick.close()


async def test_it_closes_in_another_task_than_it_was_entered_in():
    irqs = IrqManager(RecordingSink())
    await asyncio.ensure_future(irqs.__aenter__())
    await asyncio.ensure_future(irqs.__aexit__(None, None, None))


async def test_callback_sinks_both_kinds():
    seen = []

    async def slow(interrupt):
        await asyncio.sleep(0)
        seen.append(interrupt)

    for callback in (seen.append, slow):
        async with IrqManager(CallbackSink(callback)) as irqs:
            with EventFd() as kick:
                irqs.assign(kick, gsi=5)
                kick.signal()
    assert seen == [pulse(5)] * 2


async def test_events_of_a_whole_life():
    tracer = RecordingTracer()
    async with IrqManager(RecordingSink(), tracer=tracer) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal(4)
            irqs.set_routing({5: MSI})
            irqfd.mask()
            irqfd.unmask()
            await irqs.pause()
            irqs.resume()
    assert tracer.names == [
        "irqfd_assigned",
        "routing_changed",
        "irqfd_masked",
        "irqfd_unmasked",
        "manager_paused",
        "manager_resumed",
        "irqfd_deassigned",
    ]
    assert tracer.of("irqfd_assigned")[0] | {"fd": 0, "eventfd_id": 0} == {
        "gsi": 5,
        "fd": 0,
        "eventfd_id": 0,
        "resample": False,
        "offloaded": False,
        "masked": False,
    }
    last = tracer.of("irqfd_deassigned")[0]
    assert (last["signals"], last["injections"], last["coalesced"], last["dropped"]) == (4, 1, 3, 0)
    paused_for = tracer.of("manager_resumed")[0]["paused_for"]
    assert isinstance(paused_for, float)
    assert paused_for >= 0


async def test_per_interrupt_events():
    tracer = RecordingTracer(per_interrupt=True)
    for make, fast in ((RecordingSink, True), (SlowSink, False)):
        tracer.events.clear()
        async with IrqManager(make(), tracer=tracer) as irqs:
            with EventFd() as kick:
                irqs.assign(kick, gsi=5)
                for _ in range(3):
                    kick.signal()
                    await irqs.flush()
                irqs.set_routing({})
                kick.signal()
                await irqs.flush()
        assert [fields["fast"] for fields in tracer.of("interrupt_injected")] == [fast] * 3
        assert len(tracer.of("interrupt_dropped")) == 1
