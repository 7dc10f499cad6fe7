"""One queue of a virtio function: what the driver has said about it, its doorbell, and its ring while it runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple, final

from aioirqfd.errors import SnapshotError
from aioirqfd.eventfd import EventFd
from aioirqfd.pci.fields import Fields
from aioirqfd.serving.waiting import wait_through
from aioirqfd.virtio.errors import GuestMemoryError, VirtqueueError
from aioirqfd.virtio.queue_node import of_queue
from aioirqfd.virtio.requests import Requests
from aioirqfd.virtio.ring import DESC_SIZE, avail_size, used_size
from aioirqfd.virtio.virtqueue import VirtQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aioirqfd.irqfd.manager import IrqManager
    from aioirqfd.serving.reports import Reports
    from aioirqfd.virtio.device import Device
    from aioirqfd.virtio.eager import Eager
    from aioirqfd.virtio.kicks import KickSink
    from aioirqfd.virtio.memory import GuestMemory
    from aioirqfd.virtio.statistics import VringStatistics

NO_VECTOR: Final = 0xFFFF
"""In place of a vector: no interrupt (``VIRTIO_MSI_NO_VECTOR``)."""


class RingAddress(NamedTuple):
    """Where a ring lies, in the guest's addresses."""

    descriptor: int
    available: int
    used: int


