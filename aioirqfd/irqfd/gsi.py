"""Who has which gsi: the allocator that the MSI-X tables of one manager share.

There are 4096 routable gsis and a table alone may have 2048 vectors, so a gsi is handed out when a vector is first unmasked,
not when its table is made. One whose vector is masked again stays with it, because guests mask and unmask all the time, but
only until somebody else needs it: then the one that was masked longest ago goes.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from aioirqfd.integers import plain
from aioirqfd.irqfd.interrupt import IOAPIC_PINS
from aioirqfd.irqfd.routing import MAX_GSI
from aioirqfd.uncopied import refusal

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOK_AGAIN: Final = 16
"""How many gsis that were routed by somebody else are looked at again, when there are no others."""


@dataclass(frozen=True, slots=True)
class GsiStatistics:
    """Counts of a :class:`GsiAllocator`, as they are now.

    Attributes:
        held: Handed out.
        idle: Of these, ready to be taken back.
        waiting: Who was refused one, and is called when there is one.
        recycled: How many were taken back from an idle holder, since it was made.
    """

    held: int
    idle: int
    waiting: int
    recycled: int


@final
class GsiAllocator:
    """Hands out gsis, lowest first, and takes idle ones back when they run out.

    Args:
        routed: Whether somebody else has routed a gsi; such a one is passed over. Tell :meth:`unrouted` when that ends. So is
            one that an irqfd is assigned to, from :meth:`bind` to :meth:`unbind`.
        first: The lowest it hands out; those below are left to pins.
        stop: One more than the highest, at most 4096 (row G03).

    Raises:
        ValueError: Not 0 <= first <= stop <= 4096.

    Threads:
        The loop's thread of its manager.
    """

    __slots__ = (
        "_bound",
        "_first",
        "_free",
        "_held",
        "_idle",
        "_next",
        "_passed",
        "_recycled",
        "_routed",
        "_serving",
        "_stop",
        "_waiting",
    )

    def __init__(self, routed: Callable[[int], bool], *, first: int = IOAPIC_PINS, stop: int = MAX_GSI) -> None:
        low, end = plain(first, MAX_GSI + 1), plain(stop, MAX_GSI + 1)
        if low is None or end is None or low > end:
            raise ValueError(f"gsis are 0..{MAX_GSI - 1}, from first up to stop; not from {first!r} up to {stop!r}")
        self._routed: Final = routed
        self._first: Final = low
        self._stop: Final = end
        self._next = low
        self._free: list[int] = []
        self._passed: dict[int, None] = {}  # somebody else's when it was last looked at
        self._bound: dict[int, int] = {}  # how many irqfds each gsi has
        self._held: set[int] = set()
        self._idle: dict[int, Callable[[], object]] = {}
        self._waiting: dict[object, Callable[[], object]] = {}
        self._serving = False
        self._recycled = 0

    def __reduce__(self) -> tuple[object, ...]:
        raise refusal(self, "It is the one that its manager's tables share: take IrqManager.gsis.")

    def statistics(self) -> GsiStatistics:
        """The counts as they are now."""
        return GsiStatistics(
            held=len(self._held), idle=len(self._idle), waiting=len(self._waiting), recycled=self._recycled
        )

    def allocate(self) -> int | None:
        """A gsi for the caller: the lowest free one, else the one that has been idle longest, else None."""
        while self._free or self._next < self._stop:
            if self._free:
                gsi = heapq.heappop(self._free)
            else:
                gsi = self._next
                self._next += 1
            if self._taken(gsi):
                self._passed[gsi] = None
            elif gsi not in self._held:
                self._held.add(gsi)
                return gsi
        for _ in range(min(len(self._passed), _LOOK_AGAIN)):
            gsi = next(iter(self._passed))
            del self._passed[gsi]
            if self._taken(gsi):
                self._passed[gsi] = None  # last
            elif gsi not in self._held:
                self._held.add(gsi)
                return gsi
        return self.recycle()

    def _taken(self, gsi: int) -> bool:
        return gsi in self._bound or self._routed(gsi)

    def recycle(self) -> int | None:
        """The gsi that has been idle longest, for the caller from here on; its holder was told. None: none is idle.

        :meta private:
        """
        for gsi, give_up in self._idle.items():
            del self._idle[gsi]
            self._recycled += 1
            give_up()
            return gsi
        return None

    def take(self, gsi: int) -> bool:
        """Take this very gsi, for a snapshot that names it: False if it is held, routed or out of range."""
        number = plain(gsi, self._stop)
        if number is None or number < self._first or number in self._held or self._routed(number):
            return False
        gsi = number
        self._passed.pop(gsi, None)
        self._held.add(gsi)
        return True

    def release(self, gsi: int) -> None:
        """Give a gsi back; the caller has unrouted it."""
        self._idle.pop(gsi, None)
        self._held.remove(gsi)
        heapq.heappush(self._free, gsi)
        self._serve()

    def bind(self, gsi: int) -> None:
        """An irqfd is assigned to the gsi: it is not handed out until there is none any more."""
        self._bound[gsi] = self._bound.get(gsi, 0) + 1

    def unbind(self, gsi: int) -> None:
        """An irqfd of the gsi's is gone."""
        self._bound[gsi] -= 1
        if not self._bound[gsi]:
            del self._bound[gsi]
            if gsi in self._passed:
                self.unrouted(gsi)

    def unrouted(self, *gsis: int) -> None:
        """Somebody has taken routes away, those of these gsis altogether: whoever waits looks again."""
        for gsi in gsis:
            if gsi in self._passed:
                del self._passed[gsi]
                heapq.heappush(self._free, gsi)
        self._serve()

    def idle(self, gsi: int, give_up: Callable[[], object]) -> None:
        """Keep a gsi, but let go of it when ``give_up`` is called, which must not raise."""
        self._idle[gsi] = give_up
        self._serve()

    def busy(self, gsi: int) -> None:
        """Need an idle gsi again."""
        self._idle.pop(gsi, None)

    def wait(self, key: object, on_gsi: Callable[[], object]) -> None:
        """Be called once, in the order of asking, when there may be a gsi. Asking again keeps the place.

        Args:
            key: Who asks: anything that can be hashed. :meth:`forget` takes the same.
            on_gsi: Called on the loop, from within whatever let go of a gsi, and must not raise; :meth:`allocate` may still give
                it None, for somebody else was quicker.
        """
        self._waiting.setdefault(key, on_gsi)

    def forget(self, key: object) -> None:
        """Not be called any more; nothing happens if the key does not wait."""
        self._waiting.pop(key, None)

    def _serve(self) -> None:
        # Whoever is called may release or idle one in its turn: that must not nest as deep as there are waiters.
        if self._serving:
            return
        self._serving = True
        try:
            while self._waiting and (self._free or self._idle):
                before = len(self._waiting)
                key = next(iter(self._waiting))
                self._waiting.pop(key)()
                if len(self._waiting) >= before:
                    break  # refused again
        finally:
            self._serving = False
