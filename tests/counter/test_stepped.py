"""Stepped: each step of an awaitable in a context of its own, or with a drain that knows that its sink is being asked."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from typing import Any

import pytest

from aioirqfd.counter import Drain, Stepped

VALUE = contextvars.ContextVar("VALUE", default="outside")


@pytest.fixture
def drain():
    made = Drain()
    yield made
    made.close()


class Steps:
    """An awaitable whose iterator is plain: no send(), throw() or close()."""

    def __init__(self, count):
        self.left = count

    def __await__(self) -> Any:
        return iter([None] * self.left)


async def test_its_steps_are_taken_in_the_context_and_its_answer_comes_back():
    context = contextvars.copy_context()

    async def call(first, second):
        VALUE.set(first)
        await asyncio.sleep(0)
        assert VALUE.get() == first
        return VALUE.get(), second

    assert await Stepped(context, None, call, "inside", 5) == ("inside", 5)
    assert (VALUE.get(), context[VALUE]) == ("outside", "inside")


@pytest.mark.parametrize("nested", [False, True])
async def test_the_drain_dispatches_in_each_step_and_not_between(drain, nested):
    seen = []

    async def call():
        seen.append(drain.dispatching)
        await asyncio.sleep(0)
        seen.append(drain.dispatching)
        raise OSError("no")

    task = asyncio.ensure_future(_awaited(Stepped(None, drain, call)))
    drain.dispatching = nested
    await asyncio.sleep(0)
    assert (seen, drain.dispatching) == ([True], nested)
    with pytest.raises(OSError, match="no"):
        await task
    assert (seen, drain.dispatching) == ([True, True], nested)
    drain.dispatching = False


async def _awaited(awaitable):
    return await awaitable


async def test_what_is_thrown_in_is_thrown_in_the_context():
    async def call():
        VALUE.set("inside")
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            return VALUE.get()

    task = asyncio.ensure_future(_awaited(Stepped(contextvars.copy_context(), None, call)))
    await asyncio.sleep(0)
    task.cancel()
    assert (await task, VALUE.get()) == ("inside", "outside")


async def test_closed_on_the_way():
    closed = []

    async def call():
        VALUE.set("inside")
        try:
            await asyncio.sleep(0)
        finally:
            closed.append(VALUE.get())

    steps = Stepped(contextvars.copy_context(), None, call)
    assert steps.send(None) is None
    steps.close()
    assert closed == ["inside"]


async def test_futures_and_plain_iterators_will_do():
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, 7)
    assert await Stepped(contextvars.copy_context(), None, lambda: future) == 7
    assert await Stepped(None, None, Steps, 3) is None
    steps = Stepped(None, None, Steps, 3)
    next(iter(steps))
    with pytest.raises(OSError, match="thrown"):
        steps.throw(OSError("thrown"))
    steps.close()


async def test_what_cannot_be_awaited():
    five: Any = 5

    def fails() -> Any:
        return 1 // 0

    with pytest.raises(TypeError, match="5 cannot be awaited"):
        Stepped(None, None, lambda: five)
    with pytest.raises(ZeroDivisionError):
        Stepped(contextvars.copy_context(), None, fails)


async def test_debuggers_follow_the_chain():
    async def call():
        await asyncio.sleep(0)

    steps: Any = Stepped(None, None, call)
    # Not as one more link without a frame, which asyncio.capture_call_graph() could not print.
    assert steps.cr_code is steps.cr_frame.f_code is call.__code__
    assert steps.cr_await is None
    await steps


async def test_debuggers_follow_an_object_that_is_awaited_by_a_generator():
    class Call:
        def __await__(self):
            return (yield from asyncio.sleep(0).__await__())

    steps = Stepped(None, None, Call)
    assert steps.cr_code is steps.cr_frame.f_code is Call.__await__.__code__
    assert steps.cr_await is None
    await steps


async def test_a_chain_ends_where_no_frame_is_awaited():
    future = asyncio.get_running_loop().create_future()
    future.set_result(5)
    steps = Stepped(None, None, lambda: future)
    for name in ("cr_await", "cr_code", "cr_frame"):
        assert not hasattr(steps, name)
    assert await steps == 5


def test_it_keeps_nothing_alive(drain):
    class Call:
        async def __call__(self):
            pass

    call = Call()
    gone = weakref.ref(call)
    steps: Any = Stepped(contextvars.copy_context(), drain, call)
    steps.close()
    del call, steps
    gc.collect()
    assert gone() is None
