"""What travels on a vfio-user socket: commands, and the layouts of what they carry.

All numbers are little-endian here: the specification says the host's own order, and Linux/x86-64 and arm64 are that.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final, final

MAX_DATA: Final = 1 << 20
"""Bytes that one message may read or write: what ``max_data_xfer_size`` is unless it is negotiated."""
MAX_FDS: Final = 16
"""File descriptors that a server takes with one message. QEMU refuses a server that says more."""
REGIONS: Final = 9
"""Regions of a PCI device: six BARs, the ROM, the configuration space, VGA."""
IRQS: Final = 5
"""Kinds of interrupts of a PCI device."""

HEADER: Final = struct.Struct("<HHIII")
"""Number, command, size of it all, flags, errno."""
VERSION: Final = struct.Struct("<HH")
DMA_MAP: Final = struct.Struct("<IIQQQ")
"""argsz, flags, offset in the file, address, size."""
DMA_UNMAP: Final = struct.Struct("<IIQQ")
"""argsz, flags, address, size."""
DEVICE_INFO: Final = struct.Struct("<IIII")
"""argsz, flags, regions, kinds of interrupts."""
REGION_INFO: Final = struct.Struct("<IIIIQQ")
"""argsz, flags, index, where the capabilities are, size, offset for mmap()."""
SPARSE: Final = struct.Struct("<HHIII")
"""Capability: id, version, next, how many areas, reserved."""
AREA: Final = struct.Struct("<QQ")
"""An area of it: offset, size."""
IO_FDS: Final = struct.Struct("<IIII")
"""argsz, flags, index, count."""
IOEVENTFD: Final = struct.Struct("<QQIIIIQ")
"""offset, size, which fd, type, flags, padding, datamatch."""
IRQ_INFO: Final = struct.Struct("<IIII")
"""argsz, flags, index, count."""
IRQ_SET: Final = struct.Struct("<IIIII")
"""argsz, flags, index, start, count."""
REGION_ACCESS: Final = struct.Struct("<QII")
"""offset, region, count."""
WRITE_COUNT: Final = struct.Struct("<Q")
DMA_ACCESS: Final = struct.Struct("<QQ")
"""address, count."""
FEATURE: Final = struct.Struct("<II")
"""argsz, flags."""


class Command(enum.IntEnum):
    """Commands; those of the server to the client are ``DMA_READ`` and ``DMA_WRITE``."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


class MapFlag(enum.IntFlag):
    """Of ``DMA_MAP``: what the device may do there."""

    READ = 1
    WRITE = 2


UNMAP_ALL: Final = 2
"""Flag of ``DMA_UNMAP``, as in the kernel's VFIO: every mapping; address and size are 0."""
DEVICE_RESETS: Final = 1
"""Flag of ``DEVICE_GET_INFO``: the device can be reset."""
DEVICE_IS_PCI: Final = 2
"""Flag of ``DEVICE_GET_INFO``."""


class RegionFlag(enum.IntFlag):
    """Of ``DEVICE_GET_REGION_INFO``."""

    READ = 1
    WRITE = 2
    MMAP = 4
    CAPS = 8


SPARSE_MMAP: Final = 1
"""Id of the capability of a region that says which parts of it can be mapped."""
IOEVENTFD_DATAMATCH: Final = 1
IOEVENTFD_PIO: Final = 2


class Irq(enum.IntEnum):
    """Kinds of interrupts."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


class IrqFlag(enum.IntFlag):
    """Of ``DEVICE_GET_IRQ_INFO``."""

    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4
    NORESIZE = 8


class SetIrq(enum.IntFlag):
    """Of ``DEVICE_SET_IRQS``: one of the first three, and one of the last three."""

    DATA_NONE = 0x01
    DATA_BOOL = 0x02
    DATA_EVENTFD = 0x04
    MASK = 0x08
    UNMASK = 0x10
    TRIGGER = 0x20


FEATURE_GET: Final = 1 << 16
FEATURE_SET: Final = 1 << 17
FEATURE_PROBE: Final = 1 << 18


@final
@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Args:
        number: Its sender's number for it, 0..65535; a reply has that of its command.
        command: What it is about; a number that is no :class:`Command` stays one.
        data: What follows the header.
        fds: Its file descriptors.
        reply: It answers a command.
        no_reply: Of a command: no reply is wanted.
        error: Of a reply: the errno, 0 if the peer did not say which; None: no error.
    """

    number: int
    command: int
    data: bytes = b""
    fds: tuple[int, ...] = ()
    reply: bool = False
    no_reply: bool = False
    error: int | None = None
