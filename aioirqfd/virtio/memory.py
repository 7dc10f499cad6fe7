"""The guest's memory, mapped: ranges of it as memoryviews, without a copy.

A :class:`GuestMemory` never changes. A new table from the front-end is a new object; whoever holds the old one, or a
view into it, goes on safely, because a view keeps its mapping alive and nothing is ever unmapped by hand. What a front-end may
still do to it is said in :mod:`aioirqfd.mapping`.
"""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_right
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Self, final

from aioirqfd import mapping
from aioirqfd.mapping import MappingError
from aioirqfd.virtio.errors import GuestMemoryError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_MEM_SLOTS: Final = 509
"""The most regions of a table, and the answer to ``GET_MAX_MEM_SLOTS``: as many as the kernel's vhost has, so that memory can
be plugged in as with that. A region costs a mapping and, before Python 3.13, an fd."""
_ADDRESS_LIMIT: Final = 2**64


class MemoryRegion(Protocol):
    """What is said of a region: by vhost-user a payload of its messages."""

    @property
    def guest_address(self) -> int:
        """Guest-physical address, 0..2**64-1."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    @property
    def user_address(self) -> int:
        """Where whoever maps it has it; the addresses of rings are in these terms."""
        ...

    @property
    def mmap_offset(self) -> int:
        """Where it begins in its file."""
        ...


class Ram(Protocol):
    """A VMM's own guest memory; an ``aioirqfd.kvm.GuestRam`` is one."""

    @property
    def view(self) -> memoryview:
        """All of it, writable."""
        ...

    @property
    def regions(self) -> Iterable[tuple[int, int, int]]:
        """Guest-physical address, where that begins in the view, and bytes, of each part."""
        ...


class Region(NamedTuple):
    """A region as somebody says who has no message of it."""

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int


def map_shared(fd: int, size: int, offset: int, *, require_seal: bool = False) -> tuple[memoryview, bool]:
    """As :func:`aioirqfd.mapping.map_shared`.

    Raises:
        GuestMemoryError: No regular file, too short, not sealed although it must be, or not mappable.
    """
    try:
        return mapping.map_shared(fd, size, offset, require_seal=require_seal)
    except MappingError as error:
        raise GuestMemoryError(str(error)) from error.__cause__


@final
class MappedRegion:
    """A region and its mapping.

    Attributes:
        region: What the front-end said.
        start: Its first guest-physical address.
        size: Its bytes.
        writable: All of it, as a view.
        readable: The same, read-only: what the driver gave the device to read is not the device's to write.
        sealed: Whether its file can no longer shrink.
    """

    __slots__ = ("readable", "region", "sealed", "size", "start", "writable")

    def __init__(self, region: MemoryRegion, view: memoryview, *, sealed: bool = False) -> None:
        self.region = region
        self.start = region.guest_address
        self.size = region.size
        self.writable = view
        self.readable = view.toreadonly()
        self.sealed = sealed

    @classmethod
    def map(cls, region: MemoryRegion, fd: int, *, require_seal: bool = False) -> Self:
        """Map a region from its fd, which is only borrowed.

        Raises:
            GuestMemoryError: It is empty, runs over the end of the address space, or cannot be mapped
                (:func:`map_shared`).
        """
        if region.size < 1 or max(region.guest_address, region.user_address) + region.size > _ADDRESS_LIMIT:
            raise GuestMemoryError(f"an impossible memory region: {region}")
        view, sealed = map_shared(fd, region.size, region.mmap_offset, require_seal=require_seal)
        return cls(region, view, sealed=sealed)

    def __repr__(self) -> str:
        return f"<MappedRegion {self.start:#x}..{self.start + self.size - 1:#x}>"


def _no_overlap(starts: Sequence[int], regions: Sequence[MappedRegion], what: str) -> None:
    for index in range(1, len(starts)):
        if starts[index - 1] + regions[index - 1].size > starts[index]:
            raise GuestMemoryError(f"two memory regions overlap in {what} addresses at {starts[index]:#x}")


