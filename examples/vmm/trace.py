"""The structlog events of the machine, on standard error, and its flight recorder."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from aioirqfd.tracer import NULL_TRACER
from aioirqfd.tracing import FlightRecorder
from examples.vmm import ports
from examples.vmm.cpu import CpuError

if TYPE_CHECKING:
    from collections.abc import Iterator

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


@contextlib.contextmanager
def recorded(tracer: Tracer, path: str | None) -> Iterator[Tracer]:
    """The same tracer, or one that remembers in a file, too; it knows the lines by name.

    Raises:
        OSError: There is no room for the file.
    """
    if path is None:
        yield tracer
        return
    with FlightRecorder(path, tracer=None if tracer is NULL_TRACER else tracer) as recorder:
        for pin, name in (
            (ports.TIMER_PIN, "timer"),
            (ports.ECHO_PIN, "echo"),
            (ports.SERIAL_PIN, "serial"),
            (ports.POWER_PIN, "power"),
        ):
            recorder.name(pin, name)
        yield recorder
