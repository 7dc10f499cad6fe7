"""Between the irqfds and what a user has given that must not raise: whatever it raises is reported, and no interrupt is lost for it."""

from __future__ import annotations

import asyncio
from asyncio.log import logger
from typing import TYPE_CHECKING, TypeVar, final

from aioirqfd.eventfd.loops import loop_here
from aioirqfd.irqfd.coroutine import plain_function
from aioirqfd.tracer import NULL_TRACER, listens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aioirqfd.tracer import Tracer

_T = TypeVar("_T")


def report(message: str, error: BaseException) -> None:
    """Tell the running loop's exception handler; where none is running, asyncio's log."""
    loop = loop_here()
    if loop is None:
        logger.error(message, exc_info=error)
    else:
        loop.call_exception_handler({"message": message, "exception": error})


def is_failure(error: BaseException) -> bool:
    """Whether what the task waited for has failed, or was cancelled; not if the task itself was cancelled, or the program is to end."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return isinstance(error, Exception)


def call_each(call: Callable[[_T], object], arguments: Iterable[_T]) -> None:
    """Call it with each of these in their order, whatever it raises; its first error is raised when it was called with all."""
    first: BaseException | None = None
    for argument in arguments:
        try:
            call(argument)
        except BaseException as error:
            first = first or error
    if first is not None:
        raise first


@final
class GuardedTracer:
    """A tracer that does not raise: one that writes to a log may meet a full disk. Its events say whose they are."""

    __slots__ = ("_whose", "listens", "per_interrupt", "tracer")

    def __init__(self, tracer: Tracer, **whose: object) -> None:
        self.tracer = tracer  # where flight_of() looks for a flight recorder
        self._whose = whose
        self.listens = listens(tracer)
        self.per_interrupt = bool(tracer.per_interrupt)

    def emit(self, event: str, /, **fields: object) -> None:
        """Hand it on."""
        try:
            self.tracer.emit(event, **{**self._whose, **fields})
        except Exception as error:
            report(f"aioirqfd: the tracer raised: {self.tracer!r}", error)


def guarded(tracer: Tracer, **whose: object) -> Tracer:
    """The tracer, such that its emit() does not raise.

    Args:
        tracer: The tracer.
        whose: Fields that say whose its events are: they come with each of them.

    Raises:
        TypeError: It is no tracer, or its emit() is a coroutine function.
    """
    if tracer is NULL_TRACER:
        return tracer
    if not hasattr(tracer, "emit") or not hasattr(tracer, "per_interrupt"):
        raise TypeError(f"a tracer has emit() and per_interrupt, and {tracer!r} has not; leave it out for none")
    plain_function(tracer.emit, "a tracer's emit()")
    return GuardedTracer(tracer, **whose)
