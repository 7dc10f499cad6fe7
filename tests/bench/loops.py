"""Runs a coroutine function's one round on each loop."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

import uvloop

from tests.bench.measure import Case

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def on_loops(name: str, function: Callable[[], Awaitable[float]], unit: str = "ns") -> list[Case]:
    """A case for each loop; ``{loop}`` in the name is replaced."""
    return [Case(name.format(loop=loop), _runner(function, factory), unit) for loop, factory in LOOPS.items()]


def _runner(
    function: Callable[[], Awaitable[float]], factory: Callable[[], asyncio.AbstractEventLoop]
) -> Callable[[], float]:
    def run() -> float:
        async def main() -> float:
            return await function()

        gc.collect()
        gc.disable()
        try:
            with asyncio.Runner(loop_factory=factory) as runner:
                return runner.run(main())
        finally:
            gc.enable()

    return run
