"""A back-end over the real socket, with a test that plays QEMU."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest

from aioirqfd import EventFd, WouldBlock
from aioirqfd.testing import RecordingTracer
from aioirqfd.vhost_user import Backend
from aioirqfd.vhost_user.driver import DriverMemory, DriverQueue
from aioirqfd.vhost_user.features import ProtocolFeature
from aioirqfd.vhost_user.messages import (
    U64,
    ConfigSpace,
    MemoryRegion,
    MemoryTable,
    Request,
    SingleRegion,
    VringFd,
    VringState,
)
from aioirqfd.virtio import Chain, Device
from aioirqfd.virtio.features import VirtioFeature
from aioirqfd.virtio.requests import EACH, TURN
from aioirqfd.virtio.ring import NEXT, WRITE
from tests.vhost_user.devices import Gated, Receiver, Upper
from tests.vhost_user.frontend import FEATURES, PROTOCOL_FEATURES, FrontEnd


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the whole path may be too long for a socket
    return "socket"


def count(eventfd):
    try:
        return eventfd.read_nowait()
    except WouldBlock:
        return 0


async def turns(number=5):
    for _ in range(number):
        await asyncio.sleep(0)


async def test_a_session_in_qemus_order(path):
    """The messages of a guest with a random number generator, from start to shutdown."""
    async with Backend(Upper(), path) as backend, FrontEnd(path) as front:
        offered = await front.number(Request.GET_FEATURES)
        assert offered == int(FEATURES)
        known = await front.number(Request.GET_PROTOCOL_FEATURES)
        assert known == int(
            ProtocolFeature.MQ
            | ProtocolFeature.REPLY_ACK
            | ProtocolFeature.RESET_DEVICE
            | ProtocolFeature.INFLIGHT_SHMFD
            | ProtocolFeature.CONFIGURE_MEM_SLOTS
            | ProtocolFeature.STATUS
        )
        await front.send(Request.SET_PROTOCOL_FEATURES, U64(0x9))
        assert await front.number(Request.GET_QUEUE_NUM) == 1
        await front.send(Request.SET_OWNER)
        await front.number(Request.GET_FEATURES)
        with EventFd() as masked:
            await front.send(Request.SET_VRING_CALL, VringFd(0), [masked.fileno()])
            queue = front.queue(0, 16)
            await front.send(Request.SET_VRING_ERR, VringFd(0), [queue.err.fileno()])
            await front.send(Request.SET_VRING_CALL, VringFd(0), [queue.call.fileno()])
            await front.send(Request.SET_FEATURES, U64(0x170000000))
            await front.send(Request.SET_MEM_TABLE, MemoryTable((front.ram.region,)), [front.ram.fileno()])
            await front.send(Request.SET_VRING_NUM, VringState(0, 16))
            await front.send(Request.SET_VRING_BASE, VringState(0, 0))
            await front.send(Request.SET_VRING_ADDR, queue.driver.address(0))
            await front.send(Request.SET_VRING_KICK, VringFd(0), [queue.kick.fileno()])
            await front.send(Request.SET_VRING_ENABLE, VringState(0, 1))
            await front.send(Request.SET_VRING_CALL, VringFd(0), [queue.call.fileno()])
            assert await queue.ask([b"hello"], [16]) == b"HELLO"
            await front.send(Request.SET_VRING_ENABLE, VringState(0, 0))
            assert await queue.stop() == 1
            await front.send(Request.SET_VRING_CALL, VringFd(0), [masked.fileno()])
            await front.tell(Request.SET_OWNER)
            assert count(masked) == 2  # each new call eventfd is rung once
        (done,) = backend.statistics().queues
        assert (done.starts, done.requests, done.answers, done.calls) == (1, 1, 1, 1)


async def test_kicks_requests_and_calls_are_exact_one_at_a_time(path):
    async with Backend(Upper(), path) as backend, FrontEnd(path) as front:
        queue = await front.start()
        await queue.call.read()  # the one for the new eventfd
        for number in range(500):
            text = b"request %d" % number
            assert await queue.ask([text], [32]) == text.upper()
        assert (queue.kicks, queue.calls) == (500, 500)
        (done,) = backend.statistics().queues
        assert (done.kicks, done.requests, done.answers, done.calls, done.suppressed) == (500, 500, 500, 500, 0)
        assert (done.failed, done.resubmitted) == (0, 0)


@pytest.mark.parametrize("event_idx", [True, False])
async def test_a_batch_has_one_kick_and_one_call(path, event_idx):
    features = FEATURES if event_idx else FEATURES & ~VirtioFeature.EVENT_IDX
    async with Backend(Upper(), path) as backend, FrontEnd(path) as front:
        await front.negotiate(features)
        await front.set_memory()
        queue = front.queue(0, 64)
        await queue.start()
        await queue.call.read()
        for _ in range(50):
            for number in range(16):
                queue.driver.request([b"%d" % number], [8])
            queue.driver.enable_calls()
            queue.publish()
            queue.calls += await queue.call.read()
            assert [used.data for used in queue.driver.collect()] == [b"%d" % number for number in range(16)]
        (done,) = backend.statistics().queues
        assert (queue.kicks, queue.calls) == (50, 50)
        assert (done.requests, done.answers, done.calls) == (800, 800, 50)


async def test_calls_are_suppressed_when_the_driver_does_not_want_them(path):
    async with Backend(Upper(), path) as backend, FrontEnd(path) as front:
        queue = await front.start()
        await queue.ask([b"x"], [1])
        count(queue.call)
        for _ in range(8):
            queue.driver.disable_calls()
            queue.put([b"y"], [1])
            while not queue.driver.collect():
                await asyncio.sleep(0)
        await turns()
        assert count(queue.call) == 0
        assert backend.statistics().queues[0].suppressed == 8


async def test_what_was_put_in_before_the_start_needs_no_kick(path):
    async with Backend(Upper(), path), FrontEnd(path) as front:
        await front.negotiate()
        await front.set_memory()
        queue = front.queue(0, 8)
        queue.driver.request([b"early"], [8])
        await queue.start()
        (used,) = await queue.answers()
        assert used.data == b"EARLY"


async def test_a_kick_while_the_queue_is_not_enabled_waits_for_it(path):
    async with Backend(Upper(), path) as backend, FrontEnd(path) as front:
        await front.negotiate()
        await front.set_memory()
        queue = front.queue(0, 8)
        await queue.start(enable=False)
        queue.put([b"a"], [1])
        await front.tell(Request.SET_OWNER)
        assert backend.statistics().queues[0].requests == 0
        await front.tell(Request.SET_VRING_ENABLE, VringState(0, 1))
        assert (await queue.answers())[0].data == b"A"
        await front.tell(Request.SET_VRING_ENABLE, VringState(0, 0))
        queue.put([b"b"], [1])
        await front.tell(Request.SET_OWNER)
        assert backend.statistics().queues[0].requests == 1
        await front.tell(Request.SET_VRING_ENABLE, VringState(0, 1))
        assert (await queue.answers())[0].data == b"B"


async def test_a_ring_that_is_stopped_and_started_anew_loses_nothing(path):
    """SeaBIOS drives the disk first; then the kernel sets its own ring up, with other features."""
    async with Backend(Upper(), path) as backend, FrontEnd(path) as front:
        await front.negotiate(FEATURES & ~(VirtioFeature.EVENT_IDX | VirtioFeature.INDIRECT_DESC))
        await front.set_memory()
        bios = front.queue(0, 8)
        await bios.start()
        for _ in range(20):
            assert await bios.ask([b"bios"], [4]) == b"BIOS"
        assert await bios.stop() == 20
        bios.close()
        await front.tell(Request.SET_FEATURES, U64(int(FEATURES)))
        front.features = FEATURES
        kernel = front.queue(0, 16)
        await kernel.start()
        for _ in range(20):
            assert await kernel.ask([b"kernel"], [8]) == b"KERNEL"
        # Stopped and started on the same ring, with requests that come in between.
        base = await kernel.stop()
        assert base == 20
        kernel.put([b"between"], [8])
        await kernel.start(base=base)
        assert (await kernel.answers())[0].data == b"BETWEEN"
        (done,) = backend.statistics().queues
        assert (done.starts, done.requests, done.answers) == (3, 41, 41)


async def test_a_stop_waits_for_what_is_under_way(path):
    device = Gated()
    async with Backend(device, path) as backend, FrontEnd(path) as front:
        queue = await front.start()
        for name in (b"a", b"b", b"c"):
            queue.put([name], [4])
        while len(device.gates) < 3:
            await asyncio.sleep(0)
        stopping = asyncio.ensure_future(queue.stop())
        device.open(b"b")
        await turns(20)
        assert not stopping.done()
        device.open(b"a", b"c")
        assert await stopping == 3
        assert sorted(used.data for used in queue.driver.collect()) == [b"A", b"B", b"C"]
        assert backend.statistics().queues[0].answers == 3


async def test_a_receive_queue_gives_its_waiting_requests_back(path):
    device = Receiver()
    async with Backend(device, path), FrontEnd(path) as front:
        queue = await front.start()
        for name in (b"a", b"b", b"c"):
            queue.put([name], [4])
        while len(device.gates) < 3:
            await asyncio.sleep(0)
        device.open(b"a")
        assert [used.data for used in await queue.answers()] == [b"A"]
        assert await queue.stop() == 1
        assert device.cancelled == [b"b", b"c"]
        device.gates.clear()
        await queue.start(base=1)
        while len(device.gates) < 2:
            await asyncio.sleep(0)
        device.open(b"b", b"c")
        assert [used.data for used in await queue.answers(2)] == [b"B", b"C"]


async def test_concurrency_is_bounded_and_the_rest_follows(path):
    device = Gated(concurrency=2)
    async with Backend(device, path), FrontEnd(path) as front:
        queue = await front.start()
        names = [b"%d" % number for number in range(6)]
        for name in names:
            queue.put([name], [4])
        got = []
        while names:
            while len(device.gates) < min(2, len(names)):
                await asyncio.sleep(0)
            await turns()
            assert list(device.gates) == names[:2]
            device.open(names.pop(0))
            got += [used.data for used in await queue.answers()]
        assert got == [b"%d" % number for number in range(6)]


async def test_requests_that_end_together_share_a_call(path):
    device = Gated()
    async with Backend(device, path) as backend, FrontEnd(path) as front:
        queue = await front.start()
        names = [b"%d" % number for number in range(8)]
        for name in names:
            queue.put([name], [4])
        while len(device.gates) < 8:
            await asyncio.sleep(0)
        queue.driver.enable_calls()
        device.open(*reversed(names))
        assert sorted(used.data for used in await queue.answers(8)) == names
        assert backend.statistics().queues[0].calls == 1


async def test_a_device_that_fails_answers_all_the_same(path):
    class Broken(Device):
        async def handle(self, request: Chain) -> int:
            what = request.read()
            if what == b"raise":
                raise KeyError(what)
            if what == b"late":
                await asyncio.sleep(0)
                raise KeyError(what)
            if what == b"cancel":
                raise asyncio.CancelledError
            return {b"much": 99, b"negative": -1, b"text": "x", b"none": None}[what]  # type: ignore[return-value]

    tracer = RecordingTracer()
    async with Backend(Broken(), path, tracer=tracer) as backend, FrontEnd(path) as front:
        queue = await front.start()
        for what in (b"raise", b"late", b"cancel", b"much", b"negative", b"text", b"none", b"unknown"):
            assert await queue.ask([what], [8]) == b""
        assert backend.statistics().queues[0].failed == 7
        assert backend.statistics().queues[0].answers == 8


async def test_several_queues_and_several_regions_of_memory(path):
    async with Backend(Upper(num_queues=4), path) as backend, FrontEnd(path) as front:
        await front.negotiate()
        with (
            DriverMemory(1 << 16, guest_address=0, user_address=0x6000_0000) as low,
            DriverMemory(1 << 16, guest_address=1 << 40, user_address=0x5000_0000, mmap_offset=8192) as high,
        ):
            await front.set_memory(high, front.ram, low)
            queues = []
            for index, ram in enumerate((low, high, front.ram, high)):
                queue = front.queue(index, driver=DriverQueue(ram, 8))
                await queue.start()
                queues.append(queue)
            for number in range(20):
                for queue in queues:
                    text = b"queue %d %d" % (queue.index, number)
                    assert await queue.ask([text[:3], text[3:]], [5, 16]) == text.upper()
        assert [queue.requests for queue in backend.statistics().queues] == [20] * 4


async def test_the_memory_table_is_replaced_under_load(path):
    device = Gated()
    async with Backend(device, path), FrontEnd(path) as front:
        queue = await front.start()
        for number in range(10):
            names = [b"%d" % number, b"again %d" % number]
            queue.put([names[0]], [16])
            while names[0] not in device.gates:
                await asyncio.sleep(0)
            # The same file, mapped once more; what is under way keeps the old mapping.
            await front.set_memory()
            queue.put([names[1]], [16])
            while names[1] not in device.gates:
                await asyncio.sleep(0)
            device.open(*names)
            assert [used.data for used in await queue.answers(2)] == [name.upper() for name in names]


async def test_regions_are_added_and_removed(path):
    async with Backend(Upper(), path), FrontEnd(path) as front:
        await front.negotiate()
        await front.tell(Request.ADD_MEM_REG, SingleRegion(front.ram.region), [front.ram.fileno()])
        queue = front.queue(0, 8)
        await queue.start()
        assert await queue.ask([b"a"], [1]) == b"A"
        await queue.stop()
        await front.tell(Request.REM_MEM_REG, SingleRegion(front.ram.region))
        assert await front.status(Request.REM_MEM_REG, SingleRegion(front.ram.region)) == 1


async def test_a_region_may_be_changed_under_a_running_ring_piece_by_piece(path):
    """As a front-end with CONFIGURE_MEM_SLOTS does it: there is a moment in which the ring is nowhere."""
    async with Backend(Upper(), path) as backend, FrontEnd(path) as front:
        assert await front.number(Request.GET_MAX_MEM_SLOTS) == 509
        queue = await front.start()
        for _ in range(3):
            await front.tell(Request.REM_MEM_REG, SingleRegion(front.ram.region))
            assert await queue.ask([b"a"], [1]) == b"A"
            with DriverMemory(4096, guest_address=0, user_address=0x1000) as other:
                await front.tell(Request.ADD_MEM_REG, SingleRegion(other.region), [other.fileno()])
                assert await queue.ask([b"b"], [1]) == b"B"
                await front.tell(Request.ADD_MEM_REG, SingleRegion(front.ram.region), [front.ram.fileno()])
                assert await queue.ask([b"c"], [1]) == b"C"
                await front.tell(Request.REM_MEM_REG, SingleRegion(other.region))
            assert await queue.ask([b"d"], [1]) == b"D"
        assert backend.statistics().queues[0].starts == 1


async def test_memory_may_have_as_many_pieces_as_with_the_kernels_vhost(path):
    """Each a part of one file, as a hypervisor plugs memory in; the ring is in the last one, its buffers in all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    try:
        with DriverMemory(509 * 4096, guest_address=1 << 32) as ram:
            async with Backend(Upper(), path), FrontEnd(path, memory=ram) as front:
                assert await front.number(Request.GET_MAX_MEM_SLOTS) == 509
                await front.negotiate(protocol_features=PROTOCOL_FEATURES | ProtocolFeature.CONFIGURE_MEM_SLOTS)
                whole = ram.region
                pieces = [
                    MemoryRegion(whole.guest_address + at, 4096, whole.user_address + at, whole.mmap_offset + at)
                    for at in range(0, 509 * 4096, 4096)
                ]
                for piece in pieces:
                    await front.tell(Request.ADD_MEM_REG, SingleRegion(piece), [ram.fileno()])
                beyond = MemoryRegion(0, 4096, 0, 0)
                assert await front.status(Request.ADD_MEM_REG, SingleRegion(beyond), [ram.fileno()]) == 1
                queue = await front.start(0, 8)
                buffers = [ram.allocate(2048) for _ in range(900)]
                assert buffers[-1] > pieces[400].guest_address
                for address in (buffers[0], buffers[450], buffers[-1]):
                    ram.at(address, 4)[:] = b"text"
                    queue.driver.descriptor(6, address, 4, NEXT, 7)
                    queue.driver.descriptor(7, address + 16, 4, WRITE)
                    queue.driver.offer(6)
                    queue.driver.publish()
                    queue.kick.signal()
                    while bytes(ram.at(address + 16, 4)) != b"TEXT":
                        await asyncio.sleep(0)
                for piece in pieces[1:]:
                    await front.tell(Request.REM_MEM_REG, SingleRegion(piece))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_configuration_space(path):
    device = Upper(config=b"0123456789")
    async with Backend(device, path), FrontEnd(path) as front:
        await front.negotiate(protocol_features=ProtocolFeature.CONFIG | ProtocolFeature.REPLY_ACK)
        reply = await front.ask(Request.GET_CONFIG, ConfigSpace(2, 0, bytes(4)))
        assert reply.payload == ConfigSpace(2, 0, b"2345")
        # What a front-end knows and the device has not reads as zero.
        reply = await front.ask(Request.GET_CONFIG, ConfigSpace(8, 0, bytes(4)))
        assert reply.payload == ConfigSpace(8, 0, b"89\0\0")
        await front.tell(Request.SET_CONFIG, ConfigSpace(1, 0, b"xy"))
        assert device.config == b"0xy3456789"
        assert await front.status(Request.SET_CONFIG, ConfigSpace(9, 0, b"xy")) == 1


