"""The interrupt of a queue of :mod:`examples.chaos_blk`: it comes when the settings say so."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from examples.chaos_command import INTERRUPTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

AGAIN: Final = 0.001
"""Seconds between an interrupt, or a completion, and its duplicate: at once, the two interrupts would be one."""


class Interrupt:
    """One queue's interrupt. It may be late, and two may be one, but none is lost for good.

    Args:
        answers: Says how many answers the queue has given so far.
    """

    def __init__(self, answers: Callable[[], int]) -> None:
        self.settings = dict(INTERRUPTS)
        self.wanted = self.rung = 0
        self.silent = False
        """The driver wants to hear, and is not told."""
        self._answers = answers
        self._ring: Callable[[], None] | None = None
        self._heard = 0
        self._hold: asyncio.TimerHandle | None = None
        self._spurious: asyncio.TimerHandle | None = None
        self._late: set[asyncio.TimerHandle] = set()

    def want(self, ring: Callable[[], None]) -> bool:
        """The driver wants to hear of what was answered; whether it is not told yet."""
        self._ring = ring
        self.wanted += 1
        self.silent = True
        self._look()
        return self.silent

    def _look(self) -> None:
        """Interrupt, if nothing keeps us from it any more."""
        if not self.silent or self.settings["irq-withhold"]:
            return
        if self._answers() - self._heard >= self.settings["irq-merge"]:
            self._come()
        elif self._hold is None:
            # There may be no more to come, and a driver without a time-out would wait for ever.
            self._hold = asyncio.get_running_loop().call_later(self.settings["irq-hold"] / 1000, self._come)

    def _come(self) -> None:
        self._cancel_hold()
        self.silent = False
        self._heard = self._answers()
        late, times = self.settings["irq-delay"] / 1000, int(self.settings["irq-duplicate"]) + 1
        for number in range(times):
            if late or number:
                self._ring_in(late + number * AGAIN)
            else:
                self._ring_now()

    def _ring_in(self, seconds: float) -> None:
        def ring() -> None:
            self._late.discard(timer)
            self._ring_now()

        timer = asyncio.get_running_loop().call_later(seconds, ring)
        self._late.add(timer)

    def _ring_now(self) -> None:
        if self._ring is not None:
            self.rung += 1
            self._ring()

    def _ring_for_nothing(self) -> None:
        self._spurious = None
        if period := self.settings["irq-spurious"]:
            self._spurious = asyncio.get_running_loop().call_later(period / 1000, self._ring_for_nothing)
            self._ring_now()

    def set(self, settings: Mapping[str, float]) -> None:
        """Change settings. What they keep back no longer comes now."""
        self.settings.update(settings)
        self._cancel_hold()
        if "irq-delay" in settings:
            self._hurry()
        self._look()
        if "irq-spurious" in settings:
            if self._spurious is not None:
                self._spurious.cancel()
            self._ring_for_nothing()

    def release(self) -> None:
        """Let come what is kept back, at once."""
        self._hurry()
        if self.silent:
            self._cancel_hold()
            self.silent = False
            self._heard = self._answers()
            self._ring_now()

    def _hurry(self) -> None:
        if self._late:
            self._cancel_late()
            self._ring_now()

    def forget(self) -> None:
        """The driver has gone, and its interrupt with it."""
        self._cancel_hold()
        self._cancel_late()
        self._ring = None
        self.silent = False

    def _cancel_hold(self) -> None:
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None

    def _cancel_late(self) -> None:
        for timer in self._late:
            timer.cancel()
        self._late.clear()
