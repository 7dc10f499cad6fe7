# pyright: reportOptionalMemberAccess=false, reportArgumentType=false
# (a parser that gives None fails the test, as it should)
from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioirqfd.errors import IrqfdError
from aioirqfd.vhost_user.errors import VhostUserProtocolError
from aioirqfd.vhost_user.messages import (
    U64,
    BackendRequest,
    ConfigSpace,
    Inflight,
    MemoryRegion,
    MemoryTable,
    Message,
    Raw,
    Request,
    SingleRegion,
    VringAddr,
    VringFd,
    VringState,
)
from aioirqfd.vhost_user.protocol import (
    HEADER,
    MAX_FDS,
    MAX_PAYLOAD,
    Direction,
    MessageParser,
    acknowledgement,
    direction_of,
    encode,
    has_reply,
)

u16 = st.sampled_from([0, 1, 2**16 - 1]) | st.integers(0, 2**16 - 1)
u32 = st.sampled_from([0, 1, 2**32 - 1]) | st.integers(0, 2**32 - 1)
u64 = st.sampled_from([0, 1, 2**64 - 1]) | st.integers(0, 2**64 - 1)
numbers = st.builds(U64, u64)
states = st.builds(VringState, u32, u32)
regions = st.builds(MemoryRegion, u64, u64, u64, u64)
tables = st.builds(MemoryTable, st.lists(regions, max_size=8).map(tuple))
configs = st.builds(ConfigSpace, u32, u32, st.binary(max_size=256))
inflights = st.builds(Inflight, u64, u64, u16, u16)
vring_fds = st.builds(VringFd, st.integers(0, 255), st.booleans())
nothing = st.none()
raws = st.none() | st.builds(Raw, st.binary(min_size=1, max_size=200))

R = Request
REQUESTS = {
    R.GET_FEATURES: nothing,
    R.SET_FEATURES: numbers,
    R.SET_OWNER: nothing,
    R.RESET_OWNER: nothing,
    R.SET_MEM_TABLE: tables,
    R.SET_LOG_BASE: raws,
    R.SET_VRING_NUM: states,
    R.SET_VRING_ADDR: st.builds(VringAddr, u32, u32, u64, u64, u64, u64),
    R.SET_VRING_BASE: states,
    R.GET_VRING_BASE: states,
    R.SET_VRING_KICK: vring_fds,
    R.SET_VRING_CALL: vring_fds,
    R.SET_VRING_ERR: vring_fds,
    R.GET_PROTOCOL_FEATURES: nothing,
    R.SET_PROTOCOL_FEATURES: numbers,
    R.GET_QUEUE_NUM: nothing,
    R.SET_VRING_ENABLE: states,
    R.SET_BACKEND_REQ_FD: nothing,
    R.GET_CONFIG: configs,
    R.SET_CONFIG: configs,
    R.GET_INFLIGHT_FD: inflights,
    R.SET_INFLIGHT_FD: inflights,
    R.RESET_DEVICE: nothing,
    R.GET_MAX_MEM_SLOTS: nothing,
    R.ADD_MEM_REG: st.builds(SingleRegion, regions),
    R.REM_MEM_REG: st.builds(SingleRegion, regions),
    R.SET_STATUS: numbers,
    R.GET_STATUS: nothing,
    R.IOTLB_MSG: raws,
    99: raws,
}
REPLIES = {
    R.GET_FEATURES: numbers,
    R.GET_PROTOCOL_FEATURES: numbers,
    R.GET_QUEUE_NUM: numbers,
    R.GET_VRING_BASE: states,
    R.GET_CONFIG: nothing | configs,
    R.GET_INFLIGHT_FD: inflights,
    R.GET_MAX_MEM_SLOTS: numbers,
    R.GET_STATUS: numbers,
    R.SET_MEM_TABLE: numbers,
    R.SET_OWNER: numbers,
    99: numbers,
}
BACKEND = {
    BackendRequest.CONFIG_CHANGE_MSG: nothing,
    BackendRequest.VRING_CALL: states,
    BackendRequest.VRING_ERR: states,
}
ONE_FD = {R.SET_BACKEND_REQ_FD, R.SET_INFLIGHT_FD, R.ADD_MEM_REG}