async def test_reset_stops_everything_and_the_device_hears_of_it(path):
    device = Upper()
    async with Backend(device, path), FrontEnd(path) as front:
        queue = await front.start()
        assert await queue.ask([b"a"], [1]) == b"A"
        assert device.driver_features == int(FEATURES)
        await front.tell(Request.RESET_DEVICE)
        assert (device.resets, device.driver_features) == (1, 0)
        queue.close()
        await front.negotiate()
        again = front.queue(0, 8)
        await again.start()
        assert await again.ask([b"b"], [1]) == b"B"


async def test_front_ends_come_one_after_the_other(path):
    device = Upper()
    async with Backend(device, path) as backend:
        with DriverMemory(1 << 18, guest_address=1 << 32) as ram:
            for number in range(3):
                async with FrontEnd(path, memory=ram) as front, FrontEnd(path) as waiting:
                    queue = await front.start()
                    assert await queue.ask([b"first"], [8]) == b"FIRST"
                    asking = asyncio.ensure_future(waiting.number(Request.GET_QUEUE_NUM))
                    await turns()
                    assert not asking.done()
                    front.connection.close()
                    assert await asking == 1
                assert backend.statistics().sessions == 2 * number + 2
        assert backend.statistics().queues[0].starts == 3


class Threaded(Gated):
    """Has something to wait for when it is cancelled, as if a thread used the request's buffers."""

    async def handle(self, request: Chain) -> int:
        try:
            return await super().handle(request)
        except asyncio.CancelledError:
            gate = self.gates[b"thread"] = asyncio.get_running_loop().create_future()
            await gate
            raise


