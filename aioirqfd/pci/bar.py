"""A base address register: a range of addresses in which the guest finds the device's registers and memory."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Mapping

BARS: Final = 6
"""Base address registers that a function may have."""
PAGE: Final = mmap.PAGESIZE
_IO: Final = 0x1
_64_BIT: Final = 0x4
_PREFETCHABLE: Final = 0x8
_MOST: Final = 2**40
"""Bytes of the largest BAR that is not a slip of the keyboard."""


@final
@dataclass(frozen=True, slots=True)
class Bar:
    """One BAR.

    Args:
        size: Bytes: a power of two; 16 or more in memory space, 4..256 in port space.
        io: It is in port space.
        wide: It is a 64-bit one, which takes the next index too.
        prefetchable: Reading has no side effects.
        shared: Parts of it that the guest may reach without this process: ``(offset, size)`` each, whole pages. They are plain
            memory, :meth:`PciDevice.shared <aioirqfd.pci.PciDevice.shared>` on this side, and the device is not told when the
            guest writes there.

    Raises:
        ValueError: Something of this cannot be.
    """

    size: int
    io: bool = False
    wide: bool = False
    prefetchable: bool = False
    shared: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        least, most = (4, 256) if self.io else (16, _MOST)
        if self.size.bit_count() != 1 or not least <= self.size <= most:
            raise ValueError(f"a BAR has a power of two from {least} to {most} bytes, not {self.size}")
        if self.io and (self.wide or self.prefetchable or self.shared):
            raise ValueError("a BAR in port space is neither wide, nor prefetchable, nor shared")
        end = 0
        for offset, size in sorted(self.shared):
            if offset % PAGE or size % PAGE or size < PAGE or offset < end or offset + size > self.size:
                raise ValueError(
                    f"shared parts of a BAR of {self.size} bytes are whole pages apart from each other, not {self.shared}"
                )
            end = offset + size

    @property
    def flags(self) -> int:
        """The low bits of the register, which say what it is."""
        if self.io:
            return _IO
        return (_64_BIT if self.wide else 0) | (_PREFETCHABLE if self.prefetchable else 0)


def check_bars(bars: Mapping[int, Bar]) -> None:
    """Raise unless they fit the six registers.

    Raises:
        ValueError: An index is out of range, or taken by the upper half of a wide one.
    """
    for index, bar in bars.items():
        if not 0 <= index < BARS:
            raise ValueError(f"BARs are 0..{BARS - 1}, not {index}")
        if bar.wide and (index + 1 == BARS or index + 1 in bars):
            raise ValueError(f"BAR {index} is a wide one: it takes BAR {index + 1} too, which is not free")
