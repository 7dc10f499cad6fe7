"""Where the gsis of vectors come from, and who is served when there are too few."""

from __future__ import annotations

import resource

import pytest

from aioirqfd import GsiAllocator, IrqchipPin, IrqManager, Msi, MsixTable
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import RecordingTracer
from tests.irqfd.msix import BASE, ENABLE, nearly_full, program, sent, write


@pytest.fixture
def many_fds():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard < 0 else max(soft, min(hard, 16384)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_gsis_are_allocated_at_the_first_unmask_and_kept_while_masked():
    async with IrqManager(RecordingSink()) as irqs, MsixTable(irqs, vectors=4) as table:
        table.write_control(ENABLE)
        for vector in (2, 0):
            table.eventfd(vector)
            assert table.gsi(vector) is None
            program(table, vector, vector)
        assert [table.gsi(vector) for vector in range(4)] == [25, None, 24, None]
        irqfds = irqs.irqfds
        for _ in range(3):
            table.mask(2)
            table.unmask(2)
        assert irqs.irqfds == irqfds  # no churn of assign and deassign
        assert (irqs.gsis.statistics().held, irqs.gsis.statistics().idle) == (2, 0)
        table.mask(2)
        assert irqs.gsis.statistics().idle == 1
        assert table.statistics().assigned == 2
        assert table.statistics().unmasked == 1


async def test_a_vector_without_an_eventfd_costs_nothing_until_it_gets_one():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=2) as table:
        table.write_control(ENABLE)
        program(table, 0, 0x31)
        assert irqs.gsis.statistics().held == 0
        table.signal(0)
        assert sent(sink) == [0x31]


async def test_all_of_2048_vectors_at_once(many_fds):
    sink = RecordingSink()
    async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=2048) as table:
        table.write_control(ENABLE)
        for vector in range(2048):
            table.eventfd(vector)
            program(table, vector, vector)
        assert len(irqs.routing) == 24 + 2048
        for vector in range(2048):
            write(table, vector)
        await irqs.flush()
        assert sorted(sent(sink)) == list(range(2048))
        sink.interrupts.clear()
        for vector in range(2048):
            program(table, vector, 5000 + vector)
        for vector in range(2048):
            write(table, vector)
        await irqs.flush()
        assert sorted(sent(sink)) == list(range(5000, 7048))
        table.write_control(0)
        assert len(irqs.routing) == 24


async def test_two_tables_that_together_need_more_gsis_than_there_are(many_fds):
    sink = RecordingSink()
    async with (
        IrqManager(sink) as irqs,
        MsixTable(irqs, vectors=2048) as one,
        MsixTable(irqs, vectors=2048) as two,
    ):
        for table, base in ((one, 0), (two, 10_000)):
            for vector in range(2048):
                table.eventfd(vector)
                program(table, vector, base + vector, masked=True)
            table.write_control(ENABLE)
        for table, other, base in ((one, two, 0), (two, one, 10_000), (one, two, 0)):
            for vector in range(2048):
                other.mask(vector)
                table.unmask(vector)
            assert (table.statistics().unmasked, other.statistics().unmasked) == (2048, 0)
            assert irqs.gsis.statistics().held <= 4072
            for vector in range(2048):
                write(table, vector)
                write(other, vector)
            await irqs.flush()
            pending = sum(other.read(other.pba_offset + word * 8, 8).bit_count() for word in range(32))
            assert pending == 2048
            # What was pending since the last round comes with what was signalled in this one.
            assert sorted(set(sent(sink))) == list(range(base, base + 2048))
            assert 2048 <= len(sink.interrupts) <= 2 * 2048
            sink.interrupts.clear()
        assert irqs.gsis.statistics().recycled >= 24
        assert irqs.gsis.statistics().waiting == 0


