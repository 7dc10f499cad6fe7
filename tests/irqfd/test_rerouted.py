"""A new route has the irqfds of its own gsi asked once, in Python, and nobody else's: theirs stay with the counter module."""

from __future__ import annotations

import pytest

from aioirqfd import EventFd, IrqchipPin, IrqManager, RoutingTable
from aioirqfd.irqfd.binding import Binding
from aioirqfd.sinks import RecordingSink
from tests.irqfd.helpers import MSI, OTHER_MSI, pulse, write

IOAPIC = {gsi: IrqchipPin("ioapic", gsi) for gsi in (5, 6, 40, 5000)}
GSIS = tuple(IOAPIC)


@pytest.fixture
def asked(monkeypatch):
    """The gsis whose irqfds were asked."""
    gsis = []
    wakeup = Binding.wakeup

    def noting(self, count, /):
        gsis.append(self.gsi)
        wakeup(self, count)

    monkeypatch.setattr(Binding, "wakeup", noting)
    return gsis


def set_route(*arguments):
    return lambda irqs: irqs.set_route(*arguments)


CHANGES = {
    "another's": (set_route(7, MSI), {}, ()),
    "another's, to nowhere": (set_route(7, ()), {}, ()),
    "another's, taken back": (lambda irqs: irqs.reset_route(7), {}, ()),
    "its own, to a message": (set_route(5, MSI), {5: MSI}, (5,)),
    "its own, beyond the pins": (set_route(40, MSI), {40: MSI}, (40,)),
    "its own, to where it goes already": (set_route(5, IOAPIC[5]), {}, ()),
    "its own, to nowhere": (set_route(6, ()), {6: None}, (6,)),
    "its own, taken back": (lambda irqs: irqs.reset_route(6), {6: None}, (6,)),
    "the whole table": (
        lambda irqs: irqs.set_routing({5: MSI, 6: OTHER_MSI}),
        {5: MSI, 6: OTHER_MSI, 40: None, 5000: None},
        GSIS,
    ),
    "the whole table, by the same": (lambda irqs: irqs.set_routing(RoutingTable.default()), {}, GSIS),
}


@pytest.mark.trouble  # where a route is gone
@pytest.mark.parametrize("signal", [EventFd.signal, write])
@pytest.mark.parametrize("change", CHANGES)
async def test_only_who_goes_elsewhere_is_asked_and_once(asked, signal, change):
    make, moved, expected = CHANGES[change]
    now = IOAPIC | moved
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        kicks = [EventFd() for _ in GSIS]
        for gsi, kick in zip(GSIS, kicks, strict=True):
            irqs.assign(kick, gsi=gsi)
        make(irqs)
        for again in (False, True):
            for kick in kicks:
                signal(kick)
            await irqs.flush()
            assert sorted(sink.interrupts, key=lambda interrupt: interrupt.gsi) == [
                pulse(gsi, now[gsi]) for gsi in GSIS if now[gsi] is not None
            ]
            # Where there is no route, it is the binding that drops each.
            assert sorted(asked) == [gsi for gsi in expected if not again or now[gsi] is None]
            sink.interrupts.clear()
            asked.clear()
        for kick in kicks:
            kick.close()


@pytest.mark.parametrize("handled", [False, True])
async def test_all_irqfds_of_the_gsi_follow(asked, handled):
    told = []

    async def one(irqfd, count):
        told.append((irqfd.gsi, count))

    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        kicks = [EventFd() for _ in range(3)]
        for gsi, kick in zip((5, 5, 6), kicks, strict=True):
            irqs.assign(kick, gsi=gsi, wakeup=one if handled else None)
        irqs.set_route(5, MSI)
        for kick in kicks:
            kick.signal(2)
        await irqs.flush()
        assert asked == [5, 5]
        assert sorted(sink.interrupts, key=lambda it: it.gsi) == [pulse(5, MSI), pulse(5, MSI), pulse(6, IOAPIC[6])]
        assert sorted(told) == ([(5, 2), (5, 2), (6, 2)] if handled else [])
        for kick in kicks:
            kick.close()


async def test_what_was_taken_back_and_set_again_is_a_new_route(asked):
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=40)
            for route in (MSI, OTHER_MSI, MSI):
                irqs.set_route(40, route)
                kick.signal()
                kick.signal()
                irqs.reset_route(40)
                kick.signal()
                kick.signal()
                assert sink.interrupts == [pulse(40, route)] * 2 + [pulse(40, IOAPIC[40])] * 2
                assert asked == [40, 40]
                sink.interrupts.clear()
                asked.clear()
