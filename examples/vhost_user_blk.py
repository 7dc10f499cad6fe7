"""A disk for a guest, as a process of its own: ``python examples/vhost_user_blk.py --socket-path blk.sock --blk-file disk.img``."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import enum
import errno
import os
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from aioirqfd.vhost_user import BlockFile, Chain, Device, run
from aioirqfd.vhost_user.chain import cut, gather, scatter

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
        path: The image; its size is a multiple of 512.
        num_queues: 1..256.
        read_only: Refuse to write; the file is opened accordingly.
        serial: Up to 20 bytes that the driver is told (GET_ID).
        queue_size: The most segments of a request, with two more descriptors, fit in a ring of this size.
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
        self.fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        self.size = os.lseek(self.fd, 0, os.SEEK_END)
        if type(self).handle is Blk.handle:
            # Nearly all requests then need no line of what follows; a subclass that has its own way with them gets them all.
            limits = {"read_at_once": READ_AT_ONCE, "write_at_once": WRITE_AT_ONCE}
            self.file = BlockFile(self.fd, self.size, writable=not read_only, **limits)
        self.nowait = os.RWF_NOWAIT
        self.threads = ThreadPoolExecutor(4, thread_name_prefix="blk")
        self.features = Feature.SEG_MAX | Feature.BLK_SIZE | Feature.FLUSH | Feature.MQ
        self.features |= Feature.RO if read_only else Feature.DISCARD | Feature.WRITE_ZEROES
        self.config = _CONFIG.pack(
            self.size // SECTOR,
            0,  # size_max
            queue_size - 2,
            *(0, 0, 0),  # geometry
            SECTOR,
            *(0, 0, 0, 0),  # topology
            0,  # writeback: not to be chosen
            num_queues,
            *(MAX_SECTORS, MAX_SEGMENTS, 1),  # discard
            *(MAX_SECTORS, MAX_SEGMENTS, 1),  # write-zeroes, which may unmap
        )

    async def handle(self, request: Chain) -> int:
        """Serve one request; its last writable byte is the status."""
        writable = request.writable
        readable = request.readable
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


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket-path", required=True, help="where to listen for the front-end")
    parser.add_argument("--blk-file", required=True, help="the image or block device")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--num-queues", type=int, default=1)
    parser.add_argument("--serial", default="aioirqfd")
    options = parser.parse_args()
    try:
        blk = Blk(options.blk_file, num_queues=options.num_queues, read_only=options.read_only, serial=options.serial)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    run(blk, options.socket_path)
    blk.close()


if __name__ == "__main__":
    main()
