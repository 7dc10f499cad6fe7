"""The ACPI tables: what a PC's firmware tells of the machine that cannot be found by probing.

The RSDP points to the XSDT, which points to the others: the FADT (power management, and where the DSDT and the FACS are) and the
MADT (the CPUs and the IOAPIC). The DSDT has the devices, in AML (``aml.py``): the PCI bus with its windows and interrupts, the serial
port, the panic port, and how to switch off. Chapter 5 of the ACPI specification has every field.
"""

from __future__ import annotations

import struct
from typing import Final

from aioirqfd.pci.bus import pin_gsi
from examples.vmm.linux import address_map as at
from examples.vmm.linux.aml import (
    Device,
    DWordMemory,
    EisaId,
    Io,
    IrqNoFlags,
    Name,
    Package,
    ResourceTemplate,
    Scope,
    WordBusNumber,
    WordIo,
)

MOST_CPUS: Final = 254
"""As many as local APIC ids of a byte can name beside the IOAPIC, whose id is the next; 255 is all of them."""

_WBINVD, _PROC_C1, _POWER_BUTTON, _SLEEP_BUTTON, _RESET_REGISTER = 1 << 0, 1 << 2, 1 << 4, 1 << 5, 1 << 10
_LEGACY_DEVICES, _NO_VGA, _NO_RTC = 1 << 0, 1 << 2, 1 << 5
_PCAT_COMPATIBLE = 1
_ACTIVE_HIGH_LEVEL = 0b1101
SLEEP_TYPE_OFF: Final = 5
"""What the guest writes to PM1_CONTROL's SLP_TYP to switch off."""


def tables(cpus: int) -> bytes:
    """All tables for a machine of so many CPUs, as they are to be at ``address_map.ACPI``; the RSDP is the first.

    Raises:
        ValueError: More CPUs than there are ids for.
    """
    if not 1 <= cpus <= MOST_CPUS:
        raise ValueError(f"cpus is 1..{MOST_CPUS}, not {cpus}")
    image = bytearray(64)  # for the RSDP

    def put(table: bytes) -> int:
        address = at.ACPI + len(image)
        image.extend(table + bytes(-len(table) % 64))
        return address

    facs = put(_facs())
    dsdt = put(_dsdt())
    listed = (put(_fadt(facs=facs, dsdt=dsdt)), put(_madt(cpus)))
    rsdp = _rsdp(put(_table("XSDT", 1, struct.pack(f"<{len(listed)}Q", *listed))))
    image[: len(rsdp)] = rsdp
    return bytes(image)


def _table(signature: str, revision: int, body: bytes) -> bytes:
    """A table: a header of 36 bytes, then the body. All its bytes together are 0 modulo 256, by the header's checksum."""
    table = bytearray(
        struct.pack(
            "<4sIBB6s8sI4sI", signature.encode(), 36 + len(body), revision, 0, b"AIOIRQ", b"AIOIRQFD", 1, b"AIOI", 1
        )
        + body
    )
    table[9] = -sum(table) & 0xFF
    return bytes(table)


def _rsdp(xsdt: int) -> bytes:
    """Where all begins. It has two checksums: of the 20 bytes that ACPI 1.0 knew, and of all."""
    rsdp = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, b"AIOIRQ", 2, 0, 36, xsdt, 0))
    rsdp[8] = -sum(rsdp[:20]) & 0xFF
    rsdp[32] = -sum(rsdp) & 0xFF
    return bytes(rsdp)


def _facs() -> bytes:
    """What firmware and system share across sleep, which there is none of. It has a head of its own, without checksum."""
    return struct.pack("<4sIII", b"FACS", 64, 0, 0).ljust(64, b"\0")


def _fadt(*, facs: int, dsdt: int) -> bytes:
    """The fixed hardware: the power management registers, the reset register, and which old devices are not there."""
    flags = _WBINVD | _PROC_C1 | _POWER_BUTTON | _SLEEP_BUTTON | _RESET_REGISTER  # the buttons' bits: there are none
    body = bytearray(276 - 36)

    def put(
        offset: int, layout: str, *values: int
    ) -> None:  # offsets as the specification has them, from the header on
        struct.pack_into(f"<{layout}", body, offset - 36, *values)

    def register(
        offset: int, ports: range
    ) -> None:  # a generic address: the space (ports), its width in bits, the address
        put(offset, "BBBBQ", 1, 8 * len(ports), 0, 1 if len(ports) == 1 else 2, ports.start)

    put(36, "II", facs, dsdt)
    put(46, "H", at.SCI)
    put(56, "I", at.PM1_EVENT.start)
    put(64, "I", at.PM1_CONTROL.start)
    put(88, "BB", len(at.PM1_EVENT), len(at.PM1_CONTROL))
    put(96, "HH", 101, 1001)  # the latencies of C2 and C3, so long that there are none
    put(109, "H", _LEGACY_DEVICES | _NO_VGA | _NO_RTC)
    put(112, "I", flags)
    register(116, at.RESET)
    put(128, "B", at.RESET_VALUE)
    put(140, "Q", dsdt)
    register(148, at.PM1_EVENT)
    register(172, at.PM1_CONTROL)
    return _table("FACP", 6, bytes(body))


def _madt(cpus: int) -> bytes:
    """The interrupt controllers: a local APIC for each CPU, the IOAPIC with gsi 0 on its pin 0, and the one line that is not as ISA's.

    There is no override of irq 0, which PCs have for their timer: here the PIT is on pin 0 of the IOAPIC, too.
    """
    body = struct.pack("<II", at.LOCAL_APIC, _PCAT_COMPATIBLE)
    for cpu in range(cpus):
        body += struct.pack("<BBBBI", 0, 8, cpu, cpu, 1)  # enabled
    body += struct.pack("<BBBBII", 1, 12, cpus, 0, at.IOAPIC, 0)
    body += struct.pack("<BBBBIH", 2, 10, 0, at.SCI, at.SCI, _ACTIVE_HIGH_LEVEL)
    return _table("APIC", 5, body)


def _dsdt() -> bytes:
    bus = Device(
        "PCI0",
        Name("_HID", EisaId("PNP0A03")),
        Name(
            "_CRS",
            ResourceTemplate(
                WordBusNumber(range(1)), Io(at.PCI_CONFIG_PORTS), WordIo(at.PCI_PORTS), DWordMemory(at.PCI_MEMORY)
            ),
        ),
        # Of each slot, all functions (0xffff), INTA (0): no link device (0), but a gsi.
        Name("_PRT", Package(*(Package(slot << 16 | 0xFFFF, 0, 0, pin_gsi(slot)) for slot in at.PCI_SLOTS))),
    )
    serial = Device(
        "COM1",
        Name("_HID", EisaId("PNP0501")),
        Name("_UID", 1),
        Name("_CRS", ResourceTemplate(Io(at.COM1_PORTS), IrqNoFlags(at.COM1_GSI))),
    )
    panic = Device("PEVT", Name("_HID", "QEMU0001"), Name("_CRS", ResourceTemplate(Io(at.PANIC_PORTS))))
    off = Name("\\_S5_", Package(SLEEP_TYPE_OFF, SLEEP_TYPE_OFF, 0, 0))
    return _table("DSDT", 2, bytes(Scope("\\_SB_", bus, serial, panic)) + bytes(off))
