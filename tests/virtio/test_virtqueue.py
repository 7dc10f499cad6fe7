# pyright: reportOptionalMemberAccess=false, reportArgumentType=false
# (a pop that gives None fails the test, as it should)
from __future__ import annotations

import gc
import os
import random
from pathlib import Path

import pytest

from aioirqfd import fence as fence_module
from aioirqfd.vhost_user.driver import DriverError, DriverMemory, DriverQueue, Used
from aioirqfd.vhost_user.messages import MemoryRegion, VringAddr
from aioirqfd.virtio import ring
from aioirqfd.virtio.errors import ChainError, VirtqueueError, VirtqueueStoppedError
from aioirqfd.virtio.memory import GuestMemory
from aioirqfd.virtio.virtqueue import VirtQueue, VirtqueueStatistics

BOTH = pytest.mark.parametrize("indirect", [False, True])


@BOTH
def test_a_request_and_its_answer(make_rig, indirect):
    rig = make_rig(indirect=indirect)
    assert rig.queue.pop() is None
    head = rig.driver.request([b"read ", b"me"], [3, 10])
    chain = rig.queue.pop()
    assert chain is not None
    assert rig.queue.pop() is None
    assert (chain.head, chain.readable_size, chain.writable_size) == (head, 7, 13)
    assert [bytes(view) for view in chain.readable] == [b"read ", b"me"]
    assert all(view.readonly for view in chain.readable)
    assert [len(view) for view in chain.writable] == [3, 10]
    assert chain.read() == b"read me"
    assert chain.write(b"written") == 7
    assert rig.queue.in_flight == 1
    rig.queue.push(chain, 7)
    assert rig.driver.collect() == [Used(head, 7, b"written")]
    assert rig.queue.statistics() == VirtqueueStatistics(1, 1, 0, 0, 0)


@BOTH
@pytest.mark.parametrize("event_idx", [False, True])
def test_the_indexes_go_round_and_answers_come_in_any_order(make_rig, indirect, event_idx):
    rig = make_rig(4, indirect=indirect, event_idx=event_idx)
    rng = random.Random(1)
    count = total = 0
    while count < 70_000:  # past the 16 bits
        heads = [rig.driver.request([], [8]) for _ in range(rng.randint(1, 4))]
        chains = [rig.queue.pop() for _ in heads]
        assert [chain.head for chain in chains] == heads
        assert rig.queue.pop() is None
        rng.shuffle(chains)
        for chain in chains:
            chain.write(count.to_bytes(8, "little"))
            count += 1
        if rng.random() < 0.5:
            assert rig.queue.push_batch([(chain, 8) for chain in chains]) == len(chains)
        else:
            for chain in chains:
                rig.queue.push(chain, 8)
        for used in rig.driver.collect():
            assert int.from_bytes(used.data, "little") == total
            total += 1
    assert total == count
    assert rig.queue.stopped is None


def test_a_full_ring_is_all_there_is(make_rig):
    rig = make_rig(8)
    for _ in range(8):
        rig.driver.request([], [1])
    with pytest.raises(DriverError):
        rig.driver.request([], [1])
    chains = [rig.queue.pop() for _ in range(8)]
    assert rig.queue.pop() is None
    assert rig.queue.in_flight == 8
    rig.queue.push_batch((chain, 0) for chain in chains)
    assert len(rig.driver.collect()) == 8


def test_the_driver_s_own_parts_of_the_ring_are_not_the_queue_s_to_write(make_rig):
    queue = make_rig().queue
    assert queue._desc.readonly
    assert queue._avail.readonly


# Notifications.


def served(rig, count=1):
    """Let the driver ask and the device answer ``count`` times; say whether it would call."""
    for _ in range(count):
        rig.driver.request([], [1])
        rig.queue.push(rig.queue.pop(), 1)
    return rig.queue.need_notify()


