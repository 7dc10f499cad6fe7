"""A table that is closed, or whose manager is, keeps what is pending."""

from __future__ import annotations

import pytest

from aioirqfd import ClosedError, EventFd, IrqManager, MsixTable
from aioirqfd.sinks import RecordingSink
from tests.irqfd.msix import ENABLE, Slow, program


async def test_a_table_outlives_its_manager_without_a_murmur():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        table = MsixTable(irqs, vectors=20)
        table.write_control(ENABLE)
        for vector in range(20):
            table.eventfd(vector)
            program(table, vector, vector)
    table.signal(0)
    program(table, 0, 0x32)
    assert table.pending(0)
    table.write_control(0)
    await table.aclose()
    assert sink.interrupts == []


async def test_closing_keeps_what_is_pending_in_the_callers_eventfds():
    sink = RecordingSink()
    with EventFd() as used, EventFd() as unused:
        async with IrqManager(sink) as irqs:
            table = MsixTable(irqs, vectors=3, eventfds={0: used, 1: unused.fileno()})
            owned = table.eventfd(2)
            table.write_control(ENABLE)
            program(table, 0, 0x31)
            table.mask(0)
            used.signal(4)
            unused.signal(2)
            await table.aclose()
            await table.aclose()
            assert (irqs.irqfds, irqs.gsis.statistics().held, len(irqs.routing)) == ((), 0, 24)
            assert (used.read_nowait(), unused.read_nowait(), owned.closed) == (4, 2, True)
            with pytest.raises(ClosedError):
                table.eventfd(2)
            table.unmask(0)
            assert irqs.irqfds == ()
    assert sink.interrupts == []


async def test_closing_while_the_sink_is_busy_injects_or_keeps_every_signal():
    sink = Slow()
    with EventFd() as eventfd:
        async with IrqManager(sink) as irqs:
            async with MsixTable(irqs, vectors=1, eventfds={0: eventfd}) as table:
                table.write_control(ENABLE)
                program(table, 0, 0x31)
                eventfd.signal()  # queued, not begun
            assert (eventfd.read_nowait(), sink.data) == (1, [])
