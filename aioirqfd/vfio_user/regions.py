"""What a client is told of a region: its size, which parts of it can be mapped, and which writes only signal an eventfd."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from aioirqfd.pci.function import CONFIG_REGION, ROM_REGION
from aioirqfd.vfio_user import messages
from aioirqfd.vfio_user.errors import RefusedError
from aioirqfd.vfio_user.messages import REGIONS, RegionFlag

if TYPE_CHECKING:
    from aioirqfd.pci.device import PciDevice
    from aioirqfd.pci.function import PciFunction


def _check(index: int) -> None:
    if not 0 <= index < REGIONS:
        raise RefusedError(errno.EINVAL, f"region {index}; there are 0..{REGIONS - 1}")


def region_info(function: PciFunction[PciDevice], index: int, room: int) -> tuple[bytes, tuple[int, ...]]:
    """Return the reply to ``DEVICE_GET_REGION_INFO``, and its file descriptor.

    Args:
        function: The function.
        index: Which region.
        room: Bytes that the client has room for. Where the list of parts does not fit, it is left out, and the reply says how
            much room it needs.

    Raises:
        RefusedError: EINVAL: there is no such region.
    """
    _check(index)
    size = function.size(index)
    flags = RegionFlag(0)
    if size:
        flags |= RegionFlag.READ
        if index != ROM_REGION:
            flags |= RegionFlag.WRITE
    fds: tuple[int, ...] = ()
    extra = b""
    if index in function.shared:
        flags |= RegionFlag.MMAP
        fds = (function.shared[index].fd,)
        shared = function.bars[index].shared
        if shared != ((0, size),):
            extra = messages.SPARSE.pack(messages.SPARSE_MMAP, 1, 0, len(shared), 0)
            extra += b"".join(messages.AREA.pack(*area) for area in shared)
    need = messages.REGION_INFO.size + len(extra)
    place = 0
    if extra and need <= room:
        flags |= RegionFlag.CAPS
        place = messages.REGION_INFO.size
    else:
        extra = b""
    return messages.REGION_INFO.pack(need, flags, index, place, size, 0) + extra, fds


def io_fds(function: PciFunction[PciDevice], index: int, room: int, *, most: int) -> tuple[bytes, tuple[int, ...]]:
    """Return the reply to ``DEVICE_GET_REGION_IO_FDS``, and its file descriptors: the doorbells of a BAR.

    Args:
        function: The function.
        index: Which region.
        room: Bytes that the client has room for. Where not all fit there are none, and the reply says how much room it needs.
        most: File descriptors that the client takes. Doorbells beyond that are left out, and written to by messages.

    Raises:
        RefusedError: EINVAL: there is no such region.
    """
    _check(index)
    if not function.size(index):
        raise RefusedError(errno.EINVAL, f"region {index} has no bytes")
    fds: list[int] = []
    places: dict[int, int] = {}
    parts: list[bytes] = []
    io = index < CONFIG_REGION and index in function.bars and function.bars[index].io
    for doorbell in function.doorbells.get(index, []):
        if doorbell.dead:
            continue
        key = doorbell.eventfd.id
        if key not in places:
            if len(fds) == most:
                continue
            places[key] = len(fds)
            fds.append(doorbell.eventfd.fileno())
        match = doorbell.datamatch
        flags = (messages.IOEVENTFD_PIO if io else 0) | (0 if match is None else messages.IOEVENTFD_DATAMATCH)
        parts.append(messages.IOEVENTFD.pack(doorbell.address, doorbell.length, places[key], 0, flags, 0, match or 0))
    need = messages.IO_FDS.size + len(parts) * messages.IOEVENTFD.size
    if need > room:
        return messages.IO_FDS.pack(need, 0, index, 0), ()
    return messages.IO_FDS.pack(need, 0, index, len(parts)) + b"".join(parts), tuple(fds)
