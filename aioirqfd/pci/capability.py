"""Capabilities of a PCI function: the linked structures in its configuration space by which a driver finds what it can.

Each class is one of them, with its bytes and which of their bits the guest may write. The layouts are those of the PCI Local Bus
specification 3.0 and of PCI Express 3.0; Linux has the same numbers in ``pci_regs.h``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final, final

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_MSI: Final = 32
"""Vectors that MSI can have."""
MAX_MSIX: Final = 2048
"""Vectors that MSI-X can have: the table-size field has eleven bits."""
ENTRY: Final = 16
"""Bytes of a vector in the MSI-X table."""


class Capability:
    """A capability: what :class:`ConfigSpace` puts into its list.

    Attributes:
        number: Its id.
        extended: Whether it is one of PCI Express' extended ones, from 0x100 on.
        version: Of an extended one.
    """

    number: ClassVar[int]
    extended: ClassVar[bool] = False
    version: ClassVar[int] = 1

    def body(self) -> bytes:
        """Return what follows the header (2 bytes; 4 of an extended one)."""
        raise NotImplementedError

    def writable(self) -> bytes:
        """Return the bits of the body that the guest may write, in as many bytes as there are; what is not said is read-only."""
        return b""


@final
@dataclass(frozen=True, slots=True)
class PowerManagement(Capability):
    """Power management: the guest may put the function into D3hot and back, and nothing is lost by it.

    Args:
        d1: It can be put into D1.
        d2: It can be put into D2.
    """

    number: ClassVar = 0x01
    d1: bool = False
    d2: bool = False

    def body(self) -> bytes:
        """Version 3 of the interface; no soft reset on the way back to D0."""
        return struct.pack("<HHH", 3 | self.d1 << 9 | self.d2 << 10, 1 << 3, 0)

    def writable(self) -> bytes:
        """The power state."""
        return struct.pack("<HHH", 0, 0x3, 0)


@final
@dataclass(frozen=True, slots=True)
class Msi(Capability):
    """Message-signalled interrupts, with 64-bit addresses.

    Args:
        vectors: 1, 2, 4, 8, 16 or 32. The guest may grant fewer.
    """

    number: ClassVar = 0x05
    vectors: int = 1

    def __post_init__(self) -> None:
        if self.vectors.bit_count() != 1 or not 1 <= self.vectors <= MAX_MSI:
            raise ValueError(f"MSI has 1, 2, 4, 8, 16 or 32 vectors, not {self.vectors}")

    def body(self) -> bytes:
        """Control, address and data."""
        return struct.pack("<HIIH", 1 << 7 | (self.vectors.bit_length() - 1) << 1, 0, 0, 0)

    def writable(self) -> bytes:
        """Enable, how many vectors are granted, address and data."""
        return struct.pack("<HIIH", 0x71, 0xFFFF_FFFC, 0xFFFF_FFFF, 0xFFFF)


@final
@dataclass(frozen=True, slots=True)
class MsiX(Capability):
    """MSI-X: a table with a message for each vector, and the pending-bit array, both in a BAR.

    Args:
        vectors: 1..2048.
        bar: Which BAR the two are in.
        table: Where the table is in it: a multiple of 8. It has 16 bytes for each vector.
        pba: Where the pending-bit array is: a multiple of 8; None: right behind the table.
    """

    number: ClassVar = 0x11
    vectors: int
    bar: int = 0
    table: int = 0
    pba: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.vectors <= MAX_MSIX:
            raise ValueError(f"MSI-X has 1..{MAX_MSIX} vectors, not {self.vectors}")
        if self.table % 8 or self.table < 0 or self.pba_offset % 8 or self.pba_offset < 0:
            raise ValueError(f"table and pending-bit array begin at multiples of 8, not {self.table} and {self.pba}")
        if self.pba_offset < self.table + self.table_size and self.table < self.pba_offset + self.pba_size:
            raise ValueError(f"the pending-bit array at {self.pba_offset} lies in the table at {self.table}")

    @property
    def table_size(self) -> int:
        """Bytes of the table."""
        return self.vectors * ENTRY

    @property
    def pba_offset(self) -> int:
        """Where the pending-bit array is."""
        return self.table + self.table_size if self.pba is None else self.pba

    @property
    def pba_size(self) -> int:
        """Bytes of the pending-bit array: a bit for each vector, in words of 8."""
        return -(-self.vectors // 64) * 8

    def body(self) -> bytes:
        """Control, and where table and pending-bit array are."""
        return struct.pack("<HII", self.vectors - 1, self.table | self.bar, self.pba_offset | self.bar)

    def writable(self) -> bytes:
        """Enable and function mask."""
        return struct.pack("<H", 0xC000)


@final
@dataclass(frozen=True, slots=True)
class PciExpress(Capability):
    """PCI Express: an endpoint that can be reset by itself (function-level reset). Makes the configuration space 4,096 bytes.

    Args:
        lanes: Of the link: 1, 2, 4, 8, 16.
        speed: Of the link: 1 is 2.5 GT/s, 2 5 GT/s, 3 8 GT/s.
    """

    number: ClassVar = 0x10
    lanes: int = 1
    speed: int = 1

    FLR: ClassVar = 1 << 15
    """Bit of the device control register: reset the function."""
    CONTROL: ClassVar = 8
    """Where that register is in the capability."""

    def body(self) -> bytes:
        """Version 2, endpoint; role-based errors and function-level reset; a link that is up."""
        link = self.speed | self.lanes << 4
        registers = (2, 1 << 15 | 1 << 28, 0x2810, 0, link, 0, link)
        return struct.pack("<HIHHIHH40x", *registers)

    def writable(self) -> bytes:
        """Device control but its reset bit, which reads as 0; link control."""
        return struct.pack("<HIHHIH", 0, 0, 0x7FFF, 0, 0, 0x0FF3)


@final
@dataclass(frozen=True, slots=True)
class VendorSpecific(Capability):
    """Whatever the vendor wants.

    Args:
        data: What follows the length byte: at most 252 bytes.
        mask: The bits of it that the guest may write; what is not said is read-only.
        on_write: Called with the data after the guest has written.
    """

    number: ClassVar = 0x09
    data: bytes
    mask: bytes = b""
    on_write: Callable[[bytes], None] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if len(self.data) > 252 or len(self.mask) > len(self.data):
            raise ValueError(f"a capability has at most 252 bytes of data, not {len(self.data)}, and no longer a mask")

    def body(self) -> bytes:
        """The length, and the data."""
        return bytes([len(self.data) + 3]) + self.data

    def writable(self) -> bytes:
        """Of the data what the mask says."""
        return b"\0" + self.mask


@final
@dataclass(frozen=True, slots=True)
class SerialNumber(Capability):
    """The device's serial number, an extended capability.

    Args:
        serial: 64 bits.
    """

    number: ClassVar = 0x03
    extended: ClassVar = True
    serial: int

    def body(self) -> bytes:
        """The number."""
        return struct.pack("<Q", self.serial)
