"""L: lines that a device drives; S: messages that it sends."""

from __future__ import annotations

from tests.conformance.machine import BIT, GSI, Host, Machine
from tests.conformance.row import row, unobservable

_LEVEL = 0x8000
_MASKED = 1 << 16
_APICS = "A message is an irqfd's here, and there is no other call for one. What a local APIC accepts is the sink's: a small model of one."


async def _pic(host: Host, pins: int = 1) -> Machine:
    machine = await host.machine()
    machine.pic_up()
    machine.route(*((GSI + n, ("pic", GSI + n)) for n in range(pins)))
    return machine


unobservable(
    "L01",
    "Without an interrupt controller a line is ENXIO and a message EINVAL.",
    "A line belongs to a Pic or an IoApic here: where there is none, there is nothing to call.",
)


@row(
    "L02",
    "The status: above 0 delivered, 0 merged with what waits, -1 if it is masked or has no route; lowering gives 1 for "
    "each chip; raising an edge line that is up gives 1, a new edge with the request still waiting 0.",
    [1, 1, 1, 0, 1, -1, 2, 1, -1],
)
async def status(host: Host) -> object:
    machine = await _pic(host)
    result = [machine.line(GSI, level) for level in (1, 1, 0, 1, 0)]
    machine.out(0x21, 0xFF)
    result.append(machine.line(GSI, 1))
    machine.line(GSI, 0)
    machine.out(0x21, 0)
    machine.route((GSI, ("ioapic", GSI)), (GSI, ("pic", GSI)))
    result.append(machine.line(GSI, 0))
    machine.route((GSI, ("ioapic", 20)))
    result.append(machine.line(GSI, 0))
    machine.route()
    return [*result, machine.line(GSI, 1)]


@row(
    "L03",
    "Driving a line is no error, even masked or without a route.",
    [True, True, BIT],
    limit="There is no pointer that could be bad.",
)
async def no_error(host: Host) -> object:
    machine = await _pic(host)
    machine.out(0x21, 0xFF)
    masked = machine.line(GSI, 1) < 0
    waiting = machine.irr() & BIT
    machine.route()
    return [masked, machine.line(GSI, 1) < 0, waiting]


@row("L04", "Any level but 0 is 1.", [BIT, 0, BIT])
async def any_level(host: Host) -> object:
    machine = await _pic(host)
    seen = []
    for level in (7, 0, 0xFFFFFFFF):
        machine.line(GSI, level)
        seen.append(machine.lines() & BIT)
    return seen


@row(
    "L05",
    "An edge IOAPIC pin raised twice is merged (0); a level pin that waits for its end of interrupt ignores it (-1).",
    [1, 0, 1, 1, -1],
)
async def ioapic_status(host: Host) -> object:
    machine = await host.machine()
    machine.enable()
    machine.route((GSI, ("ioapic", GSI)), (GSI + 1, ("ioapic", GSI + 1)))
    machine.ioapic(GSI, 0x31)
    machine.ioapic(GSI + 1, _LEVEL | 0x32)
    edge = [machine.line(GSI, level) for level in (1, 1, 0)]
    first = machine.line(GSI + 1, 1)
    machine.line(GSI + 1, 0)
    return [*edge, first, machine.line(GSI + 1, 1)]


@row(
    "S01",
    "A message says how many local APICs took it: one, both, none that is switched off, none that is absent.",
    [1, 2, 0, 0],
    limit=_APICS,
)
async def takers(host: Host) -> object:
    machine = await host.machine(cpus=2)
    assert machine.vectors() == []
    machine.enable(1)
    off = await machine.msi(0x40, 0)
    machine.enable(0)
    return [await machine.msi(0x40, 0), await machine.msi(0x40, 0xFF), off, await machine.msi(0x40, 9)]


@row("S02", "A vector that is waiting already counts as taken.", [1, 1, [0x40]], limit=_APICS)
async def waiting_already(host: Host) -> object:
    machine = await host.machine()
    machine.enable()
    return [await machine.msi(0x40), await machine.msi(0x40), machine.vectors()]


@row(
    "S03",
    "With no candidate (no CPU; lowest priority with none switched on) it is EPERM.",
    ["EPERM", "EPERM"],
    ours=[0, 0],
    differs="A message is an irqfd's here, and one that nobody takes vanishes, as an irqfd's does there (row M03). So does one that "
    "a KvmSink sends by the call.",
)
async def nobody(host: Host) -> object:
    machine = await host.machine(cpus=0)
    none = await machine.msi(0x40)
    machine = await host.machine()
    assert machine.vectors() == []
    return [none, await machine.msi(0x40, 0xFF, "lowest")]


@row(
    "S04",
    "It may say which device it is from.",
    [1, "EINVAL"],
    limit="Other flags are EINVAL there; here there are none, and what is no device id is EINVAL. A message is an irqfd's.",
)
async def device(host: Host) -> object:
    machine = await host.machine()
    machine.enable()
    return [await machine.msi(0x40, devid=7), await machine.msi(0x40, devid=2**32)]


@row(
    "S05",
    "With a split irqchip messages and their irqfds work, and lines are as they are routed.",
    [1, [0x40, 0x41], -1],
)
async def split(host: Host) -> object:
    machine = await host.machine(irqchip="split")
    machine.enable()
    said = await machine.msi(0x40)
    machine.route((GSI, ("msi", 0x41)))
    event = host.event()
    machine.assign(event)
    event.write()
    await machine.settle()
    return [said, machine.vectors(), machine.line(GSI + 1, 1)]
