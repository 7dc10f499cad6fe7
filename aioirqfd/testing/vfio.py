"""The other side of vfio-user, for tests of a device without a guest.

::

    async with vfio_user_client(Dice()) as client:
        assert await client.read(0, 0, 4) in SIDES
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

from aioirqfd.pci.device import PciDevice
from aioirqfd.testing.tracer import Tail
from aioirqfd.tracer import NULL_TRACER
from aioirqfd.vfio_user.client import Client
from aioirqfd.vfio_user.server import Server

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Callable

    from aioirqfd.tracer import Tracer


@contextlib.asynccontextmanager
async def vfio_user_client(
    device: PciDevice | str | os.PathLike[str] | socket.socket,
    *,
    memory: Callable[[int, int, bytes | None], bytes] | None = None,
    tracer: Tracer = NULL_TRACER,
) -> AsyncGenerator[Client]:
    """Have a client that has agreed on the version, for as long as the block lasts.

    Args:
        device: A device, which is served for as long; or the socket of one that is served elsewhere, by its path or connected.
        memory: Answers what the device reads and writes in memory that was mapped without a file descriptor, as for
            :class:`~aioirqfd.vfio_user.client.Client`.
        tracer: Hears what happens to a device that is served here. What is raised in the block shows the last of it, with or without.
    """
    async with contextlib.AsyncExitStack() as stack:
        place: str | os.PathLike[str] | socket.socket
        if isinstance(device, PciDevice):
            ours, place = socket.socketpair()
            tail = Tail(tracer)
            stack.enter_context(tail.shown())
            await stack.enter_async_context(Server(device, sock=ours, tracer=tail))
        else:
            place = device
        yield await stack.enter_async_context(Client(place, memory=memory))
