"""The least that a request can cost: what ``vhost_blk.py`` measures beside the back-ends that are to be had.

The handshake is the back-end's own; then a thread serves the ring, in C, or in as little Python as will do, and neither
of them checks anything. ``python -m tests.bench.vhost_floor c|python SOCKET IMAGE LIBRARY``.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
import sys
import threading
from typing import TYPE_CHECKING
from unittest.mock import patch

from aioirqfd.vhost_user import run
from aioirqfd.vhost_user.calls import Calls
from aioirqfd.vhost_user.vring import Vring
from examples.vhost_user_blk import Blk

if TYPE_CHECKING:
    from aioirqfd import EventFd

_DESC = struct.Struct("<QIHH")


class _Region(ctypes.Structure):
    _fields_ = (("start", ctypes.c_uint64), ("size", ctypes.c_uint64), ("here", ctypes.c_void_p))


class Floor(ctypes.Structure):
    """As ``struct floor``."""

    _fields_ = (
        ("file", ctypes.c_int),
        ("kick", ctypes.c_int),
        ("call", ctypes.c_int),
        ("stop", ctypes.c_int),
        ("size", ctypes.c_uint32),
        ("region_count", ctypes.c_uint32),
        ("desc", ctypes.c_void_p),
        ("avail", ctypes.c_void_p),
        ("used", ctypes.c_void_p),
        ("regions", _Region * 64),
    )


def at(view: memoryview) -> int:
    """Where a view lies."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def serve_in_python(shared: Floor, memory, size, desc, avail, used) -> None:
    """The loop of the C file."""
    file, mask, (region,) = shared.file, size - 1, memory.regions
    guest, start, unpack = region.writable, region.start, _DESC.unpack_from
    entries = used[4 : 4 + 8 * size].cast("Q")
    avail, used = avail.cast("H"), used.cast("H")
    epoll = select.epoll()
    epoll.register(shared.kick, select.EPOLLIN | select.EPOLLET)
    done = 0
    one = (1).to_bytes(8, "little")
    while not shared.stop:
        seen = avail[1]
        if seen == done:
            used[2 + 4 * size] = done
            if avail[1] == done:
                epoll.poll()
            continue
        before = done
        while done != seen:
            head = avail[2 + (done & mask)]
            table = desc
            address, length, flags, following = unpack(table, head * 16)
            if flags & 4:
                table = guest[address - start : address - start + length]
                address, length, flags, following = unpack(table, 0)
            kind, _, sector = struct.unpack_from("<IIQ", guest, address - start)
            buffers = []
            written = 0
            while flags & 1:
                address, length, flags, following = unpack(table, following * 16)
                buffers.append(guest[address - start : address - start + length])
                written += length
            status = buffers.pop()
            if kind == 0:
                os.preadv(file, buffers, sector * 512)
            status[0] = 0
            entries[done & mask] = head + (written << 32)
            done = (done + 1) & 0xFFFF
        used[1] = done
        if (done - avail[2 + size] - 1) & 0xFFFF < (done - before) & 0xFFFF and shared.call >= 0:
            os.write(shared.call, one)


def main() -> None:
    kind, socket, image, library = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    blk = Blk(image)
    shared = Floor(file=blk.fd, call=-1)
    running: list[threading.Thread] = []
    kicks: list[EventFd] = []

    def set_kick(_vring: Vring, eventfd) -> None:
        kicks[:] = [eventfd]
        shared.kick = eventfd.fileno()

    def bind(calls: Calls, index, eventfd) -> None:
        if eventfd is not None:
            shared.call = eventfd.fileno()
            calls._eventfds[len(calls._eventfds) + 1] = eventfd  # kept open: the thread may be writing to it
            eventfd.signal()

    def start(vring: Vring, memory, features, inflight) -> bool:
        if running or not vring.enabled or not vring.size or not kicks or vring._address is None:
            return False
        address, size = vring._address, vring.size
        desc = memory.user_view(address.descriptor, 16 * size)
        avail = memory.user_view(address.available, 6 + 2 * size)
        used = memory.user_view(address.used, 6 + 8 * size)
        shared.stop, shared.size = 0, size
        shared.region_count = len(memory.regions)
        for number, region in enumerate(memory.regions):
            shared.regions[number] = _Region(region.start, region.size, at(region.writable))
        shared.desc, shared.avail, shared.used = map(at, (desc, avail, used))
        if kind == "c":
            target, arguments = ctypes.CDLL(library).serve, (ctypes.byref(shared),)
        else:
            target, arguments = serve_in_python, (shared, memory, size, desc, avail, used)
        running.append(threading.Thread(target=target, args=arguments, daemon=True))
        running[0].start()
        return True

    async def stop(vring: Vring) -> int:
        if running:
            shared.stop = 1
            kicks.pop().signal()
            running.pop().join()
            vring._address = None
        return 0

    with (
        patch.multiple(Vring, set_kick=set_kick, start=start, stop=stop),
        patch.object(Calls, "bind", bind),
    ):
        run(blk, socket)


if __name__ == "__main__":
    main()
