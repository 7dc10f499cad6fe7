"""A PCI bus for a VMM: what the guest's CPUs find by ports and by memory, and where the devices' interrupts go."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from aioirqfd import Action, EventFd, IrqchipPin, IrqManager, WouldBlock
from aioirqfd.kvm import GuestRam, LoopCalls
from aioirqfd.pci import Bar, Msi, MsiX, PciBus, PciDevice, PciExpress, Register
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import RecordingTracer
from aioirqfd.tracing import FlightRecorder
from aioirqfd.tracing.ledger import ledger
from aioirqfd.virtio_pci import VirtioPci
from examples.vhost_user_rng import Rng

if TYPE_CHECKING:
    from collections.abc import Callable

ADDRESS, DATA = 0xCF8, 0xCFC
COMMAND, BAR0, BAR1, ROM = 0x04, 0x10, 0x14, 0x30
MEMORY, MASTER, IO = 2, 4, 1
ONES = 0xFFFF_FFFF
ROUTES = {gsi: IrqchipPin("ioapic", gsi) for gsi in range(24)}
PBA = 0x1000
"""Where the pending bits of Device are, in BAR 1."""


class Device(PciDevice):
    """Two vectors, a doorbell at 0x10 of BAR 0, a register, a ROM."""

    vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000
    bars = (Bar(4096),)
    vectors, intx, rom = 2, True, b"\x55\xaa rom"
    number = Register(0)
    broken = Register(4)
    cancelled = Register(8)

    def __init__(self):
        self.bell = EventFd()
        self.resets = 0

    async def background(self):
        self.doorbell(self.bell, bar=0, offset=0x10, length=4)

    @broken.on_read
    def refuse(self):
        raise LookupError("it is broken")

    @cancelled.on_read
    async def give_up(self):
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        return await future

    def reset(self):
        self.resets += 1

    def close(self):
        self.bell.close()


class WithMsi(PciDevice):
    bars, capabilities = (Bar(256, io=True),), (Msi(4),)
    port = Register(8, 1)


class Express(PciDevice):
    bars, capabilities, vectors = (Bar(1 << 20, wide=True),), (PciExpress(),), 1


class Both(PciDevice):
    """A device that can be interrupted either way."""

    bars, capabilities = (Bar(4096),), (Msi(1), MsiX(1))


class Machine:
    """A bus and what it stands on, and a CPU: a thread that waits for each access."""

    def __init__(self, sink, irqs, calls, bus, ram):
        self.sink, self.irqs, self.calls, self.bus, self.ram = sink, irqs, calls, bus, ram

    async def do(self, access: Callable[..., int], *arguments: int) -> int:
        return await asyncio.to_thread(access, *arguments)

    async def config(self, slot, register, value=None, size=4):
        await self.do(self.bus.port_out, ADDRESS, 4, 1 << 31 | slot << 11 | register & 0xFC)
        port = DATA + register % 4
        if value is None:
            return await self.do(self.bus.port_in, port, size)
        return await self.do(self.bus.port_out, port, size, value)

    async def enable(self, slot, command=MEMORY | MASTER):
        await self.config(slot, COMMAND, command, 2)
        return (await self.config(slot, BAR0)) & ~0xF

    async def read(self, address, size=4):
        return await self.do(self.bus.mmio_read, address, size)

    async def write(self, address, value, size=4):
        await self.do(self.bus.mmio_write, address, size, value)

    def interrupts(self):
        """What was injected since the last look, as (address, data) of a message or the number of a pin."""
        found = [each.route for each in self.sink.interrupts]
        self.sink.interrupts.clear()
        return [(one.address, one.data) if hasattr(one, "data") else one.pin for one in found]


@pytest.fixture
async def tracer():
    return RecordingTracer()


@contextlib.asynccontextmanager
async def bus_of(tracer):
    sink = RecordingSink()
    with GuestRam(1 << 20) as ram, LoopCalls() as calls:
        async with (
            IrqManager(sink, routing=ROUTES) as irqs,
            PciBus(irqs, calls, ram=ram, tracer=tracer) as bus,
        ):
            yield Machine(sink, irqs, calls, bus, ram)


@pytest.fixture
async def machine(tracer):
    async with bus_of(tracer) as machine:
        yield machine


@pytest.fixture
async def device(machine):
    device = Device()
    await machine.bus.plug(device)
    await asyncio.sleep(0)  # its background() has put the doorbell
    yield device
    device.close()


@pytest.fixture
def other():
    device = Device()
    yield device
    device.close()


@pytest.fixture
def virtio():
    return VirtioPci(Rng())


class TestConfigurationSpace:
    async def test_the_host_bridge_and_nothing_else(self, machine):
        assert await machine.config(0, 0) == 0x1237_8086
        assert await machine.config(0, 8) >> 8 == 0x060000
        assert [await machine.config(slot, 0) for slot in range(1, 32)] == [ONES] * 31

    async def test_a_device_by_each_size(self, machine, device):
        assert await machine.config(1, 0) == 0x5678_1234
        assert await machine.config(1, 2, size=2) == 0x5678
        assert await machine.config(1, 3, size=1) == 0x56
        assert await machine.config(1, 2, size=4) == ONES, "beyond the register"

    async def test_the_address_reads_back_without_what_it_has_not(self, machine):
        bus = machine.bus
        await machine.do(bus.port_out, ADDRESS, 4, ONES)
        assert await machine.do(bus.port_in, ADDRESS, 4) == 0x80FF_FFFC
        await machine.do(bus.port_out, ADDRESS, 1, 0)
        assert await machine.do(bus.port_in, ADDRESS, 4) == 0x80FF_FFFC, "only all four bytes are the register"

    @pytest.mark.parametrize("address", [1 << 11, 1 << 31 | 1 << 16 | 1 << 11, 1 << 31 | 1 << 11 | 1 << 8])
    async def test_disabled_another_bus_or_another_function(self, machine, device, address):
        await machine.do(machine.bus.port_out, ADDRESS, 4, address)
        assert await machine.do(machine.bus.port_in, DATA, 4) == ONES
        await machine.do(machine.bus.port_out, DATA, 4, 0)

    async def test_bars_are_placed_apart_and_sized(self, machine, device):
        await machine.bus.plug(Express())
        assert await machine.config(1, BAR0) == 0xC000_0000
        assert await machine.config(1, BAR1) == 0xC000_2000
        assert await machine.config(2, BAR0) == 0xC010_0004
        await machine.config(2, BAR0, ONES)
        assert await machine.config(2, BAR0) == 0xFFF0_0004

    async def test_a_slot_is_chosen_or_the_first_free_one(self, machine, device):
        express = Express()
        slot = await machine.bus.plug(express, slot=9)
        assert (slot.number, slot.gsi, slot.device) == (9, 17, express)
        assert (await machine.bus.plug(WithMsi())).number == 2
        with pytest.raises(ValueError, match="slot 9 is taken, by Express-9"):
            await machine.bus.plug(WithMsi(), slot=9)
        with pytest.raises(ValueError, match=r"slots are 1\.\.31, not 32"):
            await machine.bus.plug(WithMsi(), slot=32)

    async def test_no_slot_is_free(self, machine):
        for _ in range(31):
            await machine.bus.plug(PciDevice())
        with pytest.raises(ValueError, match="no slot is free"):
            await machine.bus.plug(PciDevice())

    async def test_no_room_for_a_bar(self, machine):
        class Huge(PciDevice):
            bars = (Bar(1 << 31),)

        huge = Huge()
        with pytest.raises(ValueError, match="no room for a BAR of 0x80000000 bytes"):
            await machine.bus.plug(huge)
        assert huge.function is None
        assert await machine.config(1, 0) == ONES


class TestRegions:
    async def test_nobody_answers_before_the_guest_enables_it(self, machine, device):
        assert await machine.read(0xC000_0000) == ONES
        base = await machine.enable(1)
        await machine.write(base, 77)
        assert (await machine.read(base), device.number) == (77, 77)
        await machine.config(1, COMMAND, 0, 2)
        assert await machine.read(base) == ONES

    async def test_a_bar_answers_where_the_guest_puts_it(self, machine, device):
        old = await machine.enable(1)
        await machine.config(1, BAR0, 0xD000_0000)
        await machine.write(0xD000_0000, 5)
        assert (device.number, await machine.read(old)) == (5, ONES)

    async def test_beyond_the_end_is_nobodys(self, machine, device):
        base = await machine.enable(1)
        assert await machine.read(base + 4094) == ONES
        assert await machine.read(base - 1, 1) == 0xFF

    async def test_ports(self, machine):
        device = WithMsi()
        await machine.bus.plug(device)
        await machine.config(1, COMMAND, IO, 2)
        base = (await machine.config(1, BAR0)) & ~3
        assert base == 0x1000
        await machine.do(machine.bus.port_out, base + 8, 1, 9)
        assert (device.port, await machine.do(machine.bus.port_in, base + 8, 1)) == (9, 9)
        assert await machine.read(base + 8, 1) == 0xFF, "it is not in memory space"
        assert await machine.do(machine.bus.port_in, 0x70, 1) == 0xFF

    async def test_the_rom(self, machine, device):
        await machine.enable(1)
        await machine.config(1, ROM, ONES & ~1)
        assert await machine.config(1, ROM) == 0xFFFF_F000
        await machine.config(1, ROM, 0xE000_0001)
        assert await machine.read(0xE000_0000, 2) == 0xAA55

    async def test_what_a_device_raises_is_reported_and_reads_as_ones(self, machine, device, tracer):
        base = await machine.enable(1)
        assert [await machine.read(base + 4), await machine.read(base + 8)] == [ONES, ONES]
        assert [event["what"] for event in tracer.of("device_failed")] == ["read"] * 2

    async def test_dma_reaches_the_ram(self, machine, device):
        await device.dma.write(0x1000, b"by DMA")
        assert machine.ram.read(0x1000, 6) == b"by DMA"

    async def test_unplugged(self, machine, device):
        base = await machine.enable(1)
        await machine.bus.unplug(1)
        assert (await machine.read(base), await machine.config(1, 0), device.function) == (ONES, ONES, None)


class TestDoorbells:
    async def test_a_write_rings_and_needs_no_loop(self, machine, device):
        base = await machine.enable(1)
        machine.bus.mmio_write(base + 0x10, 4, 1)  # on the loop's own thread, which could not wait for itself
        assert device.bell.read_nowait() == 1
        await machine.write(base + 0x10, 1, 2)  # another length: it is a register's
        with pytest.raises(WouldBlock):
            device.bell.read_nowait()

    async def test_one_whose_eventfd_is_closed_comes_off_in_the_thread_that_rings_it(self, machine, device):
        base = await machine.enable(1)
        device.bell.close()
        await machine.write(base + 0x10, 1)
        (bell,) = device.function.doorbells[0]
        assert bell.dead
        await machine.write(base, 5)
        assert device.number == 5

    async def test_one_that_was_taken_off_is_no_doorbell(self, machine, device):
        base = await machine.enable(1)
        (bell,) = device.function.doorbells[0]
        bell.close()
        await machine.write(base + 0x10, 1)
        with pytest.raises(WouldBlock):
            device.bell.read_nowait()


async def program(machine, slot, vector, address, data):
    """What a driver does with a vector of MSI-X."""
    table = (await machine.config(slot, BAR1)) & ~0xF
    for offset, value in enumerate((address, 0, data, 0)):
        await machine.write(table + 16 * vector + 4 * offset, value)


async def msix(machine, slot, control):
    await machine.config(slot, (await capability(machine, slot, 0x11)) + 2, control, 2)


async def capability(machine, slot, number):
    at = await machine.config(slot, 0x34, size=1)
    while await machine.config(slot, at, size=1) != number:
        at = await machine.config(slot, at + 1, size=1)
    return at


class TestVectors:
    async def test_msix(self, machine, device):
        await machine.enable(1)
        await program(machine, 1, 1, 0xFEE0_0000, 0x4021)
        device.interrupt(1)
        await machine.irqs.flush()
        assert machine.interrupts() == []
        assert device.function.interrupts.pending(1)
        await msix(machine, 1, 0x8000)
        await machine.irqs.flush()
        assert machine.interrupts() == [(0xFEE0_0000, 0x4021)]
        assert [device.function.interrupts.pending(vector) for vector in (0, 1)] == [False, False]
        for control in (0xC000, 0x0000):
            await msix(machine, 1, control)
            device.interrupt(1)
            await machine.irqs.flush()
            assert machine.interrupts() == []
            await msix(machine, 1, 0x8000)
            await machine.irqs.flush()
            assert machine.interrupts() == [(0xFEE0_0000, 0x4021)]

    async def test_the_table_reads_back_and_the_pending_bits_are_true(self, machine, device):
        await machine.enable(1)
        table = (await machine.config(1, BAR1)) & ~0xF
        await program(machine, 1, 0, 0xFEE0_1000, 7)
        assert await machine.read(table, 8) == 0xFEE0_1000
        assert [await machine.read(table + at) for at in (8, 12, 16 + 12)] == [7, 0, 1]
        device.interrupt(1)
        assert await machine.read(table + PBA, 8) == 0b10

    async def test_msi(self, machine):
        device = WithMsi()
        slot = await machine.bus.plug(device)
        at = await capability(machine, 1, 0x05)
        for register, value, size in ((4, 0xFEE0_0000, 4), (12, 0x4030, 2), (2, 0x0011, 2)):  # two are granted
            await machine.config(1, at + register, value, size)
        for vector in range(4):
            device.interrupt(vector)
        await machine.irqs.flush()
        assert sorted(machine.interrupts()) == [(0xFEE0_0000, 0x4030), (0xFEE0_0000, 0x4031)]
        assert [slot.function.interrupts.pending(vector) for vector in range(4)] == [False, False, True, True]
        await machine.config(1, at + 2, 0, 2)
        device.interrupt(0)
        await machine.irqs.flush()
        assert machine.interrupts() == []

    async def test_msix_after_msi_begins_masked(self, machine):
        device = Both()
        slot = await machine.bus.plug(device)
        at = await capability(machine, 1, 0x05)
        for register, value, size in ((4, 0xFEE0_0000, 4), (12, 0x4030, 2), (2, 1, 2), (2, 0, 2)):
            await machine.config(1, at + register, value, size)
        await msix(machine, 1, 0x8000)
        device.interrupt()
        await machine.irqs.flush()
        assert (machine.interrupts(), slot.function.interrupts.pending(0)) == ([], True)

    async def test_a_reset_of_the_function_throws_away_what_is_pending(self, machine, device):
        base = await machine.enable(1)
        device.interrupt(1)
        await device.function.reset()
        assert (device.resets, device.function.interrupts.pending(1), await machine.read(base)) == (1, False, ONES)

    async def test_what_comes_between_sees_each_interrupt_and_none_is_lost(self, machine, device):
        await machine.enable(1)
        await program(machine, 1, 0, 0xFEE0_0000, 0x21)
        await msix(machine, 1, 0x8000)
        between = Between()
        device.intercept(between)
        device.interrupt(0)
        await device.function.interrupts.flush()
        await machine.irqs.flush()
        assert (between.vectors, machine.interrupts()) == ([0], [(0xFEE0_0000, 0x21)])
        between.takes = False
        device.interrupt(0)
        await device.function.interrupts.flush()
        await machine.irqs.flush()
        assert (between.vectors, machine.interrupts()) == ([0, 0], [])
        device.intercept(None)
        device.interrupt(0)
        await machine.irqs.flush()
        assert (between.vectors, machine.interrupts()) == ([0, 0], [(0xFEE0_0000, 0x21)])

    async def test_what_comes_between_sees_a_virtio_queues_interrupts(self, machine, virtio):
        await machine.bus.plug(virtio)
        await machine.enable(1)
        await program(machine, 1, 1, 0xFEE0_0000, 0x21)
        await msix(machine, 1, 0x8000)
        await virtio.function.write(0, 0x1A, (1).to_bytes(2, "little"))
        between = Between()
        for interception, seen in ((between, [1]), (None, [1])):
            virtio.intercept(interception)
            virtio._ring(0)
            await virtio.function.interrupts.flush()
            await machine.irqs.flush()
            assert (between.vectors, machine.interrupts()) == (seen, [(0xFEE0_0000, 0x21)])


class Between:
    """Comes between, and lets everything pass but, if told so, the interrupts: those it swallows."""

    def __init__(self):
        self.takes = True
        self.vectors: list[int] = []

    async def read(self, _region, _offset, _size, proceed):
        return await proceed()

    async def write(self, _region, _offset, data, proceed):
        await proceed(data)

    def signal(self, vector, proceed):
        self.vectors.append(vector)
        return proceed(vector) if self.takes else True


class TestPin:
    async def test_a_level_until_the_device_lets_go(self, machine, device):
        slot = machine.bus.slots[1]
        assert slot.gsi == 17
        device.pin = True
        await device.function.interrupts.flush()
        await machine.irqs.flush()
        assert machine.interrupts() == [17]
        machine.irqs.ack(17)  # the guest's end of interrupt; the device still wants it
        await settled(machine, device)
        assert machine.interrupts() == [17, 17], "down, and up again"
        device.pin = False
        machine.irqs.ack(17)
        await settled(machine, device)
        assert machine.interrupts() == [17], "down"

    async def test_two_slots_have_one_gsi(self, machine, device, other):
        def seen():
            actions = [(one.gsi, one.action) for one in machine.sink.interrupts]
            machine.sink.interrupts.clear()
            return actions

        up, down = (17, Action.ASSERT), (17, Action.DEASSERT)
        assert (await machine.bus.plug(other, slot=9)).gsi == 17
        device.pin = other.pin = True
        await settled(machine, device, other)
        assert seen() == [up, up]
        for wants, actions in ((True, [down, up, up]), (False, [down, up])):
            device.pin = wants
            machine.irqs.ack(17)
            await settled(machine, device, other)
            assert seen() == actions
        await machine.bus.unplug(9)
        machine.irqs.ack(17)
        await settled(machine, device)
        assert seen() == [down], "whoever wanted it up is gone"
        device.pin = True
        await settled(machine, device)
        assert seen() == [up]

    async def test_disabled_by_the_command_register(self, machine, device):
        await machine.config(1, COMMAND, 1 << 10, 2)
        device.pin = True
        await settled(machine, device)
        assert machine.interrupts() == []
        await machine.config(1, COMMAND, 0, 2)
        await settled(machine, device)
        assert machine.interrupts() == [17]


async def settled(machine, *devices):
    for _ in range(3):
        for device in devices:
            await device.function.interrupts.flush()
        await machine.irqs.flush()
        await asyncio.sleep(0)


async def test_a_flight_recorder_sees_each_interrupt():
    device, sink, recorder = Device(), RecordingSink(), FlightRecorder(capacity=1 << 10)
    with GuestRam(1 << 20) as ram, LoopCalls() as calls:
        async with (
            IrqManager(sink, routing=ROUTES) as irqs,
            PciBus(irqs, calls, ram=ram, tracer=recorder) as bus,
        ):
            await bus.plug(device)
            machine = Machine(sink, irqs, calls, bus, ram)
            await machine.enable(1)
            await program(machine, 1, 0, 0xFEE0_0000, 0x21)
            await msix(machine, 1, 0x8000)
            for _ in range(3):
                device.interrupt(0)
                await settled(machine, device)
            assert machine.interrupts() == 3 * [(0xFEE0_0000, 0x21)]
    device.close()
    found = ledger(recorder.log())
    assert [(entry.vector, entry.signalled, entry.injected) for entry in found.entries] == [(0, 3, 3)]
