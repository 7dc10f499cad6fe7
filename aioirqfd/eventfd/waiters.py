"""Who waits to read an eventfd: first come, first served (row E15)."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioirqfd.eventfd.eventfd import EventFd


@final
class Waiters:
    """The line of those who wait, and those who were handed a count and have not come for it.

    Between the two lies a turn of the loop, in which a reader may be cancelled: the count is then nobody's, and goes back.

    Attributes:
        heir: The eventfd outlives its close in this one, until all have come for what they were handed.
        turn_ends: When those who need not wait give the loop a turn, by the monotonic clock; 0: somebody has waited.
    """

    __slots__ = ("_handed", "_line", "heir", "turn_ends")

    def __init__(self) -> None:
        self.heir: EventFd | None = None
        self.turn_ends = 0.0
        # Whether each consumes. A dict, for whoever gives up in the middle of thousands.
        self._line: OrderedDict[asyncio.Future[int], bool] = OrderedDict()
        self._handed: set[asyncio.Future[int]] = set()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._line)

    @property
    def owed(self) -> bool:
        """Whether somebody has not come yet for a count."""
        return bool(self._handed)

    def join(self, *, consume: bool) -> asyncio.Future[int]:
        """Wait: the future is given the count, or 0 where it is not to be consumed."""
        waiting: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._line[waiting] = consume
        return waiting

    def hand(self, count: int) -> asyncio.Future[int]:
        """Hand a count to one that did not have to wait, and comes for it a turn later all the same."""
        waiting: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiting.set_result(count)
        self._handed.add(waiting)
        return waiting

    def leave(self, waiting: asyncio.Future[int]) -> int:
        """Wait no more; the count that was handed out and is still this waiter's, or 0."""
        self._line.pop(waiting, None)
        if waiting not in self._handed:
            return 0
        self._handed.discard(waiting)
        return waiting.result()

    def serve(self, take: Callable[[], int], readable: Callable[[], bool]) -> None:
        """Hand out what there is."""
        line = self._line
        while line:
            waiting, consume = next(iter(line.items()))
            if not waiting.done():
                try:
                    count = take() if consume else int(readable())
                except OSError as error:
                    waiting.set_exception(error)  # its fd was closed behind its back, say
                else:
                    if not count:
                        return
                    if consume:
                        self._handed.add(waiting)
                    waiting.set_result(count if consume else 0)
            line.popitem(last=False)

    def fail(self, error: Callable[[], Exception]) -> None:
        """Tell all who wait that there is nothing to wait for."""
        line, self._line = self._line, OrderedDict()
        for waiting in line:
            if not waiting.done():
                waiting.set_exception(error())

    def forget(self) -> None:
        """None of those who wait will ever come."""
        self._line.clear()

    def recall(self) -> int:
        """What was handed out and not come for is nobody's; how much that is."""
        handed, self._handed = self._handed, set()
        return sum(waiting.result() for waiting in handed)
