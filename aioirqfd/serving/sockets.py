"""Unix sockets: made at a path, connected to one, or handed in; and in words what is wrong with a path."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from functools import partial
from pathlib import Path
from typing import Final, Self, final

from aioirqfd.eventfd.loops import add_reader, remove_reader

MAX_PATH: Final = 107
"""The longest path of a Unix socket, bytes (unix(7): ``sun_path``, with the NUL that ends it)."""


def socket_path(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> str:
    """Return a path as a string, if a socket can be there.

    Raises:
        OSError: EINVAL, it is empty or holds a NUL byte; ENAMETOOLONG, it is longer than :data:`MAX_PATH`.
    """
    name = os.fsdecode(path)
    size = len(os.fsencode(name))
    if not name:
        # The kernel would make up a name that nobody knows.
        raise OSError(errno.EINVAL, "a socket's path is empty", name)
    if "\0" in name:
        raise OSError(errno.EINVAL, "a socket's path holds a NUL byte", name)
    if size > MAX_PATH:
        raise OSError(errno.ENAMETOOLONG, f"a socket's path is too long: {size} bytes, and {MAX_PATH} at most", name)
    return name


@final
class Listener:
    """A socket that listens at a path. Leaving it closes the socket, and takes it away from the path.

    Args:
        path: Where. What a dead process has left there is taken away first.
        mode: Its permissions, from its first moment on; None: what the process's umask leaves.

    Raises:
        OSError: With the path: it is none for a socket, somebody listens there, or something else is there (EADDRINUSE).
    """

    def __init__(self, path: str, *, mode: int | None = None) -> None:
        self.path = path
        self.sock = sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if mode is not None:
                # Before it is bound: the file is made with them, less the umask. A chmod() of the path would come too late.
                os.fchmod(sock.fileno(), mode)
            _bind(sock, path)
            status = os.lstat(path)
            self._made = (status.st_dev, status.st_ino)
            sock.listen()
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            raise OSError(error.errno, error.strerror, path) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # First, for nobody is to connect to what nobody accepts from. What somebody else has put there since stays.
        with contextlib.suppress(OSError):
            status = os.lstat(self.path)
            if (status.st_dev, status.st_ino) == self._made:
                Path(self.path).unlink()
        self.sock.close()


def connect(path: str) -> socket.socket:
    """Return a socket that is connected to a path.

    Raises:
        OSError: With the path: nobody listens there, or too many wait there already (EAGAIN).
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Not waited for: a Unix socket connects at once, or there is no room in the listener's queue.
        sock.setblocking(False)
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, error.strerror, path) from None
    return sock


def listens(sock: socket.socket) -> bool:
    """Whether a socket that was handed in listens; else it is connected.

    Raises:
        ValueError: It is no Unix stream socket, or neither.
    """
    try:
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise ValueError(f"a front-end is served on a Unix stream socket, not on {sock!r}")
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return True
        sock.getpeername()
    except OSError as error:
        raise ValueError(f"a socket that neither listens nor is connected: {sock!r}: {error}") from None
    return False


async def readable(sock: socket.socket) -> None:
    """Wait until there is something to be had of a socket, or its other end has gone."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.Future[None] = loop.create_future()
    # Never under the socket's own number: what another library left there may hide ours, and take it along when it goes.
    fd = add_reader(loop, sock.fileno(), partial(done, waiting), elsewhere=True)
    try:
        await waiting
    finally:
        remove_reader(loop, fd)
        if fd != sock.fileno():
            os.close(fd)


def done(waiting: asyncio.Future[None]) -> None:
    """What somebody waits for has come."""
    if not waiting.done():
        waiting.set_result(None)


def _bind(sock: socket.socket, path: str) -> None:
    try:
        sock.bind(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        if (reason := _occupied(path)) is not None:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE) + reason) from None
        Path(path).unlink(missing_ok=True)
        sock.bind(path)


def _occupied(path: str) -> str | None:
    """None if what is at a path is a dead process's socket, or has gone; else what there is to say about it."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116  a relative path stays what it is
    except FileNotFoundError:
        return ", by a link to nowhere" if Path(path).is_symlink() else None
    if stat.S_ISDIR(mode):
        return ", by a directory"
    if not stat.S_ISSOCK(mode):
        return ", by a file that is no socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except OSError as error:
            # Of another type, not ours to connect to, or with a full queue: alive in any case.
            return "" if error.errno == errno.EAGAIN else f", by a socket that cannot be connected to: {error.strerror}"
    return ""
