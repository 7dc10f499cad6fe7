"""The network card with a test for its driver, and the tap interface with the kernel's own network."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from aioirqfd.faults import Corrupt, Faults, Lose, Match
from aioirqfd.testing import vhost_user_frontend
from aioirqfd.virtio_pci.function import CONFIG as PCI_CONFIG
from examples.net_tap import Tap
from examples.net_user import UserNet
from examples.virtio_net import HEADER, MAC, MAX_FRAME, RECEIVE, TRANSMIT, Feature, Net, mac_of
from tests.conftest import NO_TAP
from tests.examples.test_net_user import IS_AT, PING, PONG, WHO_HAS
from tests.virtio_pci.conftest import serve, tracer

__all__ = ["serve", "tracer"]

TAP_ONLY = pytest.mark.skipif(NO_TAP is not None, reason=f"needs a tap interface: {NO_TAP}")


class Wire:
    """A network of the test's own: what the guest sent, and what it is to receive."""

    def __init__(self, *, broken=False) -> None:
        self.sent: list[bytes] = []
        self.frames: asyncio.Queue[bytes] = asyncio.Queue()
        self.may_send = asyncio.Event()
        self.may_send.set()
        self.broken = broken
        self.closed = 0

    async def send(self, frame):
        if self.broken:
            raise OSError(errno.ENODEV, "the interface has gone")
        await self.may_send.wait()
        self.sent.append(frame)

    async def receive(self):
        if self.broken:
            raise OSError(errno.ENODEV, "the interface has gone")
        return await self.frames.get()

    def inspect(self):
        return {}

    def close(self):
        self.closed += 1


@contextlib.asynccontextmanager
async def card(wire, **options):
    device = Net(wire)
    async with vhost_user_frontend(device, **options) as front:
        yield device, front, front.queues[RECEIVE], front.queues[TRANSMIT]


def frames(count):
    return [MAC + MAC + struct.pack(">HI", 0x88B5, number) for number in range(count)]


async def test_what_the_driver_finds(serve):
    net = Net(Wire(), mac=b"\2abcde")
    async with serve(net) as guest:
        agreed = await guest.negotiate((1 << 64) - 1)
        assert agreed & 0xFFFFFF == Feature.MTU | Feature.MAC | Feature.STATUS
        assert await guest.client.read(0, PCI_CONFIG, 12) == b"\2abcde" + struct.pack("<HHH", 1, 1, 1500)
        net.link = False
        assert await guest.client.read(0, PCI_CONFIG + 6, 2) == b"\0\0"


@pytest.mark.parametrize("mac", [b"", b"\1" + bytes(5), bytes(7)])
def test_an_address_that_is_none_is_refused(mac):
    with pytest.raises(ValueError, match="a network card's address is 6 bytes"):
        Net(Wire(), mac=mac)


@pytest.mark.parametrize("text", ["", "525400123456", "52:54:00:12:34", "5:254:00:12:34:56", "52:54:00:12:34:xx"])
def test_no_address(text):
    with pytest.raises(ValueError):
        mac_of(text)
    assert mac_of("52:54:00:12:34:56") == MAC


async def test_frames_go_both_ways_in_order():
    wire = Wire()
    count = 200
    async with card(wire) as (_, _, receive, transmit):
        for number, frame in enumerate(frames(count)):
            # The header in a buffer of its own, as Linux has it, and with the frame.
            await transmit.ask([bytes(12), frame] if number % 2 else [bytes(12) + frame])
        assert wire.sent == frames(count)
        for frame in frames(count):
            wire.frames.put_nowait(frame)
        received = []
        for _ in range(count):
            receive.put([], [12, 1514])
            received += [used.data for used in await receive.answers()]
        assert received == [HEADER + frame for frame in frames(count)]


async def test_it_answers_ping_with_a_network_of_its_own():
    net = UserNet()
    async with card(net) as (device, _, receive, transmit):
        for frame in (WHO_HAS, PING, b"short" * 3, PING[:-1]):
            receive.put([], [1526])
            await transmit.ask([bytes(12) + frame])
        assert [used.data for used in await receive.answers(2)] == [HEADER + IS_AT, HEADER + PONG]
        assert device.inspect() == {
            "link": True,
            "dropped": {"malformed": 1},
            "network": {"answered": 2, "ignored": 1, "malformed": 1, "unreceived": 0, "waiting": 0},
        }


