"""A sink that only counts, and says when it has seen enough."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aioirqfd import Interrupt


class CountingSink:
    """Takes everything at once; ``await round_of(n)`` gives the nanoseconds until n have come."""

    __slots__ = ("count", "end", "goal", "reached")

    def __init__(self) -> None:
        self.count = 0
        self.goal = -1
        self.end = 0
        self.reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def inject(self, interrupt: Interrupt) -> None:
        """Count it."""
        self.try_inject(interrupt)

    def try_inject(self, interrupt: Interrupt) -> bool:
        """Count it; no more work than the hand-written callback beside it does."""
        self.count += 1
        if self.count == self.goal:
            self.end = time.perf_counter_ns()
            self.reached.set_result(None)
        return True

    def try_inject_batch(self, interrupts: Sequence[Interrupt], /) -> int:
        """Count all of them."""
        n = len(interrupts)
        self.count += n
        if self.count == self.goal:
            self.end = time.perf_counter_ns()
            self.reached.set_result(None)
        return n

    def expect(self, n: int) -> None:
        """From here on, n are wanted."""
        self.count = 0
        self.goal = n
        self.reached = asyncio.get_running_loop().create_future()

    async def round(self) -> int:
        """Nanoseconds until they have come."""
        begin = time.perf_counter_ns()
        await self.reached
        return self.end - begin
