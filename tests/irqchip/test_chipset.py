"""PIC, IOAPIC and messages behind one manager: each interrupt to the controller of its route, by its fastest tier."""

from __future__ import annotations

import pytest

from aioirqfd import (
    BatchSink,
    EventFd,
    Interrupt,
    IrqchipPin,
    IrqManager,
    Msi,
    OffloadSink,
    RoutedSink,
    RoutingError,
    RoutingTable,
)
from aioirqfd.irqchip import Chipset, IoApic, Pic
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import RefusingSink
from tests.irqfd.helpers import OffloadingSink, SlowSink, pulse

pytestmark = pytest.mark.alike

PIC, IOAPIC, MSI = IrqchipPin("pic", 5), IrqchipPin("ioapic", 5), Msi(0xFEE00000, 0x41)
PIC_PORTS = ((0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x4D0, 0x20))


async def test_a_gsi_that_leads_to_both_chips_is_raised_and_acknowledged_at_both():
    apics = RecordingSink()
    pic, ioapic = Pic(), IoApic(apics)
    for port, value in PIC_PORTS:
        pic.io_write(port, value)
    ioapic.mmio_write(0x00, 0x10 + 2 * 5)
    ioapic.mmio_write(0x10, 0x8031)
    async with IrqManager(Chipset(pic=pic, ioapic=ioapic, msi=apics), routing={5: [IOAPIC, PIC]}) as irqs:
        with EventFd() as kick, EventFd() as unmask:
            irqs.assign(kick, gsi=5, resamplefd=unmask)
            for end in (lambda: ioapic.eoi(0x31), lambda: (pic.intack(), pic.io_write(0x20, 0x20))):
                kick.signal()
                await irqs.flush()
                assert irqs._irqfds.lines.asserted() == {5: (IOAPIC, PIC)}
                assert pic.output is True
                end()
                assert (irqs._irqfds.lines.asserted(), pic.output, unmask.read_nowait()) == ({}, False, 1)
                ioapic.eoi(0x31)  # the other one's, or once more (row R05)
                unmask.read_nowait()
            assert len(apics.interrupts) == 2


@pytest.mark.parametrize("route", [PIC, IOAPIC, MSI])
async def test_each_takes_its_own_at_once_and_what_it_refuses_later(route):
    sinks = {"pic": RefusingSink(), "ioapic": RefusingSink(), "msi": RefusingSink()}
    kind = "msi" if route is MSI else route.chip
    async with IrqManager(Chipset(**sinks), routing={5: route}) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            sinks[kind].refusing = False
            kick.signal()
            assert sinks[kind].interrupts == [pulse(5, route)]
            sinks[kind].refusing = True
            kick.signal()
            await irqs.flush()
            assert sinks[kind].interrupts == [pulse(5, route)] * 2
            assert sum(len(sink.interrupts) for sink in sinks.values()) == 2


def test_a_batch_ends_where_somebody_takes_no_more():
    pic, msi = RecordingSink(), RefusingSink()
    chipset = Chipset(pic=pic, ioapic=SlowSink(), msi=msi)
    assert isinstance(chipset, BatchSink)
    batch = [pulse(5, PIC), pulse(5, PIC), pulse(6, MSI), pulse(5, PIC), pulse(7, IOAPIC), pulse(5, PIC)]
    assert chipset.try_inject_batch(batch) == 2
    msi.refusing = False
    assert chipset.try_inject_batch(batch) == 4
    assert chipset.try_inject_batch([]) == 0
    assert (len(pic.interrupts), len(msi.interrupts)) == (5, 1)
    assert chipset.try_inject(pulse(7, IOAPIC)) is False


async def test_g06_a_route_to_what_is_not_there_is_refused():
    chipset = Chipset(ioapic=RecordingSink())
    async with IrqManager(chipset) as irqs:
        with pytest.raises(RoutingError):
            irqs.set_routing({5: PIC})
        assert len(irqs.routing) == 24
    with pytest.raises(RoutingError):
        await chipset.inject(Interrupt(5, MSI))
    assert chipset.try_inject_batch([pulse(5, MSI)]) == 0


def test_g09_a_table_is_taken_by_all_or_by_none():
    class Picky(SlowSink):
        def set_routing(self, table):
            if 7 in table:
                raise RoutingError("not 7")

    class Keeps(SlowSink):
        table: RoutingTable | None = None

        def set_routing(self, table):
            self.table = table

    pic = Keeps()
    chipset = Chipset(pic=pic, ioapic=Picky())
    assert isinstance(chipset, RoutedSink)
    good = RoutingTable({5: PIC})
    chipset.set_routing(good)
    with pytest.raises(RoutingError):
        chipset.set_routing(RoutingTable({7: PIC}))
    assert pic.table is good


async def test_what_one_of_them_watches_itself():
    assert not isinstance(Chipset(pic=Pic()), OffloadSink)
    kernel = OffloadingSink()
    async with IrqManager(Chipset(pic=Pic(), msi=kernel), routing={5: MSI, 6: PIC}) as irqs:
        with EventFd() as message, EventFd() as pin:
            assert irqs.assign(message, gsi=5).offloaded
            assert not irqs.assign(pin, gsi=6).offloaded
    assert [entry[0] for entry in kernel.log] == ["offload", "reclaim"]
