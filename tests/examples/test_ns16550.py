"""The registers of the serial chip, as a driver finds them."""

from __future__ import annotations

import pytest

from examples.ns16550 import (
    DATA,
    ENABLE,
    FIFO,
    IDENTIFY,
    LATCH,
    LINE,
    LOOP,
    MODEM,
    MODEM_STATUS,
    OUT2,
    RTS,
    SCRATCH,
    STATUS,
    Ns16550,
)

FIFOS_ON, CLEAR_INPUT = 0x01, 0x02


@pytest.fixture
def chip():
    return Ns16550()


@pytest.fixture
def open_chip(chip):
    """As a driver leaves it that has opened it, with a threshold of 8."""
    chip.write(IDENTIFY, 0x80 | FIFOS_ON)
    chip.write(MODEM, RTS | OUT2)
    return chip


def test_after_a_reset(chip):
    chip.write(SCRATCH, 1)
    chip.write(ENABLE, 5)
    chip.reset()
    assert [chip.read(offset) for offset in range(8)] == [0, 0, 1, 0, 0, 0x60, 0xB0, 0]


def test_registers_keep_the_bits_that_there_are(chip):
    for offset, kept in ((ENABLE, 0x0F), (LINE, 0xFF), (MODEM, 0x1F), (SCRATCH, 0xFF)):
        chip.write(offset, 0xFF)
        assert chip.read(offset) == kept
        chip.write(offset, 0)
    for offset in (STATUS, MODEM_STATUS):
        before = chip.read(offset)
        chip.write(offset, 0x0F)
        assert chip.read(offset) == before


def test_the_divisor_hides_two_registers(chip):
    chip.write(ENABLE, 5)
    chip.write(LINE, LATCH | 3)
    chip.write(0, 0x0C)
    chip.write(1, 0x01)
    assert (chip.divisor, chip.read(0), chip.read(1)) == (0x010C, 0x0C, 1)
    chip.write(LINE, 3)
    assert (chip.read(ENABLE), chip.read(LINE), chip.sent) == (5, 3, b"")


def test_linux_finds_a_16550a(chip):
    # drivers/tty/serial/8250: what its autoconfig asks, and the answers that make it a 16550A and none of its cousins.
    chip.write(ENABLE, 0)
    assert chip.read(ENABLE) & 0x0F == 0
    chip.write(ENABLE, 0x0F)
    assert chip.read(ENABLE) & 0x0F == 0x0F
    chip.write(ENABLE, 0)
    chip.write(MODEM, LOOP | 0x0A)
    assert chip.read(MODEM_STATUS) & 0xF0 == 0x90
    chip.write(MODEM, 0)
    chip.write(LINE, 0xBF)
    chip.write(2, 0)
    chip.write(LINE, 0)
    chip.write(IDENTIFY, FIFOS_ON)
    assert chip.read(IDENTIFY) >> 6 == 3
    for line in (0x80, 0xBF, 0xE0):  # no enhanced features, of whatever maker
        chip.write(LINE, line)
        assert chip.read(2) == 0xC1
    for line in (0, 0x80):  # and no FIFO of 64
        chip.write(LINE, line)
        chip.write(IDENTIFY, FIFOS_ON | 0x20)
        assert chip.read(IDENTIFY) >> 5 == 6


@pytest.mark.parametrize(("control", "size"), [(FIFOS_ON, FIFO), (0, 1)])
def test_looped_back_the_fifo_has_its_size_and_says_what_it_lost(chip, control, size):
    chip.write(IDENTIFY, control)
    chip.write(ENABLE, 0x04)
    chip.write(MODEM, LOOP | RTS)
    assert chip.room == 0  # the wire outside is cut
    for value in range(size):
        chip.write(DATA, value)
    assert chip.read(IDENTIFY) & 0x0F == 0x01
    chip.write(DATA, 99)
    assert chip.read(IDENTIFY) & 0x0F == 0x06
    assert (chip.read(STATUS), chip.read(STATUS)) == (0x63, 0x61)
    assert chip.read(IDENTIFY) & 0x0F == 0x01
    assert [chip.read(DATA) for _ in range(size)] == [*range(size)]
    assert (chip.read(STATUS), chip.read(DATA), chip.sent) == (0x60, 0, b"")


