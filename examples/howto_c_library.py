"""Notify an event loop from a C library; here the C library itself."""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading

from aioirqfd import EventFd, IrqManager
from aioirqfd.sinks import RecordingSink

# docs: begin example
libc = ctypes.CDLL(None, use_errno=True)
libc.eventfd.argtypes = (ctypes.c_uint, ctypes.c_int)
libc.eventfd_write.argtypes = (ctypes.c_int, ctypes.c_uint64)


async def main() -> None:
    """A library that takes an fd to write to, and one that brings its own."""
    with EventFd() as done:
        thread = threading.Thread(target=libc.eventfd_write, args=(done.fileno(), 1))
        thread.start()
        print("the library wrote", await done.read())
        thread.join()

    fd = libc.eventfd(0, os.EFD_CLOEXEC)  # a blocking one: it never blocks the loop all the same
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        irqfd = irqs.assign(fd, gsi=5)  # the fd stays the library's
        libc.eventfd_write(fd, 1)
        await irqs.flush()
        await irqs.deassign(irqfd)
    os.close(fd)
    print(len(sink.interrupts), "interrupt")


# docs: end example
asyncio.run(main())
