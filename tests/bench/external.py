"""Written from outside, N eventfds at once: how long until the last one has reached the sink, or the callback."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from typing import TYPE_CHECKING, cast

import anyio
import trio

from aioirqfd import EventFd, IrqFd, IrqManager
from tests.bench.floor import eventfds
from tests.bench.loops import on_loops
from tests.bench.measure import Case
from tests.bench.sinks import CountingSink

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SIZES = {1: 2000, 64: 300, 1024: 30}
"""Number of eventfds, and passes of each round."""


def write_all(fds: list[int]) -> None:
    """One signal to each, from outside."""
    for fd in fds:
        os.eventfd_write(fd, 1)


def aioirqfd_sink(n: int, passes: int, *, idle: int = 0) -> Callable[[], Awaitable[float]]:
    """n irqfds on a batch sink, beside some that are never signalled."""

    async def run() -> float:
        sink = CountingSink()
        async with IrqManager(sink) as irqs:
            quiet = [EventFd() for _ in range(idle)]
            kicks = [EventFd() for _ in range(n)]
            for number, kick in enumerate(quiet + kicks):
                irqs.assign(kick, gsi=number % 24)
            fds = [kick.fileno() for kick in kicks]
            took: list[int] = []
            for _ in range(passes):
                sink.expect(n)
                write_all(fds)
                took.append(await sink.round())
            for kick in kicks + quiet:
                kick.close()
        return statistics.median(took) / n

    return run


def aioirqfd_handlers(n: int, passes: int) -> Callable[[], Awaitable[float]]:
    """The same with a coroutine wakeup handler for each."""

    async def run() -> float:
        sink = CountingSink()
        seen = 0

        async def on_wakeup(irqfd: IrqFd, count: int) -> None:
            nonlocal seen
            seen += count

        async with IrqManager(sink) as irqs:
            kicks = [EventFd() for _ in range(n)]
            for number, kick in enumerate(kicks):
                irqs.assign(kick, gsi=number % 24, wakeup=on_wakeup)
            fds = [kick.fileno() for kick in kicks]
            took: list[int] = []
            for _ in range(passes):
                sink.expect(n)
                write_all(fds)
                took.append(await sink.round())
            for kick in kicks:
                kick.close()
        assert seen == n * passes
        return statistics.median(took) / n

    return run


def add_reader(n: int, passes: int) -> Callable[[], Awaitable[float]]:
    """What one writes by hand: a reader callback for each eventfd."""

    async def run() -> float:
        loop = asyncio.get_running_loop()
        left = 0
        end = 0
        done: asyncio.Future[None] = loop.create_future()

        def on_readable(fd: int) -> None:
            nonlocal left, end
            os.eventfd_read(fd)
            left -= 1
            if not left:
                end = time.perf_counter_ns()
                done.set_result(None)

        with eventfds(n) as fds:
            for fd in fds:
                loop.add_reader(fd, on_readable, fd)
            took: list[int] = []
            for _ in range(passes):
                left = n
                done = loop.create_future()
                write_all(fds)
                begin = time.perf_counter_ns()
                await done
                took.append(end - begin)
            for fd in fds:
                loop.remove_reader(fd)
        return statistics.median(took) / n

    return run


class _ByHand:
    """An awaitable eventfd as people write it: a reader that completes a future."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.loop = asyncio.get_running_loop()
        self.waiter: asyncio.Future[int] | None = None
        self.loop.add_reader(fd, self.on_readable)

    def on_readable(self) -> None:
        count = os.eventfd_read(self.fd)
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(count)

    async def read(self) -> int:
        self.waiter = self.loop.create_future()
        return await self.waiter


def coroutine_per_fd(n: int, passes: int) -> Callable[[], Awaitable[float]]:
    """A task for each eventfd, which awaits it and hands the interrupt to the same sink."""

    async def run() -> float:
        sink = CountingSink()

        async def serve(source: _ByHand) -> None:
            while True:
                await source.read()
                sink.try_inject(None)  # type: ignore[arg-type]  # it only counts

        with eventfds(n) as fds:
            sources = [_ByHand(fd) for fd in fds]
            tasks = [asyncio.ensure_future(serve(source)) for source in sources]
            await asyncio.sleep(0)
            took: list[int] = []
            for _ in range(passes):
                sink.expect(n)
                write_all(fds)
                took.append(await sink.round())
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for fd in fds:
                asyncio.get_running_loop().remove_reader(fd)
        return statistics.median(took) / n

    return run


async def _wait_readable_round(n: int, passes: int, wait: Callable[[int], Awaitable[None]]) -> float:
    with eventfds(n) as fds:
        took: list[int] = []
        for _ in range(passes):
            write_all(fds)
            begin = time.perf_counter_ns()
            for fd in fds:
                await wait(fd)
                os.eventfd_read(fd)
            took.append(time.perf_counter_ns() - begin)
    return statistics.median(took) / n


def anyio_wait_readable(n: int, passes: int) -> Callable[[], Awaitable[float]]:
    """anyio's way: wait for one, read it, wait for the next."""

    async def run() -> float:
        return await _wait_readable_round(n, passes, anyio.wait_readable)

    return run


def trio_wait_readable(n: int, passes: int) -> Callable[[], float]:
    """trio's way."""

    def run() -> float:
        return trio.run(_wait_readable_round, n, passes, trio.lowlevel.wait_readable)

    return run


def linuxfd_add_reader(passes: int) -> Callable[[], Awaitable[float]] | None:
    """The linuxfd package's eventfd behind ``add_reader``; None where it is not installed."""
    try:
        import linuxfd
    except ImportError:
        return None

    async def run() -> float:
        loop = asyncio.get_running_loop()
        eventfd = linuxfd.eventfd(initval=0, nonBlocking=True)
        fd = cast("int", eventfd.fileno())
        end = 0
        done: asyncio.Future[None] = loop.create_future()

        def on_readable() -> None:
            nonlocal end
            eventfd.read()
            end = time.perf_counter_ns()
            done.set_result(None)

        loop.add_reader(fd, on_readable)
        took: list[int] = []
        for _ in range(passes):
            done = loop.create_future()
            os.eventfd_write(fd, 1)
            begin = time.perf_counter_ns()
            await done
            took.append(end - begin)
        loop.remove_reader(fd)
        return statistics.median(took)

    return run


def cases() -> list[Case]:
    """All of them."""
    found: list[Case] = []
    for n, passes in SIZES.items():
        found += on_loops(f"external/{n}/{{loop}} aioirqfd", aioirqfd_sink(n, passes))
        found += on_loops(f"external/{n}/{{loop}} add_reader", add_reader(n, passes))
    found += on_loops("handlers/64/{loop} aioirqfd", aioirqfd_handlers(64, 200))
    found += on_loops("handlers/64/{loop} coroutine per fd", coroutine_per_fd(64, 200))
    found += on_loops("external/64/{loop} anyio.wait_readable", anyio_wait_readable(64, 20))
    found.append(Case("external/64/trio wait_readable", trio_wait_readable(64, 20)))
    linuxfd = linuxfd_add_reader(500)
    if linuxfd is not None:
        found += on_loops("external/1/{loop} linuxfd", linuxfd)
    return found
