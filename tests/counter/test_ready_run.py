"""The run of wakeup handlers by the counter module: order, counts, refusals, errors, cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import Any

import pytest

from aioirqfd import EventFd, InjectionError, IrqManager, Retry, State, WorkQueue
from aioirqfd.sinks import RecordingSink
from tests.irqfd.helpers import turns

AT_ONCE = Retry(attempts=2, initial=0, maximum=0)


class RefusingSink:
    """Takes nothing at once, everything in the end."""

    def __init__(self) -> None:
        self.tried = 0
        self.gsis: list[int] = []

    def try_inject(self, interrupt) -> bool:
        self.tried += 1
        return False

    async def inject(self, interrupt) -> None:
        self.gsis.append(interrupt.gsi)


async def test_a_handler_that_waits_holds_up_the_one_worker_only():
    gate = asyncio.Event()
    order: list[str] = []
    sink = RecordingSink()

    async def slow(irqfd, count) -> None:
        order.append(f"slow {count}")
        await gate.wait()
        order.append("slow done")

    async def quick(irqfd, count) -> None:
        order.append(f"quick {count}")

    for workers, expected in ((1, ["slow 1", "slow done", "quick 2"]), (2, ["slow 1", "quick 2", "slow done"])):
        order.clear()
        gate.clear()
        async with IrqManager(sink, queue=WorkQueue(workers=workers)) as irqs:
            with EventFd() as one, EventFd() as two:
                irqs.assign(one, gsi=1, wakeup=slow)
                irqs.assign(two, gsi=2, wakeup=quick)
                one.signal()
                two.signal(2)
                for _ in range(10):
                    await asyncio.sleep(0)
                gate.set()
                await irqs.flush()
        assert order == expected


async def test_several_that_are_ready_at_once_have_as_many_workers():
    order: list[str] = []
    gate = asyncio.Event()

    async def waits(irqfd, count) -> None:
        order.append("waits")
        await gate.wait()
        order.append("waited")

    async def opens(irqfd, count) -> None:
        order.append("opens")
        gate.set()

    async with IrqManager(RecordingSink(), queue=WorkQueue(workers=4)) as irqs:
        with contextlib.ExitStack() as stack:
            kicks = [stack.enter_context(EventFd()) for _ in range(4)]
            for gsi, kick in enumerate(kicks):
                irqs.assign(kick, gsi=gsi, wakeup=waits if gsi < 3 else opens)
            await turns()
            for kick in kicks:
                os.eventfd_write(kick.fileno(), 1)
            await turns()
            assert order == ["waits"] * 3 + ["opens"] + ["waited"] * 3
            await irqs.flush()


async def test_one_that_is_ready_again_after_its_handler_has_another_worker_if_its_own_waits():
    order: list[str] = []
    gate = asyncio.Event()

    async def again(irqfd, count) -> None:
        order.append(f"again {count}")
        if count == 1:
            irqfd.eventfd.signal(2)
            other.signal()
        else:
            gate.set()

    async def waits(irqfd, count) -> None:
        order.append("waits")
        await gate.wait()
        order.append("waited")

    async with IrqManager(RecordingSink(), queue=WorkQueue(workers=2)) as irqs:
        with EventFd() as kick, EventFd() as other:
            irqs.assign(kick, gsi=1, wakeup=again)
            irqs.assign(other, gsi=2, wakeup=waits)
            kick.signal()
            await turns()
            assert order == ["again 1", "waits", "again 2", "waited"]
            await irqs.flush()


async def test_a_signal_during_the_handler_runs_it_once_more_with_just_the_new_count():
    counts: list[int] = []
    running = 0
    sink = RecordingSink()

    async def on_wakeup(irqfd, count) -> None:
        nonlocal running
        running += 1
        assert running == 1
        counts.append(count)
        if len(counts) == 1:
            irqfd.eventfd.signal(5)
            os.eventfd_write(irqfd.eventfd.fileno(), 7)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        running -= 1

    async with IrqManager(sink, queue=WorkQueue(workers=3)) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=1, wakeup=on_wakeup)
            kick.signal(3)
            await irqs.flush()
            await irqs.flush()
            assert counts[0] == 3
            assert sum(counts) == 15
            assert irqfd.statistics().injections == len(counts) == len(sink.interrupts)


async def test_a_refused_interrupt_waits_for_the_sink_and_the_handler_is_not_run_again():
    counts: list[int] = []
    sink = RefusingSink()

    async def on_wakeup(irqfd, count) -> None:
        counts.append(count)

    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=9, wakeup=on_wakeup)
            kick.signal(2)
            await irqs.flush()
            assert (counts, sink.gsis) == ([2], [9])


async def test_masked_by_its_own_handler_it_is_injected_at_unmask_without_the_handler():
    counts: list[int] = []
    sink = RecordingSink()

    async def on_wakeup(irqfd, count) -> None:
        counts.append(count)
        irqfd.mask()

    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=1, wakeup=on_wakeup)
            kick.signal(4)
            await irqs.flush()
            assert irqfd.state is State.PENDING
            assert sink.interrupts == []
            irqfd.unmask()
            await irqs.flush()
            assert (counts, len(sink.interrupts)) == ([4], 1)


async def test_masked_before_its_turn_it_keeps_the_count():
    counts: list[int] = []
    sink = RecordingSink()

    async def on_wakeup(irqfd, count) -> None:
        counts.append(count)

    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=1, wakeup=on_wakeup)
            kick.signal(4)
            irqfd.mask()
            assert irqfd.pending
            kick.signal(2)
            await irqs.flush()
            assert (counts, sink.interrupts) == ([], [])
            irqfd.unmask()
            await irqs.flush()
            assert (sum(counts), len(sink.interrupts)) == (6, len(counts))


async def test_a_handler_that_raises_is_run_again_with_nothing_lost():
    counts: list[int] = []
    sink = RecordingSink()

    async def on_wakeup(irqfd, count) -> None:
        counts.append(count)
        if len(counts) == 1:
            irqfd.eventfd.signal(10)
            raise ValueError("first time")

    async with IrqManager(sink, retry=AT_ONCE) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=1, wakeup=on_wakeup)
            kick.signal(1)
            await irqs.flush()
            await irqs.flush()
            assert counts[0] == 1
            assert sum(counts[1:]) == 11
            assert irqfd.statistics().retries == 1


async def test_a_cancelled_wait_inside_a_handler_is_the_handlers_failure():
    calls = 0

    async def on_wakeup(irqfd, count) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            gone = asyncio.get_running_loop().create_future()
            gone.cancel()
            await gone

    sink = RecordingSink()
    async with IrqManager(sink, retry=AT_ONCE) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=1, wakeup=on_wakeup)
            kick.signal()
            await irqs.flush()
            assert (calls, len(sink.interrupts)) == (2, 1)


async def test_cancelled_in_the_middle_of_a_handler_the_count_is_back_in_the_eventfd():
    began = asyncio.Event()
    cancelled = 0

    async def on_wakeup(irqfd, count) -> None:
        nonlocal cancelled
        began.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled += 1
            raise

    with EventFd() as one, EventFd() as two:

        async def body() -> None:
            async with IrqManager(RecordingSink()) as irqs:
                irqs.assign(one, gsi=1, wakeup=on_wakeup)
                irqs.assign(two, gsi=2, wakeup=on_wakeup)
                one.signal(3)
                two.signal(4)
                await asyncio.get_running_loop().create_future()

        task = asyncio.ensure_future(body())
        await began.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert (one.read_nowait(), two.read_nowait(), cancelled) == (3, 4, 1)


@pytest.mark.trouble
async def test_an_object_with_await_will_do_and_anything_else_is_an_error():
    sink = RecordingSink()
    seen: list[int] = []

    class ByFuture:
        def __call__(self, irqfd, count):
            seen.append(count)
            done = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(done.set_result, None)
            return done

    class ByNothing:
        def __call__(self, irqfd, count) -> Any:
            return None

    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=1, wakeup=ByFuture())
            kick.signal(6)
            await irqs.flush()
            assert (seen, len(sink.interrupts)) == ([6], 1)

    with EventFd() as kick:
        with pytest.raises(InjectionError) as caught:
            async with IrqManager(sink, retry=Retry(attempts=0)) as irqs:
                irqfd = irqs.assign(kick, gsi=1, wakeup=ByNothing())
                kick.signal(2)
                await irqs.flush()
                assert irqfd.state is State.BROKEN
        assert isinstance(caught.value.__cause__, TypeError)
        assert kick.read_nowait() == 2


async def test_the_bound_holds_for_handlers_too():
    waiting: list[int] = []
    counts: dict[int, int] = {}
    sink = RecordingSink()

    async def on_wakeup(irqfd, count) -> None:
        waiting.append(irqs.queue.statistics().queued)
        counts[irqfd.eventfd_id] = counts.get(irqfd.eventfd_id, 0) + count
        await asyncio.sleep(0)

    async with IrqManager(sink, queue=WorkQueue(maxsize=2)) as irqs:
        kicks = [EventFd() for _ in range(100)]
        for number, kick in enumerate(kicks):
            irqs.assign(kick, gsi=number % 24, wakeup=on_wakeup)
        for round_ in range(3):
            for kick in kicks:
                kick.signal(round_ + 1)
                os.eventfd_write(kick.fileno(), 1)
            await asyncio.sleep(0)
        await irqs.flush()
        assert max(waiting) <= 2
        assert len(counts) == 100
        assert set(counts.values()) == {9}
        for kick in kicks:
            kick.close()


async def test_what_waits_for_the_handler_of_one_manager_is_not_taken_by_another_that_it_has_left():
    gate, other_gate = asyncio.Event(), asyncio.Event()
    told: list[int] = []

    async def busy(irqfd, count) -> None:
        await gate.wait()

    async def other_busy(irqfd, count) -> None:
        await other_gate.wait()

    async def on_wakeup(irqfd, count) -> None:
        told.append(count)

    async with IrqManager(RecordingSink()) as irqs, IrqManager(RecordingSink()) as other_irqs:
        with EventFd() as kick, EventFd() as first, EventFd() as other_first:
            irqs.assign(first, gsi=1, wakeup=busy)
            irqfd = irqs.assign(kick, gsi=2, wakeup=on_wakeup)
            other_irqs.assign(other_first, gsi=1, wakeup=other_busy)
            first.signal()
            other_first.signal()
            await turns()
            kick.signal(3)
            irqfd.mask()
            await irqs.deassign(irqfd)
            irqfd = other_irqs.assign(kick, gsi=3, wakeup=on_wakeup)
            await turns()
            assert (irqfd.pending, irqfd.state, kick._queued) == (True, State.QUEUED, True)
            gate.set()
            await irqs.flush()
            assert (irqfd.pending, irqfd.state, kick._queued) == (True, State.QUEUED, True)
            other_gate.set()
            await other_irqs.flush()
            assert told == [3]
            assert irqfd.statistics().wakeups == irqfd.statistics().fast == 1


async def test_deassigned_while_queued_its_handler_still_runs_and_the_barrier_waits_for_it():
    order: list[str] = []
    sink = RecordingSink()

    async def on_wakeup(irqfd, count) -> None:
        await asyncio.sleep(0)
        order.append(f"handler {count}")

    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=1, wakeup=on_wakeup)
            kick.signal(5)
            await irqs.deassign(irqfd)
            order.append("deassigned")
            assert (order, len(sink.interrupts)) == (["handler 5", "deassigned"], 1)
            kick.signal()
            assert kick.read_nowait() == 1


async def test_two_handlers_that_deassign_each_other_do_not_wait_for_ever():
    async def on_wakeup(irqfd, count) -> None:
        await asyncio.sleep(0)
        await irqs.deassign(bound[irqfd.gsi == 1])

    async with IrqManager(RecordingSink(), queue=WorkQueue(workers=2)) as irqs:
        with EventFd() as one, EventFd() as two:
            bound = [irqs.assign(one, gsi=1, wakeup=on_wakeup), irqs.assign(two, gsi=2, wakeup=on_wakeup)]
            one.signal()
            two.signal()
            await irqs.queue.drain()
            assert [irqfd.state for irqfd in bound] == [State.CLOSED, State.CLOSED]


@pytest.mark.parametrize("quick", [0, 1, 100])
async def test_handlers_that_take_their_time_leave_the_loop_its_turns(quick):
    # While handlers are quick the clock is not looked at before each: of slow ones that follow, so many begin at the most.
    most = 8 if quick else 1
    loop = asyncio.get_running_loop()
    in_a_turn = [0]

    async def on_wakeup(irqfd, count) -> None:
        if irqfd.gsi >= quick:
            in_a_turn[-1] += 1
            ends = time.monotonic() + 0.0011
            while time.monotonic() < ends:
                pass

    def turn() -> None:
        nonlocal handle
        in_a_turn.append(0)
        handle = loop.call_soon(turn)

    handle = loop.call_soon(turn)
    async with IrqManager(RecordingSink()) as irqs:
        with contextlib.ExitStack() as stack:
            kicks = [stack.enter_context(EventFd()) for _ in range(quick + 20)]
            for gsi, kick in enumerate(kicks):
                irqs.assign(kick, gsi=gsi, wakeup=on_wakeup)
            for kick in kicks:
                kick.signal()
            await irqs.flush()
    handle.cancel()
    assert sum(in_a_turn) == 20
    assert max(in_a_turn) <= most
