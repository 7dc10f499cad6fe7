"""A disk for a guest, as a process of its own: ``python examples/vhost_user_blk.py --socket-path blk.sock --blk-file disk.img``.

The image may grow or shrink while a guest uses it: the guest is told.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import enum
import errno
import os
import stat
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from aioirqfd.vhost_user import main
from aioirqfd.vhost_user.program import number
from aioirqfd.virtio import BlockFile, Chain, Device
from aioirqfd.virtio.chain import cut, gather, scatter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SECTOR: Final = 512
MAX_SECTORS: Final = 1 << 22
"""The most sectors of one discard or write-zeroes segment: 2 GiB."""
MAX_SEGMENTS: Final = 32
READ_AT_ONCE: Final = 1 << 22
"""Bytes: a longer read is a thread's, wherever it is read from."""
WRITE_AT_ONCE: Final = 1 << 18
"""Bytes: a write up to here is done at once, into the page cache; a longer one by a thread."""
LOOK_EVERY: Final = 1.0
"""Seconds after which it is seen that the image has another size."""
IOV_MAX: Final = 1024
_HEADER: Final = struct.Struct("<IIQ")
_CONFIG: Final = struct.Struct("<QII HBB I BBHI BxH III II B 3x".replace(" ", ""))
_SEGMENT: Final = struct.Struct("<QII")
_UNMAP: Final = 1
# The modes of fallocate(2).
_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2
_ZERO_RANGE: Final = 16


class Feature(enum.IntFlag):
    """Feature bits of a block device (virtio 1.2, section 5.2.3)."""

    SEG_MAX = 1 << 2
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    MQ = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14


class Type(enum.IntEnum):
    """Types of requests (section 5.2.6)."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


class Status(enum.IntEnum):
    """The byte that ends each answer."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


