"""One irqfd: its handlers and their counts, masking, what is pending, failing and going on, statistics."""

from __future__ import annotations

import asyncio
import threading

import pytest
import uvloop

from aioirqfd import ClosedError, EventFd, InjectionError, IrqFd, IrqManager, Retry, State, WorkQueue, WouldBlock
from aioirqfd.sinks import CallbackSink, RecordingSink
from aioirqfd.testing import FlakySink, GatedSink, RecordingTracer, RefusingSink
from tests.irqfd.helpers import MSI, SlowSink, pulse, turns, write

AT_ONCE = Retry(attempts=5, initial=0, maximum=0)
NEVER = Retry(attempts=0)


def counts_of(irqfd):
    stats = irqfd.statistics()
    return stats.signals, stats.injections, stats.fast, stats.coalesced


# ---------------------------------------------------------------------------------------------------------- handlers


async def test_the_counts_a_handler_gets_add_up_to_the_signals():
    sink = SlowSink()
    seen = []

    async def handler(irqfd, count):
        await turns(2)
        seen.append(count)

    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=handler)

            def elsewhere():
                for _ in range(500):
                    kick.signal(2)
                    write(kick, 3)

            thread = threading.Thread(target=elsewhere)
            thread.start()
            while thread.is_alive():
                kick.signal()
                await asyncio.sleep(0)
                seen.append(0)
                seen.pop()
            thread.join()
            own = irqfd.statistics().signals
            await irqs.flush()
            assert own <= irqfd.statistics().signals == sum(seen)
            assert sum(seen) >= 2500
            assert irqfd.statistics().injections == len(seen) == len(sink.interrupts)
            assert irqfd.statistics().coalesced == sum(seen) - len(seen)


async def test_a_semaphores_handler_is_told_of_every_signal():
    seen = []

    async def handler(irqfd, count):
        seen.append(count)

    async with IrqManager(RecordingSink()) as irqs:
        with EventFd(semaphore=True) as kick:
            irqs.assign(kick, gsi=5, wakeup=handler)
            kick.signal()
            await irqs.flush()
            for _ in range(3):
                write(kick)
            await irqs.flush()
            kick.signal(2)
            await irqs.flush()
            with pytest.raises(WouldBlock):
                kick.read_nowait()
    assert seen == [1, 3, 2]


async def test_several_handlers_run_one_after_the_other_with_the_same_count():
    log = []

    def handler(name):
        async def run(irqfd, count):
            log.append((name, "begin", count))
            await turns(2)
            log.append((name, "end", count))

        return run

    async def inject(interrupt):
        log.append(interrupt)

    async with IrqManager(CallbackSink(inject)) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5, wakeup=[handler("a"), handler("b")])
            kick.signal(4)
            await irqs.flush()
    assert log == [("a", "begin", 4), ("a", "end", 4), ("b", "begin", 4), ("b", "end", 4), pulse(5)]


async def test_a_count_that_is_there_when_it_is_assigned_goes_to_the_handler():
    seen = []

    async def handler(irqfd, count):
        seen.append(count)

    async with IrqManager(RecordingSink()) as irqs:
        with EventFd(7) as kick:
            irqs.assign(kick, gsi=5, wakeup=handler)
            await irqs.flush()
            kick.signal(2)
            await irqs.flush()
    assert seen == [7, 2]


async def test_a_failing_handler_is_tried_again_with_the_same_count_and_those_before_it_are_not():
    log = []
    failures = [OSError("one"), OSError("two")]

    async def first(irqfd, count):
        log.append(("first", count))

    async def second(irqfd, count):
        log.append(("second", count))
        if failures:
            raise failures.pop()

    sink = SlowSink()
    async with IrqManager(sink, retry=AT_ONCE) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=[first, second])
            kick.signal(3)
            await irqs.flush()
            assert irqfd.statistics().retries == 2
            assert counts_of(irqfd) == (3, 1, 0, 2)
    assert log == [("first", 3), ("second", 3), ("second", 3), ("second", 3)]
    assert sink.interrupts == [pulse(5)]


