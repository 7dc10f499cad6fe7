"""The teaching device, without a guest: every register of its documentation."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from aioirqfd import EventFd
from aioirqfd.errors import SnapshotError
from aioirqfd.pci import PciFunction, PciFunctionState
from aioirqfd.pci.interrupts import PIN
from examples import edu_pci

RAM = 0x10000


def number(value, size=4):
    return value.to_bytes(size, "little")


@pytest.fixture
async def edu():
    async with PciFunction(edu_pci.Edu()) as function:
        yield function


async def read(edu, offset, size=4):
    return int.from_bytes(await edu.read(0, offset, size), "little")


def test_it_has_forty_lines_at_most():
    text = Path(edu_pci.__file__).read_text("utf-8")
    (code,) = re.findall(r"(class Edu.*)# docs: begin state", text, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip() and "# docs:" not in line]) <= 40


async def test_it_lives(edu):
    assert await read(edu, 0) == 0x010000ED
    await edu.write(0, 4, number(0x12345678))
    assert await read(edu, 4) == 0xEDCBA987
    await edu.write(0, 0, number(0))
    assert await read(edu, 0) == 0x010000ED


@pytest.mark.parametrize(
    ("value", "result"), [(0, 1), (5, 120), (12, 479001600), (13, 1932053504), (40, 0), (2**32 - 1, 0)]
)
async def test_factorial(edu, value, result):
    await edu.write(0, 8, number(value))
    assert await read(edu, 8) == result
    assert await read(edu, 0x24) == 0


async def test_interrupts(edu):
    with EventFd() as pin, EventFd() as message:
        edu.interrupts.bind(PIN, EventFd.from_fd(os.dup(pin.fileno()), owns=True))
        edu.interrupts.bind(0, EventFd.from_fd(os.dup(message.fileno()), owns=True))
        await edu.write(0, 0x60, number(0x5))
        assert (await read(edu, 0x24), pin.read_nowait(), message.read_nowait()) == (5, 1, 1)
        await edu.write(0, 0x64, number(0x1))
        assert (await read(edu, 0x24), edu.device.pin) == (4, True)
        await edu.write(0, 0x64, number(0x4))
        assert (await read(edu, 0x24), edu.device.pin) == (0, False)
        await edu.write(0, 0x20, number(0x80))
        await edu.write(0, 8, number(3))
        assert (await read(edu, 0x24), message.read_nowait()) == (1, 1)


async def test_dma(edu):
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 4096)
    edu.dma.map(RAM, 4096, fd=fd)
    os.pwrite(fd, b"to the device", 0x100)
    for offset, value in ((0x80, RAM + 0x100), (0x88, 0x40010), (0x90, 13), (0x98, 1)):
        await edu.write(0, offset, number(value, 8))
    assert edu.device.buffer[16:29] == b"to the device"
    assert (await read(edu, 0x98, 8), await read(edu, 0x24)) == (0, 0)
    for offset, value in ((0x80, 0x40010), (0x88, RAM + 0x200), (0x90, 13), (0x98, 7)):
        await edu.write(0, offset, number(value, 8))
    assert os.pread(fd, 13, 0x200) == b"to the device"
    assert await read(edu, 0x24) == 0x100
    # What does not lie in the buffer is not copied.
    for place, count in ((0x40000 - 1, 1), (0x41000, 1), (0x40000, 4097), (0, 8)):
        for offset, value in ((0x80, RAM), (0x88, place), (0x90, count), (0x98, 1)):
            await edu.write(0, offset, number(value, 8))
        assert (await read(edu, 0x98, 8), len(edu.device.buffer)) == (1, 4096)
    os.close(fd)


async def test_it_moves_with_an_interrupt_on_its_way(edu):
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 4096)
    edu.dma.map(RAM, 4096, fd=fd)
    os.pwrite(fd, b"goes along", 0)
    for offset, value in ((0x80, RAM), (0x88, 0x40010), (0x90, 10), (0x98, 5)):
        await edu.write(0, offset, number(value, 8))
    await edu.write(0, 4, number(0xCAFE))
    await edu.pause()
    state = json.loads(json.dumps(edu.save().to_dict()))
    async with PciFunction(edu_pci.Edu()) as there:
        await there.pause()
        await there.restore(PciFunctionState.from_dict(state))
        there.resume()
        assert there.device.buffer == edu.device.buffer
        assert await read(there, 4) == 0xFFFF3501
        assert await read(there, 0x24) == 0x100
        with EventFd() as pin, EventFd() as message:
            there.interrupts.bind(PIN, EventFd.from_fd(os.dup(pin.fileno()), owns=True))
            there.interrupts.bind(0, EventFd.from_fd(os.dup(message.fileno()), owns=True))
            await there.interrupts.flush()
            assert (pin.read_nowait(), message.read_nowait()) == (1, 1)
            await there.write(0, 0x64, number(0x100))
            assert not there.device.pin
    os.close(fd)


@pytest.mark.parametrize("buffer", ["00", "no hex", "00" * 4097])
async def test_another_buffer_is_refused(edu, buffer):
    await edu.pause()
    state = edu.save()
    with pytest.raises(SnapshotError, match=r"restore_state\(\) of Edu raised ValueError"):
        await edu.restore(replace(state, own={"buffer": buffer}))
    assert len(edu.device.buffer) == 4096
