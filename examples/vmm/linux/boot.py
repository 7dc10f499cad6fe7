"""Linux's 64-bit boot protocol: what a boot loader leaves in memory for the kernel that it enters.

That is the kernel, the initramfs, the command line, and boot_params ("the zero page"), which says where they are and which memory is
RAM. Beside the protocol, the ACPI tables, which a PC's firmware would have put there.
"""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING, Final

from examples.vmm.linux import acpi
from examples.vmm.linux import address_map as at
from examples.vmm.linux.bzimage import HEADER
from examples.vmm.linux.errors import BootError

if TYPE_CHECKING:
    from aioirqfd.kvm import GuestRam
    from examples.vmm.linux.bzimage import BzImage

_RAM, _RESERVED = 1, 2
_OTHER_LOADER: Final = 0xFF
_LOADED_HIGH: Final = 1
_MIB: Final = 1 << 20


def load(ram: GuestRam, kernel: BzImage, *, initramfs: bytes = b"", command_line: str = "", cpus: int = 1) -> None:
    """Put everything where Linux finds it.

    Args:
        ram: The guest's memory, still zero.
        kernel: The kernel.
        initramfs: The first file system; empty: none.
        command_line: The kernel's.
        cpus: For the ACPI tables.

    Raises:
        BootError: The memory is too small, or the command line too long.
        ValueError: So many CPUs cannot be had.
    """
    text = command_line.encode()
    if len(text) > kernel.longest_command_line:
        raise BootError(
            f"the command line has {len(text)} bytes: {kernel.name} takes {kernel.longest_command_line} at most"
        )
    initramfs_at = _place_of(initramfs, ram, kernel)
    ram.write(kernel.address, kernel.code)
    ram.write(initramfs_at, initramfs)
    ram.write(at.COMMAND_LINE, text + b"\0")
    ram.write(at.ACPI, acpi.tables(cpus))

    params = bytearray(4096)

    def put(offset: int, size: int, value: int) -> None:
        params[offset : offset + size] = value.to_bytes(size, "little")

    params[HEADER : HEADER + len(kernel.header)] = kernel.header
    put(0x210, 1, _OTHER_LOADER)
    put(0x211, 1, params[0x211] | _LOADED_HIGH)
    put(0x214, 4, kernel.address)
    put(0x218, 4, initramfs_at if initramfs else 0)
    put(0x21C, 4, len(initramfs))
    put(0x228, 4, at.COMMAND_LINE)
    put(0x070, 8, at.ACPI)
    e820 = _memory_map(ram)
    put(0x1E8, 1, len(e820))
    for index, (start, end, kind) in enumerate(e820):
        struct.pack_into("<QQI", params, 0x2D0 + 20 * index, start, end - start, kind)
    ram.write(at.BOOT_PARAMS, params)


def _memory_map(ram: GuestRam) -> list[tuple[int, int, int]]:
    """The e820 map, as a PC's BIOS gives it: start, end and kind of each range."""
    low, *more = ram.regions
    return [
        (0, at.LOW_END, _RAM),
        (at.LOW_END, at.HIGH, _RESERVED),
        (at.HIGH, low.size, _RAM),
        *((region.guest_phys_addr, region.guest_phys_addr + region.size, _RAM) for region in more),
    ]


def _place_of(initramfs: bytes, ram: GuestRam, kernel: BzImage) -> int:
    """Where the initramfs goes: at the end of the RAM, on a page's start, and out of the way of the kernel that unpacks itself."""
    end = min(ram.regions[0].size, kernel.initrd_limit) // mmap.PAGESIZE * mmap.PAGESIZE
    size = -(-len(initramfs) // mmap.PAGESIZE) * mmap.PAGESIZE
    place = end - size
    kernel_end = kernel.address + kernel.room
    if place < kernel_end:
        least = -(-(kernel_end + size) // _MIB)
        raise BootError(
            f"{end // _MIB} MiB of memory are too little for {kernel.name} and an initramfs of {len(initramfs)} bytes:"
            f" they take {least} MiB while they are unpacked, and Linux wants some more"
        )
    return place
