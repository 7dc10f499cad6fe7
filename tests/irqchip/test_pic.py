"""The 8259 pair: programming, priorities, ends of interrupt, and the sink it is."""

from __future__ import annotations

import json
import threading
from collections import Counter

import pytest

from aioirqfd.errors import RoutingError, SnapshotError
from aioirqfd.irqchip import Pic
from aioirqfd.irqfd.interrupt import Action, Interrupt, IrqchipPin, Msi
from aioirqfd.irqfd.routing import RoutingTable
from aioirqfd.irqfd.sink import AckSink, BatchSink, RoutedSink

pytestmark = pytest.mark.alike

MASTER, MASTER_DATA, SLAVE, SLAVE_DATA, ELCR1, ELCR2 = 0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1
EOI, READ_IRR, READ_ISR, POLL = 0x20, 0x0A, 0x0B, 0x0C
SPECIAL_MASK_ON, SPECIAL_MASK_OFF = 0x68, 0x48


def pulse(pin, gsi=None):
    return Interrupt(pin if gsi is None else gsi, IrqchipPin("pic", pin), Action.PULSE)


def raised(pin, gsi=None):
    return Interrupt(pin if gsi is None else gsi, IrqchipPin("pic", pin), Action.ASSERT)


def lowered(pin, gsi=None):
    return Interrupt(pin if gsi is None else gsi, IrqchipPin("pic", pin), Action.DEASSERT)


def specific_eoi(pin):
    return 0x60 | pin


def initialise(pic, *, master_icw4=0x01, slave_icw4=0x01):
    """As a PC's firmware does: vectors 0x30 and 0x38, nothing masked."""
    for command, data, words in (
        (MASTER, MASTER_DATA, (0x30, 0x04, master_icw4)),
        (SLAVE, SLAVE_DATA, (0x38, 0x02, slave_icw4)),
    ):
        pic.io_write(command, 0x11)
        for word in words:
            pic.io_write(data, word)


def make(**icw4):
    """An initialised pair, and the list of gsis it acknowledges."""
    pic = Pic()
    initialise(pic, **icw4)
    acks = []
    pic.bind(acks.append)
    return pic, acks


def irr(pic, port=MASTER):
    pic.io_write(port, READ_IRR)
    return pic.io_read(port)


def isr(pic, port=MASTER):
    pic.io_write(port, READ_ISR)
    return pic.io_read(port)


# ------------------------------------------------------------------------------------------------------ programming


def test_it_is_a_sink_of_every_tier_it_claims():
    assert isinstance(Pic(), BatchSink)
    assert isinstance(Pic(), AckSink)
    assert isinstance(Pic(), RoutedSink)


@pytest.mark.parametrize(("port", "data", "pin"), [(MASTER, MASTER_DATA, 3), (SLAVE, SLAVE_DATA, 11)])
def test_icw2_sets_the_vector_base_and_its_low_bits_are_the_pin(port, data, pin):
    pic, _ = make()
    pic.io_write(port, 0x11)
    for value in (0x57, 0x00, 0x01):
        pic.io_write(data, value)
    pic.try_inject(pulse(pin))
    assert pic.intack() == 0x53


@pytest.mark.parametrize(
    ("icw1", "words"),
    [(0x11, 3), (0x10, 2), (0x13, 2), (0x12, 1)],
    ids=["icw3 and icw4", "no icw4", "single", "single, no icw4"],
)
def test_the_sequence_has_as_many_words_as_icw1_says(icw1, words):
    pic = Pic()
    pic.io_write(MASTER, icw1)
    for _ in range(words):
        pic.io_write(MASTER_DATA, 0x08)
        assert pic.io_read(MASTER_DATA) == 0
    pic.io_write(MASTER_DATA, 0xA5)
    assert pic.io_read(MASTER_DATA) == 0xA5


def test_icw1_without_ic4_switches_the_modes_of_icw4_off():
    pic, acks = make(master_icw4=0x13)
    pic.io_write(MASTER, 0x10)
    pic.io_write(MASTER_DATA, 0x30)
    pic.io_write(MASTER_DATA, 0x04)
    pic.try_inject(pulse(3))
    assert pic.intack() == 0x33
    assert (isr(pic), acks) == (0x08, [])


def test_icw1_without_ic4_ends_the_special_fully_nested_mode():
    pic, _ = make(master_icw4=0x11)
    pic.io_write(MASTER, 0x10)
    pic.io_write(MASTER_DATA, 0x30)
    pic.io_write(MASTER_DATA, 0x04)
    pic.try_inject(pulse(12))
    pic.intack()
    pic.try_inject(pulse(9))
    assert not pic.output


def test_icw1_ends_rotation_in_automatic_eoi():
    pic, _ = make(master_icw4=0x03)
    pic.io_write(MASTER, 0x80)
    initialise(pic, master_icw4=0x03)
    pic.try_inject_batch([pulse(3), pulse(4)])
    assert pic.intack() == 0x33
    pic.try_inject(pulse(3))
    assert [pic.intack(), pic.intack()] == [0x33, 0x34]


