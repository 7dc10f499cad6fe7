"""Every way in which a manager is closed: normally, by an exception, cancelled, from elsewhere, with its workers gone."""

from __future__ import annotations

import asyncio
import contextlib
import errno

import pytest

from aioirqfd import ClosedError, EventFd, InjectionError, IrqManager, Retry, State, WorkQueue
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import FlakySink, GatedSink, RefusingSink
from tests.irqfd.helpers import CLOSED_FD, SlowSink, count, pulse, turns, write


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


async def test_it_closes_in_another_task_than_it_was_entered_in():
    irqs = IrqManager(RecordingSink())
    await asyncio.ensure_future(irqs.__aenter__())
    await asyncio.ensure_future(irqs.__aexit__(None, None, None))
