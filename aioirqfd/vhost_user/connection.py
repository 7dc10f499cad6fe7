"""The socket of one front-end, as messages: reads as the codec asks, and loses no fd."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import select
import socket
from typing import TYPE_CHECKING, Final, final

from aioirqfd.eventfd.loops import add_reader, remove_reader
from aioirqfd.vhost_user.errors import VhostUserProtocolError
from aioirqfd.vhost_user.protocol import MAX_FDS, Direction, MessageParser, encode
from aioirqfd.vhost_user.sockets import done, readable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from aioirqfd.vhost_user.messages import Message

# Each call says that it does not wait: another process may have the same socket, and make it block. What comes is closed when
# this process becomes another program. (The standard library's recv_fds() and send_fds() take such flags, and drop them.)
_SEND: Final = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
_RECEIVE: Final = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT


@final
class Connection:
    """A connected socket.

    Args:
        sock: A Unix stream socket; owned from here on, and made non-blocking.
        direction: What is received; a front-end says ``REPLY``.

    Threads: the loop's.
    """

    __slots__ = ("_loop", "_parser", "_sock")

    def __init__(self, sock: socket.socket, direction: Direction = Direction.REQUEST) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._parser = MessageParser(direction)
        self._loop = asyncio.get_running_loop()

    async def receive(self) -> Message | None:
        """Return the next message, whose fds are the caller's; None when the front-end has gone.

        Raises:
            VhostUserProtocolError: The stream breaks the protocol, or ends within a message.
        """
        parser = self._parser
        while (message := parser.next_message()) is None:
            try:
                data, fds, flags = receive_fds(self._sock, parser.wanted, MAX_FDS)
            except BlockingIOError:
                await readable(self._sock)
                continue
            except ConnectionError:
                return None
            parser.feed(data, fds)
            if flags & socket.MSG_CTRUNC:
                raise VhostUserProtocolError(
                    f"fds were cut off: more than {MAX_FDS} came with one message, or there are no free ones here"
                )
            if not data:
                parser.eof()
                return None
        return message

    async def send(self, message: Message) -> None:
        """Send a message with its fds, which stay the caller's.

        Raises:
            ConnectionError: The front-end has gone.
        """
        data = encode(message)
        fds = message.fds
        while data:
            try:
                sent = send_fds(self._sock, data, fds)
            except BlockingIOError:
                await self._wait_writable()
                continue
            data = data[sent:]
            fds = ()

    @contextlib.contextmanager
    def watch(self, gone: Callable[[], None]) -> Generator[None]:
        """While nobody reads: call ``gone``, once, should the other end close the connection, whatever it has sent before."""
        try:
            hang_up = select.epoll()
        except OSError:
            yield  # no fd to be had: it is noticed when somebody reads
            return
        with hang_up:
            hang_up.register(self._sock.fileno(), 0)  # for nothing but what is always reported: EPOLLHUP, EPOLLERR

            def on_hang_up() -> None:
                remove_reader(self._loop, fd)
                gone()

            fd = add_reader(self._loop, hang_up.fileno(), on_hang_up)
            try:
                yield
            finally:
                remove_reader(self._loop, fd)
                if fd != hang_up.fileno():
                    os.close(fd)

    async def _wait_writable(self) -> None:
        waiting: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_writer(self._sock.fileno(), done, waiting)
        try:
            await waiting
        finally:
            self._loop.remove_writer(self._sock.fileno())

    def close(self) -> None:
        """Close the socket, and the fds that no message took. Idempotent."""
        for fd in self._parser.close():
            os.close(fd)
        self._sock.close()


def receive_fds(sock: socket.socket, size: int, count: int) -> tuple[bytes, list[int], int]:
    """Receive what there is, at most ``size`` bytes and ``count`` fds; return them, and the flags of recvmsg(2).

    Raises:
        BlockingIOError: There is nothing.
        ConnectionError: The other end has gone.
    """
    fds = array.array("i")
    data, ancillary, flags, _ = sock.recvmsg(size, socket.CMSG_LEN(count * fds.itemsize), _RECEIVE)
    for level, kind, piece in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(piece[: len(piece) // fds.itemsize * fds.itemsize])
    return data, fds.tolist(), flags


def send_fds(sock: socket.socket, data: bytes, fds: Sequence[int]) -> int:
    """Send what there is room for, the fds with the first byte; return how many bytes that were.

    Raises:
        BlockingIOError: There is no room.
        ConnectionError: The other end has gone.
    """
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    return sock.sendmsg([data], ancillary, _SEND)
