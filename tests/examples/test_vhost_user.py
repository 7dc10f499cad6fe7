"""The vhost-user examples, each served by the example itself, with a test for its front-end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from aioirqfd.vhost_user import Backend
from aioirqfd.vhost_user.features import ProtocolFeature
from aioirqfd.vhost_user.messages import ConfigSpace, Request
from aioirqfd.vhost_user.ring import NEXT
from examples.vhost_user_blk import MAX_SECTORS, Blk, Feature, Status, Type
from examples.vhost_user_upper import PIECE, RECEIVE, TRANSMIT, Upper
from tests.vhost_user.frontend import FEATURES, PROTOCOL_FEATURES, FrontEnd

ROOT = Path(__file__).parents[2]
SECTORS = 2048


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return "socket"


@pytest.fixture
def disk(tmp_path):
    image = tmp_path / "image"
    image.write_bytes(random.Random(3).randbytes(SECTORS * 512))
    return image


def request(kind, sector=0):
    return struct.pack("<IIQ", kind, 0, sector)


@contextlib.asynccontextmanager
async def served(device, path, *, queues=1, size=64):
    async with Backend(device, path) as backend, FrontEnd(path) as front:
        await front.negotiate(FEATURES | device.features, PROTOCOL_FEATURES | ProtocolFeature.CONFIG)
        await front.set_memory()
        for index in range(queues):
            await front.queue(index, size).start()
        yield backend, front


class Disk:
    """A front-end's requests to the block device, whose status byte is looked at wherever the device put it."""

    def __init__(self, queue) -> None:
        self.queue = queue

    async def __call__(self, kind, sector=0, *, data=(), room=()):
        driver = self.queue.driver
        head = driver.request([request(kind, sector), *data], [*room, 1])
        views = [driver.memory.at(address, size) for address, size in driver._sent[head].writable]
        views[-1][0] = 0xFF
        self.queue.publish()
        (used,) = await self.queue.answers()
        return Status(views[-1][0]), used.data[:-1]


@pytest.fixture
async def blk(path, disk):
    device = Blk(str(disk), num_queues=2, serial="a serial number too long for it")
    async with served(device, path, queues=2) as (_, front):
        yield Disk(front.queues[0]), front, disk
    device.close()


async def test_blk_configuration(blk):
    _, front, _ = blk
    reply = await front.ask(Request.GET_CONFIG, ConfigSpace(0, 0, bytes(60)))
    config = reply.payload.data
    assert struct.unpack_from("<Q", config)[0] == SECTORS
    assert struct.unpack_from("<I", config, 12)[0] == 126
    assert struct.unpack_from("<I", config, 20)[0] == 512
    assert struct.unpack_from("<H", config, 34)[0] == 2
    assert struct.unpack_from("<6I", config, 36)[0] == MAX_SECTORS
    wanted = Feature.SEG_MAX | Feature.BLK_SIZE | Feature.FLUSH | Feature.MQ | Feature.DISCARD | Feature.WRITE_ZEROES
    assert Feature(int(front.features) & 0xFFFF) == wanted


async def test_blk_reads_and_writes_scattered(blk):
    ask, _, disk = blk
    data = disk.read_bytes()
    for sector, room in ((0, [512]), (7, [4096]), (100, [512, 1024, 512]), (SECTORS - 1, [512]), (3, [100, 412])):
        assert await ask(Type.IN, sector, room=room) == (Status.OK, data[sector * 512 : sector * 512 + sum(room)])
    new = random.Random(4).randbytes(4096)
    assert await ask(Type.OUT, 9, data=[new[:512], new[512:4000], new[4000:]]) == (Status.OK, b"")
    assert await ask(Type.IN, 9, room=[4096]) == (Status.OK, new)
    assert (await ask(Type.FLUSH))[0] is Status.OK
    assert disk.read_bytes() == data[: 9 * 512] + new + data[9 * 512 + 4096 :]


async def test_blk_header_in_pieces_and_status_within_a_buffer(blk):
    """A device must not rely on how the driver cuts a request into buffers (section 2.7.4)."""
    ask, _, disk = blk
    header = request(Type.IN, 5)
    answer = await ask.queue.ask([header[:3], header[3:]], [100, 413])
    assert answer == disk.read_bytes()[5 * 512 : 6 * 512] + b"\0"


async def test_blk_discard_and_write_zeroes(blk):
    ask, _, disk = blk
    data = disk.read_bytes()
    segments = [struct.pack("<QII", 8, 8, 0), struct.pack("<QII", 64, 16, 0)]
    assert (await ask(Type.DISCARD, data=segments))[0] is Status.OK
    assert (await ask(Type.WRITE_ZEROES, data=[struct.pack("<QII", 100, 10, 0)]))[0] is Status.OK
    assert (await ask(Type.WRITE_ZEROES, data=[struct.pack("<QII", 200, 8, 1)]))[0] is Status.OK
    expected = bytearray(data)
    for start, count in ((8, 8), (64, 16), (100, 10), (200, 8)):
        expected[start * 512 : (start + count) * 512] = bytes(count * 512)
    assert disk.read_bytes() == expected