@final
class GuestMemory:
    """The memory table: where the guest's and the front-end's addresses lie in this process.

    Args:
        regions: The mapped regions, in any order.
        most: How many there may be.

    Raises:
        GuestMemoryError: Two overlap in guest-physical or in user addresses, or there are too many.

    Threads: immutable, so safe from any.
    """

    __slots__ = ("_starts", "_user_regions", "_user_starts", "regions")

    def __init__(self, regions: Iterable[MappedRegion] = (), *, most: int = MAX_MEM_SLOTS) -> None:
        self.regions = tuple(sorted(regions, key=lambda mapped: mapped.start))
        if len(self.regions) > most:
            raise GuestMemoryError(f"at most {most} memory regions, not {len(self.regions)}")
        self._starts = [mapped.start for mapped in self.regions]
        self._user_regions = tuple(sorted(self.regions, key=lambda mapped: mapped.region.user_address))
        self._user_starts = [mapped.region.user_address for mapped in self._user_regions]
        _no_overlap(self._starts, self.regions, "guest")
        _no_overlap(self._user_starts, self._user_regions, "user")

    @classmethod
    def map(cls, regions: Sequence[MemoryRegion], fds: Sequence[int], *, require_seal: bool = False) -> Self:
        """Map a table as ``SET_MEM_TABLE`` brings it.

        Args:
            regions: The regions.
            fds: Their fds, in the same order. All are closed, whatever happens: a mapping needs none.
            require_seal: Refuse memory that the front-end may still shrink.

        Raises:
            GuestMemoryError: A region cannot be mapped, or two overlap. Nothing stays mapped.
        """
        try:
            if len(regions) != len(fds):
                raise GuestMemoryError(f"{len(regions)} memory regions with {len(fds)} fds")
            return cls(
                [
                    MappedRegion.map(region, fd, require_seal=require_seal)
                    for region, fd in zip(regions, fds, strict=True)
                ]
            )
        finally:
            for fd in fds:
                with contextlib.suppress(OSError):
                    os.close(fd)

    @classmethod
    def of_ram(cls, ram: Ram) -> Self:
        """The memory of a VMM in this process, for the devices that it has there. Views keep the RAM mapped.

        Args:
            ram: An ``aioirqfd.kvm.GuestRam``, or what is like one. User addresses are the guest's.
        """
        return cls(
            MappedRegion(Region(address, size, address, offset), ram.view[offset : offset + size], sealed=True)
            for address, offset, size in ram.regions
        )

    def with_region(self, region: MemoryRegion, fd: int, *, require_seal: bool = False) -> GuestMemory:
        """Return a table with one more region (``ADD_MEM_REG``). The fd is closed, whatever happens.

        Raises:
            GuestMemoryError: As :meth:`map`.
        """
        added = GuestMemory.map([region], [fd], require_seal=require_seal)
        return GuestMemory(self.regions + added.regions)

    def without_region(self, region: MemoryRegion) -> GuestMemory:
        """Return a table without a region (``REM_MEM_REG``); its mmap offset does not matter.

        Raises:
            GuestMemoryError: There is none with this guest address, user address and size.
        """
        wanted = (region.guest_address, region.user_address, region.size)
        rest = [
            mapped
            for mapped in self.regions
            if (mapped.region.guest_address, mapped.region.user_address, mapped.region.size) != wanted
        ]
        if len(rest) == len(self.regions):
            raise GuestMemoryError(f"no such memory region: {region}")
        return GuestMemory(rest)

    def find(self, address: int) -> MappedRegion:
        """Return the region that a guest-physical address lies in.

        Raises:
            GuestMemoryError: It lies in none.
        """
        index = bisect_right(self._starts, address) - 1
        if index >= 0:
            mapped = self.regions[index]
            if address < mapped.start + mapped.size:
                return mapped
        raise GuestMemoryError(f"guest address {address:#x} is not memory")

    def readable(self, address: int, size: int) -> list[memoryview]:
        """Return read-only views of a guest-physical range, one for each region it touches; none if ``size`` is 0.

        Raises:
            GuestMemoryError: A part of it is not memory.
        """
        return [mapped.readable[start:end] for mapped, start, end in self._pieces(address, size)]

    def writable(self, address: int, size: int) -> list[memoryview]:
        """Return writable views of a guest-physical range, one for each region it touches; none if ``size`` is 0.

        Raises:
            GuestMemoryError: A part of it is not memory.
        """
        return [mapped.writable[start:end] for mapped, start, end in self._pieces(address, size)]

    def user_view(self, address: int, size: int) -> memoryview:
        """Return one writable view of a range in the front-end's addresses: a ring, which must lie in one region.

        Raises:
            GuestMemoryError: It is not memory, or not all in one region.
        """
        index = bisect_right(self._user_starts, address) - 1
        if index >= 0 and size >= 0:
            mapped = self._user_regions[index]
            start = address - mapped.region.user_address
            if start + size <= mapped.size:
                return mapped.writable[start : start + size]
        raise GuestMemoryError(f"{size} bytes at user address {address:#x} are not in one memory region")

    def _pieces(self, address: int, size: int) -> list[tuple[MappedRegion, int, int]]:
        pieces: list[tuple[MappedRegion, int, int]] = []
        while size > 0:
            mapped = self.find(address)
            start = address - mapped.start
            length = min(size, mapped.size - start)
            pieces.append((mapped, start, start + length))
            address += length
            size -= length
        return pieces

    def __repr__(self) -> str:
        return f"<GuestMemory {list(self.regions)}>"