def test_an_ocw3_that_does_not_choose_a_register_keeps_the_choice():
    pic, _ = make()
    pic.try_inject_batch([pulse(3), pulse(4)])
    pic.intack()
    pic.io_write(MASTER, READ_ISR)
    pic.io_write(MASTER, 0x08)
    assert pic.io_read(MASTER) == 0x08
    pic.io_write(MASTER, READ_IRR)
    pic.io_write(MASTER, 0x09)
    assert pic.io_read(MASTER) == 0x10


def test_icw1_with_ic4_keeps_them_until_icw4_comes():
    pic, acks = make(master_icw4=0x03)
    pic.io_write(MASTER, 0x11)
    pic.try_inject(pulse(3))
    pic.intack()
    assert (isr(pic), acks) == (0, [3])


def test_icw1_clears_mask_rotation_special_mask_and_the_read_choice():
    pic, _ = make()
    pic.io_write(MASTER_DATA, 0xFF)
    pic.io_write(MASTER, 0xC3)  # pin 3 lowest
    pic.io_write(MASTER, SPECIAL_MASK_ON)
    pic.io_write(MASTER, READ_ISR)
    pic.io_write(MASTER, POLL)
    initialise(pic)
    assert pic.io_read(MASTER_DATA) == 0
    pic.try_inject_batch([pulse(6), pulse(1)])
    assert pic.io_read(MASTER) == 0x42  # the IRR
    assert pic.intack() == 0x31
    pic.io_write(MASTER_DATA, 0x02)
    assert not pic.output  # pin 1 is in service, and masking it opens the way to 6 in the special mask mode only


def test_a_single_master_takes_pin_2_for_a_plain_pin_and_has_no_slave():
    pic = Pic()
    initialise(pic)
    pic.io_write(MASTER, 0x13)
    pic.io_write(MASTER_DATA, 0x30)
    pic.io_write(MASTER_DATA, 0x01)
    pic.try_inject(pulse(9))
    assert not pic.output
    pic.try_inject(pulse(2))
    assert pic.intack() == 0x32


def test_before_any_initialisation_requests_are_taken_and_vectors_start_at_0():
    pic = Pic()
    assert pic.try_inject(pulse(5))
    assert irr(pic) == 0x20  # row I19
    assert pic.intack() == 5


@pytest.mark.parametrize(("port", "stuck"), [(ELCR1, 0xF8), (ELCR2, 0xDE)])
def test_pins_0_1_2_8_and_13_cannot_be_level_triggered(port, stuck):
    pic = Pic()
    pic.io_write(port, 0xFF)
    assert pic.io_read(port) == stuck


@pytest.mark.parametrize("port", [0x1F, 0x22, 0xA2, 0x4D2])
def test_other_ports_and_values_are_refused(port):
    pic = Pic()
    before = pic.snapshot()
    with pytest.raises(ValueError, match=hex(port)):
        pic.io_write(port, 0)
    with pytest.raises(ValueError, match=hex(port)):
        pic.io_read(port)
    for value in (-1, 0x100):
        with pytest.raises(ValueError, match=r"0\.\.255"):
            pic.io_write(MASTER_DATA, value)
    assert pic.snapshot() == before


# ------------------------------------------------------------------------------------------------------- edge, level


def test_an_edge_stays_pending_after_its_pulse_and_is_taken_once():
    pic, acks = make()
    assert pic.try_inject(pulse(3))
    assert pic.output
    assert irr(pic) == 0x08
    assert pic.intack() == 0x33
    assert (irr(pic), isr(pic), pic.output) == (0, 0x08, False)
    pic.io_write(MASTER, EOI)
    assert (isr(pic), pic.output, acks) == (0, False, [3])


def test_pulses_of_a_waiting_edge_are_merged():
    pic, acks = make()
    for _ in range(3):
        assert pic.try_inject(pulse(3))
    assert pic.intack() == 0x33
    pic.io_write(MASTER, EOI)
    assert (pic.output, acks) == (False, [3])  # row W05: three writes, one interrupt


def test_an_edge_during_service_is_pending_after_the_eoi():
    pic, _ = make()
    pic.try_inject(pulse(3))
    pic.intack()
    pic.try_inject(pulse(3))
    assert not pic.output
    pic.io_write(MASTER, EOI)
    assert pic.output
    assert pic.intack() == 0x33


def test_a_held_edge_line_interrupts_once():
    pic, _ = make()
    pic.try_inject(raised(3))
    pic.intack()
    pic.io_write(MASTER, EOI)
    assert not pic.output
    pic.try_inject(raised(3))
    assert not pic.output
    pic.try_inject(lowered(3))
    pic.try_inject(raised(3))
    assert pic.output


