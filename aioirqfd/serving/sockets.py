"""Unix sockets: made at a path, connected to one, or handed in; and in words what is wrong with a path.

What a dead process has left at a path is replaced. To look whether it is dead and to take it away is two steps, and so is to bind and to
listen: of two programs that start at once, the one would find the other's socket bound and not yet listening, hold it for dead, and take
it away, and nobody would ever connect to the other. So all of it is done under a lock of the folder, which leaves no file behind and ends
with the process. It is held for some microseconds, so that who finds it held tries again: :func:`listening`, which lets the loop run
meanwhile.

Tempting, and wrong:

- to bind under another name and to rename it: the other name is what the kernel tells peers for ever, and a rename takes away a living
  one, too;
- to wait for the lock on the loop's thread: anybody who may read a folder can lock it, for as long as he likes;
- to go on without the lock after a while: what it is for comes back where the machine is slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import stat
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, final

from aioirqfd.eventfd.loops import add_reader, remove_reader

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

MAX_PATH: Final = 107
"""The longest path of a Unix socket, bytes (unix(7): ``sun_path``, with the NUL that ends it)."""

_LOCK_TRIES: Final = 500
_LOCK_PAUSE: Final = 0.01
"""Seconds from one try to the next."""
_LOCKED: Final = "somebody has locked the folder, which lslocks names; end that, or take another folder"


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
    """A socket that listens at a path. Leaving it closes the socket, and takes it away from the path; in a forked child it is only closed.

    Args:
        path: Where. What a dead process has left there is taken away first.
        mode: Its permissions, from its first moment on; None: what the process's umask leaves.

    Raises:
        OSError: With the path: it is none for a socket, somebody listens there, or something else is there (EADDRINUSE).
        BlockingIOError: Somebody has the path's folder locked just now: see :func:`listening`.
    """

    def __init__(self, path: str, *, mode: int | None = None) -> None:
        self.path = path
        self.sock = sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if mode is not None:
                # Before it is bound: the file is made with them, less the umask. A chmod() of the path would come too late.
                os.fchmod(sock.fileno(), mode)
            with _folder_locked(path):
                _bind(sock, path)
                status = os.lstat(path)
                self._made = (os.getpid(), status.st_dev, status.st_ino)
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
            if (os.getpid(), status.st_dev, status.st_ino) == self._made:
                Path(self.path).unlink()
        self.sock.close()


async def listening(path: str, *, mode: int | None = None) -> Listener:
    """Return a :class:`Listener`, which others that make sockets in the same folder at this moment do not keep from it.

    Raises:
        OSError: As a Listener's; or the folder is locked for five seconds (EAGAIN).
    """
    for _ in range(_LOCK_TRIES):
        with contextlib.suppress(BlockingIOError):
            return Listener(path, mode=mode)
        await asyncio.sleep(_LOCK_PAUSE)
    return Listener(path, mode=mode)


async def serve_streams(
    connected: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any], listener: Listener, *, limit: int = 65536
) -> asyncio.Server:
    """Serve a listener's clients as streams. Its path stays the listener's affair.

    Args:
        connected: Called with each client.
        listener: Where they come.
        limit: Bytes that a line may have.
    """
    options: dict[str, Any] = {}
    if sys.version_info >= (3, 13) and isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop):
        options["cleanup_socket"] = False  # the loop would take the path away in a forked child, too
    return await asyncio.start_unix_server(connected, sock=listener.sock, limit=limit, **options)


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


@contextlib.contextmanager
def _folder_locked(path: str) -> Generator[None]:
    """Nobody else of this package makes a socket in this folder meanwhile. Where a folder cannot be locked it is as good as it gets."""
    try:
        fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # noqa: PTH120  as it was given
    except OSError:  # it is not there, which is said in a moment; or it may not be read
        yield
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(errno.EAGAIN, _LOCKED) from None
        except OSError:  # a file system that has no locks
            pass
        yield
    finally:
        # A child that was forked meanwhile by another thread has the descriptor, too, and would keep the lock.
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


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