def test_without_event_idx_the_flag_decides(make_rig):
    rig = make_rig(event_idx=False)
    assert served(rig)
    assert not rig.queue.need_notify()
    rig.driver.disable_calls()
    assert not served(rig)
    rig.driver.enable_calls()
    assert served(rig)
    statistics = rig.queue.statistics()
    assert (statistics.notified, statistics.suppressed) == (2, 1)


def test_fences_stand_where_the_machine_does_not_keep_the_order(make_rig, monkeypatch):
    monkeypatch.setattr(fence_module, "ORDERED", False)
    rig = make_rig()
    fences = []
    monkeypatch.setattr(fence_module, "fence", lambda lock: fences.append(rig.queue._used_words[ring.IDX]))
    rig.driver.request([], [1])
    rig.driver.request([], [1])
    fences.clear()
    first, second = rig.queue.pop(), rig.queue.pop()
    assert fences == [0]  # between the index and the entries, once for both
    rig.queue.push(first, 1)
    assert fences == [0, 0]  # between the entry and the index
    rig.queue.push_batch([(second, 1)])
    assert fences == [0, 0, 1]
    rig.queue.need_notify()
    assert fences == [0, 0, 1, 2]  # between the index and the driver's wish
    rig.queue.enable_kicks()
    assert fences == [0, 0, 1, 2, 2]


def test_with_event_idx_exactly_the_wanted_answer_calls(make_rig):
    rig = make_rig()
    assert served(rig)  # the first always
    rig.driver.collect()
    assert not rig.driver.enable_calls()  # now: call for the next, and for no other
    assert served(rig)
    assert not served(rig)
    assert not served(rig, 2)
    assert rig.driver.enable_calls() is True
    assert len(rig.driver.collect()) == 4
    assert not rig.driver.enable_calls()
    assert served(rig, 3)  # a batch that goes past the wanted one calls once
    assert not rig.queue.need_notify()
    statistics = rig.queue.statistics()
    assert (statistics.notified, statistics.suppressed) == (3, 2)


def test_event_idx_over_the_whole_round_of_the_index(make_rig):
    rig = make_rig(4)
    assert served(rig)
    calls = 0
    for number in range(70_000):
        rig.driver.collect()
        if number % 10 == 0:
            rig.driver.enable_calls()
        calls += served(rig)
    assert calls == 7000


def test_with_event_idx_and_calls_off_nothing_calls(make_rig):
    rig = make_rig()
    served(rig)
    rig.driver.collect()
    rig.driver.disable_calls()
    assert [served(rig) for _ in range(3)] == [False] * 3


def test_with_event_idx_the_first_answer_of_a_run_calls_whatever_the_driver_wants(make_rig):
    """The run before may have died between an answer and its call."""
    rig = make_rig()
    served(rig)
    rig.driver.collect()
    rig.driver.disable_calls()
    rig.restart(base=rig.queue.stop())
    assert not rig.queue.need_notify()
    assert served(rig)
    assert not served(rig)


@pytest.mark.parametrize("event_idx", [False, True])
def test_kicks(make_rig, event_idx):
    rig = make_rig(event_idx=event_idx)
    driver, queue = rig.driver, rig.queue
    driver.request([], [1])
    assert driver.kick_needed()  # a new queue wants them
    queue.disable_kicks()
    assert queue.pop() is not None
    driver.request([], [1])
    assert not driver.kick_needed()
    assert queue.pop() is not None
    assert queue.pop() is None
    assert not queue.enable_kicks()
    driver.request([], [1])
    assert driver.kick_needed()
    assert not driver.kick_needed()
    queue.disable_kicks()
    queue.pop()
    driver.request([], [1])
    assert not driver.kick_needed()
    assert queue.enable_kicks()  # that one came while nobody listened: the device must look again
    assert queue.pop() is not None
    assert not queue.enable_kicks()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("event_idx", [False, True])
