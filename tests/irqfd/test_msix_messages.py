"""A vector sends its message once it is unmasked, and stays pending while it cannot."""

from __future__ import annotations

import pytest

from aioirqfd import InjectionError, Interrupt, IrqManager, Msi, MsixTable, Retry, RoutingError
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import RecordingTracer
from tests.irqfd.msix import BASE, ENABLE, FUNCTION_MASK, program, sent, write


async def test_an_unmasked_vector_sends_its_message():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=2, devid=7) as table:
        table.write_control(ENABLE)
        program(table, 1, 0x31, address=0x1_FEE0_0000)
        table.signal(1)
        assert sink.interrupts == [Interrupt(24, Msi(0x1_FEE0_0000, 0x31, 7))]
        assert table.gsi(1) == 24
        assert not table.pending(1)


async def test_a_masked_vector_stays_pending_and_is_sent_once():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=2) as table:
        table.write_control(ENABLE)
        program(table, 0, 0x31)
        for _ in range(2):  # with an irqfd that has never been, then with one that has
            table.mask(0)
            table.signal(0)
            write(table, 0, 5)
            await irqs.flush()
            assert table.pending(0)
            assert sink.interrupts == []
            table.unmask(0)
            await irqs.flush()
            assert not table.pending(0)
            assert sent(sink) == [0x31]
            sink.interrupts.clear()


async def test_the_function_mask_masks_every_vector():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=3) as table:
        table.write_control(ENABLE | FUNCTION_MASK)
        assert (table.control, table.function_mask) == (ENABLE | FUNCTION_MASK | 2, True)
        for vector in range(3):
            program(table, vector, 0x30 + vector, masked=vector == 2)
            table.signal(vector)
        await irqs.flush()
        assert (table.read(table.pba_offset, 8), sent(sink)) == (0b111, [])
        table.write_control(ENABLE)
        await irqs.flush()
        assert (table.read(table.pba_offset, 8), sorted(sent(sink))) == (0b100, [0x30, 0x31])
        table.write_control(ENABLE | FUNCTION_MASK)
        for vector in range(3):
            table.signal(vector)
        await irqs.flush()
        assert (table.read(table.pba_offset, 8), len(sink.interrupts)) == (0b111, 2)
        table.unmask(2)
        await irqs.flush()
        assert len(sink.interrupts) == 2
        table.write_control(ENABLE)
        await irqs.flush()
        assert (table.read(table.pba_offset, 8), sorted(sent(sink))) == (0, [0x30, 0x30, 0x31, 0x31, 0x32])


async def test_disabling_gives_the_gsis_back_and_loses_nothing():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=20) as table:
        before = irqs.routing
        table.write_control(ENABLE)
        for vector in range(20):
            program(table, vector, vector)
            table.eventfd(vector)
        assert (len(irqs.irqfds), irqs.gsis.statistics().held, len(irqs.routing)) == (20, 20, 44)
        table.mask(3)
        table.signal(3)
        table.write_control(0)
        table.signal(5)
        assert (irqs.irqfds, irqs.gsis.statistics().held, dict(irqs.routing)) == ((), 0, dict(before))
        assert (table.pending(3), table.pending(5), table.pending(4)) == (True, True, False)
        table.write_control(ENABLE)
        await irqs.flush()
        assert sent(sink) == [5]
        table.unmask(3)
        await irqs.flush()
        assert sent(sink) == [5, 3]


async def test_a_message_that_cannot_be_sent_leaves_the_vector_pending():
    sink, log = RecordingSink(), RecordingTracer()
    async with IrqManager(sink, tracer=log) as irqs, MsixTable(irqs, vectors=1) as table:
        table.write_control(ENABLE)
        table.eventfd(0)
        program(table, 0, 0x31, address=BASE + 1)
        table.signal(0)
        await irqs.flush()
        assert (table.pending(0), sink.interrupts, len(log.of("msix_vector_failed"))) == (True, [], 1)
        program(table, 0, 0x31)
        await irqs.flush()
        assert (table.pending(0), sent(sink)) == (False, [0x31])
        # The same to a vector that is in use.
        table.write(0, BASE + 2, 4)
        table.signal(0)
        await irqs.flush()
        assert (table.pending(0), sent(sink), table.gsi(0)) == (True, [0x31], None)
        table.write(0, BASE, 4)
        await irqs.flush()
        assert (table.pending(0), sent(sink)) == (False, [0x31, 0x31])


async def test_a_sink_that_refuses_a_route_leaves_the_vector_pending():
    class Picky(RecordingSinkLike):
        def set_routing(self, table):
            if any(isinstance(route, Msi) and route.data == 0x66 for routes in table.values() for route in routes):
                raise RoutingError("0x66")

    sink, log = Picky(), RecordingTracer()
    async with IrqManager(sink, tracer=log) as irqs, MsixTable(irqs, vectors=1) as table:
        table.write_control(ENABLE)
        table.signal(0)
        program(table, 0, 0x66)
        await irqs.flush()
        assert (table.pending(0), sink.interrupts, table.gsi(0)) == (True, [], None)
        assert len(log.of("msix_vector_failed")) == 1
        assert irqs.gsis.statistics().held == 0
        program(table, 0, 0x67)
        await irqs.flush()
        assert [interrupt.route.data for interrupt in sink.interrupts] == [0x67]


class RecordingSinkLike:
    def __init__(self):
        self.interrupts = []

    async def inject(self, interrupt):
        self.interrupts.append(interrupt)

    def try_inject(self, interrupt):
        self.interrupts.append(interrupt)
        return True


@pytest.mark.trouble
async def test_a_broken_vector_gets_another_chance_when_it_is_unmasked():
    class Failing:
        def __init__(self):
            self.failing = True
            self.interrupts = []

        async def inject(self, interrupt):
            if self.failing:
                raise OSError("no")
            self.interrupts.append(interrupt)

    sink = Failing()
    with pytest.raises(InjectionError):
        async with IrqManager(sink, retry=Retry(attempts=0)) as irqs, MsixTable(irqs, vectors=1) as table:
            table.write_control(ENABLE)
            program(table, 0, 0x31)
            table.signal(0)
            await irqs.flush()
            assert table.pending(0)
            sink.failing = False
            program(table, 0, 0x32)
            await irqs.flush()
            assert (sink.interrupts, table.pending(0)) == ([Interrupt(24, Msi(BASE, 0x32))], False)
