"""How front-ends set rings up, anew and in which order, and what they hear when a ring cannot run."""

# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# (what is not there, or of another kind, fails the test, as it should)
from __future__ import annotations

import asyncio
import os

import pytest

from aioirqfd import EventFd, WouldBlock
from aioirqfd.testing import RecordingTracer
from aioirqfd.vhost_user import Backend
from aioirqfd.vhost_user.driver import DriverMemory, DriverQueue
from aioirqfd.vhost_user.features import ProtocolFeature
from aioirqfd.vhost_user.inflight import ROOM, InflightBuffer
from aioirqfd.vhost_user.messages import (
    U64,
    Inflight,
    MemoryTable,
    Request,
    SingleRegion,
    VringAddr,
    VringFd,
    VringState,
)
from aioirqfd.virtio.features import VirtioFeature
from tests.vhost_user.devices import Gated, Receiver, Upper
from tests.vhost_user.frontend import FEATURES, PROTOCOL_FEATURES, FrontEnd

WITH_INFLIGHT = PROTOCOL_FEATURES | ProtocolFeature.INFLIGHT_SHMFD
NOWHERE = VringAddr(0, 0, descriptor=0x1234560, used=0x1234560, available=0x1234560)


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return "socket"


def count(eventfd):
    try:
        return eventfd.read_nowait()
    except WouldBlock:
        return 0


async def turns(number=20):
    for _ in range(number):
        await asyncio.sleep(0)


# -- rings larger than the front-end thought ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [256, ROOM])
async def test_a_ring_larger_than_what_was_asked_for_loses_no_request_either(path, size):
    """As QEMU does: it asks for room for 128 descriptors, and describes the buffer by that when it gives it back."""
    with DriverMemory(1 << 19, guest_address=1 << 32) as ram:
        driver = DriverQueue(ram, size)
        device = Gated(num_queues=2)
        async with Backend(device, path), FrontEnd(path, memory=ram) as front:
            await front.negotiate(protocol_features=WITH_INFLIGHT)
            reply = await front.ask(Request.GET_INFLIGHT_FD, Inflight(0, 0, 2, 128))
            (fd,) = reply.fds
            described = Inflight(reply.payload.mmap_size, reply.payload.mmap_offset, 2, 128)
            await front.tell(Request.SET_INFLIGHT_FD, described, [fd])
            await front.set_memory()
            queue = front.queue(1, driver=driver)
            await queue.start()
            for name in (b"a", b"b", b"c"):
                queue.put([name], [4])
            while len(device.gates) < 3:
                await asyncio.sleep(0)
            device.open(b"b")
            assert [used.data for used in await queue.answers()] == [b"B"]
        device = Gated(num_queues=2)
        async with Backend(device, path) as backend, FrontEnd(path, memory=ram) as front:
            await front.negotiate(protocol_features=WITH_INFLIGHT)
            await front.tell(Request.SET_INFLIGHT_FD, described, [fd])
            os.close(fd)
            await front.set_memory()
            queue = front.queue(1, driver=driver)
            await queue.start(base=driver._used_words[1])
            while len(device.gates) < 2:
                await asyncio.sleep(0)
            assert list(device.gates) == [b"a", b"c"]
            device.open(b"a", b"c")
            assert sorted(used.data for used in await queue.answers(2)) == [b"A", b"C"]
            assert backend.statistics().queues[1].resubmitted == 2


async def test_a_ring_that_the_inflight_buffer_has_no_room_for_runs_without_it(path):
    """The front-end has made the buffer itself, or has it from another back-end."""
    tracer = RecordingTracer()
    with InflightBuffer.create(2, 8) as buffer:
        buffer.queue(0).begin(3)
        async with Backend(Upper(num_queues=3), path, tracer=tracer) as backend, FrontEnd(path) as front:
            await front.negotiate(protocol_features=WITH_INFLIGHT)
            await front.tell(Request.SET_INFLIGHT_FD, buffer.description, [buffer.fileno()])
            await front.set_memory()
            for _ in range(2):
                queue = front.queue(0, 16)
                await queue.start()
                for _ in range(40):
                    assert await queue.ask([b"a"], [1]) == b"A"
                assert await queue.stop() == 40
                queue.close()
            beyond = front.queue(2, 8)
            await beyond.start()
            assert await beyond.ask([b"b"], [1]) == b"B"
            # What was in flight in the smaller ring is none of the next one's.
            small = front.queue(0, 8)
            await small.start()
            assert await small.ask([b"c"], [1]) == b"C"
            assert backend.statistics().queues[0].resubmitted == 0
    expected = [
        {"device": "Upper", "queue": 0, "size": 16, "room": 8},
        {"device": "Upper", "queue": 2, "size": 8, "room": 8},
    ]
    assert tracer.of("inflight_too_small") == expected


