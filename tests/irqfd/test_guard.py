"""What a user has given and that should not raise: it raises, is reported, and no interrupt is lost for it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from aioirqfd import EventFd, InjectionError, IrqManager, Retry, State, Work, WorkQueue
from aioirqfd.irqfd.guard import GuardedTracer
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import FlakySink
from tests.irqfd.helpers import SlowSink, pulse, turns, write

FULL_DISK = OSError("the disk is full")
AT_ONCE = Retry(attempts=2, initial=0, maximum=0)


class FailingTracer:
    """Fails once, at one event."""

    per_interrupt = False

    def __init__(self, fails_at):
        self.fails_at = fails_at
        self.failed = 0

    def emit(self, event, /, **fields):
        if event == self.fails_at and not self.failed:
            self.failed += 1
            raise FULL_DISK


def reported():
    """What the loop's exception handler is told from here on."""
    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
    return errors


@pytest.mark.parametrize("fails_at", ["queue_full", "queue_resumed", "injection_failed", "injection_retried"])
@pytest.mark.parametrize("handler", [False, True])
async def test_a_tracer_that_raises_loses_nothing(fails_at, handler):
    errors = reported()
    tracer = FailingTracer(fails_at)
    sink = FlakySink(1) if fails_at.startswith("injection") else SlowSink()

    async def on_wakeup(irqfd, count):
        await asyncio.sleep(0)

    async with IrqManager(sink, queue=WorkQueue(maxsize=2), tracer=tracer, retry=AT_ONCE) as irqs:
        kicks = [EventFd() for _ in range(8)]
        irqfds = [irqs.assign(kick, gsi=gsi, wakeup=on_wakeup if handler else ()) for gsi, kick in enumerate(kicks)]
        for _ in range(2):
            for kick in kicks:
                write(kick)
            await irqs.flush()
        assert (tracer.failed, errors) == (1, [FULL_DISK])
        assert [irqfd.statistics().injections for irqfd in irqfds] == [2] * 8
        for kick in kicks:
            kick.close()


@pytest.mark.parametrize("handler", [False, True])
async def test_an_on_error_that_raises_takes_nobody_with_it(handler):
    errors = reported()
    bad = KeyError("on_error")

    def on_error(error):
        raise bad

    async def fails(irqfd, count):
        if irqfd.gsi == 5:
            raise ZeroDivisionError

    sink = RecordingSink() if handler else FlakySink(1)
    irqs = await IrqManager(sink, retry=Retry(attempts=0), on_error=on_error).__aenter__()
    with EventFd() as kick, EventFd() as other:
        broken = irqs.assign(kick, gsi=5, wakeup=fails if handler else ())
        irqs.assign(other, gsi=6, wakeup=fails)
        kick.signal(2)
        await irqs.flush()
        assert (broken.state, errors) == (State.BROKEN, [bad])
        other.signal()
        await irqs.flush()
        assert sink.interrupts == [pulse(6)]
        with pytest.raises(InjectionError):
            await irqs.aclose()
        assert kick.read_nowait() == 2


async def test_an_on_room_that_raises_is_not_the_items_failure():
    errors, ran = reported(), []

    def on_room():
        raise FULL_DISK

    async def item():
        ran.append(1)

    async with WorkQueue(maxsize=1) as queue:
        queue.on_room = on_room
        queue.schedule(Work(item))
        await queue.drain()
        assert (ran, errors) == ([1], [FULL_DISK])


def test_without_a_loop_it_is_logged(caplog):
    with caplog.at_level(logging.ERROR):
        GuardedTracer(FailingTracer("it")).emit("it", gsi=5)
    assert [record.exc_info[1] for record in caplog.records] == [FULL_DISK]


# ------------------------------------------------------------------------------------------- errors in the top half


@pytest.mark.parametrize("handlers", [0, 1, 2])
@pytest.mark.parametrize("where", ["wakeup", "schedule"])
async def test_a_top_half_that_is_interrupted_by_a_signal_handler_is_run_again(monkeypatch, where, handlers):
    # Ctrl-C, or a time limit by signal.alarm(), lands anywhere.
    raised, unraisable, counts = [], [], []
    monkeypatch.setattr("sys.unraisablehook", lambda args: unraisable.append(args.exc_value))

    async def on_wakeup(irqfd, count):
        counts.append(count)

    async with IrqManager(SlowSink()) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=[on_wakeup] * handlers)
            owner, name = (
                (irqs._irqfds.routes, "blocks") if where == "wakeup" else (irqs._irqfds.backpressure, "schedule")
            )
            original = getattr(type(owner), name)

            def interrupted(self, *args, **kwargs):
                if not raised:
                    raised.append(KeyboardInterrupt())
                    raise raised[0]
                return original(self, *args, **kwargs)

            monkeypatch.setattr(type(owner), name, interrupted)
            kick.signal(3)
            assert unraisable == raised
            await turns()
            await irqs.flush()
            assert (irqfd.state, irqfd.statistics().injections, counts) == (State.IDLE, 1, [3] * handlers)
            kick.signal(2)
            await irqs.flush()
            assert (irqfd.statistics().signals, irqfd.statistics().injections) == (5, 2)


class InterruptedSink:
    """Is interrupted once while it is asked, by what is no Exception."""

    def __init__(self, error):
        self.errors = [error]
        self.interrupts = []

    async def inject(self, interrupt):
        self.interrupts.append(interrupt)

    def try_inject(self, interrupt):
        if self.errors:
            raise self.errors.pop()
        self.interrupts.append(interrupt)
        return True


@pytest.mark.parametrize("level", [False, True])
async def test_a_sink_that_is_cancelled_while_it_is_asked_gets_the_interrupt_by_the_queue(level):
    # As Future.result() does, in the top half.
    sink = InterruptedSink(asyncio.CancelledError())
    async with IrqManager(sink) as irqs:
        with EventFd() as kick, EventFd() as resample:
            irqfd = irqs.assign(kick, gsi=5, resamplefd=resample if level else None)
            kick.signal()
            await irqs.flush()
            assert [interrupt.gsi for interrupt in sink.interrupts] == [5]
            assert (irqfd.state, irqfd.statistics().injections) == (State.IDLE, 1)
            await turns()
