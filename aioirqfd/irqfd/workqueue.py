"""A bounded asynchronous work queue, after the kernel's: an item is queued at most once and never runs against itself.

Its worker tasks live in one anyio task group, which a task of the queue's own hosts. A task group that was entered in the
caller's task could only be left in that very task, which rules out pytest fixtures, ``AsyncExitStack`` hand-overs and
``aclose()`` from elsewhere.

What must hold: an item that is put here while it runs runs once more; one that waits runs once. A worker goes to sleep only where
nothing is ready, and whoever makes something ready wakes one. Who waits for a run, perhaps by way of others, is known, so that a wait in
a circle is answered and not waited for. The bound is this file's: it tells its owner when it is full and when half of it is free.

Tempting, and wrong:

- to clear ``pending`` after the run: a signal that comes meanwhile would be lost;
- to look for work, make a future, and wait: a signal handler may queue something between any two of them, so it is looked again;
- to refuse an item that its own run puts back: nobody else would put it back;
- to count on a worker that was woken: it may be cancelled in the same breath, and then another one has to go.
"""

# pyright: reportPrivateUsage=false
# (Work is half of WorkQueue)
from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol, Self, final

from aioirqfd.errors import ClosedError, QueueFullError
from aioirqfd.eventfd.loops import loop_here, running_loop
from aioirqfd.integers import integer
from aioirqfd.irqfd.coroutine import coroutine_function
from aioirqfd.irqfd.guard import report
from aioirqfd.irqfd.statistics import WorkQueueStatistics
from aioirqfd.irqfd.waits import Waits

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
        func: Called without arguments for each run. What it raises goes to the loop's exception handler.

    Raises:
        TypeError: It is no coroutine function.
    """

    __slots__ = ("_waiters", "completed", "func", "pending", "running")

    def __init__(self, func: Callable[[], Awaitable[None]]) -> None:
        self.func = coroutine_function(func, "a work item's function")
        self.pending = False
        self.running: asyncio.Task[object] | None = None
        self.completed = 0
        self._waiters: list[asyncio.Future[None]] | None = None

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)


class Lane(Protocol):
    """Work that comes without items: the handlers of ready irqfds (:class:`aioirqfd.counter.TopHalf`)."""

    room: int

    @property
    def ready(self) -> int:
        """How many wait."""
        ...

    def run_ready(self, task: object, /) -> Awaitable[None]:
        """Run some of them."""
        ...


class Owner(Protocol):
    """Whose queue it is: what it has to hear, beside the program's own ``on_room`` and ``on_end``."""

    def full(self) -> None:
        """There is no room, until :meth:`room` is called."""

    def room(self) -> None:
        """Half of the room is free again."""

    def progress(self) -> None:
        """Whoever waits has to look again: nothing will run any more."""

    def nudge(self) -> None:
        """A worker was made ready, perhaps while the loop sleeps."""


