"""A handler is told of each signal once, also where the irqfd is deassigned before the injection; the interrupt comes all the same."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from aioirqfd import EventFd, InjectionError, IrqManager, Retry, State
from aioirqfd.sinks import RecordingSink
from tests.irqfd.helpers import pulse, turns, write

NEVER = Retry(attempts=0)


class Teller:
    """A handler that masks the irqfd, or fails, at its first run."""

    def __init__(self, *, masks=False, fails=False):
        self.masks, self.fails = masks, fails
        self.told = []

    async def __call__(self, irqfd, count):
        self.told.append(count)
        if self.masks:
            self.masks = False
            irqfd.mask()
        if self.fails:
            self.fails = False
            raise OSError("not now")


class Sink:
    """Takes interrupts at once, or fails."""

    def __init__(self, *, broken=False):
        self.broken = broken
        self.interrupts = []

    async def inject(self, interrupt):
        if self.broken:
            raise OSError("not now")
        self.interrupts.append(interrupt)

    def try_inject(self, interrupt):
        if not self.broken:
            self.interrupts.append(interrupt)
        return not self.broken


@contextlib.asynccontextmanager
async def manager(sink):
    with contextlib.suppress(InjectionError):
        async with IrqManager(sink, retry=NEVER) as irqs:
            yield irqs


@pytest.mark.trouble
@pytest.mark.parametrize("how", [EventFd.signal, write])
@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("why", ["masked", "sink"])
async def test_deassigned_after_it_was_told(why, others, how):
    sink = Sink(broken=why == "sink")
    handlers = [Teller(masks=why == "masked"), *(Teller() for _ in range(others))]
    async with manager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=handlers)
            how(kick, 1000)
            await irqs.flush()
            await irqs.deassign(irqfd)
            assert [handler.told for handler in handlers] == [[1000]] * len(handlers)
            # Two handlers are the injection's own, and that had begun before the first one masked.
            injected = [pulse(5)] if (why, others) == ("masked", 1) else []
            assert sink.interrupts == injected
            sink.broken = False
            irqs.assign(kick, gsi=5, wakeup=handlers)
            await irqs.flush()
            # The one that kept the interrupt.
            assert [handler.told for handler in handlers] == [[1000] if injected else [1000, 1]] * len(handlers)
            assert sink.interrupts == [pulse(5)]


@pytest.mark.trouble
async def test_signalled_again_nothing_is_added_to_keep_the_interrupt():
    sink, handler = Sink(broken=True), Teller()
    async with manager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=handler)
            kick.signal(1000)
            await irqs.flush()
            kick.signal(30)
            await irqs.deassign(irqfd)
            sink.broken = False
            irqs.assign(kick, gsi=5, wakeup=handler)
            await irqs.flush()
            assert (sum(handler.told), sink.interrupts) == (1030, [pulse(5)])


@pytest.mark.trouble
async def test_a_handler_that_has_raised_is_told_again():
    sink, handler = Sink(), Teller(fails=True)
    async with manager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=handler)
            kick.signal(1000)
            await irqs.flush()
            await irqs.deassign(irqfd)
            irqs.assign(kick, gsi=5, wakeup=handler)
            await irqs.flush()
            assert (handler.told, sink.interrupts) == ([1000, 1000], [pulse(5)])


@pytest.mark.parametrize("failures", [1, 2, 3])
@pytest.mark.parametrize("handlers", [2, 3])
async def test_a_flush_waits_for_what_came_between_two_attempts(handlers, failures):
    """An attempt goes on where the last one failed, and tells nobody of what came since: that is the next injection's."""
    told = [0] * handlers
    left = failures

    def teller(index):
        async def handler(irqfd, count):
            nonlocal left
            if index == handlers - 1 and left:
                left -= 1
                raise OSError("not now")
            await turns()  # whoever looks too soon sees it
            told[index] += count

        return handler

    async with IrqManager(RecordingSink(), retry=Retry(attempts=3, initial=3600, maximum=3600)) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=[teller(n) for n in range(handlers)])
            kick.signal(4)
            (binding,) = irqs._irqfds.bound.values()
            flush = None
            for _ in range(failures):
                while irqfd.state is not State.RETRYING:
                    await asyncio.sleep(0)
                if flush is None:
                    kick.signal(5)
                    flush = asyncio.create_task(irqs.flush())
                    await turns()
                binding.injection.retry_now()
            assert flush is not None
            await flush
            assert told == [9] * handlers
