"""Routing tables: what the kernel refuses is refused, all or nothing, and bound irqfds follow at once (rows G02 to G12)."""

from __future__ import annotations

import errno
import json

import pytest

from aioirqfd import EventFd, Interrupt, IrqchipPin, IrqManager, Msi, RoutingError, RoutingTable, State
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import GatedSink, RecordingTracer
from tests.integers import int64
from tests.irqfd.helpers import MSI, OTHER_MSI, SlowSink, pulse, turns, write

PIC, SLAVE, IOAPIC = IrqchipPin("pic", 5), IrqchipPin("pic", 9), IrqchipPin("ioapic", 5)


def refused(make, *args):
    with pytest.raises(RoutingError) as caught:
        make(*args)
    assert caught.value.errno == errno.EINVAL
    return str(caught.value)


@pytest.mark.parametrize(
    ("chip", "pin"), [("pic", 16), ("pic", -1), ("ioapic", 2**32), ("ioapic", -1), ("lapic", 0), ("", 0)]
)
def test_g06_a_pin_that_is_not_there(chip, pin):
    refused(IrqchipPin, chip, pin)


@pytest.mark.parametrize("pin", [24, 2**32 - 1])
def test_g06_a_pin_beyond_the_ioapics_is_in_no_table(pin):
    assert "0..23" in refused(RoutingTable, {5: IrqchipPin("ioapic", pin)})
    assert "0..23" in refused(RoutingTable.default().with_route, 30, IrqchipPin("ioapic", 30))


@pytest.mark.parametrize("pin", [True, 1.0, "1", None])
def test_g06_a_pin_that_is_no_number(pin):
    refused(IrqchipPin, "ioapic", pin)


@pytest.mark.parametrize(("chip", "pin"), [("pic", 0), ("pic", 15), ("ioapic", 0), ("ioapic", 23)])
def test_g06_the_pins_that_there_are(chip, pin):
    assert IrqchipPin(chip, pin).pin == pin


@pytest.mark.parametrize(
    "fields", [(-1, 0), (2**64, 0), (0, -1), (0, 2**32), (0, 0, -1), (0, 0, 2**32), (0.0, 0), (True, 0)]
)
def test_g04_a_message_out_of_range(fields):
    refused(Msi, *fields)


def test_g04_the_widest_message():
    assert Msi(2**64 - 1, 2**32 - 1, 2**32 - 1) == Msi(2**64 - 1, 2**32 - 1, devid=2**32 - 1)


async def test_other_libraries_integers_become_plain_ones():
    pin, message = IrqchipPin("pic", int64(5)), Msi(int64(0xFEE00000), int64(0x31), devid=int64(7))
    assert (pin, message) == (PIC, Msi(0xFEE00000, 0x31, devid=7))
    table = RoutingTable({int64(5): pin, int64(6): [message]}).with_route(int64(7), pin)
    assert {type(number) for number in (pin.pin, message.address, message.data, message.devid, *table)} == {int}
    assert dict(table) == {5: (PIC,), 6: (message,), 7: (PIC,)}
    async with IrqManager(RecordingSink()) as irqs:
        irqs.set_route(int64(100), pin)
        irqs.set_routing({int64(6): message})
        await irqs.pause()
        json.dumps(irqs.snapshot())
        irqs.resume()


@pytest.mark.parametrize("gsi", [-1, 4096, 2**32, True, "5", 5.0])
def test_g03_a_gsi_that_cannot_be_routed(gsi):
    refused(RoutingTable, {gsi: PIC})


def test_g03_g02_as_many_as_there_can_be():
    assert len(RoutingTable({gsi: Msi(0xFEE00000, gsi) for gsi in range(4096)})) == 4096
    pins = {gsi: [IrqchipPin("pic", 0), IrqchipPin("ioapic", 0)] for gsi in range(2048)}
    assert sum(map(len, RoutingTable(pins).values())) == 4096
    assert "4096" in refused(RoutingTable, pins | {2048: MSI})


@pytest.mark.parametrize("route", [None, 5, "pic", b"ioapic", {"pic": 5}, [None], [5], object(), Interrupt(5, PIC)])
def test_g05_what_is_no_route(route):
    refused(RoutingTable, {5: route})


