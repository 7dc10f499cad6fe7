"""The codec, without a socket: what is encoded is parsed, cut anywhere, and every fd is somebody's."""

# pyright: reportOptionalMemberAccess=false
from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioirqfd.vfio_user.capabilities import Capabilities, unpack
from aioirqfd.vfio_user.errors import VfioUserProtocolError
from aioirqfd.vfio_user.messages import HEADER, MAX_FDS, Command, Message
from aioirqfd.vfio_user.protocol import MAX_MESSAGE, MessageParser, answer, encode, refusal

MESSAGES = st.builds(
    Message,
    st.integers(0, 2**16 - 1),
    st.one_of(st.sampled_from(Command), st.integers(0, 2**16 - 1)),
    st.binary(max_size=64),
    st.lists(st.integers(0, 10), max_size=3).map(tuple),
    reply=st.booleans(),
    no_reply=st.booleans(),
    error=st.one_of(st.none(), st.integers(0, 2**32 - 1)),
)


def test_the_bytes():
    message = Message(0x1234, Command.REGION_READ, b"data", no_reply=True)
    assert encode(message).hex() == "34120900140000001000000000000000" + b"data".hex()
    assert encode(refusal(1, 8, 22)).hex() == "01000800100000002100000016000000"
    assert answer(message, b"x") == Message(0x1234, Command.REGION_READ, b"x", reply=True)


@settings(deadline=None)
@given(st.lists(MESSAGES, max_size=6), st.lists(st.integers(1, 40), min_size=1))
def test_what_is_sent_is_received_however_it_is_cut(messages, sizes):
    parser = MessageParser()
    got, sizes = [], iter(sizes * 1000)
    for message in messages:
        data, fds = encode(message), message.fds
        while data:
            size = min(next(sizes), parser.wanted)
            parser.feed(data[:size], fds)
            data, fds = data[size:], ()
            while (parsed := parser.next_message()) is not None:
                got.append(parsed)
    parser.eof()
    assert got == messages
    assert parser.close() == ()


@settings(deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(100, 120), max_size=20), st.integers(1, 20))
def test_whatever_comes_no_fd_is_lost(data, fds, step):
    parser = MessageParser()
    taken = []
    pieces = [data[at : at + step] for at in range(0, len(data), step)] or [b""]
    try:
        for number, piece in enumerate(pieces):
            parser.feed(piece, fds if not number else ())
            while (message := parser.next_message()) is not None:
                taken += message.fds
        parser.eof()
    except VfioUserProtocolError:
        with pytest.raises(VfioUserProtocolError):
            parser.next_message()
    assert sorted([*taken, *parser.close()]) == sorted(fds)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (HEADER.pack(7, 8, 15, 0, 0), "of 15 bytes"),
        (HEADER.pack(7, 8, 0, 0, 0), "of 0 bytes"),
        (HEADER.pack(7, 8, MAX_MESSAGE + 1, 0, 0), "bytes"),
        (HEADER.pack(7, 8, 16, 2, 0), "of type 0x2"),
    ],
)
def test_a_header_that_is_none(header, reason):
    parser = MessageParser()
    parser.feed(header)
    with pytest.raises(VfioUserProtocolError, match=reason) as caught:
        parser.next_message()
    assert caught.value.message == (7, 8)


def test_too_many_fds_are_refused_before_the_message_is_whole():
    parser = MessageParser()
    parser.feed(HEADER.pack(7, 8, 100, 0, 0)[:4], range(MAX_FDS + 1))
    with pytest.raises(VfioUserProtocolError, match="17 fds"):
        parser.next_message()
    assert len(parser.close()) == 17


@settings(deadline=None)
@given(
    st.builds(
        Capabilities,
        *[st.integers(0, 2**64 - 1)] * 4,
        twin_socket=st.booleans(),
        write_multiple=st.booleans(),
    )
)
def test_capabilities_are_understood_as_they_were_said(capabilities):
    assert unpack(capabilities.pack()) == (0, 1, capabilities)


def test_nothing_said_is_the_defaults():
    assert unpack(b"\0\0\1\0") == (0, 1, Capabilities())
    assert unpack(b"\0\0\1\0{}\0") == (0, 1, Capabilities())
    assert unpack(b'\0\0\1\0{"capabilities": {"another": 5}}\0') == (0, 1, Capabilities())


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b"{\0",
        b'"\0',
        b"[]\0",
        b"\xff\0",
        b"[" * 100000 + b"\0",
        b'{"capabilities": "23"}\0',
        b'{"capabilities": {"max_msg_fds": "foo"}}\0',
        b'{"capabilities": {"max_msg_fds": -1}}\0',
        b'{"capabilities": {"max_msg_fds": true}}\0',
        b'{"capabilities": {"max_msg_fds": 1.5}}\0',
        b'{"capabilities": {"max_data_xfer_size": 18446744073709551616}}\0',
        b'{"capabilities": {"twin_socket": true}}\0',
        b'{"capabilities": {"twin_socket": {"supported": 1}}}\0',
        b'{"capabilities": {"write_multiple": 1}}\0',
    ],
    ids=range(15),
)
def test_json_that_says_what_cannot_be(text):
    with pytest.raises(VfioUserProtocolError):
        unpack(b"\0\0\1\0" + text)


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_a_version_of_any_bytes(data):
    with contextlib.suppress(VfioUserProtocolError):
        unpack(data)
