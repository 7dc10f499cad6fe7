"""A queue's kick: the eventfd that the front-end has given, and the irqfd that listens to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from aioirqfd.eventfd import EventFd
    from aioirqfd.irqfd.irqfd import IrqFd
    from aioirqfd.irqfd.manager import IrqManager


@final
class Kick:
    """The kick of one queue; there may be none yet.

    Args:
        gsi: The queue's number, which is its gsi.
        manager: Whose irqfds the kicks are.

    Threads: the loop's.
    """

    __slots__ = ("_eventfd", "_gsi", "_irqfd", "_manager", "_signals", "_wakeups")

    def __init__(self, gsi: int, manager: IrqManager) -> None:
        self._gsi = gsi
        self._manager = manager
        self._eventfd: EventFd | None = None
        self._irqfd: IrqFd | None = None
        self._signals = self._wakeups = 0

    def __bool__(self) -> bool:
        return self._irqfd is not None

    def set(self, eventfd: EventFd, *, masked: bool) -> bool:
        """Listen to this eventfd, and to no other; it is owned from here on.

        Returns:
            Whether it is another one than before.

        Raises:
            OSError: It cannot be listened to. It is closed then, and the one before is still listened to.
        """
        try:
            irqfd = self._manager.assign(
                eventfd, gsi=self._gsi, masked=masked, name=f"kick {self._gsi}", labels={"queue": self._gsi}
            )
        except OSError:
            known = self._eventfd is not None and self._eventfd.id == eventfd.id
            eventfd.close()
            if known:
                return False
            raise
        self.drop()
        self._eventfd = eventfd
        self._irqfd = irqfd
        return True

    def mask(self) -> None:
        """Hold kicks back."""
        if self._irqfd is not None:
            self._irqfd.mask()

    def unmask(self) -> None:
        """Let them come."""
        if self._irqfd is not None:
            self._irqfd.unmask()

    def drop(self) -> None:
        """Let go of the eventfd."""
        eventfd, self._eventfd = self._eventfd, None
        irqfd, self._irqfd = self._irqfd, None
        if eventfd is not None and irqfd is not None:
            counts = irqfd.statistics()
            eventfd.close()  # which deassigns it
            self._signals += counts.signals
            self._wakeups += counts.wakeups

    def counts(self) -> tuple[int, int]:
        """Return the sum of all kicks, and how often the loop noticed."""
        signals, wakeups = self._signals, self._wakeups
        if self._irqfd is not None:
            counts = self._irqfd.statistics()
            signals += counts.signals
            wakeups += counts.wakeups
        return signals, wakeups
