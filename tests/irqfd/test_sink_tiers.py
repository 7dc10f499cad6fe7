"""What a sink can do is known by the names of its methods; what only has such a name, or answers otherwise, is noticed at the door."""

from __future__ import annotations

import copy
import pickle
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest

from aioirqfd import EventFd, GsiAllocator, InterruptSink, IrqManager
from aioirqfd.irqchip import Pic
from aioirqfd.sinks import CallbackSink, RecordingSink
from tests.integers import int64
from tests.irqfd.helpers import SlowSink, pulse

TIERS = ("try_inject", "try_inject_batch", "offload", "reclaim", "bind", "set_routing", "default_routing")


async def inject_one(sink, seen):
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal()
            await irqs.flush()
            assert (irqfd.offloaded, irqfd.statistics().fast) == (False, 0)
    assert seen == [pulse(5)]


@pytest.mark.parametrize("value", [None, 0, True, "127.0.0.1", (), object()], ids=repr)
async def test_an_attribute_of_a_tiers_name_that_cannot_be_called_is_none(value):
    for names in [*((name,) for name in TIERS), TIERS]:
        sink = SlowSink()
        for name in names:
            setattr(sink, name, value)
        await inject_one(sink, sink.interrupts)


async def test_half_a_tier_is_none():
    for name in ("offload", "reclaim", "try_inject_batch"):
        sink = SlowSink()
        setattr(sink, name, lambda *_args: pytest.fail("nobody asks"))
        await inject_one(sink, sink.interrupts)
    sink: Any = SlowSink()
    sink.try_inject = "no"
    sink.try_inject_batch = lambda *_args: pytest.fail("nobody asks")
    await inject_one(sink, sink.interrupts)


@pytest.mark.parametrize("name", TIERS)
async def test_a_tier_that_does_not_answer_at_once_is_refused(name):
    async def later(*_args):
        pass

    sink = SlowSink()
    for each in TIERS:
        setattr(sink, each, lambda *_args: None)
    setattr(sink, name, later)
    with pytest.raises(TypeError, match=rf"a sink's {name}\(\) answers at once"):
        IrqManager(sink)


async def test_mocks():
    spec = AsyncMock(spec=InterruptSink)
    seen = []
    spec.inject.side_effect = seen.append
    await inject_one(spec, seen)
    only = MagicMock(spec=["inject"])
    only.inject = AsyncMock(side_effect=seen.append)
    seen.clear()
    await inject_one(only, seen)
    with pytest.raises(TypeError, match="answers at once"):
        IrqManager(AsyncMock())
    with pytest.raises(TypeError, match="a routing table maps gsis to routes"):
        IrqManager(MagicMock())


async def test_what_hands_everything_on_has_every_tier():
    class Handing:
        def __init__(self, sink):
            self._sink = sink

        def __getattr__(self, name):
            return getattr(self._sink, name)

    proxy: Any = Handing
    sink = RecordingSink()
    async with IrqManager(proxy(sink)) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal()
            assert irqfd.statistics().fast == 1
    pic = Pic()
    async with IrqManager(proxy(pic)) as irqs:
        assert len(irqs.routing) == 16


@pytest.mark.parametrize("callback", [None, 5, "print", []], ids=repr)
def test_a_callback_can_be_called(callback):
    with pytest.raises(TypeError, match="a callback is a function or a coroutine function, not"):
        CallbackSink(callback)


async def test_a_callback_may_be_either():
    seen = []

    async def later(interrupt):
        seen.append(interrupt)

    for callback in (seen.append, later):
        seen.clear()
        await inject_one(CallbackSink(callback), seen)


# ----------------------------------------------------------------------------------------------------- the allocator


def test_an_allocators_numbers_are_plain():
    gsis = GsiAllocator(lambda _gsi: False, first=int64(30), stop=int64(33))
    assert (gsis.take(int64(31)), type(gsis.allocate()), gsis.allocate()) == (True, int, 32)
    numbers: list[Any] = [True, 1.5, "1", None]
    for number in (*numbers, -1, 33):
        assert gsis.take(number) is False
    for number in numbers:
        with pytest.raises(ValueError, match=r"0\.\.4095"):
            GsiAllocator(lambda _gsi: False, first=number)
        with pytest.raises(ValueError, match=r"0\.\.4095"):
            GsiAllocator(lambda _gsi: False, first=0, stop=number)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
async def test_it_is_its_managers(how):
    async with IrqManager(RecordingSink()) as irqs:
        with pytest.raises(TypeError, match=r"cannot be copied or pickled.*IrqManager\.gsis"):
            how(irqs.gsis)
