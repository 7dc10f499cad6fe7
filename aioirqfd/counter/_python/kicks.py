"""Kicks: where the kicks of a device's queues go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aioirqfd.counter._python.eventfd_ctx import EventFdCtx
    from aioirqfd.counter._python.transfer import Transfer


class _Kick(Protocol):
    @property
    def gsi(self) -> int: ...


@final
class Kicks:
    """Where the kicks of a device's queues go, gsi n being queue n's. Here to ``on_kick``, all of them.

    Args:
        on_kick: Called with the queue.
        transfers: By queue, the :class:`Transfer` that may serve it just now, or None.
        calls: By queue, the eventfd to signal then, or None.
    """

    def __init__(
        self,
        on_kick: Callable[[int], object],
        transfers: list[Transfer | None],
        calls: Sequence[EventFdCtx | None],
    ) -> None:
        del transfers, calls
        self._on_kick = on_kick

    def try_inject(self, interrupt: _Kick, /) -> bool:
        """Serve the queue that its gsi names."""
        self._on_kick(interrupt.gsi)
        return True
