"""The IOAPIC: registers, edges and levels, ends of interrupt, and what it does when the sink behind it is full."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioirqfd.errors import RoutingError, SnapshotError
from aioirqfd.irqchip import IoApic
from aioirqfd.irqfd.interrupt import Action, Interrupt, IrqchipPin, Msi
from aioirqfd.irqfd.routing import RoutingTable
from aioirqfd.irqfd.sink import AckSink, BatchSink, RoutedSink

pytestmark = pytest.mark.alike

SELECT, WINDOW, EOI = 0x00, 0x10, 0x40
LEVEL, MASKED, REMOTE_IRR, LOGICAL, LOW_ACTIVE = 0x8000, 0x10000, 0x4000, 0x800, 0x2000
EDGE_45 = 0x45
LEVEL_49 = LEVEL | 0x49


class Out:
    """The sink behind: keeps the vectors; refuses while it has no room; waits for room in inject."""

    def __init__(self):
        self.interrupts = []
        self.full = False
        self.room = asyncio.Event()
        self.waits = 0
        self.error: BaseException | None = None

    @property
    def vectors(self):
        return [interrupt.route.data & 0xFF for interrupt in self.interrupts]

    def try_inject(self, interrupt):
        if self.full:
            return False
        self.interrupts.append(interrupt)
        return True

    async def inject(self, interrupt):
        self.waits += 1
        if self.error is not None:
            raise self.error
        if self.full:
            await self.room.wait()
        self.interrupts.append(interrupt)


def irq(pin, action=Action.PULSE, gsi=None):
    return Interrupt(pin if gsi is None else gsi, IrqchipPin("ioapic", pin), action)


def write(ioapic, register, value):
    ioapic.mmio_write(SELECT, register)
    ioapic.mmio_write(WINDOW, value)


def read(ioapic, register):
    ioapic.mmio_write(SELECT, register)
    return ioapic.mmio_read(WINDOW)


def program(ioapic, pin, low, high=0):
    write(ioapic, 0x11 + 2 * pin, high)
    write(ioapic, 0x10 + 2 * pin, low)


def make(entries=None, **options):
    """An IOAPIC with these entries, the sink behind it, and the list of gsis it acknowledges."""
    out = Out()
    ioapic = IoApic(out, **options)
    acks = []
    ioapic.bind(acks.append)
    for pin, low in (entries or {}).items():
        program(ioapic, pin, low)
    return ioapic, out, acks


# -------------------------------------------------------------------------------------------------------- registers


def test_it_is_a_sink_of_every_tier_it_claims():
    ioapic, _, _ = make()
    assert isinstance(ioapic, BatchSink)
    assert isinstance(ioapic, AckSink)
    assert isinstance(ioapic, RoutedSink)


@pytest.mark.parametrize("version", [0x11, 0x20])
def test_version_says_24_pins(version):
    ioapic, _, _ = make(version=version)
    assert read(ioapic, 1) == 0x0017_0000 | version


def test_there_is_no_other_version():
    with pytest.raises(ValueError, match="0x11 or 0x20"):
        make(version=0x12)


def test_id_has_four_bits_and_arbitration_follows_it():
    ioapic, _, _ = make()
    write(ioapic, 0, 0xFFFF_FFFF)
    write(ioapic, 2, 0)
    write(ioapic, 1, 0)
    assert [read(ioapic, 0), read(ioapic, 2), read(ioapic, 1)] == [0x0F00_0000, 0x0F00_0000, 0x0017_0020]


def test_ioregsel_has_8_bits_and_can_be_read():
    ioapic, _, _ = make()
    ioapic.mmio_write(SELECT, 0x1_0011)
    assert ioapic.mmio_read(SELECT) == 0x11


def test_entries_are_masked_at_first_and_keep_only_the_bits_they_have():
    ioapic, _, _ = make()
    assert [read(ioapic, 0x10 + index) for index in range(48)] == [MASKED, 0] * 24
    for index in range(48):
        write(ioapic, 0x10 + index, 0xFFFF_FFFF)
    assert [read(ioapic, 0x10 + index) for index in range(48)] == [0x0001_AFFF, 0xFF00_0000] * 24


@pytest.mark.parametrize("register", [3, 4, 0x0F, 0x40, 0xFF])
def test_registers_that_are_not_there_read_0_and_take_nothing(register):
    ioapic, _, _ = make()
    before = ioapic.snapshot() | {"select": register}
    write(ioapic, register, 0xFFFF_FFFF)
    assert read(ioapic, register) == 0
    assert ioapic.snapshot() == before


def test_access_sizes():
    ioapic, _, _ = make()
    ioapic.mmio_write(SELECT, 0x12, 1)
    ioapic.mmio_write(WINDOW, 0xDEAD_BEEF_0001_0231, 8)
    assert [ioapic.mmio_read(WINDOW, size) for size in (1, 2, 4, 8)] == [0x31, 0x0231, 0x0001_0231, 0x0001_0231]
    ioapic.mmio_write(0x2010, 0x77, 1)  # the high bits of the offset are not decoded; a byte writes the whole register
    assert ioapic.mmio_read(WINDOW) == 0x77
    assert ioapic.mmio_read(0x20) == 0
    ioapic.mmio_write(0x20, 5)
    for size in (0, 3, 16):
        with pytest.raises(ValueError, match="1, 2, 4 or 8"):
            ioapic.mmio_read(WINDOW, size)
        with pytest.raises(ValueError, match="1, 2, 4 or 8"):
            ioapic.mmio_write(WINDOW, 0, size)
    for value, size in ((-1, 4), (0x100, 1), (2**64, 8)):
        with pytest.raises(ValueError, match=f"{size} bytes"):
            ioapic.mmio_write(SELECT, value, size)


@pytest.mark.parametrize(
    ("low", "high", "address", "data"),
    [
        (0x45, 0, 0xFEE0_0000, 0x45),
        (0x45 | LOW_ACTIVE, 0, 0xFEE0_0000, 0x45),
        (0x45 | LOGICAL | 0x100, 0x0300_0000, 0xFEE0_3004, 0x145),
        (0x45, 0xFF00_0000, 0xFEEF_F000, 0x45),
        (0x49 | LEVEL, 0x0100_0000, 0xFEE0_1000, 0xC049),
        (0x49 | LEVEL | 0x100, 0, 0xFEE0_0000, 0xC149),
        (0x02 | 0x400, 0, 0xFEE0_0000, 0x402),
        (0x02 | 0x400 | LEVEL, 0, 0xFEE0_0000, 0x402),
    ],
    ids=["edge", "polarity", "logical lowest", "destination", "level", "level lowest", "nmi", "nmi is an edge"],
)
def test_the_message_is_composed_from_the_entry(low, high, address, data):
    ioapic, out, _ = make()
    program(ioapic, 5, low, high)
    ioapic.try_inject(irq(5, Action.ASSERT, gsi=40))
    assert out.interrupts == [Interrupt(40, Msi(address, data), Action.PULSE)]


# ------------------------------------------------------------------------------------------------------ edge, level


def test_each_pulse_of_an_edge_pin_is_a_message():
    ioapic, out, _ = make({5: EDGE_45})
    assert [ioapic.try_inject(irq(5)) for _ in range(3)] == [True] * 3
    assert out.vectors == [0x45] * 3
    assert read(ioapic, 0x1A) == EDGE_45


def test_a_level_pin_gives_one_message_until_its_eoi():
    ioapic, out, _ = make({9: LEVEL_49})
    assert [ioapic.try_inject(irq(9)) for _ in range(3)] == [True] * 3
    assert out.vectors == [0x49]  # row W07
    assert read(ioapic, 0x22) == LEVEL_49 | REMOTE_IRR
    ioapic.eoi(0x49)
    assert (out.vectors, read(ioapic, 0x22)) == ([0x49], LEVEL_49)
    ioapic.try_inject(irq(9))
    assert out.vectors == [0x49, 0x49]


def test_a_level_line_still_high_after_its_eoi_goes_out_again():
    ioapic, out, acks = make({9: LEVEL_49})
    ioapic.try_inject(irq(9, Action.ASSERT))
    ioapic.eoi(0x48)
    assert (out.vectors, acks) == ([0x49], [])
    ioapic.eoi(0x49)
    assert (out.vectors, acks) == ([0x49, 0x49], [9])
    ioapic.try_inject(irq(9, Action.DEASSERT))
    ioapic.eoi(0x49)
    assert (out.vectors, acks) == ([0x49, 0x49], [9, 9])


def test_set_irq_says_what_the_kernel_says():
    ioapic, _, _ = make({5: EDGE_45, 9: LEVEL_49})
    assert [ioapic.set_irq(5, level) for level in (1, 1, 0, 3, 0)] == [1, 0, 1, 1, 1]  # row L05
    assert [ioapic.set_irq(9, level) for level in (1, 1, 0, 1, 0)] == [1, -1, 1, -1, 1]
    assert [ioapic.set_irq(6, level) for level in (1, 1, 0)] == [-1, 0, 1]  # masked; lowering is never ignored here
    program(ioapic, 7, LEVEL_49 | MASKED)
    assert [ioapic.set_irq(7, level) for level in (1, 1, 0)] == [-1, -1, 1]


@pytest.mark.parametrize("pin", [-1, 24])
def test_set_irq_refuses_a_pin_that_is_not_there(pin):
    ioapic, _, _ = make()
    with pytest.raises(RoutingError):
        ioapic.set_irq(pin, 1)


def test_a_line_is_up_while_the_device_or_a_resampler_holds_it():
    ioapic, out, _ = make({9: LEVEL_49})
    ioapic.try_inject(irq(9, Action.ASSERT))
    ioapic.set_irq(9, 1)
    ioapic.try_inject(irq(9, Action.DEASSERT))
    ioapic.eoi(0x49)
    assert out.vectors == [0x49, 0x49]  # row R09
    ioapic.set_irq(9, 0)
    ioapic.eoi(0x49)
    assert out.vectors == [0x49, 0x49]


# ----------------------------------------------------------------------------------------------------------- masking


def test_an_edge_while_masked_is_remembered_once():
    ioapic, out, _ = make({5: EDGE_45 | MASKED})
    assert [ioapic.try_inject(irq(5)) for _ in range(3)] == [True] * 3
    assert (out.vectors, ioapic.waiting) == ([], frozenset())
    program(ioapic, 5, EDGE_45)
    assert (out.vectors, out.interrupts[0].gsi) == ([0x45], 5)
    program(ioapic, 5, EDGE_45 | MASKED)
    program(ioapic, 5, EDGE_45)
    assert out.vectors == [0x45]


@pytest.mark.parametrize(("action", "vectors"), [(Action.PULSE, []), (Action.ASSERT, [0x49])])
def test_a_level_while_masked_is_what_the_line_is_at_unmask(action, vectors):
    ioapic, out, _ = make({9: LEVEL_49 | MASKED})
    ioapic.try_inject(irq(9, action))
    assert out.vectors == []
    program(ioapic, 9, LEVEL_49)
    assert out.vectors == vectors


def test_unmask_while_the_eoi_is_outstanding_sends_nothing():
    ioapic, out, acks = make({9: LEVEL_49})
    ioapic.try_inject(irq(9, Action.ASSERT))
    program(ioapic, 9, LEVEL_49 | MASKED)
    program(ioapic, 9, LEVEL_49)
    assert out.vectors == [0x49]
    program(ioapic, 9, LEVEL_49 | MASKED)
    ioapic.eoi(0x49)
    assert (out.vectors, acks) == ([0x49], [9])  # a masked pin is acknowledged too, and stays silent
    program(ioapic, 9, LEVEL_49)
    assert out.vectors == [0x49, 0x49]


def test_making_an_entry_edge_triggered_ends_its_level_interrupt():
    # How guests without an EOI register get rid of a remote IRR: masked and edge, then as it was.
    ioapic, out, acks = make({9: LEVEL_49}, version=0x11)
    ioapic.try_inject(irq(9, Action.ASSERT))
    write(ioapic, 0x22, 0x49 | MASKED)
    assert read(ioapic, 0x22) == 0x49 | MASKED
    write(ioapic, 0x22, LEVEL_49)
    assert (out.vectors, acks) == ([0x49, 0x49], [])


def test_an_entry_made_level_triggered_sees_the_line_and_not_old_edges():
    ioapic, out, _ = make()
    ioapic.try_inject(irq(9))
    ioapic.try_inject(irq(10, Action.ASSERT))
    program(ioapic, 9, LEVEL_49)
    program(ioapic, 10, LEVEL | 0x4A)
    assert out.vectors == [0x4A]
    ioapic.try_inject(irq(10, Action.DEASSERT))
    program(ioapic, 11, 0x4B)
    ioapic.try_inject(irq(11, Action.ASSERT))
    program(ioapic, 11, LEVEL | 0x4B)
    assert out.vectors == [0x4A, 0x4B, 0x4B]


# ---------------------------------------------------------------------------------------------------- end of interrupt


def test_an_eoi_acknowledges_every_pin_with_its_vector_level_or_edge():
    ioapic, _, acks = make({5: 0x50, 9: LEVEL | 0x50, 11: 0x51, 12: LEVEL | 0x50 | MASKED})
    ioapic.eoi(0x50)
    assert acks == [5, 9, 12]  # row R20


def test_the_eoi_register_of_version_20():
    ioapic, _, acks = make({9: LEVEL_49})
    ioapic.mmio_write(EOI, 0x49)
    assert acks == [9]
    assert ioapic.mmio_read(EOI) == 0
    ioapic, _, acks = make({9: LEVEL_49}, version=0x11)
    ioapic.mmio_write(EOI, 0x49)
    assert acks == []


def test_a_line_that_ack_lowers_gives_no_second_message():
    ioapic, out, _ = make({9: LEVEL_49})

    def ack(gsi):
        ioapic.try_inject(irq(gsi, Action.DEASSERT))

    ioapic.bind(ack)
    ioapic.try_inject(irq(9, Action.ASSERT))
    ioapic.eoi(0x49)
    assert (out.vectors, read(ioapic, 0x22)) == ([0x49], LEVEL_49)


def test_a_line_that_ack_lowers_and_raises_gives_one_message_more():
    ioapic, out, _ = make({9: LEVEL_49})

    def ack(gsi):
        ioapic.try_inject(irq(gsi, Action.DEASSERT))
        ioapic.try_inject(irq(gsi, Action.ASSERT))
        ioapic.try_inject(irq(gsi, Action.ASSERT))
        assert out.vectors == [0x49]

    ioapic.bind(ack)
    ioapic.try_inject(irq(9, Action.ASSERT))
    ioapic.eoi(0x49)
    assert out.vectors == [0x49, 0x49]


def test_an_edge_during_its_own_acknowledgement_goes_out_after_it():
    ioapic, out, _ = make({5: EDGE_45})

    def ack(gsi):
        ioapic.try_inject(irq(gsi))

    ioapic.bind(ack)
    ioapic.eoi(0x45)
    assert out.vectors == [0x45]


def test_overlapping_eois_of_one_vector_send_the_line_again_once():
    ioapic, out, _ = make({9: LEVEL_49})
    depth = []

    def ack(gsi):
        depth.append(gsi)
        if len(depth) == 1:
            ioapic.eoi(0x49)
            assert out.vectors == [0x49]  # the outer one has not ended yet

    ioapic.bind(ack)
    ioapic.try_inject(irq(9, Action.ASSERT))
    ioapic.eoi(0x49)
    assert (depth, out.vectors) == ([9, 9], [0x49, 0x49])
    ioapic.eoi(0x49)
    assert (depth, out.vectors) == ([9, 9, 9], [0x49, 0x49, 0x49])


def test_a_failing_ack_reaches_the_vcpu_and_holds_nothing_back():
    ioapic, out, _ = make({9: LEVEL_49})

    def ack(gsi):
        raise LookupError(gsi)

    ioapic.bind(ack)
    ioapic.try_inject(irq(9, Action.ASSERT))
    with pytest.raises(LookupError):
        ioapic.eoi(0x49)
    assert out.vectors == [0x49, 0x49]


def test_an_eoi_inside_the_delivery_is_heard():
    # A CPU that takes and ends the interrupt at once, on the same thread.
    ioapic, out, acks = make({9: LEVEL_49})

    def try_inject(interrupt):
        out.interrupts.append(interrupt)
        ioapic.eoi(interrupt.route.data & 0xFF)
        return True

    out.try_inject = try_inject
    ioapic.try_inject(irq(9))
    ioapic.try_inject(irq(9))
    assert (out.vectors, acks, read(ioapic, 0x22)) == ([0x49, 0x49], [9, 9], LEVEL_49)


# ------------------------------------------------------------------------------------------------ unmask, row R21


def masked_and_pending(resample):
    """Row R21's case: a oneshot handler; the pin was masked, the EOI came, and the line is still up."""
    ioapic, out, acks = make({9: LEVEL_49 | MASKED}, resample=resample)
    ioapic.set_routing(RoutingTable({33: IrqchipPin("ioapic", 9)}))
    ioapic.try_inject(irq(9, Action.ASSERT, gsi=33))
    return ioapic, out, acks


