"""Front-ends and guests gone wrong: each gets what it deserves, and the next one is served as ever."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from pathlib import Path

import pytest

from aioirqfd import EventFd
from aioirqfd.testing import RecordingTracer
from aioirqfd.vhost_user import Backend
from aioirqfd.vhost_user.messages import (
    U64,
    Inflight,
    MemoryRegion,
    MemoryTable,
    Message,
    Request,
    VringAddr,
    VringFd,
    VringState,
)
from aioirqfd.vhost_user.protocol import encode
from aioirqfd.virtio.ring import INDIRECT, NEXT, WRITE
from tests.vhost_user.devices import Gated, Upper
from tests.vhost_user.frontend import BASE, FEATURES, FrontEnd


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return "socket"


async def works(path):
    """The back-end serves an honest front-end."""
    async with FrontEnd(path) as front:
        queue = await front.start()
        assert await queue.ask([b"fine"], [8]) == b"FINE"


def reasons(tracer, event):
    return [fields["reason"] for fields in tracer.of(event) if fields["reason"]]


# -- messages ------------------------------------------------------------------------------------------------------------


def frame(request, payload=b"", flags=1, size=None):
    return struct.pack("=III", request, flags, len(payload) if size is None else size) + payload


BROKEN = {
    "version": frame(1, flags=2),
    "flags": frame(1, flags=0x11),
    "a reply": frame(1, flags=5),
    "size": frame(Request.SET_FEATURES, bytes(7)),
    "huge": frame(Request.SET_MEM_TABLE, size=0xFFFFFFFF),
    "huge unknown": frame(999, size=0x7FFFFFFF),
    "regions": frame(Request.SET_MEM_TABLE, struct.pack("=II", 9, 0)),
    "features not offered": frame(Request.SET_FEATURES, struct.pack("=Q", 1 << 34)),
    "protocol features not offered": frame(Request.SET_PROTOCOL_FEATURES, struct.pack("=Q", 1 << 8)),
    "base of no queue": frame(Request.GET_VRING_BASE, struct.pack("=II", 77, 0)),
    "kick without its fd": frame(Request.SET_VRING_KICK, struct.pack("=Q", 0)),
    "inflight without its fd": frame(Request.SET_INFLIGHT_FD, bytes(24)),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
async def test_a_message_that_breaks_the_protocol_ends_the_connection(path, data):
    tracer = RecordingTracer()
    async with Backend(Upper(), path, tracer=tracer):
        async with FrontEnd(path) as front:
            await asyncio.get_running_loop().sock_sendall(front.sock, data)
            assert await front.closed()
        await works(path)
    assert len(reasons(tracer, "frontend_disconnected")) == 1


@pytest.mark.parametrize(
    ("request_", "count"),
    [(Request.SET_OWNER, 1), (Request.SET_VRING_CALL, 2), (Request.SET_VRING_CALL, 8), (Request.SET_VRING_CALL, 30)],
)
async def test_too_many_fds_end_the_connection_and_none_stays_open(path, request_, count):
    async with Backend(Upper(), path):
        async with FrontEnd(path) as front:
            with EventFd() as eventfd:
                payload = bytes(8) if request_ is Request.SET_VRING_CALL else b""
                socket.send_fds(front.sock, [frame(request_, payload)], [eventfd.fileno()] * count)
            assert await front.closed()
        await works(path)


SESSION = (
    Message(Request.GET_FEATURES),
    Message(Request.SET_PROTOCOL_FEATURES, U64(9)),
    Message(Request.SET_FEATURES, U64(int(FEATURES))),
    Message(Request.SET_VRING_NUM, VringState(0, 8)),
    Message(Request.SET_VRING_KICK, VringFd(0), (0,)),
)


@pytest.mark.parametrize("message", SESSION, ids=lambda message: message.request.name)
async def test_messages_cut_anywhere_end_the_connection_and_leave_no_fd(path, message):
    data = encode(message)
    async with Backend(Upper(), path):
        for cut in range(1, len(data)):
            async with FrontEnd(path) as front:
                with EventFd() as eventfd:
                    fds = [eventfd.fileno()] if message.fds else []
                    socket.send_fds(front.sock, [data[:cut]], fds)
                front.sock.shutdown(socket.SHUT_WR)
                assert await front.closed()
        await works(path)


async def test_messages_in_single_bytes_are_whole_all_the_same(path):
    async with Backend(Upper(), path), FrontEnd(path) as front:
        for byte in encode(Message(Request.GET_QUEUE_NUM)):
            front.sock.send(bytes([byte]))
            await asyncio.sleep(0)
        reply = await front.connection.receive()
        assert reply is not None
        assert reply.payload == U64(1)


async def test_a_front_end_that_reads_no_replies_holds_up_nobody_but_itself(path):
    async with Backend(Upper(), path) as backend:
        async with FrontEnd(path) as front:
            data = encode(Message(Request.GET_FEATURES))
            try:
                while True:
                    front.sock.send(data * 100)
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
            except BlockingIOError:
                pass
            await asyncio.wait_for(asyncio.sleep(0), 60)
        await works(path)
        assert backend.statistics().sessions == 2


async def refused(front, request, payload=None, fds=()):
    return await front.status(request, payload, fds) == 1


async def test_what_cannot_be_is_refused_and_changes_nothing(path):
    tracer = RecordingTracer()
    async with Backend(Upper(), path, tracer=tracer), FrontEnd(path) as front:
        queue = await front.start()
        running = queue.driver.address(0)
        elsewhere = VringAddr(0, 0, running.descriptor + 4096, running.used, running.available)
        with Path("/dev/null").open() as null, EventFd() as spare:
            bad = [
                (Request.SET_VRING_NUM, VringState(0, 8)),
                (Request.SET_VRING_BASE, VringState(0, 3)),
                (Request.SET_VRING_ADDR, elsewhere),
                (Request.SET_FEATURES, U64(int(FEATURES) & ~(1 << 29))),
                (Request.SET_VRING_NUM, VringState(1, 8)),
                (Request.SET_VRING_ENABLE, VringState(0xFFFFFFFF, 1)),
                (Request.SET_VRING_KICK, VringFd(200), [spare.fileno()]),
                (Request.SET_VRING_KICK, VringFd(0), [null.fileno()]),
                (Request.SET_VRING_KICK, VringFd(0, has_fd=False)),
                (Request.SET_VRING_CALL, VringFd(0), [null.fileno()]),
                (Request.SET_VRING_CALL, VringFd(1), [spare.fileno()]),
                (Request.SET_VRING_ERR, VringFd(0), [null.fileno()]),
                (Request.SET_MEM_TABLE, MemoryTable((front.ram.region,)), [null.fileno()]),
                (Request.SET_MEM_TABLE, MemoryTable((MemoryRegion(0, 1 << 40, 0, 0),)), [front.ram.fileno()]),
                (Request.SET_MEM_TABLE, MemoryTable((front.ram.region,) * 2), [front.ram.fileno()] * 2),
                (Request.SET_INFLIGHT_FD, Inflight(4096, 0, 1, 16), [null.fileno()]),
                (Request.SET_LOG_BASE,),
                (12345,),
            ]
            for message in bad:
                assert await refused(front, *message), message
                assert await queue.ask([b"still here"], [16]) == b"STILL HERE"
    assert len(reasons(tracer, "message_refused")) == len(bad)


async def test_ring_sizes_that_are_none_are_refused(path):
    async with Backend(Upper(), path), FrontEnd(path) as front:
        await front.negotiate()
        for size in (0, 3, 65536, 0xFFFFFFFF):
            assert await refused(front, Request.SET_VRING_NUM, VringState(0, size))
        assert await refused(front, Request.SET_VRING_BASE, VringState(0, 65536))


async def test_one_eventfd_for_two_kicks_is_refused(path):
    async with Backend(Upper(num_queues=2), path), FrontEnd(path) as front:
        queue = await front.start(0)
        other = await front.start(1)
        assert await refused(front, Request.SET_VRING_KICK, VringFd(1), [queue.kick.fileno()])
        assert await queue.ask([b"a"], [1]) == b"A"
        assert await other.ask([b"b"], [1]) == b"B"  # its own is still heard


async def test_the_kick_that_a_queue_has_may_be_given_again(path):
    async with Backend(Upper(), path), FrontEnd(path) as front:
        queue = await front.start()
        for _ in range(5):
            await front.tell(Request.SET_VRING_KICK, VringFd(0), [queue.kick.fileno()])
            assert await queue.ask([b"a"], [1]) == b"A"


async def test_inflight_buffers_of_impossible_shapes(path):
    async with Backend(Upper(), path), FrontEnd(path) as front:
        await front.negotiate()
        for queues, size in ((0, 0), (1, 0), (0, 16), (65535, 65535)):
            reply = await front.ask(Request.GET_INFLIGHT_FD, Inflight(0, 0, queues, size))
            assert reply.payload == Inflight(0, 0, queues, size)
            assert reply.fds == ()


# -- rings ---------------------------------------------------------------------------------------------------------------


def forged(**change):
    def make(front, driver):
        good = driver.address(0)
        values = {name: getattr(good, name) for name in ("descriptor", "used", "available")}
        values |= {name: value(front, values[name]) for name, value in change.items()}
        return VringAddr(0, 0, **values)

    return make


RINGS = {
    "outside": forged(descriptor=lambda front, old: 16),
    "misaligned": forged(descriptor=lambda front, old: old + 8),
    "over the end": forged(used=lambda front, old: front.ram.region.user_address + front.ram.region.size - 4),
    "at the end of the address space": forged(available=lambda front, old: (1 << 64) - 4),
}


@pytest.mark.parametrize("make", RINGS.values(), ids=RINGS)
async def test_a_ring_that_is_not_in_memory_is_not_started(path, make):
    tracer = RecordingTracer()
    async with Backend(Upper(), path, tracer=tracer) as backend:
        async with FrontEnd(path) as front:
            await front.negotiate()
            await front.set_memory()
            queue = front.queue(0, 8)
            await front.tell(Request.SET_VRING_ERR, VringFd(0), [queue.err.fileno()])
            await queue.start(enable=False, address=make(front, queue.driver))
            assert await refused(front, Request.SET_VRING_ENABLE, VringState(0, 1))
            assert await queue.err.read() == 1
            assert await refused(front, Request.SET_VRING_ENABLE, VringState(0, 1))
            assert backend.statistics().queues[0].starts == 0
            assert len(reasons(tracer, "vring_stopped")) == 1
            # Set up properly, it starts.
            await front.tell(Request.SET_VRING_ADDR, queue.driver.address(0))
            assert await queue.ask([b"a"], [1]) == b"A"
        await works(path)


def loop_of_descriptors(driver):
    driver.descriptor(0, BASE, 16, NEXT, 1)
    driver.descriptor(1, BASE, 16, NEXT, 0)


GUESTS = {
    "looped chain": loop_of_descriptors,
    "address outside": lambda driver: driver.descriptor(0, 16, 16, WRITE),
    "over the end": lambda driver: driver.descriptor(0, BASE + (1 << 20) - 8, 16, WRITE),
    "wrapping": lambda driver: driver.descriptor(0, (1 << 64) - 8, 16, WRITE),
    "no bytes": lambda driver: driver.descriptor(0, BASE, 0),
    "next out of the table": lambda driver: driver.descriptor(0, BASE, 16, NEXT, 999),
    "indirect of odd size": lambda driver: driver.descriptor(0, BASE, 17, INDIRECT),
    "indirect outside": lambda driver: driver.descriptor(0, 64, 32, INDIRECT),
}


@pytest.mark.parametrize("break_it", GUESTS.values(), ids=GUESTS)
async def test_a_guest_that_breaks_its_ring_has_it_stopped_and_others_go_on(path, break_it):
    tracer = RecordingTracer()
    async with Backend(Upper(num_queues=2), path, tracer=tracer) as backend:
        async with FrontEnd(path) as front:
            bad = await front.start(0, 8)
            good = await front.start(1, 8)
            assert await bad.ask([b"a"], [1]) == b"A"
            ram = bytes(front.ram.view[: 1 << 19])
            break_it(bad.driver)
            bad.driver.offer(0)
            bad.driver.publish()
            bad.kick.signal()
            assert await bad.err.read() == 1
            assert len(reasons(tracer, "vring_stopped")) == 1
            for _ in range(20):
                bad.kick.signal()
                assert await good.ask([b"b"], [1]) == b"B"
            assert backend.statistics().queues[0].answers == 1
            assert len(ram) == 1 << 19
            base = await bad.stop()
            # The front-end may set it up again.
            fresh = front.queue(0, 8)
            await fresh.start(base=0)
            assert await fresh.ask([b"c"], [1]) == b"C"
            assert base in {1, 2}
            bad.close()
        await works(path)


@pytest.mark.parametrize("ahead", [9, 4000, 65535])
async def test_an_available_index_that_runs_ahead_stops_the_ring(path, ahead):
    async with Backend(Upper(), path), FrontEnd(path) as front:
        queue = await front.start(0, 8)
        queue.driver.publish(ahead)
        queue.kick.signal()
        assert await queue.err.read() == 1


async def test_a_guest_that_breaks_its_ring_under_load_voids_what_is_under_way(path):
    device = Gated()
    async with Backend(device, path) as backend, FrontEnd(path) as front:
        queue = await front.start(0, 8)
        queue.put([b"slow"], [8])
        while not device.gates:
            await asyncio.sleep(0)
        queue.driver.publish(4000)
        queue.kick.signal()
        assert await queue.err.read() == 1
        device.open(b"slow")
        await queue.stop()
        assert queue.driver.collect() == []
        assert backend.statistics().queues[0].answers == 0


async def test_a_broken_ring_has_stopped_only_when_its_requests_have_ended(path):
    device = Gated()
    async with Backend(device, path), FrontEnd(path) as front:
        queue = await front.start(0, 8)
        queue.put([b"slow"], [8])
        while not device.gates:
            await asyncio.sleep(0)
        queue.driver.publish(4000)
        queue.kick.signal()
        assert await queue.err.read() == 1
        # Nor is it set up anew before.
        with EventFd() as fresh:
            assert await refused(front, Request.SET_VRING_KICK, VringFd(0), [fresh.fileno()])
        assert await refused(front, Request.SET_VRING_ADDR, queue.driver.address(0))
        stopping = asyncio.ensure_future(queue.stop())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not stopping.done()
        device.open(b"slow")
        await stopping
        again = front.queue(0, 8)
        await again.start()
        again.put([b"new"], [8])
        while not device.gates:
            await asyncio.sleep(0)
        device.open(b"new")
        assert [used.data for used in await again.answers()] == [b"NEW"]
        queue.close()


async def test_memory_that_goes_away_stops_the_rings_in_it(path):
    tracer = RecordingTracer()
    async with Backend(Upper(), path, tracer=tracer), FrontEnd(path) as front:
        queue = await front.start(0, 8)
        assert await refused(front, Request.SET_MEM_TABLE, MemoryTable(()))
        assert await queue.err.read() == 1
        assert len(reasons(tracer, "vring_stopped")) == 1
        await front.set_memory()
        queue.close()
        again = front.queue(0, 8)
        await again.start()
        assert await again.ask([b"a"], [1]) == b"A"


async def test_a_blocking_call_eventfd_at_its_top_does_not_block(path):
    async with Backend(Upper(), path), FrontEnd(path) as front:
        queue = await front.start()
        fd = os.eventfd(0)  # blocking
        try:
            os.eventfd_write(fd, 2**64 - 2)
            await front.tell(Request.SET_VRING_CALL, VringFd(0), [fd])
            queue.put([b"a"], [1])
            while not queue.driver.collect():
                await asyncio.sleep(0)
            await front.tell(Request.SET_OWNER)
        finally:
            os.close(fd)
