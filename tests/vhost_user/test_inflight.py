# pyright: reportPossiblyUnboundVariable=false
# (bound before it is used, or the test has failed)
from __future__ import annotations

import fcntl
import itertools
import os

import pytest

from aioirqfd.vhost_user.inflight import InflightBuffer, InflightQueue, queue_stride
from aioirqfd.vhost_user.messages import Inflight
from aioirqfd.virtio.errors import InflightError, VirtqueueError


@pytest.fixture
def buffer():
    with InflightBuffer.create(2, 8) as made:
        yield made


def test_the_layout(buffer):
    assert queue_stride(8) == 192  # 16 + 8 * 16 = 144, up to 64s
    assert buffer.description == Inflight(384, 0, 2, 8)
    assert os.fstat(buffer.fileno()).st_size == 384
    assert (
        fcntl.fcntl(buffer.fileno(), fcntl.F_GET_SEALS) == fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    )
    queue = buffer.queue(1)
    queue.begin(3)
    queue.begin(5)
    queue.link(3)
    raw = os.pread(buffer.fileno(), 384, 0)[192:]
    # features, version, desc_num, last_batch_head, used_idx
    assert raw[:16] == bytes(8) + b"\1\0" + b"\x08\0" + b"\3\0" + b"\0\0"
    assert raw[16 + 3 * 16 :][:16] == b"\1" + bytes(5) + b"\0\0" + bytes(8)
    assert raw[16 + 5 * 16 :][:16] == b"\1" + bytes(5) + b"\0\0" + b"\1" + bytes(7)
    queue.link(5)
    queue.commit([3, 5], 2)
    raw = os.pread(buffer.fileno(), 384, 0)[192:]
    assert raw[:16] == bytes(8) + b"\1\0" + b"\x08\0" + b"\5\0" + b"\2\0"
    assert raw[16 + 5 * 16 :][:16] == b"\0" + bytes(5) + b"\3\0" + b"\1" + bytes(7)


