"""The NVMe controller, without a guest: a driver of a few lines, and what Linux' own never does."""

# pyright: reportOptionalMemberAccess=false
from __future__ import annotations

import asyncio
import os
import random
import struct

import pytest

from aioirqfd import EventFd
from aioirqfd.faults import Drop, Faults, Match, Withhold
from aioirqfd.pci import PciFunction
from aioirqfd.tracing import FlightRecorder
from aioirqfd.tracing.ledger import ledger
from examples.nvme import Nvme
from examples.nvme_controller import BLOCK, MAX_EVENTS, PAGE, QUEUES

RAM = 1 << 20
BLOCKS = 4096
IDENTIFY, FEATURES = 0x06, 0x09


class Driver:
    """A driver with its memory: an admin queue, and I/O queues as they are made."""

    def __init__(self, function, directory):
        self.function = function
        self.device = function.device
        self.memory = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.memory, RAM)
        function.dma.map(0, RAM, fd=self.memory)
        self.depth = 8
        self.tails, self.heads, self.phases = {}, {}, {}
        self.number = 0
        self.bell = EventFd()
        for vector in range(QUEUES + 1):
            function.interrupts.bind(vector, EventFd.from_fd(os.dup(self.bell.fileno()), owns=True))

    def close(self):
        self.bell.close()
        os.close(self.memory)

    def ring(self, queue):
        return 0x10000 + 0x2000 * queue, 0x11000 + 0x2000 * queue

    async def register(self, offset, size=4):
        return int.from_bytes(await self.function.read(0, offset, size), "little")

    async def put(self, offset, value, size=4):
        await self.function.write(0, offset, value.to_bytes(size, "little"))

    def begin(self, queue):
        self.tails[queue] = self.heads[queue] = 0
        self.phases[queue] = 1
        os.pwrite(self.memory, bytes(PAGE), self.ring(queue)[1])

    async def enable(self):
        self.begin(0)
        submissions, completions = self.ring(0)
        await self.put(0x24, (self.depth - 1) | (self.depth - 1) << 16)
        await self.put(0x28, submissions & 0xFFFFFFFF)  # as 32-bit drivers do
        await self.put(0x2C, submissions >> 32)
        await self.put(0x30, completions, 8)
        await self.put(0x14, 1 | 6 << 16 | 4 << 20)
        assert await self.register(0x1C) == 1

    async def make_queue(self, queue, *, completions=None):
        self.begin(queue)
        submissions, there = self.ring(queue)
        size = (self.depth - 1) << 16 | queue
        assert await self.ask(0, 0x05, prp1=there, dw=(size, 3 | queue << 16)) == (0, 0)
        assert await self.ask(0, 0x01, prp1=submissions, dw=(size, 1 | (completions or queue) << 16)) == (0, 0)

    def push(self, queue, opcode, *, namespace=1, prp1=0, prp2=0, dw=()):
        self.number = (self.number + 1) % 65536
        words = [*dw, 0, 0, 0, 0, 0, 0][:6]
        entry = struct.pack("<BBHI8xQQQ6I", opcode, 0, self.number, namespace, 0, prp1, prp2, *words)
        os.pwrite(self.memory, entry, self.ring(queue)[0] + 64 * self.tails[queue])
        self.tails[queue] = (self.tails[queue] + 1) % self.depth
        return self.number

    async def kick(self, queue):
        await self.put(0x1000 + 8 * queue, self.tails[queue])

    async def next(self, queue):
        """The next completion: number, result, status."""
        place = self.ring(queue)[1] + 16 * self.heads[queue]
        async with asyncio.timeout(60):
            while True:
                result, _, _, _, number, status = struct.unpack("<IIHHHH", os.pread(self.memory, 16, place))
                if status & 1 == self.phases[queue]:
                    break
                await self.bell.read()
        self.heads[queue] = (self.heads[queue] + 1) % self.depth
        if not self.heads[queue]:
            self.phases[queue] ^= 1
        await self.put(0x1004 + 8 * queue, self.heads[queue])
        return number, result, status >> 1 & 0x7FF

    async def ask(self, queue, opcode, **fields):
        """Result and status of one command."""
        number = self.push(queue, opcode, **fields)
        await self.kick(queue)
        answered, result, status = await self.next(queue)
        assert answered == number
        return result, status


