"""G: where gsis go."""

from __future__ import annotations

from tests.conformance.machine import BIT, GSI, Event, Host, Machine
from tests.conformance.row import row

VECTOR = 0x20 + GSI


async def _machine(host: Host) -> tuple[Machine, Event]:
    machine = await host.machine()
    machine.enable()
    machine.pic_up()
    event = host.event()
    machine.assign(event, 100)
    return machine, event


async def _seen(machine: Machine, event: Event) -> list[object]:
    """What one event does: the PIC's requests and the local APIC's, both served then."""
    event.write()
    await machine.settle()
    seen: list[object] = [machine.irr(), machine.vectors()]
    while (vector := machine.take()) is not None:
        if vector >= 0x40:
            machine.end(vector)
        else:
            machine.eoi()
    return seen


@row(
    "G01",
    "Without an interrupt controller there is no table: EINVAL.",
    "EINVAL",
    needs_kvm=True,
    limit="aioirqfd refuses one step earlier: a KvmSink for such a VM is EINVAL.",
)
async def no_irqchip(host: Host) -> object:
    machine = await host.machine(irqchip="none")
    return machine.route((GSI, ("pic", GSI)))


@row(
    "G02",
    "4096 entries at most; an empty table clears everything, the first one too.",
    ["EINVAL", "ok", 0],
    limit="There are no flags of the table and no pointer to it.",
)
async def table(host: Host) -> object:
    machine = await host.machine()
    pairs = [(gsi, route) for gsi in range(2049) for route in (("pic", 0), ("ioapic", 0))]
    event = host.event()
    machine.assign(event)
    result = [machine.route(*pairs), machine.route()]
    event.write()
    await machine.settle()
    return [*result, machine.irr()]


@row("G03", "A gsi is 0..4095, and all of them may be routed.", ["EINVAL", "ok", "ok"])
async def gsis(host: Host) -> object:
    machine = await host.machine()
    return [
        machine.route((4096, ("pic", 0))),
        machine.route((4095, ("pic", 0))),
        machine.route(*((gsi, ("msi", 0x40)) for gsi in range(4096))),
    ]


@row(
    "G04",
    "An entry may say which device a message is from; there is no other flag.",
    ["ok", [0x40], "ok", [0x40, 0x41]],
    limit="Other flags are EINVAL there; an Msi has none.",
)
async def device(host: Host) -> object:
    machine, event = await host.machine(), host.event()
    machine.enable()
    result: list[object] = []
    machine.assign(event)
    for vector, devid in ((0x40, 7), (0x41, 2**32 - 1)):
        result.append(machine.route((GSI, ("msi", vector, 0, "fixed", devid))))
        event.write()
        await machine.settle()
        result.append(machine.vectors())
    return result


@row("G05", "An entry is a pin or a message; anything else is EINVAL.", ["EINVAL"] * 3)
async def kinds(host: Host) -> object:
    machine = await host.machine()
    return [machine.route((GSI, ("type", kind))) for kind in (0, 3, 99)]


@row(
    "G06",
    "Pins are 0..7 of either PIC and 0..23 of the IOAPIC, and there is no other chip: EINVAL.",
    ["ok", "ok", "EINVAL", "EINVAL", "EINVAL"],
    limit="The kernel refuses pins with a split irqchip; here the sink says which chips there are.",
)
async def pins(host: Host) -> object:
    machine = await host.machine()
    routes = (("pic", 15), ("ioapic", 23), ("pic", 16), ("ioapic", 24), ("chip", 3))
    return [machine.route((GSI, route)) for route in routes]


@row(
    "G07",
    "One gsi may go to one pin of each chip; twice to one chip, or a message beside anything, is EINVAL.",
    ["ok", "ok", "EINVAL", "EINVAL", "EINVAL"],
)
async def several(host: Host) -> object:
    machine = await host.machine()
    lists = (
        (("pic", 1), ("ioapic", 1)),
        (("pic", 1), ("pic", 9), ("ioapic", 1)),
        (("ioapic", 1), ("ioapic", 2)),
        (("msi", 0x40), ("ioapic", 2)),
        (("msi", 0x40), ("msi", 0x41)),
    )
    return [machine.route(*((GSI, route) for route in routes)) for routes in lists]