def test_unmask_with_a_resampler_signals_it_and_sends_nothing():
    asked = []
    ioapic, out, acks = masked_and_pending(lambda gsi: asked.append(gsi) or True)
    program(ioapic, 9, LEVEL_49)
    assert (asked, out.vectors, acks) == ([33], [], [])
    program(ioapic, 9, LEVEL_49)
    assert (asked, out.vectors) == ([33], [])
    ioapic.try_inject(irq(9, Action.ASSERT, gsi=33))  # the line was not lowered; the device asserts again
    assert out.vectors == [0x49]


def test_unmask_with_a_resampler_keeps_the_request_of_a_device_that_holds_the_pin_itself():
    asked = []
    ioapic, out, _ = make({9: LEVEL_49 | MASKED}, resample=lambda gsi: asked.append(gsi) or True)
    ioapic.set_irq(9, 1)
    ioapic.try_inject(irq(9, Action.ASSERT))
    program(ioapic, 9, LEVEL_49)
    assert (asked, out.vectors) == ([9], [0x49])
    ioapic.try_inject(irq(9, Action.DEASSERT))
    ioapic.eoi(0x49)
    assert out.vectors == [0x49] * 2


def test_unmask_with_a_resampler_that_asserts_at_once():
    def resample(gsi):
        ioapic.try_inject(irq(9, Action.ASSERT, gsi=gsi))
        assert out.vectors == []
        return True

    ioapic, out, _ = masked_and_pending(resample)
    program(ioapic, 9, LEVEL_49)
    assert out.vectors == [0x49]


