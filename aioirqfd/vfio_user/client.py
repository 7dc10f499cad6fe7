"""The other side, for tests of a device: a client that plays a VMM over the real socket."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Self, final

from aioirqfd.vfio_user import messages
from aioirqfd.vfio_user.capabilities import Capabilities, unpack
from aioirqfd.vfio_user.connection import Connection
from aioirqfd.vfio_user.errors import RefusedError
from aioirqfd.vfio_user.messages import Command, MapFlag, Message, SetIrq

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@final
class Client:
    """A connection to a server. ``async with Client(path) as client``: the version is agreed on by then.

    Args:
        path: Where the server listens; or a socket that is connected to it, owned from here on.
        capabilities: What is proposed; None: to take 16 fds.
        memory: Answers ``DMA_READ`` and ``DMA_WRITE``: called with address, count and, for a write, data; returns what is read.

    Attributes:
        server: What the server says that it can.

    Threads: the loop's.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | socket.socket,
        *,
        capabilities: Capabilities | None = None,
        memory: Callable[[int, int, bytes | None], bytes] | None = None,
    ) -> None:
        self.server = Capabilities()
        self._path = path
        self._capabilities = capabilities or Capabilities(max_msg_fds=messages.MAX_FDS)
        self._memory = memory
        self._number = 0
        self._replies: dict[int, asyncio.Future[Message]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._connections: list[Connection] = []

    async def __aenter__(self) -> Self:
        if isinstance(self._path, socket.socket):
            sock = self._path
        else:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
                sock.connect(os.fspath(self._path))
            except OSError:
                sock.close()
                raise
        self._listen(sock)
        try:
            reply = await self.ask(Command.VERSION, self._capabilities.pack())
            _, _, self.server = unpack(reply.data)
            if self.server.twin_socket and self.server.fd_index is not None:
                self._listen(socket.socket(fileno=reply.fds[self.server.fd_index]))
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Hang up. Idempotent."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def _listen(self, sock: socket.socket) -> None:
        connection = Connection(sock)
        self._connections.append(connection)
        self._tasks.append(asyncio.create_task(self._read(connection)))

    async def _read(self, connection: Connection) -> None:
        try:
            while (message := await connection.receive()) is not None:
                if not message.reply:
                    await connection.send(self._serve(message))
                elif (waiting := self._replies.pop(message.number, None)) is not None and not waiting.done():
                    waiting.set_result(message)
        finally:
            for waiting in self._replies.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionResetError("the server has hung up"))

    def _serve(self, message: Message) -> Message:
        address, count = messages.DMA_ACCESS.unpack_from(message.data)
        data = message.data[messages.DMA_ACCESS.size :] if message.command == Command.DMA_WRITE else None
        reply = replace(message, reply=True, data=message.data[: messages.DMA_ACCESS.size])
        try:
            assert self._memory is not None
            return replace(reply, data=reply.data + self._memory(address, count, data))
        except OSError as error:
            return replace(reply, data=b"", error=error.errno)

    # -- messages ----------------------------------------------------------------------------------------------------

    async def ask(self, command: int, data: bytes = b"", fds: Sequence[int] = ()) -> Message:
        """Send a command, and wait for its reply. Others may be sent meanwhile.

        Raises:
            RefusedError: The server says that it has failed, with its errno.
            ConnectionError: The server has hung up.
        """
        number = self._number = (self._number + 1) % 2**16
        waiting: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._replies[number] = waiting
        await self._connections[0].send(Message(number, command, data, tuple(fds)))
        reply = await waiting
        if reply.error is not None:
            raise RefusedError(reply.error, f"{command!r} was refused: {os.strerror(reply.error)}")
        return reply

    async def tell(self, command: int, data: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a command that wants no reply."""
        await self._connections[0].send(Message(0, command, data, tuple(fds), no_reply=True))

    async def read(self, region: int, offset: int, size: int) -> bytes:
        """Read from a region."""
        reply = await self.ask(Command.REGION_READ, messages.REGION_ACCESS.pack(offset, region, size))
        return reply.data[messages.REGION_ACCESS.size :]

    async def write(self, region: int, offset: int, data: bytes) -> None:
        """Write to a region."""
        await self.ask(Command.REGION_WRITE, messages.REGION_ACCESS.pack(offset, region, len(data)) + data)

    async def map(self, address: int, size: int, *, fd: int | None = None, offset: int = 0, flags: int = 3) -> None:
        """Map memory."""
        data = messages.DMA_MAP.pack(messages.DMA_MAP.size, MapFlag(flags), offset, address, size)
        await self.ask(Command.DMA_MAP, data, () if fd is None else (fd,))

    async def unmap(self, address: int, size: int, *, flags: int = 0) -> None:
        """Unmap memory."""
        await self.ask(Command.DMA_UNMAP, messages.DMA_UNMAP.pack(messages.DMA_UNMAP.size, flags, address, size))

    async def set_irqs(
        self, flags: int, index: int, start: int, count: int, *, data: bytes = b"", fds: Sequence[int] = ()
    ) -> None:
        """Say where interrupts go, or mask them."""
        size = messages.IRQ_SET.size + len(data)
        await self.ask(Command.DEVICE_SET_IRQS, messages.IRQ_SET.pack(size, flags, index, start, count) + data, fds)

    async def bind(self, index: int, start: int, fds: Sequence[int]) -> None:
        """Give interrupts their eventfds."""
        await self.set_irqs(SetIrq.DATA_EVENTFD | SetIrq.TRIGGER, index, start, len(fds), fds=fds)

    async def region_info(self, index: int, *, room: int = 4096) -> Message:
        """Ask what a region is; its fds are the caller's."""
        return await self.ask(Command.DEVICE_GET_REGION_INFO, messages.REGION_INFO.pack(room, 0, index, 0, 0, 0))
