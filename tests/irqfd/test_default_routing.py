"""A manager that is given no table: every gsi reaches the sink, or goes where the chip behind the sink has its pins."""

from __future__ import annotations

import json
import sys

import pytest

from aioirqfd import EventFd, InterruptSink, IrqchipPin, IrqManager, Msi, MsixTable, RoutingError, RoutingTable
from aioirqfd.irqchip import Chipset, IoApic, Pic
from aioirqfd.sinks import CallbackSink, EventFdSink, RecordingSink
from aioirqfd.testing import GatedSink, RefusingSink
from tests.irqfd.helpers import MSI, SlowSink, asserted, deasserted, pulse, write

GSIS = [0, 15, 16, 23, 24, 100, 4095, 4096, 2**32 - 1]


async def signal_each(irqs, gsis):
    for gsi in gsis:
        with EventFd() as kick:
            irqs.assign(kick, gsi=gsi)
            kick.signal()
            await irqs.flush()


# ------------------------------------------------------------------------------------------------ a sink without a chip


@pytest.mark.parametrize("make", [RecordingSink, SlowSink, RefusingSink])
async def test_every_gsi_reaches_the_sink_as_the_pin_of_its_number(make):
    sink = make()
    async with IrqManager(sink) as irqs:
        await signal_each(irqs, GSIS)
        assert irqs.statistics().dropped == 0
    assert sink.interrupts == [pulse(gsi) for gsi in GSIS]


async def test_every_gsi_reaches_a_callback_and_an_eventfd():
    called = []
    async with IrqManager(CallbackSink(called.append)) as irqs:
        await signal_each(irqs, GSIS)
    assert called == [pulse(gsi) for gsi in GSIS]
    with EventFd() as far:
        async with IrqManager(EventFdSink({100: far})) as irqs:
            await signal_each(irqs, [100, 100])
        assert far.read_nowait() == 2


async def test_a_handler_a_line_and_what_others_write():
    told = []

    async def handler(irqfd, count):
        told.append((irqfd.gsi, count))

    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick, EventFd() as trigger, EventFd() as resample:
            irqs.assign(kick, gsi=100, wakeup=handler)
            irqs.assign(trigger, gsi=200, resamplefd=resample)
            write(kick, 3)
            trigger.signal()
            await irqs.flush()
            irqs.ack(200)
            assert resample.read_nowait() == 1
    assert told == [(100, 3)]
    assert sorted(sink.interrupts, key=lambda one: one.gsi) == [pulse(100), asserted(200), deasserted(200)]


async def test_nothing_waits_for_a_route_where_every_gsi_has_one():
    sink = SlowSink()
    async with IrqManager(sink, unrouted="hold") as irqs:
        await signal_each(irqs, [100])
    assert sink.interrupts == [pulse(100)]


@pytest.mark.trouble
async def test_where_a_table_is_given_it_alone_counts():
    sink = RecordingSink()
    async with IrqManager(sink, routing=dict(RoutingTable.default())) as irqs:
        await signal_each(irqs, [5, 24, 100])
        assert irqs.statistics().dropped == 2
        irqs.set_routing(RoutingTable.default())
        await signal_each(irqs, [100])
        irqs.set_routing({})
        await signal_each(irqs, [5, 100])
        assert irqs.statistics().dropped == 4
    assert sink.interrupts == [pulse(5), pulse(100)]


@pytest.mark.trouble
async def test_one_gsi_changes_and_the_others_stay():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        irqs.set_route(100, MSI)
        await signal_each(irqs, [100, 101])
        irqs.set_route(100, ())
        irqs.set_route(5, ())
        await signal_each(irqs, [100, 5, 101])
        assert irqs.statistics().dropped == 2
        irqs.reset_route(100)
        irqs.reset_route(5)
        await signal_each(irqs, [100, 5])
        assert irqs.statistics().dropped == 3, "below 24 a table has what it has"
    assert sink.interrupts == [pulse(100, MSI), pulse(101), pulse(101), pulse(100)]


async def test_unrouted_by_hand_it_is_held_until_it_goes_by_default_again():
    sink = RecordingSink()
    async with IrqManager(sink, unrouted="hold") as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=100)
            irqs.set_route(100, ())
            kick.signal()
            await irqs.flush()
            assert (irqfd.pending, sink.interrupts) == (True, [])
            irqs.reset_route(100)
            await irqs.flush()
    assert sink.interrupts == [pulse(100)]