@pytest.mark.parametrize(("pin", "port", "bit"), [(5, ELCR1, 0x20), (9, ELCR2, 0x02)])
def test_a_pulse_on_a_level_pin_leaves_nothing(pin, port, bit):
    pic, _ = make()
    pic.io_write(port, bit)
    assert pic.try_inject(pulse(pin))
    assert (irr(pic), irr(pic, SLAVE), pic.output) == (0, 0, False)  # row W06


@pytest.mark.parametrize(("pin", "vector"), [(5, 0x35), (9, 0x39)])
def test_a_level_line_interrupts_again_until_it_is_lowered(pin, vector):
    pic, acks = make()
    pic.io_write(ELCR1, 0x20)
    pic.io_write(ELCR2, 0x02)
    pic.try_inject(raised(pin))
    for _ in range(2):
        assert pic.intack() == vector
        assert not pic.output
        pic.io_write(SLAVE, EOI)
        pic.io_write(MASTER, EOI)
        assert pic.output
    pic.try_inject(lowered(pin))
    assert not pic.output
    assert [gsi for gsi in acks if gsi != 2] == [pin, pin]


def test_the_elcr_turns_a_waiting_request_into_what_the_pin_is():
    pic, _ = make()
    pic.try_inject(pulse(5))
    pic.io_write(ELCR1, 0x20)
    assert (irr(pic), pic.output) == (0, False)
    pic.io_write(ELCR1, 0)
    pic.set_irq(5, 1)
    pic.intack()
    pic.io_write(MASTER, EOI)
    assert irr(pic) == 0
    pic.io_write(ELCR1, 0x20)
    assert (irr(pic), pic.output) == (0x20, True)
    pic.io_write(ELCR1, 0)
    pic.set_irq(5, 0)
    assert (irr(pic), pic.output) == (0x20, True)


def test_set_irq_says_what_the_kernel_says():
    pic, _ = make()
    assert [pic.set_irq(3, level) for level in (1, 1, 0, 7, 0)] == [1, 1, 1, 0, 1]  # row L02 and its quirk
    pic.io_write(ELCR2, 0x02)
    assert [pic.set_irq(9, level) for level in (1, 1, 0)] == [1, 0, 1]
    pic.io_write(MASTER_DATA, 0x20)
    assert [pic.set_irq(5, level) for level in (1, 0)] == [-1, -1]  # seen on Linux 6.18: masked, whatever the level
    assert irr(pic) == 0x28


@pytest.mark.parametrize("pin", [-1, 16])
def test_set_irq_refuses_a_pin_that_is_not_there(pin):
    with pytest.raises(RoutingError):
        Pic().set_irq(pin, 1)


def test_a_line_is_up_while_the_device_or_a_resampler_holds_it():
    pic, _ = make()
    pic.io_write(ELCR1, 0x20)
    pic.try_inject(raised(5))
    pic.try_inject(pulse(5))
    assert pic.output
    pic.set_irq(5, 1)
    pic.try_inject(lowered(5))
    assert pic.output
    pic.set_irq(5, 0)
    assert not pic.output


def test_an_edge_pulse_under_a_held_line_is_no_new_edge():
    pic, _ = make()
    pic.try_inject(raised(3))
    pic.intack()
    pic.try_inject(pulse(3))
    pic.io_write(MASTER, EOI)
    assert not pic.output


# ---------------------------------------------------------------------------------------------------------- masking


@pytest.mark.parametrize(("pin", "port", "bit", "vector"), [(3, 0x21, 0x08, 0x33), (12, 0xA1, 0x10, 0x3C)])
def test_a_masked_edge_waits(pin, port, bit, vector):
    pic, _ = make()
    pic.io_write(port, bit)
    pic.try_inject(pulse(pin))
    assert not pic.output
    pic.io_write(port, 0)
    assert pic.output
    assert pic.intack() == vector


def test_masking_the_cascade_keeps_the_whole_slave_waiting():
    pic, _ = make()
    pic.io_write(MASTER_DATA, 0x04)
    pic.try_inject(pulse(12))
    assert (pic.output, irr(pic), irr(pic, SLAVE)) == (False, 0x04, 0x10)
    pic.io_write(MASTER_DATA, 0)
    assert pic.intack() == 0x3C


# --------------------------------------------------------------------------------------------------------- priority


def drain(pic):
    """Take and end everything, in the order it comes: the pins."""
    order = []
    while pic.output:
        vector = pic.intack() - 0x30
        order.append(vector)
        if vector >= 8:
            pic.io_write(SLAVE, EOI)
        pic.io_write(MASTER, EOI)
    return order


def test_fixed_priority_with_the_slave_in_the_place_of_pin_2():
    pic, _ = make()
    assert pic.try_inject_batch([pulse(pin) for pin in range(15, -1, -1) if pin != 2]) == 15
    assert drain(pic) == [0, 1, 8, 9, 10, 11, 12, 13, 14, 15, 3, 4, 5, 6, 7]


