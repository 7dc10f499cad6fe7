"""Coroutines that are begun on the spot, and become a task only if they wait.

Most requests of a device are answered without waiting. A task for each would cost more than the request: it is made, put
into the loop's queue, and begun a turn later. So a coroutine is driven right where the request was found, with a spare
task lent to it. Should it wait, the spare task takes it over where it stands, and the next one gets a new spare.

The spare is what ``asyncio.current_task()`` says from the first line on, so whoever remembers the task in order to cancel
it later (``asyncio.timeout``, task groups, anyio's scopes) remembers the right one. What differs from a task made by hand:
coroutines that end without waiting share one context (contextvars), and so does the first one that waits.
"""

# pyright: reportPrivateUsage=false
# (what event loops and their kin are given to use)
from __future__ import annotations

import asyncio
import contextvars
import types
from asyncio.tasks import _enter_task, _leave_task
from typing import TYPE_CHECKING, cast, final

from aioirqfd.virtio.fast import begin

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

    Handler = Coroutine[object, object, int | None]


@types.coroutine
def _go_on(coroutine: Handler, yielded: object, error: BaseException | None) -> Generator[object, object, int | None]:
    """Drive a coroutine that was begun elsewhere, and waits for ``yielded``, to its end."""
    while True:
        value: object = None
        if error is None:
            try:
                value = yield yielded
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as raised:
                error = raised
        try:
            if error is None:
                yielded = coroutine.send(value)
            else:
                thrown, error = error, None
                yielded = coroutine.throw(thrown)
        except StopIteration as stop:
            result: int | None = stop.value
            return result


@final
class _Spare:
    """A task that waits to be given a coroutine."""

    __slots__ = ("_coroutine", "_given", "_yielded", "context", "task")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._given: asyncio.Future[None] = loop.create_future()
        self._coroutine: Handler | None = None
        self._yielded: object = None
        self.context = contextvars.copy_context()
        self.task = loop.create_task(self._carry(), name="aioirqfd request", context=self.context)

    def give(self, coroutine: Handler, yielded: object) -> None:
        self._coroutine = coroutine
        self._yielded = yielded
        if not self._given.done():
            self._given.set_result(None)
        # Cancelled before its first step, a task ends without running a line of it.
        self.task.add_done_callback(lambda _: coroutine.close())

    async def _carry(self) -> int | None:
        error: BaseException | None = None
        try:
            await self._given
        except asyncio.CancelledError as cancelled:
            error = cancelled
        coroutine = self._coroutine
        if coroutine is None:
            assert error is not None
            raise error
        return await _go_on(coroutine, self._yielded, error)


def handler_of(task: asyncio.Task[int | None]) -> object:
    """The coroutine that a task carries on, for whoever looks where it stands; None: it is through."""
    frame = getattr(task.get_coro(), "cr_frame", None)
    return None if frame is None else getattr(frame.f_locals.get("self"), "_coroutine", None)


@final
class Eager:
    """Begins coroutines on the spot.

    Args:
        loop: The running loop.

    Threads: the loop's.
    """

    __slots__ = ("_loop", "_spare")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._spare = _Spare(loop)

    def run(self, coroutine: Handler) -> int | asyncio.Task[int | None] | None:
        """Drive a coroutine up to where it waits, or to its end. Not to be called from within a task.

        Args:
            coroutine: Not begun yet.

        Returns:
            Its result, or, if it waits, the task that carries it on. Cancel it in a later turn of the loop: before its
            first turn, a task that is cancelled ends without running any of it, and the coroutine is closed instead.

        Raises:
            BaseException: Whatever it raised without having waited.
        """
        spare = self._spare
        task = spare.task
        if task.done():
            # A coroutine cancelled what it took for its own task, and then ended without waiting.
            spare = self._spare = _Spare(self._loop)
            task = spare.task
        _enter_task(self._loop, task)
        try:
            ended, value = spare.context.run(begin, coroutine)
        finally:
            _leave_task(self._loop, task)
        if ended:
            return cast("int | None", value)
        self._spare = _Spare(self._loop)
        spare.give(coroutine, value)
        return task

    async def aclose(self) -> None:
        """End the spare task. Tasks that carry something are left alone. Idempotent."""
        task = self._spare.task
        task.cancel()
        await asyncio.wait({task})
