"""The network card of the tutorial, with a test for its front-end; :mod:`tests.qemu.test_guides` has a guest ping it."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from pathlib import Path

import pytest

from aioirqfd.vhost_user import Backend
from examples.vhost_user_ping import HEADER, MAC, RECEIVE, TRANSMIT, Ping, answer
from tests.vhost_user.frontend import FEATURES, PROTOCOL_FEATURES, FrontEnd

ROOT = Path(__file__).parents[2]
GUEST = bytes.fromhex("525400123456")
OURS, THEIRS = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
BROADCAST = b"\xff" * 6


def arp(operation, sender, sender_address, target, target_address):
    return struct.pack(">HHBBH6s4s6s4s", 1, 0x0800, 6, 4, operation, sender, sender_address, target, target_address)


def checksum(data):
    """The Internet checksum: 0 over data that holds its own."""
    words = struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip(source, target, payload, *, protocol=1, options=b""):
    head = struct.pack(
        ">BBHHHBBH4s4s",
        0x45 + len(options) // 4,
        0,
        20 + len(options) + len(payload),
        7,
        0,
        64,
        protocol,
        0,
        source,
        target,
    )
    head += options
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + payload


def icmp(kind, rest):
    return struct.pack(">BBH", kind, 0, checksum(bytes([kind, 0, 0, 0]) + rest)) + rest


def from_guest(kind, payload, *, to=MAC):
    return to + GUEST + struct.pack(">H", kind) + payload


def from_us(kind, payload):
    return GUEST + MAC + struct.pack(">H", kind) + payload


WHO_HAS = from_guest(0x0806, arp(1, GUEST, THEIRS, bytes(6), OURS), to=BROADCAST)
ECHO = from_guest(0x0800, ip(THEIRS, OURS, icmp(8, b"\0\1\0\2" + b"payload of any length")))
ECHOED = from_us(0x0800, ip(OURS, THEIRS, icmp(0, b"\0\1\0\2" + b"payload of any length")))


def test_who_has_the_address():
    assert answer(WHO_HAS) == from_us(0x0806, arp(2, MAC, OURS, GUEST, THEIRS))


def test_an_echo_request_comes_back():
    assert answer(ECHO) == ECHOED


def test_an_echo_request_with_ip_options_comes_back():
    options = bytes([7, 4, 4, 0])
    request = from_guest(0x0800, ip(THEIRS, OURS, icmp(8, b"\0\1\0\2abcd"), options=options))
    assert answer(request) == from_us(0x0800, ip(OURS, THEIRS, icmp(0, b"\0\1\0\2abcd"), options=options))


def test_checksums_come_back_right():
    for number in range(0, 0x10000, 5):
        frame = answer(from_guest(0x0800, ip(THEIRS, OURS, icmp(8, struct.pack(">HH", number, 0)))))
        assert frame is not None
        assert checksum(frame[34:]) == 0


@pytest.mark.parametrize(
    "frame",
    [
        from_guest(0x0806, arp(1, GUEST, THEIRS, bytes(6), bytes([10, 0, 0, 9]))),
        from_guest(0x0806, arp(2, GUEST, THEIRS, MAC, OURS)),
        from_guest(0x0800, ip(THEIRS, bytes([10, 0, 0, 9]), icmp(8, bytes(4)))),
        from_guest(0x0800, ip(THEIRS, OURS, icmp(0, bytes(4)))),
        from_guest(0x0800, ip(THEIRS, OURS, icmp(8, bytes(4)), protocol=17)),
        from_guest(0x86DD, bytes(64)),
        from_guest(0x0800, b"\xff" * 28),
    ],
    ids=["another's address", "a reply", "another's ping", "no request", "UDP", "IPv6", "nonsense"],
)
def test_nothing_comes_back(frame):
    assert answer(frame) is None


@contextlib.asynccontextmanager
async def served(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    device = Ping()
    async with Backend(device, "socket") as backend, FrontEnd("socket") as front:
        await front.negotiate(FEATURES, PROTOCOL_FEATURES)
        await front.set_memory()
        for index in range(device.num_queues):
            await front.queue(index, 256).start()
        yield device, backend, front.queues


async def test_frames_that_are_sent_are_answered_in_the_buffers_for_those_that_come(tmp_path, monkeypatch):
    async with served(tmp_path, monkeypatch) as (_, backend, queues):
        for _ in range(3):
            queues[RECEIVE].put([], [12, 1514])
        # The header in a buffer of its own, as Linux has it, and with the frame; and what is nobody's.
        for request in ([bytes(12), WHO_HAS], [bytes(12) + ECHO], [bytes(12)], [b"short"], [bytes(12) + ECHO[:41]]):
            assert await queues[TRANSMIT].ask(request) == b""
        first, second = await queues[RECEIVE].answers(2)
        assert first.data == HEADER + from_us(0x0806, arp(2, MAC, OURS, GUEST, THEIRS))
        assert second.data == HEADER + ECHOED
        assert await queues[RECEIVE].stop() == 2  # one buffer waits, and is the driver's again
        assert [queue.failed for queue in backend.statistics().queues] == [0, 0]


async def test_a_guest_that_takes_no_answers_has_to_wait(tmp_path, monkeypatch):
    async with served(tmp_path, monkeypatch) as (device, backend, queues):
        for _ in range(100):
            queues[TRANSMIT].put([bytes(12) + ECHO])
        while not device.answers.full():
            await asyncio.sleep(0)
        for _ in range(100):
            queues[RECEIVE].put([], [1526])
        answered = await queues[RECEIVE].answers(100)
        assert [used.data for used in answered] == [HEADER + ECHOED] * 100
        assert [queue.failed for queue in backend.statistics().queues] == [0, 0]


def test_it_has_about_forty_lines_of_code():
    lines = (ROOT / "examples/vhost_user_ping.py").read_text("utf-8").splitlines()
    assert len([line for line in lines if line.strip() and not line.strip().startswith(("#", '"""'))]) <= 41