def test_unmask_without_a_resampler_sends():
    ioapic, out, _ = masked_and_pending(lambda _gsi: False)
    program(ioapic, 9, LEVEL_49)
    assert out.vectors == [0x49]


def test_unmask_of_an_unrouted_pin_asks_nobody():
    asked = []
    ioapic, out, _ = masked_and_pending(lambda gsi: asked.append(gsi) or True)
    ioapic.set_routing(RoutingTable({}))
    program(ioapic, 9, LEVEL_49)
    assert (asked, out.vectors) == ([], [0x49])


def test_a_failing_resampler_reaches_the_vcpu_and_the_interrupt_is_sent():
    def resample(gsi):
        raise LookupError(gsi)

    ioapic, out, _ = masked_and_pending(resample)
    with pytest.raises(LookupError):
        program(ioapic, 9, LEVEL_49)
    assert out.vectors == [0x49]


def test_the_resampler_is_asked_at_unmask_of_a_level_request_only():
    asked = []
    ioapic, out, _ = make({5: EDGE_45 | MASKED, 9: LEVEL_49 | MASKED}, resample=lambda gsi: asked.append(gsi) or True)
    ioapic.try_inject(irq(5))
    program(ioapic, 5, EDGE_45)
    program(ioapic, 9, LEVEL_49)
    ioapic.try_inject(irq(9, Action.ASSERT))
    program(ioapic, 9, LEVEL_49 | MASKED)
    program(ioapic, 9, LEVEL_49)
    ioapic.eoi(0x49)
    out.full = True
    ioapic.eoi(0x49)
    assert ioapic.waiting == {9}
    out.full = False
    program(ioapic, 9, LEVEL_49)  # it was not masked: this one waited for room
    assert (asked, out.vectors) == ([], [0x45, 0x49, 0x49, 0x49])


