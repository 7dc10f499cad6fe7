"""What is handed in is looked at there and then, and not when an interrupt is in its hands."""

from __future__ import annotations

import asyncio
import contextlib
import decimal
import fractions
import functools
import sys
from typing import Any

import pytest

from aioirqfd import EventFd, InjectionError, IrqManager, Retry, RoutingError, Work, WorkQueue
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import FlakySink
from tests.irqfd.helpers import turns


async def coroutine(*args):
    return True


class Bare:
    async def inject(self, interrupt):
        raise AssertionError("nothing is injected")


TIERS = ["try_inject", "try_inject_batch", "offload", "reclaim", "bind", "set_routing"]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("partial", [False, True])
def test_an_async_tier_is_refused_for_its_coroutine_would_count_as_a_yes(tier, partial):
    sink = Bare()
    for name in TIERS:
        setattr(sink, name, lambda *args: None)
    setattr(sink, tier, functools.partial(coroutine, 1) if partial else coroutine)
    with pytest.raises(
        TypeError,
        match=rf"a sink's {tier}\(\) answers at once, and is not awaited; .* is a coroutine function: write `def`",
    ):
        IrqManager(sink)


class AsyncTracer:
    per_interrupt = False

    async def emit(self, event, /, **fields):
        pass


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"on_error": coroutine}, "on_error answers at once, and is not awaited"),
        ({"on_error": 3}, "on_error is a function, not 3"),
        ({"tracer": AsyncTracer()}, r"a tracer's emit\(\) answers at once"),
        ({"tracer": None}, r"a tracer has emit\(\) and per_interrupt, and None has not"),
        ({"retry": 3}, "retry is an aioirqfd.Retry, not 3"),
        ({"queue": 64}, "queue is an aioirqfd.WorkQueue, not 64"),
    ],
)
def test_what_a_manager_is_given(given, said):
    with pytest.raises(TypeError, match=said):
        IrqManager(RecordingSink(), **given)


def test_unrouted_is_one_of_two_words():
    with pytest.raises(ValueError, match="unrouted is 'drop' or 'hold'"):
        IrqManager(RecordingSink(), unrouted=[])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("given", [True, False, None, "5", 5.0, object()])
async def test_what_is_no_fd(given):
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick:
            for call in (irqs.assign, irqs.find):
                with pytest.raises(TypeError, match=r"an eventfd's fd is an integer, not "):
                    call(given, gsi=5)
            with pytest.raises(TypeError, match=r"an eventfd's fd is an integer, not "):
                await irqs.deassign(given, gsi=5)
            if given is not None:
                with pytest.raises(TypeError, match=r"an eventfd's fd is an integer, not "):
                    irqs.assign(kick, gsi=5, resamplefd=given)
            assert irqs.irqfds == ()


@pytest.mark.parametrize("given", [3, "on_wakeup", b"", [3], [None]])
async def test_what_is_no_handler(given):
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick, pytest.raises(TypeError, match="a wakeup handler is a coroutine function"):
            irqs.assign(kick, gsi=5, wakeup=given)


@pytest.mark.parametrize("given", [True, "5", None, 5.0, -1, 4096])
async def test_a_gsi_that_is_reset(given):
    async with IrqManager(RecordingSink()) as irqs:
        with pytest.raises(RoutingError, match=r"a routed gsi is 0\.\.4095, not "):
            irqs.reset_route(given)


@pytest.mark.parametrize("given", [None, 3])
def test_what_is_no_work(given):
    with pytest.raises(TypeError, match="a work item's function is a coroutine function, not "):
        Work(given)


def test_a_plain_function_is_no_work():
    def plain():
        raise AssertionError("never called")

    with pytest.raises(TypeError, match="write `async def`"):
        Work(plain)


# ------------------------------------------------------------------------------------------- wrapped


async def wrapped(*args):
    raise AssertionError("never called")


@pytest.mark.parametrize("handlers", [1, 2])
async def test_a_wrapper_that_does_its_work_at_once_does_it_once(handlers):
    ran = []

    @functools.wraps(wrapped)
    def wrapper(irqfd, count):
        ran.append(count)

    errors = []
    irqs = await IrqManager(RecordingSink(), retry=Retry(3, 0, 0), on_error=errors.append).__aenter__()
    with EventFd() as kick:
        irqs.assign(kick, gsi=5, wakeup=[wrapper] * handlers)
        kick.signal()
        await turns(50)
        assert ran == [1]
        with contextlib.suppress(InjectionError):
            await irqs.aclose()
    assert ["cannot be awaited" in repr(error.__cause__) for error in errors] == [True]


async def test_a_wrapper_of_inject_likewise():
    ran = []

    class Sink:
        @functools.wraps(wrapped)
        def inject(self, interrupt):
            ran.append(interrupt.gsi)

    errors = []
    sink: Any = Sink()
    irqs = await IrqManager(sink, retry=Retry(3, 0, 0), on_error=errors.append).__aenter__()
    with EventFd() as kick:
        irqs.assign(kick, gsi=5)
        kick.signal()
        await turns(50)
        assert ran == [5]
        with contextlib.suppress(InjectionError):
            await irqs.aclose()


async def test_a_wrapper_that_hands_on_what_it_got():
    told = []

    async def handler(irqfd, count):
        told.append(count)

    @functools.wraps(handler)
    def wrapper(irqfd, count):
        return asyncio.ensure_future(handler(irqfd, count))

    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5, wakeup=wrapper)
            kick.signal(3)
            await irqs.flush()
            assert told == [3]


# ------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("seconds", [0, decimal.Decimal("0.001"), fractions.Fraction(1, 1000)])
async def test_a_back_off_in_another_kind_of_number(seconds):
    sink = FlakySink(2)
    retry = Retry(attempts=3, initial=seconds, maximum=seconds)
    assert (type(retry.initial), type(retry.maximum)) == (float, float)
    async with IrqManager(sink, retry=retry) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            kick.signal()
            await irqs.flush()
    assert len(sink.interrupts) == 1


@pytest.mark.parametrize("seconds", ["1", None, True, [], 1j])
def test_a_back_off_that_is_no_number(seconds):
    with pytest.raises(TypeError, match="initial of a back-off is a number of seconds, not "):
        Retry(initial=seconds)


@pytest.mark.parametrize("seconds", [10**400, decimal.Decimal("sNaN"), float("nan"), -1])
def test_a_back_off_out_of_range(seconds):
    with pytest.raises(ValueError, match="back-off"):
        Retry(initial=seconds)


def test_a_queue_holds_no_more_than_either_module_counts():
    assert WorkQueue(maxsize=sys.maxsize).maxsize == sys.maxsize
    with pytest.raises(ValueError, match=r"maxsize of a work queue is 1\.\.2\*\*63-1, not 9223372036854775808"):
        WorkQueue(maxsize=2**63)


@pytest.mark.parametrize("masked", [1, "yes", 0, None])
async def test_masked_is_a_bool_in_a_snapshot(masked):
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, masked=masked)
            assert irqfd.masked is bool(masked)
            await irqs.pause()
            irqs.restore(irqs.snapshot())