async def test_the_next_front_end_waits_for_the_last_ones_requests(path):
    device = Threaded()
    async with Backend(device, path) as backend:
        async with FrontEnd(path) as front:
            queue = await front.start()
            queue.put([b"slow"], [8])
            while not device.gates:
                await asyncio.sleep(0)
        async with FrontEnd(path) as front:
            asking = asyncio.ensure_future(front.number(Request.GET_QUEUE_NUM))
            while not device.cancelled:
                await asyncio.sleep(0)
            await turns(20)
            assert not asking.done()
            device.open(b"thread")
            assert await asking == 1
        assert backend.statistics().queues[0].answers == 0  # there was nobody to be answered


@pytest.mark.parametrize("more", [False, True], ids=["at once", "with a message behind it"])
@pytest.mark.parametrize("request_", [Request.GET_VRING_BASE, Request.RESET_DEVICE], ids=lambda value: value.name)
async def test_a_front_end_that_dies_while_its_queues_stop_ends_what_they_wait_for(path, request_, more):
    device = Gated(num_queues=2)
    async with Backend(device, path) as backend:
        async with FrontEnd(path) as front:
            for index in range(2):
                queue = await front.start(index)
                queue.put([b"never %d" % index], [8])
            while len(device.gates) < 2:
                await asyncio.sleep(0)
            await front.send(request_, VringState(0, 0) if request_ is Request.GET_VRING_BASE else None)
            if more:
                await front.send(Request.SET_OWNER)
            await turns(20)
            assert device.cancelled == []
        async with FrontEnd(path) as front:
            assert await front.number(Request.GET_QUEUE_NUM) == 2
            assert sorted(device.cancelled) == [b"never 0", b"never 1"]
            assert [queue.answers for queue in backend.statistics().queues] == [0, 0]


