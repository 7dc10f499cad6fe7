"""The sink that calls a function."""

from __future__ import annotations

import asyncio

from aioirqfd import EventFd, FastSink, IrqManager, Retry
from aioirqfd.sinks import CallbackSink
from tests.irqfd.helpers import pulse, turns


async def test_a_function_a_coroutine_function_and_whatever_else_can_be_awaited():
    seen = []

    async def slow(interrupt):
        await turns(1)
        seen.append(("slow", interrupt))

    class Awaitable:
        def __init__(self, interrupt):
            self.interrupt = interrupt

        def __await__(self):
            yield from turns(1).__await__()
            seen.append(("awaitable", self.interrupt))

    for callback in (lambda interrupt: seen.append(("plain", interrupt)), slow, Awaitable):
        await CallbackSink(callback).inject(pulse(5))
    assert seen == [("plain", pulse(5)), ("slow", pulse(5)), ("awaitable", pulse(5))]


async def test_what_it_raises_is_not_delivered():
    failures = [OSError("one"), KeyError("two")]
    seen = []

    def callback(interrupt):
        if failures:
            raise failures.pop()
        seen.append(interrupt)

    async with IrqManager(CallbackSink(callback), retry=Retry(2, 0, 0)) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal()
            await irqs.flush()
            assert irqfd.statistics().retries == 2
    assert seen == [pulse(5)]


def test_it_has_no_fast_tier():
    assert not isinstance(CallbackSink(print), FastSink)


async def test_callback_sinks_both_kinds():
    seen = []

    async def slow(interrupt):
        await asyncio.sleep(0)
        seen.append(interrupt)

    for callback in (seen.append, slow):
        async with IrqManager(CallbackSink(callback)) as irqs:
            with EventFd() as kick:
                irqs.assign(kick, gsi=5)
                kick.signal()
    assert seen == [pulse(5)] * 2
