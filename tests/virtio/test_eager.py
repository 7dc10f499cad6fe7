"""Coroutines begun on the spot: what they return, what they raise, and that they cannot tell it from a task."""

# pyright: reportOptionalMemberAccess=false
# (None fails the test, as it should)
from __future__ import annotations

import asyncio
import contextvars

import anyio
import pytest

from aioirqfd.virtio.eager import Eager


async def from_callback(function, *arguments):
    """Call it as the loop would, not within a task."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def call():
        try:
            done.set_result(function(*arguments))
        except BaseException as error:
            done.set_exception(error)

    loop.call_soon(call)
    return await done


@pytest.fixture
async def eager():
    eager = Eager(asyncio.get_running_loop())
    yield eager
    await eager.aclose()


async def test_what_does_not_wait_has_ended_on_return(eager):
    async def seven():
        return 7

    assert [await from_callback(eager.run, seven()) for _ in range(3)] == [7, 7, 7]


async def test_what_it_raises_without_waiting_is_raised(eager):
    async def fail():
        raise KeyError("x")

    with pytest.raises(KeyError):
        await from_callback(eager.run, fail())
    assert await from_callback(eager.run, _later(0)) is None


async def _later(turns, value=None):
    for _ in range(turns):
        await asyncio.sleep(0)
    return value


async def test_what_waits_becomes_a_task_and_goes_on_where_it_stood(eager):
    loop = asyncio.get_running_loop()
    gate = loop.create_future()
    steps = []

    async def wait():
        steps.append("begun")
        steps.append(await gate)
        await asyncio.sleep(0)
        return await _later(2, 5)

    task = await from_callback(eager.run, wait())
    assert isinstance(task, asyncio.Task)
    assert steps == ["begun"]
    gate.set_result("through")
    assert await task == 5
    assert steps == ["begun", "through"]


async def test_many_wait_at_once_and_each_has_a_task_of_its_own(eager):
    seen = []

    async def wait(number):
        seen.append((number, asyncio.current_task()))
        await asyncio.sleep(0)
        assert (number, asyncio.current_task()) in seen
        return number

    def begin():
        return [eager.run(wait(number)) for number in range(20)]

    tasks = await from_callback(begin)
    assert await asyncio.gather(*tasks) == list(range(20))
    assert len({task for _, task in seen}) == 20
    assert [task for _, task in seen] == tasks


async def test_errors_after_waiting_are_the_tasks(eager):
    async def fail():
        await asyncio.sleep(0)
        raise KeyError("late")

    task = await from_callback(eager.run, fail())
    with pytest.raises(KeyError):
        await task


async def test_there_is_no_current_task_left_behind(eager):
    async def ok():
        return None

    def look():
        eager.run(ok())
        with pytest.raises(ZeroDivisionError):
            eager.run(bad())
        return asyncio.current_task()

    async def bad():
        return 1 // 0

    assert await from_callback(look) is None


async def test_a_timeout_that_was_begun_on_the_spot_cancels_the_right_task(eager):
    async def slow():
        try:
            async with asyncio.timeout(0):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            return 3
        return 4

    task = await from_callback(eager.run, slow())
    assert await task == 3


async def test_anyio_scopes_work(eager):
    async def scope():
        with anyio.move_on_after(0) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        async with anyio.create_task_group() as group:
            group.start_soon(asyncio.sleep, 0)
        return 9

    task = await from_callback(eager.run, scope())
    assert await task == 9


@pytest.mark.parametrize("turns", [1, 2])
async def test_cancelling_reaches_the_coroutine(eager, turns):
    seen = []

    async def wait():
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            seen.append("cancelled")
            raise

    def begin():
        # The second one's task has not had its first turn.
        return eager.run(wait()), eager.run(wait())

    tasks = await from_callback(begin)
    await _later(turns)
    for task in tasks:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert seen == ["cancelled"] * 2


async def test_one_whose_task_is_cancelled_before_its_first_turn_is_closed(eager):
    seen = []

    async def wait():
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            seen.append("closed")

    def begin():
        first, second = eager.run(wait()), eager.run(wait())
        first.cancel()
        second.cancel()
        return first, second

    for task in await from_callback(begin):
        with pytest.raises(asyncio.CancelledError):
            await task
    await _later(1)
    assert seen == ["closed"] * 2


async def test_one_that_swallows_a_cancellation_goes_on(eager):
    async def stubborn():
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return 8

    task = await from_callback(eager.run, stubborn())
    await asyncio.sleep(0)
    task.cancel()
    assert await task == 8


async def test_one_that_cancels_its_own_task_and_ends_does_not_harm_the_next(eager):
    async def suicide():
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return 1

    async def next_one():
        await asyncio.sleep(0)
        return 2

    assert await from_callback(eager.run, suicide()) == 1
    await _later(3)
    task = await from_callback(eager.run, next_one())
    assert await task == 2


async def test_context_variables_stay_with_the_coroutine(eager):
    variable = contextvars.ContextVar("variable", default=0)

    async def change():
        variable.set(1)
        await asyncio.sleep(0)
        return variable.get()

    def begin():
        return eager.run(change()), variable.get()

    task, outside = await from_callback(begin)
    assert (await task, outside) == (1, 0)


@pytest.mark.parametrize("module", ["_native", "_python"])
def test_begin(module):
    begin = getattr(pytest.importorskip(f"aioirqfd.virtio.fast.{module}"), "begin")  # noqa: B009
    loop = asyncio.new_event_loop()
    gate = loop.create_future()
    loop.close()

    async def end():
        return 7

    async def wait():
        await gate

    async def fail():
        raise KeyError("now")

    assert begin(end()) == (True, 7)
    waiting = wait()
    assert begin(waiting) == (False, gate)
    waiting.close()
    with pytest.raises(KeyError, match="now"):
        begin(fail())
    with pytest.raises(RuntimeError, match="cannot reuse"):
        ended = end()
        begin(ended)
        begin(ended)
