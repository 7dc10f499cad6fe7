"""How the cost of one thing depends on how many others there are; and what one of them weighs."""

from __future__ import annotations

import asyncio
import resource
import statistics
import time
import tracemalloc
from typing import TYPE_CHECKING

from aioirqfd import EventFd, IrqManager
from aioirqfd.sinks import RecordingSink
from tests.bench.external import aioirqfd_sink
from tests.bench.loops import LOOPS, on_loops
from tests.bench.measure import Case

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

FEW, MANY = 100, 15_000
OPERATIONS = 200


def allow_files() -> None:
    """Raise the soft limit of open files to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def operations(others: int, what: str) -> Callable[[], Awaitable[float]]:
    """Nanoseconds of one assign, deassign or set_routing beside ``others`` irqfds."""

    async def run() -> float:
        allow_files()
        async with IrqManager(RecordingSink()) as irqs:
            crowd = [EventFd() for _ in range(others)]
            for number, kick in enumerate(crowd):
                irqs.assign(kick, gsi=number % 24)
            took: list[int] = []
            table = irqs.routing
            kicks = [EventFd() for _ in range(OPERATIONS)]
            bound = []
            for kick in kicks:
                begin = time.perf_counter_ns()
                bound.append(irqs.assign(kick, gsi=5))
                if what == "assign":
                    took.append(time.perf_counter_ns() - begin)
            for irqfd in bound:
                begin = time.perf_counter_ns()
                await irqs.deassign(irqfd)
                if what == "deassign":
                    took.append(time.perf_counter_ns() - begin)
            for _ in range(OPERATIONS if what == "set_routing" else 0):
                begin = time.perf_counter_ns()
                irqs.set_routing(table)
                took.append(time.perf_counter_ns() - begin)
            for kick in kicks + crowd:
                kick.close()
        return statistics.median(took)

    return run


async def _close_many() -> tuple[float, float]:
    """Seconds to leave a manager with 15,000 irqfds, and the longest time in between that the loop was kept from others."""
    allow_files()
    crowd = [EventFd() for _ in range(MANY)]
    stalls: list[float] = []

    async def ticker() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            stalls.append(now - last)
            last = now

    async with IrqManager(RecordingSink()) as irqs:
        for number, kick in enumerate(crowd):
            irqs.assign(kick, gsi=number % 24)
        beside = asyncio.create_task(ticker())
        await asyncio.sleep(0)
        begin = time.perf_counter()
    took = time.perf_counter() - begin
    beside.cancel()
    for kick in crowd:
        kick.close()
    return took, max(stalls)


async def close_many() -> float:
    """Milliseconds in all."""
    return (await _close_many())[0] * 1e3


async def close_stall() -> float:
    """Milliseconds of the longest stall."""
    return (await _close_many())[1] * 1e3


def heap() -> float:
    """Bytes of Python heap for one assigned irqfd, its EventFd included."""

    async def run() -> float:
        n = 1000
        async with IrqManager(RecordingSink()) as irqs:
            warm = [EventFd() for _ in range(n)]
            for number, kick in enumerate(warm):
                irqs.assign(kick, gsi=number % 24)
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            kicks = [EventFd() for _ in range(n)]
            for number, kick in enumerate(kicks):
                irqs.assign(kick, gsi=number % 24)
            after = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            for kick in kicks + warm:
                kick.close()
        return (after - before) / n

    with asyncio.Runner(loop_factory=LOOPS["asyncio"]) as runner:
        return runner.run(run())


def idle_beside(n: int, passes: int, idle: int) -> Callable[[], Awaitable[float]]:
    """n events a pass, beside idle irqfds."""
    run = aioirqfd_sink(n, passes, idle=idle)

    async def measured() -> float:
        allow_files()
        return await run()

    return measured


def cases() -> list[Case]:
    """All of them."""
    found = on_loops("idle/0/{loop}", idle_beside(64, 200, 0))
    found += on_loops(f"idle/{MANY}/{{loop}}", idle_beside(64, 200, MANY))
    for what in ("assign", "deassign", "set_routing"):
        for others in (FEW, MANY):
            found += on_loops(f"{what}/{others}/{{loop}}", operations(others, what))
    found += on_loops(f"close/{MANY}/{{loop}}", close_many, "ms")
    found += on_loops(f"close stall/{MANY}/{{loop}}", close_stall, "ms")
    found.append(Case("heap", heap, "B"))
    return found