async def test_a_request_is_cancelled_once(path):
    """By a queue that stops, then by a back-end that closes meanwhile: what it waits for since is not given up."""
    device = Threaded()
    device.receive_queues = (0,)
    backend = await Backend(device, path).__aenter__()
    async with FrontEnd(path) as front:
        queue = await front.start()
        queue.put([b"slow"], [8])
        while not device.gates:
            await asyncio.sleep(0)
        await front.send(Request.GET_VRING_BASE, VringState(0, 0))
        while b"thread" not in device.gates:
            await asyncio.sleep(0)
        closing = asyncio.ensure_future(backend.__aexit__(None, None, None))
        await turns(20)
        assert not closing.done()
        device.open(b"thread")
        await closing


async def test_closing_cancels_what_is_under_way(path):
    device = Gated()
    async with Backend(device, path):
        front = FrontEnd(path)
        await front.__aenter__()
        queue = await front.start()
        queue.put([b"never"], [8])
        while not device.gates:
            await asyncio.sleep(0)
    assert device.cancelled == [b"never"]
    assert await front.closed()
    await front.__aexit__()


async def test_a_dead_sockets_file_is_taken_over_and_a_live_ones_is_not(path):
    async with Backend(Upper(), path):
        with pytest.raises(OSError, match="in use") as caught:
            async with Backend(Upper(), path):
                pass
        assert caught.value.filename == path
    assert not Path(path).exists()
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(path)
    dead.close()
    async with Backend(Upper(), path), FrontEnd(path) as front:
        assert await front.number(Request.GET_QUEUE_NUM) == 1
    with Path(path).open("w"), pytest.raises(OSError, match="in use"):
        async with Backend(Upper(), path):
            pass