@pytest.mark.parametrize(("size", "sent"), [(0, 0), (13, 0), (14, 1), (MAX_FRAME, 1), (MAX_FRAME + 1, 0), (1 << 19, 0)])
async def test_a_frame_of_a_wrong_size_is_dropped_and_counted(size, sent):
    wire = Wire()
    async with card(wire) as (device, _, _, transmit):
        assert await transmit.ask([bytes(12), *([bytes(size)] if size else [])]) == b""
        assert await transmit.ask([b"less than"]) == b""
        assert len(wire.sent) == sent
        assert device.dropped == {"of a wrong size": 2 - sent}


@pytest.mark.parametrize("transport", ["vhost-user", "virtio-pci"])
async def test_what_is_dropped_is_told_in_time(serve, tracer, transport):
    device = Net(UserNet())
    async with contextlib.AsyncExitStack() as stack:
        if transport == "virtio-pci":
            guest = await stack.enter_async_context(serve(device))
            await guest.start(queues=2)
            ask = guest.queues[TRANSMIT].ask
        else:
            front = await stack.enter_async_context(vhost_user_frontend(device, tracer=tracer))
            ask = front.queues[TRANSMIT].ask
        for size in (13, 13, 13, 14):
            await ask([bytes(12), MAC.ljust(size, b"\0")])
        for frame in (PING[:-1], PING[:-2]):
            await ask([bytes(12), frame])
    assert device.dropped == {"of a wrong size": 3, "malformed": 2}
    # The first of each kind at once; of the others, those that come a second later.
    assert list(dict.fromkeys(event["what"] for event in tracer.of("device_trouble"))) == [
        "a frame was dropped: of a wrong size",
        "a frame was dropped: malformed",
    ]


async def test_what_has_no_room_in_the_buffer_is_dropped_and_the_next_one_comes():
    wire = Wire()
    small, large = b"s" * 88, b"l" * 89
    for frame in (large, small, large, small):
        wire.frames.put_nowait(frame)
    async with card(wire) as (device, _, receive, _):
        for _ in range(2):
            assert await receive.ask([], [100]) == HEADER + small
        assert device.dropped == {"no room in the buffer": 2}


async def test_nothing_passes_while_the_link_is_down():
    wire = Wire()
    one, two, three = frames(3)
    async with card(wire) as (device, _, receive, transmit):
        told = []
        device.config_watchers += (lambda: told.append(device.config[6]),)
        device.link = False
        device.link = False
        await transmit.ask([bytes(12), one])
        receive.put([], [1526])
        wire.frames.put_nowait(two)
        while not wire.frames.empty() or device.dropped["link down"] < 2:
            await asyncio.sleep(0)
        device.link = True
        wire.frames.put_nowait(three)
        (used,) = await receive.answers()
        assert used.data == HEADER + three
        assert wire.sent == []
        assert told == [0, 1]


async def test_a_reset_does_not_wait_for_a_network_that_is_busy():
    """A transmit that waits is the driver's again, and was not sent; the frame that came meanwhile is still to come."""
    wire = Wire()
    first, second, late = frames(3)
    async with card(wire) as (_, _, receive, transmit):
        wire.may_send.clear()
        transmit.put([bytes(12), first])
        receive.put([], [1526])
        assert await transmit.stop() == 0
        assert await receive.stop() == 0
        assert wire.sent == []
        wire.frames.put_nowait(late)
        wire.may_send.set()
        await transmit.start()
        await receive.start()
        await transmit.answers()
        assert await transmit.ask([bytes(12), second]) == b""
        assert wire.sent == [first, second]
        assert [used.data for used in await receive.answers()] == [HEADER + late]


@pytest.mark.trouble
async def test_a_network_that_is_gone_stops_the_receive_queue_and_not_the_other():
    """An empty answer would be no frame, and the driver would offer its buffer again at once, for ever."""
    async with card(Wire(broken=True)) as (_, _, receive, transmit):
        receive.put([], [1526])
        assert await receive.err.read() == 1
        for frame in frames(2):
            assert await transmit.ask([bytes(12), frame]) == b""


async def test_it_closes_its_network():
    wire = Wire()
    Net(wire).close()
    assert wire.closed == 1


async def test_faults_find_frames_by_their_queue():
    wire = Wire()
    net = Net(wire)
    faults = Faults(nonconforming=True)
    one, two, three = frames(3)
    async with vhost_user_frontend(faults.wrap(net)) as front:
        receive, transmit = front.queues[RECEIVE], front.queues[TRANSMIT]
        lost = faults.add(Match("transmit", nth=2), Lose())
        for frame in (one, two, three):
            await transmit.ask([bytes(12), frame])
        assert wire.sent == [one, three]
        assert lost.hits == 1
        spoilt = faults.add(Match("receive", count=1), Corrupt("data", offset=len(HEADER)))
        for frame in (one, two):
            wire.frames.put_nowait(frame)
            received = await receive.ask([], [1526])
            assert (received == HEADER + frame) == (frame is two)
        assert spoilt.hits == 1
        assert len(received) == len(HEADER) + len(one)