@st.composite
def messages(draw, direction):
    """Any message that a well-behaved sender may send, with made-up fd numbers."""
    table = {Direction.REQUEST: REQUESTS, Direction.REPLY: REPLIES, Direction.BACKEND_REQUEST: BACKEND}[direction]
    reply = direction is Direction.REPLY
    request = draw(st.sampled_from(list(table)))
    payload = draw(table[request])
    count = 0
    if isinstance(payload, MemoryTable):
        count = len(payload.regions)
    elif isinstance(payload, VringFd):
        count = int(payload.has_fd)
    elif (request in ONE_FD and not reply) or (reply and request is R.GET_INFLIGHT_FD):
        count = 1
    fds = tuple(draw(st.lists(st.integers(1000, 9999), min_size=count, max_size=count)))
    return Message(request, payload, fds, need_reply=draw(st.booleans()), reply=reply)


def feed_cut(parser, message, cuts):
    """Feed a message in pieces; the fds come with its first byte. Return what came out."""
    data = encode(message)
    out = []
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        parser.feed(data[start:end], message.fds if start == 0 else ())
        while (got := parser.next_message()) is not None:
            out.append(got)
    return out


@pytest.mark.parametrize("direction", [Direction.REQUEST, Direction.REPLY, Direction.BACKEND_REQUEST])
@given(data=st.data())
def test_what_is_encoded_comes_out_again_however_it_is_cut(direction, data):
    sent = data.draw(st.lists(messages(direction), min_size=1, max_size=5))
    parser = MessageParser(direction)
    got = []
    for message in sent:
        assert direction_of(message) is direction
        got += feed_cut(parser, message, data.draw(st.lists(st.integers(0, 400), max_size=6)))
    assert got == sent
    assert all(type(one.request) is type(other.request) for one, other in zip(got, sent, strict=True))
    assert parser.wanted == HEADER.size
    parser.eof()
    assert parser.close() == ()


@given(st.lists(messages(Direction.REQUEST), min_size=1, max_size=5))
def test_reading_what_is_wanted_never_reads_into_the_next_message(sent):
    stream = b"".join(map(encode, sent))
    parser = MessageParser()
    got = []
    starts = {}
    at = 0
    for message in sent:
        starts[at] = message.fds
        at += len(encode(message))
    at = 0
    while at < len(stream):
        want = parser.wanted
        assert want > 0
        parser.feed(stream[at : at + want], starts.pop(at, ()))
        at += want
        message = parser.next_message()
        if message is not None:
            got.append(message)
            assert parser.next_message() is None
    assert got == sent
    assert not starts


@given(st.lists(messages(Direction.REQUEST), min_size=2, max_size=6))
def test_a_chunk_of_many_messages(sent):
    sent = [message for message in sent if not message.fds]
    parser = MessageParser()
    parser.feed(b"".join(map(encode, sent)))
    assert [parser.next_message() for _ in sent] == sent
    assert parser.next_message() is None


@given(
    st.lists(st.tuples(st.binary(max_size=60), st.lists(st.integers(1000, 9999), max_size=10)), max_size=8),
    st.sampled_from(list(Direction)),
)
def test_any_bytes_give_messages_or_one_error_and_every_fd_is_accounted_for(chunks, direction):
    parser = MessageParser(direction)
    given_fds, out = [], []
    for data, fds in chunks:
        given_fds += fds
        parser.feed(data, fds)
        try:
            while (message := parser.next_message()) is not None:
                out += message.fds + message.surplus_fds
        except VhostUserProtocolError:
            with pytest.raises(VhostUserProtocolError):
                parser.next_message()
    assert out + list(parser.close()) == given_fds
    assert parser.close() == ()


@given(st.sampled_from(sorted({int(request) for request in Request})), st.binary(max_size=300), st.integers(0, 9))
def test_any_payload_of_any_request_is_refused_or_encodes_to_the_same_bytes(number, payload, count):
    data = HEADER.pack(number, 1, len(payload)) + payload
    parser = MessageParser()
    parser.feed(data, range(1000, 1000 + count))
    try:
        message = parser.next_message()
    except VhostUserProtocolError:
        assert len(parser.close()) == count
        return
    assert message is not None
    if isinstance(message.payload, Inflight):
        assert encode(message)[:32] == HEADER.pack(number, 1, 24) + payload[:20]
    elif isinstance(message.payload, SingleRegion):
        assert encode(message)[20:] == data[20:]
    else:
        assert encode(message) == data


def parse(data, fds=(), direction=Direction.REQUEST):
    parser = MessageParser(direction)
    parser.feed(data, fds)
    return parser.next_message()


