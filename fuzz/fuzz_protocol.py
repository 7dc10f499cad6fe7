"""Fuzz the codec: ``make fuzz TARGET=protocol``.

The input is a direction, then chunks: a length byte, a number of fds, that many bytes. Whatever they are, the parser
gives messages or one kind of error, every fd is accounted for, and each message encodes to bytes that parse to the same
message.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["aioirqfd.serving", "aioirqfd.vhost_user"]):
    from aioirqfd.vhost_user.errors import VhostUserProtocolError
    from aioirqfd.vhost_user.messages import Message
    from aioirqfd.vhost_user.protocol import MAX_FDS, Direction, MessageParser, direction_of, encode

_DIRECTIONS = list(Direction)


def again(message: Message) -> None:
    """Encode a message and parse it back."""
    parser = MessageParser(direction_of(message))
    parser.feed(encode(message), message.fds)
    if parser.next_message() != Message(
        message.request, message.payload, message.fds, need_reply=message.need_reply, reply=message.reply
    ):
        raise AssertionError(message)


def test_one_input(data: bytes) -> None:
    """Feed one input."""
    if not data:
        return
    direction = _DIRECTIONS[data[0] % len(_DIRECTIONS)]
    parser = MessageParser(direction)
    at, fd, out = 1, 1000, 0
    try:
        while at + 2 <= len(data):
            length, count = data[at], data[at + 1] % (MAX_FDS + 2)
            parser.feed(data[at + 2 : at + 2 + length], range(fd, fd + count))
            at, fd = at + 2 + length, fd + count
            while (message := parser.next_message()) is not None:
                out += len(message.fds) + len(message.surplus_fds)
                # A number that is not known does not tell which of the two sockets it is from.
                if direction_of(message) is direction:
                    again(message)
        parser.eof()
    except VhostUserProtocolError:
        pass
    if out + len(parser.close()) != fd - 1000:
        raise AssertionError("fds leaked")


if __name__ == "__main__":
    # By its first word libFuzzer starts itself anew, to merge what it has found.
    atheris.Setup([f"{sys.executable} {sys.argv[0]}", *sys.argv[1:]], test_one_input)
    atheris.Fuzz()
