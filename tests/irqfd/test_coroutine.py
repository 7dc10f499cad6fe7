"""What may be handed in as a coroutine function, in whatever clothes, and what is refused."""

from __future__ import annotations

import asyncio
import functools
import types
from unittest import mock

import pytest

from aioirqfd import IrqManager
from aioirqfd.irqfd.coroutine import NotAwaitableError, coroutine_function
from aioirqfd.sinks import RecordingSink


async def handler(*args):
    return args


def plain(*args):
    return None


@functools.wraps(handler)
def wrapped(*args):
    return handler(*args)


@types.coroutine
def generator(*args):
    yield from asyncio.sleep(0).__await__()
    return args


class Object:
    async def __call__(self, *args):
        return args

    async def method(self, *args):
        return args

    @staticmethod
    async def static(*args):
        return args

    def plain(self, *args):
        return None


class Sync:
    def __call__(self, *args):
        return handler(*args)


GOOD = [
    handler,
    functools.partial(handler, 1, 2),
    functools.partial(functools.partial(handler, 1), 2),
    wrapped,
    generator,
    Object(),
    Object().method,
    Object.static,
    functools.partial(Object().method, 1, 2),
    mock.AsyncMock(return_value=(1, 2)),
    Sync(),
    lambda *args: handler(*args),  # noqa: PLW0108  a lambda is what it is about
]
BAD = [
    plain,
    Object().plain,
    functools.partial(plain, 1),
    functools.partial(Object().plain),
]


@pytest.mark.parametrize("call", GOOD, ids=range(len(GOOD)))
async def test_a_coroutine_function(call):
    args = () if isinstance(call, functools.partial) else (1, 2)
    assert await coroutine_function(call, "a handler")(*args) == (1, 2)


@pytest.mark.parametrize("call", BAD, ids=range(len(BAD)))
def test_a_plain_function_is_refused(call):
    with pytest.raises(TypeError, match=r"a handler is a coroutine function; .* is a plain one: write `async def`"):
        coroutine_function(call, "a handler")


@pytest.mark.parametrize("call", [5, None, "handler"])
def test_what_cannot_be_called_is_refused(call):
    with pytest.raises(TypeError, match="a handler is a coroutine function, not "):
        coroutine_function(call, "a handler")


async def test_what_nobody_can_tell_is_looked_at():
    call = coroutine_function(mock.Mock(return_value=5), "a handler")
    with pytest.raises(NotAwaitableError, match="a handler returned 5, which cannot be awaited"):
        await call()


def test_a_sink_whose_inject_is_plain_is_refused():
    class Sink:
        def inject(self, interrupt):
            raise AssertionError

    with pytest.raises(TypeError, match=r"a sink's inject\(\) is a coroutine function"):
        IrqManager(Sink())


async def test_a_tracer_may_have_a_ring_of_its_own():
    class Phone:
        per_interrupt = False
        ring = "ring"

        def emit(self, event, /, **fields):
            pass

    async with IrqManager(RecordingSink(), tracer=Phone()):
        pass
