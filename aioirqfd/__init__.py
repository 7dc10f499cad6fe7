"""The interrupt plumbing of virtual machines for asyncio: eventfd, irqfd, resample, GSI routing, ioeventfd.

A signal climbs from an :class:`EventFd` through the loop's :class:`Poller` to an :class:`IrqFd`, whose :class:`IrqManager`
hands an :class:`Interrupt` to a sink (:mod:`aioirqfd.sinks`, :mod:`aioirqfd.irqchip`). No interrupt is ever lost.
"""

from __future__ import annotations

import sys

if sys.platform != "linux":
    raise ImportError(f"aioirqfd needs Linux: eventfd and epoll are not there on {sys.platform}")

from aioirqfd.counter import IMPLEMENTATION
from aioirqfd.errors import (
    ClosedError,
    EventFdBusyError,
    EventFdInvalidError,
    InjectionError,
    IoEventFdExistsError,
    IoEventFdInvalidError,
    IoEventFdNotFoundError,
    IrqfdError,
    QueueFullError,
    RoutingError,
    SnapshotError,
    WouldBlock,
    WrongLoopError,
)
from aioirqfd.eventfd import EventFd, Poller
from aioirqfd.ioeventfd import IoBus, IoBusStatistics, IoEventFd, IoEventFdStatistics
from aioirqfd.irqfd.gsi import GsiAllocator, GsiStatistics
from aioirqfd.irqfd.interrupt import Action, Interrupt, IrqchipPin, Msi, Route
from aioirqfd.irqfd.irqfd import IrqFd
from aioirqfd.irqfd.manager import IrqManager
from aioirqfd.irqfd.msix import MsixStatistics, MsixTable
from aioirqfd.irqfd.resampler import Resampler
from aioirqfd.irqfd.retry import Retry
from aioirqfd.irqfd.routing import RoutingTable
from aioirqfd.irqfd.sink import (
    AckSink,
    BatchSink,
    ChipSink,
    EoiSink,
    ExplainingSink,
    FastSink,
    InspectedSink,
    InterruptSink,
    OffloadSink,
    RoutedSink,
)
from aioirqfd.irqfd.state import State
from aioirqfd.irqfd.statistics import IrqFdStatistics, IrqManagerStatistics, WorkQueueStatistics
from aioirqfd.irqfd.workqueue import Work, WorkQueue
from aioirqfd.tracer import NullTracer, Tracer

__all__ = [
    "IMPLEMENTATION",
    "AckSink",
    "Action",
    "BatchSink",
    "ChipSink",
    "ClosedError",
    "EoiSink",
    "EventFd",
    "EventFdBusyError",
    "EventFdInvalidError",
    "ExplainingSink",
    "FastSink",
    "GsiAllocator",
    "GsiStatistics",
    "InjectionError",
    "InspectedSink",
    "Interrupt",
    "InterruptSink",
    "IoBus",
    "IoBusStatistics",
    "IoEventFd",
    "IoEventFdExistsError",
    "IoEventFdInvalidError",
    "IoEventFdNotFoundError",
    "IoEventFdStatistics",
    "IrqFd",
    "IrqFdStatistics",
    "IrqManager",
    "IrqManagerStatistics",
    "IrqchipPin",
    "IrqfdError",
    "Msi",
    "MsixStatistics",
    "MsixTable",
    "NullTracer",
    "OffloadSink",
    "Poller",
    "QueueFullError",
    "Resampler",
    "Retry",
    "Route",
    "RoutedSink",
    "RoutingError",
    "RoutingTable",
    "SnapshotError",
    "State",
    "Tracer",
    "Work",
    "WorkQueue",
    "WorkQueueStatistics",
    "WouldBlock",
    "WrongLoopError",
]

__version__ = "0.1.0"
