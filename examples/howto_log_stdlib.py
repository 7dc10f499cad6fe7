"""Hear what happens to the interrupts by the standard library's logging, and change its level meanwhile."""

from __future__ import annotations

import asyncio
import logging
import sys
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
    """Assign, mask, and drop: the first with all that happens, the last with trouble alone."""
    logging.basicConfig(stream=sys.stdout, format="%(name)s %(levelname)s %(message)s", level=logging.INFO)
    log = logging.getLogger("vmm.irq")
    logger = structlog.wrap_logger(
        log,
        processors=[
            structlog.stdlib.filter_by_level,
            without_numbers,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    async with IrqManager(RecordingSink(), tracer=StructlogTracer(logger)) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5).mask()
            log.setLevel(logging.WARNING)
            irqs.irqfds[0].unmask()
            irqs.set_routing({})
            kick.signal()


# docs: end example
asyncio.run(main())
