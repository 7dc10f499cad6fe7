"""The host that answers a guest: each frame to the byte, and what is wrong is counted and not answered."""

from __future__ import annotations

import asyncio
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.net_user import BROADCAST, LEASE_SECONDS, MAC, ROOM, MalformedError, UserNet, checksum

GUEST = bytes.fromhex("525400123456")
OURS, THEIRS, OTHER = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), bytes([10, 0, 0, 9])
NOBODY, EVERYBODY = bytes(4), b"\xff" * 4
DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK = 1, 2, 3, 4, 5, 6


def summed(data):
    """The Internet checksum, word by word, as RFC 1071 has it."""
    total = sum(struct.unpack(f">{len(data) // 2 + len(data) % 2}H", data + bytes(len(data) % 2)))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ethernet(kind, payload, *, to=MAC, source=GUEST):
    return to + source + struct.pack(">H", kind) + payload


def arp(operation, sender, address, target, wanted):
    return struct.pack(">HHBBH6s4s6s4s", 1, 0x0800, 6, 4, operation, sender, address, target, wanted)


def ip(source, to, payload, *, protocol=1, options=b"", number=7, fragment=0):
    head = struct.pack(
        ">BBHHHBB", 0x45 + len(options) // 4, 0, 20 + len(options) + len(payload), number, fragment, 64, protocol
    )
    rest = source + to + options
    return head + struct.pack(">H", summed(head + rest)) + rest + payload


def icmp(kind, rest, *, code=0):
    return struct.pack(">BBH", kind, code, summed(bytes([kind, code, 0, 0]) + rest)) + rest


def udp(source, to, from_port, port, data, *, sum_=None):
    length = 8 + len(data)
    segment = struct.pack(">HHHH", from_port, port, length, 0) + data
    pseudo = source + to + struct.pack(">BBH", 0, 17, length)
    sum_ = summed(pseudo + segment) or 0xFFFF if sum_ is None else sum_
    return segment[:6] + struct.pack(">H", sum_) + data


def dhcp(operation, options, *, ours=NOBODY, yours=NOBODY, server=NOBODY, xid=0x1234, flags=0):
    head = struct.pack(">BBBBIHH4s4s4s4s", operation, 1, 6, 0, xid, 0, flags, ours, yours, server, NOBODY)
    body = b"".join(bytes([code, len(value)]) + value for code, value in options)
    return head + GUEST.ljust(16, b"\0") + bytes(192) + bytes.fromhex("63825363") + body + b"\xff"


def asked(kind, *options, **more):
    """A DHCP client's message, in its frame."""
    data = dhcp(1, [(53, bytes([kind])), *options], **more)
    return ethernet(0x0800, ip(NOBODY, EVERYBODY, udp(NOBODY, EVERYBODY, 68, 67, data), protocol=17), to=BROADCAST)


def given_back(kind, *, lease=THEIRS):
    """What the server says to it."""
    options = [(53, bytes([kind])), (54, OURS)]
    if kind != NAK:
        options += [(51, struct.pack(">I", LEASE_SECONDS)), (1, bytes([255, 255, 255, 0])), (3, OURS)]
    data = dhcp(2, options, yours=NOBODY if kind == NAK else lease, server=OURS)
    packet = ip(OURS, EVERYBODY, udp(OURS, EVERYBODY, 67, 68, data), protocol=17, number=0, fragment=0x4000)
    return ethernet(0x0800, packet, to=BROADCAST, source=MAC)


def from_us(payload, *, protocol=1):
    packet = ip(OURS, THEIRS, payload, protocol=protocol, number=0, fragment=0x4000)
    return ethernet(0x0800, packet, to=GUEST, source=MAC)


WHO_HAS = ethernet(0x0806, arp(1, GUEST, THEIRS, bytes(6), OURS), to=BROADCAST)
IS_AT = ethernet(0x0806, arp(2, MAC, OURS, GUEST, THEIRS), to=GUEST, source=MAC)
PING = ethernet(0x0800, ip(THEIRS, OURS, icmp(8, b"\0\1\0\2payload")))
PONG = from_us(icmp(0, b"\0\1\0\2payload"))
DATAGRAM = ethernet(0x0800, ip(THEIRS, OURS, udp(THEIRS, OURS, 4000, 7, b"hello"), protocol=17))
BACK = from_us(udp(OURS, THEIRS, 7, 4000, b"hello"), protocol=17)


@pytest.fixture
def net():
    return UserNet()


@given(st.binary(max_size=70) | st.integers(0, 40).map(bytes) | st.integers(0, 40).map(lambda size: b"\xff" * size))
def test_the_checksum_is_that_of_the_rfc(data):
    assert checksum(data) == summed(data)


