"""Holds what the package emits to what :mod:`aioirqfd.events` declares, in every test."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aioirqfd
from aioirqfd.events import EVENTS
from aioirqfd.irqfd.guard import GuardedTracer
from aioirqfd.serving.terminal import Terminal
from aioirqfd.testing import RecordingTracer
from aioirqfd.tracer import NullTracer
from aioirqfd.tracing import FlightRecorder, StructlogTracer

if TYPE_CHECKING:
    from types import FrameType

PACKAGE: Final = str(Path(aioirqfd.__file__).parent)
TRACERS: Final[tuple[Any, ...]] = (
    FlightRecorder,
    GuardedTracer,
    NullTracer,
    RecordingTracer,
    StructlogTracer,
    Terminal,
)


def faults(event: str, fields: dict[str, object]) -> list[str]:
    """What is not as declared."""
    if "time_ns" in fields:
        return []  # a replay of records, which the format of their file describes
    declared = EVENTS.get(event)
    return [f"{event} is declared nowhere"] if declared is None else declared.faults(fields)


def watch(found: list[str]) -> None:
    """From now on, have every tracer that is called by the package note what is not declared."""
    for tracer in TRACERS:
        tracer.emit = _watched(tracer.emit, found)


def _watched(emit: Any, found: list[str]) -> Any:
    @functools.wraps(emit)
    def checked(self: object, event: str, /, **fields: object) -> None:
        # Tests call tracers with events of their own, and some tracers hand on what they hear.
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_name in {"emit", "checked"}:
            frame = frame.f_back
        if frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
            found.extend(faults(event, fields))
        emit(self, event, **fields)

    return checked
