"""What happened: tracers for :class:`aioirqfd.IrqManager`."""

from __future__ import annotations

from aioirqfd.tracing.structlog import StructlogTracer

__all__ = ["StructlogTracer"]
