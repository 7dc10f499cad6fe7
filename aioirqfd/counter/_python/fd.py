"""What is asked of an eventfd's fd; none of it ever waits."""

from __future__ import annotations

import errno
import operator
import os
import select
import sys
from typing import Final

from aioirqfd.counter._python.core import MAX

_WORD: Final = 8


def fdinfo(fd: int, /) -> tuple[int, int, bool] | None:
    """(count, eventfd-id, semaphore) of an eventfd, consuming nothing; None for another kind of file (row E25).

    Raises:
        OSError: EBADF, the fd is not open.
    """
    fd = operator.index(fd)
    try:
        with open(f"/proc/thread-self/fdinfo/{fd}", encoding="ascii") as file:  # noqa: PTH123  a hot path
            fields = dict(line.split(":", 1) for line in file if ":" in line)
    except FileNotFoundError:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None
    if "eventfd-count" not in fields:
        return None
    return (
        int(fields["eventfd-count"], 16),
        int(fields.get("eventfd-id", "-1")),
        fields.get("eventfd-semaphore", "0").strip() == "1",
    )


def read_now(fd: int, *, blocking: bool) -> int:
    """What a read gives, 0 when it would block; never waits, even on a blocking fd (row E14)."""
    try:
        if blocking:
            word = bytearray(_WORD)
            os.preadv(fd, [word], -1, os.RWF_NOWAIT)
            return int.from_bytes(word, sys.byteorder)
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def has_count(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return any(mask & select.POLLIN for _, mask in poller.poll(0))


def _has_room(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    return any(mask & select.POLLOUT for _, mask in poller.poll(0))


def write_saturating(fd: int, n: int, *, blocking: bool) -> int:
    """Add what fits to the kernel's counter, and return it."""
    while n:
        # A write that does not fit is refused whole (row E07), and sleeps on a blocking fd (row E08): look first there.
        if blocking and (n > 1 or not _has_room(fd)):
            info = fdinfo(fd)
            n = min(n, MAX - min(info[0], MAX)) if info else n
        try:
            if n:
                os.eventfd_write(fd, n)
        except BlockingIOError:
            info = fdinfo(fd)
            n = min(n, MAX - min(info[0], MAX)) if info else n
        else:
            break
    return n
