"""The socket of one front-end, as messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from aioirqfd.serving.stream import Stream
from aioirqfd.vhost_user.errors import VhostUserProtocolError
from aioirqfd.vhost_user.messages import Message
from aioirqfd.vhost_user.protocol import MAX_FDS, Direction, MessageParser, encode

if TYPE_CHECKING:
    import socket


@final
class Connection(Stream[Message]):
    """A connected socket.

    Args:
        sock: A Unix stream socket; owned from here on, and made non-blocking.
        direction: What is received; a front-end says ``REPLY``.

    Threads: the loop's.
    """

    __slots__ = ()

    def __init__(self, sock: socket.socket, direction: Direction = Direction.REQUEST) -> None:
        super().__init__(sock, MessageParser(direction), max_fds=MAX_FDS, broken=VhostUserProtocolError)

    async def send(self, message: Message) -> None:
        """Send a message with its fds, which stay the caller's.

        Raises:
            ConnectionError: The front-end has gone.
        """
        await self.send_data(encode(message), message.fds)