@pytest.mark.parametrize(
    ("data", "fds", "text"),
    [
        (HEADER.pack(1, 0, 0), (), "version 0"),
        (HEADER.pack(1, 2, 0), (), "version 2"),
        (HEADER.pack(1, 3, 0), (), "version 3"),
        (HEADER.pack(1, 0x11, 0), (), "unknown header flags"),
        (HEADER.pack(1, 0x5, 0), (), "a reply on a stream"),
        (HEADER.pack(1, 1, 8), (), "payload of 8 bytes"),
        (HEADER.pack(2, 1, 7), (), "payload of 7 bytes"),
        (HEADER.pack(2, 1, 2**32 - 1), (), "payload of 4294967295 bytes"),
        (HEADER.pack(99, 1, MAX_PAYLOAD + 1), (), "payload of 4097 bytes"),
        (HEADER.pack(5, 1, 8 + 9 * 32), (), "payload of 296 bytes"),
        (HEADER.pack(5, 1, 9), (), "payload of 9 bytes"),
        (HEADER.pack(5, 1, 40) + struct.pack("=II", 2, 0) + bytes(32), (1000,), "2 regions in 40 bytes"),
        (HEADER.pack(5, 1, 40) + struct.pack("=II", 1, 7) + bytes(32), (1000,), "padding"),
        (HEADER.pack(5, 1, 40) + struct.pack("=II", 1, 0) + bytes(32), (), "0 fds, not 1"),
        (HEADER.pack(5, 1, 40) + struct.pack("=II", 1, 0) + bytes(32), (1000, 1001), "2 fds, not 1"),
        (HEADER.pack(12, 1, 8) + struct.pack("=Q", 0), (), "0 fds, not 1"),
        (HEADER.pack(13, 1, 8) + struct.pack("=Q", 0x100), (1000,), "1 fds, not 0"),
        (HEADER.pack(13, 1, 8) + struct.pack("=Q", 0x200), (), "unknown bits"),
        (HEADER.pack(24, 1, 12 + 257), (), "payload of 269 bytes"),
        (HEADER.pack(24, 1, 16) + struct.pack("=III", 0, 5, 0) + bytes(4), (), "5 bytes in 16"),
        (HEADER.pack(1, 1, 0), (1000,), "1 fds, not 0"),
        (HEADER.pack(32, 1, 24) + bytes(24), (), "0 fds, not 1"),
        (HEADER.pack(38, 1, 40) + bytes(40), (1000, 1001), "1 fds, not 0"),
        (b"", range(1000, 1001 + MAX_FDS), "9 fds with one message"),
    ],
)
def test_what_breaks_the_protocol_is_an_error(data, fds, text):
    with pytest.raises(VhostUserProtocolError, match=text):
        parse(data, fds)


def test_a_bad_header_is_refused_before_its_payload_comes():
    parser = MessageParser()
    parser.feed(HEADER.pack(5, 1, 2**31))
    with pytest.raises(VhostUserProtocolError):
        parser.next_message()


def test_messages_before_an_error_are_not_lost():
    parser = MessageParser()
    kick = Message(Request.SET_VRING_KICK, VringFd(0), (1000,))
    parser.feed(encode(kick), [1000])
    parser.feed(HEADER.pack(1, 2, 0), [1001])
    assert parser.next_message() == kick
    with pytest.raises(VhostUserProtocolError):
        parser.next_message()
    parser.feed(b"x", [1002])
    assert parser.close() == (1001, 1002)


def test_fds_of_messages_that_wait_together_stay_apart():
    parser = MessageParser()
    kicks = [Message(Request.SET_VRING_KICK, VringFd(number), (1000 + number,)) for number in range(3)]
    for kick in kicks:
        parser.feed(encode(kick), kick.fds)
    assert [parser.next_message() for _ in kicks] == kicks


def test_too_many_fds_are_refused_before_the_payload_comes():
    parser = MessageParser()
    parser.feed(HEADER.pack(99, 1, 10), range(1000, 1009))
    with pytest.raises(VhostUserProtocolError, match="9 fds with one message"):
        parser.next_message()
    assert len(parser.close()) == 9


def test_the_fd_that_remove_may_carry_is_handed_out_for_closing():
    region = SingleRegion(MemoryRegion(0, 4096, 0, 0))
    data = encode(Message(Request.REM_MEM_REG, region))
    assert parse(data, [1000]) == Message(Request.REM_MEM_REG, region, surplus_fds=(1000,))


def test_an_end_within_a_message_is_an_error_and_one_between_is_not():
    for rest, fds in ((b"\1", ()), (b"", (1000,)), (HEADER.pack(2, 1, 8), ())):
        parser = MessageParser()
        parser.eof()
        parser.feed(rest, fds)
        with pytest.raises(VhostUserProtocolError, match="ended within"):
            parser.eof()
        assert parser.close() == fds