@pytest.mark.parametrize("failing", ["handler", "sink"])
async def test_a_signal_between_two_attempts_reaches_the_handlers_too(failing):
    # They have run for the attempt that is being repeated, so there must be another run for the signal that came since.
    seen = []
    fail = [True]
    sink = FlakySink(0)

    async def first(irqfd, count):
        seen.append(("first", count))

    async def second(irqfd, count):
        seen.append(("second", count))
        if failing == "handler" and fail:
            fail.clear()
            kick.signal(10)
            raise OSError("again")
        if failing == "sink" and fail:
            fail.clear()
            sink.failures = 1

    tracer = RecordingTracer()
    async with IrqManager(sink, retry=AT_ONCE, tracer=tracer) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=[first, second])
            if failing == "sink":
                original = tracer.emit

                def emit(event, /, **fields):
                    original(event, **fields)
                    if event == "injection_failed":
                        asyncio.get_running_loop().call_soon(kick.signal, 10)

                irqs._irqfds.delivery.emit = emit
            kick.signal(1)
            await irqs.flush()
            await turns()
            await irqs.flush()
            assert sum(count for name, count in seen if name == "first") == 11
            assert irqfd.state is State.IDLE
            assert irqfd.statistics().signals == 11
    assert seen[0] == ("first", 1)
    assert ("first", 10) in seen
    assert len(sink.interrupts) == 2


async def test_a_signal_between_two_attempts_reaches_every_chip():
    # The first chip has had its interrupt when the second one fails: the new signal is owed to both.
    from aioirqfd import IrqchipPin

    pic, ioapic = IrqchipPin("pic", 5), IrqchipPin("ioapic", 5)
    taken = []
    fail = [True]

    async def inject(interrupt):
        if interrupt.route == ioapic and fail:
            fail.clear()
            asyncio.get_running_loop().call_soon(kick.signal)
            raise OSError("not now")
        taken.append(interrupt.route)

    retry = Retry(attempts=1, initial=0.001, maximum=0.001)
    async with IrqManager(CallbackSink(inject), routing={5: [pic, ioapic]}, retry=retry) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal()
            await irqs.flush()
            await irqs.flush()
            assert irqfd.state is State.IDLE
    assert taken == [pic, ioapic, pic, ioapic]


async def test_a_handler_that_deassigns_its_own_irqfd():
    sink = SlowSink()
    seen = []

    async def handler(irqfd, count):
        seen.append(count)
        await irqs.deassign(irqfd)
        seen.append("returned")

    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=handler)
            kick.signal(2)
            await irqs.deassign(irqfd)
            assert irqfd.state is State.CLOSED
            assert seen == [2, "returned"]
            assert sink.interrupts == [pulse(5)], "that injection is the last"
            kick.signal(5)
            await turns()
            assert kick.read_nowait() == 5


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("handlers", [0, 1, 2])
async def test_a_handler_that_deassigns_another_irqfd_which_is_queued(workers, handlers):
    # With one worker the other irqfd stands behind the handler that waits for it.
    sink = SlowSink()
    log = []

    async def handler(irqfd, count):
        await irqs.deassign(other)
        log.append((other.state, list(sink.interrupts)))

    async def others(irqfd, count):
        await turns(2)
        log.append(count)

    async with IrqManager(sink, queue=WorkQueue(workers=workers)) as irqs:
        with EventFd() as kick, EventFd() as kick2:
            irqs.assign(kick, gsi=5, wakeup=handler)
            other = irqs.assign(kick2, gsi=6, wakeup=[others] * handlers)
            kick.signal()
            kick2.signal(3)
            await irqs.flush()
    assert log == [3] * handlers + [(State.CLOSED, [pulse(6)])]
    assert sink.interrupts == [pulse(6), pulse(5)]


async def test_a_handler_that_deassigns_another_irqfd_which_waits_for_room():
    sink = SlowSink()
    log = []

    async def handler(irqfd, count):
        for one in others:
            one.mask()
            one.unmask()
        await irqs.deassign(others[2])
        log.append(others[2].state)

    async with IrqManager(sink, queue=WorkQueue(maxsize=1)) as irqs:
        kicks = [EventFd() for _ in range(4)]
        others = [irqs.assign(kick, gsi=6 + n) for n, kick in enumerate(kicks[1:])]
        for kick, one in zip(kicks[1:], others, strict=True):
            one.mask()
            kick.signal()
        irqs.assign(kicks[0], gsi=5, wakeup=handler)
        kicks[0].signal()
        await irqs.flush()
        await irqs.flush()
        assert log == [State.CLOSED]
        assert sorted(interrupt.gsi for interrupt in sink.interrupts) == [5, 6, 7, 8]
        for kick in kicks:
            kick.close()


