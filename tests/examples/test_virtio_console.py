"""The console with a test for its driver: every byte once and in order, whatever is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import struct

import pytest

from aioirqfd.faults import Fail, Faults, Match
from aioirqfd.testing import vhost_user_frontend
from aioirqfd.virtio_pci.function import CONFIG as PCI_CONFIG
from examples import virtio_console
from examples.virtio_console import PIECE, RECEIVE, SIZE, TRANSMIT, Console
from examples.vmm.streams import FdSource, Output, TextSource
from tests.virtio_pci.conftest import serve, tracer

__all__ = ["serve", "tracer"]


class Sink:
    """Takes bytes while it is open, in pieces of 10: as a pipe whose reader is slow."""

    def __init__(self) -> None:
        self.taken = bytearray()
        self.open = asyncio.Event()
        self.begun = asyncio.Event()
        self.open.set()
        self.broken = False

    async def write(self, data):
        for at in range(0, len(data), 10):
            self.taken += data[at : at + 10]
            self.begun.set()
            await self.open.wait()
            if self.broken:
                raise BrokenPipeError(errno.EPIPE, "nobody reads")


class Never:
    """A source where nobody types."""

    async def read(self, _size):
        return await asyncio.get_running_loop().create_future()


@contextlib.asynccontextmanager
async def console(source, sink):
    device = Console(source, sink)
    async with vhost_user_frontend(device) as front:
        yield device, front.queues[RECEIVE], front.queues[TRANSMIT]


@pytest.fixture
def pipe():
    fds = os.pipe()
    yield fds
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


async def test_what_the_driver_finds(serve):
    device = Console(Never(), Sink(), size=(80, 25))
    async with serve(device) as guest:
        assert await guest.negotiate((1 << 64) - 1) & 0xFFFFFF == SIZE
        assert await guest.client.read(0, PCI_CONFIG, 4) == struct.pack("<HH", 80, 25)
        told = []
        device.config_watchers += (lambda: told.append(device.config),)
        device.resize(132, 50)
        assert told == [struct.pack("<HH", 132, 50)]
        assert await guest.client.read(0, PCI_CONFIG, 4) == struct.pack("<HH", 132, 50)


@pytest.mark.parametrize("size", [(-1, 0), (0, 65536)])
def test_a_size_that_cannot_be_is_refused(size):
    with pytest.raises(struct.error):
        Console(Never(), Sink(), size=size)


async def test_bytes_go_both_ways_by_pipes(pipe):
    reader, writer = pipe
    typed = random.Random(1).randbytes(777 * 64)
    async with console(FdSource(reader), Output(writer)) as (device, receive, transmit):
        seen = b""
        for at in range(0, len(typed), 777):
            # Out by the one queue, into the pipe, and in by the other.
            await transmit.ask([typed[at : at + 500], typed[at + 500 : at + 777]])
            while len(seen) < at + 777:
                seen += await receive.ask([], [100, 1, 200])
        assert seen == typed
        assert device.inspect() == {"received": len(typed), "transmitted": len(typed)}


async def test_no_more_is_read_than_there_is_room_for():
    typed = bytes(range(256)) * 40
    async with console(TextSource(typed), Sink()) as (_, receive, _):
        sizes = [1, 5, PIECE, PIECE + 1]
        answers = [await receive.ask([], [size]) for size in sizes]
        assert [len(answer) for answer in answers] == [1, 5, PIECE, PIECE]
        assert b"".join(answers) == typed[: sum(map(len, answers))]


async def test_the_end_of_what_is_typed_is_not_the_end_of_the_terminal():
    sink = Sink()
    async with console(TextSource(b"all"), sink) as (_, receive, transmit):
        assert await receive.ask([], [10]) == b"all"
        receive.put([], [10])
        await transmit.ask([b"more"])
        assert sink.taken == b"more"
        assert await receive.stop() == 1  # the buffer is the driver's again


async def test_a_reset_takes_no_byte_of_what_is_typed(pipe):
    reader, writer = pipe
    async with console(FdSource(reader), Sink()) as (_, receive, _):
        seen = b""
        for number in range(20):
            head = receive.put([], [10])
            base = await receive.stop()
            os.write(writer, b"%02d" % number)
            await receive.start(base=base)
            (used,) = await receive.answers()
            assert used.head == head
            seen += used.data
        assert seen == b"".join(b"%02d" % number for number in range(20))


async def test_a_reset_while_nobody_reads_neither_waits_nor_loses_nor_shows_twice():
    sink = Sink()
    text = [bytes([65 + number]) * 25 for number in range(4)]
    async with console(Never(), sink) as (device, _, transmit):
        sink.open.clear()
        for line in text[:3]:
            transmit.put([line])
        await sink.begun.wait()
        # The first is half out, so it is answered; the others were not begun, and are the driver's.
        base = await transmit.stop()
        assert base == 1
        assert len(transmit.driver.collect()) == 1
        await transmit.start(base=base)
        assert await transmit.stop() == base  # the second one waits for the first
        await transmit.start(base=base)
        sink.open.set()
        await transmit.answers(2)
        await transmit.ask([text[3]])
        assert sink.taken == b"".join(text)
        assert device.transmitted == 100


@pytest.mark.trouble
async def test_who_does_not_read_is_told_of_and_holds_up_no_end(monkeypatch):
    monkeypatch.setattr(virtio_console, "GRACE", 0.0)
    sink = Sink()
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    async with console(Never(), sink) as (device, _, transmit):
        sink.open.clear()
        transmit.put([b"x" * 25])
        await sink.begun.wait()
    assert [str(error) for error in reported] == [
        "what the guest has written was not taken within 0 s: some of it is lost"
    ]
    assert sink.taken == b"x" * 10
    assert device.transmitted == 0


@pytest.mark.parametrize("stopped", [False, True], ids=["under way", "of a queue that has stopped"])
async def test_who_reads_late_gets_all_of_it_before_the_end(stopped, monkeypatch):
    monkeypatch.setattr(virtio_console, "GRACE", 60.0)
    sink = Sink()
    async with console(Never(), sink) as (device, _, transmit):
        sink.open.clear()
        transmit.put([b"x" * 25])
        await sink.begun.wait()
        if stopped:
            await transmit.stop()
        asyncio.get_running_loop().call_later(0.01, sink.open.set)
    assert sink.taken == b"x" * 25
    assert device.transmitted == 25


@pytest.mark.trouble
async def test_a_sink_that_breaks_is_reported_and_the_guest_goes_on():
    sink = Sink()
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    async with console(Never(), sink) as (device, _, transmit):
        sink.broken = True
        assert await transmit.ask([b"lost"]) == b""
        sink.broken = False
        assert await transmit.ask([b"seen"]) == b""
        assert sink.taken == b"lostseen"
        assert device.transmitted == 4
    assert [type(error) for error in reported] == [BrokenPipeError]


@pytest.mark.trouble
async def test_a_late_write_that_breaks_is_reported_by_the_next_one():
    sink = Sink()
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    async with console(Never(), sink) as (_, _, transmit):
        sink.open.clear()
        transmit.put([b"late"])
        await sink.begun.wait()
        base = await transmit.stop()
        sink.broken = True
        sink.open.set()
        transmit.driver.collect()
        await transmit.start(base=base)
        await transmit.ask([b"next"])
        sink.broken = False
        await transmit.ask([b"seen"])
        assert sink.taken == b"lateseen"
    assert [type(error) for error in reported] == [BrokenPipeError]


@pytest.mark.trouble
async def test_a_source_that_breaks_stops_its_queue_and_not_the_other():
    class Broken:
        async def read(self, _size):
            raise OSError(errno.EIO, "hung up")

    sink = Sink()
    async with console(Broken(), sink) as (_, receive, transmit):
        receive.put([], [10])
        assert await receive.err.read() == 1
        await transmit.ask([b"still here"])
        assert sink.taken == b"still here"


@pytest.mark.trouble
async def test_more_than_a_mebibyte_at_once_is_refused():
    sink = Sink()
    device = Console(Never(), sink)
    async with vhost_user_frontend(device, ram=1 << 22) as front:
        assert await front.queues[TRANSMIT].ask([bytes(1 << 20), b"1"]) == b""
        assert sink.taken == b""


async def test_faults_find_requests_by_their_queue():
    sink = Sink()
    faults = Faults(nonconforming=True)
    async with vhost_user_frontend(faults.wrap(Console(TextSource(b"typed"), sink))) as front:
        failing = faults.add(Match("transmit", nth=2), Fail())
        for text in (b"one ", b"two ", b"three"):
            await front.queues[TRANSMIT].ask([text])
        assert sink.taken == b"one three"
        assert failing.hits == 1
        empty = faults.add(Match("receive", count=1), Fail())
        assert await front.queues[RECEIVE].ask([], [5]) == b""
        assert empty.hits == 1
        assert await front.queues[RECEIVE].ask([], [5]) == b"typed"
