"""A kernel as distributions ship it, ``vmlinuz``: a bzImage, which has a header for boot loaders, and unpacks itself.

Its fields are in Linux's Documentation/arch/x86/boot.rst; here those for a boot loader that has the CPU in 64-bit mode already.
"""

from __future__ import annotations

from typing import Final, final

from examples.vmm.linux.errors import BootError

HEADER: Final = 0x1F1
"""Where the header begins, in the file and in boot_params."""
_OLDEST: Final = 0x20C
_ENTRY_64: Final = 0x200


@final
class BzImage:
    """A bzImage that can be entered in 64-bit mode.

    Args:
        data: The whole file.
        name: What it is called in errors.

    Attributes:
        header: The part of it that a boot loader copies into boot_params, and fills in.
        code: What is loaded: all after the real-mode part, which is not used.
        address: Where it is loaded.
        room: Bytes of RAM that it needs from there on to unpack itself.
        entry: Where it is entered.
        longest_command_line: Bytes, without the 0 at its end.
        initrd_limit: The initramfs must end below.

    Raises:
        BootError: It is not what this needs; the text says what it is.
    """

    def __init__(self, data: bytes, name: str = "the kernel") -> None:
        def number(offset: int, size: int) -> int:
            return int.from_bytes(data[offset : offset + size], "little")

        if data[:4] == b"\x7fELF":
            raise BootError(f"{name} is an ELF file, such as vmlinux: give the bzImage, /boot/vmlinuz-* on Debian")
        if data[0x1FE:0x200] != b"\x55\xaa" or data[0x202:0x206] != b"HdrS":
            raise BootError(f"{name} is not a bzImage, an x86 Linux kernel: on Debian these are /boot/vmlinuz-*")
        version = number(0x206, 2)
        if version < _OLDEST:
            raise BootError(
                f"{name} speaks boot protocol {version >> 8}.{version & 0xFF:02}: for 64-bit entry it has to be 2.12,"
                " of Linux 3.8, or later"
            )
        if not number(0x236, 2) & 1:
            raise BootError(f"{name} cannot be entered in 64-bit mode (XLF_KERNEL_64 is not set): take an amd64 kernel")
        self.name: Final = name
        self.header: Final = data[HEADER : 0x202 + data[0x201]]
        start = 512 * ((data[HEADER] or 4) + 1)  # the boot sector and the sectors of the real-mode part
        self.code: Final = data[start:]
        if len(self.code) < 16 * number(0x1F4, 4):
            raise BootError(
                f"{name} is cut off: {len(data)} bytes, where its header says {start + 16 * number(0x1F4, 4)}"
            )
        self.address: Final = number(0x258, 8)
        self.room: Final = max(number(0x260, 4), len(self.code))
        self.entry: Final = self.address + _ENTRY_64
        self.longest_command_line: Final = number(0x238, 4)
        self.initrd_limit: Final = number(0x22C, 4) + 1
