"""Which device answers at which port, and who answers for the rest."""

from __future__ import annotations

import pytest

from examples.vmm.linux.ports import PortTable

pytestmark = pytest.mark.alike


class Device:
    def __init__(self, name, *ports, log):
        self.name = name
        self.ports = ports
        self.log = log

    def port_in(self, port, size):
        self.log.append((self.name, "in", port, size))
        return 7

    def port_out(self, port, size, value):
        self.log.append((self.name, "out", port, size, value))

    def save_state(self):
        return {}

    def restore_state(self, state):
        pass

    def __repr__(self):
        return self.name


class Bus(Device):
    def mmio_read(self, address, size):
        self.log.append((self.name, "read", address, size))
        return 8

    def mmio_write(self, address, size, value):
        self.log.append((self.name, "write", address, size, value))


@pytest.fixture
def log():
    return []


@pytest.fixture
def table(log):
    table = PortTable()
    table.add(Device("one", range(0x10, 0x12), range(0x20, 0x21), log=log))
    table.add(Device("two", range(0x12, 0x13), log=log))
    return table


def test_the_first_port_says_whose_it_is(table, log):
    assert [table.port_in(port, 2) for port in (0x10, 0x11, 0x12, 0x20)] == [7, 7, 7, 7]
    table.port_out(0x11, 4, 5)
    assert log == [
        ("one", "in", 0x10, 2),
        ("one", "in", 0x11, 2),
        ("two", "in", 0x12, 2),
        ("one", "in", 0x20, 2),
        ("one", "out", 0x11, 4, 5),
    ]


@pytest.mark.parametrize(("size", "ones"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFFFFFF), (8, (1 << 64) - 1), (3, 0xFFFFFF)])
def test_without_a_bus_all_ones_are_read(table, log, size, ones):
    table.port_out(0x13, size, 0)
    table.mmio_write(0xC0000000, size, 0)
    assert (table.port_in(0x13, size), table.mmio_read(0xC0000000, size)) == (ones, ones)
    assert log == []


def test_a_bus_has_the_rest(table, log):
    table.bus = Bus("bus", log=log)
    assert (table.port_in(0xCF8, 4), table.mmio_read(0xC0000000, 4)) == (7, 8)
    table.port_out(0xCFC, 1, 2)
    table.mmio_write(0xC0000000, 8, 3)
    table.port_in(0x10, 1)
    assert log == [
        ("bus", "in", 0xCF8, 4),
        ("bus", "read", 0xC0000000, 4),
        ("bus", "out", 0xCFC, 1, 2),
        ("bus", "write", 0xC0000000, 8, 3),
        ("one", "in", 0x10, 1),
    ]


def test_a_port_that_is_taken_leaves_all_as_it_was(table, log):
    with pytest.raises(ValueError, match="port 0x12 of three is two's already"):
        table.add(Device("three", range(0x30, 0x31), range(0x12, 0x14), log=log))
    assert table.port_in(0x30, 1) == 0xFF