@final
class WorkQueue:
    """Runs work items in the order they came, on a fixed number of tasks.

    The policy at the bound is to refuse (:class:`QueueFullError`); :class:`IrqManager` then leaves the signals where they
    are, in the eventfds, until there is room.

    Args:
        maxsize: How many items may wait, 1..``sys.maxsize``.
        workers: How many may run at once, at least 1. With more than one, items of one queue overlap, though never one with
            itself.

    Raises:
        ValueError: One of them is out of range.
        TypeError: One of them is no integer.

    Used as ``async with``: leaving it normally runs what is queued, leaving it by an exception cancels.
    """

    def __init__(self, maxsize: int = 1024, workers: int = 1) -> None:
        self.maxsize = integer(maxsize, "maxsize of a work queue", 1, sys.maxsize)
        self.workers = integer(workers, "workers of a work queue", 1)
        self.on_room: Callable[[], None] | None = None
        """A program's own: called, once, when half of the room is free again after the queue was full."""
        self.on_end: Callable[[], None] | None = None
        """A program's own: called when somebody else than :meth:`aclose` has cancelled the workers: nothing will run any more."""
        self._lane: Lane | None = None
        self._owner: Owner | None = None
        self._ready: deque[Work] = deque()
        self._size = 0
        self._was_full = False
        self._idle: deque[asyncio.Future[None]] = deque()
        self._workers: set[asyncio.Task[object]] = set()
        self.waits: Final = Waits()  # for one another
        self._closing = False
        self._drainers: list[asyncio.Future[None]] = []
        self._host: asyncio.Task[None] | None = None
        self._scope: CancelScope | None = None
        self._scheduled = self._coalesced = self._completed = self._refused = self._running = 0

    @property
    def full(self) -> bool:
        """Whether ``schedule`` would refuse a new item."""
        return self.waiting >= self.maxsize

    @property
    def idle(self) -> bool:
        """Whether nothing is queued and nothing runs."""
        return not (self.waiting or self._running)

    @property
    def waiting(self) -> int:
        """How many items wait."""
        return self._size if self._lane is None else self._size + self._lane.ready

    @property
    def tasks(self) -> tuple[asyncio.Task[object], ...]:
        """The workers.

        :meta private:
        """
        return tuple(self._workers)

    def statistics(self) -> WorkQueueStatistics:
        """The counts as they are now."""
        return WorkQueueStatistics(
            maxsize=self.maxsize,
            queued=self.waiting,
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
            TypeError: It is no :class:`Work`.

        Threads:
            The loop's thread.
        """
        _check(work)
        if work.pending:
            self._coalesced += 1
            return False
        self.check_open()
        if self.full and work.running is None:
            self._note_full()
            self._refused += 1
            raise QueueFullError(f"{self.maxsize} items are queued")
        return self._put(work)

    def _put(self, work: Work) -> bool:
        # Look and note in one step: a signal handler may have queued it since the last look.
        if work.pending:
            self._coalesced += 1
            return False
        work.pending = True
        self._scheduled += 1
        self._resize(1)
        self._note_full()
        if work.running is None:
            self._ready.append(work)
            self._wake_worker()
        return True

    def _resize(self, by: int) -> None:
        self._size += by
        if self._lane is not None:
            self._lane.room = self.maxsize - self._size

    def join(self, lane: Lane, owner: Owner) -> None:
        """Run what is ready in the lane too, within the same bound, until the queue is closed.

        :meta private:
        """
        self._lane, self._owner = lane, owner
        self._resize(0)

    def wake(self) -> None:
        """There is something new in the lane.

        :meta private:
        """
        self._note_full()
        self._wake_worker()

    def _note_full(self) -> None:
        # Whoever finds it full from here on waits for room: the lane by itself, without asking.
        if not self._was_full and self.full:
            self._was_full = True
            if self._owner is not None:
                self._owner.full()

    def check_open(self) -> None:
        """Raise ClosedError unless there are workers to run what is queued.

        :meta private:
        """
        host = self._host
        if host is None:
            raise ClosedError("the work queue is not open; enter it with `async with` first")
        if host.done():
            cause = None if host.cancelled() else host.exception()
            raise ClosedError("the work queue's tasks are gone: somebody else has ended them") from cause

    @property
    def inside(self) -> bool:
        """Whether the caller is a run of this queue's own, which must not wait for the queue as a whole.

        :meta private:
        """
        return asyncio.current_task() in self._workers

    def check_outside(self) -> None:
        """Raise RuntimeError where waiting would be for ever, because the caller is a run of this queue's own.

        :meta private:
        """
        if self.inside:
            raise RuntimeError("this would wait for the very handler or sink that calls it")

    async def flush(self, work: Work) -> bool:
        """Wait until every run of the item that was queued or running at the call has ended (the kernel's ``flush_work``).

        From within another item's run the item is run right here if it has not begun: to wait for a worker, while being one,
        might be for ever.

        Returns:
            False if that was not possible: the item is the caller's own, or is itself waiting for the caller's.

        Raises:
            ClosedError: The workers were cancelled by somebody else, with the item still queued.
            TypeError: It is no :class:`Work`.
        """
        _check(work)
        task = asyncio.current_task()
        assert task is not None
        target = work.completed + work.pending + (work.running is not None)
        while work.completed < target and (work.pending or work.running is not None):
            if task in self._workers:
                if work.running is None:
                    self._ready.remove(work)
                    await self._run(work, task)
                    continue
                if self.waits.circle(work, task):
                    return False
            self._check_alive()
            await self._wait_for(work)
        return True

    async def expedite(self, work: Work) -> None:
        """Queue the item beyond the bound and flush it: for a caller that occupies the worker which would make room.

        :meta private:
        """
        _check(work)
        if not work.pending:
            self.check_open()
            self._put(work)
        await self.flush(work)

    async def _wait_for(self, work: Work) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = work._waiters
        if waiters is None:
            waiters = work._waiters = []
        waiters.append(waiter)
        try:
            with self.waits.noted(work):
                await waiter
        finally:
            if not waiter.done() or waiter.cancelled():
                waiters.remove(waiter)  # given up

    def _check_alive(self) -> None:
        if not self._closing:
            self.check_open()

    async def drain(self) -> None:
        """Wait until nothing is queued and nothing runs.

        Raises:
            RuntimeError: Called from within a run, which would wait for itself.
            ClosedError: The workers were cancelled by somebody else, with items still queued.
        """
        self.check_outside()
        while not self.idle:
            self._check_alive()
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._drainers.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._drainers:
                    self._drainers.remove(waiter)  # given up

    async def __aenter__(self) -> Self:
        if self._host is not None:
            raise RuntimeError("a work queue is entered once at a time")
        loop = running_loop()
        started: asyncio.Future[None] = loop.create_future()
        self._closing = False
        workers = self._host_workers(started)
        try:
            host = self._host = loop.create_task(workers, name="aioirqfd work queue")
        except BaseException:
            workers.close()  # a task factory of the program's has raised
            raise
        try:
            # Not for `started` alone: whatever ends the host before it has begun is raised here.
            await asyncio.wait({host, started}, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            await self.aclose()
            raise
        if not started.done():
            self._host = None
            if host.cancelled():
                raise ClosedError("somebody else has cancelled the work queue's tasks before they began")
            host.result()
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

        Raises:
            RuntimeError: Called from within a run, which would wait for itself.

        Cancellation:
            Waits for the workers all the same, and is re-raised afterwards.
        """
        host = self._host
        if host is None:
            return
        self.check_outside()
        self._closing = True
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
        self._resize(-self._size)
        self._was_full = False
        self._lane = self._owner = None
        self._wake_drainers()
        if cancelled is not None:
            raise cancelled
        if not host.cancelled():
            host.result()

    def abandon(self) -> None:
        """Without an ``await``, for an owner that was dropped open: the workers end in the loop's next turns, if it has any.

        Threads:
            Any: it is the collector's.

        :meta private:
        """
        self._closing = True
        if self._scope is None or self._host is None:
            return
        loop = self._host.get_loop()
        if loop_here() is loop:
            self._scope.cancel()
        elif not loop.is_closed():
            loop.call_soon_threadsafe(self._scope.cancel)

    async def _host_workers(self, started: asyncio.Future[None]) -> None:
        import anyio  # noqa: PLC0415  kept out of the import of aioirqfd

        loop = asyncio.get_running_loop()
        try:
            async with anyio.create_task_group() as group:
                self._scope = group.cancel_scope
                if self._closing:
                    self._scope.cancel()
                for number in range(self.workers):
                    group.start_soon(self._worker, name=f"aioirqfd worker {number}")
                if not started.done():
                    started.set_result(None)
        finally:
            if not self._closing:
                # Whoever waits has to look again, once this task is done.
                loop.call_soon(self._ended)

    def _ended(self) -> None:
        for work in self.waits.all():
            if isinstance(work, Work):
                work._wake()
        self._wake_drainers()
        if self._owner is not None:
            self._owner.progress()
        _call(self.on_end, "on_end")

    async def _worker(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._workers.add(task)
        try:
            await self._work(task)
        finally:
            self._workers.discard(task)

    async def _work(self, task: asyncio.Task[object]) -> None:
        ready = self._ready
        monotonic = time.monotonic
        turn_ends = monotonic() + _SLICE
        while True:
            lane = self._lane
            if lane is not None and lane.ready:
                if lane.ready > 1:
                    # Told once of all that became ready in one pass: one worker wakes the next, lest the handler of the first
                    # one wait for another's.
                    self._wake_worker()
                await self._run_lane(lane, task)
            if not ready:
                if lane is not None and lane.ready:
                    await asyncio.sleep(0)
                    continue
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._idle.append(waiter)
                if ready or (lane is not None and lane.ready):
                    self._wake_worker()  # by a signal handler, since the look above
                try:
                    await waiter
                except asyncio.CancelledError:
                    if waiter in self._idle:
                        self._idle.remove(waiter)
                    elif self.waiting:
                        self._wake_worker()  # woken and cancelled in the same breath: somebody else goes
                    raise
                turn_ends = monotonic() + _SLICE
                continue
            if lane is not None and lane.ready:
                self._wake_worker()  # the same: its time was up before the lane was empty
            await self._run(ready.popleft(), task)
            if monotonic() >= turn_ends:
                await asyncio.sleep(0)
                turn_ends = monotonic() + _SLICE

    async def _run(self, work: Work, task: asyncio.Task[object]) -> None:
        # Pending goes before the run begins: a signal from here on queues it again (no lost last event).
        work.pending = False
        work.running = task
        self._running += 1
        self._resize(-1)
        try:
            self._tell_room()
            await work.func()
        except asyncio.CancelledError as error:
            if task.cancelling():
                raise
            # Not this worker was cancelled, but something the item was waiting for.
            self._report(work, error)
        except Exception as error:
            self._report(work, error)
        finally:
            work.running = None
            work.completed += 1
            self._running -= 1
            self._completed += 1
            if work.pending:
                self._ready.append(work)
                self._wake_worker()
            if work._waiters is not None:
                work._wake()
            if self._drainers and self.idle:
                self._wake_drainers()

    async def _run_lane(self, lane: Lane, task: asyncio.Task[object]) -> None:
        self._running += 1
        try:
            await lane.run_ready(task)
        finally:
            self._running -= 1
            if self._drainers and self.idle:
                self._wake_drainers()
        self._tell_room()

    def _tell_room(self) -> None:
        if self._was_full and self.waiting <= self.maxsize // 2:
            self._was_full = False
            if self._owner is not None:
                self._owner.room()
            _call(self.on_room, "on_room")

    def _report(self, work: Work, error: BaseException) -> None:
        report(f"aioirqfd: a work item raised: {work.func!r}", error)

    def _wake_worker(self) -> None:
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                if self._owner is not None:
                    self._owner.nudge()
                elif asyncio.current_task() is None:
                    # From a signal handler, perhaps, whose loop is asleep and does not look again by itself.
                    waiter.get_loop().call_soon_threadsafe(_nothing)
                return

    def _wake_drainers(self) -> None:
        drainers, self._drainers = self._drainers, []
        for waiter in drainers:
            if not waiter.done():
                waiter.set_result(None)


def _call(call: Callable[[], None] | None, name: str) -> None:
    """A program's own; what it raises is not the failure of the item that is about to run."""
    if call is not None:
        try:
            call()
        except Exception as error:
            report(f"aioirqfd: {name} raised: {call!r}", error)


def _nothing() -> None:
    """Has a loop turn round once."""


def _check(work: object) -> None:
    if not isinstance(work, Work):
        raise TypeError(f"a work queue takes a Work, not {work!r}: make one of a coroutine function, Work(func)")
