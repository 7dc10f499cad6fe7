"""When something was held back, and by which line of the program: noted as it happens, for whoever asks later why nothing comes."""

# pyright: reportPrivateUsage=false
# (sys._getframe() is how one learns the caller)
from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from types import FrameType

MANAGER: Final = -1
_PACKAGE = str(Path(__file__).parents[1])


def place(frame: FrameType) -> str:
    """Where it stands, short: ``folder/file.py:12``."""
    path = Path(frame.f_code.co_filename)
    return f"{path.parent.name}/{path.name}:{frame.f_lineno}"


@final
class Since:
    """What is held back, by the time and the caller.

    What it is about is a name: an eventfd's id, :data:`MANAGER`. Tempting, and wrong: the irqfd itself. Whoever serves the manager has
    this, and would keep a manager alive that the program has dropped open.
    """

    __slots__ = ("_notes",)

    def __init__(self) -> None:
        self._notes: dict[int, tuple[float, str]] = {}

    def note(self, what: int) -> None:
        """It is held back from now on, by the nearest caller outside of this package."""
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
            frame = frame.f_back
        self._notes[what] = time.monotonic(), place(frame)

    def forget(self, what: int) -> float:
        """It is free, or gone: for how many seconds it was held back."""
        note = self._notes.pop(what, None)
        return 0.0 if note is None else time.monotonic() - note[0]

    def of(self, what: int) -> tuple[float, str] | None:
        """For how many seconds it has been held back, and by which line; None where nobody has noted it."""
        note = self._notes.get(what)
        return None if note is None else (time.monotonic() - note[0], note[1])

    def said(self, what: int) -> str:
        """``for 3 s, by vmm/app.py:12``; empty where nobody has noted it."""
        note = self.of(what)
        return "" if note is None else f" for {note[0]:.0f} s, by {note[1]}"
