"""The stream socket of one peer, as messages: reads as their parser asks, and loses no fd."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import select
import socket
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from aioirqfd.eventfd.loops import add_reader, remove_reader
from aioirqfd.serving.sockets import done

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)
# Each call says that it does not wait: another process may have the same socket, and make it block. What comes is closed when
# this process becomes another program. (The standard library's recv_fds() and send_fds() take such flags, and drop them.)
_SEND: Final = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
_RECEIVE: Final = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT


class Parser(Protocol[_T_co]):
    """What turns a stream, cut anywhere, into messages."""

    @property
    def wanted(self) -> int:
        """How many bytes to read next; a longer read could glue a message without fds to the next one's."""
        ...

    def feed(self, data: bytes, fds: Iterable[int], /) -> None:
        """Take what came, and own the fds."""

    def next_message(self) -> _T_co | None:
        """Return the next whole message, whose fds are the caller's; None: more bytes are needed. Raises what a broken stream does."""

    def eof(self) -> None:
        """Say that the stream has ended. Raises if it ended within a message."""

    def close(self) -> tuple[int, ...]:
        """Give back the fds that no message took."""
        ...


class Stream(Generic[_T]):
    """A connected socket, and the messages on it.

    Args:
        sock: A Unix stream socket; owned from here on, and made non-blocking.
        parser: Reads the messages.
        max_fds: How many fds come with one message at most.
        broken: Makes the error to raise when fds were cut off.

    Threads: the loop's.
    """

    __slots__ = ("_broken", "_cut", "_gone", "_loop", "_max_fds", "_parser", "_reader", "_sock", "_waiting")

    def __init__(
        self, sock: socket.socket, parser: Parser[_T], *, max_fds: int, broken: Callable[[str], Exception]
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._parser = parser
        self._max_fds = max_fds
        self._broken = broken
        self._loop = asyncio.get_running_loop()
        self._gone = self._cut = False
        self._reader: int | None = None
        self._waiting: asyncio.Future[None] | None = None

    async def receive(self) -> _T | None:
        """Return the next message, whose fds are the caller's; None when the peer has gone. One caller at a time.

        Raises:
            Exception: What the parser raises: the stream breaks the protocol, or ends within a message.

        Cancellation:
            Nothing is lost: what came is in the next message.
        """
        parser = self._parser
        while (message := parser.next_message()) is None:
            if self._cut:
                raise self._broken(
                    f"fds were cut off: more than {self._max_fds} came with one message, or there are no free ones here"
                )
            if self._gone:
                return None
            if not self._take():
                await self._wait_readable()
        return message

    def _take(self) -> bool:
        """Give the parser what there is; False: nothing is there yet."""
        parser = self._parser
        try:
            data, fds, flags = receive_fds(self._sock, parser.wanted, self._max_fds)
        except BlockingIOError:
            return False
        except ConnectionError:
            self._gone = True
            return True
        parser.feed(data, fds)
        self._cut = bool(flags & socket.MSG_CTRUNC)
        if not (data or self._cut):
            self._gone = True
            parser.eof()
        return True

    async def _wait_readable(self) -> None:
        """Wait until something was taken. The socket stays with the loop from one wait to the next, as long as all of it is read."""
        waiting = self._waiting = self._loop.create_future()
        if self._reader is None:
            # Never under the socket's own number: what another library left there may hide ours, and take it along when it goes.
            self._reader = add_reader(self._loop, self._sock.fileno(), self._on_readable, elsewhere=True)
        try:
            await waiting
        finally:
            self._waiting = None

    def _on_readable(self) -> None:
        waiting = self._waiting
        if waiting is None or waiting.done():
            self._stop_reading()  # nobody wants it now, and it would be reported in each turn of the loop
            return
        # Taken here, so that the loop does not report the same again before the reader has its turn.
        try:
            taken = self._take()
        except Exception as error:
            waiting.set_exception(error)
            return
        if taken:
            waiting.set_result(None)

    def _stop_reading(self) -> None:
        number, self._reader = self._reader, None
        if number is not None:
            remove_reader(self._loop, number)
            if number != self._sock.fileno():
                os.close(number)

    async def send_data(self, data: bytes, fds: Sequence[int]) -> None:
        """Send bytes with fds, which stay the caller's.

        Raises:
            ConnectionError: The peer has gone.
        """
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
        self._stop_reading()
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
