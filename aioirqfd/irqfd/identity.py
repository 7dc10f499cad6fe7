"""Which eventfd is which, and which are bound: by the kernel's number, in which all dups of an eventfd agree (rows E25, I12)."""

# pyright: reportPrivateUsage=false
# (an underscore on an EventFd says "for this package")
from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from aioirqfd.errors import EventFdBusyError, WrongLoopError
from aioirqfd.eventfd import EventFd
from aioirqfd.integers import integer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aioirqfd.eventfd import Poller

bound: Final[dict[int, object]] = {}
"""The eventfd-ids that are bound, by whichever manager of this process, in whichever thread (row I12); each with who claimed it."""

# What the parent has bound is bound there.
os.register_at_fork(after_in_child=bound.clear)


def eventfd_and_id(value: EventFd | int, references: list[EventFd]) -> tuple[EventFd, int]:
    """The eventfd and its id; EBADF, EINVAL (row I08). What was made for an int is added to the references."""
    if isinstance(value, EventFd):
        return value, value.id
    eventfd = EventFd._reference(integer(value, "an eventfd's fd"))
    references.append(eventfd)
    return eventfd, eventfd.id


def id_of(value: EventFd | int) -> int:
    """The same, where no reference is needed."""
    return (value if isinstance(value, EventFd) else EventFd.from_fd(integer(value, "an eventfd's fd"))).id


def check_free(eventfd: EventFd, eventfd_id: int, poller: Poller | None) -> None:
    """Raise unless the eventfd could be bound on this loop just now (row I12)."""
    if eventfd_id in bound:
        raise _busy(eventfd)
    _check_loop(eventfd, poller)


def claim(eventfd: EventFd, eventfd_id: int, poller: Poller | None, claimant: object) -> None:
    """Have the eventfd for oneself, until :func:`release`; raises as :func:`check_free` does.

    To look and to take is one step, for the managers of other threads claim theirs at the same time.
    """
    if bound.setdefault(eventfd_id, claimant) is not claimant:
        raise _busy(eventfd)
    if eventfd._poller is not None:
        try:
            _check_loop(eventfd, poller)
        except WrongLoopError:
            release(eventfd_id, claimant)
            raise


def _busy(eventfd: EventFd) -> EventFdBusyError:
    return EventFdBusyError(f"fd {eventfd.fileno()} is bound to an irqfd already")


def _check_loop(eventfd: EventFd, poller: Poller | None) -> None:
    other = eventfd._poller
    if other is not None and other is not poller and eventfd._waiters and not other.gone:
        raise WrongLoopError("the eventfd is in use on another event loop")


def release(eventfd_id: int, claimant: object) -> None:
    """It is nobody's, if it was this claimant's."""
    if bound.get(eventfd_id) is claimant:
        del bound[eventfd_id]


def reference(eventfd: EventFd) -> EventFd:
    """Another EventFd of it, of one's own."""
    return eventfd._dup()


def close_all(references: Iterable[EventFd]) -> None:
    """Close what was made for ints."""
    for reference in references:
        reference.close()