# -- a tap interface -----------------------------------------------------------------------------------------------------


@pytest.fixture
def tap():
    one = Tap()
    index = socket.if_nametoindex(one.name)
    yield one
    one.close()
    # By its number: another process may be given the name at once.
    assert index not in [there for there, _ in socket.if_nameindex()]


def up(tap):
    """Plug it in; nothing of the host's own is to come along."""
    with contextlib.suppress(FileNotFoundError):
        Path(f"/proc/sys/net/ipv6/conf/{tap.name}/disable_ipv6").write_text("1")
    subprocess.run(["ip", "link", "set", tap.name, "up"], check=True)


@pytest.fixture
def host(tap):
    """The host's side of the interface: frames of one type that nobody else speaks."""
    up(tap)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:  # which hears of no interface before it is bound
        sock.setblocking(False)
        sock.bind((tap.name, 0x88B5))
        yield sock


@TAP_ONLY
async def test_frames_go_to_the_host_and_come_from_it(tap, host):
    loop = asyncio.get_running_loop()
    async with card(tap) as (device, _, receive, transmit):
        receive.put([], [1526])  # waits before there is a frame
        for frame in frames(50):
            await transmit.ask([bytes(12), frame])
            assert await loop.sock_recv(host, 2000) == frame
        for number, frame in enumerate(frames(50)):
            if number:
                receive.put([], [1526])
            await loop.sock_sendall(host, frame)
            (used,) = await receive.answers()
            assert used.data == HEADER + frame
        assert device.inspect()["network"] == {"tap": tap.name}
        assert device.dropped == {}


@TAP_ONLY
async def test_frames_are_dropped_and_counted_while_the_interface_is_down(tap):
    async with card(tap) as (device, _, _, transmit):
        for frame in frames(3):
            await transmit.ask([bytes(12), frame])
        assert device.dropped == {"the interface is down": 3}
        up(tap)
        await transmit.ask([bytes(12), frames(1)[0]])
        assert device.dropped == {"the interface is down": 3}


@TAP_ONLY
async def test_a_receive_that_is_cancelled_takes_no_frame(tap, host):
    for frame in frames(5):
        waiting = asyncio.ensure_future(tap.receive())
        await asyncio.sleep(0)
        host.send(frame)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await tap.receive() == frame


@TAP_ONLY
async def test_it_waits_without_looking_again_and_again(tap, host, monkeypatch):
    looks = []
    read, write = os.read, os.write
    monkeypatch.setattr("os.read", lambda *arguments: (looks.append("read"), read(*arguments))[1])
    waiting = asyncio.ensure_future(tap.receive())
    for _ in range(10):
        await asyncio.sleep(0)
    assert looks == ["read"]
    (frame,) = frames(1)
    host.send(frame)
    assert await waiting == frame
    assert looks == ["read"] * 2

    def busy(*_):
        monkeypatch.setattr("os.write", write)
        raise BlockingIOError

    monkeypatch.setattr("os.write", busy)
    await tap.send(frame)
    assert await asyncio.get_running_loop().sock_recv(host, 2000) == frame


@TAP_ONLY
async def test_an_interface_that_is_deleted_is_an_error(tap):
    up(tap)
    waiting = asyncio.ensure_future(tap.receive())
    await asyncio.sleep(0)
    subprocess.run(["ip", "link", "del", tap.name], check=True)
    with pytest.raises(OSError) as raised:
        await waiting
    assert raised.value.errno == errno.EBADFD
    with pytest.raises(OSError):
        await tap.send(frames(1)[0])


@TAP_ONLY
def test_a_name_is_taken_once_and_the_error_says_what_to_do(tap):
    for name, advice in ((tap.name, "another program has it; choose another name"), ("lo", "that is no tap")):
        with pytest.raises(OSError, match=advice) as raised:
            Tap(name)
        assert raised.value.filename == name


@pytest.mark.parametrize("name", ["a" * 16, "é" * 8, "a\0b"])
def test_a_name_that_cannot_be_is_refused(name):
    with pytest.raises(ValueError, match="up to 15 bytes"):
        Tap(name)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EPERM, "ip tuntap add dev tap7 mode tap user"),
        (errno.ENOENT, "modprobe tun"),
        (errno.EIO, "no tap interface: Input/output error: .tap7.$"),
    ],
)
def test_who_may_not_is_told_what_to_do(monkeypatch, number, advice):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.ioctl", refuse)
    with pytest.raises(OSError, match=advice):
        Tap("tap7")