# --------------------------------------------------------------------------------------------------------------- sink


@pytest.mark.parametrize("route", [IrqchipPin("pic", 3), Msi(0xFEE00000, 0x31)])
async def test_another_route_is_refused(route):
    ioapic, out, _ = make({3: 0x43, 4: 0x44})
    for action in Action:
        with pytest.raises(RoutingError):
            ioapic.try_inject(Interrupt(3, route, action))
        with pytest.raises(RoutingError):
            await ioapic.inject(Interrupt(3, route, action))
    assert ioapic.try_inject_batch([irq(3), irq(4), Interrupt(5, route), irq(3)]) == 2
    assert ioapic.try_inject_batch([irq(3)]) == 1
    assert ioapic.try_inject_batch([]) == 0
    assert out.vectors == [0x43, 0x44, 0x43]


@pytest.mark.parametrize("order", [(50, 60), (60, 50)])
def test_of_two_gsis_on_a_pin_the_last_listed_is_acknowledged(order):
    ioapic, out, acks = make({9: LEVEL_49})
    table = {gsi: IrqchipPin("ioapic", 9) for gsi in order} | {70: IrqchipPin("pic", 9)}
    ioapic.set_routing(RoutingTable(table))
    ioapic.try_inject(irq(9, Action.ASSERT, gsi=order[0]))
    ioapic.eoi(0x49)
    assert acks == [order[1]]  # row G08
    assert [interrupt.gsi for interrupt in out.interrupts] == list(order)  # the second by the way back


