"""The configuration space: who writes it, and how a driver hears that it has changed."""

# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# (what is not there, or of another kind, fails the test, as it should)
from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import pytest

from aioirqfd.testing import RecordingTracer
from aioirqfd.vhost_user import Backend
from aioirqfd.vhost_user.connection import Connection
from aioirqfd.vhost_user.features import ProtocolFeature
from aioirqfd.vhost_user.messages import BackendRequest, ConfigSpace, Message, Request
from aioirqfd.vhost_user.protocol import Direction
from aioirqfd.virtio import BlockFile, Device
from tests.vhost_user.devices import Upper
from tests.vhost_user.frontend import PROTOCOL_FEATURES, FrontEnd

WITH_CONFIG = PROTOCOL_FEATURES | ProtocolFeature.CONFIG | ProtocolFeature.BACKEND_REQ
CHANGED = Message(BackendRequest.CONFIG_CHANGE_MSG)


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return "socket"


class Channel:
    """The front-end's end of the socket that the back-end asks on."""

    def __init__(self, front):
        self.front = front
        self.ours, self.theirs = socket.socketpair()
        self.connection = Connection(self.ours, Direction.BACKEND_REQUEST)

    async def give(self):
        await self.front.tell(Request.SET_BACKEND_REQ_FD, None, [self.theirs.fileno()])
        self.theirs.close()

    async def told(self):
        async with asyncio.timeout(60):
            return await self.connection.receive()

    async def silent(self):
        """Nothing was said; asked after a message on the other socket has been answered."""
        await self.front.tell(Request.SET_OWNER)
        try:
            self.ours.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False

    def close(self):
        self.connection.close()
        self.theirs.close()


@pytest.fixture
async def linked(path):
    """A back-end, a front-end that has agreed on all that there is, and its channel, which the back-end does not have yet."""
    async with Backend(Upper(config=b"old"), path) as backend, FrontEnd(path) as front:
        await front.negotiate(protocol_features=WITH_CONFIG)
        channel = Channel(front)
        try:
            yield backend, front, channel
        finally:
            channel.close()


async def config(front, size=3):
    reply = await front.ask(Request.GET_CONFIG, ConfigSpace(0, 0, bytes(size)))
    return reply.payload.data


def change(backend, new=b"new"):
    backend.device.config = new
    backend.device.config_changed()


# -- changes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bytes_", [b"", b"config"])
async def test_the_channel_is_offered_to_devices_that_have_a_configuration(path, bytes_):
    async with Backend(Upper(config=bytes_), path), FrontEnd(path) as front:
        known = await front.number(Request.GET_PROTOCOL_FEATURES)
        both = ProtocolFeature.CONFIG | ProtocolFeature.BACKEND_REQ
        assert known & both == (both if bytes_ else 0)


async def test_a_change_is_told_once_and_can_be_read(linked):
    backend, front, channel = linked
    assert await config(front) == b"old"
    await channel.give()
    assert await channel.silent()
    for new in (b"one", b"two"):
        change(backend, new)
        assert await channel.told() == CHANGED
        assert await config(front) == new
    assert await channel.silent()


async def test_a_change_before_the_channel_is_told_on_it_once_a_ring_runs(linked):
    backend, front, channel = linked
    assert await config(front) == b"old"
    change(backend)
    await channel.give()
    assert await channel.silent()
    await front.set_memory()
    await front.start(0, 8)
    assert await channel.told() == CHANGED


async def test_a_change_that_was_told_while_no_ring_ran_is_told_again(linked):
    """QEMU takes no word of a change before the driver is there, and has forgotten it when it is."""
    backend, front, channel = linked
    await channel.give()
    assert await config(front) == b"old"
    change(backend)
    assert await channel.told() == CHANGED
    await front.set_memory()
    await front.start(0, 8)
    assert await channel.told() == CHANGED
    assert await config(front) == b"new"
    base = await front.queues[0].stop()
    await front.queues[0].start(base=base)
    assert await channel.silent()


async def test_a_front_end_that_reconnects_and_does_not_ask_is_told(path):
    """The disk may have grown while no back-end was there."""
    async with Backend(Upper(config=b"grown"), path), FrontEnd(path) as front:
        await front.negotiate(protocol_features=WITH_CONFIG)
        channel = Channel(front)
        await channel.give()
        await front.set_memory()
        await front.start(0, 8)
        assert await channel.told() == CHANGED
        channel.close()


async def test_another_channel_takes_the_first_ones_place(linked):
    backend, front, channel = linked
    await channel.give()
    second = Channel(front)
    await second.give()
    assert await channel.told() is None
    change(backend)
    assert await second.told() == CHANGED
    second.close()


