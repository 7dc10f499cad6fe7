"""The work queue: bounded, refusing at its bound, never an item against itself, and never a wait that cannot end."""

from __future__ import annotations

import asyncio
import contextlib

import anyio
import pytest

from aioirqfd import ClosedError, QueueFullError, Work, WorkQueue
from tests.irqfd.helpers import turns


class Item:
    """A work item that waits until told, and counts."""

    def __init__(self, *, name="", log=None, gated=True):
        self.work = Work(self.run)
        self.name = name
        self.log = [] if log is None else log
        self.begun = self.running = self.most = 0
        self.gate = asyncio.Event()
        if not gated:
            self.gate.set()

    async def run(self):
        self.begun += 1
        self.running += 1
        self.most = max(self.most, self.running)
        self.log.append(self.name)
        try:
            await self.gate.wait()
        finally:
            self.running -= 1


@pytest.fixture
async def queue():
    # Entered and left by other tasks than the test's: what a task group of its own could not do.
    async with WorkQueue() as queue:
        yield queue


@pytest.mark.parametrize(("maxsize", "workers"), [(0, 1), (-1, 1), (1, 0), (1, -1)])
def test_nonsense_is_refused(maxsize, workers):
    with pytest.raises(ValueError, match=r"is 1( or more|\.\.)"):
        WorkQueue(maxsize=maxsize, workers=workers)


@pytest.mark.parametrize(("maxsize", "workers"), [(1.5, 1), (1, 1.5), ("1", 1)])
def test_what_is_no_number_of_items_is_refused(maxsize, workers):
    with pytest.raises(TypeError, match="integer"):
        WorkQueue(maxsize=maxsize, workers=workers)


async def test_items_run_in_the_order_they_came(queue):
    log = []
    for name in "abc":
        assert queue.schedule(Item(name=name, log=log, gated=False).work) is True
    assert log == []
    await queue.drain()
    assert log == ["a", "b", "c"]
    stats = queue.statistics()
    assert (stats.scheduled, stats.completed, stats.coalesced, stats.refused) == (3, 3, 0, 0)
    assert (stats.queued, stats.running) == (0, 0)


async def test_an_item_that_is_queued_is_not_queued_twice(queue):
    item = Item()
    assert [queue.schedule(item.work) for _ in range(3)] == [True, False, False]
    await turns()
    # It has begun, so from here on a new run is needed: exactly one.
    assert [queue.schedule(item.work) for _ in range(3)] == [True, False, False]
    item.gate.set()
    await queue.drain()
    assert (item.begun, item.most) == (2, 1)
    assert queue.statistics().coalesced == 4


async def test_it_refuses_at_its_bound_and_says_when_there_is_room():
    async with WorkQueue(maxsize=4) as queue:
        calls = []
        queue.on_room = lambda: calls.append(queue.statistics().queued)
        first, *items = [Item(name=str(n)) for n in range(5)]
        queue.schedule(first.work)
        await turns()
        for item in items:
            assert not queue.full
            queue.schedule(item.work)
        assert queue.full
        with pytest.raises(QueueFullError):
            queue.schedule(Item().work)
        assert queue.schedule(items[0].work) is False, "one that is queued already is not refused"
        assert queue.statistics().refused == 1
        first.gate.set()
        await turns()
        assert (calls, queue.statistics().queued) == ([], 3)
        items[0].gate.set()
        await turns()
        assert calls == [2], "half of it is free"
        for item in items:
            item.gate.set()
        await queue.drain()
        assert calls == [2], "once"


async def test_an_item_put_back_by_its_own_run_is_never_refused():
    async with WorkQueue(maxsize=1) as queue:
        item, other = Item(), Item(gated=False)
        queue.schedule(item.work)
        await turns()
        queue.schedule(other.work)
        assert queue.schedule(item.work) is True
        with pytest.raises(QueueFullError):
            queue.schedule(Item().work)
        item.gate.set()
        await queue.drain()
        assert (item.begun, other.begun) == (2, 1)


async def test_on_room_without_a_refusal():
    async with WorkQueue(maxsize=1) as queue:
        calls = []
        queue.on_room = lambda: calls.append(1)
        queue.schedule(Item(gated=False).work)
        await queue.drain()
        assert calls == [1]


async def test_several_workers_overlap_items_but_never_one_with_itself():
    async with WorkQueue(workers=3) as queue:
        items = [Item() for _ in range(4)]
        for item in items:
            queue.schedule(item.work)
        await turns()
        assert [item.running for item in items] == [1, 1, 1, 0]
        assert queue.statistics().running == 3
        for item in items[:3]:
            queue.schedule(item.work)
        await turns()
        assert [item.running for item in items] == [1, 1, 1, 0]
        for item in items:
            item.gate.set()
        await queue.drain()
        assert [(item.begun, item.most) for item in items] == [(2, 1)] * 3 + [(1, 1)]