async def test_a_back_end_without_a_free_fd_accepts_when_there_is_one(path, monkeypatch):
    monkeypatch.setattr("aioirqfd.vhost_user.backend.ACCEPT_AGAIN", 0)
    tracer = RecordingTracer()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with Backend(Upper(), path, tracer=tracer) as backend:
        with socket.socket(socket.AF_UNIX) as sock, socket.socket() as lowest:
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest.fileno(), hard))
            try:
                sock.connect(path)
                while len(tracer.of("accept_failed")) < 3:
                    await asyncio.sleep(0)
                assert backend.statistics().sessions == 0
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            while not backend.statistics().sessions:
                await asyncio.sleep(0)


# -- the call eventfd ----------------------------------------------------------------------------------------------------


async def test_a_masked_vector_keeps_its_interrupt_until_it_is_unmasked(path):
    async with Backend(Upper(), path), FrontEnd(path) as front:
        queue = await front.start()
        await queue.call.read()
        await front.tell(Request.SET_VRING_CALL, VringFd(0, has_fd=False))
        queue.driver.enable_calls()
        queue.put([b"a"], [1])
        while not queue.driver.collect():
            await asyncio.sleep(0)
        await turns()
        assert count(queue.call) == 0
        await front.tell(Request.SET_VRING_CALL, VringFd(0), [queue.call.fileno()])
        assert await queue.call.read() == 1


