"""The machine's map: where everything is in the guest's memory, among its ports, and on its interrupt lines.

Memory as the guest finds it::

    0x0000_0500  GDT                     read once, before Linux has its own
    0x0000_7000  boot_params             what is to be said to Linux
    0x0000_9000  page tables             as the GDT
    0x0002_0000  command line
    0x000e_0000  ACPI tables             up to 0x0010_0000
    0x0100_0000  kernel                  where it wants to be (16 MiB); it unpacks itself there
    ...          initramfs               at the end of the RAM below 3 GiB
    0xc000_0000  PCI                     up to 0xfebf_ffff
    0xfec0_0000  IOAPIC                  in the kernel, as the next
    0xfee0_0000  local APICs
    0xfffb_d000  three pages of KVM's own
    0x1_0000_0000  the RAM that is more than 3 GiB
"""

from __future__ import annotations

from typing import Final

from aioirqfd.pci import bus

GDT: Final = 0x500
BOOT_PARAMS: Final = 0x7000
PAGE_TABLES: Final = 0x9000
COMMAND_LINE: Final = 0x20000
LOW_END: Final = 0x9FC00
"""Where the RAM below 1 MiB ends that Linux may use: a PC has its BIOS's data there, and further on video memory and the BIOS."""
ACPI: Final = 0xE0000
HIGH: Final = 0x100000
"""From here on all RAM is Linux's."""
IOAPIC: Final = 0xFEC00000
LOCAL_APIC: Final = 0xFEE00000
TSS: Final = 0xFFFBD000

PCI_MEMORY: Final = bus.MEMORY
PCI_PORTS: Final = bus.PORTS
PCI_CONFIG_PORTS: Final = range(0xCF8, 0xD00)

COM1_PORTS: Final = range(0x3F8, 0x400)
COM2_PORTS: Final = range(0x2F8, 0x300)
PANIC_PORTS: Final = range(0x505, 0x506)
PM1_EVENT: Final = range(0x600, 0x604)
PM1_CONTROL: Final = range(0x604, 0x606)
RESET: Final = range(0x606, 0x607)
RESET_VALUE: Final = 1

COM1_GSI: Final = 4
COM2_GSI: Final = 3
SCI: Final = 9
"""The gsi of the ACPI events; level-triggered, active high."""
PCI_SLOTS: Final = range(1, bus.SLOTS)
"""Slot 0 is the host bridge's."""
