"""One route at a time: the same table as all at once, and nobody else notices."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioirqfd import EventFd, Interrupt, IrqchipPin, IrqManager, Msi, Retry, RoutingError, RoutingTable
from aioirqfd.sinks import RecordingSink
from tests.irqfd.msix import BASE

ROUTES = st.sampled_from(
    [(), Msi(BASE, 1), [Msi(BASE, 2)], IrqchipPin("ioapic", 3), [IrqchipPin("ioapic", 4), IrqchipPin("pic", 4)]]
)


@given(st.lists(st.tuples(st.sampled_from([0, 1, 5, 4095]), ROUTES), max_size=12))
def test_one_route_at_a_time_gives_the_same_table_as_all_at_once(changes):
    table, plain = RoutingTable.default(), dict(RoutingTable.default())
    for gsi, routes in changes:
        before = dict(table)
        changed = table.with_route(gsi, routes)
        assert dict(table) == before
        plain[gsi] = routes
        table = changed
    assert dict(table) == dict(RoutingTable(plain))
    assert table._entries == sum(map(len, table.values()))


@pytest.mark.parametrize(
    ("gsi", "routes"),
    [
        (4096, Msi(0, 0)),
        (-1, Msi(0, 0)),
        (True, Msi(0, 0)),
        (5, [Msi(0, 0), Msi(0, 1)]),
        (5, [IrqchipPin("ioapic", 1), IrqchipPin("ioapic", 2)]),
        (5, "pin"),
        (5, None),
    ],
)
async def test_a_route_that_is_refused_changes_nothing(gsi, routes):
    async with IrqManager(RecordingSink()) as irqs:
        before, generation = irqs.routing, irqs._irqfds.routes.generation
        with pytest.raises(RoutingError):
            irqs.set_route(gsi, routes)
        assert irqs.routing is before
        assert irqs._irqfds.routes.generation == generation


async def test_one_route_too_many():
    async with IrqManager(RecordingSink(), routing={gsi: Msi(0, gsi) for gsi in range(4096)}) as irqs:
        with pytest.raises(RoutingError, match="4096"):
            irqs.set_route(0, [IrqchipPin("ioapic", 0), IrqchipPin("pic", 0)])
        irqs.set_route(0, IrqchipPin("ioapic", 0))
        irqs.set_route(1, ())
        irqs.set_route(0, [IrqchipPin("ioapic", 0), IrqchipPin("pic", 0)])
        assert len(irqs.routing) == 4095


@pytest.mark.trouble
async def test_a_bound_irqfd_sees_its_new_route_and_the_others_keep_theirs():
    sink = RecordingSink()
    with EventFd() as kick, EventFd() as other:
        async with IrqManager(sink) as irqs:
            irqs.assign(kick, gsi=5)
            irqs.assign(other, gsi=6)
            kick.signal()
            irqs.set_route(5, Msi(BASE, 0x31))
            kick.signal()
            other.signal()
            irqs.set_route(5, ())
            kick.signal()
            assert sink.interrupts == [
                Interrupt(5, IrqchipPin("ioapic", 5)),
                Interrupt(5, Msi(BASE, 0x31)),
                Interrupt(6, IrqchipPin("ioapic", 6)),
            ]
            assert irqs.statistics().dropped == 1


async def test_a_held_interrupt_goes_out_when_its_one_route_appears():
    sink = RecordingSink()
    with EventFd() as kick, EventFd() as other:
        async with IrqManager(sink, routing={}, unrouted="hold") as irqs:
            irqs.assign(kick, gsi=5)
            irqs.assign(other, gsi=6)
            kick.signal()
            other.signal()
            irqs.set_route(5, Msi(BASE, 0x31))
            await irqs.flush()
            assert sink.interrupts == [Interrupt(5, Msi(BASE, 0x31))]
            irqs.set_route(6, Msi(BASE, 0x32))
            await irqs.flush()
            assert sink.interrupts[1:] == [Interrupt(6, Msi(BASE, 0x32))]


async def test_changing_one_gsi_does_not_begin_another_ones_half_done_injection_again():
    class FailsOnce:
        def __init__(self):
            self.interrupts = []
            self.failed = asyncio.Event()

        async def inject(self, interrupt):
            if interrupt.route.chip == "pic" and not self.failed.is_set():
                self.failed.set()
                raise OSError("not now")
            self.interrupts.append(interrupt)

    sink = FailsOnce()
    pins = [IrqchipPin("ioapic", 5), IrqchipPin("pic", 5)]
    with EventFd() as kick:
        async with IrqManager(sink, routing={5: pins}, retry=Retry(initial=0.0, maximum=0.0)) as irqs:
            irqs.assign(kick, gsi=5)
            kick.signal()
            await sink.failed.wait()
            irqs.set_route(6, Msi(BASE, 1))
            await irqs.flush()
            assert sink.interrupts == [Interrupt(5, pin) for pin in pins]


async def test_changing_its_own_gsi_does():
    class FailsOnce:
        def __init__(self):
            self.interrupts = []
            self.failed = asyncio.Event()

        async def inject(self, interrupt):
            if interrupt.route == old[1] and not self.failed.is_set():
                self.failed.set()
                raise OSError("not now")
            self.interrupts.append(interrupt)

    old = [IrqchipPin("ioapic", 5), IrqchipPin("pic", 5)]
    new = [IrqchipPin("ioapic", 6), IrqchipPin("pic", 6)]
    sink = FailsOnce()
    with EventFd() as kick:
        async with IrqManager(sink, routing={5: old}, retry=Retry(initial=0.0, maximum=0.0)) as irqs:
            irqs.assign(kick, gsi=5)
            kick.signal()
            await sink.failed.wait()
            irqs.set_route(5, new)
            await irqs.flush()
            assert sink.interrupts == [Interrupt(5, pin) for pin in (old[0], *new)]