async def test_no_interrupt_is_lost_while_the_call_eventfd_is_swapped(path):
    """The front-end masks by handing over another eventfd, looks at it, and unmasks before the back-end has written it."""
    rounds = 200
    async with Backend(Upper(), path), FrontEnd(path) as front, asyncio.timeout(60):
        queue = await front.start()
        await queue.call.read()
        with EventFd() as masked:
            for _ in range(rounds):
                queue.driver.enable_calls()
                # QEMU, in one breath: mask, see that nothing is pending, unmask. No reply tells it where the back-end is.
                await front.send(Request.SET_VRING_CALL, VringFd(0), [masked.fileno()])
                queue.put([b"x"], [1])
                while not queue.driver.collect():
                    await asyncio.sleep(0)
                    # The front-end does not look at it any more: what is written there is lost.
                await front.send(Request.SET_VRING_CALL, VringFd(0), [queue.call.fileno()])
                await queue.call.read()  # for ever, unless the new eventfd is rung


async def test_swapping_the_kick_eventfd_loses_no_kick(path):
    async with Backend(Upper(), path), FrontEnd(path) as front:
        queue = await front.start()
        for _ in range(20):
            old, queue.kick = queue.kick, EventFd()
            await front.tell(Request.SET_VRING_KICK, VringFd(0), [queue.kick.fileno()])
            old.close()
            assert await queue.ask([b"a"], [1]) == b"A"