async def test_a_broken_inflight_buffer_starts_no_ring(path):
    with InflightBuffer.create(1, 16) as buffer:
        buffer.queue(0)
        os.pwrite(buffer.fileno(), b"\2", 8)  # the layout's version
        async with Backend(Upper(), path) as backend, FrontEnd(path) as front:
            await front.negotiate(protocol_features=WITH_INFLIGHT)
            await front.tell(Request.SET_INFLIGHT_FD, buffer.description, [buffer.fileno()])
            await front.set_memory()
            await front.queue(0, 16).start(enable=False)
            assert await front.status(Request.SET_VRING_ENABLE, VringState(0, 1)) == 1
            assert backend.statistics().queues[0].starts == 0


# -- a ring that cannot run ----------------------------------------------------------------------------------------------


@pytest.fixture
async def half(path):
    """A front-end with a ring that lacks only what the test says; its error eventfd is not known to the back-end."""
    tracer = RecordingTracer()
    async with Backend(Upper(), path, tracer=tracer) as backend, FrontEnd(path) as front:
        await front.negotiate()
        await front.set_memory()
        queue = front.queue(0, 8)
        await front.tell(Request.SET_VRING_NUM, VringState(0, 8))
        await front.tell(Request.SET_VRING_BASE, VringState(0, 0))
        await front.tell(Request.SET_VRING_CALL, VringFd(0), [queue.call.fileno()])
        yield front, queue, backend, tracer


@pytest.mark.parametrize("last", ["ENABLE", "KICK", "ADDR"])
async def test_whichever_message_starts_the_ring_is_acknowledged_as_failed(half, last):
    front, queue, backend, _ = half
    steps = {
        "ADDR": (Request.SET_VRING_ADDR, NOWHERE),
        "KICK": (Request.SET_VRING_KICK, VringFd(0), [queue.kick.fileno()]),
        "ENABLE": (Request.SET_VRING_ENABLE, VringState(0, 1)),
    }
    final = steps.pop(last)
    for step in steps.values():
        await front.tell(*step)
    assert await front.status(*final) == 1
    assert await front.status(Request.SET_VRING_ENABLE, VringState(0, 1)) == 1
    # Each other message is carried out, and says so.
    await front.tell(Request.SET_VRING_CALL, VringFd(0), [queue.call.fileno()])
    await front.tell(Request.SET_VRING_ENABLE, VringState(0, 0))
    await front.tell(Request.SET_VRING_ADDR, queue.driver.address(0))
    await front.tell(Request.SET_VRING_ENABLE, VringState(0, 1))
    assert await queue.ask([b"a"], [1]) == b"A"
    assert backend.statistics().queues[0].starts == 1


async def test_without_a_reply_the_error_eventfd_tells_and_the_connection_stays(half):
    front, queue, _, _ = half
    await front.send(Request.SET_VRING_ERR, VringFd(0), [queue.err.fileno()])
    await front.send(Request.SET_VRING_ADDR, NOWHERE)
    await front.send(Request.SET_VRING_KICK, VringFd(0), [queue.kick.fileno()])
    await front.send(Request.SET_VRING_ENABLE, VringState(0, 1))
    assert await queue.err.read() == 1
    await front.send(Request.SET_VRING_ADDR, queue.driver.address(0))
    assert await queue.ask([b"a"], [1]) == b"A"


async def test_without_any_way_to_tell_the_connection_is_closed(half):
    front, queue, _, tracer = half
    await front.send(Request.SET_VRING_ADDR, NOWHERE)
    await front.send(Request.SET_VRING_KICK, VringFd(0), [queue.kick.fileno()])
    await front.send(Request.SET_VRING_ENABLE, VringState(0, 1))
    assert await front.closed()
    (said,) = tracer.of("frontend_disconnected")
    assert said["reason"].startswith("SET_VRING_ENABLE: queue 0 cannot start: a ring is not in the guest's memory")


@pytest.mark.parametrize(
    ("request_", "payload", "fds"),
    [
        (Request.SET_VRING_KICK, VringFd(0), 1),
        (Request.SET_VRING_KICK, VringFd(0, has_fd=False), 0),
        (Request.SET_VRING_CALL, VringFd(0), 1),
        (Request.SET_VRING_NUM, VringState(0, 3), 0),
        (Request.SET_VRING_BASE, VringState(0, 1 << 16), 0),
    ],
    ids=["kick", "no kick", "call", "size", "base"],
)
async def test_what_a_ring_cannot_be_set_up_with_is_told_in_the_same_ways(half, request_, payload, fds):
    front, queue, _, _ = half
    with open("/dev/null") as null:  # noqa: PTH123
        message = (request_, payload, [null.fileno()] * fds)
        assert await front.status(*message) == 1
        await front.send(Request.SET_VRING_ERR, VringFd(0), [queue.err.fileno()])
        await front.send(*message)
        assert await queue.err.read() == 1
        await front.send(Request.SET_VRING_ERR, VringFd(0, has_fd=False))
        await front.send(*message)
        assert await front.closed()


