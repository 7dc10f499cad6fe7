"""Reads and writes of a file that a queue serves by itself: the same answers, the same image and the same calls as by a handler."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aioirqfd
from aioirqfd import Interrupt, Msi
from aioirqfd.vhost_user import Backend
from aioirqfd.vhost_user.driver import DriverMemory, DriverQueue
from aioirqfd.vhost_user.features import ProtocolFeature
from aioirqfd.vhost_user.inflight import InflightBuffer
from aioirqfd.vhost_user.messages import Request, VringFd, VringState
from aioirqfd.virtio import BlockFile, virtqueue
from aioirqfd.virtio.errors import VirtqueueError
from aioirqfd.virtio.memory import GuestMemory
from aioirqfd.virtio.requests import Requests
from aioirqfd.virtio.ring import NEXT, WRITE
from aioirqfd.virtio.served import BATCH, BATCH_BYTES, CALL, COUNT, MORE, RESTED, WORK
from aioirqfd.virtio.virtqueue import VirtQueue
from examples.vhost_user_blk import Blk, Feature, Type
from tests.vhost_user.frontend import FEATURES, PROTOCOL_FEATURES, FrontEnd

# Whichever implementation is live: where the C module was built, this is of it.
native = pytest.importorskip("aioirqfd.virtio.fast._native", reason="needs the C module", exc_type=ImportError)

SECTORS = 256
BASE = 0x1_0000_0000


@pytest.fixture(autouse=True)
def _native_transfer(monkeypatch):
    monkeypatch.setattr(virtqueue, "Transfer", native.Transfer)


def header(kind, sector):
    return struct.pack("<IIQ", kind, 0, sector)


class Disk:
    """A queue on an image, and its driver."""

    def __init__(
        self,
        stack,
        path,
        *,
        size=16,
        writable=True,
        read_at_once=1 << 22,
        write_at_once=1 << 18,
        flush=True,
        **options,
    ):
        path.write_bytes(random.Random(7).randbytes(SECTORS * 512))
        self.path = path
        self.size = size
        self.fd = os.open(path, os.O_RDWR)
        stack.callback(os.close, self.fd)
        limits = {"read_at_once": read_at_once, "write_at_once": write_at_once}
        self.file = BlockFile(self.fd, SECTORS * 512, writable=writable, **limits)
        self.ram = stack.enter_context(DriverMemory(1 << 22, guest_address=BASE))
        self.driver = DriverQueue(self.ram, size, **options)
        self.features = self.driver.features | (Feature.FLUSH if flush else 0)
        self.memory = GuestMemory.map([self.ram.region], [os.dup(self.ram.fileno())])
        self.queue = self.start()

    def start(self, **options):
        self.queue = VirtQueue(
            self.memory, self.size, self.driver.address(0), features=self.features, file=self.file, **options
        )
        return self.queue

    def transfer(self):
        return self.queue.transfer() & ((1 << WORK) - 1)

    def read(self, sector, *room, **options):
        return self.driver.request([header(Type.IN, sector)], [*room, 1], **options)

    def write(self, sector, *data, **options):
        return self.driver.request([header(Type.OUT, sector), *data], [1], **options)

    @property
    def image(self):
        return self.path.read_bytes()


@pytest.fixture
def make_disk(tmp_path):
    with contextlib.ExitStack() as stack:
        yield lambda **options: Disk(stack, tmp_path / "image", **options)


@pytest.fixture(params=[False, True], ids=["direct", "indirect"])
def disk(make_disk, request):
    return make_disk(indirect=request.param)


def test_reads_and_writes(disk):
    before = disk.image
    new = random.Random(1).randbytes(1536)
    heads = [disk.read(3, 512), disk.write(5, new[:512], new[512:]), disk.read(5, 1024, 512)]
    assert disk.transfer() == 3 | RESTED | CALL
    one, two, three = disk.driver.collect()
    assert [one.head, two.head, three.head] == heads
    assert one.data == before[3 * 512 : 4 * 512] + b"\0"
    assert two.data == b"\0"
    assert three.data == new + b"\0"
    assert disk.image == before[: 5 * 512] + new + before[8 * 512 :]
    counts = disk.queue.statistics()
    assert (counts.popped, counts.pushed, counts.notified, counts.suppressed) == (3, 3, 1, 0)
    assert disk.queue.in_flight == 0
    assert disk.transfer() == 0
    assert disk.queue.pop() is None


def test_the_last_sector_and_the_whole_file(make_disk):
    disk = make_disk()
    disk.read(SECTORS - 1, 512)
    disk.read(0, SECTORS * 512)
    disk.transfer()
    last, whole = disk.driver.collect()
    assert last.data == disk.image[-512:] + b"\0"
    assert whole.data == disk.image + b"\0"


def test_the_status_byte_is_written(make_disk):
    disk = make_disk()
    head = disk.read(0, 512, publish=False)
    status, _ = disk.driver._sent[head].writable[-1]
    disk.ram.at(status, 1)[0] = 0xFF
    disk.driver.publish()
    disk.transfer()
    assert disk.ram.at(status, 1)[0] == 0


def test_writes_are_left_to_the_handler_where_the_driver_cannot_flush(make_disk):
    """They must be on the disk when they are answered, and a transfer ends in the page cache."""
    disk = make_disk(flush=False)
    before = disk.image
    disk.read(0, 512)
    disk.write(0, bytes(512))
    disk.read(1, 512)
    assert disk.transfer() == 1
    chain = disk.queue.pop()
    assert chain is not None
    assert chain.read(4) == b"\1\0\0\0"
    disk.queue.push(chain, 0)
    assert disk.transfer() & COUNT == 1
    assert disk.image == before


LEFT = {
    "a flush": ([header(Type.FLUSH, 0)], [1]),
    "an id": ([header(Type.GET_ID, 0)], [20, 1]),
    "an unknown type": ([header(77, 0)], [512, 1]),
    "beyond the end": ([header(Type.IN, SECTORS)], [512, 1]),
    "over the end": ([header(Type.IN, SECTORS - 1)], [1024, 1]),
    "far beyond": ([header(Type.IN, 2**63)], [512, 1]),
    "where 64 bits end": ([header(Type.IN, 2**64 // 512)], [512, 1]),
    "half a sector": ([header(Type.IN, 0)], [100, 1]),
    "nothing": ([header(Type.IN, 0)], [1]),
    "no room for a status": ([header(Type.IN, 0)], [512]),
    "a status within a buffer": ([header(Type.IN, 0)], [513]),
    "a header in two pieces": ([header(Type.IN, 0)[:8], header(Type.IN, 0)[8:]], [512, 1]),
    "a header with a tail": ([header(Type.IN, 0) + b"x"], [512, 1]),
    "a header that is too short": ([header(Type.IN, 0)[:15]], [512, 1]),
    "a read with data": ([header(Type.IN, 0), bytes(512)], [512, 1]),
    "nothing to write into": ([header(Type.IN, 0)], []),
    "a write beyond the end": ([header(Type.OUT, SECTORS), bytes(512)], [1]),
    "a write of half a sector": ([header(Type.OUT, 0), bytes(100)], [1]),
    "a write of nothing": ([header(Type.OUT, 0)], [1]),
    "a write with room": ([header(Type.OUT, 0), bytes(512)], [512, 1]),
    "a long write": ([header(Type.OUT, 0), bytes(4096 + 512)], [1]),
}


@pytest.mark.parametrize(("readable", "writable"), LEFT.values(), ids=LEFT)
@pytest.mark.parametrize("indirect", [False, True])
def test_what_is_left_to_the_handler_is_not_touched(make_disk, readable, writable, indirect):
    disk = make_disk(indirect=indirect, write_at_once=4096)
    disk.read(1, 512, publish=False)
    head = disk.driver.request(readable, writable)
    disk.read(2, 512)
    before = disk.image
    assert disk.transfer() == 1  # what comes before it; not at rest
    assert disk.transfer() == 0
    chain = disk.queue.pop()
    assert chain is not None
    assert chain.head == head
    assert (chain.readable_size, chain.writable_size) == (sum(map(len, readable)), sum(writable))
    assert disk.transfer() == 1 | RESTED | CALL  # what comes behind it
    disk.queue.push(chain)
    assert [used.head for used in disk.driver.collect()][2:] == [head]
    assert disk.image == before


def test_a_long_read_is_left(make_disk):
    disk = make_disk(read_at_once=2048)
    disk.read(0, 2048)
    disk.read(0, 1024, 1024, 512)
    assert disk.transfer() == 1
    assert disk.transfer() == 0
    chain = disk.queue.pop()
    assert chain is not None
    assert chain.writable_size == 2561


def test_it_tells_how_much_work_it_was(make_disk):
    disk = make_disk(size=2048)
    disk.read(0, 512)
    assert disk.queue.transfer() >> WORK == 3
    disk.read(0, 512, 512)
    disk.read(0, 8192)
    disk.write(0, bytes(4096))
    assert disk.queue.transfer() >> WORK == 4 + (3 + 2) + (3 + 1)
    # It ends with the request that makes it too much.
    for _ in range(5):
        disk.read(0, *[2] * 256, publish=False)
    disk.driver.publish()
    assert disk.queue.transfer() == (4 * 258) << WORK | 4
    assert disk.queue.transfer() == 258 << WORK | 1 | RESTED


def test_a_write_to_what_is_read_only_is_left(make_disk):
    disk = make_disk(writable=False)
    disk.write(0, bytes(512))
    assert disk.transfer() == 0
    disk.read(0, 512)
    assert disk.queue.pop() is not None
    assert disk.transfer() & COUNT == 1


def test_an_image_that_became_shorter_is_left(make_disk):
    disk = make_disk()
    os.ftruncate(disk.fd, 512)
    disk.read(0, 1024)
    assert disk.transfer() == 0
    chain = disk.queue.pop()
    assert chain is not None
    assert chain.writable_size == 1025


def test_a_file_that_is_closed_is_left(make_disk):
    disk = make_disk()
    nobody = BlockFile(2**20, 512)
    disk.file = nobody
    queue = disk.start()
    disk.read(0, 512)
    assert queue.transfer() == 0
    assert queue.pop() is not None


@pytest.mark.parametrize(
    "descriptors",
    [
        [(BASE, 16, NEXT, 0)],  # looped
        [(BASE, 16, NEXT, 16)],  # out of the table
        [(BASE - 1, 16, NEXT, 1)],  # not memory
        [
            (BASE, 16, NEXT, 1),
            (BASE + (1 << 22) - 100, 512, WRITE | NEXT, 2),
            (BASE + 600, 1, WRITE, 0),
        ],  # over its end
        [(BASE, 16, NEXT, 1), (2**64 - 256, 512, WRITE | NEXT, 2), (BASE + 600, 1, WRITE, 0)],  # over the end of all
        [(BASE, 16, NEXT, 1), (BASE, 0, WRITE | NEXT, 2), (BASE, 1, WRITE, 0)],  # of no bytes
    ],
)
def test_a_hostile_chain_is_pythons_to_stop(make_disk, descriptors):
    disk = make_disk()
    disk.ram.at(BASE, 16)[:] = header(Type.IN, 0)
    for index, descriptor in enumerate(descriptors):
        disk.driver.descriptor(index, *descriptor)
    disk.driver.offer(0)
    disk.driver.publish()
    assert disk.transfer() == 0
    with pytest.raises(VirtqueueError):
        disk.queue.pop()
    assert disk.transfer() == 0


def test_a_head_out_of_the_table_and_an_index_that_runs_ahead(make_disk):
    disk = make_disk()
    disk.driver.offer(16)
    disk.driver.publish()
    assert disk.transfer() == 0
    with pytest.raises(VirtqueueError, match="descriptor 16"):
        disk.queue.pop()
    disk.start()
    disk.driver.publish(17)
    assert disk.transfer() == 0
    with pytest.raises(VirtqueueError, match="runs 17 ahead"):
        disk.queue.pop()


def test_an_index_that_runs_ahead_meanwhile(make_disk):
    """What was good before it is published all the same."""
    disk = make_disk(size=2, indirect=True)
    disk.read(0, 512)
    assert disk.transfer() & COUNT == 1
    disk.driver.publish(9)
    assert disk.transfer() == 0


def test_a_chain_that_the_handler_has_is_not_served_again(make_disk):
    disk = make_disk()
    head = disk.driver.request([header(Type.FLUSH, 0)], [1])
    assert disk.queue.pop() is not None
    # The driver changes its mind about what it gave away, and offers it again.
    disk.driver.descriptor(head, BASE, 16, NEXT, head + 1)
    disk.driver.offer(head)
    disk.driver.publish()
    assert disk.transfer() == 0
    with pytest.raises(VirtqueueError, match="offered again"):
        disk.queue.pop()


def test_batches_are_bounded(make_disk):
    disk = make_disk(size=256)
    for _ in range(BATCH + 1):
        disk.read(0, 512, publish=False)
    disk.driver.publish()
    assert disk.transfer() == BATCH
    assert disk.queue.need_notify()
    disk.driver.enable_calls()
    assert disk.transfer() == 1 | RESTED  # the call that is wanted was made
    assert len(disk.driver.collect()) == BATCH + 1
    for _ in range(4):
        disk.read(0, SECTORS * 512, publish=False)
    disk.driver.publish()
    each = SECTORS * 512
    assert disk.transfer() & COUNT == -(-BATCH_BYTES // each)


def test_it_goes_on_round_the_index(make_disk):
    disk = make_disk(size=4, indirect=True)
    for number in range(70_000):
        disk.read(number % SECTORS, 512)
        disk.driver.enable_calls()
        assert disk.transfer() == 1 | RESTED | CALL
        (used,) = disk.driver.collect()
        assert used.written == 513
    assert disk.queue.statistics().pushed == 70_000


@pytest.mark.parametrize("event_idx", [False, True])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_calls_and_kicks_are_what_finish_would_say(make_disk, event_idx, data):
    """Two queues, one served by the transfer, the other by pop and finish: the driver cannot tell them apart."""
    disks = [make_disk(size=8, indirect=True, event_idx=event_idx) for _ in range(2)]
    for _ in range(data.draw(st.integers(1, 8))):
        wants = data.draw(st.sampled_from(["call", "no call", "as it was"]))
        count = data.draw(st.integers(1, 8))
        seen = []
        for disk in disks:
            if wants == "call":
                disk.driver.enable_calls()
            elif wants == "no call":
                disk.driver.disable_calls()
            for _ in range(count):
                disk.read(1, 512, publish=False)
            disk.driver.publish()
            queue = disk.queue
            if disk is disks[0]:
                served = queue.transfer()
                assert served & COUNT == count
                said = bool(served & CALL), bool(served & MORE)
            else:
                answers = []
                while (chain := queue.pop()) is not None:
                    answers.append((chain, chain.write(disk.image[512:1024] + b"\0")))
                said = queue.finish(answers)
            got = [(used.head, used.data) for used in disk.driver.collect()]
            seen.append((said, got, disk.driver.kick_needed(), queue.statistics(), bytes(disk.driver._used)))
        assert seen[0] == seen[1]


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_a_crash_loses_nothing_and_gives_nothing_twice(make_disk, slow):
    """The one that the handler has comes again, those that the transfer has answered do not; wherever it stood."""
    disk = make_disk()
    with InflightBuffer.create(1, 16) as buffer:
        queue = disk.start(inflight=buffer.queue(0))
        heads = [
            disk.driver.request([header(Type.FLUSH, 0)], [1]) if number == slow else disk.read(number, 512)
            for number in range(3)
        ]
        served = queue.transfer() & COUNT
        chain = queue.pop()
        assert chain is not None
        assert chain.head == heads[slow]
        served += queue.transfer() & COUNT
        assert served == 2
        # Here the process dies; and again, after a crash between the used ring and the inflight buffer.
        for _ in range(2):
            queue = disk.start(inflight=buffer.queue(0))
            assert queue.transfer() == 0
            chain = queue.pop()
            assert chain is not None
            assert chain.head == heads[slow]
            assert queue.pop() is None
            buffer.queue(0)._words[7] -= 1
        queue.push(chain, 1)
        assert sorted(used.head for used in disk.driver.collect()) == sorted(heads)
        disk.read(0, 512)
        assert queue.transfer() & COUNT == 1
        assert buffer.queue(0).recover(4) == []


def test_another_memory_table(make_disk):
    disk = make_disk()
    disk.queue.set_memory(GuestMemory.map([disk.ram.region], [os.dup(disk.ram.fileno())]))
    disk.read(0, 512)
    assert disk.transfer() & COUNT == 1
    assert disk.queue.stop() == 1
    assert disk.transfer() == 0


def test_buffers_in_several_regions(make_disk):
    disk = make_disk()
    with DriverMemory(1 << 16, guest_address=0, user_address=0x1000_0000_0000) as low:
        fds = [os.dup(disk.ram.fileno()), os.dup(low.fileno())]
        disk.memory = GuestMemory.map([disk.ram.region, low.region], fds)
        queue = disk.start()
        head = disk.read(4, 512, publish=False)
        (sent, _), (data, _), _ = disk.driver._sent[head].buffers
        second = disk.driver._sent[head].descriptors[1]
        disk.driver.descriptor(second, 0x800, 512, WRITE | NEXT, disk.driver._sent[head].descriptors[2])
        disk.driver.publish()
        assert sent != data
        assert queue.transfer() & COUNT == 1
        assert bytes(low.at(0x800, 512)) == disk.image[4 * 512 : 5 * 512]


@pytest.mark.parametrize(
    "arguments",
    [(-1, 512), (0, -512), (0, 100), (0, 512, True, -1)],
)
def test_a_file_of_no_whole_sectors_is_refused(arguments):
    with pytest.raises(ValueError, match="whole sectors"):
        BlockFile(arguments[0], arguments[1], *arguments[2:])


def test_views_that_do_not_fit_are_refused():
    ring = memoryview(bytearray(64))
    limits = {
        "max_table": 0,
        "event_idx": True,
        "fd": 0,
        "size": 0,
        "read_at_once": 0,
        "write_at_once": 0,
        "batch": 1,
        "batch_bytes": 1,
    }
    for desc, avail, used, chains, inflight in (
        (ring[:15], ring, ring, [None], None),
        (ring, ring[:7], ring, [None], None),
        (ring, ring, ring[:13], [None], None),
        (ring, ring[1:], ring, [None], None),
        (ring, ring, ring[2:], [None], None),
        (ring, ring, ring, [None], ring[:31]),
        (ring, ring, ring, [None] * 3, None),
        (ring, ring, ring, [], None),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            native.Transfer(desc, avail, used, chains, (), inflight, **limits)
    with pytest.raises(BufferError):
        native.Transfer(ring, ring, ring.toreadonly(), [None], (), None, **limits)
    with pytest.raises(TypeError):
        native.Transfer(ring, ring, ring, [None], (7,), None, **limits)
    made = native.Transfer(ring, ring, ring, [None], (), None, **limits)
    with pytest.raises(TypeError):
        made.serve(0, 0, 0)
    with pytest.raises(TypeError):
        made.serve(0, 0, 0, "x")


# -- from the kick to the call --------------------------------------------------------------------------------------------


@pytest.fixture
async def served(tmp_path, monkeypatch):
    """A back-end, its front-end, a running queue, and how many kicks have come to Python."""
    image = tmp_path / "image"
    image.write_bytes(random.Random(7).randbytes(SECTORS * 512))
    kicks: list[int] = []
    on_kick = Requests.on_kick
    monkeypatch.setattr(Requests, "on_kick", lambda requests: (kicks.append(requests.index), on_kick(requests)))
    device = Blk(str(image))
    path = tmp_path / "socket"
    async with Backend(device, path) as backend, FrontEnd(path) as front:
        await front.negotiate(FEATURES | device.features, PROTOCOL_FEATURES | ProtocolFeature.CONFIG)
        await front.set_memory()
        queue = front.queue(0, 16)
        await queue.start()
        await queue.ask([header(Type.IN, 0)], [512, 1])
        kicks.clear()
        yield backend, front, queue, kicks
    device.close()


def in_python(count):
    """How many of so many kicks come to Python, where the counter module could serve them."""
    return 0 if aioirqfd.IMPLEMENTATION == "c" else count


async def test_a_kick_is_served_without_a_line_of_python(served):
    backend, _, queue, kicks = served
    for number in range(200):
        data = await queue.ask([header(Type.IN, number % SECTORS)], [512, 1])
        assert data[-1:] == b"\0"
    assert len(kicks) == in_python(200)
    counts = backend.statistics().queues[0]
    assert (counts.requests, counts.answers, counts.kicks, counts.calls) == (201, 201, 201, 201)


async def test_what_is_left_of_a_kick_is_pythons_and_then_it_goes_on_without(served):
    backend, _, queue, kicks = served
    for number in range(1, 30):
        queue.driver.request([header(Type.IN, 1)], [512, 1], publish=False)
        queue.driver.request([header(Type.FLUSH, 0)], [1], publish=False)
        queue.put([header(Type.IN, 2)], [512, 1])
        assert [used.written for used in await queue.answers(3)] in ([513, 513, 1], [513, 1, 513])
        # The flush goes to a thread, and what comes back from there comes back by Python; so does the next kick, no further.
        for sector in (3, 4):
            assert await queue.ask([header(Type.IN, sector)], [512, 1])
        assert backend.statistics().queues[0].requests == 1 + 5 * number
    assert len(kicks) == 2 * 29 + in_python(29)


async def test_calls_that_are_not_wanted(served):
    backend, _, queue, _ = served
    queue.driver.disable_calls()
    for _ in range(10):
        queue.put([header(Type.IN, 0)], [512, 1])
        while not queue.driver.collect():
            await asyncio.sleep(0)
    counts = backend.statistics().queues[0]
    assert (counts.requests, counts.calls, counts.suppressed) == (11, 1, 10)
    assert await queue.ask([header(Type.IN, 0)], [512, 1])


async def test_a_masked_call_is_kept(served):
    _, front, queue, _ = served
    await front.tell(Request.SET_VRING_CALL, VringFd(0, has_fd=False))
    queue.driver.enable_calls()
    queue.put([header(Type.IN, 0)], [512, 1])
    while queue.driver.enable_calls() is False:
        await asyncio.sleep(0)
    with pytest.raises(aioirqfd.WouldBlock):
        queue.call.read_nowait()
    await front.tell(Request.SET_VRING_CALL, VringFd(0), [queue.call.fileno()])
    assert await queue.call.read() >= 1
    assert len(queue.driver.collect()) == 1


async def test_a_queue_that_is_not_enabled_is_left_alone(served):
    _, front, queue, _ = served
    await front.tell(Request.SET_VRING_ENABLE, VringState(0, 0))
    queue.kick.signal()
    queue.driver.request([header(Type.IN, 0)], [512, 1])
    queue.kick.signal()
    await front.number(Request.GET_FEATURES)  # by now the kicks have been heard
    await front.number(Request.GET_FEATURES)
    assert queue.driver.collect() == []
    await front.tell(Request.SET_VRING_ENABLE, VringState(0, 1))
    assert len(await queue.answers()) == 1


async def test_the_base_of_a_queue_that_stops(served):
    _, front, queue, _ = served
    for _ in range(5):
        await queue.ask([header(Type.IN, 0)], [512, 1])
    assert await queue.stop() == 6
    queue.driver.request([header(Type.IN, 0)], [512, 1])
    queue.kick.signal()
    await front.number(Request.GET_FEATURES)
    await front.number(Request.GET_FEATURES)
    assert queue.driver.collect() == []
    queue.kick.read_nowait()
    await queue.start(base=6)
    assert len(await queue.answers()) == 1


async def test_another_memory_table_between_kicks(served):
    _, front, queue, _ = served
    for _ in range(3):
        assert await queue.ask([header(Type.IN, 0)], [512, 1])
        await front.set_memory()
    assert await queue.ask([header(Type.IN, 0)], [512, 1])


async def test_a_ring_that_breaks_between_kicks(served):
    _, _, queue, _ = served
    queue.driver.offer(99)
    queue.driver.publish()
    queue.kick.signal()
    assert await queue.err.read() == 1


def test_kicks_refuse_what_is_none():
    heard: list[int] = []
    kicks = native.Kicks(heard.append, [None], [None])
    assert kicks.try_inject(Interrupt(0, Msi(0, 0))) is True
    assert kicks.try_inject(Interrupt(7, Msi(0, 0))) is True  # whoever has that queue is to say
    assert heard == [0, 7]
    with pytest.raises(AttributeError):
        kicks.try_inject(object())
    with pytest.raises(TypeError):
        native.Kicks(heard.append, (), [])

    def fail(queue):
        raise LookupError(queue)

    with pytest.raises(LookupError, match="3"):
        native.Kicks(fail, [None], [None]).try_inject(Interrupt(3, Msi(0, 0)))


class Counting(Blk):
    """What reaches the handler."""

    handled = 0

    async def handle(self, request):
        self.handled += 1
        return await super().handle(request)


REQUEST = st.one_of(
    st.tuples(st.just(Type.IN), st.integers(0, SECTORS), st.sampled_from([512, 1024, 4096, 100])),
    st.tuples(st.just(Type.OUT), st.integers(0, SECTORS), st.sampled_from([512, 1024, 4096, 100])),
    st.tuples(st.sampled_from([Type.FLUSH, Type.GET_ID, 77]), st.just(0), st.just(20)),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=st.lists(REQUEST, min_size=1, max_size=20), seed=st.integers(0, 2**32))
async def test_a_device_with_a_file_and_one_without(tmp_path, requests, seed):
    """The same answers in the same order of their numbers, the same image; and only the one without is asked for all."""
    outcomes = []
    for kind in (Blk, Counting):
        path = tmp_path / "image"
        path.write_bytes(random.Random(7).randbytes(SECTORS * 512))
        fill = random.Random(seed)
        device = kind(str(path))
        assert (device.file is None) == (kind is Counting)
        async with Backend(device, tmp_path / "socket") as backend, FrontEnd(str(tmp_path / "socket")) as front:
            await front.negotiate(FEATURES | device.features, PROTOCOL_FEATURES | ProtocolFeature.CONFIG)
            await front.set_memory()
            queue = front.queue(0, 64)
            await queue.start()
            answers = []
            for kind_, sector, size in requests:
                data = fill.randbytes(size) if kind_ == Type.OUT else b""
                readable = [header(kind_, sector), data] if data else [header(kind_, sector)]
                queue.put(readable, [1] if data or kind_ == Type.FLUSH else [size, 1])
                answers += await queue.answers()
            counts = backend.statistics().queues[0]
            assert counts.requests == counts.answers == len(requests)
            outcomes.append(([(used.written, used.data) for used in answers], path.read_bytes()))
        device.close()
        if isinstance(device, Counting):
            assert device.handled == len(requests)
    assert outcomes[0] == outcomes[1]