def test_a_buffer_comes_back_from_the_front_end(buffer):
    buffer.queue(0).begin(4)
    with InflightBuffer.map(buffer.description, os.dup(buffer.fileno())) as again:
        assert again.queue(0).recover(0) == [4]
        assert again.queue(1).recover(0) == []


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 200, 1024])
@pytest.mark.parametrize("used", [(), (0,), (1,), (0, 1)])
def test_a_buffer_is_as_large_as_it_was_made_whatever_the_front_end_says(size, used):
    """QEMU says what it has asked for. A part that was used says its size; where the first was not, the bytes do."""
    with InflightBuffer.create(2, size) as made:
        for index in used:
            made.queue(index).begin(0)
        for asked in {1, size // 2 or 1, size}:
            described = Inflight(made.description.mmap_size, 0, 2, asked)
            with InflightBuffer.map(described, os.dup(made.fileno())) as again:
                if 0 in used or size in {asked, 1024}:
                    assert again.description == Inflight(made.description.mmap_size, 0, 2, size)
                    assert [again.queue(index).recover(0) for index in range(2)] == [
                        [0] if index in used else [] for index in range(2)
                    ]
                else:
                    assert asked <= again.description.queue_size <= size


def test_a_part_that_says_more_than_there_is_room_for_is_refused(buffer):
    buffer.queue(0)
    for number in (12, 32768, 0xFFFF):
        os.pwrite(buffer.fileno(), number.to_bytes(2, "little"), 10)
        with pytest.raises(InflightError):
            InflightBuffer.map(buffer.description, os.dup(buffer.fileno()))


@pytest.mark.parametrize(
    "description",
    [
        Inflight(383, 0, 2, 8),
        Inflight(384, 4, 2, 8),
        Inflight(384, 8, 2, 8),
        Inflight(2**64 - 1, 0, 1024, 32768),
        Inflight(384, 2**64 - 8, 2, 8),
        Inflight(384, 0, 0, 8),
        Inflight(384, 0, 2, 0),
        Inflight(384, 0, 1025, 1),
        Inflight(2**40, 0, 1, 32769),
    ],
)
def test_a_description_that_does_not_fit_is_refused_and_its_fd_closed(buffer, description):
    fd = os.dup(buffer.fileno())
    with pytest.raises(InflightError):
        InflightBuffer.map(description, fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_buffer_that_may_shrink_is_refused_where_a_seal_is_required(buffer):
    fd = os.memfd_create("kept")
    os.ftruncate(fd, 384)
    with pytest.raises(InflightError, match="not sealed"):
        InflightBuffer.map(buffer.description, fd, require_seal=True)
    with InflightBuffer.map(buffer.description, os.dup(buffer.fileno()), require_seal=True) as again:
        assert again.queue(0).recover(0) == []


def test_what_is_cleared_is_as_new(buffer):
    for index in range(2):
        buffer.queue(index).begin(3)
    queue = buffer.queue(0)
    queue.begin(4)
    queue.link(4)
    queue.commit((4,), 1)
    buffer.clear(1)
    assert buffer.queue(0).recover(0) == []
    assert buffer.queue(0).recover(7) == []
    assert buffer.queue(1).recover(0) == [3]
    buffer.clear(256)
    assert bytes(buffer._view) == bytes(384)


@pytest.mark.parametrize(("queues", "size"), [(0, 8), (1025, 8), (1, 0), (1, 32769)])
def test_a_shape_that_cannot_be_made(queues, size):
    with pytest.raises(InflightError):
        InflightBuffer.create(queues, size)


def test_a_buffer_may_lie_anywhere_in_its_file_on_words_of_its_own():
    fd = os.memfd_create("kept")
    os.ftruncate(fd, 4096)
    with pytest.raises(InflightError, match="aligned"):
        InflightBuffer.map(Inflight(384, 4, 2, 8), os.dup(fd))
    with InflightBuffer.map(Inflight(384, 8, 2, 8), fd) as buffer:
        buffer.queue(1)
        assert os.pread(fd, 4, 8 + 192 + 8) == b"\1\0\x08\0"


def test_a_used_index_further_off_than_a_batch_can_be_forgets_nothing(buffer):
    queue = buffer.queue(0)
    queue.begin(3)
    queue.link(3)
    queue.commit([], 20)
    assert queue.recover(29) == [3]  # 9 in a ring of 8
    assert queue.recover(30) == []  # 1: the last batch was 3


def test_there_is_no_such_queue(buffer):
    for index in (-1, 2):
        with pytest.raises(InflightError):
            buffer.queue(index)


def test_another_layout_is_refused(buffer):
    buffer.queue(0)
    for place, value in ((8, 2), (10, 16)):
        os.pwrite(buffer.fileno(), bytes([value]), place)
        with pytest.raises(InflightError):
            buffer.queue(0)
        os.pwrite(buffer.fileno(), bytes([1 if place == 8 else 8]), place)
    buffer.queue(0)


def test_forged_numbers_lead_nowhere(buffer):
    queue = buffer.queue(0)
    queue.begin(0)
    view = memoryview(bytearray(os.pread(buffer.fileno(), 192, 0)))
    words = view.cast("H")
    words[6] = 0xFFFF  # last_batch_head
    with pytest.raises(InflightError):
        InflightQueue(view, 8).recover(1)
    words[6] = 0
    words[11] = 0xFFFF  # desc[0].next
    with pytest.raises(InflightError):
        InflightQueue(view, 8).recover(2)
    words[11] = 0  # a loop: bounded by the batch
    assert InflightQueue(view, 8).recover(8) == []
    quads = view.cast("Q")
    view[16], view[32] = 1, 255  # any mark but 0 is a mark
    quads[3], quads[5] = 2**64 - 1, 2**64 - 2
    queue = InflightQueue(view, 8)
    assert queue.recover(8) == [1, 0]
    queue.begin(2)
    assert queue.recover(8) == [1, 0, 2]


def test_requests_in_flight_come_again_oldest_first_and_then_the_ring_goes_on(make_rig, buffer):
    rig = make_rig(8, inflight=buffer.queue(0))
    heads = [rig.driver.request([bytes([number])], [4]) for number in range(4)]
    chains = [rig.queue.pop() for _ in range(3)]
    rig.queue.push(chains[1], 4)
    queue = rig.restart(base=0, inflight=buffer.queue(0))  # SIGKILL; the front-end knows no better base
    got = [queue.pop() for _ in range(3)]
    assert [chain.head for chain in got] == [heads[0], heads[2], heads[3]]
    assert [chain.read() for chain in got] == [b"\0", b"\2", b"\3"]
    assert queue.pop() is None
    assert queue.statistics().resubmitted == 2
    queue.push_batch((chain, 4) for chain in reversed(got))
    assert [used.head for used in rig.driver.collect()] == [heads[1], heads[3], heads[2], heads[0]]
    assert rig.driver.outstanding == 0
    assert rig.restart(inflight=buffer.queue(0)).pop() is None
    rig.driver.request([b"on"])
    assert rig.queue.pop().read() == b"on"


def test_a_restart_while_resubmitting_keeps_the_order(make_rig, buffer):
    rig = make_rig(8, inflight=buffer.queue(0))
    heads = [rig.driver.request([b"x"]) for _ in range(3)]
    for _ in range(3):
        rig.queue.pop()
    for _ in range(3):
        queue = rig.restart(inflight=buffer.queue(0))
        assert queue.enable_kicks()  # nobody will kick for these
        assert queue.pop().head == heads[0]
    assert [queue.pop().head, queue.pop().head] == heads[1:]


def test_a_head_in_flight_is_not_offered_again_after_a_restart(make_rig, buffer):
    rig = make_rig(8, inflight=buffer.queue(0))
    head = rig.driver.request([b"x"])
    rig.queue.pop()
    queue = rig.restart(inflight=buffer.queue(0))
    rig.driver.offer(head)
    rig.driver.publish()
    assert queue.pop().head == head
    with pytest.raises(VirtqueueError, match="offered again"):
        queue.pop()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("die_at", range(60))
@pytest.mark.parametrize("batch", [1, 3])
def test_killed_at_any_store_no_request_is_lost_and_none_answered_twice(make_rig, buffer, die_at, batch):
    """Every 16- and 64-bit store of the back-end into shared memory may be its last."""
    stores = itertools.count()

    class Dying:
        """A memoryview that dies instead of its n-th store."""

        def __init__(self, view):
            self.view = view

        def __getitem__(self, key):
            return self.view[key]

        def __setitem__(self, key, value):
            if next(stores) == die_at:
                raise Killed
            self.view[key] = value

        def __len__(self):
            return len(self.view)

    rig = make_rig(8, inflight=buffer.queue(0))
    queue = rig.queue
    part = queue._inflight
    for name in ("_bytes", "_words", "_quads"):
        setattr(part, name, Dying(getattr(part, name)))
    queue._used_words = Dying(queue._used_words)
    queue._used = Dying(queue._used)
    answered = []
    sent = {rig.driver.request([], [1]): number for number in range(6)}
    try:
        while True:
            chains = [chain for chain in (queue.pop() for _ in range(batch)) if chain is not None]
            if not chains:
                break
            if batch == 1:
                queue.push(chains[0], 1)
            else:
                queue.push_batch([(chain, 1) for chain in reversed(chains)])
    except Killed:
        pass
    answered += rig.driver.collect()
    queue = rig.restart(base=0xAAAA, inflight=buffer.queue(0))
    while (chain := queue.pop()) is not None:
        queue.push(chain, 1)
    answered += (
        rig.driver.collect()
    )  # collect() itself fails on an answer to what was never asked, or was answered before
    assert sorted(used.head for used in answered) == sorted(sent)
    assert rig.driver.outstanding == 0


def test_a_ring_set_up_anew_after_an_orderly_stop_starts_at_0(make_rig, buffer):
    """A boot loader's driver used the ring first; the kernel's driver makes a new one, and the buffer stays."""
    first = make_rig(8, inflight=buffer.queue(0))
    for _ in range(20):
        first.driver.request([b"x"])
        first.queue.push(first.queue.pop())
        first.driver.collect()
    first.queue.stop()
    second = make_rig(4, inflight=buffer.queue(0))
    assert second.queue.pop() is None
    second.driver.request([b"new"])
    assert second.queue.pop().read() == b"new"


def test_a_ring_larger_than_the_buffer_is_refused(make_rig, buffer):
    with pytest.raises(VirtqueueError, match="room for 8"):
        make_rig(16, inflight=buffer.queue(0))


def test_a_mark_beyond_the_ring_is_refused(make_rig, buffer):
    buffer.queue(0).begin(7)
    with pytest.raises(VirtqueueError, match="descriptor 7 of 4"):
        make_rig(4, inflight=buffer.queue(0))


def test_a_broken_buffer_breaks_the_queue_not_the_back_end(make_rig, buffer):
    buffer.queue(0)
    os.pwrite(buffer.fileno(), b"\xff\xff", 12)  # last_batch_head
    os.pwrite(buffer.fileno(), b"\xff\xff", 14)  # used_idx: one behind
    with pytest.raises(VirtqueueError, match="inflight buffer is broken"):
        make_rig(8, inflight=buffer.queue(0))
