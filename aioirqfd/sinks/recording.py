"""A sink that remembers: for tests and first steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aioirqfd.irqfd.interrupt import Interrupt


@final
class RecordingSink:
    """Takes every interrupt at once and keeps it, in order, in ``interrupts``."""

    __slots__ = ("interrupts",)

    def __init__(self) -> None:
        self.interrupts: list[Interrupt] = []

    async def inject(self, interrupt: Interrupt) -> None:
        """Keep it."""
        self.interrupts.append(interrupt)

    def try_inject(self, interrupt: Interrupt) -> bool:
        """Keep it; never refuses."""
        self.interrupts.append(interrupt)
        return True

    def try_inject_batch(self, interrupts: Sequence[Interrupt], /) -> int:
        """Keep all of them."""
        self.interrupts.extend(interrupts)
        return len(interrupts)
