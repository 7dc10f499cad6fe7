"""The ACPI tables: that each is found from the RSDP, adds up, and is what ACPI's own compiler takes it for."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess

import pytest

from examples.vmm.linux import acpi
from examples.vmm.linux import address_map as at

pytestmark = pytest.mark.alike


def table(image: bytes, address: int) -> bytes:
    start = address - at.ACPI
    (length,) = struct.unpack_from("<I", image, start + 4)
    return image[start : start + length]


def found(cpus: int = 2) -> dict[str, bytes]:
    """All tables by their signatures, by the way that the guest takes."""
    image = acpi.tables(cpus)
    assert image[:8] == b"RSD PTR "
    (xsdt,) = struct.unpack_from("<Q", image, 24)
    tables = {"XSDT": table(image, xsdt)}
    for (address,) in struct.iter_unpack("<Q", tables["XSDT"][36:]):
        one = table(image, address)
        tables[one[:4].decode()] = one
    facs, dsdt = struct.unpack_from("<II", tables["FACP"], 36)
    assert struct.unpack_from("<Q", tables["FACP"], 140) == (dsdt,)
    assert facs % 64 == 0
    return tables | {"FACS": table(image, facs), "DSDT": table(image, dsdt)}


def test_the_rsdp_leads_to_all_of_them():
    assert set(found()) == {"XSDT", "FACP", "FACS", "DSDT", "APIC"}
    assert all(contents[:4].decode() == name for name, contents in found().items())


def test_the_rsdp_adds_up_in_both_ways():
    image = acpi.tables(1)
    assert sum(image[:20]) % 256 == 0
    assert sum(image[:36]) % 256 == 0
    assert struct.unpack_from("<BxxxxI", image, 15) == (2, 36)


@pytest.mark.parametrize("name", ["XSDT", "FACP", "DSDT", "APIC"])
def test_a_table_adds_up(name):
    assert sum(found()[name]) % 256 == 0


def test_the_facs_is_as_long_as_it_says():
    assert len(found()["FACS"]) == 64


@pytest.mark.parametrize("cpus", [1, 2, 254])
def test_they_fit_where_a_guest_expects_them(cpus):
    assert len(acpi.tables(cpus)) <= at.HIGH - at.ACPI


@pytest.mark.parametrize("cpus", [0, 255])
def test_more_cpus_than_there_are_ids_for(cpus):
    with pytest.raises(ValueError, match=r"cpus is 1\.\.254"):
        acpi.tables(cpus)


def test_the_madt_has_each_cpu_the_ioapic_and_the_line_of_acpi():
    body = found(3)["APIC"][44:]
    entries = []
    while body:
        entries.append(body[: body[1]])
        body = body[body[1] :]
    assert [entry[:8].hex() for entry in entries[:3]] == ["0008000001000000", "0008010101000000", "0008020201000000"]
    assert [entry.hex() for entry in entries[3:]] == ["010c03000000c0fe00000000", "020a0009090000000d00"]


@pytest.fixture(scope="module")
def disassembled(tmp_path_factory):
    """What ``iasl`` makes of each table; and it compiles that again, without a word."""
    if shutil.which("iasl") is None:
        pytest.skip("needs iasl; on Debian: apt-get install acpica-tools")
    folder = tmp_path_factory.mktemp("acpi")
    sources = {}
    for name, contents in found().items():
        (folder / f"{name}.dat").write_bytes(contents)
        subprocess.run(["iasl", "-d", f"{name}.dat"], cwd=folder, check=True, capture_output=True, timeout=60)
        sources[name] = (folder / f"{name}.dsl").read_text("utf-8")
        again = ["iasl", "-p", f"{name}.again", f"{name}.dsl"]
        said = subprocess.run(again, cwd=folder, check=True, capture_output=True, text=True, timeout=60).stdout
        assert "0 Errors, 0 Warnings, 0 Remarks" in said, said
    return sources


def field(source: str, name: str) -> str:
    """A field of a data table, as the disassembler shows it; the first of this name."""
    match = re.search(rf"{re.escape(name)}[^:\n]* : (.*)", source)
    assert match is not None, source
    return match[1]


class TestAsIaslReadsThem:
    def test_the_fadt(self, disassembled):
        source = disassembled["FACP"]
        names = ["SCI Interrupt", "PM1A Event Block Address", "PM1A Control Block Address", "Value to cause reset"]
        assert [field(source, name) for name in names] == ["0009", "00000600", "00000604", "01"]
        registers = re.findall(r"Bit Width : (\w+)\n.*\n.*Access Width : (\w+).*\n.*Address : (\w+)", source)
        assert [(width, address) for width, _, address in registers if int(address, 16)] == [
            ("08", "0000000000000606"),
            ("20", "0000000000000600"),
            ("10", "0000000000000604"),
        ]
        assert field(source, "Reset Register Supported (V2)") == "1"
        assert field(source, "Hardware Reduced (V5)") == "0"
        assert field(source, "8042 Present on ports 60/64 (V2)") == "0"

    def test_the_pci_bus(self, disassembled):
        source = disassembled["DSDT"]
        assert "Device (PCI0)" in source
        ranges = re.findall(r"0x([0-9A-F]+),\s*// Range M\w+", source)
        assert [int(number, 16) for number in ranges] == [
            *(0, 0),
            *(0xCF8, 0xCF8),
            *(0x1000, 0xFFFF),
            *(0xC0000000, 0xFEBFFFFF),
            *(0x3F8, 0x3F8),
            *(0x505, 0x505),
        ]

    def test_the_interrupt_of_each_slot(self, disassembled):
        routes = re.findall(r"0x([0-9A-F]{4})FFFF, *\n *Zero, *\n *Zero, *\n *0x([0-9A-F]{2})", disassembled["DSDT"])
        assert [(int(slot, 16), int(gsi, 16)) for slot, gsi in routes] == [(n, 16 + n % 8) for n in range(1, 32)]

    def test_the_serial_port_and_the_panic_port(self, disassembled):
        source = disassembled["DSDT"]
        assert re.search(r'Device \(COM1\)[^}]*"PNP0501"[^}]*IRQNoFlags \(\)\s*\{4\}', source)
        assert re.search(r'Device \(PEVT\)\s*\{\s*Name \(_HID, "QEMU0001"\)', source)

    def test_off_is_the_type_that_the_power_port_knows(self, disassembled):
        package = re.search(r"Name \(\\?_S5,? [^{]*\{([^}]*)\}", disassembled["DSDT"])
        assert package is not None
        assert package[1].replace(" ", "").split() == ["0x05,", "0x05,", "Zero,", "Zero"]
