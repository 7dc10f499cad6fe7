"""Waiting for a task that something else depends on."""

from __future__ import annotations

import asyncio


async def wait_through(task: asyncio.Task[None]) -> None:
    """Wait until a task has ended, however often this is cancelled meanwhile: what comes next must not overtake it.

    Raises:
        asyncio.CancelledError: This was cancelled; the task has ended by then.
    """
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
