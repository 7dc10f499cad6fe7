"""The code of each AML term, as the ACPI specification has it."""

from __future__ import annotations

import pytest

from examples.vmm.linux import aml

pytestmark = pytest.mark.alike


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (0, "00"),
        (1, "01"),
        (2, "0a02"),
        (0xFF, "0aff"),
        (0x100, "0b0001"),
        (0xFFFF, "0bffff"),
        (0x10000, "0c00000100"),
        (0xFFFF_FFFF, "0cffffffff"),
        (1 << 32, "0e0000000001000000"),
        ("QEMU0001", "0d" + b"QEMU0001".hex() + "00"),
        (aml.EisaId("PNP0A03"), "0c41d00a03"),
        (aml.EisaId("PNP0501"), "0c41d00501"),
    ],
)
def test_a_value_after_its_name(value, code):
    assert bytes(aml.Name("_UID", value)).hex() == "08" + b"_UID".hex() + code


@pytest.mark.parametrize(
    ("path", "code"), [("_S5", b"_S5_"), ("\\_SB_", b"\\_SB_"), ("\\_SB.PCI0", b"\\\x2e_SB_PCI0"), ("A", b"A___")]
)
def test_a_name(path, code):
    assert bytes(aml.Name(path, 0)) == b"\x08" + code + b"\0"


@pytest.mark.parametrize("path", ["FIVE5", "A.B.C", "_SB.TOOLONG"])
def test_what_is_no_name(path):
    with pytest.raises(ValueError, match="is no AML name"):
        aml.Name(path, 0)


# The length counts itself: 62 bytes of contents are the most with one byte of length, 4093 with two.
@pytest.mark.parametrize(
    ("contents", "length"),
    [
        (4, "05"),
        (62, "3f"),
        (63, "4104"),
        (4093, "4fff"),
        (4094, "810001"),
        ((1 << 20) - 4, "8fffff"),
        ((1 << 20) - 3, "c1000001"),
    ],
)
def test_the_length_of_a_scope(contents, length):
    filling = aml.Term(bytes(contents - 4))
    assert bytes(aml.Scope("AAAA", filling)).hex() == "10" + length + b"AAAA".hex() + bytes(filling).hex()


def test_a_term_that_is_too_long():
    with pytest.raises(ValueError, match="too much for one AML term"):
        aml.Scope("AAAA", aml.Term(bytes(1 << 28)))


def test_devices_nest():
    inner = aml.Device("BBBB", aml.Name("_UID", 1))
    assert bytes(inner) == b"\x5b\x82\x0bBBBB\x08_UID\x01"
    assert bytes(aml.Scope("AAAA", inner)) == b"\x10\x12AAAA" + bytes(inner)


def test_a_package_counts_its_values():
    assert bytes(aml.Package(1, aml.Package(2), "x")) == b"\x12\x0b\x03\x01\x12\x04\x01\x0a\x02\x0dx\0"


@pytest.mark.parametrize(
    ("resource", "code"),
    [
        (aml.Io(range(0x3F8, 0x400)), "4701f803f8030108"),
        (aml.IrqNoFlags(4), "221000"),
        (aml.WordBusNumber(range(1)), "880d00020c0000000000000000000100"),
        (aml.WordIo(range(0x1000, 0x10000)), "880d00010c0300000010ffff000000f0"),
        (aml.DWordMemory(range(0xC0000000, 0xFEC00000)), "871700000c0100000000000000c0ffffbffe000000000000c03e"),
    ],
)
def test_resources_are_a_buffer_with_an_end(resource, code):
    assert bytes(resource).hex() == code
    size = len(bytes(resource)) + 2
    assert bytes(aml.ResourceTemplate(resource)).hex() == f"11{size + 3:02x}0a{size:02x}{code}7900"
