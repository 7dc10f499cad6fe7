from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioirqfd.virtio.chain import READ_LIMIT, Chain, cut, gather, scatter
from aioirqfd.virtio.errors import ChainError

pieces = st.lists(st.binary(min_size=1, max_size=9), max_size=6)
places = st.integers(0, 60)


def views(parts):
    return [memoryview(bytearray(part)) for part in parts]


@given(pieces, places, st.none() | places)
def test_cut_is_the_slice_of_all_buffers_together(parts, start, end):
    rest = cut(views(parts), start, end)
    assert b"".join(rest) == b"".join(parts)[start:end]
    assert all(rest)


@given(pieces, st.none() | places, places)
def test_gather(parts, size, offset):
    whole = b"".join(parts)
    assert gather(views(parts), size, offset=offset) == whole[offset:][:size]


@given(pieces, st.binary(max_size=40), places)
def test_scatter(parts, data, offset):
    buffers = views(parts)
    whole = bytearray(b"".join(parts))
    done = scatter(buffers, data, offset=offset)
    assert done == max(0, min(len(data), len(whole) - offset))
    whole[offset : offset + done] = data[:done]
    assert b"".join(buffers) == bytes(whole)


@pytest.mark.parametrize("count", [1, 2, 64])
def test_a_chain_without_a_size_is_read_up_to_a_limit(count):
    """All of it is the same memory, as a hostile guest's may be."""
    chain = Chain()
    chain.head = 3
    chain.writable, chain.writable_size = [], 0
    memory = memoryview(bytes(READ_LIMIT))
    chain.readable = [memory[: READ_LIMIT // count]] * count
    assert len(chain.read()) == READ_LIMIT
    chain.readable.append(memory[:1])
    with pytest.raises(ChainError, match="without a size"):
        chain.read()
    assert len(chain.read(offset=1)) == READ_LIMIT
    assert len(chain.read(READ_LIMIT + 1)) == READ_LIMIT + 1
    assert len(chain.read(10, offset=READ_LIMIT)) == 1
    chain.readable = [memory] * 64
    with pytest.raises(ChainError):
        chain.read()
    assert chain.read(5, offset=40 * READ_LIMIT) == bytes(5)


def test_cut_copies_nothing():
    (buffer,) = views([b"abcdef"])
    cut([buffer], 2, 4)[0][:] = b"XY"
    assert bytes(buffer) == b"abXYef"
