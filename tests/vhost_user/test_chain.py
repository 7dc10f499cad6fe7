from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aioirqfd.vhost_user.chain import cut, gather, scatter

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


def test_cut_copies_nothing():
    (buffer,) = views([b"abcdef"])
    cut([buffer], 2, 4)[0][:] = b"XY"
    assert bytes(buffer) == b"abXYef"