def test_a_pin_without_a_gsi_acknowledges_to_nobody_and_is_called_by_its_number():
    ioapic, out, acks = make({9: LEVEL_49})
    ioapic.set_routing(RoutingTable({}))
    ioapic.set_irq(9, 1)
    ioapic.eoi(0x49)
    assert (acks, [interrupt.gsi for interrupt in out.interrupts]) == ([], [9, 9])


# ------------------------------------------------------------------------------------------------------- backpressure


async def test_a_refused_pulse_is_not_taken_and_inject_waits():
    blocked = []
    ioapic, out, _ = make({5: EDGE_45}, on_blocked=lambda: blocked.append(None))
    out.full = True
    assert ioapic.try_inject(irq(5)) is False
    assert (ioapic.waiting, blocked) == (frozenset(), [])
    task = asyncio.create_task(ioapic.inject(irq(5, gsi=77)))
    await asyncio.sleep(0)
    assert (out.waits, out.vectors, task.done()) == (1, [], False)
    out.room.set()
    await task
    assert [(interrupt.gsi, interrupt.route.data) for interrupt in out.interrupts] == [(77, 0x45)]


def test_a_batch_stops_at_the_first_refusal():
    ioapic, out, _ = make({5: EDGE_45, 9: LEVEL_49})
    ioapic.try_inject(irq(9))
    out.full = True
    assert ioapic.try_inject_batch([irq(9), irq(6), irq(5), irq(9)]) == 2  # no message for pins that wait or are masked


@pytest.mark.parametrize(("pin", "vector"), [(5, 0x45), (9, 0x49)])
async def test_a_refused_line_waits_and_is_sent_once(pin, vector):
    blocked = []
    ioapic, out, _ = make({5: EDGE_45, 9: LEVEL_49}, on_blocked=lambda: blocked.append(ioapic.waiting))
    out.full = True
    assert ioapic.try_inject(irq(pin, Action.ASSERT)) is False
    assert blocked == [{pin}]
    assert not read(ioapic, 0x10 + 2 * pin) & REMOTE_IRR
    out.full = False
    await ioapic.inject(irq(pin, Action.ASSERT))
    assert (out.vectors, ioapic.waiting, out.waits) == ([vector], frozenset(), 1)
    await ioapic.inject(irq(pin, Action.ASSERT))
    await ioapic.flush()
    assert (out.vectors, out.waits) == ([vector], 1)


