"""Handing an EventFd to another process through multiprocessing, which sends the open file along, as it does a socket's.

Any other pickle, and any copy, would be a second owner of one fd number.
"""

# pyright: reportPrivateUsage=false
# (an underscore on an EventFd says "for this package")
from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

from aioirqfd.uncopied import refusal

if TYPE_CHECKING:
    from types import FrameType

    from aioirqfd.eventfd.eventfd import EventFd

_MODULE = "multiprocessing.reduction"
_registered = False


class _Dup(Protocol):
    """An fd on its way to another process."""

    def detach(self) -> int: ...


def register(cls: type[EventFd]) -> bool:
    """Tell multiprocessing of the class, if the program has imported it: to import it here would cost everybody 10 ms."""
    global _registered  # noqa: PLW0603  once for the process
    if not _registered and _MODULE in sys.modules:
        sys.modules[_MODULE].register(cls, _reduce)
        _registered = True
    return _registered


def reduce(eventfd: EventFd, pickler: FrameType) -> tuple[object, ...]:
    """What pickle and copy are told who have not been told by :func:`register`; the frame is theirs."""
    if register(type(eventfd)) and pickler.f_globals.get("__name__") == _MODULE:
        # multiprocessing was imported since the last EventFd was made, and this is the first one that it sends.
        return _reduce(eventfd)
    raise refusal(
        eventfd,
        "It stands for an open file. Pass on the very object; another owner in this process is "
        "EventFd.from_fd(os.dup(eventfd.fileno()), owns=True). To another process it is sent by multiprocessing, as an argument or "
        "through a queue or pipe, and its fileno() by socket.send_fds().",
    )


def _reduce(eventfd: EventFd) -> tuple[object, ...]:
    dup = sys.modules[_MODULE].DupFd(eventfd.fileno())
    return _received, (type(eventfd), dup, eventfd.semaphore)


def _received(cls: type[EventFd], dup: _Dup, semaphore: bool) -> EventFd:  # noqa: FBT001  a pickle's arguments
    return cls._adopt(dup.detach(), semaphore=semaphore, owns=True)
