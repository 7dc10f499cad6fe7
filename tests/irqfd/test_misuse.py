"""Every misuse has its documented error, and changes nothing else."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from typing import Any

import pytest

from aioirqfd import (
    ClosedError,
    EventFd,
    EventFdBusyError,
    EventFdInvalidError,
    IrqchipPin,
    IrqfdError,
    IrqManager,
    Msi,
    Retry,
    RoutingError,
    Work,
    WorkQueue,
    WorkQueueStatistics,
    WrongLoopError,
)
from aioirqfd.irqfd.life import Stage
from aioirqfd.sinks import RecordingSink
from tests.irqfd.helpers import MSI, pulse, write


@pytest.fixture
async def irqs():
    async with IrqManager(RecordingSink(), routing={5: MSI}) as irqs:
        yield irqs


@pytest.fixture
def kick():
    with EventFd() as kick:
        yield kick


@pytest.fixture
async def unchanged(irqs, kick):
    """Whatever the test does: the manager has the irqfd that it had, and injects."""
    irqfd = irqs.assign(kick, gsi=5)
    routing, stats = irqs.routing, irqs.statistics()
    yield irqfd
    assert irqs.irqfds == (irqfd,)
    assert irqs.routing is routing
    assert irqs.statistics() == stats
    injected = len(irqs._irqfds.delivery.tiers.sink.interrupts)
    kick.signal()
    write(kick)
    await irqs.flush()
    assert irqs._irqfds.delivery.tiers.sink.interrupts[injected:] == [pulse(5, MSI)] * 2


class Case:
    def __init__(self, error, code=None):
        self.error, self.code = error, code

    def __enter__(self):
        self.caught = pytest.raises(self.error)
        self.info = self.caught.__enter__()
        return self

    def __exit__(self, *error):
        suppressed = self.caught.__exit__(*error)
        if self.code is not None:
            assert self.info.value.errno == self.code
        return suppressed


async def test_closed_eventfds(irqs, unchanged):
    gone = EventFd()
    gone.close()
    with EventFd() as free:
        fd = os.eventfd(0, os.EFD_CLOEXEC)
        behind = EventFd.from_fd(fd)
        os.close(fd)
        for bad in (gone, 10**6, -1, behind):
            with Case(ClosedError, errno.EBADF):
                irqs.assign(bad, gsi=6)
            with Case(ClosedError, errno.EBADF):
                irqs.assign(free, gsi=6, resamplefd=bad)
    for call in (gone.signal, gone.fileno, gone.read_nowait):
        with Case(ClosedError, errno.EBADF):
            call()


async def test_what_is_no_eventfd(irqs, unchanged, pipe):
    with EventFd() as free:
        for bad in (pipe, 0):
            with Case(EventFdInvalidError, errno.EINVAL):
                irqs.assign(bad, gsi=6)
            with Case(EventFdInvalidError, errno.EINVAL):
                irqs.assign(free, gsi=6, resamplefd=bad)
        for bad in (None, "kick", 1.5, object()):
            with Case(TypeError):
                irqs.assign(bad, gsi=6)


async def test_the_same_eventfd_twice(irqs, unchanged, kick):
    dup = os.dup(kick.fileno())
    for again in (kick, kick.fileno(), dup):
        with Case(EventFdBusyError, errno.EBUSY):
            irqs.assign(again, gsi=6)
    os.close(dup)


async def test_bad_gsis(irqs, unchanged):
    with EventFd() as free:
        for gsi in (-1, 2**32):
            with Case(ValueError):
                irqs.assign(free, gsi=gsi)
        for gsi in (None, "5", 5.0):
            with Case(TypeError):
                irqs.assign(free, gsi=gsi)


async def test_bad_handlers(irqs, unchanged):
    with EventFd() as free:
        for wakeup in (5, [None], ["handler"], [print, 5]):
            with Case(TypeError):
                irqs.assign(free, gsi=6, wakeup=wakeup)


async def test_bad_routes(irqs, unchanged):
    tables: list[Any] = [{4096: MSI}, {-1: MSI}, {5: None}, {5: [MSI, MSI]}, {5: MSI, 6: "pic"}]
    for routing in tables:
        with Case(RoutingError, errno.EINVAL):
            irqs.set_routing(routing)
        with Case(RoutingError, errno.EINVAL):
            IrqManager(RecordingSink(), routing=routing)
    for make in (lambda: IrqchipPin("pic", 16), lambda: Msi(-1, 0)):
        with Case(RoutingError, errno.EINVAL):
            make()


@pytest.mark.parametrize("value", [0, -1, 2**64 - 1, 2**64, 2**100])
async def test_bad_signals(unchanged, kick, value):
    with Case(ValueError):
        kick.signal(value)
    with EventFd() as free:
        with Case(ValueError):
            free.signal(value)
        assert unchanged.pending is False


@pytest.mark.parametrize("value", ["1", 1.0, None])
async def test_signals_that_are_no_numbers(unchanged, kick, value):
    with Case(TypeError):
        kick.signal(value)


async def test_from_a_thread_without_a_loop_and_from_another_loop(irqs, unchanged, kick):
    calls = {
        "assign": lambda free: irqs.assign(free, gsi=6),
        "set_routing": lambda free: irqs.set_routing({}),
        "resume": lambda free: irqs.resume(),
        "snapshot": lambda free: irqs.snapshot(),
        "restore": lambda free: irqs.restore({}),
        "mask": lambda free: unchanged.mask(),
        "unmask": lambda free: unchanged.unmask(),
        "irqfd.resume": lambda free: unchanged.resume(),
        "read_nowait": lambda free: kick.read_nowait(),
    }
    coroutines = {
        "deassign": lambda: irqs.deassign(unchanged),
        "flush": irqs.flush,
        "pause": irqs.pause,
    }
    seen = {}

    def note(name, call, *args):
        try:
            call(*args)
        except BaseException as error:
            seen[name] = type(error)
        else:
            seen[name] = None

    def elsewhere():
        with EventFd() as free:
            for name, call in calls.items():
                note(f"thread {name}", call, free)

            async def main():
                for name, call in calls.items():
                    note(f"loop {name}", call, free)
                for name, make in coroutines.items():
                    try:
                        await make()
                    except WrongLoopError:
                        seen[f"loop {name}"] = WrongLoopError

            asyncio.run(main())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == {
        **{f"thread {name}": WrongLoopError for name in calls},
        **{f"loop {name}": WrongLoopError for name in (*calls, *coroutines)},
    }


async def test_an_eventfd_that_another_loop_waits_on(irqs, unchanged):
    ready, done = threading.Event(), threading.Event()
    with EventFd() as free:

        def elsewhere():
            async def main():
                reading = asyncio.ensure_future(free.read())
                await asyncio.sleep(0)
                ready.set()
                await asyncio.get_running_loop().run_in_executor(None, done.wait)
                free.signal(3)
                assert await reading == 3

            asyncio.run(main())

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await asyncio.get_running_loop().run_in_executor(None, ready.wait)
        with Case(WrongLoopError):
            irqs.assign(free, gsi=6)
        done.set()
        await asyncio.get_running_loop().run_in_executor(None, thread.join)
        irqfd = irqs.assign(free, gsi=6)
        await irqs.deassign(irqfd)
    await asyncio.get_running_loop().shutdown_default_executor()


def test_outside_a_running_loop():
    irqs = IrqManager(RecordingSink())
    with EventFd() as kick:
        for call in (lambda: irqs.assign(kick, gsi=5), lambda: irqs.set_routing({}), irqs.resume, irqs.snapshot):
            with Case(WrongLoopError):
                call()
    irqs.ack(5)  # any thread, any time
    assert irqs.irqfds == ()


async def test_before_it_is_entered_and_after_it_is_closed(kick):
    irqs = IrqManager(RecordingSink())
    irqfd = None
    for _ in range(2):
        for call in (lambda: irqs.assign(kick, gsi=5), lambda: irqs.set_routing({}), irqs.resume, irqs.snapshot):
            with Case(ClosedError, errno.EBADF):
                call()
        for coroutine in (irqs.flush, irqs.pause):
            with Case(ClosedError, errno.EBADF):
                await coroutine()
        await irqs.aclose()
        if irqs._irqfds.life.stage is Stage.NEW:
            async with irqs:
                irqfd = irqs.assign(kick, gsi=5)
    assert irqfd is not None
    await irqs.deassign(irqfd)
    for call in (irqfd.mask, irqfd.unmask, irqfd.resume):
        with Case(ClosedError):
            call()
    assert irqs.statistics().irqfds == 0


@pytest.mark.parametrize("options", [{"unrouted": "keep"}, {"unrouted": None}])
def test_bad_options(options):
    with Case(ValueError):
        IrqManager(RecordingSink(), **options)


@pytest.mark.parametrize("sink", [None, 5, object(), "sink"])
def test_what_is_no_sink(sink):
    with Case(TypeError):
        IrqManager(sink)


@pytest.mark.parametrize("retry", [(-1,), (1, -0.1), (1, 2.0, 1.0), (1, float("nan")), (1, 0.1, float("nan"))])
def test_bad_back_offs(retry):
    with Case(ValueError):
        Retry(*retry)


@pytest.mark.parametrize("retry", [(1.5,), ("1",), (1, "0.1")])
def test_back_offs_that_are_no_numbers(retry):
    with Case(TypeError):
        Retry(*retry)


def test_the_back_off_doubles_up_to_its_cap():
    retry = Retry(attempts=99, initial=0.01, maximum=0.05)
    assert [retry.delay(n) for n in (1, 2, 3, 4, 5000)] == [0.01, 0.02, 0.04, 0.05, 0.05]


async def test_a_queue_that_is_in_use():
    async with WorkQueue() as queue:
        with Case(RuntimeError):
            await IrqManager(RecordingSink(), queue=queue).__aenter__()


@pytest.mark.parametrize("work", [3, None, lambda: None, Work])
async def test_what_is_no_work(work):
    async with WorkQueue() as queue:
        for call in (queue.schedule, queue.flush, queue.expedite):
            with pytest.raises(TypeError, match=r"takes a Work, not .*Work\(func\)"):
                refused: Any = call(work)
                await refused
        assert queue.statistics() == WorkQueueStatistics(1024, 0, 0, 0, 0, 0, 0)


def test_every_error_is_one_of_ours():
    for error in (ClosedError, EventFdBusyError, EventFdInvalidError, RoutingError, WrongLoopError):
        assert issubclass(error, IrqfdError)


@pytest.mark.parametrize("table", [None, "x", 5, [(5, IrqchipPin("ioapic", 5))]])
async def test_a_table_that_is_none_is_refused(table):
    async with IrqManager(RecordingSink()) as irqs:
        before = irqs.routing
        with pytest.raises(TypeError, match="maps gsis to routes"):
            irqs.set_routing(table)
        assert irqs.routing is before


@pytest.mark.parametrize("wakeup", [5, "x", [5]])
async def test_a_wakeup_handler_that_is_none_is_refused(wakeup):
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick:
            with pytest.raises(TypeError):
                irqs.assign(kick, gsi=5, wakeup=wakeup)
            assert irqs.irqfds == ()


def test_a_sinks_class_is_no_sink():
    sink: Any = RecordingSink
    with pytest.raises(TypeError, match="an interrupt sink has a coroutine method"):
        IrqManager(sink)