async def test_a_request_that_came_before_the_kick_eventfd_was_swapped_needs_no_other_kick(path):
    """The kick was written to the old one, at a moment when nobody looks at it any more."""
    async with Backend(Upper(), path), FrontEnd(path) as front:
        queue = await front.start()
        queue.driver.request([b"a"], [1])
        with EventFd() as fresh:
            await front.tell(Request.SET_VRING_KICK, VringFd(0), [fresh.fileno()])
            assert (await queue.answers())[0].data == b"A"


# -- order ---------------------------------------------------------------------------------------------------------------


class Counting(Device):
    """Answers with the number of the request; the first one waits."""

    def __init__(self, concurrency=1):
        self.concurrency = concurrency
        self.begun = 0
        self.gate = asyncio.get_running_loop().create_future()

    async def handle(self, request: Chain) -> int:
        self.begun += 1
        number = self.begun
        if number == 1:
            await self.gate
        return request.write(b"%d" % number)


@pytest.mark.parametrize("late", range(4))
async def test_a_kick_does_not_let_a_new_request_overtake_one_that_has_ended(path, late):
    """However many turns after the end of the first one it comes."""
    loop = asyncio.get_running_loop()
    device = Counting()
    async with Backend(device, path), FrontEnd(path) as front:
        queue = await front.start(0, 8)
        queue.put([], [8])
        while not device.begun:
            await asyncio.sleep(0)

        def kick(turns):
            if turns:
                loop.call_soon(kick, turns - 1)
            else:
                queue.driver.request([], [8])
                os.eventfd_write(queue.kick.fileno(), 1)

        loop.call_soon(device.gate.set_result, None)
        loop.call_soon(kick, late)
        assert [used.data for used in await queue.answers(2)] == [b"1", b"2"]


async def test_a_receive_queue_answers_in_order(path):
    device = Receiver()
    async with Backend(device, path) as backend, FrontEnd(path) as front:
        queue = await front.start()
        heads = [queue.put([name], [4]) for name in (b"a", b"b", b"c", b"d")]
        while len(device.gates) < 4:
            await asyncio.sleep(0)
        device.open(b"b", b"d")
        await turns(20)
        assert queue.driver.collect() == []
        device.open(b"a")
        assert [used.head for used in await queue.answers(2)] == heads[:2]
        device.open(b"c")
        assert [used.head for used in await queue.answers(2)] == heads[2:]
        assert backend.statistics().queues[0].answers == 4


async def test_a_receive_queue_that_stops_takes_no_answer_for_an_older_requests(path):
    """What was answered without waiting, while older requests wait, stays with the driver along with them."""

    class Late(Receiver):
        async def handle(self, request: Chain) -> int:
            if request.read() == b"now":
                return request.write(b"NOW")
            return await super().handle(request)

    device = Late()
    async with Backend(device, path), FrontEnd(path) as front:
        queue = await front.start()
        heads = [queue.put([name], [4]) for name in (b"a", b"now", b"b")]
        while len(device.gates) < 2:
            await asyncio.sleep(0)
        assert await queue.stop() == 0
        assert queue.driver.collect() == []
        device.gates.clear()
        await queue.start(base=0)
        while len(device.gates) < 2:
            await asyncio.sleep(0)
        device.open(b"b", b"a")
        answers = await queue.answers(3)
        assert [(used.head, used.data) for used in answers] == list(zip(heads, [b"A", b"NOW", b"B"], strict=True))


