"""A bounded asynchronous work queue, after the kernel's: an item is queued at most once and never runs against itself.

Its worker tasks live in one anyio task group, which a task of the queue's own hosts. A task group that was entered in the
caller's task could only be left in that very task, which rules out pytest fixtures, ``AsyncExitStack`` hand-overs and
``aclose()`` from elsewhere.
"""

# pyright: reportPrivateUsage=false
# (Work is half of WorkQueue)
from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, final

from aioirqfd.errors import ClosedError, QueueFullError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from anyio import CancelScope

_SLICE: Final = 0.001
"""Seconds a worker goes on before the loop gets a turn, when its items never really wait."""


@final
class Work:
    """One item (the kernel's ``struct work_struct``): a coroutine function, and whether it is pending or running.

    Args:
        func: Called without arguments for each run; must deal with its own errors.
    """

    __slots__ = ("_waiters", "completed", "func", "pending", "running")

    def __init__(self, func: Callable[[], Awaitable[None]]) -> None:
        self.func = func
        self.pending = False
        self.running: asyncio.Task[object] | None = None
        self.completed = 0
        self._waiters: list[asyncio.Future[None]] | None = None

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)


@dataclass(frozen=True, slots=True)
class WorkQueueStatistics:
    """Counts of a work queue.

    Attributes:
        maxsize: Its bound.
        queued: Items waiting now, 0..maxsize (and an item each worker may put back at the bound).
        running: Items running now, 0..workers.
        scheduled: Items queued since it was made.
        coalesced: Calls of ``schedule`` that found the item queued already.
        completed: Runs that ended.
        refused: Calls of ``schedule`` that found it full.
    """

    maxsize: int
    queued: int
    running: int
    scheduled: int
    coalesced: int
    completed: int
    refused: int


