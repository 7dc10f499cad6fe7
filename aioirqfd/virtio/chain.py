"""A chain of buffers: one request of the driver, as the device sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from aioirqfd.virtio.errors import ChainError

if TYPE_CHECKING:
    from collections.abc import Sequence

READ_LIMIT: Final = 1 << 20
"""The most bytes that :meth:`Chain.read` copies if it is not told how many."""


def gather(buffers: Sequence[memoryview], size: int | None = None, *, offset: int = 0) -> bytes:
    """Copy out of several buffers as if they were one.

    Args:
        buffers: The buffers.
        size: How many bytes at most; None: all.
        offset: How many bytes to skip first.

    Returns:
        The bytes; fewer than ``size`` if there are no more.
    """
    if offset == 0 and len(buffers) == 1:
        return bytes(buffers[0] if size is None else buffers[0][:size])
    end = sum(map(len, buffers)) if size is None else offset + size
    return b"".join(cut(buffers, offset, end))


def scatter(buffers: Sequence[memoryview], data: bytes | bytearray | memoryview, *, offset: int = 0) -> int:
    """Copy into several buffers as if they were one.

    Returns:
        How many bytes found room.
    """
    done = 0
    for buffer in cut(buffers, offset, offset + len(data)):
        length = len(buffer)
        buffer[:] = data[done : done + length]
        done += length
    return done


def cut(buffers: Sequence[memoryview], start: int, end: int | None = None) -> list[memoryview]:
    """Return the buffers from byte ``start`` up to byte ``end`` of them all, without a copy.

    A device must not rely on how the driver splits a request into buffers (virtio 1.2, section 2.7.4): it cuts off a
    header or a trailer of known size with this.

    Args:
        buffers: The buffers.
        start: 0 or more.
        end: None: up to the end.
    """
    rest: list[memoryview] = []
    for buffer in buffers:
        length = len(buffer)
        if start >= length:
            start -= length
        elif end is None or start < end:
            rest.append(buffer[start:] if end is None or end >= length else buffer[start:end])
            start = 0
        if end is not None:
            end -= length
            if end <= 0:
                break
    return rest


@final
class Chain:
    """One request: what the driver gives the device to read, and where it wants the answer.

    The buffers lie in the guest's memory, and the guest may change them at any time: copy what is decided upon
    (:meth:`read`), then decide on the copy.

    Made by ``VirtQueue.pop``, which fills in the attributes.

    Attributes:
        head: The number of the chain's first descriptor, which names the request to the driver.
        readable: The buffers to read, as read-only views, none of them empty.
        writable: The buffers to write, none of them empty.
        writable_size: The bytes of ``writable``.
        queue: The number of its queue; filled in by the back-end, for a device that serves several.
    """

    # No __init__: it would double what a chain costs, and only the queue makes any.
    __slots__ = ("head", "queue", "readable", "writable", "writable_size")

    head: int
    queue: int
    readable: list[memoryview]
    writable: list[memoryview]
    writable_size: int

    @property
    def readable_size(self) -> int:
        """The bytes of ``readable``."""
        return sum(map(len, self.readable))

    def read(self, size: int | None = None, *, offset: int = 0) -> bytes:
        """Copy out of the readable buffers, as if they were one.

        How long a request is, the guest says. Its buffers may overlap, so that it may be longer than all of its memory.

        Args:
            size: How many bytes at most; None: all of them, but no more than 2**20.
            offset: How many bytes to skip first.

        Returns:
            The bytes; fewer than ``size`` if there are no more.

        Raises:
            ChainError: There are more than that, and no ``size`` was given.
        """
        if size is not None:
            return gather(self.readable, size, offset=offset)
        data = gather(self.readable, READ_LIMIT + 1, offset=offset)
        if len(data) > READ_LIMIT:
            raise ChainError(f"{self!r}: read() without a size takes up to {READ_LIMIT} bytes")
        return data

    def write(self, data: bytes | bytearray | memoryview, *, offset: int = 0) -> int:
        """Copy into the writable buffers.

        Args:
            data: Bytes.
            offset: How many bytes of the buffers to leave alone first.

        Returns:
            How many bytes found room, 0 where the offset is beyond the end.
        """
        return scatter(self.writable, data, offset=offset)

    def __repr__(self) -> str:
        return f"<Chain {self.head}: {self.readable_size} bytes to read, {self.writable_size} to write>"


def written_by(chain: Chain, result: object) -> int:
    """Return how many bytes a handler says that it has written.

    Raises:
        TypeError: It is no number.
        ValueError: The chain has no room for so many.
    """
    if result is None:
        return 0
    if not isinstance(result, int):
        raise TypeError(f"a handler returns a number of bytes, not {result!r}")
    if not 0 <= result <= chain.writable_size:
        raise ValueError(f"a handler says that it wrote {result} bytes into {chain!r}")
    return result