def test_finish_answers_and_wants_kicks(make_rig, event_idx, count):
    rig = make_rig(event_idx=event_idx)
    driver, queue = rig.driver, rig.queue
    expected = []
    for wanted in (True, False, True):
        queue.disable_kicks()
        for _ in range(count):
            driver.request([], [1])
        driver.kick_needed()
        answers = [(queue.pop(), 1) for _ in range(count)]
        assert queue.pop() is None
        assert queue.finish(answers) == (wanted, False)
        assert len(driver.collect()) == count
        expected.append(wanted)
        driver.request([], [1])
        assert driver.kick_needed()
        driver.disable_calls() if wanted else driver.enable_calls()
        late = queue.pop()
        driver.request([], [1])  # while nobody listens
        assert queue.finish([(late, 1)]) == (not wanted, True)
        expected.append(not wanted)
        assert queue.finish([(queue.pop(), 1)]) == (not wanted and not event_idx, False)
        expected.append(not wanted and not event_idx)
        driver.collect()
        driver.enable_calls() if not wanted else driver.disable_calls()
    statistics = queue.statistics()
    assert (statistics.notified, statistics.suppressed) == (expected.count(True), expected.count(False))


def test_finish_has_one_fence_behind_all_that_the_driver_is_told(make_rig, monkeypatch):
    rig = make_rig()
    rig.driver.request([], [1])
    chain = rig.queue.pop()
    seen = []

    def fence(lock):
        words = rig.queue._used_words
        seen.append((words[ring.IDX], words[ring.avail_event_word(rig.queue.size)]))
        rig.driver.request([], [1])  # at the last moment

    monkeypatch.setattr(fence_module, "fence", fence)
    assert rig.queue.finish([(chain, 1)]) == (True, True)
    assert seen == [(1, 1)]


# Misuse by the device.


def test_a_chain_is_pushed_once_to_its_own_queue(make_rig):
    rig, other = make_rig(), make_rig(2)
    heads = [rig.driver.request([], [4]) for _ in range(3)]
    chains = [rig.queue.pop() for _ in heads]
    for bad in (5, -1, 2**32):
        with pytest.raises(ChainError, match="bytes written"):
            rig.queue.push(chains[0], bad)
    for chain in chains:
        with pytest.raises(ChainError, match="not with this queue"):
            other.queue.push(chain)
    rig.queue.push(chains[0], 4)
    with pytest.raises(ChainError, match="pushed already"):
        rig.queue.push(chains[0], 4)
    with pytest.raises(ChainError):
        rig.queue.push_batch([(chains[1], 1), (chains[2], 5)])
    with pytest.raises(ChainError):
        rig.queue.push_batch([(chains[1], 1), (chains[1], 1)])
    assert len(rig.driver.collect()) == 1
    assert rig.queue.push_batch([(chains[1], 1), (chains[2], 4)]) == 2
    assert [used.written for used in rig.driver.collect()] == [1, 4]
    assert rig.driver.request([], [4]) in heads
    again = rig.queue.pop()
    assert again.head in heads
    for chain in chains:
        with pytest.raises(ChainError):
            rig.queue.push(chain, 1)  # the head is out again, but this is not its chain
    assert rig.queue.stopped is None


def test_a_stopped_queue_says_so(make_rig):
    rig = make_rig()
    rig.driver.request([], [4])
    rig.driver.request([], [4])
    chain = rig.queue.pop()
    assert rig.queue.stop() == 1
    assert rig.queue.stop() == 1
    assert rig.queue.stopped == "the queue has been stopped"
    for call in (
        rig.queue.pop,
        rig.queue.enable_kicks,
        lambda: rig.queue.push(chain, 4),
        lambda: rig.queue.push_batch([(chain, 4)]),
        lambda: rig.queue.finish([(chain, 4)]),
        lambda: rig.queue.finish([(chain, 4), (chain, 4)]),
        lambda: rig.queue.set_memory(rig.memory),
    ):
        with pytest.raises(VirtqueueStoppedError):
            call()
    rig.queue.disable_kicks()
    assert rig.driver.collect() == []


