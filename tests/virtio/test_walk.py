"""The walk along a chain in C, and the one in Python that decides what C does not: the same chains, and the same errors."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aioirqfd.virtio import virtqueue
from aioirqfd.virtio.errors import VirtqueueError
from aioirqfd.virtio.ring import INDIRECT, NEXT, WRITE

# Whichever implementation is live: where the C module was built, this is of it.
native = pytest.importorskip("aioirqfd.virtio.fast._native", reason="needs the C module", exc_type=ImportError)
walk = native.walk

SIZE = 8
RAM = 1 << 16
START = 0x1_0000_0000  # where the rig's memory begins, for the guest

FLAGS = st.sampled_from([0, NEXT, NEXT, NEXT, WRITE, WRITE, NEXT | WRITE, INDIRECT, INDIRECT | NEXT, 8 | NEXT, 0xFFFF])
ADDRESS = st.one_of(
    st.integers(START, START + RAM - 1),
    st.integers(START + 0x8000, START + 0x8000 + 64),  # where the tables are
    st.integers(START - 2, START + 2),
    st.integers(START + RAM - 20, START + RAM + 20),
    st.integers(0, 2**64 - 1),
)
LENGTH = st.one_of(st.sampled_from([0, 1, 16, 32, 48, 64, 512, RAM, 2**32 - 1]), st.integers(0, 2**32 - 1))
DESCRIPTOR = st.tuples(ADDRESS, LENGTH, FLAGS, st.integers(0, SIZE + 1))


def outcome(rig, ring, head):
    """What pop() gives: views as places and bytes, or the words of the error."""
    queue = rig.restart()
    start = rig.memory.regions[0].start
    queue._walker._look_up(start, 1, write=False)  # the window is where the requests are
    ring.offer(head)
    try:
        chain = queue.pop()
    except VirtqueueError as error:
        return str(error)
    finally:
        ring.withdraw()
    assert chain is not None
    return [
        [bytes(view) for view in chain.readable],
        [bytes(view) for view in chain.writable],
        chain.writable_size,
        [view.readonly for view in (*chain.readable, *chain.writable)],
    ]


class Ring:
    """A driver without manners: it writes what it is told to."""

    def __init__(self, rig):
        self.view = rig.ram.view
        address = rig.driver.address(0)
        base = rig.ram.region.user_address
        self.desc, self.avail = address.descriptor - base, address.available - base

    def offer(self, head):
        struct.pack_into("<HHH", self.view, self.avail, 0, 1, head)

    def withdraw(self):
        struct.pack_into("<HHH", self.view, self.avail, 0, 0, 0)


@pytest.mark.parametrize("indirect", [False, True])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=st.lists(DESCRIPTOR, min_size=SIZE, max_size=SIZE),
    inner=st.lists(DESCRIPTOR, min_size=4, max_size=4),
    head=st.integers(0, SIZE - 1),
)
def test_both_walks_agree(make_rig, indirect, table, inner, head):
    rig = make_rig(SIZE, indirect=indirect, bytes_=RAM)
    ring = Ring(rig)
    for number, descriptor in enumerate(table):
        struct.pack_into("<QIHH", rig.ram.view, ring.desc + 16 * number, *descriptor)
    for number, descriptor in enumerate(inner):
        struct.pack_into("<QIHH", rig.ram.view, 0x8000 + 16 * number, *descriptor)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(virtqueue, "walk", walk)
        in_c = outcome(rig, ring, head)
        patch.setattr(virtqueue, "walk", lambda *_: None)
        in_python = outcome(rig, ring, head)
    assert in_c == in_python


def window(size=256):
    memory = bytearray(range(256)) * (size // 256)
    return memoryview(memory).toreadonly(), memoryview(memory)


def table(*descriptors):
    return memoryview(b"".join(struct.pack("<QIHH", *each) for each in descriptors))


def usual(*descriptors, head=0, start=0, max_table=0, memory=None) -> Any:
    readable, writable = memory or window()
    return walk(table(*descriptors), head, readable, writable, start, max_table)


class TestWalk:
    def test_a_read(self):
        readable, writable, size = usual(
            (1000, 16, NEXT, 1), (1016, 32, NEXT | WRITE, 2), (1048, 1, WRITE, 0), start=1000
        )
        assert [bytes(view) for view in readable] == [bytes(range(16))]
        assert [bytes(view) for view in writable] == [bytes(range(16, 48)), bytes([48])]
        assert size == 33
        assert [view.readonly for view in (*readable, *writable)] == [True, False, False]

    def test_an_indirect_table_anywhere_in_the_window(self):
        memory = bytearray(256)
        memory[33:65] = table((0, 8, NEXT, 1), (8, 8, WRITE, 0))
        memory[0:8] = b"question"
        view = memoryview(memory)
        found = usual((33, 32, INDIRECT, 0), max_table=32, memory=(view.toreadonly(), view))
        assert [bytes(part) for part in found[0]] == [b"question"]
        assert found[2] == 8
        assert usual((33, 32, INDIRECT, 0), max_table=16, memory=(view.toreadonly(), view)) is None

    @pytest.mark.parametrize(
        "descriptor",
        [
            (0, 0, 0, 0),
            (0, 257, 0, 0),
            (256, 1, 0, 0),
            (255, 2, 0, 0),
            (2**64 - 1, 2, 0, 0),
            (2**64 - 8, 2**32 - 1, 0, 0),
            (0, 1, NEXT, 1),
            (0, 1, NEXT, 0),
            (0, 16, INDIRECT, 0),
        ],
    )
    def test_what_is_not_usual(self, descriptor):
        assert usual(descriptor) is None

    def test_the_table_ends_where_it_ends(self):
        two = table((0, 1, NEXT, 1), (0, 1, 0, 0))
        assert walk(two, 0, *window(), 0, 64) is not None
        assert walk(two[:16], 0, *window(), 0, 64) is None

    def test_no_indirect_table_within_another(self):
        memory = bytearray(256)
        memory[32:48] = table((48, 16, INDIRECT, 0))
        memory[48:64] = table((0, 1, 0, 0))
        view = memoryview(memory)
        assert usual((48, 16, INDIRECT, 0), max_table=64, memory=(view.toreadonly(), view)) is not None
        assert usual((32, 16, INDIRECT, 0), max_table=64, memory=(view.toreadonly(), view)) is None

    def test_to_the_last_byte(self):
        assert usual((0, 256, 0, 0))[0][0].nbytes == 256
        assert usual((255, 1, 0, 0))[0][0].nbytes == 1

    def test_below_the_window(self):
        assert usual((999, 2, 0, 0), start=1000) is None

    def test_a_head_that_is_not_in_the_table(self):
        with pytest.raises(ValueError, match="head"):
            usual((0, 1, 0, 0), head=1)

    def test_arguments(self):
        wrong: Any = walk
        with pytest.raises(TypeError):
            wrong()
        with pytest.raises(TypeError):
            wrong(None, 0, *window(), 0, 0)
        with pytest.raises(TypeError):
            wrong(table((0, 1, 0, 0)), 0, None, None, 0, 0)
