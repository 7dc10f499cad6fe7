"""The tracer protocol: how the core says what happened, without knowing who listens.

It sits at the bottom of the house, beside the errors, because every floor calls it and it calls nobody.
Implementations live in :mod:`aioirqfd.tracing`.
"""

from __future__ import annotations

from typing import Protocol, final


class Tracer(Protocol):
    """Hears of state changes. Called on the loop's thread; must not block and should not raise.

    Attributes:
        per_interrupt: Ask for an event for every single interrupt too. This takes the C fast path out of use for the
            managers that carry this tracer, so it is for debugging; read once, when the manager is made.
    """

    per_interrupt: bool

    def emit(self, event: str, /, **fields: object) -> None:
        """Take one event: a constant snake_case name, and its fields; ``aioirqfd.events`` declares them all."""


def listens(tracer: Tracer) -> bool:
    """Whether somebody hears of trouble by this tracer: not by one that only remembers, which says so with ``listens = False``."""
    return bool(getattr(tracer, "listens", True))


@final
class NullTracer:
    """Hears nothing; the default."""

    per_interrupt = False

    def emit(self, event: str, /, **fields: object) -> None:
        """Drop the event."""


NULL_TRACER = NullTracer()


def described(error: BaseException) -> str:
    """Return ``repr(error)``; its class's name where that raises, for it is somebody else's code."""
    try:
        return repr(error)
    except Exception:
        return type(error).__name__


def failure(error: BaseException) -> dict[str, object]:
    """The fields of an event that tells of an exception: what it says, and itself."""
    return {"error": described(error), "exc_info": error}