async def test_an_irqfd_without_a_route_of_its_own_follows_the_table():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=100)
            for table in (RoutingTable.default(), {100: MSI}, RoutingTable.default()):
                irqs.set_routing(table)
                kick.signal()
                await irqs.flush()
    assert sink.interrupts == [pulse(100), pulse(100, MSI), pulse(100)]


def test_the_default_costs_what_24_pins_cost():
    table = RoutingTable.default()
    assert (len(table), table.entries, table.unrouted) == (24, 24, frozenset())
    assert table.routes(4000) == (IrqchipPin("ioapic", 4000),)
    assert sys.getsizeof(table._routes) == sys.getsizeof(
        dict(RoutingTable.of_pins(IrqchipPin("ioapic", n) for n in range(24)))
    )


def test_a_changed_table_leaves_the_old_one_as_it_was():
    table = RoutingTable.default()
    changed = table.with_route(100, MSI).with_route(101, ()).with_route(5, ())
    assert [table.routes(gsi) for gsi in (5, 100, 101)] == [(IrqchipPin("ioapic", gsi),) for gsi in (5, 100, 101)]
    assert [changed.routes(gsi) for gsi in (5, 100, 101)] == [(), (MSI,), ()]
    assert (changed.entries, changed.unrouted) == (24, {101})
    back = changed.without([100, 101, 102])
    assert [back.routes(gsi) for gsi in (5, 100, 101)] == [(), *((IrqchipPin("ioapic", gsi),) for gsi in (100, 101))]
    assert (back.entries, back.unrouted) == (23, frozenset())
    assert back.without([100, 5]) is back
    assert RoutingTable({100: MSI}).without([100]).routes(100) == ()


# -------------------------------------------------------------------------------------------------- gsis for messages


async def test_a_default_pin_is_no_route_to_whoever_needs_a_gsi():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=2) as table:
        table.write_control(table.ENABLE)
        for vector in range(2):
            table.eventfd(vector)
            table.write(vector * 16, 0xFEE00000, 8)
            table.write(vector * 16 + 8, 0x31 + vector, 8)
            table.signal(vector)
        await irqs.flush()
        assert [table.gsi(0), table.gsi(1)] == [24, 25]
        table.write_control(0)
        await signal_each(irqs, [24, 25])
    assert sink.interrupts == [pulse(24, Msi(0xFEE00000, 0x31)), pulse(25, Msi(0xFEE00000, 0x32)), pulse(24), pulse(25)]


@pytest.mark.parametrize("routing", [None, {}])
async def test_a_gsi_that_an_irqfd_has_is_not_handed_out(routing):
    async with IrqManager(RecordingSink(), routing=routing) as irqs:
        with EventFd() as kick, EventFd() as other, EventFd() as late:
            before, irqfd = irqs.assign(kick, gsi=24), irqs.assign(other, gsi=25)
            assert irqs.gsis.allocate() == 26
            irqs.assign(late, gsi=27)
            assert irqs.gsis.allocate() == 28
            await irqs.deassign(before)
            assert irqs.gsis.allocate() == 24
            waited = []
            for _ in range(4096 - 29):
                irqs.gsis.allocate()
            assert irqs.gsis.allocate() is None
            irqs.gsis.wait("me", lambda: waited.append(irqs.gsis.allocate()))
            await irqs.deassign(irqfd)
            assert waited == [25]


async def test_a_gsi_whose_last_injection_is_under_way_is_not_handed_out():
    sink = GatedSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=24)
            kick.signal()
            await sink.wait_begun(1)
        assert irqs.gsis.allocate() == 25
        sink.open()
        await irqs.flush()
        assert irqs.gsis.allocate() == 24


# ---------------------------------------------------------------------------------------------------------- snapshots


