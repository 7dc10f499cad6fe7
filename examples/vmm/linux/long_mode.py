"""The first vCPU as the 64-bit boot protocol wants it: in long mode already, with flat segments, and each address mapped to itself."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from examples.vmm.linux import address_map as at

if TYPE_CHECKING:
    from aioirqfd.kvm import GuestRam, Vcpu
    from aioirqfd.kvm.structures import KvmSegment

_PE, _ET, _PG = 1 << 0, 1 << 4, 1 << 31  # CR0
_PAE: Final = 1 << 5  # CR4
_LME, _LMA = 1 << 8, 1 << 10  # EFER
_CODE_SELECTOR, _DATA_SELECTOR = 0x10, 0x18  # __BOOT_CS and __BOOT_DS, which the protocol names
_CODE, _DATA, _BUSY_TSS = 11, 3, 11  # types of segments: executable and readable; writable; both accessed
_CODE_DESCRIPTOR: Final = 0x00AF_9B00_0000_FFFF
_DATA_DESCRIPTOR: Final = 0x00CF_9300_0000_FFFF

_PAGE: Final = 4096
_LARGE_PAGE: Final = 2 << 20
_GIB: Final = 4
_PRESENT_WRITABLE: Final = 0b11
_IS_LARGE: Final = 1 << 7


def enter(vcpu: Vcpu, ram: GuestRam, entry: int) -> None:
    """Let the vCPU, when it is run, begin at an address, with boot_params at hand.

    Args:
        vcpu: Which has not run yet.
        ram: Gets the GDT and the page tables.
        entry: The address.
    """
    ram.write(at.GDT, struct.pack("<4Q", 0, 0, _CODE_DESCRIPTOR, _DATA_DESCRIPTOR))
    ram.write(at.PAGE_TABLES, _page_tables())
    sregs = vcpu.get_sregs()
    sregs.gdt.base, sregs.gdt.limit = at.GDT, 4 * 8 - 1
    sregs.idt.base, sregs.idt.limit = 0, 0
    _set(sregs.cs, _CODE_SELECTOR, _CODE, is_64_bit=True)
    for segment in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        _set(segment, _DATA_SELECTOR, _DATA)
    sregs.tr.type = _BUSY_TSS  # VMX enters long mode with no other
    sregs.cr0 = _PE | _ET | _PG
    sregs.cr3 = at.PAGE_TABLES
    sregs.cr4 = _PAE
    sregs.efer = _LME | _LMA
    vcpu.set_sregs(sregs)
    regs = vcpu.get_regs()
    regs.rip, regs.rsi = entry, at.BOOT_PARAMS
    regs.rflags = 0x2  # the bit that is always set; interrupts off
    vcpu.set_regs(regs)


def _set(segment: KvmSegment, selector: int, kind: int, *, is_64_bit: bool = False) -> None:
    """A flat segment: what the CPU keeps of its descriptor in the GDT."""
    segment.base, segment.limit, segment.selector = 0, 0xFFFF_FFFF, selector
    segment.type, segment.s, segment.present, segment.dpl, segment.g = kind, 1, 1, 0, 1
    segment.l, segment.db = is_64_bit, not is_64_bit


def _page_tables() -> bytes:
    """The first 4 GiB, each address to itself: one entry in the topmost table, four in the next, 512 large pages in each of four."""
    third = at.PAGE_TABLES + _PAGE
    second = third + _PAGE
    top = [third | _PRESENT_WRITABLE]
    of_gib = [second + index * _PAGE | _PRESENT_WRITABLE for index in range(_GIB)]
    pages = [page * _LARGE_PAGE | _IS_LARGE | _PRESENT_WRITABLE for page in range(512 * _GIB)]
    return b"".join(struct.pack(f"<{len(table)}Q", *table).ljust(_PAGE, b"\0") for table in (top, of_gib, pages))