async def test_the_gsi_that_was_masked_longest_ago_is_recycled():
    sink = RecordingSink()
    async with IrqManager(sink, routing=nearly_full(2)) as irqs, MsixTable(irqs, vectors=3) as table:
        table.write_control(ENABLE)
        for vector in range(3):
            table.eventfd(vector)
        program(table, 0, 0x30)
        program(table, 1, 0x31)
        table.mask(1)
        table.mask(0)
        table.signal(1)
        program(table, 2, 0x32)
        assert [table.gsi(vector) for vector in range(3)] == [4094, None, 4095]
        assert (table.pending(1), len(irqs.irqfds), irqs.routing.routes(4095)) == (True, 2, (Msi(BASE, 0x32),))
        table.signal(1)
        table.signal(2)
        table.signal(0)
        assert sent(sink) == [0x32]
        table.mask(2)
        table.unmask(0)  # it was idle, not gone
        table.unmask(1)  # so this takes the one of 2
        await irqs.flush()
        assert [table.gsi(vector) for vector in range(3)] == [4094, 4095, None]
        assert sorted(sent(sink)) == [0x30, 0x31, 0x32]


async def test_vectors_without_a_gsi_are_served_in_turn_and_lose_nothing():
    sink, log = RecordingSink(), RecordingTracer()
    async with (
        IrqManager(sink, routing=nearly_full(1), tracer=log) as irqs,
        MsixTable(irqs, vectors=2) as one,
        MsixTable(irqs, vectors=2) as two,
    ):
        for table, base in ((one, 0), (two, 2)):
            table.write_control(ENABLE)
            for vector in range(2):
                table.signal(vector)
                program(table, vector, base + vector)
        assert [one.gsi(0), one.gsi(1), two.gsi(0), two.gsi(1)] == [4095, None, None, None]
        assert (one.statistics().waiting, two.statistics().waiting, irqs.gsis.statistics().waiting) == (1, 2, 3)
        assert len(log.of("msix_no_gsi")) == 3
        await irqs.flush()
        assert sent(sink) == [0]
        two.mask(0)  # does not want one any more
        one.mask(0)
        await irqs.flush()
        assert sent(sink) == [0, 1]
        one.write_control(0)
        await irqs.flush()
        assert sent(sink) == [0, 1, 3]
        assert (two.pending(0), two.gsi(1)) == (True, 4095)
        await two.aclose()
        assert irqs.gsis.statistics().held == 0


async def test_gsis_that_somebody_routed_by_hand_are_passed_over():
    async with IrqManager(RecordingSink(), routing=nearly_full(2)) as irqs, MsixTable(irqs, vectors=3) as table:
        irqs.set_route(4094, Msi(0, 1))
        table.write_control(ENABLE)
        for vector in range(3):
            table.eventfd(vector)
        program(table, 0, 0x30)
        program(table, 1, 0x31)
        assert (table.gsi(0), table.gsi(1)) == (4095, None)
        for gsi in range(24, 4094):
            irqs.set_route(gsi, ())
        program(table, 2, 0x32)
        program(table, 1, 0x31)
        assert {table.gsi(1), table.gsi(2)} <= set(range(24, 4094))
        assert table.gsi(1) != table.gsi(2)


async def test_a_routing_table_that_is_full_recycles_an_idle_route():
    # Gsis are left, but no room in the table: some gsis go to three chips.
    full = {gsi: Msi(0, gsi) for gsi in range(100, 4093)}
    pins = {gsi: [IrqchipPin("ioapic", gsi), IrqchipPin("pic", gsi)] for gsi in range(16)}
    pins |= {16 + n: [IrqchipPin("ioapic", n), IrqchipPin("pic", 1), IrqchipPin("pic", 9)] for n in range(8)}
    routing = full | pins
    room = 4096 - sum(len(routes) if isinstance(routes, list) else 1 for routes in routing.values())
    sink = RecordingSink()
    async with IrqManager(sink, routing=routing) as irqs, MsixTable(irqs, vectors=room + 2) as table:
        table.write_control(ENABLE)
        for vector in range(room + 1):
            table.eventfd(vector)
            program(table, vector, vector)
        assert (table.statistics().unmasked, table.gsi(room)) == (room, None)
        table.signal(room)
        assert table.statistics().waiting == 1
        table.mask(0)
        await irqs.flush()
        assert (table.gsi(room), table.gsi(0), sent(sink)) == (24, None, [room])