async def test_blk_get_id(blk):
    ask, _, _ = blk
    assert await ask(Type.GET_ID, room=[20]) == (Status.OK, b"a serial number too ")


@pytest.mark.parametrize(("room", "written"), [([20], 21), ([64], 20), ([4, 60], 20), ([8], 9)])
async def test_blk_get_id_claims_what_it_wrote(path, disk, room, written):
    """Up to the first byte that it did not write: the status at the end counts only where there is no gap before."""
    device = Blk(str(disk), serial="number one")
    async with served(device, path) as (_, front):
        queue = front.queues[0]
        queue.put([request(Type.GET_ID)], [*room, 1])
        (used,) = await queue.answers()
        assert used.written == written
        assert used.data == (b"number one".ljust(20, b"\0")[: sum(room)] + b"\0")[:written]
    device.close()


@pytest.mark.parametrize("flush", [True, False])
async def test_blk_writes_are_on_the_disk_when_a_driver_that_cannot_flush_hears_of_them(path, disk, monkeypatch, flush):
    """Section 5.2.6.2: neither FLUSH nor CONFIG_WCE taken means that the device writes through."""
    synced: list[object] = []
    pwritev, fdatasync = os.pwritev, os.fdatasync

    def writing(fd, buffers, offset, flags=0):
        done = pwritev(fd, buffers, offset, flags)
        synced.append((offset, bool(flags & os.RWF_DSYNC)))
        return done

    def syncing(fd):
        fdatasync(fd)
        synced.append("all")

    monkeypatch.setattr(os, "pwritev", writing)
    monkeypatch.setattr(os, "fdatasync", syncing)
    device = Blk(str(disk))
    async with Backend(device, path) as backend, FrontEnd(path) as front:
        await front.negotiate(FEATURES | (device.features if flush else device.features & ~Feature.FLUSH))
        await front.set_memory()
        queue = front.queue(0, 64)
        await queue.start()
        ask = Disk(queue)
        for kind, sector, data in (
            (Type.OUT, 1, bytes(512)),
            (Type.DISCARD, 0, struct.pack("<QII", 8, 8, 0)),
            (Type.WRITE_ZEROES, 0, struct.pack("<QII", 64, 8, 1)),
        ):
            assert (await ask(kind, sector, data=[data]))[0] is Status.OK
            # What was synced by now was synced before the answer.
            steps = [(512, True)] if kind is Type.OUT else ["all"]
            assert [step for step in synced if step != (512, False)] == ([] if flush else steps)
            synced.clear()
        assert backend.statistics().queues[0].failed == 0
    device.close()
    assert disk.read_bytes()[512:1024] == bytes(512)


HOSTILE = {
    "beyond the end": (Type.IN, SECTORS, (), (512,)),
    "over the end": (Type.IN, SECTORS - 1, (), (1024,)),
    "far beyond": (Type.IN, 2**63, (), (512,)),
    "half a sector": (Type.IN, 0, (), (100,)),
    "write beyond the end": (Type.OUT, SECTORS, (bytes(512),), ()),
    "write half a sector": (Type.OUT, 0, (bytes(100),), ()),
    "discard beyond the end": (Type.DISCARD, 0, (struct.pack("<QII", SECTORS, 8, 0),), ()),
    "discard too much": (Type.DISCARD, 0, (struct.pack("<QII", 0, 0xFFFFFFFF, 0),), ()),
    "half a segment": (Type.DISCARD, 0, (bytes(15),), ()),
    "too many segments": (Type.DISCARD, 0, (bytes(16 * 33),), ()),
}


@pytest.mark.parametrize("bad", HOSTILE.values(), ids=HOSTILE)
async def test_blk_refuses_what_is_not_on_the_disk(blk, bad):
    ask, _, disk = blk
    data = disk.read_bytes()
    kind, sector, payload, room = bad
    assert (await ask(kind, sector, data=payload, room=room))[0] is Status.IOERR
    assert disk.read_bytes() == data
    assert (await ask(Type.IN, 0, room=[512]))[0] is Status.OK


@pytest.mark.parametrize("kind", [2, 7, 9999])
async def test_blk_says_what_it_does_not_know(blk, kind):
    ask, _, _ = blk
    assert (await ask(kind))[0] is Status.UNSUPP
    assert (await ask(Type.DISCARD, data=[struct.pack("<QII", 0, 1, 1)]))[0] is Status.UNSUPP


async def test_blk_requests_without_a_header_or_a_status(blk):
    ask, _, _ = blk
    assert await ask.queue.ask([b"short"], [1]) == bytes([Status.IOERR])
    assert await ask.queue.ask([request(Type.FLUSH)]) == b""
    assert (await ask(Type.IN, 0, room=[512]))[0] is Status.OK


