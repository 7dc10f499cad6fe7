"""The structlog events of the machine, on standard error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from aioirqfd.tracer import NULL_TRACER
from examples.vmm.cpu import CpuError

if TYPE_CHECKING:
    from aioirqfd.tracer import Tracer


def make_tracer(kind: str) -> Tracer:
    """Set structlog up, which is a program's to do and not a library's, and make a tracer that writes to it.

    Args:
        kind: ``off``, ``console`` (for people) or ``json`` (a line an event).

    Returns:
        The tracer; one that hears nothing for ``off``.

    Raises:
        CpuError: structlog is not installed.
    """
    if kind == "off":
        return NULL_TRACER
    try:
        import structlog  # noqa: PLC0415  an optional dependency

        from aioirqfd.tracing import StructlogTracer  # noqa: PLC0415  needs it
    except ImportError as error:
        raise CpuError(f"--trace needs structlog ({error}); try: pip install structlog") from error
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if kind == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso"), renderer],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    return StructlogTracer()
