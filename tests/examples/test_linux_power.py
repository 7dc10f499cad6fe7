"""How a Linux guest ends by itself: what it writes where, and what does not end it."""

from __future__ import annotations

import pytest

from examples.vmm.linux.machine import Ending
from examples.vmm.linux.ports import PortTable
from examples.vmm.linux.power import Power

PM1_STATUS, PM1_ENABLE, PM1_CONTROL, RESET, KEYBOARD, RESET_CONTROL, PANIC = (
    0x600,
    0x602,
    0x604,
    0x606,
    0x64,
    0xCF9,
    0x505,
)
SLEEP = 1 << 13


@pytest.fixture
def endings():
    return []


@pytest.fixture
def ports(endings):
    table = PortTable()
    table.add(Power(endings.append))
    return table


@pytest.mark.parametrize(
    ("port", "size", "value", "ending"),
    [
        (PM1_CONTROL, 2, SLEEP | 5 << 10 | 1, Ending.POWER_OFF),
        (RESET, 1, 1, Ending.RESET),
        (KEYBOARD, 1, 0xFE, Ending.RESET),
        (RESET_CONTROL, 1, 0x06, Ending.RESET),
        (PANIC, 1, 1, Ending.PANIC),
    ],
)
def test_the_guest_ends(ports, endings, port, size, value, ending):
    ports.port_out(port, size, value)
    assert endings == [ending]


@pytest.mark.parametrize(
    ("port", "size", "value"),
    [
        (PM1_CONTROL, 2, 5 << 10),  # the type alone
        (PM1_CONTROL, 2, SLEEP | 3 << 10),  # a sleep that there is not
        (PM1_STATUS, 2, 0xFFFF),
        (RESET, 1, 0),
        (KEYBOARD, 1, 0xAD),
        (RESET_CONTROL, 1, 0x02),  # what sort of reset, which comes first
        (PANIC, 1, 2),
    ],
)
def test_what_does_not_end_it(ports, endings, port, size, value):
    ports.port_out(port, size, value)
    assert endings == []


def test_linux_switches_off_in_two_writes(ports, endings):
    value = ports.port_in(PM1_CONTROL, 2)
    ports.port_out(PM1_CONTROL, 2, value | 5 << 10)
    assert endings == []
    ports.port_out(PM1_CONTROL, 2, value | 5 << 10 | SLEEP)
    assert endings == [Ending.POWER_OFF]
    assert ports.port_in(PM1_CONTROL, 2) == 5 << 10 | 1  # the sleep bit reads as 0


def test_nothing_happens_and_what_shall_interrupt_is_kept(ports):
    ports.port_out(PM1_ENABLE, 2, 0x0120)
    ports.port_out(PM1_STATUS, 2, 0xFFFF)
    assert [ports.port_in(port, 2) for port in (PM1_STATUS, PM1_ENABLE)] == [0, 0x0120]
    assert ports.port_in(PM1_STATUS, 4) == 0x0120 << 16
    ports.port_out(PM1_STATUS, 4, 0x0001_FFFF)
    assert ports.port_in(PM1_ENABLE, 2) == 1


def test_acpi_is_on_from_the_beginning_and_a_panic_can_be_told(ports):
    assert (ports.port_in(PM1_CONTROL, 2), ports.port_in(PANIC, 1)) == (1, 1)
