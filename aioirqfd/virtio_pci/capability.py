"""The capabilities by which a driver finds a virtio device's registers (virtio 1.2, section 4.1.4)."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import ClassVar, Final, final

from aioirqfd.pci.capability import Capability

_LENGTH: Final = 16
"""Bytes of a ``virtio_pci_cap``."""


class Structure(enum.IntEnum):
    """What a capability leads to."""

    COMMON = 1
    NOTIFY = 2
    ISR = 3
    DEVICE = 4
    ACCESS = 5


@final
@dataclass(frozen=True, slots=True)
class VirtioStructure(Capability):
    """Where a structure lies.

    Args:
        kind: Which one.
        offset: Bytes from the beginning of BAR 0.
        length: Bytes.
        multiplier: Of ``NOTIFY``: bytes from one queue's register to the next one's.
    """

    number: ClassVar = 0x09
    kind: Structure
    offset: int
    length: int
    multiplier: int | None = None

    def body(self) -> bytes:
        """Everything behind the header."""
        more = b"" if self.multiplier is None else struct.pack("<I", self.multiplier)
        return struct.pack("<BBBxxxII", _LENGTH + len(more), self.kind, 0, self.offset, self.length) + more


@final
@dataclass(frozen=True, slots=True)
class ConfigAccess(Capability):
    """A window onto the BARs in the configuration space, for firmware that cannot reach them (section 4.1.4.9).

    The driver writes BAR, offset and length, and then reads or writes ``pci_cfg_data``.
    """

    number: ClassVar = 0x09

    BAR: ClassVar = 4
    """Where these are in the capability."""
    OFFSET: ClassVar = 8
    SIZE: ClassVar = 12
    DATA: ClassVar = _LENGTH
    WIDTH: ClassVar = 4
    """Bytes of the data."""

    def body(self) -> bytes:
        """Everything behind the header."""
        return struct.pack("<BB16x", _LENGTH + self.WIDTH, Structure.ACCESS)

    def writable(self) -> bytes:
        """BAR, offset, length and data."""
        return struct.pack("<BBBxxxIII", 0, 0, 0xFF, 2**32 - 1, 2**32 - 1, 2**32 - 1)
