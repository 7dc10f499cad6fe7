"""What an irqfd and its manager say of themselves is what is: paused, held, running, one handler or two."""

from __future__ import annotations

import asyncio
import contextlib
import errno

import pytest

from aioirqfd import EventFd, InjectionError, IrqManager, Msi, Retry, State, WorkQueue
from aioirqfd.sinks import RecordingSink
from tests.irqfd.helpers import turns, write

HOWS = [EventFd.signal, write]


class Gate:
    """A handler that waits to be let go."""

    def __init__(self):
        self.open = asyncio.Event()

    async def __call__(self, irqfd, count):
        await self.open.wait()


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("handlers", [1, 2])
async def test_a_running_handler_is_an_injection(handlers, how):
    gate, seen = Gate(), []
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=[gate] * handlers)
            seen.append(irqfd.state)
            for _ in range(2):
                how(kick)
                await turns()
                seen.append(irqfd.state)
            gate.open.set()
            await irqs.flush()
            seen.append(irqfd.state)
            assert repr(irqfd).endswith(" IDLE>")
    assert seen == [State.IDLE, State.INJECTING, State.INJECTING_PENDING, State.IDLE]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("handlers", [0, 1, 2])
async def test_signalled_while_paused(handlers, how):
    async def on_wakeup(irqfd, count):
        pass

    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=[on_wakeup] * handlers)
            assert (irqs.paused, irqfd.state) == (False, State.IDLE)
            await irqs.pause()
            assert (irqs.paused, irqfd.state) == (True, State.IDLE)
            how(kick)
            assert (irqfd.state, irqfd.pending) == (State.PENDING, True)
            await turns()
            assert (irqfd.state, irqfd.pending) == (State.PENDING, True)
            irqs.resume()
            await irqs.flush()
            assert (irqs.paused, irqfd.state) == (False, State.IDLE)


@pytest.mark.parametrize("how", HOWS)
async def test_one_that_waits_for_the_handler_of_another_is_queued(how):
    gate = Gate()
    async with IrqManager(RecordingSink(), queue=WorkQueue(maxsize=2)) as irqs:
        kicks = [EventFd() for _ in range(4)]
        irqfds = [irqs.assign(kick, gsi=gsi, wakeup=gate) for gsi, kick in enumerate(kicks)]
        for kick in kicks:
            how(kick)
            await turns()
        assert [irqfd.state for irqfd in irqfds] == [State.INJECTING, State.QUEUED, State.QUEUED, State.PENDING]
        assert irqs.statistics().held == 1
        gate.open.set()
        await irqs.flush()
        assert [irqfd.state for irqfd in irqfds] == [State.IDLE] * 4
        for kick in kicks:
            kick.close()


class Slow:
    """Takes nothing at once; fails until it is let work."""

    def __init__(self, *, works):
        self.works = works

    async def inject(self, interrupt):
        if not self.works:
            raise OSError(errno.EIO, "planted")


WAITING = {
    "masked": {},
    "paused": {},
    "unrouted": {"routing": {}, "unrouted": "hold"},
    "no room": {},
    "retry": {"retry": Retry(1, 0, 0)},
    "given up": {"retry": Retry(0, 0, 0)},
}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("why", WAITING)
async def test_with_a_signal_waiting_it_is_never_idle(why, how):
    gate, failed, seen = Gate(), asyncio.Event(), []
    fails = why in {"retry", "given up"}
    sink = Slow(works=not fails)
    queue = WorkQueue(maxsize=1)
    async with contextlib.AsyncExitStack() as stack:
        if fails:
            stack.enter_context(pytest.raises(InjectionError))  # which the manager keeps for its end
        irqs = IrqManager(sink, queue=queue, on_error=lambda _: failed.set(), **WAITING[why])
        await stack.enter_async_context(irqs)
        with EventFd() as kick, EventFd() as runs, EventFd() as queued:
            irqfd = irqs.assign(kick, gsi=5, wakeup=gate if why == "no room" else None)
            if why == "masked":
                irqfd.mask()
            elif why == "paused":
                await irqs.pause()
            elif why == "no room":
                for other in (runs, queued):
                    irqs.assign(other, gsi=7, wakeup=gate)
                    how(other)
                    await turns()
            assert irqfd.state is State.IDLE
            how(kick)
            for _ in range(10):
                seen.append(irqfd.state)
                await asyncio.sleep(0)
            if fails:
                await failed.wait()
                seen.append(irqfd.state)
                sink.works = True
                irqfd.resume()
            seen.append(irqfd.state)
            gate.open.set()
            irqfd.unmask()
            irqs.resume()
            irqs.set_route(5, Msi(address=0xFEE0_0000, data=5))
            await irqs.flush()
            assert irqfd.state is State.IDLE
            assert irqfd.statistics().injections == 1
    assert State.IDLE not in seen
