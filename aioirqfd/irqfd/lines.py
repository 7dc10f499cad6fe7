"""The level-triggered lines of a manager: one resampler for each gsi that has resample irqfds, or a line that is up (row R24)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from aioirqfd.irqfd.line_level import LOW, LineLevel
from aioirqfd.irqfd.resampler import Resampler

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aioirqfd.irqfd.backpressure import Backpressure
    from aioirqfd.irqfd.delivery import Delivery
    from aioirqfd.irqfd.interrupt import Route
    from aioirqfd.irqfd.resampler import Member
    from aioirqfd.irqfd.routing import Routes


@final
class Lines:
    """A manager's resamplers, by gsi.

    Args:
        delivery: Has the sink.
        routes: Says where a gsi goes.
        backpressure: Queues what the sink does not take at once.
    """

    __slots__ = ("_backpressure", "_delivery", "_resamplers", "_routes")

    def __init__(self, delivery: Delivery, routes: Routes, backpressure: Backpressure) -> None:
        self._delivery: Final = delivery
        self._routes: Final = routes
        self._backpressure: Final = backpressure
        self._resamplers: Final[dict[int, Resampler]] = {}

    def __getitem__(self, gsi: int) -> Resampler:
        """The gsi's one resampler; made at the first need."""
        resampler = self._resamplers.get(gsi)
        if resampler is None:
            resampler = Resampler(gsi, self._delivery, self._routes, self._backpressure, self.drop)
            self._resamplers[gsi] = resampler
        return resampler

    def get(self, gsi: int) -> Resampler | None:
        """The gsi's resampler, if there is one. Any thread may ask."""
        return self._resamplers.get(gsi)

    def all(self) -> list[Resampler]:
        """All that there are just now."""
        return list(self._resamplers.values())

    def leave(self, irqfd: Member, gsi: int) -> None:
        """The irqfd is gone."""
        resampler = self._resamplers.get(gsi)
        if irqfd.resamplefd is not None and resampler is not None:
            resampler.leave(irqfd)
            self.drop(resampler)

    def drop(self, resampler: Resampler) -> None:
        """Forget a resampler that nobody needs any more: no resamplefd, and its line low."""
        if resampler.empty and self._resamplers.get(resampler.gsi) is resampler:
            del self._resamplers[resampler.gsi]

    def asserted(self) -> dict[int, tuple[Route, ...]]:
        """The lines that are up, and where."""
        return {gsi: resampler.raised for gsi, resampler in self._resamplers.items() if resampler.asserted}

    def moving(self) -> dict[int, LineLevel]:
        """The lines that are not where they are to be, and what is yet to be done with each."""
        return {gsi: one.level for gsi, one in self._resamplers.items() if one.members and one.level.moving}

    def put(self, levels: Mapping[int, LineLevel]) -> None:
        """Make them stand as a snapshot says."""
        for gsi, resampler in self._resamplers.items():
            resampler.put(levels.get(gsi, LOW))
