"""The options by which a program lets its user watch what it does."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from aioirqfd.serving.terminal import Terminal

if TYPE_CHECKING:
    import argparse

    from aioirqfd.tracer import Tracer

FORMS: Final = ("console", "json")
"""How events are shown: for people, or as a line of JSON each."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--trace``, which :func:`tracer_of` reads, and ``--inspect`` to a program's parser."""
    group = parser.add_argument_group("watching it")
    group.add_argument(
        "--trace",
        choices=FORMS,
        help="write what happens to standard error: for people, with tracebacks, or as a line of JSON each",
    )
    group.add_argument(
        "--inspect", metavar="PATH", help="where to serve the tree of its interrupts, for `aioirqfd inspect` and `top`"
    )


def tracer_of(options: argparse.Namespace, name: str) -> Tracer:
    """The tracer that was asked for; without one, standard error hears of trouble alone.

    Args:
        options: Of a parser that has those of :func:`add_options`.
        name: What the lines about trouble begin with.
    """
    return Terminal(name) if options.trace is None else log(options.trace)


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
