"""The structlog events of the machine, on standard error, and its flight recorder."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from aioirqfd.serving.options import log
from aioirqfd.tracer import NULL_TRACER
from aioirqfd.tracing import FlightRecorder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aioirqfd.tracer import Tracer


def make_tracer(kind: str) -> Tracer:
    """A tracer that writes to standard error.

    Args:
        kind: ``off``, ``console`` (for people) or ``json`` (a line an event).

    Returns:
        The tracer; one that hears nothing for ``off``.
    """
    return NULL_TRACER if kind == "off" else log(kind)


@contextlib.contextmanager
def recorded(tracer: Tracer, path: str | None, names: Mapping[int, str]) -> Iterator[Tracer]:
    """The same tracer, or one that remembers in a file, too; it knows the gsis by these names.

    Raises:
        OSError: There is no room for the file.
    """
    if path is None:
        yield tracer
        return
    with FlightRecorder(path, tracer=None if tracer is NULL_TRACER else tracer) as recorder:
        for gsi, name in names.items():
            recorder.name(gsi, name)
        yield recorder