def test_the_allocator_alone():
    gsis = GsiAllocator(lambda gsi: gsi == 2, first=1, stop=5)
    assert [gsis.allocate() for _ in range(4)] == [1, 3, 4, None]
    gsis.release(3)
    assert [gsis.take(gsi) for gsi in (3, 3, 2, 5, 0, -1)] == [True, False, False, False, False, False]
    assert gsis.allocate() is None
    told = []
    gsis.idle(4, lambda: told.append(4))
    gsis.idle(1, lambda: told.append(1))
    gsis.busy(4)
    assert (gsis.allocate(), gsis.allocate(), told) == (1, None, [1])
    gsis.wait("a", lambda: told.append(("a", gsis.allocate())))
    gsis.wait("b", lambda: told.append(("b", gsis.allocate())))
    gsis.wait("a", lambda: told.append("twice"))
    gsis.wait("c", lambda: told.append("forgotten"))
    gsis.forget("c")
    gsis.release(4)
    assert told == [1, ("a", 4)]
    gsis.idle(1, lambda: told.append("again"))
    assert told == [1, ("a", 4), "again", ("b", 1)]
    statistics = gsis.statistics()
    assert (statistics.held, statistics.idle, statistics.waiting, statistics.recycled) == (3, 0, 0, 2)


def test_a_gsi_that_somebody_unroutes_is_handed_out():
    routed = set(range(100))
    gsis = GsiAllocator(routed.__contains__, stop=100)
    told = []
    assert gsis.allocate() is None
    gsis.wait("a", lambda: told.append(gsis.allocate()))
    routed.remove(99)
    gsis.unrouted(99)
    assert (told, gsis.allocate()) == ([99], None)
    routed.remove(98)
    assert gsis.take(98)
    gsis.unrouted(98)  # as when its new owner takes its own route away
    gsis.release(98)
    assert (gsis.allocate(), gsis.allocate()) == (98, None)


@pytest.mark.parametrize("one", [True, False])
async def test_a_vector_without_a_gsi_is_served_when_routes_by_hand_go_away(one):
    sink = RecordingSink()
    routing = {gsi: Msi(BASE, 1) for gsi in range(4096)}
    async with IrqManager(sink, routing=routing) as irqs, MsixTable(irqs, vectors=2) as table:
        table.write_control(ENABLE)
        for vector in range(2):
            table.signal(vector)
            program(table, vector, 0x30 + vector)
        assert (table.statistics().waiting, irqs.gsis.statistics().waiting) == (2, 2)
        if one:
            irqs.set_route(3, ())  # room in the table, but no gsi for a vector
            assert (table.statistics().waiting, irqs.gsis.statistics().waiting) == (2, 2)
            irqs.set_route(4000, ())
            irqs.set_route(4001, ())
        else:
            irqs.set_routing({})
        await irqs.flush()
        assert (table.statistics().waiting, irqs.gsis.statistics().waiting, sorted(sent(sink))) == (0, 0, [0x30, 0x31])


async def test_a_vector_without_room_in_the_table_is_served_when_there_is():
    # Gsis are left all the time.
    routing = {gsi: [IrqchipPin("ioapic", gsi % 24), IrqchipPin("pic", gsi % 16)] for gsi in range(2048)}
    sink = RecordingSink()
    async with IrqManager(sink, routing=routing) as irqs, MsixTable(irqs, vectors=2) as table:
        table.write_control(ENABLE)
        for vector in range(2):
            table.signal(vector)
            program(table, vector, 0x30 + vector)
        assert (table.statistics().waiting, irqs.gsis.statistics().held) == (2, 0)
        irqs.set_route(0, IrqchipPin("ioapic", 0))
        await irqs.flush()
        assert (table.statistics().waiting, sent(sink)) == (1, [0x30])
        table.write_control(0)
        assert (table.statistics().waiting, irqs.gsis.statistics().waiting, irqs.gsis.statistics().held) == (0, 0, 0)


@pytest.mark.parametrize(("first", "stop"), [(-1, 5), (5, 4), (0, 4097)])
def test_an_allocator_stays_within_the_routable_gsis(first, stop):
    with pytest.raises(ValueError, match=r"0\.\.4095"):
        GsiAllocator(lambda gsi: False, first=first, stop=stop)