@pytest.mark.parametrize(
    ("frame", "answer"),
    [
        (WHO_HAS, IS_AT),
        (WHO_HAS.ljust(60, b"\0"), IS_AT),
        (PING, PONG),
        (PING.ljust(60, b"\0"), PONG),
        (ethernet(0x0800, ip(THEIRS, OURS, icmp(8, b"\0\1\0\2payload"), options=bytes([7, 4, 4, 0]))), PONG),
        (ethernet(0x0800, ip(THEIRS, OURS, icmp(8, b"\0\1\0\2payload"), fragment=0x4000)), PONG),
        (DATAGRAM, BACK),
        (ethernet(0x0800, ip(THEIRS, OURS, udp(THEIRS, OURS, 4000, 7, b"hello", sum_=0), protocol=17)), BACK),
        (asked(DISCOVER), given_back(OFFER)),
        (asked(DISCOVER, (50, OTHER)), given_back(OFFER)),
        (asked(REQUEST, (50, THEIRS), (54, OURS)), given_back(ACK)),
        (asked(REQUEST, ours=THEIRS), given_back(ACK)),
        (asked(REQUEST, (50, OTHER)), given_back(NAK)),
        (asked(REQUEST, ours=OTHER), given_back(NAK)),
    ],
    ids=[
        *(
            "ARP",
            "padded ARP",
            "ping",
            "padded ping",
            "IP options",
            "not to be fragmented",
            "UDP",
            "UDP without a checksum",
        ),
        *("discover", "discover another", "request", "renew", "request another", "renew another"),
    ],
)
def test_an_answer_to_the_byte(net, frame, answer):
    assert net.answer(frame) == answer


@pytest.mark.parametrize(
    "frame",
    [
        PING.replace(MAC, b"\2" * 6),
        ethernet(0x86DD, bytes(64)),
        ethernet(0x0806, arp(1, GUEST, THEIRS, bytes(6), OTHER), to=BROADCAST),
        ethernet(0x0806, arp(2, GUEST, THEIRS, MAC, OURS)),
        ethernet(0x0800, ip(THEIRS, OTHER, icmp(8, bytes(4)))),
        ethernet(0x0800, ip(THEIRS, OURS, icmp(0, bytes(4)))),
        ethernet(0x0800, ip(THEIRS, OURS, icmp(8, bytes(4), code=1))),
        ethernet(0x0800, ip(THEIRS, OURS, icmp(8, bytes(4)), fragment=0x2000)),
        ethernet(0x0800, ip(THEIRS, OURS, icmp(8, bytes(4)), fragment=1)),
        ethernet(0x0800, ip(THEIRS, OURS, bytes(20), protocol=6)),
        ethernet(0x0800, ip(THEIRS, OURS, udp(THEIRS, OURS, 7, 8, b""), protocol=17)),
        ethernet(0x0800, ip(THEIRS, EVERYBODY, udp(THEIRS, EVERYBODY, 9, 7, b""), protocol=17), to=BROADCAST),
        asked(REQUEST, (50, THEIRS), (54, OTHER)),
        asked(DECLINE, (50, THEIRS), (54, OURS)),
    ],
    ids=[
        *(
            "another's frame",
            "IPv6",
            "another's address",
            "an ARP reply",
            "another's ping",
            "a ping's answer",
            "a code",
        ),
        *(
            "more fragments",
            "a later fragment",
            "TCP",
            "another port",
            "a broadcast",
            "another's lease",
            "a declined lease",
        ),
    ],
)
async def test_what_is_not_for_us_is_ignored(net, frame):
    assert await net.send(frame) is None
    assert net.inspect() == {"answered": 0, "ignored": 1, "malformed": 0, "unreceived": 0, "waiting": 0}


def spoilt(frame, offset):
    """The frame with a byte that is wrong, so that a checksum is."""
    return frame[:offset] + bytes([frame[offset] ^ 1]) + frame[offset + 1 :]