@pytest.mark.parametrize(
    ("modem", "wires"),
    [(1, 0x20), (2, 0x10), (4, 0x40), (8, 0x80), (0x0F, 0xF0)],
    ids=["DTR", "RTS", "OUT1", "OUT2", "all"],
)
def test_looped_back_the_outputs_are_the_inputs(chip, modem, wires):
    chip.write(MODEM, LOOP | modem)
    assert chip.read(MODEM_STATUS) == wires


def test_input_is_welcome_once_the_driver_listens(chip):
    assert chip.room == 0
    chip.write(MODEM, RTS)
    assert chip.room == 1
    chip.write(IDENTIFY, FIFOS_ON)
    assert chip.room == FIFO
    chip.receive(b"abc")
    assert chip.room == FIFO - 3
    chip.write(IDENTIFY, FIFOS_ON)
    assert chip.room == FIFO - 3
    chip.write(IDENTIFY, FIFOS_ON | CLEAR_INPUT)
    assert chip.room == FIFO
    chip.receive(b"abc")
    chip.write(IDENTIFY, 0)  # switching the FIFOs clears them
    assert (chip.room, chip.read(STATUS)) == (1, 0x60)


def test_input_interrupts_from_the_threshold_on_and_below_it_for_being_late(open_chip):
    open_chip.write(ENABLE, 0x01)
    open_chip.receive(b"1234567")
    assert (open_chip.read(IDENTIFY), open_chip.interrupt) == (0xCC, True)
    open_chip.receive(b"8")
    assert open_chip.read(IDENTIFY) == 0xC4
    assert bytes(open_chip.read(DATA) for _ in range(8)) == b"12345678"
    assert (open_chip.read(IDENTIFY), open_chip.interrupt) == (0xC1, False)


def test_the_most_urgent_reason_comes_first(open_chip):
    open_chip.write(MODEM, LOOP)
    for value in range(FIFO + 1):
        open_chip.write(DATA, value)
    open_chip.write(MODEM, OUT2)
    open_chip.write(ENABLE, 0x07)
    causes = [open_chip.read(IDENTIFY)]
    open_chip.read(STATUS)
    causes.append(open_chip.read(IDENTIFY))
    for _ in range(FIFO):
        open_chip.read(DATA)
    causes += [open_chip.read(IDENTIFY), open_chip.read(IDENTIFY)]
    assert causes == [0xC6, 0xC4, 0xC2, 0xC1]


def test_room_to_send_is_told_once_for_each_byte(open_chip):
    open_chip.write(ENABLE, 0x02)
    assert (open_chip.read(IDENTIFY), open_chip.read(IDENTIFY)) == (0xC2, 0xC1)
    open_chip.write(DATA, 65)
    assert (open_chip.read(IDENTIFY), open_chip.read(IDENTIFY)) == (0xC2, 0xC1)
    assert open_chip.take() == b"A"
    assert open_chip.read(IDENTIFY) == 0xC1  # nothing new: there was room all along


def test_room_to_send_is_told_again_to_whoever_asks_again(open_chip):
    # Linux has a timer beside the interrupt if this does not hold, and another one if the first time does not.
    for _ in range(2):
        open_chip.write(ENABLE, 0x02)
        assert open_chip.read(IDENTIFY) == 0xC2
        open_chip.write(ENABLE, 0)
        assert open_chip.read(IDENTIFY) == 0xC1


def test_without_room_the_guest_is_told_so_and_of_room_when_there_is_some():
    chip = Ns16550(limit=2 * FIFO)
    chip.write(MODEM, OUT2)
    chip.write(ENABLE, 0x02)
    for value in range(FIFO):
        chip.write(DATA, value)
    assert (chip.read(STATUS), chip.read(IDENTIFY)) == (0x60, 0x02)
    chip.write(DATA, FIFO)
    assert (chip.read(STATUS), chip.interrupt) == (0, False)
    chip.write(ENABLE, 0)
    chip.write(ENABLE, 0x02)
    assert not chip.interrupt
    for value in range(FIFO + 1, 2 * FIFO + 3):
        chip.write(DATA, value)
    assert chip.dropped == 3
    assert chip.take() == bytes(range(2 * FIFO))
    assert (chip.read(STATUS), chip.interrupt, chip.read(IDENTIFY)) == (0x60, True, 0x02)


@pytest.mark.parametrize(("modem", "up"), [(0, False), (OUT2, True), (OUT2 | LOOP, False)])
def test_the_wire_is_connected_by_out2(chip, modem, up):
    chip.write(ENABLE, 0x02)
    chip.write(MODEM, modem)
    assert (chip.interrupt, chip.read(IDENTIFY)) == (up, 0x02)
