"""What faults are made of: each sort of device, and sinks, behind one face."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Collection

    from aioirqfd.faults.faults import Faults
    from aioirqfd.faults.line import Line
    from aioirqfd.faults.match import Match


class Target:
    """Something that was wrapped.

    Attributes:
        kinds: The kinds of requests that it has beside those that all have.
        any_kind: Whether there may be others, which it names as they come.
        must_answer: The section that lets none of its requests fail; None: they can.
        fields: Fields of its own.
        lines: Its interrupts.
    """

    kinds: Collection[str] = ()
    any_kind: bool = False
    must_answer: str | None = None
    fields: ClassVar[Collection[str]] = ()

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.lines: dict[object, Line] = {}

    def attach(self, *, attached: bool) -> None:
        """Have requests go by the faults, or no longer."""
        raise NotImplementedError

    def interrupt_for_nothing(self, match: Match, *, always: bool) -> list[dict[str, int | str]]:
        """Interrupt where the match's fields say: everywhere, if they say nothing.

        Args:
            match: Says where.
            always: Even where the driver is not ready for it.

        Returns:
            At which places: the fields by which an event says whose each is.
        """
        raise NotImplementedError


def wanted_of(match: Match, name: str, there: Collection[int]) -> list[int]:
    """Which queues, vectors or gsis a match's fields name, of those there are."""
    values = match.fields.get(name)
    return list(there) if values is None else [one for one in there if one in values]