async def test_handlers_that_deassign_each_other():
    irqfds = {}
    log = []
    both = asyncio.Event()

    def handler(other):
        async def run(irqfd, count):
            if not log:
                log.append("first")
                await both.wait()
            both.set()
            await irqs.deassign(irqfds[other])
            log.append(irqfd.gsi)

        return run

    async with IrqManager(SlowSink(), queue=WorkQueue(workers=2)) as irqs:
        with EventFd() as kick, EventFd() as kick2:
            irqfds[5] = irqs.assign(kick, gsi=5, wakeup=handler(6))
            irqfds[6] = irqs.assign(kick2, gsi=6, wakeup=handler(5))
            kick.signal()
            kick2.signal()
            await asyncio.gather(*(irqs.deassign(irqfd) for irqfd in irqfds.values()))
            assert {irqfd.state for irqfd in irqfds.values()} == {State.CLOSED}
    assert sorted(log[1:]) == [5, 6]


@pytest.mark.parametrize("call", ["flush", "pause", "aclose"])
async def test_a_handler_that_would_wait_for_itself_is_told_so(call):
    errors = []

    async def handler(irqfd, count):
        with pytest.raises(RuntimeError, match="wait for the very"):
            await getattr(irqs, call)()
        errors.append(call)

    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=handler)
            kick.signal()
            await irqs.flush()
            assert errors == [call]
            assert irqfd.state is State.IDLE
            kick.signal()
            await irqs.flush()
    assert sink.interrupts == [pulse(5)] * 2


async def test_a_handler_that_signals_its_own_irqfd_gets_another_run():
    seen = []

    async def handler(irqfd, count):
        seen.append(count)
        if len(seen) < 3:
            irqfd.eventfd.signal(10)

    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5, wakeup=handler)
            kick.signal()
            while len(seen) < 3:
                await irqs.flush()
    assert seen == [1, 10, 10]


async def test_a_handler_that_waits_for_something_cancelled_has_failed():
    seen = []

    async def handler(irqfd, count):
        seen.append(count)
        if len(seen) == 1:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

    sink = RecordingSink()
    async with IrqManager(sink, retry=AT_ONCE) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5, wakeup=handler)
            kick.signal(2)
            await irqs.flush()
    assert seen == [2, 2]
    assert sink.interrupts == [pulse(5)]


# ----------------------------------------------------------------------------------------------------------- masking


async def test_masked_from_the_beginning():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd(1) as kick:
            irqfd = irqs.assign(kick, gsi=5, masked=True)
            assert irqfd.masked is True
            await irqs.flush()
            assert (irqfd.pending, sink.interrupts) == (True, [])
            irqfd.unmask()
            await irqs.flush()
            assert sink.interrupts == [pulse(5)]


async def test_mask_and_unmask_are_idempotent():
    tracer = RecordingTracer()
    async with IrqManager(RecordingSink(), tracer=tracer) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            for call in (irqfd.unmask, irqfd.mask, irqfd.mask, irqfd.unmask, irqfd.unmask):
                call()
    assert tracer.names == ["irqfd_assigned", "irqfd_masked", "irqfd_unmasked", "irqfd_deassigned"]


@pytest.mark.parametrize("how", ["here", "fd", "thread"])
async def test_a_mask_holds_whatever_way_the_signal_comes(how):
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal()
            assert len(sink.interrupts) == 1
            irqfd.mask()
            for _ in range(3):
                if how == "here":
                    kick.signal()
                elif how == "fd":
                    write(kick)
                else:
                    thread = threading.Thread(target=kick.signal)
                    thread.start()
                    thread.join()
                await turns()
            await irqs.flush()
            assert (len(sink.interrupts), irqfd.pending, irqfd.state) == (1, True, State.PENDING)
            irqfd.unmask()
            await irqs.flush()
            assert (len(sink.interrupts), irqfd.pending, irqfd.state) == (2, False, State.IDLE)


