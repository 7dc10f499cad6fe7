"""Calls from other threads into the loop's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading

import pytest
import uvloop

from aioirqfd.errors import ClosedError, WrongLoopError
from aioirqfd.kvm import LoopCalls


@pytest.fixture
async def calls():
    with LoopCalls() as calls:
        yield calls


async def add(left, right, *, times=1):
    await asyncio.sleep(0)
    return (left + right) * times


class TestCall:
    async def test_it_runs_on_the_loops_thread(self, calls):
        here = threading.get_ident()
        assert await asyncio.to_thread(calls.call, threading.get_ident) == here
        assert await asyncio.to_thread(calls.call, asyncio.get_running_loop) is asyncio.get_running_loop()

    async def test_arguments_and_result(self, calls):
        assert await asyncio.to_thread(calls.call, int, "101", base=2) == 5
        assert await asyncio.to_thread(calls.call, lambda: None) is None

    @pytest.mark.parametrize("error", [KeyError("x"), StopIteration(1), asyncio.CancelledError()])
    async def test_what_it_raises_is_raised_in_the_thread(self, calls, error):
        caught = []

        def fail():
            raise error

        def thread():
            try:
                calls.call(fail)
            except BaseException as got:
                caught.append(got)

        await asyncio.to_thread(thread)
        assert caught == [error]
        assert repr(calls) == "<LoopCalls 0 waiting>"

    async def test_many_threads_each_get_their_own(self, calls):
        def thread(number):
            return [calls.call(divmod, number, step) for step in range(1, 101)]

        results = await asyncio.gather(*(asyncio.to_thread(thread, number) for number in range(4)))
        assert results == [[divmod(number, step) for step in range(1, 101)] for number in range(4)]


class TestRun:
    async def test_a_coroutine(self, calls):
        assert await asyncio.to_thread(calls.run, add, 2, 3, times=4) == 20

    async def test_what_it_raises(self, calls):
        async def fail():
            await asyncio.sleep(0)
            raise KeyError("x")

        with pytest.raises(KeyError):
            await asyncio.to_thread(calls.run, fail)

    async def test_what_gives_no_coroutine(self, calls):
        with pytest.raises(TypeError):
            await asyncio.to_thread(calls.run, int)

    async def test_a_task_that_somebody_cancels(self, calls):
        async def cancelled():
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

        def thread():
            with pytest.raises(asyncio.CancelledError):
                calls.run(cancelled)
            return True

        assert await asyncio.to_thread(thread)


class TestClose:
    async def test_later_ones(self, calls):
        calls.close()
        calls.close()
        assert repr(calls) == "<LoopCalls closed>"
        for call in (lambda: calls.call(int), lambda: calls.run(add, 1, 2)):
            with pytest.raises(ClosedError, match="this LoopCalls is closed"):
                await asyncio.to_thread(call)

    async def test_a_function_that_waits_for_its_turn_is_not_run(self, calls):
        ran = []
        refused = threading.Event()

        def thread():
            with contextlib.suppress(ClosedError):
                calls.call(ran.append, "too late")
                return
            refused.set()

        other = threading.Thread(target=thread)
        other.start()
        while not calls._waiting:  # the loop's thread is kept here: it runs nothing meanwhile
            os.sched_yield()
        calls.close()
        other.join()
        await asyncio.sleep(0)
        assert (refused.is_set(), ran) == (True, [])

    async def test_a_coroutine_under_way_is_cancelled(self, calls):
        begun, ended = asyncio.Event(), []

        async def long():
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("long")

        def thread():
            with pytest.raises(ClosedError):
                calls.run(long)
            return True

        waiting = asyncio.ensure_future(asyncio.to_thread(thread))
        await begun.wait()
        calls.close()
        assert await waiting
        while not ended:
            await asyncio.sleep(0)

    async def test_a_function_that_closes_them(self, calls):
        with pytest.raises(ClosedError):
            await asyncio.to_thread(calls.call, calls.close)


class TestMisuse:
    def test_without_a_loop(self):
        with pytest.raises(WrongLoopError, match="made on the loop"):
            LoopCalls()

    async def test_on_the_loops_own_thread(self, calls):
        for call in (lambda: calls.call(int), lambda: calls.run(add, 1, 2)):
            with pytest.raises(WrongLoopError, match="would wait for itself"):
                call()

    async def test_closed_from_another_thread(self, calls):
        with pytest.raises(WrongLoopError, match="on the loop's thread"):
            await asyncio.to_thread(calls.close)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_loop_that_is_closed(new_loop):
    async def make():
        return LoopCalls()

    refused = threading.Event()

    def thread():
        with contextlib.suppress(ClosedError):
            calls.call(int)
            return
        refused.set()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        calls = runner.run(make())
    other = threading.Thread(target=thread)
    other.start()
    other.join()
    assert refused.is_set()
