"""The NVMe disk is saved, and another process goes on: each command is done once, and completed once."""

# pyright: reportOptionalMemberAccess=false
from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import struct

import pytest

from aioirqfd import EventFd
from aioirqfd.errors import SnapshotError
from aioirqfd.faults import Faults, Hang, Match
from aioirqfd.pci import PciFunction, PciFunctionState
from examples.nvme import Nvme
from examples.nvme_controller import BLOCK, QUEUES
from tests.examples.test_nvme import RAM, Driver
from tests.examples.test_nvme_shadow import FLUSH, Shadowing

EVENT, IDENTIFY, WRITE_ZEROES, FEATURES, SET_FEATURES, ABORT = 0x0C, 0x06, 0x08, 0x0A, 0x09, 0x08
BLOCKS = 64


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(random.Random(3).randbytes(BLOCKS * BLOCK))
    return path


@contextlib.asynccontextmanager
async def served(path, *, faults=None):
    device = Nvme(str(path))
    if faults is not None:
        device = faults.wrap(device)
    try:
        async with PciFunction(device) as function:
            try:
                yield function
            finally:
                await device.reset()
    finally:
        device.close()


@contextlib.asynccontextmanager
async def driven(path, tmp_path, kind=Driver, *, faults=None):
    """Its driver, with a queue."""
    async with served(path, faults=faults) as function:
        with contextlib.closing(kind(function, tmp_path)) as driver:
            await driver.enable()
            await driver.make_queue(1)
            yield driver


async def move(driver, function):
    """Have another function go on; the driver does not know."""
    state = json.dumps(driver.function.save().to_dict())
    await function.pause()
    await function.restore(PciFunctionState.from_dict(json.loads(state)))
    function.dma.map(0, RAM, fd=driver.memory)
    driver.function, driver.device = function, function.device
    for vector in range(QUEUES + 1):
        function.interrupts.bind(vector, EventFd.from_fd(os.dup(driver.bell.fileno()), owns=True))
    function.resume()


async def go_on(driver, function, again):
    """In the same function again, or in another one."""
    if again:
        driver.function.resume()
    else:
        await move(driver, function)


async def identify(driver):
    assert await driver.ask(0, IDENTIFY, prp1=0x8000, dw=(1,)) == (0, 0)
    return os.pread(driver.memory, 4096, 0x8000)


@pytest.mark.parametrize("kind", [Driver, Shadowing])
async def test_commands_that_come_during_the_pause_are_the_other_ones(path, tmp_path, kind):
    other_path = tmp_path / "other"  # the same disk, at another place
    other_path.write_bytes(path.read_bytes())
    async with driven(path, tmp_path, kind) as driver, served(other_path) as other:
        if isinstance(driver, Shadowing):
            await driver.share()
        before = await identify(driver)
        assert await driver.ask(0, SET_FEATURES, dw=(0x0B, 0x155)) == (0, 0)
        event = driver.push(0, EVENT)
        await driver.kick(0)
        for _ in range(3):
            assert await driver.ask(1, FLUSH) == (0, 0)
        await driver.function.pause()
        numbers = []
        for _ in range(4):
            numbers.append(driver.push(1, FLUSH))
            await driver.kick(1)
        first = driver.device
        commands = first.commands
        await move(driver, other)
        assert [await driver.next(1) for _ in numbers] == [(number, 0, 0) for number in numbers]
        assert (first.commands, driver.device.commands) == (commands, 4)
        for _ in range(2 * driver.depth):
            assert await driver.ask(1, FLUSH) == (0, 0)
        assert await driver.ask(0, FEATURES, dw=(0x0B,)) == (0x155, 0)
        assert await identify(driver) == before
        await Driver.put(driver, 0x1000 + 8 * 9, 1)  # a doorbell that is not there: what waits for an event hears of it
        assert await driver.next(0) == (event, 1 << 16, 0)


async def test_a_command_whose_completion_has_no_room_is_done_once(path, tmp_path):
    async with driven(path, tmp_path) as driver, served(path) as other:
        device, there = driver.device, driver.device.completions[1]
        numbers = [driver.push(1, FLUSH) for _ in range(driver.depth - 1)]
        await driver.kick(1)
        while (there.tail + 1) % there.size != there.head:
            await asyncio.sleep(0)
        numbers += [driver.push(1, FLUSH) for _ in range(3)]
        await driver.kick(1)
        while not there.room._waiters:
            await asyncio.sleep(0)
        await driver.function.pause()
        assert device.commands == driver.depth
        assert device.submissions[1].done[0][0].number == numbers[driver.depth - 1]
        await move(driver, other)
        assert [await driver.next(1) for _ in numbers] == [(number, 0, 0) for number in numbers]
        assert other.device.commands == 2


async def full(driver):
    """Have the admin completion queue full, once what is in the submission queue is taken."""
    while driver.device.submissions[0].head != driver.tails[0]:
        await asyncio.sleep(0)
    numbers = [driver.push(0, FEATURES, dw=(7,)) for _ in range(driver.depth - 1)]
    await driver.kick(0)
    there = driver.device.completions[0]
    while (there.tail + 1) % there.size != there.head:
        await asyncio.sleep(0)
    return numbers


