"""A tracer that remembers."""

from __future__ import annotations

from typing import final


@final
class RecordingTracer:
    """Keeps every event, in order.

    Args:
        per_interrupt: As in :class:`aioirqfd.Tracer`.

    Attributes:
        events: (name, fields) of each event.
    """

    __slots__ = ("events", "per_interrupt")

    def __init__(self, *, per_interrupt: bool = False) -> None:
        self.per_interrupt = per_interrupt
        self.events: list[tuple[str, dict[str, object]]] = []

    def emit(self, event: str, /, **fields: object) -> None:
        """Keep it."""
        self.events.append((event, fields))

    @property
    def names(self) -> list[str]:
        """The events' names, in order."""
        return [name for name, _ in self.events]

    def of(self, event: str) -> list[dict[str, object]]:
        """The fields of each event of one name."""
        return [fields for name, fields in self.events if name == event]
