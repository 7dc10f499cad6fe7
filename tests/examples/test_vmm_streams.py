from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from examples.vmm.streams import FdSource, Output, TextSource


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(fd)


async def read_all(source, size=3):
    data = b""
    while piece := await source.read(size):
        assert len(piece) <= size
        data += piece
    return data


async def test_text_is_given_in_pieces_until_stopped():
    source = TextSource(b"abcdefgh")
    assert await source.read(3) == b"abc"
    source.stop()
    assert await source.read(3) == b""


async def test_pipe_is_read_to_its_end(pipe):
    reader, writer = pipe
    os.write(writer, b"abcdefgh")
    os.close(writer)
    assert await read_all(FdSource(reader, instead=b"other")) == b"abcdefgh"


async def test_waiting_read_gets_what_comes(pipe):
    reader, writer = pipe
    waiting = asyncio.ensure_future(FdSource(reader).read(10))
    await asyncio.sleep(0)
    assert not waiting.done()
    os.write(writer, b"late")
    assert await waiting == b"late"


async def test_empty_pipe_gives_the_other_bytes_instead(pipe):
    reader, writer = pipe
    os.close(writer)
    assert await read_all(FdSource(reader, instead=b"other")) == b"other"


async def test_empty_pipe_that_was_asked_for_is_empty(pipe):
    reader, writer = pipe
    os.close(writer)
    assert await read_all(FdSource(reader)) == b""


async def test_silent_pipe_is_given_up_for_the_other_bytes(pipe):
    source = FdSource(pipe[0], instead=b"other")
    waiting = asyncio.ensure_future(source.read(10))
    await asyncio.sleep(0)
    source.give_up()
    assert await waiting == b"other"
    assert await source.read(10) == b""


async def test_pipe_that_has_spoken_is_not_given_up(pipe):
    reader, writer = pipe
    os.write(writer, b"a")
    source = FdSource(reader, instead=b"other")
    assert await source.read(1) == b"a"
    source.give_up()
    os.write(writer, b"b")
    os.close(writer)
    assert await read_all(source) == b"b"


async def test_pipe_with_bytes_that_nobody_has_read_yet_is_not_given_up(pipe):
    reader, writer = pipe
    os.write(writer, b"ready")
    os.close(writer)
    source = FdSource(reader, instead=b"other")
    source.give_up()
    assert await read_all(source) == b"ready"


async def test_silent_pipe_that_was_asked_for_is_waited_for(pipe):
    reader, writer = pipe
    source = FdSource(reader)
    waiting = asyncio.ensure_future(source.read(10))
    await asyncio.sleep(0)
    source.give_up()
    os.write(writer, b"x")
    assert await waiting == b"x"


async def test_stop_ends_a_waiting_read_and_all_later_ones(pipe):
    source = FdSource(pipe[0], instead=b"other")
    waiting = asyncio.ensure_future(source.read(10))
    await asyncio.sleep(0)
    source.stop()
    assert await waiting == b""
    os.write(pipe[1], b"too late")
    assert await source.read(10) == b""


async def test_regular_file_and_null_device(tmp_path):
    path = tmp_path / "in"
    path.write_bytes(b"abcdefgh")
    with path.open("rb", buffering=0) as file:
        assert await read_all(FdSource(file.fileno())) == b"abcdefgh"
    with Path(os.devnull).open("rb") as null:
        assert await read_all(FdSource(null.fileno(), instead=b"other")) == b"other"


async def write_through(pipe):
    reader, writer = pipe
    data = os.urandom(300_000)
    writing = asyncio.ensure_future(Output(writer).write(data))
    source = FdSource(reader)
    got = b""
    while len(got) < len(data):
        got += await source.read(1000)
    await writing
    assert got == data


async def test_output_to_a_slow_pipe_keeps_every_byte(pipe):
    await write_through(pipe)


def test_descriptors_stay_blocking(pipe):
    # On the loop that the program uses: libuv, and so uvloop, sets O_NONBLOCK on what it polls.
    asyncio.run(write_through(pipe))
    assert os.get_blocking(pipe[0])
    assert os.get_blocking(pipe[1])


async def test_output_to_a_file(tmp_path):
    path = tmp_path / "out"
    with path.open("wb", buffering=0) as file:
        await Output(file.fileno()).write(b"x" * 10_000)
    assert path.read_bytes() == b"x" * 10_000


async def test_output_that_nobody_reads_is_a_broken_pipe(pipe):
    reader, writer = pipe
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        await Output(writer).write(b"x")