def test_set_priority_names_the_lowest():
    pic, _ = make()
    pic.io_write(MASTER, 0xC4)
    pic.io_write(SLAVE, 0xC1)
    pic.try_inject_batch([pulse(pin) for pin in range(16) if pin != 2])
    assert drain(pic) == [5, 6, 7, 0, 1, 10, 11, 12, 13, 14, 15, 8, 9, 3, 4]


def test_higher_interrupts_lower_and_not_the_other_way_round():
    pic, acks = make()
    pic.try_inject(pulse(4))
    assert pic.intack() == 0x34
    pic.try_inject(pulse(6))
    pic.try_inject(pulse(4))
    assert not pic.output
    pic.try_inject(pulse(1))
    assert pic.intack() == 0x31
    assert isr(pic) == 0x12
    pic.io_write(MASTER, EOI)
    assert (isr(pic), acks) == (0x10, [1])
    pic.io_write(MASTER, EOI)
    assert (isr(pic), acks) == (0, [1, 4])
    assert drain(pic) == [4, 6]


def test_rotate_on_non_specific_eoi():
    pic, acks = make()
    pic.try_inject_batch([pulse(3), pulse(6)])
    pic.intack()
    pic.io_write(MASTER, 0xA0)
    pic.try_inject(pulse(3))
    assert (drain(pic), acks) == ([6, 3], [3, 6, 3])


def test_rotate_on_specific_eoi():
    pic, acks = make()
    pic.try_inject_batch([pulse(3), pulse(6), pulse(7)])
    pic.intack()
    pic.io_write(MASTER, 0xE6)
    assert (isr(pic), acks) == (0x08, [6])
    assert pic.intack() == 0x37  # pin 6 is lowest now: 7 is the highest, above 3 in service
    pic.io_write(MASTER, EOI)
    assert isr(pic) == 0x08


def test_rotate_on_non_specific_eoi_with_nothing_in_service_does_nothing():
    pic, acks = make()
    pic.io_write(MASTER, 0xA0)
    pic.try_inject_batch([pulse(7), pulse(0)])
    assert acks == []
    assert drain(pic) == [0, 7]


def test_rotate_in_automatic_eoi_can_be_set_and_cleared():
    pic, acks = make(master_icw4=0x03)
    pic.io_write(MASTER, 0x80)
    pic.try_inject_batch([pulse(3), pulse(4)])
    assert pic.intack() == 0x33
    pic.try_inject(pulse(3))
    assert [pic.intack(), pic.intack()] == [0x34, 0x33]
    pic.io_write(MASTER, 0x00)
    pic.try_inject_batch([pulse(3), pulse(4)])
    assert [pic.intack(), pic.intack()] == [0x34, 0x33]  # 3 stayed the lowest
    pic.try_inject_batch([pulse(3), pulse(4)])
    assert [pic.intack(), pic.intack()] == [0x34, 0x33]  # and 4 did not become it
    assert acks == [3, 4, 3, 4, 3, 4, 3]


def test_ocw2_no_operation():
    pic, acks = make()
    pic.try_inject(pulse(3))
    pic.intack()
    pic.io_write(MASTER, 0x43)
    assert (isr(pic), acks) == (0x08, [])


# --------------------------------------------------------------------------------------------------- end of interrupt


def test_specific_eoi_ends_its_pin_alone():
    pic, acks = make()
    pic.try_inject(pulse(6))
    pic.intack()
    pic.try_inject(pulse(1))
    pic.intack()
    pic.io_write(MASTER, specific_eoi(6))
    assert (isr(pic), acks) == (0x02, [6])


def test_a_specific_eoi_for_a_pin_not_in_service_acknowledges_and_a_non_specific_one_does_not():
    pic, acks = make()
    pic.io_write(MASTER, EOI)
    assert acks == []
    pic.io_write(SLAVE, specific_eoi(4))
    assert acks == [12]  # row R05


def test_slave_and_master_are_ended_each_by_its_own_eoi():
    pic, acks = make()
    pic.try_inject(pulse(10))
    assert pic.intack() == 0x3A
    assert (isr(pic), isr(pic, SLAVE)) == (0x04, 0x04)
    pic.io_write(SLAVE, EOI)
    assert (isr(pic), isr(pic, SLAVE), acks) == (0x04, 0, [10])
    pic.io_write(MASTER, EOI)
    assert (isr(pic), acks) == (0, [10, 2])


def test_automatic_eoi_acknowledges_at_inta():
    pic, acks = make(master_icw4=0x03, slave_icw4=0x03)
    pic.try_inject_batch([pulse(4), pulse(11)])
    assert pic.intack() == 0x3B
    assert acks == [2, 11]  # row R18
    assert pic.intack() == 0x34
    assert (acks, isr(pic), isr(pic, SLAVE)) == ([2, 11, 4], 0, 0)


