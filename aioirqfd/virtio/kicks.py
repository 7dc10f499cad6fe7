"""Where the kicks of a device go. A kick is an interrupt, too, only the other way round."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from aioirqfd.virtio.fast import Kicks

if TYPE_CHECKING:
    from aioirqfd.eventfd import EventFd
    from aioirqfd.irqfd.interrupt import Interrupt
    from aioirqfd.virtio.fast import Transfer
    from aioirqfd.virtio.requests import Requests


@final
class KickSink:
    """The sink of the kicks' irqfds: gsi n is queue n's.

    Args:
        calls: By queue, the eventfd that interrupts for it, or None: then a kick is never served without Python.
        recorded: Requests that are served without Python are for a flight recorder, too.

    Attributes:
        requests: By queue, whom a kick is for.
        transfers: By queue, what serves its kicks without them, or None.
    """

    def __init__(self, calls: list[EventFd | None], *, recorded: bool = False) -> None:
        self.requests: list[Requests] = []
        self.transfers: list[Transfer | None] = [None] * len(calls)
        self.try_inject = Kicks(self._on_kick, self.transfers, calls, self._on_served if recorded else None).try_inject

    def _on_kick(self, queue: int) -> None:
        self.requests[queue].on_kick()

    def _on_served(self, queue: int, served: int) -> None:
        self.requests[queue].note_served(served)

    async def inject(self, interrupt: Interrupt) -> None:
        """As ``try_inject``."""
        self._on_kick(interrupt.gsi)