@final
class PciQueue:
    """A queue. Made by the function, one for each.

    Args:
        index: Its number.
        name: What its source in a flight recorder's file begins with.
        most: Entries that its ring has at most, and unless the driver says otherwise.
        device: Who handles the requests.
        ring: Interrupts for a queue.
        failed: Called when the ring cannot go on without a reset.
        manager: Whose irqfd the doorbell is.
        sink: Where kicks go.
        eager: Begins the handlers.
        reports: Tells what goes wrong.

    Attributes:
        size: Entries of its ring.
        vector: Its interrupts'.
        enabled: Whether the driver has enabled it.
        descriptor: Where the descriptor table is.
        available: Where the driver's part of the ring is.
        used: Where the device's part is.
        paused: Whether its ring is not to run for now, whatever the driver says.
        doorbell: What the driver's notifications signal.

    Threads: the loop's.
    """

    def __init__(
        self,
        index: int,
        *,
        name: str,
        most: int,
        device: Device,
        ring: Callable[[int], None],
        failed: Callable[[], None],
        manager: IrqManager,
        sink: KickSink,
        eager: Eager,
        reports: Reports,
    ) -> None:
        self.index: Final = index
        self.doorbell: Final = EventFd()
        self.requests: Final = Requests(
            index,
            name=name,
            device=device,
            ring=ring,
            broken=self._break,
            transfers=sink.transfers,
            eager=eager,
            reports=reports,
        )
        self.paused = False
        self._most = most
        self._failed = failed
        self._ring = ring
        self._reports = reports
        # Nothing that is signalled while no ring runs is lost: it is a kick of the next run's, at worst one too many.
        self._kick = manager.assign(
            self.doorbell, gsi=index, masked=True, name=f"doorbell {index}", labels={"queue": index}
        )
        self._forget()

    def _forget(self) -> None:
        self.size = self._most
        self.vector = NO_VECTOR
        self.enabled = False
        self.descriptor = self.available = self.used = 0
        self._base = 0
        self._features: int | None = None  # those that its ring runs with, or will when its memory is there again
        self._fresh = False  # it was started while paused: where its memory is not there, it has failed
        self._call_due = (
            False  # the driver is to be interrupted when the ring runs, whether there is something to tell or not
        )

    def __repr__(self) -> str:
        return f"<PciQueue {self.index}: {self.requests!r}>"

    # -- start and stop ----------------------------------------------------------------------------------------------

    def start(self, memory: GuestMemory, features: int) -> None:
        """Start the ring, if it is enabled and does not run. One that cannot run is reported, and the function has failed."""
        if self.enabled and self.requests.queue is None:
            self._features = features
            if self.paused:
                self._fresh = True
            else:
                self._start(memory)

    def _start(self, memory: GuestMemory) -> None:
        assert self._features is not None
        try:
            queue = VirtQueue(
                memory,
                self.size,
                RingAddress(self.descriptor, self.available, self.used),
                base=self._base,
                features=self._features,
                file=self.requests.file,
            )
        except VirtqueueError as error:
            self._break(error)
            return
        self.requests.enabled = True
        self._kick.unmask()
        self.requests.start(queue)
        if self._call_due:
            self._call_due = False
            self._ring(self.index)

    async def _end(self) -> None:
        self._kick.mask()
        base = await self.requests.end()
        if base is not None:
            self._base = base

    async def reset(self) -> None:
        """Stop the ring and forget what was said about it. Requests under way are ended first."""
        await self._end()
        self._forget()

    def halt(self) -> None:
        """Stop the ring at once: what is under way is cancelled, and answered no more."""
        self._kick.mask()
        self._features = None
        self.requests.stop()
        self.requests.cancel()

    def _break(self, error: VirtqueueError) -> None:
        base = self.requests.stop()
        self._kick.mask()
        self._features = None
        reason = str(error)
        self._reports.trouble("vring_stopped", kind=(self.index, reason), queue=self.index, base=base, reason=reason)
        self._failed()

    async def aclose(self) -> None:
        """Cancel what is under way, and end."""
        self.requests.close()
        await self._end()
        self.doorbell.close()

    # -- standstill --------------------------------------------------------------------------------------------------

    async def pause(self) -> None:
        """Stop the ring where it stands, until :meth:`resume`. Requests under way are ended first, or stay with the driver.

        Cancellation:
            As if nothing had been. But requests of a receive queue have been cancelled by then: for their end it waits all the same.
        """
        self.paused = True
        if not self.requests.receives:
            await self._end()
            return
        ending = asyncio.create_task(self._end(), name=f"aioirqfd queue {self.index} pauses")
        await wait_through(ending)
        ending.result()

    def resume(self, memory: GuestMemory) -> None:
        """Let the ring run again, if it ran, or was started meanwhile, and its memory is there."""
        self.paused = False
        if self.requests.queue is None:
            self.mapped(memory)
        else:
            # It never stopped: pause() was given up.
            self._kick.unmask()
            self.requests.serve_soon()

    def save(self) -> dict[str, object]:
        """What it is, while it is paused."""
        return {
            "size": self.size,
            "vector": self.vector,
            "enabled": self.enabled,
            "descriptor": self.descriptor,
            "available": self.available,
            "used": self.used,
            "base": self._base,
            "runs": self._features is not None,
        }

    def check(self, state: object) -> Fields:
        """Hold what another one saved against this one; SnapshotError if it does not fit."""
        what = f"queue {self.index}"
        found = Fields(state, what, self.save())
        size = found.number("size", self._most + 1)
        if not size or size & (size - 1):
            raise SnapshotError(f"{what}: a size is a power of 2 up to {self._most}, not {size}")
        for name in ("descriptor", "available", "used"):
            found.number(name, 2**64)
        found.number("vector", 2**16)
        found.number("base", 2**16)
        if found.flag("runs") and not found.flag("enabled"):
            raise SnapshotError(f"{what} runs, but is not enabled")
        return found

    def restore(self, state: Fields, features: int) -> None:
        """Be what another one saved, which :meth:`check` has found to fit; this one is paused."""
        self.size = state.number("size", self._most + 1)
        self.vector = state.number("vector", 2**16)
        self.enabled = state.flag("enabled")
        self.descriptor = state.number("descriptor", 2**64)
        self.available = state.number("available", 2**64)
        self.used = state.number("used", 2**64)
        self._base = state.number("base", 2**16)
        self._features = features if state.flag("runs") else None
        self._call_due = self.requests.may_withhold

    # -- its memory --------------------------------------------------------------------------------------------------

    def mapped(self, memory: GuestMemory) -> None:
        """There is more memory. A ring that had lost its own goes on, if it is in this."""
        if self.requests.queue is not None:
            self.requests.set_memory(memory)
        elif self.paused or self._features is None or self.requests.stopping:
            return
        elif self._fresh or self._lies_in(memory):
            self._fresh = False
            self._start(memory)

    async def unmapped(self, gone: memoryview, memory: GuestMemory) -> None:
        """Let go of memory. A ring that uses it is stopped, once its requests have ended; elsewhere, it goes on."""
        queue = self.requests.queue
        if queue is None:
            return
        if queue.uses(gone):
            await self._end()
            self.mapped(memory)
        else:
            self.requests.set_memory(memory)

    async def abandon(self) -> None:
        """Who served the guest has gone, and its memory. What was under way is cancelled, and the function has failed if that is lost."""
        queue = self.requests.queue
        self.requests.cancel()
        await self._end()
        if queue is not None and queue.in_flight and not self.requests.receives:
            self._break(VirtqueueError("requests were under way when the guest's memory went away"))

    def _lies_in(self, memory: GuestMemory) -> bool:
        try:
            memory.user_view(self.descriptor, DESC_SIZE * self.size)
            memory.user_view(self.available, avail_size(self.size))
            memory.user_view(self.used, used_size(self.size))
        except GuestMemoryError:
            return False
        return True

    # -- what it has done --------------------------------------------------------------------------------------------

    def statistics(self) -> VringStatistics:
        """The counts as they are now."""
        counts = self._kick.statistics()
        return self.requests.statistics(counts.signals, counts.wakeups)

    def node(self) -> Mapping[str, object]:
        """What there is to see of it."""
        vector = None if self.vector == NO_VECTOR else self.vector
        said = {"size": self.size, "vector": vector, "driver_enabled": self.enabled, "base": self._base}
        return of_queue(self.requests, self.statistics(), **said)