@pytest.mark.parametrize(
    "routes", [[PIC, PIC], [PIC, IrqchipPin("pic", 6)], [IOAPIC, IOAPIC], [MSI, PIC], [PIC, MSI], [MSI, MSI]]
)
def test_g07_several_routes_that_do_not_go_together(routes):
    refused(RoutingTable, {5: routes})


@pytest.mark.parametrize("routes", [[PIC, IOAPIC], [IOAPIC, PIC], [PIC, SLAVE], [PIC, SLAVE, IOAPIC]])
def test_g07_several_chips_in_the_order_given(routes):
    assert RoutingTable({5: routes})[5] == tuple(routes)


def test_g08_two_gsis_on_one_pin():
    assert RoutingTable({5: PIC, 6: PIC})[6] == (PIC,)


def test_a_table_is_a_mapping_that_stays_as_it_is():
    source = {5: [PIC, IOAPIC], 7: MSI, 8: []}
    table = RoutingTable(source)
    source[5].append(SLAVE)
    source[9] = MSI
    assert dict(table) == {5: (PIC, IOAPIC), 7: (MSI,)}
    assert 8 not in table, "nowhere to go is unrouted"
    assert table == RoutingTable({7: [MSI], 5: (PIC, IOAPIC)})
    assert dict(RoutingTable()) == dict(RoutingTable({})) == {}
    assert repr(RoutingTable({7: MSI})) == f"RoutingTable({{7: ({MSI!r},)}})"


def test_the_default_table():
    assert dict(RoutingTable.default()) == {pin: (IrqchipPin("ioapic", pin),) for pin in range(24)}


# ------------------------------------------------------------------------------------------------------ in a manager


async def test_g09_all_or_nothing():
    class Picky:
        def __init__(self):
            self.interrupts = []
            self.tables = []
            self.refuse = False

        async def inject(self, interrupt):
            self.interrupts.append(interrupt)

        def set_routing(self, table):
            if self.refuse:
                raise RoutingError("not this one")
            self.tables.append(table)

    sink = Picky()
    async with IrqManager(sink, routing={5: MSI}) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            before = irqs.routing
            assert sink.tables == [before], "the sink hears of the first table too"
            refused(irqs.set_routing, {5: OTHER_MSI, 4096: MSI})
            sink.refuse = True
            refused(irqs.set_routing, {5: OTHER_MSI})
            assert irqs.routing is before
            assert sink.tables == [before]
            kick.signal()
            await irqs.flush()
            assert sink.interrupts == [pulse(5, MSI)]


@pytest.mark.trouble
@pytest.mark.parametrize("make", [RecordingSink, SlowSink])
async def test_g10_bound_irqfds_see_the_new_table_on_their_next_event(make):
    sink = make()
    async with IrqManager(sink, routing={}) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            for routes in ([], [MSI], [OTHER_MSI], [PIC], [PIC, IOAPIC], [], [MSI]):
                irqs.set_routing({5: routes})
                kick.signal()
                await irqs.flush()
                write(kick)
                await irqs.flush()
            assert irqfd.statistics().dropped == 4
            assert irqfd.statistics().injections == 10
    assert sink.interrupts == [
        *[pulse(5, MSI)] * 2,
        *[pulse(5, OTHER_MSI)] * 2,
        *[pulse(5, PIC)] * 2,
        *[pulse(5, PIC), pulse(5, IOAPIC)] * 2,
        *[pulse(5, MSI)] * 2,
    ]


async def test_g10_what_is_queued_goes_by_the_table_of_its_turn():
    sink = GatedSink()
    async with IrqManager(sink, routing={5: MSI, 6: MSI}) as irqs:
        with EventFd() as kick, EventFd() as kick2:
            irqs.assign(kick, gsi=6)
            irqs.assign(kick2, gsi=5)
            kick.signal()
            kick2.signal()
            await sink.wait_begun(1)
            irqs.set_routing({5: OTHER_MSI})
            sink.open()
            await irqs.flush()
    assert sink.interrupts == [pulse(6, MSI), pulse(5, OTHER_MSI)]


