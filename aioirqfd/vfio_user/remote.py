"""The other direction: the server asks its client for memory that came without a file descriptor."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, final

from aioirqfd.pci.errors import DmaError
from aioirqfd.vfio_user.messages import DMA_ACCESS, Command, Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioirqfd.vfio_user.connection import Connection


@final
class RemoteMemory:
    """Memory of the client, by ``DMA_READ`` and ``DMA_WRITE``.

    Args:
        connection: Where the commands go: the client's own, or the twin socket.
        most: Bytes that one message may carry.
        asking: Called when an answer begins to be waited for.

    Attributes:
        waiting: How many replies are waited for.

    Threads: the loop's.
    """

    __slots__ = ("_asking", "_closed", "_connection", "_most", "_number", "_replies")

    def __init__(self, connection: Connection, *, most: int, asking: Callable[[], object]) -> None:
        self._connection = connection
        self._asking = asking
        self._most = most
        self._number = 0
        self._closed = False
        self._replies: dict[int, tuple[int, asyncio.Future[Message]]] = {}

    @property
    def waiting(self) -> int:
        """How many replies are waited for."""
        return len(self._replies)

    async def read(self, address: int, size: int) -> bytes:
        """Return what is there, in as many messages as it takes.

        Raises:
            DmaError: The client would not give it, or has gone.
        """
        parts: list[bytes] = []
        for at in range(0, size, self._most):
            count = min(self._most, size - at)
            reply = await self._ask(Command.DMA_READ, DMA_ACCESS.pack(address + at, count))
            data = reply.data[DMA_ACCESS.size :]
            if len(data) != count:
                raise DmaError(f"the client gave {len(data)} bytes at {address + at:#x}, and {count} were asked for")
            parts.append(data)
        return b"".join(parts)

    async def write(self, address: int, data: bytes) -> None:
        """Put something there, in as many messages as it takes.

        Raises:
            DmaError: The client would not take it, or has gone. A part may have been written.
        """
        for at in range(0, len(data), self._most):
            piece = data[at : at + self._most]
            await self._ask(Command.DMA_WRITE, DMA_ACCESS.pack(address + at, len(piece)) + piece)

    async def _ask(self, command: Command, data: bytes) -> Message:
        if self._closed:
            raise DmaError("the client has gone")
        number = self._number
        while number in self._replies:
            number = (number + 1) % 2**16
        self._number = (number + 1) % 2**16
        reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._replies[number] = (command, reply)
        self._asking()
        try:
            await self._connection.send(Message(number, command, data))
            message = await reply
        except ConnectionError as error:
            raise DmaError("the client has gone") from error
        finally:
            del self._replies[number]
        if message.error is not None:
            raise DmaError(f"the client answers {command.name} with errno {message.error}")
        return message

    def take(self, message: Message) -> bool:
        """Take a reply; False: nobody waits for it."""
        command, reply = self._replies.get(message.number, (0, None))
        if reply is None or command != message.command or reply.done():
            return False
        reply.set_result(message)
        return True

    def close(self) -> None:
        """The client has gone: who waits is told. Idempotent."""
        self._closed = True
        for _, reply in self._replies.values():
            if not reply.done():
                reply.set_exception(DmaError("the client has gone"))