def test_automatic_eoi_with_a_line_that_ack_lowers_interrupts_once():
    pic, _ = make(master_icw4=0x03)
    pic.io_write(ELCR1, 0x20)

    def ack(gsi):
        pic.try_inject(lowered(gsi))

    pic.bind(ack)
    pic.try_inject(raised(5))
    assert pic.intack() == 0x35
    assert not pic.output


def test_icw1_counts_as_the_end_of_what_it_forgets():
    pic, acks = make()
    pic.io_write(ELCR1, 0x20)
    pic.try_inject_batch([pulse(3), raised(5), pulse(6)])
    assert pic.intack() == 0x33
    pic.io_write(MASTER, 0x11)
    # row R19: the pending edge of 6; 3 was in service and sees no EOI any more. The level line is still up, and pending.
    assert acks == [3, 6]
    assert (pic.io_read(MASTER), isr(pic)) == (0x20, 0)


def test_icw1_forgets_the_level_of_edge_pins_so_that_a_line_raised_again_counts():
    pic, acks = make()
    pic.try_inject(raised(3))
    initialise(pic)
    assert (acks, pic.output) == ([3], False)
    pic.try_inject(raised(3))
    assert pic.output


def test_ack_lowers_the_line_before_the_eoi_returns_and_the_cpu_hears_of_no_second_request():
    changes = []
    pic = Pic(changes.append)
    initialise(pic)
    pic.io_write(ELCR2, 0x02)
    during = []

    def ack(gsi):
        if gsi != 2:
            pic.try_inject(lowered(gsi))
            during.append(pic.output)

    pic.bind(ack)
    pic.try_inject(raised(9))
    assert pic.intack() == 0x39
    pic.io_write(MASTER, EOI)  # the master first: the slave still holds back
    assert not pic.output
    pic.io_write(SLAVE, EOI)
    assert not pic.output
    assert (during, changes) == ([False], [True, False])


def test_ack_may_raise_the_line_again():
    pic, _ = make()
    pic.io_write(ELCR1, 0x20)

    def ack(gsi):
        pic.try_inject(lowered(gsi))
        pic.try_inject(raised(gsi))

    pic.bind(ack)
    pic.try_inject(raised(5))
    pic.intack()
    pic.io_write(MASTER, EOI)
    assert pic.output


def test_a_failing_ack_reaches_the_vcpu_and_leaves_the_output_told():
    changes = []
    pic = Pic(changes.append)
    initialise(pic)

    def ack(gsi):
        raise LookupError(gsi)

    pic.bind(ack)
    pic.try_inject_batch([pulse(3), pulse(4)])
    pic.intack()
    with pytest.raises(LookupError):
        pic.io_write(MASTER, EOI)
    assert (pic.output, changes) == (True, [True, False, True])


# ---------------------------------------------------------------------------------------------------------- spurious


def test_interrupt_7_when_the_request_has_gone():
    pic, acks = make()
    pic.io_write(ELCR1, 0x20)
    pic.try_inject_batch([raised(5), lowered(5)])
    assert pic.intack() == 0x37
    assert (isr(pic), acks) == (0, [])


def test_no_automatic_eoi_for_a_spurious_interrupt():
    pic, acks = make(master_icw4=0x03)
    assert pic.intack() == 0x37
    assert acks == []


def test_interrupt_7_when_the_slave_no_longer_asks():
    pic, _ = make()
    pic.io_write(ELCR2, 0x02)
    pic.try_inject_batch([raised(9), lowered(9)])
    assert (pic.output, pic.intack(), isr(pic)) == (False, 0x37, 0)


def test_interrupt_15_when_the_cascade_asks_and_the_slave_has_nothing():
    pic, acks = make()
    pic.try_inject(pulse(2))
    assert pic.output
    assert pic.intack() == 0x3F
    assert (isr(pic), isr(pic, SLAVE), acks) == (0x04, 0, [])
    pic.io_write(MASTER, EOI)
    assert (isr(pic), pic.output) == (0, False)


# -------------------------------------------------------------------------------------------------------------- poll


def test_a_poll_takes_the_request_into_service():
    pic, acks = make()
    pic.try_inject_batch([pulse(5), pulse(6)])
    pic.io_write(MASTER, POLL)
    assert pic.io_read(MASTER) == 0x85
    assert (pic.output, isr(pic), irr(pic)) == (False, 0x20, 0x40)
    pic.io_write(MASTER, EOI)
    assert (acks, pic.output) == ([5], True)


def test_a_poll_is_for_one_read_at_either_port():
    pic, _ = make()
    pic.io_write(MASTER_DATA, 0x0F)
    pic.try_inject(pulse(5))
    pic.io_write(MASTER, POLL)
    assert pic.io_read(MASTER_DATA) == 0x85
    assert pic.io_read(MASTER_DATA) == 0x0F


