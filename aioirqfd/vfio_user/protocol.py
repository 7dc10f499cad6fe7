"""The vfio-user codec, without I/O: bytes and fds in, messages out, and back; for either side of the socket.

How to read from a socket, and whose the fds are, is said in :mod:`aioirqfd.serving.framing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, final

from aioirqfd.serving.framing import Frames
from aioirqfd.vfio_user.errors import VfioUserProtocolError
from aioirqfd.vfio_user.messages import HEADER, MAX_DATA, MAX_FDS, Command, Message

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_MESSAGE: Final = MAX_DATA + 4096
"""Bytes of the longest message: what may be read or written at once, and what stands before it."""
_TYPE: Final = 0xF
_REPLY: Final = 0x1
_NO_REPLY: Final = 1 << 4
_ERROR: Final = 1 << 5
_COMMANDS: Final = {int(command): command for command in Command}


class _Header(NamedTuple):
    number: int
    command: int
    flags: int
    error: int


def encode(message: Message) -> bytes:
    """Return the bytes of a message; its fds travel beside them."""
    flags = (_REPLY if message.reply else 0) | (_NO_REPLY if message.no_reply else 0)
    error = 0
    if message.error is not None:
        flags |= _ERROR
        error = message.error
    return HEADER.pack(message.number, message.command, HEADER.size + len(message.data), flags, error) + message.data


def answer(message: Message, data: bytes = b"", fds: tuple[int, ...] = ()) -> Message:
    """Return the reply to a command."""
    return Message(message.number, message.command, data, fds, reply=True)


def refusal(number: int, command: int, errno: int) -> Message:
    """Return the reply that says that a command has failed."""
    return Message(number, command, reply=True, error=errno)


@final
class MessageParser:
    """Turns chunks of a stream, cut anywhere, into messages.

    Args:
        max_fds: How many fds a message may have.
        max_size: Bytes of the longest message.

    Threads: not safe; one reader.
    """

    __slots__ = ("_frames", "_max_size")

    def __init__(self, *, max_fds: int = MAX_FDS, max_size: int = MAX_MESSAGE) -> None:
        self._max_size = max_size
        self._frames = Frames(HEADER.size, self._parse_header, max_fds=max_fds, broken=VfioUserProtocolError)

    @property
    def wanted(self) -> int:
        """How much to read next; at least 1 once :meth:`next_message` has returned None."""
        return self._frames.wanted

    def feed(self, data: bytes | bytearray | memoryview, fds: Iterable[int] = ()) -> None:
        """Take a chunk, and the fds that came with it, which are the parser's from here on. Never raises for what they are."""
        self._frames.feed(data, fds)

    def next_message(self) -> Message | None:
        """Return the next whole message, whose fds are the caller's; None if more bytes are needed.

        Raises:
            VfioUserProtocolError: The stream breaks the protocol. From now on every call raises it; close the connection, and
                the fds that :meth:`close` returns.
        """
        frame = self._frames.next(_accept)
        if frame is None:
            return None
        header, data, fds = frame
        return Message(
            header.number,
            _COMMANDS.get(header.command, header.command),
            data,
            fds,
            reply=header.flags & _TYPE == _REPLY,
            no_reply=bool(header.flags & _NO_REPLY),
            error=header.error if header.flags & _ERROR else None,
        )

    def eof(self) -> None:
        """Say that the stream has ended.

        Raises:
            VfioUserProtocolError: It ended within a message, or with fds that belong to none.
        """
        self._frames.eof()

    def close(self) -> tuple[int, ...]:
        """Give back the fds that no message took, for the caller to close. Idempotent."""
        return self._frames.close()

    def _parse_header(self, buffer: bytearray) -> tuple[_Header, int]:
        number, command, size, flags, error = HEADER.unpack_from(buffer)
        if not HEADER.size <= size <= self._max_size:
            raise VfioUserProtocolError(
                f"a message of {size} bytes; they have {HEADER.size}..{self._max_size}", (number, command)
            )
        if flags & _TYPE > _REPLY:
            raise VfioUserProtocolError(f"a message of type {flags & _TYPE:#x}", (number, command))
        return _Header(number, command, flags, error), size - HEADER.size


def _accept(header: _Header, data: bytes, count: int) -> None:
    """Every message may have fds, as far as the codec is concerned."""
