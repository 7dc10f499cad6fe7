"""What may come between a device and whoever serves it: :mod:`aioirqfd.faults` does, and only while there is a fault to make.

While a device has an :class:`Interception`, every request and every interrupt goes by it, and no queue serves its file by itself.
Without one nothing is different from a device that never had any: the hooks are looked at when it comes and when it goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioirqfd.virtio.chain import Chain

UNANSWERED: Final = -1
"""What an interception's ``handle()`` returns for a request that is never to be answered."""


class Interception(Protocol):
    """Has its way with a device's requests and interrupts. Threads: the loop's."""

    async def handle(self, request: Chain, /) -> int | None:
        """In place of the device's ``handle()``, with the same rules; may return ``UNANSWERED``, too."""

    def interrupt(self, queue: int, ring: Callable[[], None], /) -> bool | None:
        """In place of the device's ``interrupt()``, with the same rules."""

    def stopping(self, queue: int) -> None:
        """A queue is about to stop: end what is kept back. The device hears of it, too."""

    def reset(self) -> None:
        """The driver has gone, and its interrupts with it. The device hears of it, too."""


class Transport(Protocol):
    """Who serves a device, as its interception sees it. Threads: the loop's."""

    def look_again(self) -> None:
        """The device has an interception now, or none any more."""

    def answer_again(self, request: Chain, written: int, *, head: int | None = None) -> None:
        """Put the answer to a request into its ring once more, or one that is none; see :meth:`Backend.answer_again`."""

    def ring(self, queue: int) -> None:
        """Interrupt for a queue."""

    def report(self, what: str) -> None:
        """Tell the tracer what the device says, in time (:mod:`aioirqfd.ratelimit`)."""

    def answers(self, queue: int) -> int:
        """How many requests of a queue were answered."""
        ...

    def runs(self, queue: int) -> bool:
        """Whether a queue runs: the driver has set it up, said ``DRIVER_OK``, and has not reset it since."""
        ...

    def hang_up(self) -> None:
        """Have been reset, of which the driver is not told: a vhost-user back-end is gone for it, as if its process had died."""