async def test_lowering_a_line_never_waits_for_the_sink_behind():
    ioapic, out, _ = make({5: EDGE_45})
    out.full = True
    assert ioapic.try_inject(irq(5, Action.ASSERT)) is False
    assert ioapic.try_inject(irq(5, Action.DEASSERT)) is True
    await ioapic.inject(irq(5, Action.DEASSERT))
    assert (ioapic.waiting, out.waits) == ({5}, 0)  # the edge that came before is still owed
    out.full = False
    assert ioapic.try_inject(irq(5, Action.DEASSERT)) is True
    assert (out.vectors, ioapic.waiting) == ([0x45], frozenset())


def test_an_exception_of_the_sink_behind_counts_as_a_refusal():
    ioapic, out, _ = make({5: EDGE_45})

    def try_inject(interrupt):
        raise LookupError(interrupt)

    out.try_inject = try_inject
    assert ioapic.try_inject(irq(5)) is False


async def test_what_nobody_would_repeat_waits_for_flush():
    blocked = []
    ioapic, out, _ = make({5: EDGE_45 | MASKED, 9: LEVEL_49, 3: 0x43}, on_blocked=lambda: blocked.append(None))
    ioapic.try_inject(irq(5))
    ioapic.try_inject(irq(9, Action.ASSERT))
    out.full = True
    program(ioapic, 5, EDGE_45)
    assert (ioapic.waiting, len(blocked)) == ({5}, 1)
    ioapic.eoi(0x49)
    assert (ioapic.waiting, len(blocked)) == ({5, 9}, 2)
    assert ioapic.set_irq(3, 1) == 0
    assert (ioapic.waiting, len(blocked)) == ({3, 5, 9}, 3)
    task = asyncio.create_task(ioapic.flush())
    await asyncio.sleep(0)
    assert (out.waits, task.done()) == (1, False)
    out.room.set()
    await task
    assert (out.vectors, ioapic.waiting, out.waits) == ([0x49, 0x43, 0x45, 0x49], frozenset(), 3)


def test_a_waiting_request_goes_out_with_the_pins_next_event():
    ioapic, out, _ = make({5: EDGE_45})
    out.full = True
    ioapic.set_irq(5, 1)
    ioapic.set_irq(5, 0)
    assert ioapic.try_inject(irq(5)) is False
    assert ioapic.waiting == {5}
    out.full = False
    assert ioapic.try_inject(irq(5)) is True
    assert (out.vectors, ioapic.waiting) == ([0x45], frozenset())


@pytest.mark.parametrize("pin", [5, 9])
@pytest.mark.parametrize("failure", [LookupError, asyncio.CancelledError])
async def test_what_could_not_be_sent_waits_on(pin, failure):
    ioapic, out, _ = make({5: EDGE_45, 9: LEVEL_49})
    out.error = failure()
    with pytest.raises(failure):
        await ioapic.inject(irq(pin, Action.ASSERT))
    assert ioapic.waiting == {pin}
    with pytest.raises(failure):
        await ioapic.flush()
    assert ioapic.waiting == {pin}
    out.error = None
    await ioapic.flush()
    assert (len(out.vectors), ioapic.waiting) == (1, frozenset())


async def test_a_pulse_that_could_not_be_sent_is_the_callers():
    ioapic, out, _ = make({5: EDGE_45, 9: LEVEL_49})
    out.error = LookupError()
    for pin in (5, 9):
        with pytest.raises(LookupError):
            await ioapic.inject(irq(pin))
    assert ioapic.waiting == frozenset()
    out.error = None
    await ioapic.inject(irq(9))
    assert out.vectors == [0x49]


async def test_a_level_message_under_way_is_not_sent_twice():
    ioapic, out, _ = make({9: LEVEL_49})
    out.full = True
    task = asyncio.create_task(ioapic.inject(irq(9, Action.ASSERT)))
    await asyncio.sleep(0)
    assert ioapic.try_inject(irq(9, Action.ASSERT)) is True
    await ioapic.inject(irq(9, Action.ASSERT))
    await ioapic.flush()
    assert out.waits == 1
    out.room.set()
    await task
    assert out.vectors == [0x49]


def test_a_late_refusal_does_not_undo_the_message_after_it():
    ioapic, out, _ = make({9: LEVEL_49})

    def try_inject(interrupt):
        out.interrupts.append(interrupt)
        if len(out.interrupts) > 1:
            return True
        ioapic.eoi(0x49)  # meanwhile, an EOI of the same vector sends the line again, and that one is taken
        return False

    out.try_inject = try_inject
    assert ioapic.try_inject(irq(9, Action.ASSERT)) is False
    assert (len(out.interrupts), read(ioapic, 0x22), ioapic.waiting) == (2, LEVEL_49 | REMOTE_IRR, frozenset())


