"""What is kept back: each as a future, alone or in a group that goes on together."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Final, Protocol, final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Waiting = asyncio.Future[int]
"""One that is kept back. Its result: 0, it is to go on at once; else the rest of its plan is to be kept to, and those with the same
number above 1 go on together."""


_numbers: Final = itertools.count(2)


class Timer(Protocol):
    """A call to come."""

    def cancel(self) -> None:
        """Do not make it. Idempotent."""


class Clock(Protocol):
    """What time it is: the running loop, or a test's own.

    A loop's ``time()`` and ``call_later()`` are these.
    """

    def time(self) -> float:
        """Seconds since some moment."""
        ...

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        """Call it in so many seconds."""
        ...


def let_go(group: Iterable[Waiting], how: int = 1) -> None:
    """Let them go on: at once (0), as they are told (1), or so and together (a number of their own)."""
    for waiting in group:
        if not waiting.done():
            waiting.set_result(how)


@final
class Group:
    """Requests that wait until there are enough, and then go on in one turn of the loop.

    Args:
        clock: What time it is.
        order: Puts them in order, in place.
    """

    def __init__(self, clock: Clock, order: Callable[[list[Waiting]], object]) -> None:
        self.timer: Timer | None = None
        self._clock = clock
        self._order = order
        self._waiting: list[Waiting] = []

    def join(self, waiting: Waiting, size: int, seconds: float) -> None:
        """Wait with the others, until there are ``size``, or the first one has waited so many seconds."""
        self._waiting.append(waiting)
        if len(self._waiting) >= size:
            self._open()
        elif self.timer is None:
            self.timer = self._clock.call_later(seconds, self._open)

    def _open(self) -> None:
        group = self.leave()
        self._order(group)
        loop = asyncio.get_running_loop()
        number = next(_numbers)
        # In a turn after the next one: one that joined in this turn begins to wait in the next, and would come after the others.
        loop.call_soon(lambda: loop.call_soon(let_go, group, number))

    def leave(self) -> list[Waiting]:
        """Break up; return those that have waited and still do."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        group, self._waiting = self._waiting, []
        return [waiting for waiting in group if not waiting.done()]
