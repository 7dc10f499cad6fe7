"""Loops in threads of their own: what a second one costs the first."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from aioirqfd import EventFd, IrqManager
from tests.bench.loops import LOOPS
from tests.bench.measure import Case
from tests.bench.sinks import CountingSink

if TYPE_CHECKING:
    from collections.abc import Callable

SIGNALS = 100_000
GIL = getattr(sys, "_is_gil_enabled", lambda: True)()


async def _signal(gate: threading.Barrier, begun: list[int], ended: list[int]) -> None:
    sink = CountingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            signal = kick.signal
            gate.wait()
            begun.append(time.perf_counter_ns())
            for _ in range(SIGNALS):
                signal()
            ended.append(time.perf_counter_ns())
            assert sink.count == SIGNALS


def loops_at_once(new_loop: Callable[[], asyncio.AbstractEventLoop], *, number: int) -> float:
    """Each loop, in its thread, signals 100,000 times on itself. From the first one's begin to the last one's end, by the signals of all."""
    gate = threading.Barrier(number)
    begun: list[int] = []
    ended: list[int] = []

    def run() -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(_signal(gate, begun, ended))

    threads = [threading.Thread(target=run) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (max(ended) - min(begun)) / (number * SIGNALS)


def cases() -> list[Case]:
    """One loop, and two."""
    return [
        Case(f"loops/{number}/{name}", partial(loops_at_once, new_loop, number=number))
        for name, new_loop in LOOPS.items()
        for number in (1, 2)
    ]
