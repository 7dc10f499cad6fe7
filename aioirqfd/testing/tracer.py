"""Tracers that remember."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING, Final, final

from aioirqfd.tracer import NULL_TRACER, listens

if TYPE_CHECKING:
    from collections.abc import Generator

    from aioirqfd.tracer import Tracer

KEPT: Final = 40
"""Events that a failing test's report shows: the last ones."""


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


@final
class Tail:
    """Keeps the last events for a failing test's report, and hands all of them on.

    Args:
        tracer: To this one. If it is none, what devices raise goes to the loop's exception handler as ever.
    """

    __slots__ = ("_began", "_events", "listens", "per_interrupt", "tracer")

    def __init__(self, tracer: Tracer) -> None:
        self.per_interrupt = tracer.per_interrupt
        self.listens = tracer is not NULL_TRACER and listens(tracer)
        self.tracer = tracer  # a flight recorder behind it is found by this
        self._began = time.monotonic()
        self._events: deque[str] = deque(maxlen=KEPT)

    def emit(self, event: str, /, **fields: object) -> None:
        """Keep it, and hand it on."""
        self.tracer.emit(event, **fields)
        fields.pop("exc_info", None)
        said = "".join(f" {name}={value!r}" for name, value in fields.items())
        self._events.append(f"{time.monotonic() - self._began:9.3f} s  {event}{said}")

    @contextlib.contextmanager
    def shown(self) -> Generator[None]:
        """What is raised in the block has the events as a note."""
        try:
            yield
        except Exception as error:
            events = "\n".join(self._events) or "nothing"
            error.add_note(f"the devices' trace:\n{events}")
            raise