MALFORMED = {
    "nothing": b"",
    "no Ethernet header": PING[:13],
    "no ARP packet": WHO_HAS[:41],
    "another network's ARP": spoilt(WHO_HAS, 15),
    "no IP header": PING[:33],
    "the IP checksum": spoilt(PING, 22),
    "IP version 5": spoilt(PING, 14),
    "a cut IP packet": PING[:-1],
    "the ICMP checksum": spoilt(PING, 45),
    "no ICMP header": ethernet(0x0800, ip(THEIRS, OURS, icmp(8, b"\0\1"))),
    "no ICMP type": ethernet(0x0800, ip(THEIRS, OURS, b"")),
    "the UDP checksum": spoilt(DATAGRAM, 45),
    "no UDP header": ethernet(0x0800, ip(THEIRS, OURS, bytes(7), protocol=17)),
    "a longer UDP length": ethernet(0x0800, ip(THEIRS, OURS, struct.pack(">HHHH", 1, 7, 9, 0), protocol=17)),
    "a shorter UDP length": ethernet(0x0800, ip(THEIRS, OURS, struct.pack(">HHHH", 1, 7, 7, 0), protocol=17)),
    "no DHCP": ethernet(
        0x0800, ip(NOBODY, EVERYBODY, udp(NOBODY, EVERYBODY, 68, 67, bytes(239)), protocol=17), to=BROADCAST
    ),
    "DHCP without its cookie": ethernet(
        0x0800, ip(NOBODY, EVERYBODY, udp(NOBODY, EVERYBODY, 68, 67, bytes(240)), protocol=17), to=BROADCAST
    ),
    "a DHCP option beyond the end": ethernet(
        0x0800,
        ip(NOBODY, EVERYBODY, udp(NOBODY, EVERYBODY, 68, 67, dhcp(1, [])[:-1] + b"\x35\1"), protocol=17),
        to=BROADCAST,
    ),
}


@pytest.mark.parametrize("frame", MALFORMED.values(), ids=MALFORMED)
async def test_what_is_wrong_is_counted_and_not_answered(net, frame):
    assert await net.send(frame) == "malformed"
    assert net.inspect() == {"answered": 0, "ignored": 0, "malformed": 1, "unreceived": 0, "waiting": 0}


@given(st.binary(max_size=1600))
def test_any_datagram_comes_back_with_its_checksums_right(data):
    frame = ethernet(0x0800, ip(THEIRS, OURS, udp(THEIRS, OURS, 4000, 7, data), protocol=17))
    assert UserNet().answer(frame) == from_us(udp(OURS, THEIRS, 7, 4000, data), protocol=17)


def test_a_checksum_of_zero_is_sent_as_its_other_form():
    """0 would say that there is none."""
    (sum_,) = struct.unpack_from(">H", udp(OURS, THEIRS, 7, 4000, bytes(2)), 6)
    data = struct.pack(">H", sum_)
    answer = UserNet().answer(ethernet(0x0800, ip(THEIRS, OURS, udp(THEIRS, OURS, 4000, 7, data), protocol=17)))
    assert answer is not None
    assert answer[40:44] == b"\xff\xff" + data


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.binary(max_size=64))
def test_any_ping_comes_back_with_its_checksums_right(number, sequence, data):
    rest = struct.pack(">HH", number, sequence) + data
    assert UserNet().answer(ethernet(0x0800, ip(THEIRS, OURS, icmp(8, rest)))) == from_us(icmp(0, rest))


@given(
    st.sampled_from([WHO_HAS, PING, DATAGRAM, asked(DISCOVER), asked(REQUEST, (50, THEIRS))]),
    st.integers(0, 400),
    st.integers(1, 255),
    st.integers(0, 400),
)
def test_a_spoilt_frame_is_answered_ignored_or_malformed(frame, offset, mask, size):
    """Nothing else is raised, whatever byte is wrong and wherever it is cut."""
    changed = bytearray(frame)
    changed[offset % len(changed)] ^= mask
    for data in (bytes(changed), frame[:size], bytes(changed[:size])):
        try:
            answer = UserNet().answer(data)
        except (MalformedError, struct.error):
            continue
        assert answer is None or len(answer) >= 42


async def test_answers_wait_in_order_and_what_is_too_many_is_dropped_and_counted(net):
    waiting = asyncio.ensure_future(net.receive())
    await asyncio.sleep(0)
    pings = [ethernet(0x0800, ip(THEIRS, OURS, icmp(8, struct.pack(">HH", 1, number)))) for number in range(ROOM + 4)]
    assert [await net.send(ping) for ping in pings] == [None] * ROOM + ["the guest takes no answers"] * 4
    assert net.inspect() == {"answered": ROOM, "ignored": 0, "malformed": 0, "unreceived": 4, "waiting": ROOM}
    received = [await waiting] + [await net.receive() for _ in range(ROOM - 1)]
    assert received == [from_us(icmp(0, struct.pack(">HH", 1, number))) for number in range(ROOM)]
    net.close()


def test_another_network():
    net = UserNet("192.168.7.1/28", "192.168.7.5")
    answer = net.answer(asked(DISCOVER))
    assert answer is not None
    assert answer[58:62] == bytes([192, 168, 7, 5])  # yiaddr
    assert bytes([1, 4, 255, 255, 255, 240]) in answer
    assert net.answer(WHO_HAS) is None
