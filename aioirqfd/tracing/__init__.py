"""What happened, at two prices: tracers for :class:`aioirqfd.IrqManager`. The third price, counts, is ``statistics()``."""

from __future__ import annotations

from aioirqfd.tracing.flight import FlightKind, FlightRecord, FlightRecorder
from aioirqfd.tracing.structlog import StructlogTracer

__all__ = ["FlightKind", "FlightRecord", "FlightRecorder", "StructlogTracer"]