@pytest.mark.parametrize("piecewise", [False, True])
async def test_memory_that_comes_last_lets_the_ring_start(path, piecewise):
    async with Backend(Upper(), path) as backend, FrontEnd(path) as front:
        await front.negotiate()
        queue = front.queue(0, 8)
        await front.tell(Request.SET_VRING_ERR, VringFd(0), [queue.err.fileno()])
        await queue.start(enable=False)
        assert await front.status(Request.SET_VRING_ENABLE, VringState(0, 1)) == 1
        if piecewise:
            await front.tell(Request.ADD_MEM_REG, SingleRegion(front.ram.region), [front.ram.fileno()])
        else:
            await front.set_memory()
        assert await queue.ask([b"a"], [1]) == b"A"
        assert backend.statistics().queues[0].starts == 1


async def test_a_table_that_a_disabled_ring_is_not_in_is_no_failure(path):
    async with Backend(Upper(), path), FrontEnd(path) as front:
        queue = await front.start(0, 8)
        await front.tell(Request.SET_VRING_ENABLE, VringState(0, 0))
        await front.tell(Request.SET_MEM_TABLE, MemoryTable(()))
        await front.set_memory()
        await front.tell(Request.SET_VRING_ADDR, queue.driver.address(0))
        await front.tell(Request.SET_VRING_ENABLE, VringState(0, 1))
        assert await queue.ask([b"a"], [1]) == b"A"


# -- set up anew ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", ["all", "ring", "base"])
async def test_a_ring_that_was_disabled_is_set_up_anew(path, again):
    """Some front-ends reset a device by nothing else."""
    async with Backend(Upper(), path) as backend, FrontEnd(path) as front:
        queue = await front.start(0, 8)
        for _ in range(3):
            assert await queue.ask([b"a"], [1]) == b"A"
        await front.tell(Request.SET_VRING_ENABLE, VringState(0, 0))
        if again == "all":
            await front.tell(Request.SET_FEATURES, U64(int(FEATURES & ~VirtioFeature.EVENT_IDX)))
            await front.set_memory()
            front.features = FEATURES & ~VirtioFeature.EVENT_IDX
            old, queue = queue, front.queue(0, 16)
            await queue.start()
            old.close()
        elif again == "ring":
            queue.driver = DriverQueue(front.ram, 4)
            await front.tell(Request.SET_VRING_NUM, VringState(0, 4))
            await front.tell(Request.SET_VRING_ADDR, queue.driver.address(0))
            await front.tell(Request.SET_VRING_BASE, VringState(0, 0))
            await front.tell(Request.SET_VRING_ENABLE, VringState(0, 1))
        else:
            await front.tell(Request.SET_VRING_BASE, VringState(0, 3))
            await front.tell(Request.SET_VRING_ENABLE, VringState(0, 1))
        for _ in range(3):
            assert await queue.ask([b"b"], [1]) == b"B"
        (done,) = backend.statistics().queues
        assert (done.starts, done.requests, done.answers) == (2, 6, 6)


@pytest.mark.parametrize("device", [Gated, Receiver])
async def test_what_is_under_way_is_ended_before_the_ring_is_another_one(path, device):
    device = device()
    async with Backend(device, path) as backend, FrontEnd(path) as front:
        queue = await front.start(0, 8)
        queue.put([b"slow"], [8])
        while not device.gates:
            await asyncio.sleep(0)
        await front.tell(Request.SET_VRING_ENABLE, VringState(0, 0))
        setting = asyncio.ensure_future(front.status(Request.SET_VRING_BASE, VringState(0, 1)))
        await turns()
        if not device.receive_queues:
            assert not setting.done()
            device.open(b"slow")
        assert await setting == 0
        assert len(queue.driver.collect()) == (0 if device.receive_queues else 1)
        assert backend.statistics().queues[0].starts == 1


