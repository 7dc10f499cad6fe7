"""What can be repeated at will is told in time, and counted.

A guest repeats a bad access as often as it likes, a front-end a bad message, a broken device its error. The first one of
each kind is news; ten thousand of them are a way to fill a disk with the host's logs. So the first is told at once, then
the 10th, the 100th and so on, and between them one a second at most. Each says how many were not told before it. A burst
is thus known to its order of magnitude even if nothing follows it, and no timer is needed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from aioirqfd.tracer import Tracer

INTERVAL: Final = 1.0
"""Seconds after which a kind is told again."""
MAX_KINDS: Final = 64
"""How many kinds are told apart. All others count as one, because a guest may be able to make up kinds, too."""
_OTHERS: Final = object()


@final
class RateLimit:
    """Decides which repeats are told.

    Args:
        clock: Seconds that never go back; ``loop.time``, or a test's own.
        interval: Seconds after which a kind is told again.

    Threads: one at a time.
    """

    __slots__ = ("_clock", "_interval", "_kinds")

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, interval: float = INTERVAL) -> None:
        self._clock = clock
        self._interval = interval
        self._kinds: dict[Hashable, _Kind] = {}

    def admit(self, kind: Hashable) -> int | None:
        """Count one more of a kind.

        Args:
            kind: What makes two of them the same, for whoever reads of it. Leave out what a guest may choose.

        Returns:
            None if it is not to be told; else how many of its kind were not told since the last one that was.
        """
        if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
            kind = _OTHERS
        found = self._kinds.get(kind)
        if found is None:
            found = self._kinds[kind] = _Kind()
        now = self._clock()
        found.count += 1
        if found.count < found.next_power and now - found.told_at < self._interval:
            found.suppressed += 1
            return None
        if found.count == found.next_power:
            found.next_power *= 10
        suppressed, found.suppressed = found.suppressed, 0
        found.told_at = now
        return suppressed

    def emit(self, tracer: Tracer, event: str, /, *, kind: Hashable = None, **fields: object) -> None:
        """Let a tracer hear of an event, if it is to be told, with ``suppressed`` if others were not told before it.

        Args:
            tracer: Hears of it.
            event: Its name.
            kind: What tells it from others of that name, if not all are the same.
            fields: Its fields.
        """
        suppressed = self.admit((event, kind))
        if suppressed is None:
            return
        if suppressed:
            tracer.emit(event, **fields, suppressed=suppressed)
        else:
            tracer.emit(event, **fields)


class _Kind:
    __slots__ = ("count", "next_power", "suppressed", "told_at")

    def __init__(self) -> None:
        self.count = self.suppressed = 0
        self.next_power = 1
        self.told_at = 0.0
