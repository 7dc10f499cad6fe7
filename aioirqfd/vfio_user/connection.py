"""A socket between a client and a server, as messages, for several senders on either side."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, final

from aioirqfd.serving.stream import Stream
from aioirqfd.vfio_user.errors import VfioUserProtocolError
from aioirqfd.vfio_user.messages import MAX_FDS, Message
from aioirqfd.vfio_user.protocol import MessageParser, encode

if TYPE_CHECKING:
    import socket


@final
class Connection(Stream[Message]):
    """A connected socket.

    Args:
        sock: A Unix stream socket; owned from here on, and made non-blocking.

    Threads: the loop's.
    """

    __slots__ = ("_sending",)

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, MessageParser(), max_fds=MAX_FDS, broken=VfioUserProtocolError)
        self._sending = asyncio.Lock()

    async def send(self, message: Message) -> None:
        """Send a message with its fds, which stay the caller's. One after the other, whoever sends.

        Raises:
            ConnectionError: The peer has gone.

        Cancellation:
            A part of it may have been sent: close the connection.
        """
        async with self._sending:
            await self.send_data(encode(message), message.fds)
