"""The vhost-user examples, each served by the example itself, with a test for its front-end."""

# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# (what is not there, or of another kind, fails the test, as it should)
from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import runpy
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from aioirqfd.vhost_user import Backend
from aioirqfd.vhost_user.connection import Connection
from aioirqfd.vhost_user.features import ProtocolFeature
from aioirqfd.vhost_user.messages import BackendRequest, ConfigSpace, Message, Request
from aioirqfd.vhost_user.protocol import Direction
from aioirqfd.virtio.ring import NEXT
from examples.vhost_user_blk import MAX_SECTORS, Blk, Feature, Status, Type
from examples.vhost_user_upper import PIECE, RECEIVE, TRANSMIT, Upper
from tests.examples.disk import SECTORS
from tests.vhost_user.frontend import FEATURES, PROTOCOL_FEATURES, FrontEnd

ROOT = Path(__file__).parents[2]


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


READY = {
    "vhost_user_rng": "Rng: listening at 'socket'\n",
    "vhost_user_upper": "Upper: listening at 'socket'\n",
    "vhost_user_blk": "Blk: listening at 'socket'\n",
    "virtio_net": "Net: listening at 'socket'\n",
    "virtio_console": "Console: listening at 'socket'\n",
    "chaos_blk": "chaos: ready\n",
}


# The program chooses its loop by itself.
@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("module", [False, True], ids=["as a file", "as a module"])
@pytest.mark.parametrize("name", READY)
async def test_each_example_is_one_command(name, module, path, disk):
    """It needs nothing on the path but the package, says when it is ready, and ends when it is told to."""
    arguments = ["--socket-path", "socket"]
    if name.endswith("blk"):
        arguments += ["--blk-file", str(disk)]
    environment = os.environ | ({"PYTHONPATH": str(ROOT)} if module else {})
    program = ["-m", f"examples.{name}"] if module else ["-P", str(ROOT / "examples" / f"{name}.py")]
    process = subprocess.Popen(
        [sys.executable, "-W", "error", *program, *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == READY[name]
        assert Path(path).exists()
        async with FrontEnd(path) as front:
            queues = await front.number(Request.GET_QUEUE_NUM)
            assert queues == (2 if name in {"vhost_user_upper", "virtio_net", "virtio_console"} else 1)
            if name == "vhost_user_rng":
                queue = await front.start()
                one, two = await queue.ask([], [32]), await queue.ask([], [32])
                assert len(one) == len(two) == 32
                assert one != two
        process.terminate()
        assert process.wait() == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "name", ["vhost_user_rng", "vhost_user_upper", "vhost_user_blk", "chaos_blk", "ivshmem_server"]
)
def test_an_example_says_in_a_line_why_it_cannot_serve(name, path, disk, said):
    arguments = ["socket"] if name == "ivshmem_server" else ["--socket-path", "socket"]
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


@pytest.mark.parametrize("name", ["vhost_user_blk", "chaos_blk"])
@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("nowhere", "No such file or directory: 'nowhere'"),
        (".", "an image is a regular file or a block device, and this is neither: '.'"),
        ("pipe", "an image is a regular file or a block device, and this is neither: 'pipe'"),
        ("odd", "not a file of whole sectors, but of 700 bytes: 'odd'"),
    ],
)
@pytest.mark.parametrize("options", [(), ("--read-only",)], ids=["to write", "to read"])
def test_a_disk_says_what_is_wrong_with_its_image(name, image, text, options, path, said):
    Path("odd").write_bytes(bytes(700))
    os.mkfifo("pipe")
    line = said(name, "--socket-path", path, "--blk-file", image, *options)
    assert line.endswith(f"{text}\n")
    assert line.count("\n") == 1
    assert not Path(path).exists()


@pytest.mark.parametrize("name", ["vhost_user_blk", "chaos_blk"])
@pytest.mark.parametrize("count", ["0", "257", "-1", "x"])
def test_a_number_of_queues_that_cannot_be_is_a_wrong_command_line(name, count, disk, said):
    line = said(name, "--socket-path", "socket", "--blk-file", str(disk), f"--num-queues={count}", status=2)
    assert line.endswith(f"argument --num-queues: a number, 1..256, not '{count}'\n")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("vhost_user_rng", "rng"), ("vhost_user_blk", "block"), ("vhost_user_upper", "console")),
        *(("chaos_blk", "block"), ("virtio_net", "net"), ("virtio_console", "console")),
    ],
)
def test_the_programs_tell_their_capabilities(name, kind):
    done = subprocess.run(
        [sys.executable, "-P", ROOT / "examples" / f"{name}.py", "--print-capabilities"],
        capture_output=True,
        text=True,
        check=True,
    )
    features = ["read-only", "blk-file"] if kind == "block" else []
    assert json.loads(done.stdout) == {"type": kind, "features": features}


