"""Who has a function plugged in, as the function sees it: the place in a VMM that keeps what the guest's CPU would find there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from aioirqfd.eventfd import EventFd


class FunctionHost(Protocol):
    """Keeps a function's MSI-X table, injects its vectors, and maps its BARs: what is a VMM's part where there is no other process.

    :class:`aioirqfd.pci.PciBus` has one for each slot.

    Threads: the loop's, but for :meth:`look_again`.
    """

    def eventfd(self, vector: int, /) -> EventFd | None:
        """The eventfd that interrupts by a vector, which stays the host's; None: the guest cannot have this vector."""
        ...

    def masked(self, vector: int, /) -> bool:
        """Whether the guest takes no interrupt by a vector now: it is masked, or all of them are disabled."""
        ...

    def pending(self, vector: int, /) -> bool:
        """Whether an interrupt by a vector waits: its bit of the pending-bit array."""
        ...

    def read_table(self, offset: int, size: int, /) -> bytes:
        """The guest reads the MSI-X table."""
        ...

    def write_table(self, offset: int, data: bytes, /) -> None:
        """The guest writes the MSI-X table."""

    def look_again(self) -> None:
        """The configuration space is another, or the doorbells, or something comes between the device and the host, or no longer.

        Threads: any. A doorbell whose eventfd is closed comes off in the thread of the vCPU that rings it.
        """

    async def discard(self) -> None:
        """Throw away the interrupts that are pending: the function is reset."""