async def test_masked_while_queued_it_does_not_begin_and_while_injecting_it_ends():
    sink = GatedSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick, EventFd() as kick2:
            first, second = irqs.assign(kick, gsi=5), irqs.assign(kick2, gsi=6)
            kick.signal()
            kick2.signal()
            await sink.wait_begun(1)
            first.mask()
            second.mask()
            assert (first.state, second.state) == (State.INJECTING, State.QUEUED)
            kick.signal()
            sink.open()
            await irqs.flush()
            assert sink.interrupts == [pulse(5)]
            assert (first.state, second.state) == (State.PENDING, State.PENDING)
            second.unmask()
            first.unmask()
            await irqs.flush()
            assert sink.interrupts == [pulse(5), pulse(6), pulse(5)]


async def test_masked_and_unmasked_before_it_begins_it_is_injected_once():
    sink = GatedSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal()
            irqfd.mask()
            irqfd.unmask()
            sink.open()
            await irqs.flush()
            assert sink.interrupts == [pulse(5)]


# ----------------------------------------------------------------------------------------------------------- pending


async def test_pending_sees_a_signal_that_is_still_inside_the_eventfd():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            assert irqfd.pending is False
            write(kick)
            assert irqfd.pending is True
            assert sink.interrupts == [], "looking injects nothing"
            await irqs.flush()
            assert irqfd.pending is False
            thread = threading.Thread(target=kick.signal)
            thread.start()
            thread.join()
            assert irqfd.pending is True
            await irqs.flush()
            assert sink.interrupts == [pulse(5)] * 2


async def test_pending_sees_a_signal_on_top_of_what_was_there_when_it_was_assigned():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd(3) as kick:
            irqfd = irqs.assign(kick, gsi=5)
            assert irqfd.pending is True
            await irqs.flush()
            assert irqfd.pending is False, "injected once, and left where it is (row P01)"
            assert irqfd.statistics().injections == 1
            write(kick)
            assert irqfd.pending is True
            await irqs.flush()
            assert (irqfd.pending, len(sink.interrupts)) == (False, 2)


async def test_looking_at_pending_and_statistics_leaves_the_leftover_to_be_read():
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd(3) as kick:
            irqfd = irqs.assign(kick, gsi=5)
            for _ in range(2):
                assert irqfd.pending is not None
                assert irqfd.statistics().signals == 0
                await irqs.flush()
            assert kick.read_nowait() == 3


async def test_pending_in_every_state():
    sink = GatedSink()
    async with IrqManager(sink, retry=NEVER) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            seen = [(irqfd.state, irqfd.pending)]
            kick.signal()
            seen.append((irqfd.state, irqfd.pending))
            await sink.wait_begun(1)
            seen.append((irqfd.state, irqfd.pending))
            kick.signal()
            seen.append((irqfd.state, irqfd.pending))
            sink.open()
            await irqs.deassign(irqfd)
            seen.append((irqfd.state, irqfd.pending))
    assert seen == [
        (State.IDLE, False),
        (State.QUEUED, True),
        (State.INJECTING, False),
        (State.INJECTING_PENDING, True),
        (State.CLOSED, False),
    ]


# ----------------------------------------------------------------------------------------------------------- failing


async def test_a_failing_sink_is_tried_again_and_nothing_is_lost():
    sink = FlakySink(3)
    tracer = RecordingTracer()
    async with IrqManager(sink, retry=AT_ONCE, tracer=tracer) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal()
            await irqs.flush()
            assert counts_of(irqfd) == (1, 1, 0, 0)
            assert irqfd.statistics().retries == 3
            assert irqfd.error is None
    assert sink.attempts == [pulse(5)] * 4
    assert sink.interrupts == [pulse(5)]
    assert tracer.names == [
        "irqfd_assigned",
        *["injection_failed", "injection_retried"] * 3,
        "irqfd_deassigned",
    ]
    assert [fields["attempt"] for fields in tracer.of("injection_failed")] == [1, 2, 3]
    assert [fields["attempt"] for fields in tracer.of("injection_retried")] == [2, 3, 4]


