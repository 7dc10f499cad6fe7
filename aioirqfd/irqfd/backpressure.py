"""Between the irqfds of a manager and its bounded work queue.

What finds the queue full is not refused and does not grow: the signals of irqfds stay in their eventfds, held by the counter
module, and the few items that have no eventfd wait here in line. Both go on when half of the room is free again.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, final

from aioirqfd.errors import ClosedError, QueueFullError
from aioirqfd.irqfd.life import Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioirqfd.counter import Drain, TopHalf
    from aioirqfd.irqfd.life import Life
    from aioirqfd.irqfd.workqueue import Work, WorkQueue


@final
class Backpressure:
    """Queues work where there is room, has signals wait where there is none, and tells who waits that something has ended.

    Args:
        queue: The work queue.
        emit: Tells the tracer of ``queue_full`` and ``queue_resumed``.
        life: The manager's.

    Attributes:
        queue: The work queue.
    """

    __slots__ = ("_drain", "_emit", "_full_since", "_life", "_top_half", "_waiters", "_waiting", "queue")

    def __init__(self, queue: WorkQueue, emit: Callable[..., None], life: Life) -> None:
        self.queue: Final = queue
        self._emit: Final = emit
        self._top_half: TopHalf | None = None
        self._drain: Drain | None = None
        self._waiting: OrderedDict[Work, None] = OrderedDict()
        self._waiters: list[asyncio.Future[None]] = []
        self._full_since = 0.0
        self._life: Final = life

    def open(self, top_half: TopHalf, drain: Drain) -> None:
        """Begin: the queue runs, and the top half's irqfds are to be queued."""
        self._top_half = top_half
        self._drain = drain
        self.queue.join(top_half, self)

    def forget(self) -> None:
        """What waits in line is left undone, and goes back into its eventfd."""
        self._waiting.clear()

    # -- queueing ----------------------------------------------------------------------------------------------------

    def schedule(self, work: Work) -> None:
        """Queue an item, or let it wait for room. At the bound, signals wait in their eventfds from here on."""
        if not Stage.OPEN <= self._life.stage <= Stage.CLOSING:
            return
        try:
            self.queue.schedule(work)
        except QueueFullError:
            self._waiting[work] = None  # once, however often it comes
        except ClosedError:
            return  # somebody else has cancelled its workers: what is owed goes back into its eventfd in the end

    def ready(self) -> None:
        """Handlers are to be run. Called by the counter module, once a pass."""
        self.queue.wake()

    def full(self) -> None:
        """The queue is at its bound: what the sink does not take at once is held in its eventfd from here on."""
        top_half = self._top_half
        if top_half is not None and not top_half.full:
            top_half.full = True
            self._full_since = time.monotonic()
            self._emit("queue_full", maxsize=self.queue.maxsize)

    def room(self) -> None:
        """Half of the room is free again: whatever waits for it goes on."""
        while self._waiting and not self.queue.full:
            work, _ = self._waiting.popitem(last=False)
            try:
                self.queue.schedule(work)
            except QueueFullError:  # a signal handler has taken the room
                self._waiting[work] = None
                self._waiting.move_to_end(work, last=False)
        if self.queue.full:
            return  # the next time, then
        top_half = self._top_half
        assert top_half is not None
        top_half.full = False
        self._emit("queue_resumed", held=top_half.held, after=time.monotonic() - self._full_since)
        if not top_half.paused:
            top_half.release()

    # -- waiting -----------------------------------------------------------------------------------------------------

    def check_alive(self) -> None:
        """Raise ClosedError if somebody else has cancelled the work queue's tasks, and waiting would be for ever."""
        if self._life.open:
            self.queue.check_open()

    def waits_for_room(self, work: Work) -> bool:
        """Whether the item found the queue full, and is to be queued as soon as it is not."""
        return work in self._waiting

    async def flush(self, work: Work) -> bool:
        """Wait for what is queued or running of an item, wherever it waits; False if it waits for the caller."""
        while work in self._waiting:
            if self.queue.inside:
                del self._waiting[work]
                await self.queue.expedite(work)
            else:
                self.check_alive()
                await self.next_progress()
        return await self.queue.flush(work)

    def nudge(self) -> None:
        """Something was made ready on the loop's thread, perhaps while the loop sleeps."""
        if self._drain is not None:
            self._drain.nudge()

    def progress(self) -> None:
        """An injection has ended, one way or another. Called by the counter module too, while somebody waits."""
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            if self._top_half is not None:
                self._top_half.watched = False
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self.nudge()

    async def next_progress(self) -> None:
        """Wait until an injection has ended."""
        if self._top_half is not None:
            self._top_half.watched = True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)  # given up