async def wait_for(found):
    while not found():
        await asyncio.sleep(0)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(random.Random(3).randbytes(BLOCKS * BLOCK))
    return path


@pytest.fixture
async def driver(image, tmp_path):
    device = Nvme(str(image))
    async with PciFunction(device) as function:
        driver = Driver(function, tmp_path)
        await driver.enable()
        try:
            yield driver
        finally:
            await device.reset()
            driver.close()
            device.close()


async def test_what_it_is(driver):
    assert await driver.ask(0, IDENTIFY, prp1=0x8000, dw=(1,)) == (0, 0)
    data = os.pread(driver.memory, PAGE, 0x8000)
    assert data[24:64].decode().strip() == "aioirqfd example disk"
    assert (data[512], data[513], struct.unpack_from("<I", data, 516)[0]) == (0x66, 0x44, 1)
    assert await driver.ask(0, IDENTIFY, prp1=0x8000) == (0, 0)
    assert struct.unpack_from("<Q", os.pread(driver.memory, 8, 0x8000)) == (BLOCKS,)
    assert await driver.ask(0, IDENTIFY, prp1=0x8000, dw=(2,), namespace=0) == (0, 0)
    assert os.pread(driver.memory, 8, 0x8000) == b"\1" + bytes(7)
    assert await driver.ask(0, IDENTIFY, prp1=0x8000, namespace=7) == (0, 0x0B)
    assert await driver.ask(0, IDENTIFY, prp1=0x8000, dw=(0x55,)) == (0, 0x02)
    for page, status in ((1, 0), (2, 0), (3, 0), (4, 0x109)):
        assert await driver.ask(0, 0x02, prp1=0x8000, dw=(page | 15 << 16,)) == (0, status)