async def test_changes_that_nobody_reads_are_told_once_when_there_is_room(linked):
    backend, front, channel = linked
    assert await config(front) == b"old"
    await channel.give()
    for number in range(100_000):
        backend.device.config_changed()
        if number % 1000 == 0:
            await asyncio.sleep(0)
    read = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            read += channel.ours.recv(1 << 16)
    assert 0 < len(read) // 12 < 50_000
    # All that found no room are one that comes when there is.
    channel.connection._parser.feed(read[len(read) // 12 * 12 :])
    assert await channel.told() == CHANGED
    assert await channel.silent()
    assert backend._session._channel._waits is False  # or the loop would run hot


async def test_a_channel_that_was_closed_is_no_trouble(linked):
    backend, front, channel = linked
    await channel.give()
    channel.close()
    for _ in range(3):
        change(backend)
    assert await config(front) == b"new"


async def test_a_full_channel_goes_with_the_front_end(path):
    async with Backend(Upper(config=b"x"), path) as backend:
        async with FrontEnd(path) as front:
            await front.negotiate(protocol_features=WITH_CONFIG)
            channel = Channel(front)
            await channel.give()
            for _ in range(100_000):
                backend.device.config_changed()
        channel.close()
        async with FrontEnd(path) as front:
            assert await front.number(Request.GET_QUEUE_NUM) == 1


async def test_what_is_no_stream_socket_is_no_channel(path):
    async with Backend(Upper(config=b"x"), path) as backend, FrontEnd(path) as front:
        await front.negotiate(protocol_features=WITH_CONFIG)
        one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        reading, writing = os.pipe()
        try:
            for fd in (one.fileno(), reading):
                assert await front.status(Request.SET_BACKEND_REQ_FD, None, [fd]) == 1
        finally:
            for fd in (reading, writing):
                os.close(fd)
            one.close()
            two.close()
        change(backend)


async def test_without_a_front_end_a_change_is_told_to_nobody(path):
    device = Upper(config=b"x")
    device.config_changed()
    async with Backend(device, path):
        device.config_changed()
    device.config_changed()
    assert device.config_watchers == ()


async def test_a_queue_goes_on_with_another_file(path, tmp_path):
    """Whether C serves it or not: the driver sees the new size's worth."""

    class Filed(Upper):
        taken = 0

        async def handle(self, request):
            self.taken += 1
            return 0

    image = tmp_path / "image"
    image.write_bytes(b"a" * 512)
    device = Filed(config=b"x")
    fd = os.open(image, os.O_RDWR)
    try:
        device.file = BlockFile(fd, 512)
        async with Backend(device, path), FrontEnd(path) as front:
            queue = await front.start(0, 8)
            await queue.ask([bytes(16)], [512, 1])
            before = device.taken
            image.write_bytes(b"a" * 512 + b"b" * 512)
            second = bytes(8) + (1).to_bytes(8, "little")
            await queue.ask([second], [512, 1])
            assert device.taken == before + 1
            device.file = BlockFile(fd, 1024)
            device.config_changed()
            for _ in range(3):
                answer = await queue.ask([second], [512, 1])
                if before == 0:  # C serves it
                    assert answer == b"b" * 512 + b"\0"
            assert device.taken == (1 if before == 0 else 5)
            device.file = None
            device.config_changed()
            await queue.ask([second], [512, 1])
            assert device.taken == (2 if before == 0 else 6)
    finally:
        os.close(fd)


# -- writes --------------------------------------------------------------------------------------------------------------


async def test_a_device_hears_who_writes_its_configuration(path):
    seen = []

    class Noting(Upper):
        def write_config(self, offset, data, *, live_migration=False):
            seen.append((offset, data, live_migration))
            if not live_migration:
                raise ValueError("read-only")

    async with Backend(Noting(config=b"0123"), path), FrontEnd(path) as front:
        await front.negotiate(protocol_features=WITH_CONFIG)
        assert await front.status(Request.SET_CONFIG, ConfigSpace(1, 0, b"a")) == 1
        assert await front.status(Request.SET_CONFIG, ConfigSpace(2, 1, b"b")) == 0
        for unknown in (2, 3, 1 << 31):
            assert await front.status(Request.SET_CONFIG, ConfigSpace(0, unknown, b"c")) == 1
    assert seen == [(1, b"a", False), (2, b"b", True)]


async def test_a_guest_may_bring_what_is_there_already(path):
    """To a device that takes no writes: one with the same configuration was left."""

    class Fixed(Device):
        config = b"0123456789"

        async def handle(self, request):
            return 0

    async with Backend(Fixed(), path), FrontEnd(path) as front:
        await front.negotiate(protocol_features=WITH_CONFIG)
        for offset, data, flags, status in (
            (0, b"0123456789", 1, 0),
            (2, b"23", 1, 0),
            (0, b"0123456789", 0, 1),
            (2, b"24", 1, 1),
            (9, b"9\0", 1, 1),
        ):
            assert await front.status(Request.SET_CONFIG, ConfigSpace(offset, flags, data)) == status


async def test_a_device_that_fails_with_its_configuration_fails_that_message_alone(path):
    class Broken(Upper):
        @property
        def config(self):
            if self.broken:
                raise KeyError("config")
            return b"x"

        @config.setter
        def config(self, value):
            pass

        broken = False

        def write_config(self, offset, data):  # pyright: ignore[reportIncompatibleMethodOverride]  of an older time
            raise KeyError("write")

        def reset(self):
            raise KeyError("reset")

    tracer = RecordingTracer()
    device = Broken()
    async with Backend(device, path, tracer=tracer):
        for _ in range(2):
            async with FrontEnd(path) as front:
                await front.negotiate(protocol_features=WITH_CONFIG)
                device.broken = True
                reply = await front.ask(Request.GET_CONFIG, ConfigSpace(0, 0, bytes(4)))
                assert reply.payload is None
                device.broken = False
                assert await front.status(Request.SET_CONFIG, ConfigSpace(0, 0, b"x")) == 1
                assert await front.status(Request.SET_CONFIG, ConfigSpace(0, 1, b"x")) == 1
                await front.tell(Request.RESET_DEVICE)
                await front.negotiate()
                await front.set_memory()
                queue = await front.start(0, 8)
                assert await queue.ask([b"a"], [1]) == b"A"
    assert [(fields["what"], fields["error"].partition("(")[0]) for fields in tracer.of("device_failed")] == [
        ("config", "KeyError"),
        ("write_config()", "KeyError"),
        ("write_config()", "TypeError"),
        ("reset()", "KeyError"),
    ]
    assert tracer.of("session_failed") == []
