"""What the eventfd tests share: readers that wait already, other threads."""

from __future__ import annotations

import asyncio
import threading

from aioirqfd.counter import fdinfo

FULL = 2**64 - 2


def info_of(fd):
    info = fdinfo(fd)
    assert info is not None
    return info


def kernel_count(efd):
    return info_of(efd.fileno())[0]


async def turns(count=5):
    """Let everything run that can run by itself."""
    for _ in range(count):
        await asyncio.sleep(0)


async def waiting_reader(efd, method="read"):
    """A task that waits in a read or a wait already."""
    task = asyncio.ensure_future(getattr(efd, method)())
    await turns(2)
    assert not task.done()
    return task


def in_thread(function, *args):
    thread = threading.Thread(target=function, args=args)
    thread.start()
    thread.join()