async def test_a_front_end_that_goes_while_a_ring_is_set_up_anew_ends_what_it_waits_for(path):
    device = Gated()
    async with Backend(device, path):
        async with FrontEnd(path) as front:
            queue = await front.start(0, 8)
            queue.put([b"never"], [8])
            while not device.gates:
                await asyncio.sleep(0)
            await front.tell(Request.SET_VRING_ENABLE, VringState(0, 0))
            await front.send(Request.SET_VRING_NUM, VringState(0, 16))
            await turns()
            assert device.cancelled == []
        async with FrontEnd(path) as front:
            assert await front.number(Request.GET_QUEUE_NUM) == 1
            assert device.cancelled == [b"never"]


async def test_the_inflight_buffer_is_another_one_after_a_reset_by_disabling(path):
    """As Cloud Hypervisor does it; requests that are under way are remembered in the old one until they have ended."""
    device = Gated()
    async with Backend(device, path) as backend, FrontEnd(path) as front:
        await front.negotiate(protocol_features=WITH_INFLIGHT)
        await front.set_memory()
        for number in range(2):
            reply = await front.ask(Request.GET_INFLIGHT_FD, Inflight(0, 0, 1, 16))
            await front.tell(Request.SET_INFLIGHT_FD, reply.payload, reply.fds)
            os.close(reply.fds[0])
            queue = front.queue(0, 8)
            await queue.start()
            assert await front.status(Request.SET_INFLIGHT_FD, reply.payload, [front.ram.fileno()]) == 1
            queue.put([b"%d" % number], [8])
            while not device.gates:
                await asyncio.sleep(0)
            device.open(b"%d" % number)
            assert [used.data for used in await queue.answers()] == [b"%d" % number]
            await front.tell(Request.SET_VRING_ENABLE, VringState(0, 0))
            await front.tell(Request.RESET_OWNER)
            if not number:
                queue.close()
        (done,) = backend.statistics().queues
        assert (done.starts, done.requests, done.resubmitted) == (2, 2, 0)


async def test_what_a_running_ring_has_already_may_be_said_again(path):
    async with Backend(Upper(), path), FrontEnd(path) as front:
        queue = await front.start(0, 8)
        for _ in range(3):
            await front.tell(Request.SET_VRING_NUM, VringState(0, 8))
            await front.tell(Request.SET_VRING_ADDR, queue.driver.address(0))
            await front.tell(Request.SET_FEATURES, U64(int(front.features)))
            assert await queue.ask([b"a"], [1]) == b"A"


async def test_reset_owner_disables_the_rings_and_forgets_nothing(path):
    device = Upper(num_queues=2)
    async with Backend(device, path) as backend, FrontEnd(path) as front:
        queues = [await front.start(index, 8) for index in range(2)]
        for queue in queues:
            assert await queue.ask([b"a"], [1]) == b"A"
        await front.tell(Request.RESET_OWNER)
        for queue in queues:
            queue.put([b"b"], [1])
        await front.tell(Request.SET_OWNER)
        assert [queue.requests for queue in backend.statistics().queues] == [1, 1]
        assert (device.resets, device.driver_features) == (0, int(front.features))
        for queue in queues:
            await front.tell(Request.SET_VRING_ENABLE, VringState(queue.index, 1))
            assert [used.data for used in await queue.answers()] == [b"B"]
        assert [queue.starts for queue in backend.statistics().queues] == [1, 1]


async def test_reset_owner_is_ignored_where_nothing_could_enable_the_rings_again(path):
    async with Backend(Upper(), path), FrontEnd(path) as front:
        await front.negotiate(FEATURES & ~VirtioFeature.PROTOCOL_FEATURES)
        await front.set_memory()
        queue = front.queue(0, 8)
        await queue.start(enable=False)
        await front.tell(Request.RESET_OWNER)
        assert await queue.ask([b"a"], [1]) == b"A"


async def test_a_reset_of_the_device_keeps_what_belongs_to_the_connection(path):
    """The error eventfd is given once, when QEMU makes the device, and the call eventfd may be."""
    device = Upper()
    async with Backend(device, path), FrontEnd(path) as front:
        queue = await front.start(0, 8)
        await front.tell(Request.RESET_DEVICE)
        assert device.resets == 1
        count(queue.call)
        await front.negotiate()
        again = front.queue(0, 8)
        again.call, queue.call = queue.call, again.call
        again.err, queue.err = queue.err, again.err
        await front.tell(Request.SET_VRING_NUM, VringState(0, 8))
        await front.tell(Request.SET_VRING_BASE, VringState(0, 0))
        await front.tell(Request.SET_VRING_ADDR, again.driver.address(0))
        await front.tell(Request.SET_VRING_KICK, VringFd(0), [again.kick.fileno()])
        await front.tell(Request.SET_VRING_ENABLE, VringState(0, 1))
        assert await again.ask([b"a"], [1]) == b"A"
        again.driver.publish(4000)
        again.kick.signal()
        assert await again.err.read() == 1
        queue.close()