def test_inflight_is_taken_with_and_without_the_tail_and_sent_with_it():
    bare = struct.pack("=QQHH", 4096, 0, 2, 128)
    for tail in (b"", bytes(4)):
        message = parse(HEADER.pack(31, 1, 20 + len(tail)) + bare + tail)
        assert message == Message(Request.GET_INFLIGHT_FD, Inflight(4096, 0, 2, 128))
        assert encode(message) == HEADER.pack(31, 1, 24) + bare + bytes(4)
    with pytest.raises(VhostUserProtocolError):
        parse(HEADER.pack(31, 1, 22) + bare + bytes(2))


@pytest.mark.parametrize(
    "message",
    [
        Message(Request.GET_FEATURES, U64(1)),
        Message(Request.SET_FEATURES),
        Message(Request.SET_FEATURES, U64(2**64)),
        Message(Request.SET_FEATURES, U64(-1)),
        Message(Request.SET_FEATURES, VringState(0, 0)),
        Message(Request.SET_VRING_KICK, VringFd(256)),
        Message(Request.SET_VRING_KICK, VringFd(0), ()),
        Message(Request.SET_VRING_KICK, VringFd(0, has_fd=False), (1000,)),
        Message(Request.SET_MEM_TABLE, MemoryTable((MemoryRegion(0, 1, 0, 0),) * 9), (1000,) * 9),
        Message(Request.SET_CONFIG, ConfigSpace(0, 0, bytes(257))),
        Message(Request.GET_INFLIGHT_FD, Inflight(0, 0, 2**16, 0)),
        Message(2**32, None),
        Message(99, Raw(bytes(MAX_PAYLOAD + 1))),
        Message(Request.SET_OWNER, reply=True),
    ],
)
def test_a_message_that_cannot_be_is_not_encoded(message):
    with pytest.raises(VhostUserProtocolError):
        encode(message)


def test_acknowledgements_are_for_requests_that_want_one_and_have_no_reply_of_their_own():
    ask = Message(Request.SET_OWNER, need_reply=True)
    assert acknowledgement(ask, ok=True) == Message(Request.SET_OWNER, U64(0), reply=True)
    assert acknowledgement(ask, ok=False) == Message(Request.SET_OWNER, U64(1), reply=True)
    assert acknowledgement(Message(99, need_reply=True), ok=False) == Message(99, U64(1), reply=True)
    assert acknowledgement(Message(Request.SET_OWNER), ok=True) is None
    assert acknowledgement(Message(Request.GET_FEATURES, need_reply=True), ok=True) is None
    assert acknowledgement(Message(Request.SET_LOG_BASE), ok=False) is None
    refusal = acknowledgement(Message(Request.SET_LOG_BASE, Raw(bytes(16)), (1000,), need_reply=True), ok=False)
    assert refusal == Message(Request.SET_LOG_BASE, U64(1), reply=True)
    assert acknowledgement(Message(Request.IOTLB_MSG), ok=False) == Message(Request.IOTLB_MSG, U64(1), reply=True)
    assert acknowledgement(refusal, ok=True) is None
    change = Message(BackendRequest.CONFIG_CHANGE_MSG, need_reply=True)
    reply = acknowledgement(change, ok=True)
    assert reply is not None
    assert parse(encode(reply), direction=Direction.BACKEND_REPLY) == reply
    assert has_reply(Request.GET_FEATURES)
    assert not has_reply(BackendRequest.IOTLB_MSG)


def test_the_numbers_of_a_real_front_end():
    """The first messages of a session, byte by byte."""
    assert encode(Message(Request.GET_FEATURES)) == bytes.fromhex("010000000100000000000000")
    assert encode(Message(Request.SET_PROTOCOL_FEATURES, U64(9))) == bytes.fromhex(
        "1000000001000000080000000900000000000000"
    )
    assert encode(Message(Request.SET_VRING_CALL, VringFd(1), (1000,)))[12:] == bytes.fromhex("0100000000000000")
    assert encode(Message(Request.SET_VRING_ENABLE, VringState(0, 1), need_reply=True))[4] == 0x9
    assert encode(Message(Request.GET_QUEUE_NUM, U64(1), reply=True))[4] == 0x5


def test_the_errors_hang_in_the_package_tree():
    assert issubclass(VhostUserProtocolError, IrqfdError)