# -- one turn of the loop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("buffers", [1, 24, 504])
async def test_a_queue_does_so_much_work_in_a_turn_and_no_more(path, waits, buffers):
    """Requests that share their descriptors are many and long; others are to be served meanwhile."""
    turn = 0

    class Noting(Device):
        concurrency = 512
        turns: ClassVar[list[int]] = []

        async def handle(self, request: Chain) -> None:
            assert len(request.readable) == buffers
            self.turns.append(turn)
            if waits:
                await asyncio.sleep(0)

    Noting.turns = []
    async with Backend(Noting(), path), FrontEnd(path) as front:
        queue = await front.start(0, 1024)
        heads = 500 if buffers == 1 else 400
        # Each head goes on where the last of them does, in one long tail.
        text = front.ram.allocate(8)
        for index in range(1024):
            last = 1024 - buffers + 1
            alone = buffers == 1
            following = last if index < heads else index + 1
            end = alone or index == 1023
            queue.driver.descriptor(index, text, 8, 0 if end else NEXT, 0 if end else following)
        for head in range(heads):
            queue.driver.offer(head)
        queue.driver.publish()
        queue.kick.signal()
        while len(Noting.turns) < heads:
            await asyncio.sleep(0)
            turn += 1
    each = Counter(Noting.turns)
    most = -(-TURN // (EACH + buffers))
    assert max(each.values()) == most
    assert len(each) >= heads // most


# -- the device's own interrupts -----------------------------------------------------------------------------------------


async def test_a_device_that_fails_to_interrupt_interrupts_all_the_same(path):
    class Unable(Upper):
        rung = 0

        def interrupt(self, queue, ring):
            self.rung += 1
            if self.rung % 2:
                raise KeyError(queue)
            ring()

    tracer = RecordingTracer()
    device = Unable()
    async with Backend(device, path, tracer=tracer) as backend, FrontEnd(path) as front:
        queue = await front.start()
        await queue.call.read()
        for _ in range(10):
            assert await queue.ask([b"a"], [1]) == b"A"
        assert (device.rung, queue.calls, backend.statistics().queues[0].calls) == (10, 10, 10)
    (failed,) = tracer.of("interrupt_failed")  # of five in less than a second
    assert (failed["device"], failed["queue"], failed["error"]) == (Unable.__qualname__, 0, "KeyError(0)")


@pytest.mark.parametrize("event_idx", [True, False])
async def test_a_device_that_withholds_an_interrupt_is_asked_with_the_next_batch(path, event_idx):
    """Of a driver that collects only when it is interrupted, and so names no other answer to hear of."""

    class EachThird(Upper):
        asked = 0

        def interrupt(self, queue, ring):
            del queue
            self.asked += 1
            if self.asked % 3:
                return True
            ring()
            return False

    device = EachThird()
    features = FEATURES if event_idx else FEATURES & ~VirtioFeature.EVENT_IDX
    async with Backend(device, path) as backend, FrontEnd(path) as front:
        await front.negotiate(features)
        await front.set_memory()
        queue = await front.start()
        await queue.call.read()
        for _ in range(3):
            queue.driver.enable_calls()
            for number in range(3):
                assert count(queue.call) == 0
                queue.put([b"a"], [1])
                while backend.statistics().queues[0].answers % 3 != (number + 1) % 3:
                    await asyncio.sleep(0)
            assert await queue.call.read() == 1
            assert [used.data for used in queue.driver.collect()] == [b"A"] * 3
        assert device.asked == 9


@pytest.mark.parametrize(
    ("attribute", "value", "error"),
    [
        ("num_queues", 0, ValueError),
        ("num_queues", 257, ValueError),
        ("concurrency", 0, ValueError),
        ("receive_queues", (1,), ValueError),
        ("receive_queues", (-1,), ValueError),
        ("config", bytes(257), ValueError),
        ("config", "text", TypeError),
        ("file", 5, TypeError),
        ("handle", lambda request: 0, TypeError),
    ],
)
def test_a_device_that_cannot_be_is_refused(path, attribute, value, error):
    device = Upper()
    setattr(device, attribute, value)
    with pytest.raises(error):
        Backend(device, path)
