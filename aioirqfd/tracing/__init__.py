"""What happened, at two prices: tracers for :class:`aioirqfd.IrqManager`. The third price, counts, is ``statistics()``."""

from __future__ import annotations

from aioirqfd.flight import FlightKind
from aioirqfd.tracing.flight import FlightRecorder
from aioirqfd.tracing.flight_format import FlightHeader
from aioirqfd.tracing.flight_log import FlightFileError, FlightLog, FlightRecord, follow_flight, read_flight
from aioirqfd.tracing.structlog import StructlogTracer

__all__ = [
    "FlightFileError",
    "FlightHeader",
    "FlightKind",
    "FlightLog",
    "FlightRecord",
    "FlightRecorder",
    "StructlogTracer",
    "follow_flight",
    "read_flight",
]