def test_a_poll_with_nothing_pending():
    pic, _ = make()
    pic.io_write(SLAVE, POLL)
    assert pic.io_read(SLAVE) == 0x07
    assert isr(pic, SLAVE) == 0


def test_polling_the_slave_alone_lowers_its_line_to_the_master():
    pic, acks = make()
    pic.try_inject(pulse(12))
    pic.io_write(SLAVE, POLL)
    assert pic.io_read(SLAVE) == 0x84
    assert (pic.output, irr(pic), isr(pic), isr(pic, SLAVE)) == (False, 0, 0, 0x10)
    pic.io_write(SLAVE, EOI)
    assert acks == [12]


def test_polling_under_automatic_eoi_acknowledges():
    pic, acks = make(slave_icw4=0x03)
    pic.try_inject(pulse(12))
    pic.io_write(SLAVE, POLL)
    assert pic.io_read(SLAVE_DATA) == 0x84
    assert (acks, isr(pic, SLAVE)) == ([12], 0)


# ----------------------------------------------------------------------------------------------------- special modes


def test_special_mask_mode_lets_all_but_the_masked_one_in():
    pic, acks = make()
    pic.try_inject(pulse(3))
    pic.intack()
    pic.try_inject(pulse(6))
    pic.io_write(MASTER_DATA, 0x08)
    assert not pic.output
    pic.io_write(MASTER, SPECIAL_MASK_ON)
    assert pic.output
    assert pic.intack() == 0x36
    assert isr(pic) == 0x48
    pic.io_write(MASTER, EOI)
    assert (isr(pic), acks) == (0x08, [6])
    pic.io_write(MASTER, EOI)  # the masked one is left to a specific EOI
    assert (isr(pic), acks) == (0x08, [6])
    pic.io_write(MASTER, specific_eoi(3))
    assert (isr(pic), acks) == (0, [6, 3])


def test_special_mask_mode_off_and_an_ocw3_that_does_not_speak_of_it():
    pic, _ = make()
    pic.try_inject_batch([pulse(3), pulse(6)])
    pic.intack()
    pic.io_write(MASTER_DATA, 0x08)
    pic.io_write(MASTER, SPECIAL_MASK_ON)
    pic.io_write(MASTER, 0x08)
    assert pic.output
    pic.io_write(MASTER, 0x28)  # the mode bit without the bit that lets it be set
    assert pic.output
    pic.io_write(MASTER, SPECIAL_MASK_OFF)
    assert not pic.output


@pytest.mark.parametrize(("icw4", "nested"), [(0x01, False), (0x11, True)])
def test_special_fully_nested_mode_lets_the_slave_interrupt_itself(icw4, nested):
    pic, _ = make(master_icw4=icw4)
    pic.try_inject(pulse(12))
    assert pic.intack() == 0x3C
    pic.try_inject_batch([pulse(3), pulse(14)])
    assert not pic.output  # neither a lower pin of the master nor one of the slave
    pic.try_inject(pulse(9))
    assert pic.output is nested
    assert pic.intack() == (0x39 if nested else 0x37)


def test_special_fully_nested_mode_lets_the_masters_other_pins_wait():
    pic, _ = make(master_icw4=0x11)
    pic.try_inject(pulse(3))
    pic.intack()
    pic.try_inject(pulse(3))
    assert not pic.output


# --------------------------------------------------------------------------------------------------------------- sink


@pytest.mark.parametrize("route", [IrqchipPin("ioapic", 3), Msi(0xFEE00000, 0x31)])
async def test_another_route_is_refused(route):
    pic, _ = make()
    for action in Action:
        with pytest.raises(RoutingError):
            pic.try_inject(Interrupt(3, route, action))
        with pytest.raises(RoutingError):
            await pic.inject(Interrupt(3, route, action))
    assert pic.try_inject_batch([pulse(3), pulse(4), Interrupt(5, route), pulse(6)]) == 2
    assert irr(pic) == 0x18
    assert pic.try_inject_batch([Interrupt(5, route)]) == 0
    assert pic.try_inject_batch([]) == 0


async def test_inject_takes_at_once():
    pic, _ = make()
    await pic.inject(pulse(12, gsi=77))
    assert pic.intack() == 0x3C


def test_the_table_maps_a_pin_back_to_its_gsi():
    pic, acks = make()
    pic.set_routing(
        RoutingTable(
            {
                40: [IrqchipPin("pic", 3), IrqchipPin("ioapic", 5)],
                41: IrqchipPin("pic", 12),
                42: IrqchipPin("ioapic", 4),
                43: Msi(0xFEE00000, 0x31),
            }
        )
    )
    for pin in (3, 4, 5, 12):
        pic.try_inject(pulse(pin, gsi=1000))
    drain(pic)
    assert acks == [41, 40]  # the cascade's own pin 2, 4 and 5 lead back to nobody