@pytest.mark.trouble
async def test_a_snapshot_says_that_it_is_the_default():
    sink, other = RecordingSink(), RecordingSink()
    with EventFd() as kick, EventFd() as trigger, EventFd() as resample:
        async with IrqManager(sink) as irqs:
            irqs.assign(kick, gsi=100)
            irqs.assign(trigger, gsi=200, resamplefd=resample)
            irqs.set_route(101, ())
            trigger.signal()
            await irqs.flush()
            await irqs.pause()
            kick.signal()
            state = json.loads(json.dumps(irqs.snapshot()))
        assert (len(state["routing"]), state["default"]) == (24, [101])
        assert sink.interrupts == [asserted(200), deasserted(200)]
        async with IrqManager(other, routing={}) as irqs:
            irqs.assign(kick, gsi=100)
            irqs.assign(trigger, gsi=200, resamplefd=resample)
            await irqs.pause()
            irqs.restore(state)
            irqs.resume()
            await irqs.flush()
            await signal_each(irqs, [100 + 1, 102])
            assert irqs.statistics().dropped == 1
            assert sorted(other.interrupts, key=lambda one: one.gsi) == [pulse(100), pulse(102), asserted(200)]


@pytest.mark.trouble
async def test_a_table_that_was_given_is_given_after_a_restore():
    async with IrqManager(RecordingSink(), routing={5: MSI}) as irqs:
        await irqs.pause()
        state = irqs.snapshot()
    assert "default" not in state
    async with IrqManager(RecordingSink()) as irqs:
        await irqs.pause()
        irqs.restore(state)
        irqs.resume()
        await signal_each(irqs, [100])
        assert irqs.statistics().dropped == 1


@pytest.mark.parametrize("default", [None, 5, ["100"], [True], [5], [4096], [-1], [100], {}])
async def test_a_default_that_is_none(default):
    async with IrqManager(RecordingSink()) as irqs:
        irqs.set_route(100, MSI)
        await irqs.pause()
        state = irqs.snapshot() | {"default": default}
        before = irqs.routing
        with pytest.raises(ValueError, match=r"default|integer"):
            irqs.restore(state)
        assert irqs.routing is before


# ---------------------------------------------------------------------------------------------- a sink says its own


class Panel:
    """A controller of seven pins."""

    def __init__(self, table):
        self.table = table
        self.interrupts = []

    async def inject(self, interrupt):
        self.interrupts.append(interrupt)

    def default_routing(self):
        return self.table


@pytest.mark.trouble
@pytest.mark.parametrize("table", [{7: MSI}, RoutingTable({7: MSI})])
async def test_a_sink_says_its_own(table):
    sink = Panel(table)
    async with IrqManager(sink) as irqs:
        await signal_each(irqs, [7, 8, 100])
        assert irqs.statistics().dropped == 2
    assert sink.interrupts == [pulse(7, MSI)]
    async with IrqManager(sink, routing={8: MSI}) as irqs:
        await signal_each(irqs, [8])
    assert sink.interrupts[1:] == [pulse(8, MSI)]


async def test_what_a_sink_says_is_checked():
    with pytest.raises(RoutingError):
        IrqManager(Panel({4096: MSI}))
    with pytest.raises(TypeError, match="maps gsis to routes"):
        IrqManager(Panel(None))


@pytest.mark.parametrize(
    ("make", "pic", "ioapic"),
    [
        (Pic, 16, 0),
        (lambda: IoApic(RecordingSink()), 0, 24),
        (lambda: Chipset(pic=Pic(), ioapic=IoApic(RecordingSink())), 16, 24),
        (lambda: Chipset(pic=Pic()), 16, 0),
        (lambda: Chipset(ioapic=RecordingSink()), 0, 24),
        (lambda: Chipset(msi=RecordingSink()), 0, 0),
    ],
    ids=["pic", "ioapic", "both", "chipset-pic", "chipset-ioapic", "messages"],
)
async def test_a_controller_has_its_own_pins(make, pic, ioapic):
    sink: InterruptSink = make()
    expected = {}
    for chip, pins in (("ioapic", ioapic), ("pic", pic)):
        for gsi in range(pins):
            expected[gsi] = (*expected.get(gsi, ()), IrqchipPin(chip, gsi))
    async with IrqManager(sink) as irqs:
        assert dict(irqs.routing) == expected
        assert irqs.routing.unrouted is None


async def test_a_pin_that_a_controller_has_not_is_refused_by_it():
    for sink in (IoApic(RecordingSink()), Chipset(ioapic=IoApic(RecordingSink()))):
        with pytest.raises(RoutingError):
            await sink.inject(pulse(24))
        assert sink.try_inject_batch([pulse(5), pulse(24)]) == 1