async def test_flush_waits_for_the_runs_that_there_were_and_drain_for_all(queue):
    item, other = Item(name="item"), Item(name="other")
    queue.schedule(item.work)
    await turns()
    queue.schedule(item.work)  # running and queued: two runs to wait for
    queue.schedule(other.work)
    flushed = asyncio.ensure_future(queue.flush(item.work))
    drained = asyncio.ensure_future(queue.drain())
    await turns()
    assert not flushed.done()
    item.gate.set()
    await turns()
    # The second run of the item stands behind the other item.
    assert (item.begun, flushed.done()) == (1, False)
    other.gate.set()
    assert await flushed is True
    assert item.begun == 2
    await drained


async def test_flush_of_an_item_that_is_not_there_returns_at_once(queue):
    assert await queue.flush(Item().work) is True
    item = Item(gated=False)
    queue.schedule(item.work)
    await queue.drain()
    assert await queue.flush(item.work) is True


async def test_flush_does_not_wait_for_what_comes_later(queue):
    item = Item()
    queue.schedule(item.work)
    await turns()
    flushed = asyncio.ensure_future(queue.flush(item.work))
    await turns()
    queue.schedule(item.work)
    ends = item.gate
    item.gate = asyncio.Event()
    ends.set()
    await flushed
    assert queue.statistics().running + queue.statistics().queued == 1
    item.gate.set()


async def test_flush_from_within_the_only_worker_runs_the_item_right_there(queue):
    log = []
    other = Item(name="other", log=log, gated=False)

    async def run():
        log.append("flushes")
        assert await queue.flush(other.work) is True
        log.append("flushed")

    queue.schedule(Work(run))
    queue.schedule(other.work)
    await queue.drain()
    assert log == ["flushes", "other", "flushed"]
    assert (other.most, queue.statistics().completed) == (1, 2)


async def test_an_item_that_flushes_itself_is_told_that_it_cannot(queue):
    seen = []
    work = Work(lambda: flush())  # noqa: PLW0108  it is not there yet

    async def flush():
        seen.append(await queue.flush(work))

    queue.schedule(work)
    await queue.drain()
    assert seen == [False]


async def test_two_items_that_flush_each_other_both_end():
    async with WorkQueue(workers=2) as queue:
        seen = {}
        works = {"a": Work(lambda: flush("a", "b")), "b": Work(lambda: flush("b", "a"))}
        both = asyncio.Event()

        async def flush(name, other):
            if len(seen) == 0:
                seen[name] = None
                await both.wait()
            else:
                both.set()
                await asyncio.sleep(0)
            seen[name] = await queue.flush(works[other])

        queue.schedule(works["a"])
        queue.schedule(works["b"])
        await queue.drain()
        assert sorted(seen.values()) == [False, True]


async def test_expedite_runs_an_item_beyond_the_bound():
    async with WorkQueue(maxsize=1) as queue:
        log = []
        extra = Item(name="extra", log=log, gated=False)

        async def run():
            queue.schedule(Item(name="full", log=log, gated=False).work)
            assert queue.full
            await queue.expedite(extra.work)
            log.append("end")

        queue.schedule(Work(run))
        await queue.drain()
        assert log == ["extra", "end", "full"]
        assert queue.statistics().queued == 0


@pytest.mark.parametrize("wait", ["drain", "aclose"])
async def test_waiting_for_the_queue_from_within_it_is_an_error_and_no_deadlock(queue, wait):
    errors = []

    async def run():
        assert queue.inside
        with pytest.raises(RuntimeError, match="wait for the very") as caught:
            await getattr(queue, wait)()
        errors.append(caught.value)

    queue.schedule(Work(run))
    await queue.drain()
    assert len(errors) == 1
    assert not queue.inside
    after = Item(gated=False)
    queue.schedule(after.work)
    await queue.drain()
    assert after.begun == 1


async def test_a_run_that_raises_is_reported_and_takes_nobody_with_it(queue):
    contexts = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))
    error = ZeroDivisionError("oops")

    async def fail():
        raise error

    bad, good = Work(fail), Item(gated=False)
    queue.schedule(bad)
    queue.schedule(good.work)
    await queue.flush(bad)
    await queue.drain()
    assert good.begun == 1
    assert [context["exception"] for context in contexts] == [error]
    assert queue.schedule(bad) is True
    await queue.drain()
    assert len(contexts) == 2


async def test_a_cancelled_error_that_is_not_the_workers_does_not_end_the_worker(queue):
    contexts = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))

    async def wait_for_something_cancelled():
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    good = Item(gated=False)
    queue.schedule(Work(wait_for_something_cancelled))
    queue.schedule(good.work)
    await queue.drain()
    assert good.begun == 1
    assert [type(context["exception"]) for context in contexts] == [asyncio.CancelledError]


