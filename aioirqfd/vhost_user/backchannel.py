"""The socket on which a back-end asks something of its front-end (``SET_BACKEND_REQ_FD``)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Final, final

from aioirqfd.vhost_user.errors import RefusedError
from aioirqfd.vhost_user.messages import BackendRequest, Message
from aioirqfd.vhost_user.protocol import encode

_CONFIG_CHANGE: Final = encode(Message(BackendRequest.CONFIG_CHANGE_MSG))
_FLAGS: Final = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT


@final
class BackChannel:
    """Tells the front-end that the configuration space has changed.

    No reply is asked for: a front-end answers such a message by reading the configuration on the other socket, and would
    wait for us while we wait for it. It may be slow to read, so a change that comes while an earlier one has not been sent is
    told with it: it says no more than "look again".

    Args:
        fd: The socket; owned from here on.

    Raises:
        RefusedError: It is no stream socket; it stays the caller's.

    Threads: the loop's.
    """

    __slots__ = ("_loop", "_pending", "_rest", "_sock", "_waits")

    def __init__(self, fd: int) -> None:
        try:
            sock = socket.socket(fileno=fd)
        except OSError as error:
            raise RefusedError(f"fd {fd} cannot be asked on: {error}") from error
        if sock.type != socket.SOCK_STREAM:
            sock.detach()
            raise RefusedError(f"fd {fd} is no stream socket")
        os.set_inheritable(fd, False)
        self._sock: socket.socket | None = sock
        self._loop = asyncio.get_running_loop()
        self._pending = False
        self._rest = b""
        self._waits = False

    def config_changed(self) -> None:
        """Say so, now or when the front-end has read what it was told before."""
        self._pending = True
        self._send()

    def _send(self) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            while self._rest or self._pending:
                message = self._rest or _CONFIG_CHANGE
                sent = sock.send(message, _FLAGS)
                if not self._rest:
                    self._pending = False
                self._rest = message[sent:]
        except BlockingIOError:
            if not self._waits:
                self._waits = True
                self._loop.add_writer(sock.fileno(), self._send)
            return
        except OSError:
            self.close()  # the front-end wants to hear no more
            return
        self._wait_no_more(sock)

    def _wait_no_more(self, sock: socket.socket) -> None:
        if self._waits:
            self._waits = False
            self._loop.remove_writer(sock.fileno())

    def close(self) -> None:
        """Close it. Idempotent."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._wait_no_more(sock)
            with contextlib.suppress(OSError):
                sock.close()