async def test_it_breaks_after_so_many_attempts_the_others_go_on_and_resume_injects():
    error = OSError(5, "dead")
    sink = FlakySink(3, error=error)
    errors = []
    with pytest.raises(InjectionError) as caught:
        async with IrqManager(sink, retry=Retry(2, 0, 0), on_error=errors.append) as irqs:
            with EventFd() as kick, EventFd() as kick2:
                irqfd, other = irqs.assign(kick, gsi=5), irqs.assign(kick2, gsi=6)
                kick.signal(2)
                await irqs.flush()
                assert (irqfd.state, irqfd.pending) == (State.BROKEN, True)
                assert irqfd.error is errors[0]
                assert errors[0].__cause__ is error
                assert irqs.statistics().broken == 1
                kick2.signal()
                await irqs.flush()
                assert sink.interrupts == [pulse(6)]
                kick.signal(3)  # kept as well
                await irqs.flush()
                assert (irqfd.state, other.state) == (State.BROKEN, State.IDLE)
                irqfd.resume()
                assert irqfd.error is None
                await irqs.flush()
                assert sink.interrupts == [pulse(6), pulse(5)]
                assert (irqfd.state, irqs.statistics().broken) == (State.IDLE, 0)
                assert counts_of(irqfd) == (5, 1, 0, 4)
    assert caught.value is errors[0]
    assert len(errors) == 1


@pytest.mark.trouble
async def test_a_broken_irqfd_gives_its_signals_back_when_it_is_deassigned():
    sink = FlakySink(99)
    irqs = IrqManager(sink, retry=NEVER)
    await irqs.__aenter__()
    with EventFd() as kick:
        irqfd = irqs.assign(kick, gsi=5)
        kick.signal(4)
        await irqs.flush()
        kick.signal(2)
        await irqs.deassign(irqfd)
        assert kick.read_nowait() == 6
        with pytest.raises(InjectionError):
            await irqs.aclose()
        await irqs.aclose()


async def test_the_last_attempt_when_it_is_deassigned_while_it_waits_for_its_next():
    sink = FlakySink(1)
    async with IrqManager(sink, retry=Retry(initial=3600, maximum=3600)) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal()
            while irqfd.state is not State.RETRYING:
                await asyncio.sleep(0)
            await irqs.deassign(irqfd)
            assert sink.interrupts == [pulse(5)], "at once, and not in an hour"


async def test_an_on_error_that_raises_does_not_hang_anybody():
    contexts = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context["exception"]))
    bad = KeyError("on_error")

    def on_error(error):
        raise bad

    sink = FlakySink(1)
    irqs = IrqManager(sink, retry=NEVER, on_error=on_error)
    await irqs.__aenter__()
    with EventFd() as kick:
        irqfd = irqs.assign(kick, gsi=5)
        kick.signal()
        await irqs.flush()
        assert irqfd.state is State.BROKEN
        irqfd.resume()
        await irqs.flush()
        assert sink.interrupts == [pulse(5)]
        with pytest.raises(InjectionError):
            await irqs.aclose()
    assert contexts == [bad]


async def test_a_fast_path_that_raises_is_tried_again_by_the_queue():
    class Sink:
        def __init__(self):
            self.interrupts = []

        def try_inject(self, interrupt):
            raise OSError("no")

        async def inject(self, interrupt):
            self.interrupts.append(interrupt)

    sink, tracer = Sink(), RecordingTracer()
    async with IrqManager(sink, tracer=tracer) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            kick.signal()
            await irqs.flush()
    assert sink.interrupts == [pulse(5)]
    assert tracer.names == ["irqfd_assigned", "fast_path_failed", "irqfd_deassigned"]


# -------------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("look", [IrqFd.statistics, lambda irqfd: irqfd.pending, IrqFd.mask])
async def test_looking_between_a_threads_signal_and_the_loop_loses_nothing(look):
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick, EventFd() as other:
            irqfd = irqs.assign(kick, gsi=5)
            looked_at = irqs.assign(other, gsi=6)
            for rounds in range(1, 4):
                thread = threading.Thread(target=kick.signal)
                thread.start()
                thread.join()
                look(looked_at)
                await turns()
                assert sink.interrupts == [pulse(5)] * rounds
            assert irqfd.statistics().signals == 3


@pytest.mark.parametrize("how", ["free", "paused", "masked"])
async def test_a_read_of_what_was_there_takes_no_signal_that_came_after_it(how):
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd(1) as kick:
            irqfd = irqs.assign(kick, gsi=5)
            await irqs.flush()
            assert sink.interrupts == [pulse(5)]
            if how == "paused":
                await irqs.pause()
            elif how == "masked":
                irqfd.mask()
            write(kick, 2)
            with pytest.raises(WouldBlock):
                kick.read_nowait()
            assert irqfd.pending is (how != "free")
            if how == "paused":
                irqs.resume()
            elif how == "masked":
                irqfd.unmask()
            await turns()
            assert sink.interrupts == [pulse(5)] * 2


