"""A sink that signals another eventfd for each gsi: chains managers, crosses processes, feeds a kernel's irqfd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, final

from aioirqfd.errors import RoutingError
from aioirqfd.irqfd.interrupt import Action

if TYPE_CHECKING:
    from aioirqfd.eventfd import EventFd
    from aioirqfd.irqfd.interrupt import Interrupt


@final
class EventFdSink:
    """Adds 1 to the eventfd of the interrupt's gsi.

    An eventfd has no level: ``PULSE`` and ``ASSERT`` signal it, ``DEASSERT`` does nothing. A count at its top takes no more, and
    needs none: its reader is owed a wakeup already (row E18).

    Args:
        eventfds: An eventfd for each gsi. They stay the caller's; the mapping is looked at for each interrupt, so it may be
            changed at run time.

    Raises:
        TypeError: Not a mapping.
    """

    __slots__ = ("_eventfds",)

    def __init__(self, eventfds: Mapping[int, EventFd]) -> None:
        if not isinstance(eventfds, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  callers without a type checker
            raise TypeError(f"an eventfd for each gsi is a mapping, not {eventfds!r}")
        self._eventfds = eventfds

    async def inject(self, interrupt: Interrupt) -> None:
        """Signal the eventfd.

        Raises:
            RoutingError: EINVAL; there is none for this gsi.
            ClosedError: EBADF; it is closed.
        """
        self.try_inject(interrupt)

    def try_inject(self, interrupt: Interrupt) -> bool:
        """Signal the eventfd; never refuses. Raises as :meth:`inject` does."""
        if interrupt.action is Action.DEASSERT:
            return True
        eventfd = self._eventfds.get(interrupt.gsi)
        if eventfd is None:
            raise RoutingError(
                f"no eventfd for gsi {interrupt.gsi}: add one to the mapping that this EventFdSink was given"
            )
        eventfd.signal()
        return True
