"""What is asked of an eventfd's fd, so that nobody waits for it: see fd.c for what must hold, and why."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import sys
from typing import TYPE_CHECKING, Final

from aioirqfd.counter._python.core import MAX
from aioirqfd.integers import integer

if TYPE_CHECKING:
    from collections.abc import Callable

_WORD: Final = 8
_UNKNOWN: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})


def fdinfo(fd: int, /) -> tuple[int, int, bool] | None:
    """(count, eventfd-id, semaphore) of an eventfd, consuming nothing; None for another kind of file (row E25).

    Raises:
        OSError: EBADF, the fd is not open; or what keeps fdinfo from being read, ENOENT where there is no /proc, say.
    """
    fd = integer(fd, "an fd")
    if not 0 <= fd < 2**31:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    fcntl.fcntl(fd, fcntl.F_GETFD)
    with open(f"/proc/thread-self/fdinfo/{fd}", encoding="ascii") as file:  # noqa: PTH123  a hot path
        fields = dict(line.split(":", 1) for line in file if ":" in line)
    if "eventfd-count" not in fields:
        return None
    return (
        int(fields["eventfd-count"], 16),
        int(fields.get("eventfd-id", "-1")),
        fields.get("eventfd-semaphore", "0").strip() == "1",
    )


def _is_ready(fd: int, event: int) -> bool:
    poller = select.poll()
    poller.register(fd, event)
    masks = [mask for _, mask in poller.poll(0)]
    if masks and masks[0] & select.POLLNVAL:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return any(mask & event for mask in masks)


def has_count(fd: int) -> bool:
    """Whether a read would find something; nothing is taken."""
    return _is_ready(fd, select.POLLIN)


def _read_if_ready(fd: int) -> int:
    """Where the kernel has no RWF_NOWAIT for eventfds. Somebody else may read it between the look and the read."""
    return 0 if os.get_blocking(fd) and not has_count(fd) else os.eventfd_read(fd)


def read_now(fd: int) -> int:
    """What a read gives, 0 when it would block (row E14)."""
    word = bytearray(_WORD)
    try:
        try:
            os.preadv(fd, [word], -1, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno not in _UNKNOWN:
                raise
            return _read_if_ready(fd)
    except BlockingIOError:
        return 0
    return int.from_bytes(word, sys.byteorder)


def begin_add(fd: int, n: int) -> Callable[[], int]:
    """Add what fits to the kernel's counter. The call says how much that was; it may wait, so it is made without a lock."""
    if os.get_blocking(fd):
        return _begin_add_looking(fd, n)
    # All or nothing in the kernel (row E07): what does not fit is halved until it does. No look into fdinfo, which takes a descriptor.
    added, part = 0, n
    while part:
        try:
            os.eventfd_write(fd, part)
        except BlockingIOError:
            part //= 2
        except OSError:
            if not added:
                raise
            break
        else:
            added += part
            part = min(part, n - added)
    return lambda: added


def _begin_add_looking(fd: int, n: int) -> Callable[[], int]:
    # Through a dup: the fd may be closed by the time of the call, and its number another file's. Where there is no room for one, at once.
    try:
        own = os.dup(fd)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        added = _add_looking(fd, n)
        return lambda: added

    def add() -> int:
        try:
            return _add_looking(own, n)
        finally:
            os.close(own)

    return add


def _add_looking(fd: int, n: int) -> int:
    """Where a write that does not fit waits for a reader (row E08)."""
    if not _is_ready(fd, select.POLLOUT):
        return 0
    if n > 1:
        try:
            info = fdinfo(fd)
        except OSError:
            info = None  # for want of a descriptor, say: there is as much room as there ever was in real life
        if info is not None:
            n = min(n, MAX - min(info[0], MAX))
    if n:
        try:
            os.eventfd_write(fd, n)
        except BlockingIOError:
            return 0
    return n
