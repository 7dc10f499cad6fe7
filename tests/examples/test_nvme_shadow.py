"""The NVMe controller's doorbells in the driver's memory: which are rung, which are found, and that none is missed."""

# pyright: reportOptionalMemberAccess=false
from __future__ import annotations

import asyncio
import os
import random
import struct

import pytest

from aioirqfd.pci import PciFunction
from examples.nvme import Nvme
from examples.nvme_controller import BLOCK, PAGE
from tests.examples.test_nvme import Driver

SHADOW, EVENTS = 0x70000, 0x71000
SHARE, FLUSH, IDENTIFY = 0x7C, 0x00, 0x06


class Shadowing(Driver):
    """As Linux' own rings: writes the value to memory, and the register when it passes the one that it was told to ring for."""

    def __init__(self, function, directory):
        super().__init__(function, directory)
        self.registers = 0

    async def share(self):
        assert await self.ask(0, SHARE, prp1=SHADOW, prp2=EVENTS) == (0, 0)

    def word(self, page, bell):
        return struct.unpack("<I", os.pread(self.memory, 4, page + 4 * bell))[0]

    async def put(self, offset, value, size=4):
        bell = (offset - 0x1000) // 4
        if bell >= 2:
            old = self.word(SHADOW, bell)
            os.pwrite(self.memory, struct.pack("<I", value), SHADOW + 4 * bell)
            if (value - self.word(EVENTS, bell) - 1) & 0xFFFF >= (value - old) & 0xFFFF:
                return
            self.registers += 1
        await super().put(offset, value, size)