async def test_blk_read_only(path, disk):
    data = disk.read_bytes()
    device = Blk(str(disk), read_only=True)
    async with served(device, path) as (_, front):
        ask = Disk(front.queues[0])
        assert Feature.RO in Feature(int(front.features) & 0xFFFF)
        assert Feature.DISCARD not in Feature(int(front.features) & 0xFFFF)
        assert (await ask(Type.OUT, 0, data=[bytes(512)]))[0] is Status.IOERR
        assert (await ask(Type.DISCARD, data=[struct.pack("<QII", 0, 1, 0)]))[0] is Status.IOERR
        assert await ask(Type.IN, 0, room=[512]) == (Status.OK, data[:512])
    device.close()


async def test_blk_reads_what_is_not_in_the_page_cache(blk):
    ask, _, disk = blk
    data = disk.read_bytes()
    fd = os.open(disk, os.O_RDWR)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    for sector in range(0, SECTORS, 256):
        assert await ask(Type.IN, sector, room=[4096] * 16) == (Status.OK, data[sector * 512 : sector * 512 + 65536])


# -- the console of the tutorial -----------------------------------------------------------------------------------------


async def test_upper_answers_in_capitals(path):
    async with served(Upper(), path, queues=2) as (_, front):
        receive, transmit = front.queues[RECEIVE], front.queues[TRANSMIT]
        for _ in range(4):
            receive.put([], [64])
        for line in (b"hello\n", b"virtio console\n"):
            assert await transmit.ask([line]) == b""
            (used,) = await receive.answers()
            assert used.data == line.upper()
        assert await receive.stop() == 2  # two buffers have not been used, and are the driver's again


async def test_upper_takes_a_long_request_in_pieces_and_waits_for_room(path):
    """However long it is, and it may be longer than the guest's memory, the device never has more than its queue."""
    device = Upper()
    async with served(device, path, queues=2, size=256) as (_, front):
        receive, transmit = front.queues[RECEIVE], front.queues[TRANSMIT]
        count = 200
        text = front.ram.allocate(PIECE)
        front.ram.at(text, PIECE)[:] = b"a" * PIECE
        for index in range(count):
            transmit.driver.descriptor(index, text, PIECE, NEXT if index < count - 1 else 0, index + 1)
        transmit.driver.offer(0)
        transmit.driver.publish()
        transmit.kick.signal()
        while not device.answers.full():
            await asyncio.sleep(0)
        for _ in range(count):
            receive.put([], [PIECE])
            (used,) = await receive.answers()
            assert used.data == b"A" * PIECE
        assert device.answers.empty()


def test_upper_has_less_than_forty_lines():
    assert len((ROOT / "examples/vhost_user_upper.py").read_text("utf-8").splitlines()) < 40


@pytest.mark.parametrize("name", ["vhost_user_rng", "vhost_user_upper", "vhost_user_blk", "chaos_blk"])
async def test_each_example_is_one_command(name, path, disk):
    arguments = ["socket"] if name == "vhost_user_upper" else ["--socket-path", "socket"]
    if name.endswith("blk"):
        arguments += ["--blk-file", str(disk)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-W", "error", "-m", f"examples.{name}", *arguments], env=environment)
    try:
        while not Path(path).exists():
            assert process.poll() is None
            await asyncio.sleep(0.01)
        async with FrontEnd(path) as front:
            queues = await front.number(Request.GET_QUEUE_NUM)
            assert queues == (2 if name == "vhost_user_upper" else 1)
            if name == "vhost_user_rng":
                queue = await front.start()
                one, two = await queue.ask([], [32]), await queue.ask([], [32])
                assert len(one) == len(two) == 32
                assert one != two
        process.terminate()
        assert process.wait() == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "name", ["vhost_user_rng", "vhost_user_upper", "vhost_user_blk", "chaos_blk", "ivshmem_server"]
)
async def test_an_example_says_in_a_line_why_it_cannot_serve(name, path, disk):
    arguments = ["socket"] if name in {"vhost_user_upper", "ivshmem_server"} else ["--socket-path", "socket"]
    if name.endswith("blk"):
        arguments += ["--blk-file", str(disk)]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        told = [said(name, *arguments)]
        if name.endswith("blk"):
            told.append(said(name, *arguments[:-1], "nowhere"))
    assert told[0].endswith("Address already in use: 'socket'\n")
    assert all(line.endswith("No such file or directory: 'nowhere'\n") for line in told[1:])
    assert all(line.count("\n") == 1 for line in told)


def test_a_disk_has_whole_sectors(path):
    Path("odd").write_bytes(bytes(700))
    line = said("vhost_user_blk", "--socket-path", path, "--blk-file", "odd")
    assert "not a file of whole sectors" in line
    assert line.count("\n") == 1
    assert not Path(path).exists()


def said(name, *arguments):
    """What an example prints that ends by itself and is not content."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", f"examples.{name}", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    return done.stderr
