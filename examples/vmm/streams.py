"""Standard input and output, and files, without blocking the loop and without touching their flags.

``O_NONBLOCK`` belongs to the open file description, which a terminal's shell shares: a program that sets it and is killed
leaves the terminal broken. So the descriptors stay blocking, and each is read or written only when epoll says that this will
not block. What epoll refuses (EPERM: regular files, ``/dev/null``) never blocks for long, and is read and written at once.
"""

from __future__ import annotations

import asyncio
import os
import select
from typing import TYPE_CHECKING, Final, Protocol, final

if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK: Final = 4096
"""A pipe that is writable takes this much without blocking (PIPE_BUF, pipe(7))."""


class Source(Protocol):
    """Where bytes come from."""

    async def read(self, size: int) -> bytes:
        """At most ``size`` bytes, at least one; none at the end."""
        ...

    def stop(self) -> None:
        """Let the reads from now on, and one that waits, say that this is the end."""

    def give_up(self) -> None:
        """Wait no longer for a first byte that may never come; once there was one, the end is waited for."""


@final
class TextSource:
    """Bytes that are there already."""

    __slots__ = ("_rest",)

    def __init__(self, data: bytes) -> None:
        self._rest = data

    async def read(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def stop(self) -> None:
        """Drop what is left."""
        self._rest = b""

    def give_up(self) -> None:
        """Nothing: there is no waiting."""


@final
class FdSource:
    """Bytes from a file descriptor; it stays the caller's.

    Args:
        fd: The descriptor.
        name: What people call it, for errors.
        instead: What to give when the descriptor ends without a byte, or when :meth:`give_up` is called before the first;
            None: nothing, and the end is always waited for.
    """

    __slots__ = ("_fd", "_instead", "_name", "_patient", "_read", "_stopped", "_waiter")

    def __init__(self, fd: int, name: str = "input", *, instead: bytes | None = None) -> None:
        self._fd = fd
        self._name = name
        self._patient = instead is None
        self._instead = TextSource(instead or b"")
        self._read = 0
        self._stopped = False
        self._waiter: asyncio.Future[None] | None = None

    async def read(self, size: int) -> bytes:
        """The next bytes, once there are any.

        Raises:
            OSError: The descriptor cannot be read; its name is in the error.
        """
        if not self._stopped:
            self._waiter = asyncio.get_running_loop().create_future()
            await _wait(self._fd, self._waiter, writable=False)
            if not self._stopped:
                try:
                    data = os.read(self._fd, size)
                except OSError as error:
                    raise OSError(error.errno, error.strerror, self._name) from error
                self._read += len(data)
                if data:
                    return data
                self._stopped = True
        return b"" if self._read else await self._instead.read(size)

    def give_up(self) -> None:
        """Take ``instead``, if there is one, in place of a descriptor that has given nothing yet."""
        if not (self._patient or self._read or self._ready()):
            self._end()

    def stop(self) -> None:
        """The end, whatever is left."""
        self._instead.stop()
        self._end()

    def _ready(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    def _end(self) -> None:
        self._stopped = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@final
class Output:
    """Bytes to a file descriptor; it stays the caller's.

    Args:
        fd: The descriptor.
        name: What people call it, for errors.
    """

    __slots__ = ("_fd", "_name")

    def __init__(self, fd: int, name: str = "output") -> None:
        self._fd = fd
        self._name = name

    async def write(self, data: bytes) -> None:
        """Write everything.

        Raises:
            OSError: The descriptor cannot be written, BrokenPipeError when nobody reads any more; its name is in the error.

        Cancellation: some of ``data`` may have been written.
        """
        rest = memoryview(data)
        while rest:
            await _wait(self._fd, asyncio.get_running_loop().create_future(), writable=True)
            try:
                rest = rest[os.write(self._fd, rest[:_CHUNK]) :]
            except OSError as error:
                raise OSError(error.errno, error.strerror, self._name) from error


async def _wait(fd: int, waiter: asyncio.Future[None], *, writable: bool) -> None:
    """Wait until ``fd`` is ready or somebody else resolves ``waiter``."""
    loop = asyncio.get_running_loop()
    add: Callable[..., object] = loop.add_writer if writable else loop.add_reader
    remove = loop.remove_writer if writable else loop.remove_reader

    def ready() -> None:
        if not waiter.done():
            waiter.set_result(None)

    try:
        add(fd, ready)
    except PermissionError:
        # Also a turn of the loop, so that a long file does not keep it from the other devices.
        await asyncio.sleep(0)
        return
    try:
        await waiter
    finally:
        remove(fd)
