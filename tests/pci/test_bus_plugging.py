"""Devices that come to a PCI bus and go, side by side, and while vCPUs wait for them."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from aioirqfd import ClosedError
from aioirqfd.pci import Bar, PciBus, PciDevice, Register
from tests.pci.test_bus import BAR0, BAR1, ONES, Express, bus_of


class WithBar(PciDevice):
    bars, vectors = (Bar(4096),), 2


class Slow(PciDevice):
    """Takes its time: to begin, and over each read of its register."""

    bars = (Bar(4096),)
    number = Register(0)

    def __init__(self):
        self.may_begin, self.may_answer, self.asked = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.reads = 0

    @contextlib.asynccontextmanager
    async def lifespan(self):
        await self.may_begin.wait()
        yield

    @number.on_read
    async def read_number(self):
        self.reads += 1
        self.asked.set()
        await self.may_answer.wait()
        return 7


@pytest.fixture
async def machine(tracer):
    async with bus_of(tracer) as machine:
        yield machine


async def test_two_at_once_get_a_slot_each(machine):
    devices = [Slow(), Slow()]
    plugging = [asyncio.create_task(machine.bus.plug(device)) for device in devices]
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="slot 2 is taken: a device is just being plugged in there, or taken out"):
        await machine.bus.plug(PciDevice(), slot=2)
    for device in devices:
        device.may_begin.set()
    assert [slot.number for slot in await asyncio.gather(*plugging)] == [1, 2]


async def test_one_that_fails_or_is_cancelled_leaves_its_slot_free(machine):
    device = Slow()
    plugging = asyncio.create_task(machine.bus.plug(device))
    await asyncio.sleep(0)
    plugging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await plugging
    assert device.function is None
    oddly = PciDevice()
    oddly.name, oddly.vectors, oddly.bars = "disk/1", 1, (Bar(4096),)
    assert (await machine.bus.plug(oddly)).name == "disk-1-1"


async def test_what_was_taken_out_leaves_its_addresses(machine):
    class Large(PciDevice):
        bars = (Bar(1 << 29),)  # the bus has room for one, aligned

    large = Large()
    for _ in range(3):
        await machine.bus.plug(large)
        assert await machine.config(1, BAR0) == 0xC000_0000
        await machine.bus.unplug(1)
    small = await machine.bus.plug(WithBar())
    assert (await machine.config(small.number, BAR0), await machine.config(small.number, BAR1)) == (
        0xC000_0000,
        0xC000_2000,
    )


async def test_nothing_is_placed_where_the_guest_has_moved_something(machine):
    await machine.bus.plug(WithBar())
    await machine.enable(1)
    await machine.config(1, BAR0, 0xC010_0000)
    await machine.bus.plug(Express())
    assert await machine.config(2, BAR0) == 0xC020_0004


async def test_a_bus_that_is_not_open(machine):
    bus = PciBus(machine.irqs, machine.calls)
    with pytest.raises(ClosedError, match="the bus is not open: enter it with `async with`"):
        await bus.plug(PciDevice())
    device = Slow()
    async with bus:
        plugging = asyncio.create_task(bus.plug(device))
        await asyncio.sleep(0)
    device.may_begin.set()
    with pytest.raises(ClosedError, match="the bus is not open"):
        await plugging
    assert (device.function, dict(bus.slots)) == (None, {})


async def test_taken_out_while_vcpus_wait(machine):
    device = Slow()
    device.may_begin.set()
    await machine.bus.plug(device)
    base = await machine.enable(1)
    first = asyncio.create_task(machine.read(base))
    await device.asked.wait()
    taking = asyncio.create_task(machine.bus.unplug(1))
    await asyncio.sleep(0)
    slot = machine.config(1, 0)
    assert await slot == ONES
    with pytest.raises(ValueError, match="slot 1 is taken"):
        await machine.bus.plug(PciDevice(), slot=1)
    device.may_answer.set()
    assert await first == 7
    await taking
    assert (device.reads, device.function, await machine.read(base)) == (1, None, ONES)


async def test_an_access_that_waited_for_its_turn_finds_nothing(machine, tracer):
    device = Slow()
    device.may_begin.set()
    slot = await machine.bus.plug(device)
    first = asyncio.create_task(slot.read(0, 0, 4))
    await device.asked.wait()
    taking = asyncio.create_task(machine.bus.unplug(1))
    await asyncio.sleep(0)
    late = [asyncio.create_task(slot.read(0, 0, 4)), asyncio.create_task(slot.write(0, 0, 4, 1))]
    await asyncio.sleep(0)
    device.may_answer.set()
    assert await asyncio.gather(first, taking, *late) == [7, None, ONES, None]
    assert (device.reads, device.number, tracer.of("device_failed")) == (1, 0, [])


async def test_whoever_gives_up_taking_it_out_leaves_it_plugged_in(machine):
    device = Slow()
    device.may_begin.set()
    slot = await machine.bus.plug(device)
    base = await machine.enable(1)
    first = asyncio.create_task(machine.read(base))
    await device.asked.wait()
    taking = asyncio.create_task(machine.bus.unplug(1))
    await asyncio.sleep(0)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert machine.bus.slots[1] is slot
    device.may_answer.set()
    assert [await first, await machine.read(base)] == [7, 7]
    await machine.bus.unplug(1)
    assert await machine.config(1, 0) == ONES
