"""What may come between a PCI device and whoever serves it: :mod:`aioirqfd.faults` does, and only while there is a fault to make.

While a device has an :class:`Interception`, every access, transfer and interrupt goes by it. Without one the hooks cost a look at
an attribute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Mapping


class Request(Protocol):
    """A request of a device's own, such as a command in a queue; see :meth:`PciDevice.serve_request`.

    As it is made, it has succeeded. It may have two more methods: ``misname(mask)`` flips bits of the number by which the driver
    knows it, ``interrupt()`` interrupts for it.

    Attributes:
        kind: What it is, such as "read".
        fields: What else it can be found by.
    """

    @property
    def kind(self) -> str:
        """What it is."""
        ...

    @property
    def fields(self) -> Mapping[str, int | str]:
        """What else it can be found by."""
        ...

    async def perform(self) -> None:
        """Carry it out, and keep what came of it."""

    def fail(self, status: int | None) -> None:
        """Have failed instead, with a status of the device's own; None: the one that says that the device is at fault."""

    async def complete(self, *, late: bool) -> None:
        """Tell the driver what came of it; ``late``: interrupt, too, for whoever took it has gone on."""


class Interception(Protocol):
    """Has its way with a device's accesses, transfers, interrupts and requests. Threads: the loop's."""

    async def read(self, region: int, offset: int, size: int, proceed: Callable[[], Awaitable[bytes]], /) -> bytes:
        """In place of a read of a region; ``proceed`` is the real one."""
        ...

    async def write(
        self, region: int, offset: int, data: bytes, proceed: Callable[[bytes], Awaitable[None]], /
    ) -> None:
        """In place of a write to a region."""

    async def dma_read(self, address: int, size: int, proceed: Callable[[], Awaitable[bytes]], /) -> bytes:
        """In place of a read of the guest's memory."""
        ...

    async def dma_write(self, address: int, data: bytes, proceed: Callable[[bytes], Awaitable[None]], /) -> None:
        """In place of a write to the guest's memory."""

    def signal(self, vector: int, proceed: Callable[[int], bool], /) -> bool:
        """In place of telling the guest of a vector, or of the pin (-1); False: not now, try again."""
        ...

    def lower(self, proceed: Callable[[], None], /) -> None:
        """In place of taking the pin down."""

    async def serve_request(self, request: Request, /) -> asyncio.Task[None] | None:
        """In place of carrying out a request and completing it; a task if that goes on."""
