"""W: from signal to injection; M: the fast path."""

from __future__ import annotations

from tests.conformance.machine import BIT, GSI, Event, Host, Machine
from tests.conformance.row import row

_LEVEL_UNMASKED = 0x8000
_REMOTE_IRR = 1 << 14
_MSI = 0x41


async def _pic(host: Host, level: int = 0) -> Machine:
    machine = await host.machine()
    machine.pic_up(level=level)
    machine.route((GSI, ("pic", GSI)))
    return machine


async def _msi(host: Host, *rest: object, cpus: int = 1) -> tuple[Machine, Event]:
    machine = await host.machine(cpus=cpus)
    for cpu in range(cpus):
        machine.enable(cpu)
    machine.route((GSI, ("msi", _MSI, *rest)))  # type: ignore[arg-type]
    event = host.event()
    machine.assign(event)
    return machine, event


@row(
    "W01",
    "An event raises and lowers the line, at each chip its gsi is routed to.",
    [True, False, [0x31]],
    limit="That the first-listed chip is first shows here in the sink's own record (tests/irqfd), there in a kernel trace.",
)
async def pulse(host: Host) -> object:
    machine = await host.machine()
    machine.enable()
    machine.pic_up()
    machine.ioapic(GSI, 0x31)
    machine.route((GSI, ("ioapic", GSI)), (GSI, ("pic", GSI)))
    event = host.event()
    machine.assign(event)
    event.write()
    await machine.settle()
    return [bool(machine.irr() & BIT), bool(machine.lines() & BIT), machine.vectors()]


@row(
    "W02",
    "Many writes before the injection share it; nothing is remembered of them, and at least one injection follows.",
    [True, True, 0],
)
async def coalesced(host: Host) -> object:
    machine = await _pic(host)
    event = host.event()
    machine.assign(event)
    for _ in range(1000):
        event.write()
    await machine.settle()
    first = machine.take() == 0x20 + GSI
    machine.eoi()
    return [first, machine.take() is None, event.count()]


@row("W03", "Written and then closed, without deassign: never lost.", 100)
async def write_then_close(host: Host) -> object:
    machine = await _pic(host)
    seen = 0
    for _ in range(100):
        event = host.event()
        machine.assign(event)
        event.write()
        event.close()
        await machine.settle()
        seen += machine.take() == 0x20 + GSI
        machine.eoi()
    return seen


@row(
    "W04",
    "One irqfd never runs beside itself; several are served, each once.",
    [8, 8],
    limit="Across irqfds no order is promised, by neither. That one never runs beside itself shows here in the work queue's tests "
    "(tests/irqfd), and of the kernel not at all.",
)
async def order(host: Host) -> object:
    machine = await host.machine()
    machine.enable()
    machine.route(*((100 + index, ("msi", 0x40 + index)) for index in range(8)))
    events = [host.event() for _ in range(8)]
    for index, event in enumerate(events):
        machine.assign(event, 100 + index)
    for event in events:
        event.write()
    await machine.settle()
    vectors = machine.vectors()
    taken = {machine.take() for _ in range(8)}
    return [len(vectors), len(taken)]


@row("W05", "An edge on a pin whose request is waiting is merged with it: 3 events, one interrupt.", [True, True])
async def merged(host: Host) -> object:
    machine = await _pic(host)
    event = host.event()
    machine.assign(event)
    for _ in range(3):
        event.write()
        await machine.settle()
    first = machine.take() == 0x20 + GSI
    machine.eoi()
    return [first, machine.take() is None]


@row("W06", "A plain irqfd on a level-triggered PIC pin leaves nothing pending.", 0)
async def pulse_on_level(host: Host) -> object:
    machine = await _pic(host, level=BIT)
    event = host.event()
    machine.assign(event)
    event.write()
    await machine.settle()
    return machine.irr() & BIT


@row(
    "W07",
    "On a level-triggered IOAPIC pin it is delivered; further pulses are ignored until the end of interrupt.",
    [0x31, True, True, 0x31],
)
async def pulse_on_level_ioapic(host: Host) -> object:
    machine = await host.machine()
    machine.enable()
    machine.route((GSI, ("ioapic", GSI)))
    machine.ioapic(GSI, _LEVEL_UNMASKED | 0x31)
    event = host.event()
    machine.assign(event)
    for _ in range(2):
        event.write()
        await machine.settle()
    waits = bool(machine.pin(GSI) & _REMOTE_IRR)
    first = machine.take()
    machine.end(0x31)
    nothing = machine.take() is None
    event.write()
    await machine.settle()
    return [first, waits, nothing, machine.take()]