@pytest.fixture
async def driver(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(random.Random(3).randbytes(64 * BLOCK))
    device = Nvme(str(path))
    async with PciFunction(device) as function:
        driver = Shadowing(function, tmp_path)
        await driver.enable()
        await driver.make_queue(1)
        try:
            yield driver
        finally:
            await device.reset()
            driver.close()
            device.close()


async def test_the_controller_says_that_it_can(driver, tmp_path):
    for shadow, capabilities in ((True, 1 << 8), (False, 0)):
        device = Nvme(str(tmp_path / "image"), shadow=shadow)
        assert struct.unpack_from("<H", device.controller_data(), 256) == (capabilities,)
        assert (SHARE in device.admin) is shadow
        device.close()
    assert await driver.ask(0, SHARE, prp1=SHADOW + 4, prp2=EVENTS) == (0, 0x02)
    assert await driver.ask(0, SHARE, prp1=SHADOW, prp2=EVENTS + 4) == (0, 0x02)
    assert await driver.ask(0, SHARE, prp1=1 << 40, prp2=EVENTS) == (0, 0x04)
    # It goes on by registers.
    assert driver.device.shadows is None
    driver.push(1, FLUSH)
    await Driver.put(driver, 0x1008, driver.tails[1])
    assert (await driver.next(1))[1:] == (0, 0)


async def test_one_command_at_a_time_rings_once_and_tells_nothing_of_what_it_took(driver):
    await driver.share()
    rung, sizes = driver.device.rung, driver.depth
    for _ in range(3 * sizes):
        assert await driver.ask(1, FLUSH) == (0, 0)
    # Each command is rung for, since the controller was asleep; of the completions' it hears once a round at most.
    completions = driver.registers - 3 * sizes
    assert 0 <= completions <= 3 + 1
    assert driver.device.rung - rung == driver.registers


async def test_what_comes_while_the_controller_is_busy_is_found_without_a_ring(driver, monkeypatch):
    await driver.share()
    gate = asyncio.Event()
    flush = driver.device.io[FLUSH]

    async def slow(command):
        await gate.wait()
        await flush(command)

    monkeypatch.setitem(driver.device.io, FLUSH, slow)
    numbers = [driver.push(1, FLUSH)]
    await driver.kick(1)
    await asyncio.sleep(0)
    registers = driver.registers
    for _ in range(5):
        numbers.append(driver.push(1, FLUSH))
        await driver.kick(1)
    assert driver.registers == registers
    gate.set()
    assert [(await driver.next(1))[0] for _ in numbers] == numbers


async def test_a_register_that_is_behind_the_memory_takes_nothing_back(driver):
    """A posted write may come after the controller has found a newer value by itself."""
    await driver.share()
    for _ in range(3):
        await driver.ask(1, FLUSH)
    commands, queue = driver.device.commands, driver.device.completions[1]
    head = queue.head
    await driver.function.write(0, 0x1008, struct.pack("<I", 1))
    await driver.function.write(0, 0x100C, struct.pack("<I", 2))
    for _ in range(10):
        await asyncio.sleep(0)
    assert (driver.device.commands, queue.head) == (commands, head)
    assert await driver.ask(1, FLUSH) == (0, 0)
    assert driver.device.commands == commands + 1


async def test_the_value_that_is_written_between_two_looks_is_found(driver, monkeypatch):
    """The driver reads what to ring for before it is told: it does not ring, and the second look finds what it wrote."""
    await driver.share()
    dma = driver.function.dma
    write, number = type(dma).write, []

    async def late(self, address, data):
        if address == EVENTS + 8 and not number:
            number.append(driver.push(1, FLUSH))
            os.pwrite(driver.memory, struct.pack("<I", driver.tails[1]), SHADOW + 8)
        await write(self, address, data)

    monkeypatch.setattr(type(dma), "write", late)
    first = driver.push(1, FLUSH)
    await driver.kick(1)
    assert (await driver.next(1))[0] == first
    assert (await driver.next(1))[0] == number[0]


async def test_more_completions_than_there_is_room_for_wait(driver):
    await driver.share()
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


async def test_a_value_that_cannot_be_is_an_event(driver):
    await driver.share()
    driver.push(0, 0x0C)
    await driver.kick(0)
    os.pwrite(driver.memory, struct.pack("<I", driver.depth), SHADOW + 8)
    await driver.function.write(0, 0x1008, struct.pack("<I", 0))
    assert (await driver.next(0))[1:] == (1 << 8 | 0x01 << 16, 0)
    os.pwrite(driver.memory, struct.pack("<I", 0), SHADOW + 8)
    assert await driver.ask(1, FLUSH) == (0, 0)


async def test_doorbells_go_on_where_the_registers_were(driver):
    for _ in range(3):
        await Driver.put(driver, 0x1008, (driver.push(1, FLUSH), driver.tails[1])[1])
        await driver.next(1)
    await Driver.put(driver, 0x100C, driver.heads[1])
    await driver.share()
    assert [driver.word(page, bell) for page in (SHADOW, EVENTS) for bell in (2, 3)] == [3] * 4
    assert await driver.ask(1, FLUSH) == (0, 0)


async def test_queues_that_are_made_later_begin_at_zero_and_a_reset_forgets_all(driver):
    await driver.share()
    for _ in range(3):
        await driver.ask(1, FLUSH)
    assert await driver.ask(0, 0x00, dw=(1,)) == (0, 0)
    assert await driver.ask(0, 0x04, dw=(1,)) == (0, 0)
    await driver.make_queue(1)
    assert [driver.word(page, bell) for page in (SHADOW, EVENTS) for bell in (2, 3)] == [0] * 4
    assert await driver.ask(1, FLUSH) == (0, 0)
    await Driver.put(driver, 0x14, 0)
    assert driver.device.shadows is None
    os.pwrite(driver.memory, bytes(PAGE), SHADOW)
    await driver.enable()
    await driver.make_queue(1)
    driver.push(1, FLUSH)
    await Driver.put(driver, 0x1008, driver.tails[1])
    assert (await driver.next(1))[1:] == (0, 0)


async def test_memory_that_goes_away_is_a_failed_controller(driver):
    assert await driver.ask(0, SHARE, prp1=SHADOW, prp2=EVENTS) == (0, 0)
    driver.device.shadows = (1 << 40, EVENTS)
    driver.push(1, FLUSH)
    await Driver.put(driver, 0x1008, driver.tails[1])
    for _ in range(5):
        await asyncio.sleep(0)
    assert await driver.register(0x1C) & 2
