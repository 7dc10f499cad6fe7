"""The options by which a program lets its user watch what it does."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Final

from aioirqfd.tracing.flight import FlightRecorder

if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator

    from aioirqfd.tracer import Tracer

FORMS: Final = ("console", "json")
"""How events are shown: for people, or as a line of JSON each."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--trace`` and ``--record``, which :func:`watched` reads, and ``--inspect`` to a program's parser."""
    group = parser.add_argument_group("watching it")
    group.add_argument(
        "--trace",
        choices=FORMS,
        help="write what happens to standard error: for people, with tracebacks, or as a line of JSON each",
    )
    group.add_argument(
        "--record", metavar="FILE", help="remember each step of the last interrupts there; see `aioirqfd trace FILE`"
    )
    group.add_argument(
        "--inspect", metavar="PATH", help="where to serve the tree of its interrupts, for `aioirqfd inspect` and `top`"
    )


@contextlib.contextmanager
def watched(options: argparse.Namespace, quiet: Tracer) -> Generator[Tracer]:
    """The tracer that was asked for.

    Args:
        options: Of a parser that has those of :func:`add_options`.
        quiet: Who hears of it without ``--trace``, such as a :class:`~aioirqfd.serving.terminal.Terminal`.

    Raises:
        OSError: There is no room for the flight recorder's file.
    """
    tracer = quiet if options.trace is None else log(options.trace)
    if options.record is None:
        yield tracer
        return
    with FlightRecorder(options.record, tracer=tracer) as recorder:
        yield recorder


def log(form: str) -> Tracer:
    """A tracer that writes to standard error by structlog, which stays as the program has configured it.

    Args:
        form: One of :data:`FORMS`.
    """
    import structlog  # noqa: PLC0415  start-up time that only this costs

    from aioirqfd.tracing.structlog import StructlogTracer  # noqa: PLC0415  as above

    last: tuple[structlog.typing.Processor, ...] = (
        (structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer())
        if form == "json"
        else (structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),)
    )
    logger: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(sys.stderr),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
    )
    return StructlogTracer(logger)