@row(
    "W08",
    "Without a route the event is consumed and dropped; a route that appears later brings it not back.",
    ["ok", 0, 0],
)
async def unrouted(host: Host) -> object:
    machine = await host.machine()
    machine.route()
    event = host.event()
    said = machine.assign(event)
    event.write()
    await machine.settle()
    machine.route((GSI, ("pic", GSI)))
    await machine.settle()
    return [said, event.count(), machine.irr() & BIT]


@row("W09", "A CPU that halts is woken.", 0x20 + GSI)
async def halted(host: Host) -> object:
    machine = await _pic(host)
    event = host.event()
    machine.assign(event)
    woken = await machine.halt()
    event.write()
    return await woken()


@row(
    "M01",
    "A message is delivered in the call that signals, one for each, without the work queue.",
    [100, 100],
    limit="For signal() on the loop's own thread. Other threads and processes write a sum, of which the loop makes one message.",
)
async def at_once(host: Host) -> object:
    machine, event = await _msi(host)
    at_once = taken = 0
    for _ in range(100):
        event.signal()
        at_once += machine.vectors() == [_MSI]
        taken += machine.take() == _MSI
        machine.end(_MSI)
    return [at_once, taken]


@row(
    "M02",
    "One that cannot be sent at once (a broadcast, a search for the lowest priority) is sent by the work queue.",
    [[_MSI], [_MSI], [_MSI]],
)
async def not_at_once(host: Host) -> object:
    machine, event = await _msi(host, 0xFF, cpus=2)
    event.write()
    await machine.settle()
    result: list[object] = [machine.vectors(0), machine.vectors(1)]
    machine, event = await _msi(host, 0, "lowest")
    event.write()
    await machine.settle()
    return [*result, machine.vectors()]


@row("M03", "A message to nobody counts as sent.", [[], 0])
async def to_nobody(host: Host) -> object:
    machine, event = await _msi(host, 9)
    event.write()
    await machine.settle()
    return [machine.vectors(), event.count()]


@row("M04", "A message has no falling edge: one event is one message.", [True, [], 1, -1])
async def no_falling_edge(host: Host) -> object:
    machine, event = await _msi(host, 0, "lowest")
    event.write()
    await machine.settle()
    first = machine.take() == _MSI
    machine.end(_MSI)
    return [first, machine.vectors(), machine.line(GSI, 1), machine.line(GSI, 0)]


@row(
    "M05",
    "A gsi with several routes goes by the work queue.",
    [True, [0x31]],
    limit="Which way it went shows in irqfd.statistics() here, in a kernel trace there.",
)
async def several_routes(host: Host) -> object:
    machine = await host.machine()
    machine.enable()
    machine.ioapic(GSI, 0x31)
    event = host.event()
    machine.assign(event)  # both chips, in the first table
    event.write()
    await machine.settle()
    return [bool(machine.irr() & BIT), machine.vectors()]


@row(
    "M06",
    "A single pin is pulsed.",
    [True, False],
    limit="By the work queue there (x86); at once here, for these sinks never wait.",
)
async def single_pin(host: Host) -> object:
    machine = await _pic(host)
    event = host.event()
    machine.assign(event)
    event.write()
    await machine.settle()
    return [bool(machine.irr() & BIT), bool(machine.lines() & BIT)]


@row(
    "M07",
    "A resample irqfd whose gsi is a message sends it: no line, and the resamplefd is never signalled.",
    [[_MSI], 0, 0],
)
async def resample_message(host: Host) -> object:
    machine = await host.machine()
    machine.enable()
    machine.route((GSI, ("msi", _MSI)))
    event, resample = host.event(), host.event()
    machine.assign(event, GSI, resample)
    event.write()
    await machine.settle()
    vectors = machine.vectors()
    machine.take()
    machine.end(_MSI)
    return [vectors, machine.lines(), resample.count()]


@row(
    "M08",
    "Routes to other things (Hyper-V SINT, Xen event channel) are EINVAL where they are not configured.",
    ["EINVAL", "EINVAL"],
    limit="A kernel that is configured for them takes them; aioirqfd has pins and messages.",
)
async def other_routes(host: Host) -> object:
    machine = await host.machine()
    return [machine.route((GSI, ("type", kind))) for kind in (4, 5)]