def test_a_queue_that_starts_again_goes_on_at_its_base(make_rig):
    rig = make_rig()
    rig.driver.request([], [4])
    rig.queue.push(rig.queue.pop(), 4)
    rig.driver.request([b"second"])
    base = rig.queue.stop()
    queue = rig.restart(base=base)
    chain = queue.pop()
    assert chain.read() == b"second"
    queue.push(chain)
    assert [used.written for used in rig.driver.collect()] == [4, 0]


def test_a_stopped_queue_lets_go_of_the_memory(make_rig):
    rig = make_rig()

    def mappings():
        gc.collect()  # and not those of earlier tests
        return Path("/proc/self/maps").read_text().count("memfd:driver-memory")

    before = mappings()
    rig.queue.stop()
    rig.memory = None
    assert mappings() == before - 1


# The memory table is replaced under load.


def test_another_memory_table_while_requests_are_out(make_rig):
    rig = make_rig()
    rig.driver.request([b"a"], [4])
    rig.driver.request([b"b"], [4])
    first = rig.queue.pop()
    rig.memory = GuestMemory.map([rig.ram.region], [os.dup(rig.ram.fileno())])
    rig.queue.set_memory(rig.memory)
    second = rig.queue.pop()
    gc.collect()
    assert (first.read(), second.read()) == (b"a", b"b")
    for chain in (second, first):
        rig.queue.push(chain, chain.write(chain.read() * 2))
    assert [used.data for used in rig.driver.collect()] == [b"bb", b"aa"]


def test_a_table_without_the_ring_stops_the_queue(make_rig):
    rig = make_rig()
    rig.driver.request([b"a"], [4])
    chain = rig.queue.pop()
    with pytest.raises(VirtqueueError, match="not in the guest's memory"):
        rig.queue.set_memory(GuestMemory())
    assert rig.queue.stopped is not None
    assert chain.read() == b"a"
    with pytest.raises(VirtqueueStoppedError):
        rig.queue.push(chain)


# Rings that cannot be.


@pytest.mark.parametrize("size", [0, 3, -1, -8, 65536, 32769, 12])
def test_a_size_that_is_none(make_rig, size):
    rig = make_rig()
    with pytest.raises(VirtqueueError, match="power of 2"):
        VirtQueue(rig.memory, size, rig.driver.address(0))


def table(ram):
    return GuestMemory.map([ram.region], [os.dup(ram.fileno())])