@row("G08", "Two gsis may share a pin; its end of interrupt goes to the one listed last.", ["ok", 0, 1])
async def shared_pin(host: Host) -> object:
    machine = await host.machine()
    machine.pic_up()
    said = machine.route((100, ("pic", GSI)), (101, ("pic", GSI)))
    trigger, first, second = host.event(), host.event(), host.event()
    machine.assign(trigger, 100, first)
    machine.assign(host.event(), 101, second)
    trigger.write()
    await machine.settle()
    machine.take()
    machine.eoi()
    return [said, first.count(), second.count()]


@row("G09", "All or nothing: after an error the old table stays.", ["EINVAL", [BIT, []]])
async def all_or_nothing(host: Host) -> object:
    machine, event = await _machine(host)
    machine.route((100, ("pic", GSI)))
    said = machine.route((100, ("pic", GSI + 1)), (4096, ("pic", 0)))
    return [said, await _seen(machine, event)]


@row(
    "G10",
    "A bound irqfd goes by the new table from its next event on.",
    [[0, []], [0, [0x41]], [0, [0x42]], [BIT, []], [0, []]],
)
async def live(host: Host) -> object:
    machine, event = await _machine(host)
    machine.route()
    seen = [await _seen(machine, event)]
    for route in (("msi", 0x41), ("msi", 0x42), ("pic", GSI)):
        machine.route((100, route))
        seen.append(await _seen(machine, event))
    machine.route()
    return [*seen, await _seen(machine, event)]


@row(
    "G11",
    "Events of a gsi without a route are consumed and lost.",
    [0, 0],
    limit='IrqManager(unrouted="hold") keeps them until there is a route; the default is the kernel\'s way, counted.',
)
async def lost(host: Host) -> object:
    machine, event = await _machine(host)
    machine.route()
    event.write(3)
    await machine.settle()
    machine.route((100, ("pic", GSI)))
    await machine.settle()
    return [event.count(), machine.irr()]


@row(
    "G12",
    "Re-routed while a resample line is up, the old pin stays up for ever.",
    [BIT, BIT, BIT],
    ours=[BIT, BIT << 1, 0],
    differs="Better: the line moves along, and no pin is left up.",
)
async def rerouted_while_up(host: Host) -> object:
    machine, _ = await _machine(host)
    machine.route((GSI, ("pic", GSI)))
    trigger = host.event()
    machine.assign(trigger, GSI, host.event())
    trigger.write()
    await machine.settle()
    seen = [machine.lines()]
    machine.route((GSI, ("pic", GSI + 1)))
    await machine.settle()
    seen.append(machine.lines())
    await machine.deassign(trigger)
    return [*seen, machine.lines()]


@row(
    "G13",
    "Un-routed while it is up, the ends of interrupt tell nobody and the interrupt comes again and again, until the route "
    "is back.",
    [[VECTOR, VECTOR, 0], VECTOR, 1, None],
    ours=[[None, None, 0], VECTOR, 1, None],
    differs="Better: un-routing lowers the line, so there is no storm, and it is raised again as soon as the route is back.",
)
async def unrouted_while_up(host: Host) -> object:
    machine = await host.machine()
    machine.pic_up(level=BIT)
    machine.route((GSI, ("pic", GSI)))
    trigger, resample = host.event(), host.event()
    machine.assign(trigger, GSI, resample)
    trigger.write()
    await machine.settle()
    machine.route()
    storm: list[object] = []
    for _ in range(2):
        storm.append(machine.take())
        machine.eoi()
    storm.append(resample.count())
    machine.route((GSI, ("pic", GSI)))
    await machine.settle()
    healed = machine.take()
    machine.eoi()
    return [storm, healed, resample.count(), machine.take()]