@pytest.mark.parametrize("again", [False, True])
async def test_what_an_abort_completes_has_no_room_either(path, tmp_path, again):
    async with driven(path, tmp_path) as driver, served(path) as other:
        event = driver.push(0, EVENT)
        await driver.kick(0)
        numbers = await full(driver)
        numbers += [event, driver.push(0, ABORT, dw=(event << 16,))]
        await driver.kick(0)
        while len(driver.device.submissions[0].done) < 2:
            await asyncio.sleep(0)
        await driver.function.pause()
        await go_on(driver, other, again)
        assert [(await driver.next(0))[0] for _ in numbers] == numbers
        await identify(driver)


@pytest.mark.parametrize("again", [False, True])
async def test_a_doorbell_that_is_an_event_does_not_wait_for_room(path, tmp_path, again):
    async with driven(path, tmp_path) as driver, served(path) as other:
        event = driver.push(0, EVENT)
        await driver.kick(0)
        numbers = await full(driver)
        async with asyncio.timeout(60):
            await driver.put(0x1000 + 8 * 9, 1)
        await driver.function.pause()
        await go_on(driver, other, again)
        assert [(await driver.next(0))[0] for _ in range(8)] == [*numbers, event]
        await identify(driver)


async def test_a_controller_that_fails_while_it_comes_to_rest_is_at_rest(path, tmp_path, monkeypatch):
    gate, begun = asyncio.Event(), asyncio.Event()

    async def slow(command):
        begun.set()
        await gate.wait()

    async with driven(path, tmp_path) as driver:
        monkeypatch.setitem(driver.device.io, FLUSH, slow)
        driver.push(1, FLUSH)
        await driver.kick(1)
        await begun.wait()
        pausing = asyncio.create_task(driver.function.pause())
        await asyncio.sleep(0)
        await driver.function.dma.unmap(0, RAM)
        gate.set()
        async with asyncio.timeout(60):
            await pausing
        assert await driver.register(0x1C) == 3


async def test_a_disk_that_was_left_paused_works_when_it_is_served_again(path, tmp_path):
    device = Nvme(str(path))
    async with PciFunction(device) as function:
        await function.pause()
    async with PciFunction(device) as function:
        with contextlib.closing(Driver(function, tmp_path)) as driver:
            await driver.enable()
            await identify(driver)
    device.close()


@pytest.mark.parametrize("again", [False, True])
async def test_what_was_taken_together_stops_behind_the_command_that_is_done(path, tmp_path, monkeypatch, again):
    """And goes on where it stopped: in the same process, or in another one."""
    gate, begun = asyncio.Event(), asyncio.Event()
    async with driven(path, tmp_path) as driver, served(path) as other:

        async def slow(command):
            begun.set()
            await gate.wait()

        monkeypatch.setitem(driver.device.io, FLUSH, slow)
        numbers = [driver.push(1, FLUSH)] + [driver.push(1, WRITE_ZEROES) for _ in range(3)]
        await driver.kick(1)
        await begun.wait()
        pausing = asyncio.create_task(driver.function.pause())
        await asyncio.sleep(0)
        assert driver.device.under_way() == ["a command of queue 1"]
        gate.set()
        await pausing
        assert driver.device.commands == 1
        assert await driver.next(1) == (numbers[0], 0, 0)
        await go_on(driver, other, again)
        assert [await driver.next(1) for _ in numbers[1:]] == [(number, 0, 0) for number in numbers[1:]]
        assert driver.device.commands == (4 if again else 3)


async def test_a_command_that_a_fault_keeps_is_named_and_the_device_runs_on(path, tmp_path):
    faults = Faults(nonconforming=True)
    async with driven(path, tmp_path, faults=faults) as driver:
        hung = faults.add(Match("flush"), Hang())
        number = driver.push(1, FLUSH)
        await driver.kick(1)
        while not driver.device.submissions[1].late:
            await asyncio.sleep(0)
        with pytest.raises(
            TimeoutError, match=r"Nvme has not come to rest within 0 s \(a command of queue 1\); it runs on"
        ):
            await driver.function.pause(timeout=0)
        hung.remove()
        assert (await driver.next(1))[0] == number
        assert await driver.ask(1, WRITE_ZEROES) == (0, 0)


async def test_a_failed_controller_stays_one(path, tmp_path):
    async with driven(path, tmp_path) as driver, served(path) as other:
        await driver.function.dma.unmap(0, RAM)
        driver.push(0, IDENTIFY)
        await driver.kick(0)
        while not driver.device.status & 2:
            await asyncio.sleep(0)
        await driver.function.pause()
        await move(driver, other)
        assert await driver.register(0x1C) == 3
        assert [queue.task for queue in other.device.submissions.values()] == [None, None]
        await driver.put(0x14, 0)
        await driver.enable()
        await identify(driver)


async def test_a_disk_of_another_size_is_none(path, tmp_path):
    small = tmp_path / "small"
    small.write_bytes(path.read_bytes()[BLOCK:])
    async with driven(path, tmp_path) as driver, served(small) as other:
        await driver.function.pause()
        with pytest.raises(SnapshotError, match="the disk had 64 blocks of 512 bytes, and has 63"):
            await move(driver, other)
        assert struct.unpack("<I", await other.read(0, 0x1C, 4)) == (0,)
