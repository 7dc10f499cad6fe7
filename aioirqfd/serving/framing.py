"""Frames of a stream: a header of fixed size, a payload as long as the header says, and the fds that came with them.

Reading from a socket: receive **at most** :attr:`Frames.wanted` bytes at a time, and feed what came. The fds of a message travel with
its first byte, and a longer read can glue a message without fds to the next one's fds, so that nobody could say whose they are.

Whatever happens, each fd that was fed is either taken by a frame or in what :meth:`Frames.close` returns; none is closed here
and none is forgotten.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar, final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_T = TypeVar("_T")


@final
class Frames(Generic[_T]):
    """Cuts a stream into frames.

    Args:
        size: Bytes of a header.
        parse: Checks all that the header alone tells, before a byte of payload is waited for; returns what it says, and how
            many bytes of payload there are. Raises what a broken stream does.
        max_fds: How many fds a frame may have.
        broken: Makes the error of a broken stream.

    Threads: not safe; one reader.
    """

    __slots__ = ("_broken", "_buffer", "_error", "_fds", "_header", "_max_fds", "_parse", "_position", "_size")

    def __init__(
        self,
        size: int,
        parse: Callable[[bytearray], tuple[_T, int]],
        *,
        max_fds: int,
        broken: Callable[[str], Exception],
    ) -> None:
        self._size = size
        self._parse = parse
        self._max_fds = max_fds
        self._broken = broken
        self._buffer = bytearray()
        self._position = 0  # of the buffer's first byte in the stream
        self._fds: deque[tuple[int, int]] = deque()  # (position of the byte it came with, fd)
        self._header: tuple[_T, int] | None = None
        self._error: Exception | None = None

    @property
    def wanted(self) -> int:
        """How much to read next: the bytes that complete the header or the payload under way.

        At least 1 once :meth:`next` has returned None.
        """
        need = self._size if self._header is None else self._size + self._header[1]
        return max(need - len(self._buffer), 0)

    def feed(self, data: bytes | bytearray | memoryview, fds: Iterable[int] = ()) -> None:
        """Take a chunk, and the fds that came with it; they belong to the frame that its first byte is part of.

        Never raises for what the bytes are; :meth:`next` does. The fds are owned here from now on.
        """
        position = self._position + len(self._buffer)
        self._fds.extend((position, fd) for fd in fds)
        if self._error is None:
            self._buffer += data

    def next(self, accept: Callable[[_T, bytes, int], None]) -> tuple[_T, bytes, tuple[int, ...]] | None:
        """Return the next whole frame: what its header says, its payload, its fds. None if more bytes are needed.

        Args:
            accept: Looks at header, payload and the number of fds, and raises what a broken stream does: while the fds are here yet.

        Raises:
            Exception: The stream is broken. From now on every call raises it; close the connection, and the fds that
                :meth:`close` returns.
        """
        if self._error is not None:
            raise self._error
        try:
            return self._next(accept)
        except Exception as error:
            self._error = error
            self._buffer.clear()
            raise

    def eof(self) -> None:
        """Say that the stream has ended.

        Raises:
            Exception: It ended within a frame, or with fds that belong to none.
        """
        if self._error is None and (self._buffer or self._fds):
            self._error = self._broken("the stream ended within a message")
            raise self._error

    def close(self) -> tuple[int, ...]:
        """Give back the fds that no frame took, for the caller to close. Idempotent; nothing more is taken."""
        fds = tuple(fd for _, fd in self._fds)
        self._fds.clear()
        self._buffer.clear()
        if self._error is None:
            self._error = self._broken("the parser is closed")
        return fds

    def _next(self, accept: Callable[[_T, bytes, int], None]) -> tuple[_T, bytes, tuple[int, ...]] | None:
        buffer = self._buffer
        if self._header is None:
            if len(buffer) < self._size:
                self._bound_fds(self._size)
                return None
            self._header = self._parse(buffer)
        header, size = self._header
        end = self._size + size
        self._bound_fds(end)
        if len(buffer) < end:
            return None
        data = bytes(memoryview(buffer)[self._size : end])
        limit = self._position + end
        count = sum(1 for position, _ in self._fds if position < limit)
        accept(header, data, count)
        fds = tuple(self._fds.popleft()[1] for _ in range(count))
        del buffer[:end]
        self._position = limit
        self._header = None
        return header, data, fds

    def _bound_fds(self, end: int) -> None:
        """Refuse too many fds at once, not when the frame is whole: it may never be."""
        if len(self._fds) <= self._max_fds:
            return
        limit = self._position + end
        count = sum(1 for position, _ in self._fds if position < limit)
        if count > self._max_fds:
            raise self._broken(f"{count} fds with one message")
