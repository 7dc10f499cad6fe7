"""What the others stand on: the range of a count, the lock that stands in for the atomics, and who an irqfd is to them."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final, Protocol, SupportsIndex

from aioirqfd.integers import integer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[..., Awaitable[object]]

MAX: Final = 2**64 - 2
"""The highest count a write leaves in an eventfd; 2**64-1 is kept for a saturated in-kernel signal (rows E06, E18)."""
MASK: Final = 2**64 - 1
BATCH: Final = 1024

lock: Final = threading.RLock()
"""Held for a few instructions around counts and debts, by whichever thread signals.

Reentrant, because a Python signal handler or a finaliser may signal in the middle of them. The order of the instructions
allows for that: each look and its change stand together.
"""
# A thread that signals just now does not exist in a forked child, and would never let go of it there.
os.register_at_fork(after_in_child=lock._at_fork_reinit)  # type: ignore[attr-defined]


class _Unraisable:
    """Raises where nobody can catch it, which the interpreter reports to ``sys.unraisablehook``."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __del__(self) -> None:
        raise self.error


def unraisable(error: BaseException) -> None:
    """Report what nobody can be given."""
    _Unraisable(error)


class Irqfd(Protocol):
    """What is called of an irqfd."""

    def wakeup(self, count: int, /) -> None: ...
    def defer(self, count: int, /) -> None: ...
    def rest(self, count: int, /) -> None: ...
    def left(self) -> None: ...
    def handler_failed(self, error: BaseException, count: int, /) -> bool: ...


def amount(value: SupportsIndex, low: int, what: str) -> int:
    """A count, checked."""
    return integer(value, what, low, MAX)