# -- a disk of another size ----------------------------------------------------------------------------------------------


class Small(Blk):
    """Blk, but looks at its image all the time."""

    async def background(self):
        while True:
            await asyncio.sleep(0)
            self.look()


@contextlib.asynccontextmanager
async def watched(path, disk):
    """A disk, a front-end that uses it, and the channel on which it hears of changes."""
    device = Small(str(disk))
    async with Backend(device, path) as backend, FrontEnd(path) as front:
        features = PROTOCOL_FEATURES | ProtocolFeature.CONFIG | ProtocolFeature.BACKEND_REQ
        await front.negotiate(FEATURES | device.features, features)
        await front.set_memory()
        ours, theirs = socket.socketpair()
        channel = Connection(ours, Direction.BACKEND_REQUEST)
        await front.tell(Request.SET_BACKEND_REQ_FD, None, [theirs.fileno()])
        theirs.close()
        assert await capacity(front) == SECTORS
        await front.queue(0, 64).start()
        try:
            yield Disk(front.queues[0]), front, channel, backend
        finally:
            channel.close()
    device.close()


async def capacity(front):
    reply = await front.ask(Request.GET_CONFIG, ConfigSpace(0, 0, bytes(8)))
    return int.from_bytes(reply.payload.data, "little")


async def test_a_guest_is_told_that_its_disk_has_grown_and_uses_the_rest(path, disk):
    async with watched(path, disk) as (ask, front, channel, _):
        assert (await ask(Type.IN, SECTORS, room=[512]))[0] is Status.IOERR
        more = random.Random(5).randbytes(SECTORS * 512)
        with disk.open("ab") as image:
            image.write(more)
        async with asyncio.timeout(60):
            assert await channel.receive() == Message(BackendRequest.CONFIG_CHANGE_MSG)
        assert await capacity(front) == 2 * SECTORS
        for sector in (SECTORS, 2 * SECTORS - 1):
            start = (sector - SECTORS) * 512
            assert await ask(Type.IN, sector, room=[512]) == (Status.OK, more[start : start + 512])
            assert await ask(Type.OUT, sector, data=[b"n" * 512]) == (Status.OK, b"")
        assert (await ask(Type.IN, 2 * SECTORS, room=[512]))[0] is Status.IOERR
        assert disk.stat().st_size == 2 * SECTORS * 512


async def test_a_guest_is_told_that_its_disk_has_shrunk_and_does_not_let_it_grow_again(path, disk):
    async with watched(path, disk) as (ask, front, channel, _):
        os.truncate(disk, 100 * 512 + 7)  # what is no whole sector is none of the disk
        async with asyncio.timeout(60):
            assert await channel.receive() == Message(BackendRequest.CONFIG_CHANGE_MSG)
        assert await capacity(front) == 100
        assert (await ask(Type.OUT, 100, data=[b"n" * 512]))[0] is Status.IOERR
        assert (await ask(Type.OUT, 99, data=[b"n" * 512]))[0] is Status.OK
        assert disk.stat().st_size == 100 * 512 + 7


async def test_a_queue_serves_a_disk_that_has_grown_by_itself(path, disk):
    """Its file is the device's at once, whoever has asked for the configuration."""
    device = Blk(str(disk))
    async with Backend(device, path), FrontEnd(path) as front:
        await front.negotiate(FEATURES | device.features, PROTOCOL_FEATURES | ProtocolFeature.CONFIG)
        assert device.file.size == SECTORS * 512
        os.truncate(disk, 2 * SECTORS * 512)
        assert await capacity(front) == 2 * SECTORS
        assert device.file.size == 2 * SECTORS * 512
    device.close()


@pytest.fixture
def said(monkeypatch, capsys):
    """What an example prints that ends by itself and is not content."""

    def said(name, *arguments, status=1):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit) as raised:
            runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
        printed, code = capsys.readouterr().err, raised.value.code
        if isinstance(code, str):  # it is printed on the way out, and the status is 1
            printed, code = f"{printed}{code}\n", 1
        assert code == status
        return printed

    return said