@pytest.mark.parametrize("flags", [0, 1], ids=["plain", "need_reply"])
async def test_the_forms_of_get_vring_base(path, flags):
    """Of a ring that never ran, twice, with a number in it, of one that is disabled: one reply each, and nothing forgotten."""
    async with Backend(Upper(num_queues=2), path), FrontEnd(path) as front:
        await front.negotiate()
        await front.set_memory()

        async def base(index, number=0):
            reply = await front.ask(Request.GET_VRING_BASE, VringState(index, number), need_reply=bool(flags))
            assert reply.payload.index == index
            return reply.payload.num

        assert await base(1) == 0
        queue = await front.start(0, 8)
        assert await queue.ask([b"a"], [1]) == b"A"
        await front.tell(Request.SET_VRING_ENABLE, VringState(0, 0))
        assert await base(0, 1) == 1
        assert await base(0) == 1
        assert await front.number(Request.GET_QUEUE_NUM) == 2  # no acknowledgement came on top
        # A guest that was paused goes on with the same ring: what QEMU says for it, less what has not changed.
        queue.put([b"b"], [1])
        await front.tell(Request.SET_VRING_KICK, VringFd(0), [queue.kick.fileno()])
        await front.tell(Request.SET_VRING_ENABLE, VringState(0, 1))
        assert [used.data for used in await queue.answers()] == [b"B"]


# -- the driver's status -------------------------------------------------------------------------------------------------


async def test_the_drivers_status_is_kept_and_zero_stops_the_rings(path):
    device = Upper()
    async with Backend(device, path) as backend, FrontEnd(path) as front:
        assert await front.number(Request.GET_STATUS) == 0
        await front.negotiate(protocol_features=PROTOCOL_FEATURES | ProtocolFeature.STATUS)
        await front.tell(Request.SET_STATUS, U64(0x0B))
        await front.set_memory()
        queue = await front.start(0, 8)
        await front.tell(Request.SET_STATUS, U64(0x0F))
        assert await front.number(Request.GET_STATUS) == 0x0F
        assert await queue.ask([b"a"], [1]) == b"A"
        await front.tell(Request.SET_STATUS, U64(0))
        queue.put([b"b"], [1])
        assert await front.number(Request.GET_STATUS) == 0
        assert backend.statistics().queues[0].requests == 1
        assert device.resets == 0  # the guest may only be paused
        await queue.start(base=1)
        assert [used.data for used in await queue.answers()] == [b"B"]


async def test_zero_waits_for_what_is_under_way(path):
    device = Gated()
    async with Backend(device, path), FrontEnd(path) as front:
        queue = await front.start(0, 8)
        queue.put([b"slow"], [8])
        while not device.gates:
            await asyncio.sleep(0)
        setting = asyncio.ensure_future(front.status(Request.SET_STATUS, U64(0)))
        await turns()
        assert not setting.done()
        device.open(b"slow")
        assert await setting == 0


async def test_a_reset_clears_the_status(path):
    async with Backend(Upper(), path) as backend:
        for _ in range(2):
            async with FrontEnd(path) as front:
                assert await front.number(Request.GET_STATUS) == 0
                await front.negotiate()
                await front.tell(Request.SET_STATUS, U64(7))
                await front.tell(Request.RESET_DEVICE)
                assert await front.number(Request.GET_STATUS) == 0
                await front.negotiate()
                await front.tell(Request.SET_STATUS, U64(7))
        assert backend.statistics().sessions == 2


# -- fds -----------------------------------------------------------------------------------------------------------------


async def test_no_refusal_keeps_an_fd(path):
    def open_fds():
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    async with Backend(Upper(), path), FrontEnd(path) as front:
        await front.start(0, 8)
        with open("/dev/null") as null, EventFd() as eventfd:  # noqa: PTH123
            before = open_fds()
            for fd in (null.fileno(), eventfd.fileno()):
                for message in (
                    (Request.SET_VRING_KICK, VringFd(9)),
                    (Request.SET_VRING_CALL, VringFd(9)),
                    (Request.SET_VRING_ERR, VringFd(9)),
                    (Request.SET_BACKEND_REQ_FD, None),
                    (Request.SET_INFLIGHT_FD, Inflight(4096, 0, 1, 8)),
                    (Request.ADD_MEM_REG, SingleRegion(front.ram.region)),
                    (Request.SET_MEM_TABLE, MemoryTable((front.ram.region,))),
                ):
                    assert await front.status(*message, [fd]) == 1
                    assert open_fds() == before