@pytest.mark.parametrize("size", [1, 2, 256, 32768])
def test_rings_up_to_the_last_byte_of_a_region_and_not_one_further(size):
    parts = {
        "descriptor": (ring.DESC_SIZE * size, ring.DESC_ALIGN),
        "available": (ring.avail_size(size), ring.AVAIL_ALIGN),
        "used": (ring.used_size(size), ring.USED_ALIGN),
    }
    total = 1 << 22
    for edge, (length, align) in parts.items():
        # The region ends where this part of the ring does; the file goes on behind it.
        end = (total // 2 + length + align - 1) // align * align
        with DriverMemory(end, mmap_offset=0) as ram:
            user = ram.region.user_address
            places = {"descriptor": user, "available": user + (1 << 19), "used": user + (1 << 20)}
            places[edge] = user + end - length
            if places[edge] % align:
                continue
            VirtQueue(table(ram), size, VringAddr(0, 0, **places))
            places[edge] += align
            with pytest.raises(VirtqueueError, match="not in the guest's memory"):
                VirtQueue(table(ram), size, VringAddr(0, 0, **places))


@pytest.mark.parametrize(("part", "align"), [("descriptor", 16), ("available", 2), ("used", 4)])
def test_misaligned_rings(part, align):
    with DriverMemory(1 << 16) as ram:
        user = ram.region.user_address
        places = {"descriptor": user, "available": user + 0x1000, "used": user + 0x2000}
        places[part] += align // 2
        with pytest.raises(VirtqueueError, match="aligned"):
            VirtQueue(table(ram), 8, VringAddr(0, 0, **places))


@pytest.mark.parametrize("address", [0, 2**64 - 16, 0x1_0000_0000])
def test_rings_outside_memory(address):
    with DriverMemory(1 << 16, guest_address=0x1_0000_0000) as ram:
        user = ram.region.user_address
        good = {"descriptor": user, "available": user + 0x1000, "used": user + 0x2000}
        for part in good:
            with pytest.raises(VirtqueueError, match="not in the guest's memory"):
                VirtQueue(table(ram), 8, VringAddr(0, 0, **{**good, part: address}))


# Guests that break the rules, one rule at a time. Descriptor 0 is the head.

N, W, I = ring.NEXT, ring.WRITE, ring.INDIRECT  # noqa: E741
GOOD = 0x1_0000_0000


def hostile(rig, descriptors, *, offered=(0,), publish=None):
    for index, descriptor in descriptors.items():
        rig.driver.descriptor(index, *descriptor)
    for head in offered:
        rig.driver.offer(head)
    rig.driver.publish(publish)
    before = bytes(rig.ram.view)
    caught = None
    for _ in range(len(offered) + 1):
        try:
            assert rig.queue.pop() is not None
        except VirtqueueError as error:
            caught = error
            break
    assert caught is not None
    assert type(caught) is VirtqueueError
    assert bytes(rig.ram.view) == before
    assert rig.queue.stopped == str(caught)
    with pytest.raises(VirtqueueStoppedError, match="^" + str(caught)[:10]):
        rig.queue.pop()
    return str(caught)


@pytest.mark.parametrize(
    ("descriptors", "text"),
    [
        ({0: (GOOD, 16, N, 0)}, "looped"),
        ({0: (GOOD, 16, N, 1), 1: (GOOD, 16, N, 0)}, "looped"),
        ({0: (GOOD, 16, N | W, 1), 1: (GOOD, 16, N | W, 2), 2: (GOOD, 16, N | W, 1)}, "looped"),
        ({0: (GOOD, 16, N, 8)}, "descriptor 8 in a table of 8"),
        ({0: (GOOD, 16, N, 65535)}, "descriptor 65535"),
        ({0: (GOOD, 0, 0)}, "no bytes"),
        ({0: (GOOD, 0, W)}, "no bytes"),
        ({0: (GOOD, 4, W | N, 1), 1: (GOOD, 4, 0)}, "to read behind"),
        ({0: (GOOD - 1, 4, 0)}, "not memory"),
        ({0: (GOOD + (1 << 18) - 3, 4, 0)}, "not memory"),
        ({0: (GOOD + (1 << 18) - 3, 4, W)}, "not memory"),
        ({0: (2**64 - 1, 4, 0)}, "not memory"),
        ({0: (GOOD, 2**32 - 1, W)}, "not memory"),
        ({0: (0, 4, 0)}, "not memory"),
        # The same once the region has been found before, by either kind of buffer.
        ({0: (GOOD, 4, N, 1), 1: (GOOD + (1 << 18) - 3, 4, 0)}, "not memory"),
        ({0: (GOOD, 4, N, 1), 1: (GOOD - 1, 4, 0)}, "not memory"),
        ({0: (GOOD, 4, N | W, 1), 1: (GOOD + (1 << 18) - 3, 4, W)}, "not memory"),
        ({0: (GOOD, 4, N | W, 1), 1: (GOOD - 1, 4, W)}, "not memory"),
        ({0: (GOOD, 16, I)}, "not agreed on"),
    ],
)
def test_a_broken_chain(make_rig, descriptors, text):
    assert text in hostile(make_rig(), descriptors)


@pytest.mark.parametrize(
    ("head", "entries", "text"),
    [
        ((I | N, 16), {0: (GOOD, 4, 0)}, "indirect descriptor with NEXT"),
        ((I, 0), {}, "indirect table of 0"),
        ((I, 15), {}, "indirect table of 15"),
        ((I, 17), {}, "indirect table of 17"),
        ((I, 16 * 1025), {}, "indirect table of 16400"),
        ((I, 16), {0: (GOOD, 16, I)}, "within an indirect table"),
        ((I, 32), {0: (GOOD, 4, N, 1), 1: (GOOD, 16, I)}, "within an indirect table"),
        ((I, 32), {0: (GOOD, 4, N, 2)}, "descriptor 2 in a table of 2"),
        ((I, 32), {0: (GOOD, 4, N, 1), 1: (GOOD, 4, N, 0)}, "looped"),
        ((I, 16), {0: (GOOD, 0, 0)}, "no bytes"),
        ((I, 32), {0: (GOOD, 4, N | W, 1), 1: (GOOD, 4, 0)}, "to read behind"),
        ((I, 16), {0: (7, 4, 0)}, "not memory"),
    ],
)
def test_a_broken_indirect_table(make_rig, head, entries, text):
    rig = make_rig(indirect=True)
    place = rig.ram.allocate(1 << 15)
    for index, entry in entries.items():
        ring.DESC.pack_into(rig.ram.view, place - GOOD + 16 * index, *entry, *([0] * (4 - len(entry))))
    flags, length = head
    assert text in hostile(rig, {0: (place, length, flags, 1), 1: (GOOD, 4, 0)})


def test_an_indirect_table_outside_memory(make_rig):
    assert "not memory" in hostile(make_rig(indirect=True), {0: (7, 16, I)})
    assert "not memory" in hostile(make_rig(indirect=True), {0: (GOOD + (1 << 18) - 16, 32, I)})


def test_the_head_is_a_descriptor(make_rig):
    assert "descriptor 8 of 8" in hostile(make_rig(), {}, offered=[8])
    assert "descriptor 65535 of 8" in hostile(make_rig(), {}, offered=[65535])


def test_a_head_is_not_offered_twice(make_rig):
    assert "offered again" in hostile(make_rig(), {0: (GOOD, 4, 0)}, offered=[0, 0])


@pytest.mark.parametrize("ahead", [9, 0x8000, 0xFFFF])
def test_the_index_does_not_jump(make_rig, ahead):
    assert f"{ahead} ahead in a ring of 8" in hostile(make_rig(), {}, offered=[], publish=ahead)


def test_more_bytes_than_a_length_can_tell():
    """A sparse file of 4 GiB stands for the memory."""
    with DriverMemory(1 << 16) as ram:
        driver = DriverQueue(ram, 8)
        sparse = os.memfd_create("sparse")
        os.ftruncate(sparse, 2**32)
        big = MemoryRegion(1 << 40, 2**32, 1 << 40, 0)
        memory = GuestMemory.map([ram.region, big], [os.dup(ram.fileno()), sparse])
        queue = VirtQueue(memory, 8, driver.address(0))
        driver.descriptor(0, 1 << 40, 2**32 - 1, W)
        driver.descriptor(1, 1 << 40, 2**32 - 1, W | N, 2)
        driver.descriptor(2, 1 << 40, 1, W)
        driver.offer(0)
        driver.offer(1)
        driver.publish()
        chain = queue.pop()
        assert chain.writable_size == 2**32 - 1
        queue.push(chain, 2**32 - 1)
        with pytest.raises(VirtqueueError, match="more than 2\\*\\*32-1"):
            queue.pop()


def test_what_is_allowed_though_unusual(make_rig):
    """Plain descriptors before an indirect one, an indirect flag with WRITE, unknown flag bits, `next` without NEXT."""
    rig = make_rig(indirect=True)
    place = rig.ram.allocate(32)
    rig.ram.at(place, 32)[:] = ring.DESC.pack(GOOD, 4, N | W | 0x80, 1) + ring.DESC.pack(GOOD + 4, 4, W | 0x8000, 99)
    rig.driver.descriptor(0, GOOD, 2, N | 0xFFF8, 5)
    rig.driver.descriptor(5, place, 32, I | W, 77)
    rig.driver.offer(0)
    rig.driver.publish()
    chain = rig.queue.pop()
    assert (chain.readable_size, chain.writable_size) == (2, 8)


def test_a_chain_that_is_too_long(make_rig):
    """A queue that is longer than a chain may be; each descriptor comes once."""
    rig = make_rig(2048)
    for index in range(2048):
        rig.driver.descriptor(index, GOOD, 1, N if index < 2047 else 0, index + 1)
    assert "more than 1025" in hostile(rig, {})


def test_the_longest_chains(make_rig):
    rig = make_rig(8)
    rig.driver.request([b"x"] * 8)
    assert rig.queue.pop().readable_size == 8
    rig = make_rig(8, indirect=True)
    rig.driver.request([b"x"] * 1024)
    assert rig.queue.pop().readable_size == 1024


def test_buffers_and_tables_across_regions():
    """Guest-adjacent regions in separate files: a buffer and an indirect table over the seam."""
    page = 4096
    with DriverMemory(16 * page) as low, DriverMemory(page, guest_address=16 * page, user_address=1 << 40) as high:
        driver = DriverQueue(low, 8, indirect=True)
        memory = GuestMemory.map([low.region, high.region], [os.dup(low.fileno()), os.dup(high.fileno())])
        queue = VirtQueue(memory, 8, driver.address(0), features=driver.features)
        seam = 16 * page
        low.view[-8:] = b"ABCDEFGH"
        high.view[:24] = b"IJKL" + bytes(20)
        entries = ring.DESC.pack(seam - 4, 8, N, 1) + ring.DESC.pack(seam + 100, 8, W, 0)
        low.view[-40:-8] = entries
        driver.descriptor(0, seam - 40, 32, I)
        driver.offer(0)
        driver.publish()
        chain = queue.pop()
        assert [bytes(view) for view in chain.readable] == [b"EFGH", b"IJKL"]
        chain.write(b"12345678")
        assert bytes(high.view[100:108]) == b"12345678"
        queue.push(chain, 8)
        table_ = ring.DESC.pack(seam - 4, 8, N | W, 1) + ring.DESC.pack(0, 8, W, 0)
        low.view[-16:] = table_[:16]
        high.view[:16] = table_[16:]
        driver.descriptor(1, seam - 16, 32, I)
        driver.offer(1)
        driver.publish()
        chain = queue.pop()
        assert [len(view) for view in chain.writable] == [4, 4, 8]
        assert not any(view.readonly for view in chain.writable)


def test_an_answer_given_twice_is_in_flight_once(make_rig):
    rig = make_rig()
    for data in (b"one", b"two"):
        rig.driver.request([data], [8])
    one = rig.queue.pop()
    two = rig.queue.pop()
    rig.queue.push(one, 0)
    rig.queue.push_again(one.head, 0)
    rig.queue.push_again(one.head, 0)
    assert rig.queue.in_flight == 1
    rig.queue.push(two, 0)
    assert rig.queue.in_flight == 0
    assert rig.queue.statistics().pushed == 4


def test_a_deferred_call_is_asked_for_again(make_rig):
    """The driver, which waits for the first one, moves its index no further."""
    rig = make_rig()
    asked = []
    for defer in (True, True, False, False):
        rig.driver.request([b"x"])
        rig.queue.push(rig.queue.pop())
        asked.append(rig.queue.need_notify())
        if defer:
            rig.queue.defer_notify()
    assert asked == [True, True, True, False]
    rig.driver.collect()
    rig.driver.enable_calls()
    rig.driver.request([b"x"])
    rig.queue.push(rig.queue.pop())
    assert rig.queue.need_notify()