@pytest.mark.parametrize("pages", [1, 2, 3, 17, 64])
async def test_data_by_prp_entries_and_lists(driver, image, pages):
    await driver.make_queue(1)
    size = pages * PAGE
    places = [0x40000 + 0x2000 * number for number in range(pages)]
    table = 0x30000 + PAGE - 8 * 5  # a list that goes on in another page after four entries
    rest = places[1:]
    if len(rest) == 1:
        prp2 = rest[0]
    elif len(rest) <= 5:
        prp2 = table
        os.pwrite(driver.memory, struct.pack(f"<{len(rest)}Q", *rest), table)
    else:
        prp2 = table
        os.pwrite(driver.memory, struct.pack("<5Q", *rest[:4], 0x38000), table)
        os.pwrite(driver.memory, struct.pack(f"<{len(rest) - 4}Q", *rest[4:]), 0x38000)
    if not rest:
        prp2 = 0
    assert await driver.ask(1, 0x02, prp1=places[0], prp2=prp2, dw=(8, 0, size // BLOCK - 1)) == (0, 0)
    data = image.read_bytes()[8 * BLOCK :]
    assert [os.pread(driver.memory, PAGE, place) for place in places] == [
        data[at : at + PAGE] for at in range(0, size, PAGE)
    ]
    assert await driver.ask(1, 0x01, prp1=places[0], prp2=prp2, dw=(0, 0, size // BLOCK - 1 | 1 << 30)) == (0, 0)
    assert image.read_bytes()[:size] == data[:size]


async def test_commands_that_cannot_be_done(driver):
    await driver.make_queue(1)
    for fields, status in (
        ({"opcode": 0x02, "dw": (BLOCKS, 0, 0)}, 0x80),
        ({"opcode": 0x02, "dw": (BLOCKS - 1, 0, 1)}, 0x80),
        ({"opcode": 0x02, "dw": (0, 1, 0)}, 0x80),
        ({"opcode": 0x02, "namespace": 2}, 0x0B),
        ({"opcode": 0x00, "namespace": 2}, 0x0B),
        ({"opcode": 0x7F}, 0x01),
        ({"opcode": 0x02, "prp1": RAM}, 0x04),
        ({"opcode": 0x01, "prp1": 2**64 - PAGE}, 0x04),
        ({"opcode": 0x02, "dw": (0, 0, 1023)}, 0x02),
        ({"opcode": 0x02, "prp1": 0x8000, "prp2": RAM, "dw": (0, 0, 100)}, 0x04),
        ({"opcode": 0x09, "dw": (0, 4), "prp1": RAM}, 0x04),
    ):
        assert await driver.ask(1, **fields) == (0, status), fields
    assert await driver.ask(1, 0x00, namespace=0xFFFFFFFF) == (0, 0)


async def test_zeroes_and_what_is_no_longer_needed(driver, image):
    await driver.make_queue(1)
    before = image.read_bytes()
    assert await driver.ask(1, 0x08, dw=(16, 0, 15)) == (0, 0)
    os.pwrite(driver.memory, struct.pack("<IIQIIQ", 0, 8, 100, 0, 8, 200), 0x8000)
    assert await driver.ask(1, 0x09, prp1=0x8000, dw=(1, 4)) == (0, 0)
    expected = bytearray(before)
    for first, count in ((16, 16), (100, 8), (200, 8)):
        expected[first * BLOCK : (first + count) * BLOCK] = bytes(count * BLOCK)
    assert image.read_bytes() == expected


async def test_more_completions_than_there_is_room_for_wait(driver):
    await driver.make_queue(1)
    numbers = [driver.push(1, 0x00) for _ in range(driver.depth - 1)]
    await driver.kick(1)
    for _ in range(3):
        there = driver.device.completions[1]
        while (there.tail + 1) % there.size != there.head:
            await asyncio.sleep(0)
        numbers += [driver.push(1, 0x00) for _ in range(3)]
        await driver.kick(1)
        while not there.room._waiters:
            await asyncio.sleep(0)
        assert [(await driver.next(1))[0] for _ in range(3)] == numbers[:3]
        del numbers[:3]
    assert [(await driver.next(1))[0] for _ in numbers] == numbers


async def test_queues_that_cannot_be_made(driver):
    await driver.make_queue(1)
    for opcode, prp1, dw, status in (
        (0x05, 0x8000, (1 | 7 << 16, 3), 0x101),  # it is there
        (0x05, 0x8000, (0 | 7 << 16, 3), 0x101),
        (0x05, 0x8000, (QUEUES + 1 | 7 << 16, 3), 0x101),
        (0x05, 0x8000, (2, 3), 0x102),
        (0x05, 0x8000, (2 | 4095 << 16, 3), 0x102),
        (0x05, 0x8000, (2 | 7 << 16, 3 | 99 << 16), 0x108),
        (0x05, 0x8001, (2 | 7 << 16, 3), 0x02),
        (0x05, 0x8000, (2 | 7 << 16, 2), 0x02),
        (0x01, 0x8000, (2 | 7 << 16, 1 | 5 << 16), 0x100),
        (0x01, 0x8000, (1 | 7 << 16, 1 | 1 << 16), 0x101),
        (0x04, 0, (1,), 0x10C),  # a submission queue uses it
        (0x04, 0, (0,), 0x101),
        (0x00, 0, (0,), 0x101),
        (0x00, 0, (9,), 0x101),
    ):
        assert await driver.ask(0, opcode, prp1=prp1, dw=dw) == (0, status), (opcode, dw)
    assert await driver.ask(0, 0x00, dw=(1,)) == (0, 0)
    assert await driver.ask(0, 0x04, dw=(1,)) == (0, 0)
    await driver.make_queue(1)


async def test_events_and_aborts(driver):
    for _ in range(MAX_EVENTS):
        driver.push(0, 0x0C)
    await driver.kick(0)
    assert (await driver.ask(0, 0x0C)) == (0, 0x105)
    # The first of them is aborted: it is completed, and then the abort.
    driver.push(0, 0x08, dw=(1 << 16,))
    await driver.kick(0)
    assert await driver.next(0) == (1, 0, 0x07)
    assert (await driver.next(0))[1:] == (0, 0)
    assert await driver.ask(0, 0x08, dw=(77 << 16,)) == (1, 0)
    # A doorbell that is not there, and a value that cannot be.
    await driver.put(0x1000 + 8 * 9, 1)
    assert await driver.next(0) == (2, 0x01 << 16, 0)
    await driver.put(0x1000, 99)
    assert await driver.next(0) == (3, 1 << 8 | 0x01 << 16, 0)


async def test_features(driver):
    assert await driver.ask(0, FEATURES, dw=(7, 3 | 5 << 16)) == (3 | 3 << 16, 0)
    assert await driver.ask(0, 0x0A, dw=(7,)) == (3 | 3 << 16, 0)
    assert await driver.ask(0, 0x0A, dw=(6,)) == (1, 0)
    assert await driver.ask(0, FEATURES, dw=(0x0B, 0x100)) == (0, 0)
    assert await driver.ask(0, FEATURES, dw=(0xC0, 1)) == (0, 2)


async def test_reset_and_shutdown(driver):
    await driver.make_queue(1)
    await driver.put(0x14, 1 | 1 << 14)
    assert await driver.register(0x1C) == 1 | 2 << 2
    await driver.put(0x14, 0)
    assert (await driver.register(0x1C), driver.device.submissions) == (0, {})
    await driver.enable()
    await driver.make_queue(1)
    assert await driver.ask(1, 0x00) == (0, 0)
    await driver.function.reset()
    assert (await driver.register(0x1C), await driver.register(0x14)) == (0, 0)


async def test_queue_memory_that_goes_away_is_a_failed_controller(driver):
    await driver.function.dma.unmap(0, RAM)
    await driver.kick(0)
    await driver.put(0x1000, 1)
    for _ in range(5):
        await asyncio.sleep(0)
    assert await driver.register(0x1C) == 3
    await driver.put(0x14, 0)
    assert await driver.register(0x1C) == 0


def test_an_image_that_is_none(tmp_path):
    (tmp_path / "small").write_bytes(bytes(511))
    with pytest.raises(ValueError, match="no whole block"):
        Nvme(str(tmp_path / "small"))
    with pytest.raises(FileNotFoundError):
        Nvme(str(tmp_path / "none"))


async def test_a_queue_that_is_deleted_tells_of_what_it_has_completed(driver, monkeypatch):
    await driver.make_queue(1)
    gate, begun, calls = asyncio.Event(), asyncio.Event(), []

    async def slow(command):
        begun.set()
        await gate.wait()

    monkeypatch.setitem(driver.device.io, 0x00, slow)
    number = driver.push(1, 0x08, dw=(16, 0, 15))
    driver.push(1, 0x00)  # taken together with it
    await driver.kick(1)
    await begun.wait()
    monkeypatch.setattr(driver.device, "interrupt", calls.append)
    driver.push(0, 0x00, dw=(1,))
    await driver.kick(0)
    await wait_for(lambda: 0 in calls)
    assert calls == [1, 0]
    assert (await driver.next(1))[0] == number


async def test_a_flight_recorder_has_its_queues(image, tmp_path):
    recorder, faults = FlightRecorder(), Faults(nonconforming=True)
    device = faults.wrap(Nvme(str(image)))
    async with PciFunction(device, tracer=recorder, name="Nvme-2") as function:
        driver = Driver(function, tmp_path)
        await driver.enable()
        await driver.make_queue(1)
        number = driver.number + 1
        assert await driver.ask(1, 0x00) == (0, 0)
        assert [
            (record.event, record.fields.get("head"))
            for record in recorder.records()
            if record.fields.get("source") == "Nvme-2 queue 1"
        ] == [
            ("queue_kicked", None),
            ("request_begun", number),
            ("request_completed", number),
            ("call_written", None),
        ]
        driver.push(0, 0x0C)  # waits for an event: nothing is late
        await driver.kick(0)
        assert await driver.ask(0, IDENTIFY, prp1=0x8000, dw=(1,)) == (0, 0)
        assert not ledger(recorder.log(), slow_ns=0).owed
        # One command that is kept back, and one whose interrupt is lost: each is named, and the first one is no interrupt for nothing.
        faults.add(Match("flush"), Withhold())
        driver.push(1, 0x00)
        await driver.kick(1)
        await wait_for(lambda: device.submissions[1].late)
        faults.add(Match("interrupt", vector=1), Drop())
        driver.push(1, 0x08, dw=(16, 0, 15))
        await driver.kick(1)
        await wait_for(lambda: len([one for one in recorder.records() if one.fields.get("head") == number + 4]) == 2)
        await function.interrupts.flush()
        found = ledger(recorder.log(), slow_ns=0)
        assert ["Nvme-2 queue 1: 1 requests were begun and not completed" in one for one in found.troubles] == [True]
        assert [one.said.partition(": ")[2].partition(",")[0] for one in found.entries if one.owed] == [
            "1 injected and not sent on"
        ]
        assert "interrupts without a completion" not in str(found)
        await device.reset()
        driver.close()
        device.close()