async def test_leaving_normally_runs_what_is_queued():
    item = Item(gated=False)
    async with WorkQueue() as queue:
        queue.schedule(item.work)
    assert item.begun == 1
    with pytest.raises(ClosedError):
        queue.schedule(item.work)


async def test_leaving_by_an_exception_cancels():
    running, queued = Item(), Item()
    with pytest.raises(KeyError):
        async with WorkQueue() as queue:
            queue.schedule(running.work)
            queue.schedule(queued.work)
            await turns()
            raise KeyError
    assert (running.begun, running.running, queued.begun) == (1, 0, 0)
    assert not queued.work.pending
    assert running.work.running is None


async def test_aclose_from_another_task_wakes_whoever_waits():
    queue = WorkQueue()
    await queue.__aenter__()
    item, other = Item(), Item()
    queue.schedule(item.work)
    queue.schedule(other.work)
    waiting = [asyncio.ensure_future(wait) for wait in (queue.flush(item.work), queue.flush(other.work), queue.drain())]
    await turns()
    closing = asyncio.ensure_future(queue.aclose())
    await closing
    await asyncio.gather(*waiting)
    await queue.aclose()
    assert (item.running, other.begun) == (0, 0)


async def test_aclose_that_is_cancelled_still_waits_for_the_workers():
    queue = WorkQueue()
    await queue.__aenter__()
    ended = []

    async def stubborn():
        try:
            await asyncio.sleep(3600)
        finally:
            with anyio.CancelScope(shield=True):
                await turns()
            ended.append(1)

    queue.schedule(Work(stubborn))
    await turns()
    closing = asyncio.ensure_future(queue.aclose())
    await turns(3)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert ended == [1]


async def test_entering_that_is_cancelled_leaves_no_task():
    queue = WorkQueue()
    entering = asyncio.ensure_future(queue.__aenter__())
    await asyncio.sleep(0)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    with pytest.raises(ClosedError):
        queue.schedule(Item().work)
    async with queue:
        pass


async def test_it_is_entered_once_at_a_time_and_can_be_entered_again(queue):
    with pytest.raises(RuntimeError, match="once at a time"):
        await queue.__aenter__()
    await queue.aclose()
    item = Item(gated=False)
    async with queue:
        queue.schedule(item.work)
    assert item.begun == 1


async def test_it_is_not_open_before_it_is_entered():
    with pytest.raises(ClosedError):
        WorkQueue().schedule(Item().work)


async def test_under_a_cancel_scope_of_anyio():
    item = Item()
    with anyio.move_on_after(0) as scope:
        async with WorkQueue() as queue:
            queue.schedule(item.work)
            await anyio.sleep(3600)
    assert scope.cancelled_caught
    assert item.running == 0


async def test_workers_that_somebody_else_cancels_end_every_wait():
    queue = WorkQueue(workers=2)
    ended = []
    await queue.__aenter__()
    queue.on_end = lambda: ended.append(1)
    items = [Item() for _ in range(3)]
    for item in items:
        queue.schedule(item.work)
    await turns()
    waiting = [asyncio.ensure_future(queue.drain()), asyncio.ensure_future(queue.flush(items[2].work))]
    await turns()
    for task in asyncio.all_tasks():
        if task.get_name().startswith("aioirqfd"):
            task.cancel()
    for wait in waiting:
        with pytest.raises(ClosedError):
            await wait
    assert ended == [1]
    with pytest.raises(ClosedError):
        queue.schedule(Item().work)
    await queue.aclose()


async def test_one_of_several_workers_cancelled_leaves_the_work_to_the_others():
    async with WorkQueue(workers=2) as queue:
        await turns()
        worker = next(task for task in asyncio.all_tasks() if task.get_name() == "aioirqfd worker 0")
        worker.cancel()
        item = Item(gated=False)
        queue.schedule(item.work)
        await queue.drain()
        assert item.begun == 1
        with contextlib.suppress(asyncio.CancelledError):
            await worker


async def test_waits_that_are_given_up_are_not_kept(queue):
    item = Item()
    queue.schedule(item.work)
    await turns()
    for _ in range(3):
        waiting = [asyncio.ensure_future(queue.drain()), asyncio.ensure_future(queue.flush(item.work))]
        await turns()
        for task in waiting:
            task.cancel()
        await turns()
    assert (queue._drainers, item.work._waiters, queue.waits._for) == ([], [], {})
    item.gate.set()


async def test_items_that_never_wait_do_not_starve_the_loop(queue):
    class Endless:
        def __init__(self):
            self.work = Work(self.run)
            self.runs = 0

        async def run(self):
            self.runs += 1
            if not stop:
                queue.schedule(self.work)

    stop = []
    endless = Endless()
    queue.schedule(endless.work)
    await turns(3)
    stop.append(1)
    await queue.drain()
    assert endless.runs > 1
