"""The flight recorder: what happened of late, at the price of a few nanoseconds an interrupt.

The counter module writes one binary record for each interrupt into a ring of fixed size. Nothing is rendered until somebody
asks, typically after something went wrong.
"""

from __future__ import annotations

import enum
import time
from collections import deque
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Final, final

from aioirqfd.counter import FlightRing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aioirqfd.tracer import Tracer

_RECORD: Final = Struct("=QQIiBxxxI")


class FlightKind(enum.IntEnum):
    """What became of a signal in the top half."""

    INJECTED = 1
    """The sink took it."""
    DEFERRED = 2
    """The sink would not take it at once: to the work queue."""
    HELD = 3
    """The manager is paused or its queue full: it waits in its eventfd."""
    WAKEUP = 4
    """It went to a handler, or the slow way for another reason."""


@dataclass(frozen=True, slots=True)
class FlightRecord:
    """One thing that happened.

    Attributes:
        time_ns: ``time.monotonic_ns()`` of the pass it happened in.
        event: ``interrupt_injected``, ``interrupt_deferred``, ``interrupt_held``, ``interrupt_wakeup``, or a state change's name.
        fields: ``gsi``, ``fd`` and ``count``, or the state change's own.
    """

    time_ns: int
    event: str
    fields: Mapping[str, object]


@final
class FlightRecorder:
    """A :class:`aioirqfd.Tracer` that remembers the last interrupts and state changes.

    Args:
        capacity: Interrupts to remember, rounded up to a power of 2; 32 bytes each.
        changes: State changes to remember.
    """

    __slots__ = ("_changes", "ring")

    per_interrupt = False

    def __init__(self, capacity: int = 65536, *, changes: int = 1024) -> None:
        self.ring = FlightRing(capacity)
        """Where the counter module writes; the manager hands it over."""
        self._changes: deque[FlightRecord] = deque(maxlen=changes)

    def emit(self, event: str, /, **fields: object) -> None:
        """Remember a state change."""
        self._changes.append(FlightRecord(time.monotonic_ns(), event, fields))

    def records(self) -> list[FlightRecord]:
        """Everything remembered, oldest first. Interrupts of one pass carry the same time."""
        interrupts = [
            FlightRecord(time_ns, f"interrupt_{FlightKind(kind).name.lower()}", {"gsi": gsi, "fd": fd, "count": count})
            for time_ns, count, gsi, fd, kind, _ in _RECORD.iter_unpack(self.ring.snapshot())
        ]
        return sorted([*interrupts, *self._changes], key=lambda record: record.time_ns)

    def replay(self, tracer: Tracer) -> int:
        """Tell another tracer everything, with the field ``time_ns``; return how much that was."""
        records = self.records()
        for record in records:
            tracer.emit(record.event, time_ns=record.time_ns, **record.fields)
        return len(records)
