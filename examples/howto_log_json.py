"""Hear what happens to the interrupts as lines of JSON: whose each event is, and what was raised."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import structlog

from aioirqfd import EventFd, IrqManager, Retry
from aioirqfd.testing import FlakySink
from aioirqfd.tracing import StructlogTracer

if TYPE_CHECKING:
    from structlog.typing import EventDict, WrappedLogger


def without_places(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Leave out what differs from run to run: the file descriptor, the eventfd's id, and of the traceback the files and lines."""
    if "exception" in event:
        event["exception"] = [{key: one[key] for key in ("exc_type", "exc_value")} for one in event["exception"]]
    return {key: value for key, value in event.items() if key not in {"fd", "eventfd_id"}}


# docs: begin example
async def main() -> None:
    """Have a sink fail once."""
    logger = structlog.wrap_logger(
        structlog.PrintLogger(),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=5)
            ),
            without_places,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    sink = FlakySink(1)
    async with IrqManager(sink, tracer=StructlogTracer(logger), retry=Retry(1, 0, 0), name="vm") as irqs:
        with EventFd() as kick:
            with structlog.contextvars.bound_contextvars(tenant="blue"):
                irqs.assign(kick, gsi=5, labels={"device": "disk", "queue": 2})
            kick.signal()
            await irqs.flush()


# docs: end example
asyncio.run(main())