@pytest.mark.parametrize("order", [(50, 60), (60, 50)])
def test_of_two_gsis_on_a_pin_the_last_listed_is_acknowledged(order):
    pic, acks = make()
    pic.set_routing(RoutingTable(dict.fromkeys(order, IrqchipPin("pic", 3))))
    pic.try_inject(pulse(3, gsi=order[0]))
    drain(pic)
    assert acks == [order[1]]  # row G08


def test_without_a_bound_ack_an_eoi_is_just_an_eoi():
    pic = Pic()
    initialise(pic)
    pic.try_inject(pulse(3))
    assert drain(pic) == [3]


# ------------------------------------------------------------------------------------------------------------- output


def test_on_output_hears_each_change_once():
    changes = []
    pic = Pic(changes.append)
    initialise(pic)
    pic.try_inject_batch([pulse(3), pulse(4)])
    pic.try_inject(pulse(5))
    assert changes == [True]
    pic.intack()
    assert changes == [True, False]
    pic.io_write(MASTER, EOI)
    assert changes == [True, False, True]
    pic.io_write(MASTER_DATA, 0xFF)
    assert changes == [True, False, True, False]


def test_a_cpu_may_take_the_interrupt_inside_on_output():
    # What it causes itself is told after it returns, never inside: no recursion, and no change in the wrong order.
    events = []
    depth = []

    def on_output(level):
        events.append(level)
        depth.append(None)
        assert len(depth) == 1
        if level:
            events.append(pic.intack())
            pic.io_write(MASTER, EOI)
        depth.pop()

    pic = Pic(on_output)
    initialise(pic)
    pic.try_inject(pulse(3))
    pic.try_inject(pulse(4))
    assert events == [True, 0x33, False, True, 0x34, False]


def test_a_failing_on_output_does_not_silence_the_next_change():
    heard = []

    def on_output(level):
        heard.append(level)
        if len(heard) == 1:
            raise LookupError

    pic = Pic(on_output)
    initialise(pic)
    with pytest.raises(LookupError):
        pic.try_inject(pulse(3))
    pic.intack()
    assert heard == [True, False]


def test_callbacks_are_made_without_the_lock():
    # Another thread uses the controller while a callback waits for it: with the lock held this would never end.
    def elsewhere():
        thread = threading.Thread(target=lambda: pic.set_irq(15, 0))
        thread.start()
        thread.join(timeout=60)
        return not thread.is_alive()

    done = []
    pic = Pic(lambda _level: done.append(elsewhere()))
    initialise(pic)
    pic.bind(lambda _gsi: done.append(elsewhere()))
    pic.try_inject(pulse(3))
    pic.intack()
    pic.io_write(MASTER, EOI)
    assert done == [True, True, True]


def test_the_last_word_of_on_output_is_the_level_though_two_threads_change_it():
    # The first thread is held inside on_output(True) while a second one takes the interrupt away.
    inside, go_on = threading.Event(), threading.Event()
    told = []

    def on_output(level):
        if level:
            inside.set()
            assert go_on.wait(timeout=60)
        told.append((level, threading.current_thread().name))

    pic = Pic(on_output)
    initialise(pic)
    first = threading.Thread(target=pic.try_inject, args=(pulse(3),), name="first")
    first.start()
    assert inside.wait(timeout=60)
    assert pic.intack() == 0x33  # returns though the other is still inside
    assert told == []
    go_on.set()
    first.join(timeout=60)
    assert told == [(True, "first"), (False, "first")]


@pytest.mark.stress
def test_a_vcpu_and_the_loop_lose_no_interrupt():
    # Pins 3 and 11 are level lines that ack lowers; 5 takes edges. The loop waits for both acks before the next round.
    ready = threading.Semaphore(0)
    stop = threading.Event()
    pic = Pic(lambda level: ready.release() if level else None)
    initialise(pic)
    pic.io_write(ELCR1, 0x08)
    pic.io_write(ELCR2, 0x08)
    rounds = 2000
    taken = Counter()
    acked = threading.Semaphore(0)

    def ack(gsi):
        if gsi in {3, 11}:
            pic.try_inject(lowered(gsi))
            acked.release()

    pic.bind(ack)

    def vcpu():
        while not stop.is_set():
            assert ready.acquire(timeout=60)
            while pic.output:
                pin = pic.intack() - 0x30
                taken[pin] += 1
                if pin >= 8:
                    pic.io_write(SLAVE, EOI)
                pic.io_write(MASTER, EOI)

    thread = threading.Thread(target=vcpu)
    thread.start()
    for _ in range(rounds):
        pic.try_inject_batch([raised(3), raised(11), pulse(5)])
        assert acked.acquire(timeout=60)
        assert acked.acquire(timeout=60)
    stop.set()
    ready.release()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert (taken[3], taken[11]) == (rounds, rounds)
    assert 1 <= taken[5] <= rounds
    assert set(taken) == {3, 5, 11}
    assert not pic.output


