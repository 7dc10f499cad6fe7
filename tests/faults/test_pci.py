"""Faults of a PCI device: its registers, its transfers, its interrupts, and its own requests."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from aioirqfd import EventFd, WouldBlock
from aioirqfd.faults import (
    AllOnes,
    Corrupt,
    Delay,
    Drop,
    Fail,
    FaultError,
    Faults,
    Lose,
    Match,
    Misroute,
    Reset,
    Spurious,
    Withhold,
)
from aioirqfd.pci import Bar, DmaError, PciDevice, PciFunction, Register
from aioirqfd.pci.function import CONFIG_REGION
from aioirqfd.pci.interrupts import PIN
from aioirqfd.testing import RecordingTracer
from tests.examples.test_nvme import BLOCK, Driver

WRITE, READ, FLUSH = 0x01, 0x02, 0x00
INTERNAL_ERROR = 0x06


class Plain(PciDevice):
    bars = (Bar(4096),)
    vectors = 3
    intx = True
    value = Register(0x10, reset=0x1234)
    other = Register(0x14)


class Served:
    def __init__(self, function, faults):
        self.function, self.faults = function, faults
        self.bells = [EventFd() for _ in range(3)]
        self.pin = EventFd()
        for vector, bell in [*enumerate(self.bells), (PIN, self.pin)]:
            function.interrupts.bind(vector, EventFd.from_fd(os.dup(bell.fileno()), owns=True))

    async def read(self, offset=0x10, size=4, region=0):
        return int.from_bytes(await self.function.read(region, offset, size), "little")

    async def write(self, value, offset=0x10, size=4):
        await self.function.write(0, offset, value.to_bytes(size, "little"))

    async def heard(self):
        """By vector, how often it was told."""
        await self.function.interrupts.flush()
        return [count(bell) for bell in self.bells]

    def close(self):
        for bell in (*self.bells, self.pin):
            bell.close()


def count(bell):
    try:
        return bell.read_nowait()
    except WouldBlock:
        return 0


@pytest.fixture
async def served(clock):
    with contextlib.closing(Faults(clock=clock, nonconforming=True)) as faults:
        async with PciFunction(faults.wrap(Plain())) as function:
            with contextlib.closing(Served(function, faults)) as served:
                yield served


# -- registers -------------------------------------------------------------------------------------------------------------


async def test_a_register_is_slow(served, clock):
    slow = served.faults.add(Match("register-read", offset=0x10), Delay(1))
    reading = asyncio.ensure_future(served.read())
    assert await served.read(0x14) == 0
    await slow.hit()
    await asyncio.sleep(0)
    assert not reading.done()
    clock.advance(1)
    assert await reading == 0x1234


async def test_a_register_reads_wrong_by_its_name(served):
    wrong = served.faults.add(Match("register-read", register="value", nth=2), Corrupt("data", offset=1, mask=0x30))
    assert [await served.read() for _ in range(3)] == [0x1234, 0x2234, 0x1234]
    await wrong.hit()


async def test_a_write_is_gone(served):
    served.faults.add(Match("register-write", offset=0x10, every=2), Drop())
    for value in (1, 2):
        await served.write(value)
    assert await served.read() == 1


async def test_a_write_is_corrupted(served):
    served.faults.add(Match("register-write", content=b"\x05"), Corrupt("written", mask=0x0F))
    await served.write(5)
    assert await served.read() == 0x0A


async def test_the_device_was_pulled_out(served):
    await served.write(7)
    gone = served.faults.add(Match(("register-*", "config-*")), AllOnes())
    assert await served.read() == 0xFFFF_FFFF
    assert await served.read(0, 2, CONFIG_REGION) == 0xFFFF
    await served.write(8)
    gone.disable()
    assert await served.read() == 7
    assert await served.read(0, 2, CONFIG_REGION) == Plain.vendor_id


async def test_the_device_resets_itself(served):
    await served.write(7)
    served.faults.add(Match("register-write", offset=0x14), Reset())
    await served.write(1, 0x14)
    assert (await served.read(), await served.read(0x14)) == (0x1234, 0)


# -- transfers -------------------------------------------------------------------------------------------------------------


async def test_transfers(served):
    memory = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(memory, 4096)
    served.function.dma.map(0, 4096, fd=memory)
    os.close(memory)
    dma, add = served.function.device.dma, served.faults.add
    fault = add(Match("dma-read", address=0x100), Fail())
    with pytest.raises(DmaError, match="4 bytes at 0x100: a fault was set"):
        await dma.read(0x100, 4)
    assert await dma.read(0x200, 4) == bytes(4)
    # What is lent cannot be looked at: a device that can do without does.
    with pytest.raises(DmaError, match="while faults are made"), dma.view(0x200, 4):
        pass
    fault.remove()
    with dma.view(0x200, 4):
        pass
    fault = add(Match("dma-write", nth=2), Drop())
    for data in (b"one!", b"two!"):
        await dma.write(0x200, data)
    fault.remove()
    assert await dma.read(0x200, 4) == b"one!"
    fault = add(Match("dma-write"), Corrupt("written", offset=3, mask=1))
    await dma.write(0x200, b"two!")
    fault.remove()
    fault = add(Match("dma-read"), Corrupt("data", size=4, mask=0x20))
    assert await dma.read(0x200, 4) == bytes(byte ^ 0x20 for byte in b"two ")


# -- interrupts ------------------------------------------------------------------------------------------------------------


async def test_a_vector_is_lost(served):
    lost = served.faults.add(Match("interrupt", vector=1, nth=2), Drop())
    heard = []
    for _ in range(3):
        served.function.device.interrupt(1)
        heard.append(await served.heard())
    assert heard == [[0, 1, 0], [0, 0, 0], [0, 1, 0]]
    assert lost.hits == 1


async def test_a_vector_is_another_one(served):
    served.faults.add(Match("interrupt", vector=1, count=1), Misroute(to=2))
    served.function.device.interrupt(1)
    assert await served.heard() == [0, 0, 1]


async def test_a_vector_is_late_and_masked_meanwhile(served, clock):
    served.faults.add(Match("interrupt", vector=0, count=1), Delay(1))
    served.function.device.interrupt(0)
    assert await served.heard() == [0, 0, 0]
    served.function.interrupts.mask(0)
    clock.advance(1)
    assert await served.heard() == [0, 0, 0]
    # It is not lost, and not late once more.
    served.function.interrupts.unmask(0)
    assert await served.heard() == [1, 0, 0]


async def test_interrupts_for_nothing(served, clock):
    served.faults.add(Match("interrupt", vector=2, count=2), Spurious(every=1))
    tracer = served.faults._tracer = RecordingTracer()
    clock.advance(5)
    assert await served.heard() == [0, 0, 2]
    device = type(served.function.device).__qualname__
    assert [(hit["device"], hit["vector"], hit["request"]) for hit in tracer.of("fault_hit")] == [(device, 2, None)] * 2


async def test_a_line_is_stuck(served):
    device = served.function.device
    tracer = served.faults._tracer = RecordingTracer()
    stuck = served.faults.add(Match("deassert", vector="pin"), Withhold())
    device.pin = True
    await served.heard()
    assert count(served.pin) == 1
    device.pin = False
    assert device.pin
    (hit,) = tracer.of("fault_hit")
    assert (hit["device"], hit["pin"], "vector" in hit) == (type(device).__qualname__, "INTx", False)
    # The guest has dealt with it, and it is up again.
    served.function.interrupts.end_of_interrupt()
    await served.heard()
    assert count(served.pin) == 1
    stuck.release()
    assert not device.pin
    served.function.interrupts.end_of_interrupt()
    await served.heard()
    assert count(served.pin) == 0


async def test_the_pin_goes_down_on_another_thread(served):
    device = served.function.device
    stuck = served.faults.add(Match("deassert"), Withhold())
    device.pin = True
    await served.heard()
    device.pin = False
    stuck.release()
    device.pin = True

    def lower():
        device.pin = False

    await asyncio.to_thread(lower)
    await stuck.hit(2)
    assert device.pin


async def test_without_a_fault_nobody_is_in_between(served):
    assert served.function.device.interception is None
    fault = served.faults.add(Match("register-read"), Delay(1))
    assert served.function.dma.interception is served.function.interrupts.interception is not None
    fault.remove()
    assert served.function.device.interception is served.function.dma.interception is None
    assert served.function.interrupts.interception is None


# -- an NVMe controller ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def nvme(tmp_path):
    from examples.nvme import Nvme

    image = tmp_path / "image"
    image.write_bytes(os.urandom(64 * BLOCK))
    device = Nvme(str(image))
    with contextlib.closing(device), contextlib.closing(Faults(nonconforming=True)) as faults:
        async with PciFunction(faults.wrap(device)) as function:
            driver = Driver(function, tmp_path)
            await driver.enable()
            await driver.make_queue(1)
            try:
                yield driver, faults, image
            finally:
                await device.reset()
                driver.close()


async def io(driver, opcode, block=0):
    return await driver.ask(1, opcode, prp1=0x8000, dw=(block, 0, 0))


async def test_the_same_words_for_an_nvme_disk(nvme):
    driver, faults, image = nvme
    third = faults.add(Match("write", nth=3), Fail())
    before = image.read_bytes()[3 * BLOCK : 4 * BLOCK]
    statuses = [(await io(driver, WRITE, number))[1] for number in range(1, 5)]
    assert [status & 0xFF for status in statuses] == [0, 0, INTERNAL_ERROR, 0]
    await third.hit()
    assert image.read_bytes()[3 * BLOCK : 4 * BLOCK] == before


async def test_an_nvme_command_by_its_opcode(nvme):
    driver, faults, _ = nvme
    faults.add(Match(opcode=FLUSH, queue=1), Fail(status=0x80))
    assert (await io(driver, FLUSH))[1] & 0xFF == 0x80
    assert (await io(driver, READ))[1] == 0


async def test_a_command_is_kept_back_and_others_go_on(nvme):
    driver, faults, _ = nvme
    kept = faults.add(Match("read", sector=5), Withhold())
    number = driver.push(1, READ, prp1=0x8000, dw=(5, 0, 0))
    await driver.kick(1)
    await kept.hit()
    assert (await io(driver, READ, 6))[1] == 0
    kept.release()
    assert (await driver.next(1))[0] == number


async def test_a_flush_is_lost(nvme, monkeypatch):
    driver, faults, _ = nvme
    flushed = []
    monkeypatch.setattr(os, "fdatasync", flushed.append)
    lost = faults.add(Match("flush", count=1), Lose())
    assert (await io(driver, FLUSH))[1] == 0
    assert flushed == []
    assert lost.hits == 1
    assert (await io(driver, FLUSH))[1] == 0
    assert len(flushed) == 1


async def test_what_a_device_cannot_do_is_told(served):
    served.faults.add(Match("register-read"), Corrupt("id"))
    with pytest.raises(FaultError, match="a register-read of this device cannot have 'id' corrupted"):
        await served.read()
