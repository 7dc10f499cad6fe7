"""An eventfd that is deassigned and assigned anew while the old irqfd's handler runs: each interrupt goes where it belongs."""

from __future__ import annotations

import asyncio

import pytest

from aioirqfd import EventFd, IrqManager
from aioirqfd.sinks import RecordingSink
from tests.irqfd.helpers import turns


@pytest.mark.parametrize("signalled", [False, True])
@pytest.mark.parametrize("same_manager", [True, False])
async def test_the_old_handlers_interrupt_is_the_old_irqfds(same_manager, signalled):
    sink, other_sink = RecordingSink(), RecordingSink()
    gate = asyncio.Event()
    counts = []

    async def old_handler(_irqfd, count):
        await gate.wait()
        counts.append(("old", count))

    async def new_handler(_irqfd, count):
        counts.append(("new", count))

    async with IrqManager(sink) as irqs, IrqManager(other_sink) as other:
        target = irqs if same_manager else other
        with EventFd() as kick:
            old = irqs.assign(kick, gsi=1, wakeup=old_handler)
            kick.signal(2)
            await turns()
            barrier = asyncio.ensure_future(irqs.deassign(old))
            await asyncio.sleep(0)
            target.assign(kick, gsi=2, wakeup=new_handler)
            if signalled:
                kick.signal(3)
                await turns()
            gate.set()
            await barrier
            await target.flush()
            assert sorted(counts) == [("new", 3)] * signalled + [("old", 2)]
            if same_manager:
                assert sorted(interrupt.gsi for interrupt in sink.interrupts) == [1] + [2] * signalled
                assert other_sink.interrupts == []
            else:
                assert [interrupt.gsi for interrupt in sink.interrupts] == [1]
                assert [interrupt.gsi for interrupt in other_sink.interrupts] == [2] * signalled