async def test_g11_w08_without_a_route_it_is_dropped_counted_and_traced_once_for_each_table():
    sink, tracer = RecordingSink(), RecordingTracer()
    async with IrqManager(sink, routing={}, tracer=tracer) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            for _ in range(3):
                kick.signal()
            irqs.set_routing({6: MSI})
            kick.signal()
            assert irqs.statistics().dropped == 4
            assert len(tracer.of("interrupt_dropped")) == 2
            irqs.set_routing({5: MSI})
            await irqs.flush()
            assert sink.interrupts == [], "not replayed"
            assert irqfd.pending is False


@pytest.mark.parametrize("make", [RecordingSink, SlowSink])
async def test_held_until_a_route_appears(make):
    sink, tracer = make(), RecordingTracer()
    async with IrqManager(sink, routing={}, unrouted="hold", tracer=tracer) as irqs:
        with EventFd() as kick, EventFd() as other:
            irqfd = irqs.assign(kick, gsi=5)
            irqs.assign(other, gsi=6)
            kick.signal(2)
            write(kick)
            other.signal()
            await irqs.flush()
            assert (irqfd.pending, irqfd.state, sink.interrupts) == (True, State.PENDING, [])
            irqs.set_routing({7: MSI})
            await irqs.flush()
            assert sink.interrupts == []
            irqs.set_routing({5: MSI})
            await irqs.flush()
            assert sink.interrupts == [pulse(5, MSI)]
            assert (irqfd.pending, irqs.statistics().dropped) == (False, 0)
            assert len(tracer.of("interrupt_held")) == 2
            irqs.set_routing({5: MSI, 6: OTHER_MSI})
            await irqs.flush()
            assert sink.interrupts == [pulse(5, MSI), pulse(6, OTHER_MSI)]


@pytest.mark.parametrize("blocker", ["mask", "pause"])
async def test_held_after_it_was_blocked_by_something_else(blocker):
    # Pending for another reason when it loses its route; that reason goes first. It must not be forgotten.
    sink = SlowSink()
    async with IrqManager(sink, routing={5: MSI}, unrouted="hold") as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            irqfd.mask()
            kick.signal()
            await irqs.flush()
            if blocker == "pause":
                await irqs.pause()
                irqfd.unmask()
            irqs.set_routing({})
            if blocker == "pause":
                irqs.resume()
            else:
                irqfd.unmask()
            await irqs.flush()
            assert (irqfd.state, sink.interrupts) == (State.PENDING, [])
            irqs.set_routing({5: OTHER_MSI})
            await irqs.flush()
            assert sink.interrupts == [pulse(5, OTHER_MSI)]


async def test_held_when_the_route_goes_while_a_handler_runs():
    sink = SlowSink()
    seen = []

    async def handler(irqfd, count):
        seen.append(count)
        irqs.set_routing({})
        await turns(2)

    async with IrqManager(sink, routing={5: MSI}, unrouted="hold") as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=handler)
            kick.signal(3)
            await irqs.flush()
            assert (irqfd.state, irqfd.pending, irqs.statistics().dropped) == (State.PENDING, True, 0)
            irqs.set_routing({5: OTHER_MSI})
            await irqs.flush()
            assert sink.interrupts == [pulse(5, OTHER_MSI)]
            assert seen == [3], "it has had its count"
            assert irqfd.statistics().injections == 1


async def test_held_and_masked_needs_both_to_go():
    sink = RecordingSink()
    async with IrqManager(sink, routing={}, unrouted="hold") as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, masked=True)
            kick.signal()
            irqs.set_routing({5: MSI})
            await irqs.flush()
            assert sink.interrupts == []
            irqs.set_routing({})
            irqfd.unmask()
            await irqs.flush()
            assert sink.interrupts == []
            irqs.set_routing({5: MSI})
            await irqs.flush()
            assert sink.interrupts == [pulse(5, MSI)]


async def test_a_message_among_pins_and_the_generation():
    async with IrqManager(RecordingSink()) as irqs:
        before = irqs._irqfds.routes.generation
        irqs.set_routing(RoutingTable({5: MSI}))
        assert irqs._irqfds.routes.generation == before + 1
        assert irqs.routing.routes(5) == (MSI,)
        assert irqs.routing.routes(6) == ()