@final
class WorkQueue:
    """Runs work items in the order they came, on a fixed number of tasks.

    The policy at the bound is to refuse (:class:`QueueFullError`); :class:`IrqManager` then leaves the signals where they
    are, in the eventfds, until there is room.

    Args:
        maxsize: How many items may wait, at least 1.
        workers: How many may run at once, at least 1. With more than one, items of one queue overlap, though never one with
            itself.

    Used as ``async with``: leaving it normally runs what is queued, leaving it by an exception cancels.
    """

    def __init__(self, maxsize: int = 1024, workers: int = 1) -> None:
        if maxsize < 1 or workers < 1:
            raise ValueError(f"a work queue has room for 1 or more, and 1 or more workers, not {maxsize} and {workers}")
        self.maxsize = maxsize
        self.workers = workers
        self.on_room: Callable[[], None] | None = None
        """Called, once, when half of the room is free again after the queue was full."""
        self._ready: deque[Work] = deque()
        self._size = 0
        self._was_full = False
        self._idle: deque[asyncio.Future[None]] = deque()
        self._drainers: list[asyncio.Future[None]] = []
        self._host: asyncio.Task[None] | None = None
        self._scope: CancelScope | None = None
        self._scheduled = self._coalesced = self._completed = self._refused = self._running = 0

    @property
    def full(self) -> bool:
        """Whether ``schedule`` would refuse a new item."""
        return self._size >= self.maxsize

    def statistics(self) -> WorkQueueStatistics:
        """The counts as they are now."""
        return WorkQueueStatistics(
            maxsize=self.maxsize,
            queued=self._size,
            running=self._running,
            scheduled=self._scheduled,
            coalesced=self._coalesced,
            completed=self._completed,
            refused=self._refused,
        )

    def schedule(self, work: Work) -> bool:
        """Queue the item (the kernel's ``schedule_work``).

        Returns:
            False if it was queued already and has not begun: that run will do (row W02).

        Raises:
            QueueFullError: There are ``maxsize`` items. An item that is put back by its own run is never refused.
            ClosedError: The queue is not open.

        Threads:
            The loop's thread.
        """
        if work.pending:
            self._coalesced += 1
            return False
        if self._host is None:
            raise ClosedError("the work queue is not open")
        if self._size >= self.maxsize and work.running is None:
            self._was_full = True
            self._refused += 1
            raise QueueFullError(f"{self.maxsize} items are queued")
        work.pending = True
        self._scheduled += 1
        self._size += 1
        if work.running is None:
            self._ready.append(work)
            self._wake_worker()
        return True

    def watch_room(self) -> None:
        """Ask for one call of ``on_room``."""
        self._was_full = True

    async def flush(self, work: Work) -> None:
        """Wait until every run of the item that was queued or running at the call has ended (the kernel's ``flush_work``)."""
        target = work.completed + work.pending + (work.running is not None)
        while work.completed < target and (work.pending or work.running is not None):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if work._waiters is None:
                work._waiters = []
            work._waiters.append(waiter)
            await waiter

    async def drain(self) -> None:
        """Wait until nothing is queued and nothing runs."""
        while self._size or self._running:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._drainers.append(waiter)
            await waiter

    async def __aenter__(self) -> Self:
        if self._host is not None:
            raise RuntimeError("a work queue is entered once at a time")
        loop = asyncio.get_running_loop()
        started: asyncio.Future[None] = loop.create_future()
        self._host = loop.create_task(self._host_workers(started), name="aioirqfd work queue")
        await started
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if exc_type is None:
                await self.drain()
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Cancel what runs, forget what is queued, and wait until the workers are gone; idempotent.

        Cancellation:
            Waits for the workers all the same, and is re-raised afterwards.
        """
        host = self._host
        if host is None:
            return
        if self._scope is not None:
            self._scope.cancel()
        cancelled: asyncio.CancelledError | None = None
        while not host.done():
            try:
                await asyncio.wait({host})
            except asyncio.CancelledError as error:
                cancelled = error
        self._host = None
        self._scope = None
        while self._ready:
            work = self._ready.popleft()
            work.pending = False
            work._wake()
        self._size = 0
        self._wake_drainers()
        if cancelled is not None:
            raise cancelled
        if not host.cancelled():
            host.result()

    def abandon(self) -> None:
        """Without an ``await``, for an owner that was dropped open: the workers end in the loop's next turns, if it has any."""
        if self._scope is not None and self._host is not None and not self._host.get_loop().is_closed():
            self._scope.cancel()

    async def _host_workers(self, started: asyncio.Future[None]) -> None:
        import anyio  # noqa: PLC0415  kept out of the import of aioirqfd

        async with anyio.create_task_group() as group:
            self._scope = group.cancel_scope
            for number in range(self.workers):
                group.start_soon(self._worker, name=f"aioirqfd worker {number}")
            if not started.done():
                started.set_result(None)

    async def _worker(self) -> None:
        ready = self._ready
        monotonic = time.monotonic
        task = asyncio.current_task()
        assert task is not None
        turn_ends = monotonic() + _SLICE
        while True:
            if not ready:
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._idle.append(waiter)
                try:
                    await waiter
                finally:
                    if waiter in self._idle:
                        self._idle.remove(waiter)
                turn_ends = monotonic() + _SLICE
                continue
            work = ready.popleft()
            # Pending goes before the run begins: a signal from here on queues it again (no lost last event).
            work.pending = False
            work.running = task
            self._running += 1
            self._size -= 1
            if self._was_full and self._size <= self.maxsize // 2:
                self._was_full = False
                if self.on_room is not None:
                    self.on_room()
            try:
                await work.func()
            finally:
                work.running = None
                work.completed += 1
                self._running -= 1
                self._completed += 1
                if work.pending:
                    ready.append(work)
                    self._wake_worker()
                if work._waiters is not None:
                    work._wake()
                if self._drainers and not self._size and not self._running:
                    self._wake_drainers()
            if monotonic() >= turn_ends:
                await asyncio.sleep(0)
                turn_ends = monotonic() + _SLICE

    def _wake_worker(self) -> None:
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _wake_drainers(self) -> None:
        drainers, self._drainers = self._drainers, []
        for waiter in drainers:
            if not waiter.done():
                waiter.set_result(None)
