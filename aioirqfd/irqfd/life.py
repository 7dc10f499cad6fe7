"""How far a manager has come. Whatever of it does something else by then asks here."""

from __future__ import annotations

import enum
from typing import final


class Stage(enum.IntEnum):
    """The stages, in their order; there is no way back."""

    NEW = 0
    """Not entered yet."""
    OPEN = 1
    CLOSING = 2
    """Nothing more is taken in, and what was signalled is injected."""
    ABORTING = 3
    """Nothing is injected any more; what is owed goes back into its eventfd."""
    CLOSED = 4
    INHERITED = 5
    """A forked child's copy: the manager is the parent's (row I17)."""


# At hand: before Python 3.12, to look a member up in its class costs as much as three calls.
_OPEN, _INHERITED = Stage.OPEN, Stage.INHERITED


@final
class Life:
    """The stage that one manager is in; only its :class:`aioirqfd.irqfd.irqfds.Irqfds` moves it on."""

    __slots__ = ("stage",)

    def __init__(self) -> None:
        self.stage = Stage.NEW

    @property
    def open(self) -> bool:
        """Whether it is in use."""
        return self.stage is _OPEN

    @property
    def inherited(self) -> bool:
        """Whether this is a forked child's copy."""
        return self.stage is _INHERITED
