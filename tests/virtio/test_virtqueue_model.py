"""The queue against a driver that keeps the rules and one that does not, as hypothesis makes them up."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false
# (a pop that gives None fails the test, as it should)
from __future__ import annotations

import contextlib
import mmap
import os
from collections import deque

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aioirqfd.vhost_user.driver import DriverError, DriverMemory, DriverQueue
from aioirqfd.vhost_user.inflight import InflightBuffer
from aioirqfd.vhost_user.messages import MemoryRegion, VringAddr
from aioirqfd.virtio import ring
from aioirqfd.virtio.errors import VirtqueueError, VirtqueueStoppedError
from aioirqfd.virtio.features import VirtioFeature
from aioirqfd.virtio.memory import GuestMemory, MappedRegion
from aioirqfd.virtio.virtqueue import VirtQueue


class DriverAndDevice(RuleBasedStateMachine):
    """A driver, and a device that may be killed: what one sends the other gets, and no wake-up that is due fails."""

    def __init__(self):
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.sent: dict[int, bytes] = {}  # by head, what was asked
        self.order: deque[int] = deque()  # heads the device has not seen yet
        self.held = []  # chains with the device
        self.pushed: deque[tuple[int, bytes]] = deque()  # answers the driver has not seen yet
        self.kicked = self.called = False
        self.device_sleeps = self.driver_sleeps = False

    @initialize(
        size=st.sampled_from([1, 2, 4, 16]), event_idx=st.booleans(), indirect=st.booleans(), track=st.booleans()
    )
    def set_up(self, size, event_idx, indirect, track):
        ram = self.stack.enter_context(DriverMemory(1 << 18, guest_address=1 << 32))
        self.driver = DriverQueue(ram, size, event_idx=event_idx, indirect=indirect)
        self.memory = GuestMemory.map([ram.region], [os.dup(ram.fileno())])
        self.buffer = self.stack.enter_context(InflightBuffer.create(1, size)) if track else None
        self.start()

    def start(self, base=0):
        self.part = inflight = self.buffer.queue(0) if self.buffer else None
        self.queue = VirtQueue(
            self.memory,
            self.driver.size,
            self.driver.address(0),
            base=base,
            features=self.driver.features,
            inflight=inflight,
        )

    def teardown(self):
        self.stack.close()

    @rule(
        readable=st.lists(st.binary(min_size=1, max_size=40), max_size=3),
        writable=st.lists(st.integers(1, 40), max_size=3),
        publish=st.booleans(),
    )
    def ask(self, readable, writable, publish):
        assume(readable or writable)
        try:
            head = self.driver.request(readable, writable, publish=publish)
        except DriverError:
            return
        self.sent[head] = b"".join(readable)
        self.order.append(head)
        if publish:
            self.published()

    @rule()
    def publish(self):
        self.driver.publish()
        self.published()

    def published(self):
        self.visible = len(self.order)
        if self.driver.kick_needed():
            self.kicked = True
        # The one thing that matters about kicks: a device that sleeps is woken.
        if self.device_sleeps and self.order:
            assert self.kicked

    @rule()
    def pop(self):
        self.device_sleeps = False
        chain = self.queue.pop()
        self.take(chain)

    def take(self, chain):
        if chain is None:
            assert self.driver._avail[ring.IDX] == self.queue._next_avail
            return
        assert chain.head == self.order.popleft()
        assert chain.read() == self.sent[chain.head]
        self.held.append(chain)

    @rule()
    def device_goes_to_sleep(self):
        self.queue.disable_kicks()
        while True:
            while (chain := self.queue.pop()) is not None:
                self.take(chain)
            if not self.queue.enable_kicks():
                break
        self.kicked = False
        self.device_sleeps = not self.order

    @precondition(lambda self: self.held)
    @rule()
    def answer_all_and_go_to_sleep(self):
        self.queue.disable_kicks()
        while (chain := self.queue.pop()) is not None:
            self.take(chain)
        batch = [(chain, 0) for chain in self.held]
        self.pushed += [(chain.head, b"") for chain in self.held]
        self.held.clear()
        call, more = self.queue.finish(batch)
        assert not more
        if call:
            self.called = True
        if self.driver_sleeps:
            assert self.called
        self.kicked = False
        self.device_sleeps = True

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def answer(self, data):
        count = data.draw(st.integers(1, len(self.held)))
        batch = []
        for _ in range(count):
            chain = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
            text = data.draw(st.binary(max_size=chain.writable_size))
            assert chain.write(text) == len(text)
            batch.append((chain, len(text)))
            self.pushed.append((chain.head, text))
        if count == 1:
            self.queue.push(*batch[0])
        else:
            self.queue.push_batch(batch)
        if self.queue.need_notify():
            self.called = True
        if self.driver_sleeps:
            assert self.called

    @rule()
    def collect(self):
        self.driver_sleeps = False
        self.gather()

    def gather(self):
        for used in self.driver.collect():
            head, text = self.pushed.popleft()
            assert (used.head, used.data) == (head, text)
            del self.sent[head]
        assert not self.pushed

    @rule()
    def driver_goes_to_sleep(self):
        self.driver.disable_calls()
        self.gather()
        assert not self.driver.enable_calls()
        self.called = False
        self.driver_sleeps = True

    @precondition(lambda self: self.buffer is not None)
    @rule()
    def kill(self):
        self.order.extendleft(chain.head for chain in sorted(self.held, key=self.began, reverse=True))
        self.held.clear()
        self.device_sleeps = self.driver_sleeps = False
        self.start(base=12345)

    def began(self, chain):
        return self.part._quads[3 + 2 * chain.head]

    @precondition(lambda self: not self.held)
    @rule()
    def stop_and_start(self):
        self.device_sleeps = self.driver_sleeps = False
        self.start(base=self.queue.stop())

    @rule()
    def replace_memory(self):
        ram = self.driver.memory
        self.memory = GuestMemory.map([ram.region], [os.dup(ram.fileno())])
        self.queue.set_memory(self.memory)

    @invariant()
    def runs(self):
        if hasattr(self, "queue"):
            assert self.queue.stopped is None
            assert self.queue.in_flight == len(self.held)


DriverAndDevice.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestDriverAndDevice = DriverAndDevice.TestCase


# A guest that writes anything anywhere.

SIZE = 8
PAGE = mmap.PAGESIZE
GUARD = 0xA5
places = st.sampled_from([0, 16, 64, 2**12, 2**12 - 8, 2**13 - 1, 2**13, 2**14, 2**32, 2**64 - 16, 2**64 - 1])
lengths = st.sampled_from([0, 1, 15, 16, 32, 64, 2**12, 2**13, 2**31, 2**32 - 1])
flags = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 0xFFFF])
nexts = st.sampled_from([0, 1, 2, 3, 7, 8, 0xFFFF])
descriptors = st.tuples(places, lengths, flags, nexts)


class Fenced:
    """A memoryview-like region in the middle of a larger buffer whose other bytes must stay as they are."""

    def __init__(self, size):
        self.buffer = bytearray([GUARD]) * (3 * size)
        self.view = memoryview(self.buffer)[size : 2 * size]
        self.view[:] = bytes(size)
        self.size = size

    def check(self):
        assert self.buffer[: self.size] == bytes([GUARD]) * self.size
        assert self.buffer[2 * self.size :] == bytes([GUARD]) * self.size


@settings(max_examples=600, deadline=None)
@given(
    table=st.lists(descriptors, min_size=SIZE, max_size=SIZE),
    indirect=st.lists(descriptors, max_size=4),
    heads=st.lists(nexts, max_size=SIZE),
    index=st.sampled_from([None, 0, 1, 9, 0xFFFF]),
    noise=st.lists(st.tuples(st.integers(0, 2 * PAGE - 1), st.binary(max_size=16)), max_size=4),
    features=st.sampled_from([0, VirtioFeature.INDIRECT_DESC, VirtioFeature.EVENT_IDX | VirtioFeature.INDIRECT_DESC]),
)
def test_a_hostile_guest_reaches_nothing_else_and_holds_nobody_up(table, indirect, heads, index, noise, features):
    low, high = Fenced(PAGE), Fenced(PAGE)
    memory = GuestMemory(
        [
            MappedRegion(MemoryRegion(PAGE, PAGE, PAGE, 0), low.view),
            MappedRegion(MemoryRegion(2 * PAGE, PAGE, 2 * PAGE, 0), high.view),
        ]
    )
    for number, descriptor in enumerate(table):
        ring.DESC.pack_into(low.view, ring.DESC_SIZE * number, *descriptor)
    for number, descriptor in enumerate(indirect):  # where a buffer at 2**13 - 8 or 2**13 would be a table
        ring.DESC.pack_into(high.view, ring.DESC_SIZE * number, *descriptor)
    avail = low.view[1024 : 1024 + ring.avail_size(SIZE)].cast("H")
    for number, head in enumerate(heads):
        avail[2 + number] = head
    avail[ring.IDX] = len(heads) if index is None else index
    queue = VirtQueue(memory, SIZE, VringAddr(0, 0, PAGE, PAGE + 2048, PAGE + 1024), features=features)
    popped = 0
    held = []
    for _ in range(4 * SIZE):
        for place, data in noise:
            view = low.view if place < PAGE else high.view
            at = place % PAGE
            view[at : at + len(data)] = data[: PAGE - at]
        try:
            chain = queue.pop()
        except VirtqueueError:
            assert queue.stopped is not None
            break
        if chain is None:
            break
        popped += 1
        assert 1 <= len(chain.readable) + len(chain.writable) <= 2 * (SIZE + 1024)
        chain.read()
        assert chain.write(bytes([0x5A]) * chain.writable_size) == chain.writable_size
        held.append(chain)
        if popped % 3 == 0:
            for one in held:
                queue.push(one, one.writable_size)
            held.clear()
            queue.need_notify()
            queue.enable_kicks()
    assert popped <= 4 * SIZE
    assert queue.in_flight <= SIZE
    if queue.stopped is not None:
        with pytest.raises(VirtqueueStoppedError):
            queue.pop()
        if held:
            with pytest.raises(VirtqueueStoppedError):
                queue.push(held[0])
    low.check()
    high.check()


@settings(max_examples=400, deadline=None)
@given(places=st.tuples(*[st.integers(0, 3 * PAGE)] * 3), size=st.integers(0, 300))
def test_a_ring_anywhere_is_within_memory_or_refused(places, size):
    fenced = Fenced(PAGE)
    memory = GuestMemory([MappedRegion(MemoryRegion(0, PAGE, PAGE, 0), fenced.view)])
    desc, avail, used = places
    fits = (
        size > 0
        and not size & (size - 1)
        and not (desc % 16 or avail % 2 or used % 4)
        and all(
            PAGE <= place <= 2 * PAGE - length
            for place, length in ((desc, 16 * size), (avail, 6 + 2 * size), (used, 6 + 8 * size))
        )
    )
    if fits:
        VirtQueue(memory, size, VringAddr(0, 0, desc, used, avail))
    else:
        with pytest.raises(VirtqueueError):
            VirtQueue(memory, size, VringAddr(0, 0, desc, used, avail))
    fenced.check()
