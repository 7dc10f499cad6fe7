"""A sink that calls a function."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aioirqfd.irqfd.interrupt import Interrupt


@final
class CallbackSink:
    """Calls ``callback`` with each interrupt, from the work queue.

    Args:
        callback: A function or a coroutine function: what it returns is awaited, if that can be. What it raises counts as "not
            delivered".

    Raises:
        TypeError: It cannot be called.
    """

    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[Interrupt], Awaitable[object] | object]) -> None:
        if not callable(callback):
            raise TypeError(f"a callback is a function or a coroutine function, not {callback!r}")
        self._callback = callback

    async def inject(self, interrupt: Interrupt) -> None:
        """Call it, and await what it returns if that can be awaited."""
        result = self._callback(interrupt)
        if inspect.isawaitable(result):
            await result
