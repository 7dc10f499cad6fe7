"""The guest's memory as virtqueues want it, made from a PCI device's way to it, and what its changes do to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from aioirqfd.virtio.memory import GuestMemory, MappedRegion, Region

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aioirqfd.pci.dma import Dma
    from aioirqfd.virtio_pci.queue import PciQueue


@final
class DmaMemory:
    """Watches the mappings for the queues.

    Only memory that came with a file descriptor, and may be read and written, is there for a ring and its buffers.

    Args:
        dma: The device's way to the guest's memory.
        queues: Who keeps views of it.

    Threads: the loop's.
    """

    def __init__(self, dma: Dma, queues: Sequence[PciQueue]) -> None:
        self._dma = dma
        self._queues = queues

    def table(self) -> GuestMemory:
        """The memory as it is now. A ring's addresses are the guest's own."""
        regions = [MappedRegion(Region(at, len(view), at, 0), view) for at, view in self._dma.mappings()]
        return GuestMemory(regions, most=self._dma.limit)

    def mapped(self) -> None:
        """There is a mapping more."""
        table = self.table()
        for queue in self._queues:
            queue.mapped(table)

    async def unmapped(self, memory: memoryview) -> None:
        """A mapping has gone."""
        table = self.table()
        for queue in self._queues:
            await queue.unmapped(memory, table)

    async def gone(self) -> None:
        """All mappings have."""
        for queue in self._queues:
            await queue.abandon()