def test_callables_are_called_without_the_lock():
    # Another thread uses the controller while a callable waits for it: with the lock held this would never end.
    done = []

    def elsewhere():
        thread = threading.Thread(target=lambda: ioapic.set_irq(23, 0))
        thread.start()
        thread.join(timeout=60)
        done.append(not thread.is_alive())
        return False

    def ack(gsi):
        elsewhere()

    def on_blocked():
        elsewhere()

    def try_inject(interrupt):
        return elsewhere()

    ioapic, out, _ = make({9: LEVEL_49 | MASKED}, on_blocked=on_blocked, resample=lambda _gsi: elsewhere())
    ioapic.bind(ack)
    out.try_inject = try_inject
    ioapic.try_inject(irq(9, Action.ASSERT))
    program(ioapic, 9, LEVEL_49)
    ioapic.eoi(0x49)
    assert done == [True] * 6  # resample, message, blocked; ack, message, blocked


@pytest.mark.stress
def test_a_vcpu_and_the_loop_lose_no_interrupt():
    ioapic, out, _ = make({9: LEVEL_49, 11: LEVEL | 0x4B, 5: EDGE_45})
    arrived = threading.Semaphore(0)
    acked = threading.Semaphore(0)
    vectors = []
    rounds = 2000

    def try_inject(interrupt):
        vectors.append(interrupt.route.data & 0xFF)
        arrived.release()
        return True

    def ack(gsi):
        ioapic.try_inject(irq(gsi, Action.DEASSERT))
        acked.release()

    out.try_inject = try_inject
    ioapic.bind(ack)

    def vcpu():
        for index in range(3 * rounds):
            assert arrived.acquire(timeout=60)
            ioapic.eoi(vectors[index])

    thread = threading.Thread(target=vcpu)
    thread.start()
    for _ in range(rounds):
        assert ioapic.try_inject_batch([irq(9, Action.ASSERT), irq(11, Action.ASSERT), irq(5)]) == 3
        for _ in range(3):
            assert acked.acquire(timeout=60)
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert sorted(vectors) == [0x45] * rounds + [0x49] * rounds + [0x4B] * rounds


# ---------------------------------------------------------------------------------------------------------- snapshots


def busy():
    """An IOAPIC with something in every register, and nothing waiting for the sink behind it."""
    ioapic, out, _ = make({5: EDGE_45 | MASKED, 9: LEVEL_49, 11: LEVEL | 0x4B, 12: 0x4C})
    program(ioapic, 13, 0x14D | LOGICAL | LOW_ACTIVE, 0x0700_0000)
    write(ioapic, 0, 0x0300_0000)
    ioapic.try_inject_batch([irq(5), irq(9, Action.ASSERT), irq(12, Action.ASSERT)])
    ioapic.set_irq(11, 1)
    ioapic.mmio_write(SELECT, 0x1A)
    out.interrupts.clear()
    return ioapic, out


def test_a_snapshot_goes_through_json_and_carries_on():
    ioapic, out = busy()
    state = ioapic.snapshot()
    twin_out = Out()
    twin = IoApic(twin_out)
    twin.restore(json.loads(json.dumps(state)))
    assert (twin.snapshot(), twin_out.vectors) == (state, [])
    for each in (ioapic, twin):
        each.mmio_write(WINDOW, EDGE_45)
        each.try_inject(irq(9, Action.DEASSERT))
        each.eoi(0x49)
        each.eoi(0x4B)
        each.try_inject(irq(12, Action.ASSERT))
        each.try_inject(irq(13))
    assert out.vectors == [0x45, 0x4B, 0x4D]
    assert twin_out.interrupts == out.interrupts


def test_a_request_that_waited_goes_out_at_restore():
    ioapic, out, _ = make({5: EDGE_45, 9: LEVEL_49})
    out.full = True
    ioapic.set_irq(5, 1)
    ioapic.set_irq(9, 1)
    state = ioapic.snapshot()
    ioapic, out, acks = make()
    ioapic.restore(state)
    assert (out.vectors, acks, ioapic.waiting) == ([0x45, 0x49], [], frozenset())
    blocked = []
    ioapic, out, _ = make(on_blocked=lambda: blocked.append(None))
    out.full = True
    ioapic.restore(state)
    assert (ioapic.waiting, len(blocked)) == ({5, 9}, 2)


def test_a_refusal_from_before_a_restore_undoes_nothing_of_it():
    ioapic, out, _ = make({9: LEVEL_49})
    other, _, _ = make({9: LEVEL_49})
    other.set_irq(9, 1)
    state = other.snapshot()

    def try_inject(interrupt):
        ioapic.restore(state)
        return False

    out.try_inject = try_inject
    ioapic.try_inject(irq(9, Action.ASSERT))
    assert ioapic.snapshot() == state


def with_entry(state, pin, bits):
    entries = list(state["entries"])
    entries[pin] = bits
    return state | {"entries": entries}


