"""What happened: tracers for :class:`aioirqfd.IrqManager`."""

from aioirqfd.tracing.structlog import StructlogTracer

__all__ = ["StructlogTracer"]
