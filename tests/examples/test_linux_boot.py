"""How Linux is loaded: what of a kernel's file is taken, what is refused, and what lies in memory then."""

from __future__ import annotations

import struct

import pytest

from aioirqfd.kvm import GuestRam
from examples.vmm.linux import acpi, boot
from examples.vmm.linux import address_map as at
from examples.vmm.linux.bzimage import BzImage
from examples.vmm.linux.errors import BootError

pytestmark = pytest.mark.alike

MIB = 1 << 20
CODE = bytes(range(1, 256)) * 32
ROOM = 3 * MIB


def image(**changes: tuple[str, object]) -> bytes:
    """A bzImage with a real-mode part of two sectors. Each change: the layout and value of a field, by its hexadecimal offset."""
    fields = {
        "1f1": ("B", 2),  # setup_sects
        "1f4": ("I", len(CODE) // 16),  # syssize
        "1fe": ("H", 0xAA55),
        "201": ("B", 0x6A),  # the end of the header, from 0x202 on
        "202": ("4s", b"HdrS"),
        "206": ("H", 0x20F),  # version
        "211": ("B", 0x00),  # loadflags
        "22c": ("I", 0x7FFFFFFF),  # initrd_addr_max
        "236": ("H", 0x3F),  # xloadflags
        "238": ("I", 100),  # cmdline_size
        "258": ("Q", 0x1000000),  # pref_address
        "260": ("I", ROOM),  # init_size
        **changes,
    }
    data = bytearray(3 * 512)
    for offset, (layout, value) in fields.items():
        struct.pack_into(f"<{layout}", data, int(offset, 16), value)
    return bytes(data) + CODE


class TestKernel:
    def test_what_is_loaded_and_where(self):
        kernel = BzImage(image())
        assert kernel.code == CODE
        assert (kernel.address, kernel.entry, kernel.room) == (0x1000000, 0x1000200, ROOM)
        assert (kernel.longest_command_line, kernel.initrd_limit) == (100, 0x80000000)

    def test_no_number_of_sectors_is_four_of_them(self):
        assert BzImage(image(**{"1f1": ("B", 0), "1f4": ("I", 0)})).code == CODE[2 * 512 :]

    def test_the_header_ends_where_it_says(self):
        assert BzImage(image()).header == image()[0x1F1:0x26C]

    def test_the_room_is_no_less_than_the_code(self):
        assert BzImage(image(**{"260": ("I", 1)})).room == len(CODE)

    @pytest.mark.parametrize(
        ("data", "says"),
        [
            (b"", "vmlinuz is not a bzImage"),
            (b"\x1f\x8b" + bytes(4096), "vmlinuz is not a bzImage"),
            (b"\x7fELF" + bytes(4096), "vmlinuz is an ELF file, such as vmlinux: give the bzImage"),
            (image(**{"1fe": ("H", 0)}), "vmlinuz is not a bzImage"),
            (image(**{"202": ("4s", b"HdrX")}), "vmlinuz is not a bzImage"),
            (image(**{"206": ("H", 0x20B)}), r"vmlinuz speaks boot protocol 2\.11: .* 2\.12"),
            (image(**{"236": ("H", 0x3E)}), "vmlinuz cannot be entered in 64-bit mode"),
            (image()[:-1], "vmlinuz is cut off: 9695 bytes, where its header says 9696"),
        ],
    )
    def test_what_is_refused(self, data, says):
        with pytest.raises(BootError, match=says):
            BzImage(data, "vmlinuz")


@pytest.fixture
def ram():
    with GuestRam(32 * MIB) as ram:
        yield ram


def number(ram: GuestRam, offset: int, size: int) -> int:
    """A field of boot_params."""
    return int.from_bytes(ram.read(at.BOOT_PARAMS + offset, size), "little")


class TestMemory:
    def test_the_kernel(self, ram):
        boot.load(ram, BzImage(image()))
        assert ram.read(0x1000000, len(CODE)) == CODE

    def test_the_header_is_handed_on_and_filled_in(self, ram):
        boot.load(ram, BzImage(image()), initramfs=b"x" * 5000, command_line="quiet")
        assert ram.read(at.BOOT_PARAMS + 0x202, 6) == b"HdrS\x0f\x02"
        assert (number(ram, 0x210, 1), number(ram, 0x211, 1)) == (0xFF, 1)
        assert number(ram, 0x214, 4) == 0x1000000
        assert number(ram, 0x26C, 4) == 0

    def test_the_initramfs_is_at_the_end_on_a_page(self, ram):
        boot.load(ram, BzImage(image()), initramfs=b"x" * 5000)
        assert (number(ram, 0x218, 4), number(ram, 0x21C, 4)) == (32 * MIB - 8192, 5000)
        assert ram.read(32 * MIB - 8192, 8192) == b"x" * 5000 + bytes(3192)

    def test_the_initramfs_is_below_the_kernels_limit(self, ram):
        boot.load(ram, BzImage(image(**{"22c": ("I", 0x1800FFF)})), initramfs=b"x" * 5000)
        assert number(ram, 0x218, 4) == 0x1801000 - 8192

    def test_none_is_said_to_be_none(self, ram):
        boot.load(ram, BzImage(image()))
        assert (number(ram, 0x218, 4), number(ram, 0x21C, 4)) == (0, 0)

    def test_the_command_line(self, ram):
        boot.load(ram, BzImage(image()), command_line="a" * 100)
        assert number(ram, 0x228, 4) == at.COMMAND_LINE
        assert ram.read(at.COMMAND_LINE, 101) == b"a" * 100 + b"\0"

    def test_the_acpi_tables(self, ram):
        boot.load(ram, BzImage(image()), cpus=3)
        tables = acpi.tables(3)
        assert number(ram, 0x70, 8) == at.ACPI
        assert ram.read(at.ACPI, len(tables)) == tables

    @pytest.mark.parametrize(("size", "more"), [(32 * MIB, []), (3 << 30, []), ((3 << 30) + MIB, [(1 << 32, MIB, 1)])])
    def test_the_map_of_the_memory(self, size, more):
        with GuestRam(size) as ram:
            boot.load(ram, BzImage(image()))
            count = number(ram, 0x1E8, 1)
            entries = list(struct.iter_unpack("<QQI", ram.read(at.BOOT_PARAMS + 0x2D0, 20 * count)))
        low = min(size, 3 << 30)
        assert entries == [(0, 0x9FC00, 1), (0x9FC00, 0x60400, 2), (MIB, low - MIB, 1), *more]


class TestTooLittle:
    def test_a_command_line_that_is_too_long(self, ram):
        with pytest.raises(BootError, match="the command line has 101 bytes: vmlinuz takes 100 at most"):
            boot.load(ram, BzImage(image(), "vmlinuz"), command_line="ä" * 50 + "a")

    @pytest.mark.parametrize("size", [4096, MIB, 16 * MIB, 19 * MIB - 4096])
    def test_memory_for_the_kernel(self, size):
        with (
            GuestRam(size) as ram,
            pytest.raises(BootError, match=r"too little for vmlinuz and an initramfs of 0 bytes: they take 19 MiB"),
        ):
            boot.load(ram, BzImage(image(), "vmlinuz"))

    def test_memory_for_the_kernel_alone(self):
        with GuestRam(19 * MIB) as ram:
            boot.load(ram, BzImage(image()))
            with pytest.raises(BootError, match=r"19 MiB of memory .* an initramfs of 1 bytes: they take 20 MiB"):
                boot.load(ram, BzImage(image()), initramfs=b"x")
