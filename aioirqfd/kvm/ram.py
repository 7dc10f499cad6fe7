"""A VMM's own guest memory: one sealed memfd, or memory of this process alone; for the guest's slots and for devices."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import warnings
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, final

from aioirqfd.errors import ClosedError
from aioirqfd.integers import integer
from aioirqfd.mapping import map_shared
from aioirqfd.uncopied import refusal

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from aioirqfd.kvm.vm import Vm

_GIB: Final = 1 << 30
_HOLE: Final = 3 * _GIB
_HIGH: Final = 4 * _GIB
_LIMIT: Final = 1 << 46
_HUGE: Final = 2 << 20
"""A huge page. Only what lies on one here and for the guest can be one for both."""
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class RamRegion(NamedTuple):
    """A part of the RAM that the guest sees in one piece.

    Attributes:
        guest_phys_addr: Where the guest sees it.
        offset: Where it begins in the file and in the view, in bytes.
        size: Bytes.
    """

    guest_phys_addr: int
    offset: int
    size: int


class DmaTable(Protocol):
    """What memory is mapped into for devices; an ``aioirqfd.pci.Dma`` is one."""

    def map(
        self, address: int, size: int, /, *, fd: int | None = None, offset: int = 0, memory: memoryview | None = None
    ) -> None:
        """Map a part of a file, or memory of this process, at a bus address."""
        ...


@final
class GuestRam:
    """The RAM of a guest: from address 0 up to 3 GiB, and what is more than that from 4 GiB on.

    The gigabyte between is for devices: PCI, the IOAPIC, the local APICs, the firmware.

    It is a memfd that can neither shrink nor grow any more, mapped shared. So it can be handed to other processes (vhost-user,
    vfio-user) that take no file which might be cut off under them. It is zero at first, and takes no memory of the host's
    where nobody has written yet. Core dumps leave it out.

    With ``shared=False`` it is private memory, which no other process can be given, nor a child that is forked. The kernel makes huge
    pages of it where that is switched on (``/sys/kernel/mm/transparent_hugepage/enabled``), which it does not do for a memfd. Each
    page that a guest touches for the first time costs an exit to the kernel and a page fault; with huge pages there are 512 times
    fewer of them, and a guest boots faster.

    Args:
        size: Bytes: a multiple of the page size, at least one page.
        shared: Whether other processes may be given it.

    Threads: any; what the guest or another thread writes meanwhile may be seen in part, as always with shared memory.

    Raises:
        ValueError: The size is none.
        OSError: There is no such amount of memory to be had.
    """

    __slots__ = ("__weakref__", "_fd", "_open", "_view", "regions", "shared", "size")

    def __init__(self, size: int, *, shared: bool = True) -> None:
        self._fd = -1
        self._open = False
        self.shared: Final = shared
        """Whether other processes may be given it."""
        self.size: Final = integer(size, "size", mmap.PAGESIZE, _LIMIT)
        """Bytes."""
        if self.size % mmap.PAGESIZE:
            raise ValueError(f"size is a multiple of the page size, {mmap.PAGESIZE}, not {size}")
        low = min(self.size, _HOLE)
        regions = [RamRegion(0, 0, low)]
        if self.size > low:
            regions.append(RamRegion(_HIGH, low, self.size - low))
        self.regions: Final = tuple(regions)
        """Where the guest sees it, and where that lies in the file; in order."""
        if shared:
            self._share()
        else:
            self._view = _private(self.size)
        self._open = True

    def _share(self) -> None:
        self._fd = os.memfd_create("guest ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._fd, self.size)
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _SEALS)
            self._view, _ = map_shared(self._fd, self.size, 0, require_seal=True)
        except BaseException:
            os.close(self._fd)
            self._fd = -1
            raise

    @property
    def view(self) -> memoryview:
        """All of it, writable. A part of it is a slice: ``ram.view[region.offset : region.offset + region.size]``.

        Raises:
            ClosedError: EBADF, after close.
        """
        self._check_open()
        return self._view

    def fileno(self) -> int:
        """The memfd; it stays this object's.

        Raises:
            ClosedError: EBADF, after close.
            ValueError: It is private memory.
        """
        self._check_open()
        if not self.shared:
            raise ValueError("this GuestRam is private memory, which has no file: make it with shared=True")
        return self._fd

    def _check_open(self) -> None:
        if not self._open:
            raise ClosedError("this GuestRam is closed")

    def attach(self, vm: Vm, slot: int = 0) -> None:
        """Give it to a VM as memory.

        The VM keeps the mapping alive until its slots are deleted or it is closed, even if this object is closed before.

        Args:
            vm: The VM.
            slot: The first slot; one for each of :attr:`regions`, one after the other.

        Raises:
            OSError: As :meth:`aioirqfd.kvm.Vm.set_user_memory_region`; no slot was added.
        """
        added: list[int] = []
        try:
            for number, (address, offset, size) in enumerate(self.regions, slot):
                vm.set_user_memory_region(number, address, self.view[offset : offset + size])
                added.append(number)
        except BaseException:
            for number in added:
                vm.set_user_memory_region(number, 0, None)
            raise

    def map_into(self, dma: DmaTable) -> None:
        """Map it for devices that reach memory by DMA: bus addresses are the guest's physical ones.

        Args:
            dma: An ``aioirqfd.pci.Dma``. It makes a mapping of its own where the memory is a file.

        Raises:
            DmaMapError: Something is mapped there already. What was mapped before that stays mapped.
        """
        for address, offset, size in self.regions:
            if self.shared:
                dma.map(address, size, fd=self.fileno(), offset=offset)
            else:
                dma.map(address, size, memory=self.view[offset : offset + size])

    def read(self, guest_phys_addr: int, size: int) -> bytes:
        """Return a copy of what is there.

        Raises:
            ValueError: A part of it is not RAM, or it is not all in one region.
        """
        start = self._offset(guest_phys_addr, size)
        return bytes(self.view[start : start + size])

    def write(self, guest_phys_addr: int, data: bytes | bytearray | memoryview) -> None:
        """Put something there.

        Raises:
            ValueError: A part of it is not RAM, or it is not all in one region. Nothing was written.
        """
        data = memoryview(data).cast("B")
        start = self._offset(guest_phys_addr, len(data))
        self.view[start : start + len(data)] = data

    def close(self) -> None:
        """Close the memfd and let go of the mapping. Idempotent.

        It is unmapped with the last that uses it: a VM's slot, a view of a part.
        """
        if not self._open:
            return
        self._open = False
        self._view.release()
        if self.shared:
            os.close(self._fd)

    def _offset(self, address: int, size: int) -> int:
        for start, offset, length in self.regions:
            if start <= address and 0 <= size <= start + length - address:
                return offset + address - start
        there = ", ".join(f"{start:#x}..{start + length - 1:#x}" for start, _, length in self.regions)
        raise ValueError(f"{size} bytes at {address:#x} are not all in one piece of RAM, which is {there}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        raise refusal(self, "It owns a file descriptor of this process: hand its fileno() to whoever shall share it.")

    def __del__(self) -> None:
        # getattr: the size may have been refused before there was anything.
        if getattr(self, "_open", False):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        state = ", closed" if not self._open else f" fd={self._fd}" if self.shared else ", private"
        return f"<GuestRam {self.size:#x} bytes{state}>"


def _private(size: int) -> memoryview:
    """Memory that begins on a huge page."""
    mapping = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_DONTDUMP)
    # A child would have a copy, and with it this process another page than the guest, as soon as one of them writes.
    mapping.madvise(mmap.MADV_DONTFORK)
    skip = -ctypes.addressof(ctypes.c_char.from_buffer(mapping)) % _HUGE
    return memoryview(mapping)[skip : skip + size]
