"""What goes wrong while a device is served: told to the tracer and, where a device's own code raised, to its author.

A guest can make a device fail with every request, and a front-end can send what is refused for ever. So what is traced is
rate-limited (:mod:`aioirqfd.ratelimit`). Where nobody traces, the loop's exception handler, which by default writes to
standard error, hears of each place that raises once in a front-end's time, with the traceback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from aioirqfd.ratelimit import RateLimit
from aioirqfd.tracer import NULL_TRACER, failure, listens

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Hashable

    from aioirqfd.tracer import Tracer


@final
class Reports:
    """Tells what goes wrong, once and then in time.

    Args:
        tracer: Hears of all trouble.
        loop: Without a tracer, its exception handler hears of what was raised; and its clock counts.

    Threads: the loop's.
    """

    __slots__ = ("_limit", "_loop", "_raised", "_told", "_traced", "_tracer")

    def __init__(self, tracer: Tracer, loop: asyncio.AbstractEventLoop) -> None:
        self._tracer = tracer
        self._traced = tracer is not NULL_TRACER and listens(tracer)
        self._loop = loop
        self._limit = RateLimit(clock=loop.time)
        self._raised = RateLimit(clock=loop.time)
        self._told: set[Hashable] = set()

    @property
    def tracer(self) -> Tracer:
        """Who hears of all trouble."""
        return self._tracer

    def begin(self) -> None:
        """Another front-end's time begins: what is still wrong is news again."""
        self._told.clear()

    def trouble(self, event: str, /, *, kind: Hashable = None, **fields: object) -> None:
        """Trace trouble that is nobody's mistake here: the front-end's, the guest's, or the system's.

        Args:
            event: Its name.
            kind: What tells it from others of that name.
            fields: Its fields.
        """
        self._limit.emit(self._tracer, event, kind=kind, **fields)

    def raised(self, event: str, message: str, error: BaseException, **fields: object) -> None:
        """Report what was raised where nothing should be: by a device's own code, mostly.

        Args:
            event: How it is traced, with ``fields`` and the ``error``.
            message: What was going on, for the loop's exception handler.
            error: What was raised.
            fields: The event's other fields.
        """
        place = _place(error)
        self._limit.emit(self._tracer, event, kind=place, **fields, **failure(error))
        if not self._traced and place not in self._told and self._raised.admit((event, place)) is not None:
            self._told.add(place)
            self._loop.call_exception_handler({"message": f"aioirqfd: {message}", "exception": error})


def name_of(device: object) -> str:
    """What a device is called by traces and on a terminal: its ``name`` or, where it has none, its class's."""
    return getattr(device, "name", "") or type(device).__qualname__


def _place(error: BaseException) -> Hashable:
    """What raised it: two errors from one line of code are the same one."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return (type(error),)
    return type(error), traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