_UNPACK: Final = _HEADER.unpack
_PREADV: Final = os.preadv
_IN: Final = int(Type.IN)
_OUT: Final = int(Type.OUT)
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Blk(Device):
    """Virtio block device (section 5.2) on an image file or a block device.

    What is in the page cache is read and written on the loop's thread: a thread pool would cost more than the copy. What
    would have to wait for a disk goes to a thread.

    Args:
        path: The image, a regular file or a block device; its size is a multiple of 512.
        num_queues: 1..256.
        read_only: Refuse to write; the file is opened accordingly.
        serial: Up to 20 bytes that the driver is told (GET_ID).
        queue_size: The most segments of a request, with two more descriptors, fit in a ring of this size.

    Raises:
        OSError: The image cannot be opened.
        ValueError: It is no image.
    """

    device_id = 2
    concurrency = 128

    def __init__(
        self,
        path: str,
        *,
        num_queues: int = 1,
        read_only: bool = False,
        serial: str = "aioirqfd",
        queue_size: int = 128,
    ) -> None:
        self.num_queues = num_queues
        self.read_only = read_only
        self.serial = serial.encode()[:20]
        self.queue_size = queue_size
        self.fd = _open(path, os.O_RDONLY if read_only else os.O_RDWR)
        self.size = _size(self.fd)
        self._take_file()
        self.nowait = os.RWF_NOWAIT
        self.threads = ThreadPoolExecutor(4, thread_name_prefix="blk")
        self.features = Feature.SEG_MAX | Feature.BLK_SIZE | Feature.FLUSH | Feature.MQ
        self.features |= Feature.RO if read_only else Feature.DISCARD | Feature.WRITE_ZEROES

    @property
    def config(self) -> bytes:  # type: ignore[override]
        """The configuration space, by the image's size as it is now."""
        self.look()
        return _CONFIG.pack(
            self.size // SECTOR,
            0,  # size_max
            self.queue_size - 2,
            *(0, 0, 0),  # geometry
            SECTOR,
            *(0, 0, 0, 0),  # topology
            0,  # writeback: not to be chosen
            self.num_queues,
            *(MAX_SECTORS, MAX_SEGMENTS, 1),  # discard
            *(MAX_SECTORS, MAX_SEGMENTS, 1),  # write-zeroes, which may unmap
        )

    # docs: begin look
    def look(self) -> None:
        """See how large the image is, and tell the driver if that is news. What is no whole sector is left out."""
        size = _size(self.fd) // SECTOR * SECTOR
        if size != self.size:
            self.size = size
            self._take_file()
            self.config_changed()

    async def background(self) -> None:
        """Look at the image's size now and then: nothing tells when a file grows."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            self.look()

    # docs: end look

    def _take_file(self) -> None:
        if type(self).handle is Blk.handle:
            # Nearly all requests then need no line of handle(); a subclass that has its own way with them gets them all.
            limits = {"read_at_once": READ_AT_ONCE, "write_at_once": WRITE_AT_ONCE}
            self.file = BlockFile(self.fd, self.size, writable=not self.read_only, **limits)

    async def handle(self, request: Chain) -> int:
        """Serve one request; its last writable byte is the status."""
        writable = request.writable
        readable = request.readable
        # docs: begin read
        # Nearly all reads look like this, and are in the page cache: no step more than they need.
        if len(readable) == 1 and len(readable[0]) == 16 and writable and len(writable[-1]) == 1:
            kind, _, sector = _UNPACK(readable[0])
            if kind == _IN:
                size = request.writable_size - 1
                offset = sector * SECTOR
                if (
                    size % SECTOR == 0
                    and offset + size <= self.size
                    and size <= READ_AT_ONCE
                    and len(writable) <= IOV_MAX
                ):
                    try:
                        if _PREADV(self.fd, writable[:-1], offset, self.nowait) == size:
                            writable[-1][0] = 0
                            return size + 1
                    except OSError:
                        pass  # not all of it is there: the long way
        # docs: end read
        if not writable:
            return 0  # not even room to say that it was wrong
        if len(writable[-1]) == 1:
            status, data = writable[-1], writable[:-1]
        else:
            data = cut(writable, 0, request.writable_size - 1)
            (status,) = cut(writable, request.writable_size - 1)
        if len(readable) == 1 and len(readable[0]) == _HEADER.size:
            header, payload = readable[0], []
        else:
            header, payload = memoryview(request.read(_HEADER.size)), cut(readable, _HEADER.size)
        written = 0
        try:
            kind, _, sector = _HEADER.unpack_from(header)
            if kind == _IN:
                size = request.writable_size - 1
                offset = self._offset(sector, size)
                done = self._read_now(data, offset) if size <= READ_AT_ONCE else 0
                if done != size:
                    await self._in_thread(_read, self.fd, cut(data, done), offset + done)
                written = size
            elif kind == _OUT:
                size = sum(map(len, payload))
                offset = self._offset(sector, size, writes=True)
                if self.writethrough:
                    await self._in_thread(_write, self.fd, payload, offset, os.RWF_DSYNC)
                elif size > WRITE_AT_ONCE:
                    await self._in_thread(_write, self.fd, payload, offset)
                else:
                    _write(self.fd, payload, offset)
            else:
                written = await self._other(kind, payload, data)
        except NotImplementedError:
            status[0] = Status.UNSUPP
        except (OSError, ValueError, struct.error):
            status[0] = Status.IOERR
        else:
            status[0] = Status.OK
        # All of it, or as many as were written before the first byte that was not: a short id leaves a gap up to the status.
        return written if written < request.writable_size - 1 else request.writable_size

    @property
    def writethrough(self) -> bool:
        """Whether an answered write must be on the disk: a driver that did not take FLUSH cannot ask for it (5.2.6.2)."""
        return not self.driver_features & Feature.FLUSH

    async def _other(self, kind: int, payload: Sequence[memoryview], data: Sequence[memoryview]) -> int:
        if kind == Type.FLUSH:
            await self._in_thread(os.fdatasync, self.fd)
            return 0
        if kind == Type.GET_ID:
            return scatter(data, self.serial.ljust(20, b"\0"))
        if kind in {Type.DISCARD, Type.WRITE_ZEROES}:
            for sector, count, flags in _SEGMENT.iter_unpack(gather(payload, MAX_SEGMENTS * _SEGMENT.size + 1)):
                if flags & ~(_UNMAP if kind == Type.WRITE_ZEROES else 0):
                    raise NotImplementedError
                if count > MAX_SECTORS:
                    raise ValueError(f"{count} sectors at once")
                size = count * SECTOR
                offset = self._offset(sector, size, writes=True)
                if size:
                    keep = kind == Type.WRITE_ZEROES and not flags
                    await self._in_thread(_clear, self.fd, offset, size, not keep, kind == Type.WRITE_ZEROES)
            if self.writethrough:
                await self._in_thread(os.fdatasync, self.fd)
            return 0
        raise NotImplementedError

    def _offset(self, sector: int, size: int, *, writes: bool = False) -> int:
        """Where a range of sectors lies in the file; ValueError if it is none of the disk, or not to be written."""
        offset = sector * SECTOR
        if size % SECTOR or offset + size > self.size or (writes and self.read_only):
            raise ValueError(f"{size} bytes at sector {sector} of {self.size // SECTOR}")
        return offset

    def _read_now(self, buffers: list[memoryview], offset: int) -> int:
        """Read what the page cache has; return how many bytes that were, from the first on."""
        try:
            return os.preadv(self.fd, buffers[:IOV_MAX], offset, self.nowait)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP or not self.nowait:
                raise
            # A file system that cannot say (tmpfs, in older kernels): it reads from memory.
            self.nowait = 0
            return self._read_now(buffers, offset)

    async def _in_thread(self, function: Callable[..., object], *arguments: object) -> None:
        work = asyncio.get_running_loop().run_in_executor(self.threads, function, *arguments)
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            # A thread cannot be stopped, and must not go on in memory that the driver counts as its own again.
            await asyncio.wait({work})
            raise

    def close(self) -> None:
        """Close the image."""
        self.threads.shutdown()
        os.close(self.fd)


def _read(fd: int, buffers: list[memoryview], offset: int) -> None:
    while buffers:
        done = os.preadv(fd, buffers[:IOV_MAX], offset)
        if not done:
            raise OSError(errno.EIO, "the image has become shorter")
        offset += done
        buffers = cut(buffers, done)


def _write(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> None:
    while buffers:
        done = os.pwritev(fd, buffers[:IOV_MAX], offset, flags)
        offset += done
        buffers = cut(buffers, done)


def _clear(fd: int, offset: int, size: int, unmap: bool, zeroes: bool) -> None:  # noqa: FBT001
    """Make a range read as zeros, giving its room back with ``unmap``; without ``zeroes`` it is a hint."""
    try:
        _fallocate(fd, _KEEP_SIZE | (_PUNCH_HOLE if unmap else _ZERO_RANGE), offset, size)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.ENOSYS}:
            raise
        if zeroes:
            block = bytes(1 << 20)
            for at in range(offset, offset + size, len(block)):
                os.pwrite(fd, block[: offset + size - at], at)


def _fallocate(fd: int, mode: int, offset: int, size: int) -> None:
    # Python's own posix_fallocate knows no modes.
    if _libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(size)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _size(fd: int) -> int:
    return os.lseek(fd, 0, os.SEEK_END)


def _open(path: str, flags: int) -> int:
    """Open an image; ValueError if it is none."""
    # Before it is opened: to open a pipe may take for ever.
    mode = os.stat(path).st_mode  # noqa: PTH116  a relative path stays what it is
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise ValueError(f"an image is a regular file or a block device, and this is neither: {path!r}")
    fd = os.open(path, flags | os.O_CLOEXEC)
    size = _size(fd)
    if size % SECTOR:
        os.close(fd)
        raise ValueError(f"not a file of whole sectors, but of {size} bytes: {path!r}")
    return fd


def blk_parser() -> argparse.ArgumentParser:
    """The options of a disk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blk-file", required=True, metavar="PATH", help="the image or block device")
    parser.add_argument("--read-only", action="store_true", help="the guest cannot write")
    parser.add_argument("--num-queues", type=number(1, 256), default=1, metavar="N", help="1..256 (1)")
    return parser


def _make(options: argparse.Namespace) -> Blk:
    return Blk(options.blk_file, num_queues=options.num_queues, read_only=options.read_only, serial=options.serial)


# docs: begin main
if __name__ == "__main__":
    command = blk_parser()
    command.add_argument("--serial", default="aioirqfd", help="what the guest is told, up to 20 bytes")
    main(_make, kind="block", features=("read-only", "blk-file"), parser=command)
# docs: end main
