"""Where those come from whom a device is served, one after the other: a listening socket, a path to connect to, or a connected socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, final

from aioirqfd.serving.sockets import connect, readable

if TYPE_CHECKING:
    import socket

    from aioirqfd.serving.reports import Reports


class Peers(Protocol):
    """Those who are served, one after the other."""

    async def next(self) -> socket.socket | None:
        """Wait for the next one; None if there will be no more. The socket is the caller's."""


@final
class Accepted:
    """Those that connect to a listening socket.

    Args:
        sock: It listens, and does not block; stays the caller's.
        reports: Hears why one cannot be accepted.
        again: Seconds until it is tried again then.
    """

    def __init__(self, sock: socket.socket, reports: Reports, *, again: float) -> None:
        self._sock = sock
        self._reports = reports
        self._again = again

    async def next(self) -> socket.socket:
        """Wait until one connects."""
        while True:
            # accept(2) without a free fd fails whether or not somebody is there.
            await readable(self._sock)
            try:
                return self._sock.accept()[0]
            except BlockingIOError:
                continue  # it has gone again, or another process has taken it
            except OSError as error:
                # EMFILE and the like pass; whoever wants to connect waits in the socket's own queue.
                self._reports.raised("accept_failed", "a front-end could not be accepted", error)
                await asyncio.sleep(self._again)


@final
class Connected:
    """One that listens itself, and is connected to again when it has gone.

    Args:
        path: Where it listens.
        reports: Hears why it cannot be connected to.
        reconnect: Seconds between two tries.
    """

    def __init__(self, path: str, reports: Reports, *, reconnect: float) -> None:
        self._path = path
        self._reports = reports
        self._reconnect = reconnect
        self._tried = False

    async def next(self) -> socket.socket:
        """Wait until it can be connected to."""
        while True:
            if self._tried:
                await asyncio.sleep(self._reconnect)
            self._tried = True
            try:
                return connect(self._path)
            except OSError as error:
                self._reports.trouble("connect_failed", kind=error.errno, error=str(error), exc_info=error)


@final
class Single:
    """One that is there already, and nobody after it.

    Args:
        sock: Its socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock: socket.socket | None = sock

    async def next(self) -> socket.socket | None:
        """Give it, once."""
        sock, self._sock = self._sock, None
        return sock
