"""The level-triggered lines of a manager: one resampler for each gsi that has resample irqfds, or a line that is up (row R24)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from aioirqfd.irqfd.resampler import NO_MOVES, Resampler

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aioirqfd.irqfd.interrupt import Route
    from aioirqfd.irqfd.irqfd import IrqFd
    from aioirqfd.irqfd.manager import IrqManager
    from aioirqfd.irqfd.resampler import Moves

_NO_ROUTES: Final[tuple[Route, ...]] = ()


@final
class Lines:
    """A manager's resamplers, by gsi.

    Args:
        manager: Whose.
    """

    __slots__ = ("_manager", "_resamplers")

    def __init__(self, manager: IrqManager) -> None:
        self._manager: Final = manager
        self._resamplers: Final[dict[int, Resampler]] = {}

    def __getitem__(self, gsi: int) -> Resampler:
        """The gsi's one resampler; made at the first need."""
        resampler = self._resamplers.get(gsi)
        if resampler is None:
            resampler = self._resamplers[gsi] = Resampler(self._manager, gsi)
        return resampler

    def get(self, gsi: int) -> Resampler | None:
        """The gsi's resampler, if there is one. Any thread may ask."""
        return self._resamplers.get(gsi)

    def all(self) -> list[Resampler]:
        """All that there are just now."""
        return list(self._resamplers.values())

    def leave(self, irqfd: IrqFd) -> None:
        """The irqfd is gone."""
        resampler = self._resamplers.get(irqfd.gsi)
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

    def moving(self) -> dict[int, Moves]:
        """The lines that are not where they are to be, and what is yet to be done with each."""
        moves = ((gsi, resampler.moves) for gsi, resampler in self._resamplers.items() if resampler.members)
        return {gsi: each for gsi, each in moves if any(each)}

    def put(self, asserted: Mapping[int, Sequence[Route]], moving: Mapping[int, Moves]) -> None:
        """Make them stand as a snapshot says."""
        for gsi, resampler in self._resamplers.items():
            resampler.put(asserted.get(gsi, _NO_ROUTES), moving.get(gsi, NO_MOVES))