# ---------------------------------------------------------------------------------------------------------- snapshots


def busy():
    """A pair with something in every register."""
    pic, _ = make(master_icw4=0x11)
    pic.io_write(ELCR1, 0x28)
    pic.io_write(ELCR2, 0x02)
    pic.try_inject_batch([pulse(12), raised(3), raised(9), pulse(6)])
    pic.set_irq(5, 1)
    assert pic.intack() == 0x39
    pic.io_write(MASTER_DATA, 0x40)
    pic.io_write(MASTER, 0xC1)
    pic.io_write(SLAVE, READ_ISR)
    return pic


def test_a_snapshot_goes_through_json_and_carries_on():
    pic = busy()
    state = pic.snapshot()
    changes = []
    twin = Pic(changes.append)
    twin.restore(json.loads(json.dumps(state)))
    assert twin.snapshot() == state
    assert changes == ([True] if pic.output else [])
    for each in (pic, twin):
        each.io_write(MASTER_DATA, 0)
        each.io_write(SLAVE, EOI)
        each.io_write(MASTER, EOI)
        each.try_inject(lowered(3))
    expected = drain_with_levels(pic)
    assert drain_with_levels(twin) == expected
    assert len(expected) > 2


def drain_with_levels(pic):
    order = []
    for _ in range(8):
        order.append(pic.intack())
        pic.io_write(SLAVE, EOI)
        pic.io_write(MASTER, EOI)
        for pin in (5, 9):
            pic.set_irq(pin, 0)
            pic.try_inject(lowered(pin))
    return order


def test_a_restore_in_the_middle_of_the_initialisation():
    pic = Pic()
    pic.io_write(MASTER, 0x11)
    pic.io_write(MASTER_DATA, 0x50)
    twin = Pic()
    twin.restore(pic.snapshot())
    twin.io_write(MASTER_DATA, 0x04)
    twin.io_write(MASTER_DATA, 0x03)
    twin.io_write(MASTER_DATA, 0x80)
    assert twin.io_read(MASTER_DATA) == 0x80
    twin.try_inject(pulse(3))
    assert (twin.intack(), isr(twin)) == (0x53, 0)


def test_restoring_lowers_the_output_and_tells_so():
    idle = Pic().snapshot()
    changes = []
    pic = Pic(changes.append)
    pic.try_inject(pulse(3))
    pic.restore(idle)
    assert (pic.output, changes) == (False, [True, False])


def with_(state, path, value):
    state = json.loads(json.dumps(state))
    part = state
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    return state


def without(state, *path):
    state = json.loads(json.dumps(state))
    part = state
    for name in path[:-1]:
        part = part[name]
    del part[path[-1]]
    return state


GOOD = busy().snapshot()
BAD = {
    "no mapping": [],
    "nothing": None,
    "empty": {},
    "another version": with_(GOOD, ["version"], 2),
    "a version that is true": with_(GOOD, ["version"], True),
    "an unknown field": GOOD | {"colour": 1},
    "a missing part": without(GOOD, "slave"),
    "a part that is no mapping": with_(GOOD, ["slave"], 3),
    "a missing register": without(GOOD, "master", "irr"),
    "an unknown register": with_(GOOD, ["master", "dlab"], 0),
    "a register too large": with_(GOOD, ["master", "imr"], 256),
    "a register below 0": with_(GOOD, ["slave", "isr"], -1),
    "a register that is text": with_(GOOD, ["slave", "isr"], "1"),
    "a register that is a fraction": with_(GOOD, ["slave", "isr"], 1.0),
    "a mode that is a number": with_(GOOD, ["master", "poll"], 1),
    "lines too many": with_(GOOD, ["raised"], 1 << 16),
    "a number that cannot be printed": with_(GOOD, ["master", "irr"], 10**5000),
    "a field that cannot be printed": GOOD | {10**5000: 0},
    "a priority above 7": with_(GOOD, ["master", "lowest"], 8),
    "a step that is none": with_(GOOD, ["master", "step"], 1),
    "a vector base with a pin in it": with_(GOOD, ["master", "base"], 0x31),
    "a level timer": with_(GOOD, ["master", "elcr"], 0x29),
    "an edge sensed on a low pin": with_(GOOD, ["master", "sensed"], 0xFF),
    "a level request without its line": with_(GOOD, ["asserted"], 0),
    "a level line without its request": with_(GOOD, ["slave", "irr"], 0),
}


@pytest.mark.parametrize("state", BAD.values(), ids=BAD.keys())
def test_a_bad_snapshot_changes_nothing(state):
    pic = busy()
    before = pic.snapshot()
    with pytest.raises(SnapshotError):
        pic.restore(state)
    assert pic.snapshot() == before
    pic.restore(GOOD)


def test_the_snapshot_is_a_copy():
    pic = busy()
    state = pic.snapshot()
    pic.try_inject(pulse(1))
    assert state == GOOD != pic.snapshot()