GOOD: dict[str, Any] = busy()[0].snapshot()
BAD = {
    "no mapping": [],
    "empty": {},
    "another version": GOOD | {"version": 2},
    "another hardware": GOOD | {"hardware_version": 0x11},
    "an unknown field": GOOD | {"colour": 1},
    "a missing field": {name: value for name, value in GOOD.items() if name != "irr"},
    "an id too large": GOOD | {"id": 16},
    "a register too large": GOOD | {"select": 256},
    "lines too many": GOOD | {"raised": 1 << 24},
    "a number that cannot be printed": with_entry(GOOD, 3, 10**5000),
    "a field that cannot be printed": GOOD | {-(10**5000): 0},
    "asserted too many": GOOD | {"asserted": 1 << 24},
    "requests too many": GOOD | {"irr": 1 << 24},
    "entries that are no list": GOOD | {"entries": {}},
    "too few entries": GOOD | {"entries": GOOD["entries"][1:]},
    "an entry that is text": with_entry(GOOD, 3, "0"),
    "an entry that is true": with_entry(GOOD, 3, True),
    "an entry too large": with_entry(GOOD, 3, 2**64),
    "a reserved bit": with_entry(GOOD, 3, MASKED | 1 << 17),
    "a delivery under way": with_entry(GOOD, 3, MASKED | 1 << 12),
    "a remote IRR on an edge": with_entry(GOOD, 3, MASKED | REMOTE_IRR),
    "a level request without its line": GOOD | {"asserted": 0},
}


@pytest.mark.parametrize("state", BAD.values(), ids=BAD.keys())
def test_a_bad_snapshot_changes_nothing(state):
    ioapic, out = busy()
    with pytest.raises(SnapshotError):
        ioapic.restore(state)
    assert (ioapic.snapshot(), out.interrupts) == (GOOD, [])
    ioapic.restore(GOOD)


# --------------------------------------------------------------------------------------------------------- properties

pins = st.sampled_from([5, 6, 9, 10])
operations = st.one_of(
    st.tuples(st.just("inject"), pins, st.sampled_from(Action)),
    st.tuples(st.just("set_irq"), pins, st.booleans()),
    st.tuples(st.just("eoi"), pins),
    st.tuples(st.just("mask"), pins, st.booleans()),
    st.tuples(st.just("full"), st.booleans()),
)


@settings(max_examples=300)
@given(st.lists(operations, max_size=50))
def test_messages_are_what_each_pin_owes(sequence):
    # A second reading of the rules, pin by pin: 5 and 6 are edges, 9 and 10 levels, and each has its own vector.
    ioapic, out, acks = make({5: 0x55, 6: 0x56, 9: LEVEL | 0x59, 10: LEVEL | 0x5A})
    holders = {pin: set() for pin in (5, 6, 9, 10)}
    owed = dict.fromkeys(holders, False)  # edge pins: risen, and no message yet
    unended = dict.fromkeys(holders, False)  # level pins: message out, no EOI yet
    masked = dict.fromkeys(holders, False)
    expected = []
    full = False

    def send(pin):
        wants = bool(holders[pin]) and not unended[pin] if pin >= 9 else owed[pin]
        if not wants or masked[pin]:
            return None
        if full:
            return False
        expected.append(0x50 + pin)
        owed[pin] = False
        unended[pin] = pin >= 9
        return True

    def hold(pin, holder, up):
        was_high = bool(holders[pin])
        (holders[pin].add if up else holders[pin].discard)(holder)
        if pin < 9 and not was_high and holders[pin]:
            owed[pin] = True

    for operation in sequence:
        match operation:
            case ("full", value):
                full = out.full = value
            case ("inject", pin, Action.PULSE):
                before = owed[pin]
                hold(pin, "device", True)
                sent = send(pin)
                if sent is False:
                    owed[pin] = before
                hold(pin, "device", False)
                assert ioapic.try_inject(irq(pin)) is (sent is not False)
            case ("inject", pin, action):
                hold(pin, "resampler", action is Action.ASSERT)
                sent = send(pin)
                assert ioapic.try_inject(irq(pin, action)) is (sent is not False or action is Action.DEASSERT)
            case ("set_irq", pin, up):
                hold(pin, "device", up)
                send(pin)
                ioapic.set_irq(pin, up)
            case ("eoi", pin):
                unended[pin] = False
                send(pin)
                acks.clear()
                ioapic.eoi(0x50 + pin)
                assert acks == [pin]
            case ("mask", pin, value):
                masked[pin] = value
                send(pin)
                low = read(ioapic, 0x10 + 2 * pin)
                write(ioapic, 0x10 + 2 * pin, low & ~MASKED | MASKED * value)
        assert out.vectors == expected
        assert [bool(read(ioapic, 0x10 + 2 * pin) & REMOTE_IRR) for pin in unended] == list(unended.values())
        twin, twin_out, _ = make()
        twin_out.full = True
        twin.restore(json.loads(json.dumps(ioapic.snapshot())))
        assert (twin.snapshot(), twin.waiting) == (ioapic.snapshot(), ioapic.waiting)
    out.full = False
    for pin in holders:
        low = read(ioapic, 0x10 + 2 * pin)
        write(ioapic, 0x10 + 2 * pin, low & ~MASKED)
    assert ioapic.waiting == frozenset()
