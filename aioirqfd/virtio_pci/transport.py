"""A virtio function as the interception of its device sees it: :mod:`aioirqfd.faults` answers, interrupts and resets by this."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from aioirqfd.serving.reports import Reports
    from aioirqfd.virtio.chain import Chain
    from aioirqfd.virtio_pci.queue import PciQueue


@final
class FunctionTransport:
    """A :class:`~aioirqfd.virtio.interception.Transport`. Made by the function while it is served.

    Args:
        queues: The function's queues.
        reset: Resets the device, as its driver does.
        reports: Hears of trouble.

    Threads: the loop's.
    """

    def __init__(
        self,
        queues: Sequence[PciQueue],
        *,
        reset: Callable[[], Coroutine[object, object, None]],
        reports: Reports,
    ) -> None:
        self._queues = queues
        self._reset = reset
        self._resets: set[asyncio.Task[None]] = set()
        self._reports = reports

    def report(self, what: str) -> None:
        """Tell the tracer what the device says, in time."""
        self._reports.trouble("device_trouble", kind=what, what=what)

    def ring(self, queue: int) -> None:
        """Interrupt for a queue, whether there is something to tell or not."""
        self._queues[queue].requests.ring()

    def look_again(self) -> None:
        """The device has an interception now, or none any more."""
        for queue in self._queues:
            queue.requests.look_again()

    def answer_again(self, request: Chain, written: int, *, head: int | None = None) -> None:
        """Put the answer to a request into its ring once more; nothing happens where the ring has stopped."""
        self._queues[request.queue].requests.answer_again(request.head if head is None else head, written)

    def answers(self, queue: int) -> int:
        """How many answers a queue has given."""
        return self._queues[queue].statistics().answers

    def runs(self, queue: int) -> bool:
        """Whether the driver has said that it drives the device, and the queue runs."""
        return self._queues[queue].requests.queue is not None

    def hang_up(self) -> None:
        """Be reset, of which the driver is not told: what is under way in a turn from now is cancelled, and nothing is answered."""
        task = asyncio.get_running_loop().create_task(self._fall_silent(), name="aioirqfd fault")
        self._resets.add(task)
        task.add_done_callback(self._resets.discard)

    async def _fall_silent(self) -> None:
        for queue in self._queues:
            queue.halt()
        await self._reset()

    async def aclose(self) -> None:
        """Wait until what was reset has been."""
        if self._resets:
            await asyncio.wait(self._resets)
