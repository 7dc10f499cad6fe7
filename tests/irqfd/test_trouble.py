"""Trouble is never silent: without a tracer or an on_error the loop's exception handler hears of it, once, with its traceback."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from typing import Any

import pytest

from aioirqfd import Action, EventFd, InjectionError, IrqchipPin, IrqManager, Retry
from aioirqfd.testing import RecordingTracer
from tests.irqfd.helpers import turns, write

NEVER = Retry(attempts=0)
TWICE = Retry(attempts=1, initial=0, maximum=0)


def told():
    """What the loop's exception handler is told from here on."""
    contexts = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))
    return contexts


class FailingSink:
    async def inject(self, interrupt):
        raise OSError("no such chip")


async def raises(irqfd, count):
    raise KeyError("a typo")


async def passes(irqfd, count):
    pass


@pytest.mark.parametrize("retry", [NEVER, TWICE])
@pytest.mark.parametrize("handlers", [(), (passes,), (raises,), (passes, raises)])
async def test_an_irqfd_that_is_given_up(handlers, retry):
    contexts = told()
    with pytest.raises(InjectionError) as raised:
        async with IrqManager(FailingSink(), retry=retry) as irqs:
            with EventFd() as kick:
                irqs.assign(kick, gsi=5, wakeup=handlers)
                kick.signal()
                await irqs.flush()
                assert len(contexts) == 1
    [context] = contexts
    assert context["exception"] is raised.value
    assert context["message"].startswith("aioirqfd: gsi 5 is given up until resume()")
    shown = "".join(traceback.format_exception(context["exception"]))
    assert ("in raises" if raises in handlers else "in inject") in shown


async def test_again_after_it_was_resumed():
    contexts = told()
    with contextlib.suppress(InjectionError):
        async with IrqManager(FailingSink(), retry=NEVER) as irqs:
            with EventFd() as kick:
                irqfd = irqs.assign(kick, gsi=5)
                kick.signal()
                await irqs.flush()
                irqfd.resume()
                await irqs.flush()
                assert len(contexts) == 2


@pytest.mark.parametrize("how", ["tracer", "on_error"])
async def test_who_listens_is_told_instead(how):
    contexts, errors, tracer = told(), [], RecordingTracer()
    listening: dict[str, Any] = {"tracer": tracer} if how == "tracer" else {"on_error": errors.append}
    with contextlib.suppress(InjectionError):
        async with IrqManager(FailingSink(), retry=NEVER, **listening) as irqs:
            with EventFd() as kick:
                irqs.assign(kick, gsi=5)
                kick.signal()
                await irqs.flush()
    assert contexts == []
    assert (len(errors), tracer.names.count("irqfd_broken")) == ((0, 1) if how == "tracer" else (1, 0))


@pytest.mark.parametrize("how", [EventFd.signal, write])
async def test_the_first_interrupt_that_has_no_route(how):
    contexts = told()

    class Sink:
        async def inject(self, interrupt):
            raise AssertionError

    async with IrqManager(Sink(), routing={5: IrqchipPin("ioapic", 5)}) as irqs:
        kicks = [EventFd() for _ in range(2)]
        irqfds = [irqs.assign(kick, gsi=99 + index) for index, kick in enumerate(kicks)]
        for _ in range(3):
            for kick in kicks:
                how(kick)
            await irqs.flush()
        irqs.set_route(6, IrqchipPin("ioapic", 6))
        how(kicks[0])
        await irqs.flush()
        assert [irqfd.statistics().dropped for irqfd in irqfds] == [4, 3]
        assert [str(context["exception"]) for context in contexts] == ["gsi 99 has no route", "gsi 100 has no route"]
        assert "set_route()" in contexts[0]["message"]
        assert "unrouted='hold'" in contexts[0]["message"]
        for kick in kicks:
            kick.close()


async def test_a_line_that_the_sink_does_not_lower():
    contexts = told()
    failing = []

    class Sink:
        async def inject(self, interrupt):
            if interrupt.action is Action.DEASSERT and failing:
                raise OSError("stuck")

    async with IrqManager(Sink(), retry=Retry(0, 0, 0)) as irqs:
        with EventFd() as kick, EventFd() as unmask:
            irqs.assign(kick, gsi=5, resamplefd=unmask)
            failing.append(True)
            kick.signal()
            await irqs.flush()
            irqs.ack(5)
            await turns(60)
            assert [context["message"].partition(";")[0] for context in contexts] == [
                "aioirqfd: gsi 5: lowering failed"
            ]
            failing.clear()
            await turns(60)
            assert unmask.read_nowait() == 1


async def test_what_returns_no_awaitable_is_called_once():
    contexts, calls = told(), []

    class Plain:
        """Not a function, so that only its answer tells."""

        def __call__(self, *args) -> Any:
            calls.append(args)

    with contextlib.suppress(InjectionError):
        async with IrqManager(FailingSink(), retry=TWICE) as irqs:
            with EventFd() as kick:
                irqfd = irqs.assign(kick, gsi=5, wakeup=Plain())
                kick.signal()
                await irqs.flush()
                assert len(calls) == 1
                assert "has to be `async def`" in str(irqfd.error)
    assert len(contexts) == 1