async def test_statistics_of_the_fast_and_the_slow_way():
    sink = RefusingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            assert counts_of(irqfd) == (0, 0, 0, 0)
            sink.refusing = False
            kick.signal(3)
            assert counts_of(irqfd) == (3, 1, 1, 2)
            sink.refusing = True
            kick.signal()
            kick.signal()
            assert counts_of(irqfd) == (5, 1, 1, 2), "what is owed is not coalesced yet"
            await irqs.flush()
            assert counts_of(irqfd) == (5, 2, 1, 3)
            assert irqfd.statistics().wakeups == 3
            write(kick, 2)
            await irqs.flush()
            assert counts_of(irqfd) == (7, 3, 1, 4)


@pytest.mark.trouble
async def test_what_has_no_route_is_dropped_and_not_injected():
    sink = RecordingSink()
    async with IrqManager(sink, routing={}) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal()
            await irqs.flush()
            stats = irqfd.statistics()
            assert (stats.signals, stats.injections, stats.fast, stats.dropped, stats.coalesced) == (1, 0, 0, 1, 0)
            irqs.set_routing({5: MSI})
            kick.signal()
            await irqs.flush()
            stats = irqfd.statistics()
            assert (stats.signals, stats.injections, stats.fast, stats.dropped, stats.coalesced) == (2, 1, 1, 1, 0)


async def test_a_retried_injection_is_one_injection():
    async with IrqManager(FlakySink(2), retry=AT_ONCE) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            for _ in range(2):
                kick.signal()
                await irqs.flush()
            assert counts_of(irqfd) == (2, 2, 0, 0)


async def test_statistics_begin_anew_with_each_assign_and_stay_afterwards():
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick:
            first = irqs.assign(kick, gsi=5)
            kick.signal(2)
            await irqs.deassign(first)
            second = irqs.assign(kick, gsi=6)
            assert counts_of(second) == (0, 0, 0, 0)
            kick.signal(5)
            assert counts_of(second) == (5, 1, 1, 4)
            assert counts_of(first) == (2, 1, 1, 1)


async def test_statistics_of_what_was_put_back():
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, masked=True)
            kick.signal(2)
            assert counts_of(irqfd) == (2, 0, 0, 0)
            await irqs.deassign(irqfd)
            assert counts_of(irqfd) == (0, 0, 0, 0)
            assert kick.read_nowait() == 2


# ------------------------------------------------------------------------------------------------------ after its end


async def test_after_its_end():
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            await irqfd.aclose()
            await irqfd.aclose()
            for call in (irqfd.mask, irqfd.unmask, irqfd.resume):
                with pytest.raises(ClosedError, match="deassigned"):
                    call()
            assert (irqfd.pending, irqfd.state) == (False, State.CLOSED)
            assert "CLOSED" in repr(irqfd)


async def test_its_repr_says_where_it_stands():
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, masked=True)
            assert repr(irqfd) == f"<IrqFd gsi=5 eventfd-id={kick.id} IDLE masked>"


# ------------------------------------------------------------------------------------------- the program is to end


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("level", [False, True])
def test_what_ends_the_program_ends_it_though_it_came_up_in_the_sink(new_loop, error, level):
    class Sink:
        def __init__(self):
            self.interrupts = []
            self.failed = False

        async def inject(self, interrupt):
            self.interrupts.append(interrupt)

        def try_inject(self, interrupt):
            if not self.failed:
                self.failed = True
                raise error
            self.interrupts.append(interrupt)
            return True

    sink = Sink()
    loop = new_loop()
    with EventFd() as kick, EventFd() as unmask:

        async def begin():
            irqs = await IrqManager(sink).__aenter__()
            irqs.assign(kick, gsi=5, resamplefd=unmask if level else None)
            return irqs

        async def go_on():
            write(kick)
            await asyncio.get_running_loop().create_future()

        async def end():
            await irqs.flush()
            assert [interrupt.gsi for interrupt in sink.interrupts] == [5]
            await irqs.aclose()

        irqs = loop.run_until_complete(begin())
        going = loop.create_task(go_on())
        with pytest.raises(error):
            loop.run_until_complete(going)
        loop.run_until_complete(end())
        going.cancel()
        loop.run_until_complete(asyncio.gather(going, return_exceptions=True))
    loop.close()
