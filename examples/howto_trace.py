"""Hear what happens to the interrupts, with structlog."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import structlog

from aioirqfd import EventFd, IrqManager
from aioirqfd.sinks import RecordingSink
from aioirqfd.tracing import StructlogTracer

if TYPE_CHECKING:
    from structlog.typing import EventDict, WrappedLogger


def without_numbers(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Leave out the file descriptor and the eventfd's id, which differ from run to run."""
    return {key: value for key, value in event.items() if key not in {"fd", "eventfd_id"}}


# docs: begin example
async def main() -> None:
    """Assign, mask, signal, unmask, re-route, drop."""
    logger = structlog.wrap_logger(
        structlog.PrintLogger(),
        processors=[
            without_numbers,
            structlog.processors.add_log_level,
            structlog.processors.KeyValueRenderer(key_order=["level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    async with IrqManager(RecordingSink(), tracer=StructlogTracer(logger)) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            irqfd.mask()
            kick.signal()
            irqfd.unmask()
            irqs.set_routing({})
            kick.signal()


# docs: end example
asyncio.run(main())
