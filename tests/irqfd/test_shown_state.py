"""What an irqfd and its manager say of themselves is what is: paused, held, running, one handler or two."""

from __future__ import annotations

import asyncio

import pytest

from aioirqfd import EventFd, IrqManager, State, WorkQueue
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
