"""I: assign and deassign, their arguments and errnos."""

from __future__ import annotations

import asyncio

from tests.conformance.machine import BIT, GSI, NOT_OPEN, Host, Machine
from tests.conformance.row import row, unobservable


@row(
    "I01",
    "Without an interrupt controller assign is EINVAL, plain and resample.",
    ["EINVAL", "EINVAL"],
    limit="aioirqfd refuses one step earlier: a KvmSink for such a VM is EINVAL, and there is no manager without a sink.",
    needs_kvm=True,
)
async def no_irqchip(host: Host) -> object:
    machine = await host.machine(irqchip="none")
    return [machine.assign(host.event()), machine.assign(host.event(), GSI, host.event())]


@row(
    "I02",
    "The order of the checks: flags, irqchip, is the fd open, is it an eventfd, the same of the resamplefd, is it bound.",
    ["EINVAL", "EINVAL", "EBADF", "EINVAL", "EBADF", "EINVAL", "EBUSY"],
    limit="There are no flags here: an option that cannot be is a TypeError, before all else. Without an irqchip the KvmSink is refused.",
    needs_kvm=True,
)
async def order_of_checks(host: Host) -> object:
    bare = await host.machine(irqchip="none")
    machine = await host.machine()
    null = host.file()
    bound = host.event()
    machine.assign(bound)
    return [
        machine.assign_with_unknown_flag(bound),
        bare.assign(NOT_OPEN),
        machine.assign(NOT_OPEN, GSI, null),
        machine.assign(null, GSI, NOT_OPEN),
        machine.assign(bound, GSI, NOT_OPEN),
        machine.assign(bound, GSI, null),
        machine.assign(bound, GSI, host.event()),
    ]


@row(
    "I03",
    "Deassign needs no interrupt controller: an eventfd is no error, a bad fd is EBADF.",
    ["ok", "EBADF"],
    limit="Here of a manager whose sink is no interrupt controller: with a KvmSink it would never have come to be.",
)
async def deassign_without_irqchip(host: Host) -> object:
    machine = await host.machine(irqchip="none")
    return [await machine.deassign(host.event()), await machine.deassign(NOT_OPEN)]


@row(
    "I04",
    "With a split irqchip, whose PIC and IOAPIC are in user space, a resample irqfd is refused.",
    ["ok", "EINVAL"],
    ours=["ok", "ok"],
    differs="Better: the IoApic tells the manager of each end of interrupt, so a split-irqchip VMM has resample.",
)
async def split_irqchip(host: Host) -> object:
    machine = await host.machine(irqchip="split")
    return [machine.assign(host.event()), machine.assign(host.event(), GSI, host.event())]


@row(
    "I05",
    "Unknown flags are EINVAL, and bind nothing.",
    ["EINVAL", "ok"],
    limit="There is no flags word here: what it does not know is a wakeup handler that cannot be called, which is a TypeError.",
)
async def unknown_flags(host: Host) -> object:
    machine = await host.machine()
    event = host.event()
    return [machine.assign_with_unknown_flag(event), machine.assign(event)]


@row(
    "I06",
    "Deassign does not look at the resamplefd.",
    ["ok", "ok", "ok"],
    limit="It is not asked for one; that the irqfd's own is closed by now is nothing to it.",
)
async def deassign_resample(host: Host) -> object:
    machine = await host.machine()
    event, resample = host.event(), host.event()
    first = machine.assign(event, GSI, resample)
    resample.close()
    return [first, await machine.deassign(event, GSI, NOT_OPEN), machine.assign(event)]


unobservable(
    "I07",
    "Fields that the flags make meaningless are ignored.",
    "There are none: assign() is called with names, and has no padding.",
)


@row("I08", "A closed fd is EBADF, one that is no eventfd EINVAL.", ["EBADF", "EBADF", "EINVAL", "EINVAL"])
async def bad_fd(host: Host) -> object:
    machine = await host.machine()
    return [machine.assign(NOT_OPEN), machine.assign(-1), machine.assign(host.pipe()[0]), machine.assign(host.file())]


@row("I09", "The same of the resamplefd, and then nothing is bound.", ["EBADF", "EINVAL", "ok"])
async def bad_resamplefd(host: Host) -> object:
    machine = await host.machine()
    event = host.event()
    return [machine.assign(event, GSI, NOT_OPEN), machine.assign(event, GSI, host.file()), machine.assign(event)]


@row(
    "I10",
    "An argument that cannot be read is EFAULT.",
    "EFAULT",
    limit="There a bad pointer, here what is neither an EventFd nor an int, which is a TypeError.",
)
async def unreadable(host: Host) -> object:
    return (await host.machine()).assign_unreadable()


@row(
    "I11",
    "The gsi is not checked: an event of one that no table can hold is consumed and dropped.",
    [["ok", 0], ["ok", 0], ["ok", 0], ["ok", 0]],
)
async def any_gsi(host: Host) -> object:
    machine = await host.machine()
    result = []
    for gsi in (24, 4095, 4096, 0xFFFFFFFF):
        event = host.event()
        said = machine.assign(event, gsi)
        event.write(3)
        await machine.settle()
        result.append([said, event.count()])
    return result


@row(
    "I12",
    "A bound eventfd is EBUSY: for its own gsi, another, a dup, a resample irqfd, another machine.",
    ["EBUSY"] * 5,
)
async def busy(host: Host) -> object:
    machine, other = await host.machine(), await host.machine()
    event = host.event()
    machine.assign(event)
    return [
        machine.assign(event),
        machine.assign(event, GSI + 1),
        machine.assign(event.dup()),
        machine.assign(event, GSI, host.event()),
        other.assign(event),
    ]


@row("I13", "One gsi takes several eventfds, and each injects.", ["ok", "ok", "ok", [True, True, True]])
async def several_on_one_gsi(host: Host) -> object:
    machine = await _pic(host)
    events = [host.event() for _ in range(3)]
    said = [machine.assign(event) for event in events]
    seen = []
    for event in events:
        event.write()
        await machine.settle()
        seen.append(machine.take() == 0x20 + GSI)
        machine.eoi()
    return [*said, seen]


@row(
    "I14",
    "Deassign goes by eventfd and gsi, and without a match succeeds and does nothing: another gsi, another machine, "
    "never assigned, twice. A dup will do.",
    ["ok", "ok", "ok", "EBUSY", "ok", "ok", "ok"],
)
async def deassign_key(host: Host) -> object:
    machine, other = await host.machine(), await host.machine()
    event = host.event()
    never = await machine.deassign(event)
    machine.assign(event)
    elsewhere = [await machine.deassign(event, GSI + 1), await other.deassign(event)]
    still = machine.assign(event)
    return [
        never,
        *elsewhere,
        still,
        await machine.deassign(event.dup()),
        await machine.deassign(event),
        machine.assign(event),
    ]


@row("I15", "Deassign with a closed fd is EBADF, with one that is no eventfd EINVAL.", ["EBADF", "EINVAL"])
async def deassign_bad_fd(host: Host) -> object:
    machine = await host.machine()
    return [await machine.deassign(NOT_OPEN), await machine.deassign(host.file())]


@row(
    "I16",
    "Odd but legal: a trigger that is its own resamplefd; one resamplefd for several; a resamplefd that is a trigger.",
    ["ok"] * 4,
)
async def odd(host: Host) -> object:
    machine = await host.machine()
    both, shared = host.event(), host.event()
    return [
        machine.assign(both, GSI, both),
        machine.assign(host.event(), GSI, shared),
        machine.assign(host.event(), GSI + 1, shared),
        machine.assign(shared, GSI + 2),
    ]


@row(
    "I17",
    "In a forked child the machine is out of reach, but a write to the inherited eventfd injects.",
    [["EIO", "EIO", "EIO", "ok"], True],
    limit="aioirqfd says WrongLoopError for the kernel's EIO.",
)
async def forked(host: Host) -> object:
    machine = await _pic(host)
    event = host.event()
    machine.assign(event)
    said = await host.in_child(machine, event)
    return [said, await machine.settled(GSI)]


@row(
    "I18",
    "On a file that is no virtual machine the call is EINVAL or ENOTTY.",
    ["ENOTTY", "EINVAL"],
    limit="aioirqfd refuses one step earlier: a KvmSink for such a file.",
    needs_kvm=True,
)
async def no_machine(host: Host) -> object:
    machine = await host.machine()
    return [machine.assign_to_no_machine(host.file(path)) for path in ("/dev/null", "/dev/kvm")]


@row("I19", "Assign needs no CPU: the interrupt controller takes the interrupt.", ["ok", True])
async def no_cpu(host: Host) -> object:
    machine = await host.machine()
    event = host.event()
    said = machine.assign(event)
    event.write()
    return [said, await machine.settled(GSI)]


@row("I20", "Deassign is a barrier: what was signalled before it has been injected when it returns.", [200, 0])
async def barrier(host: Host) -> object:
    machine = await _pic(host)
    hits = 0
    event = host.event()
    for _ in range(200):
        machine.assign(event)
        event.write()
        await machine.deassign(event)
        hits += machine.irr() >> GSI & 1
        machine.take()
        machine.eoi()
    return [hits, machine.irr() & BIT]


unobservable(
    "I21",
    "The kernel's barrier waits for every irqfd on the host that is on its way out.",
    "It shows in time alone. A manager's deassign waits for its own irqfd and no other.",
)


@row("I22", "A deassigned eventfd can be assigned again at once.", 500)
async def again(host: Host) -> object:
    machine = await host.machine()
    event = host.event()
    count = 0
    for _ in range(500):
        count += machine.assign(event) == "ok"
        await machine.deassign(event)
    return count


@row(
    "I23",
    "Assign, deassign and close racing give success, EBUSY or EBADF, and never two owners.",
    [[], 0, "EBADF"],
    limit="Two threads there; two tasks on one loop here, for a manager belongs to its loop.",
)
async def races(host: Host) -> object:
    machines = [await host.machine(), await host.machine()]
    event = host.event()
    seen: set[object] = set()
    owners: list[Machine] = []
    doubled = 0

    async def one(machine: Machine) -> None:
        nonlocal doubled
        for _ in range(300):
            said = machine.assign(event)
            seen.add(said)
            if said == "ok":
                owners.append(machine)
                doubled += len(owners) > 1
                await asyncio.sleep(0)
                owners.remove(machine)
                await machine.deassign(event)
            await asyncio.sleep(0)

    if host.name == "kernel":
        await asyncio.gather(*(asyncio.to_thread(asyncio.run, one(machine)) for machine in machines))
    else:
        await asyncio.gather(*(one(machine) for machine in machines))
    return [sorted(map(str, seen - {"ok", "EBUSY"})), doubled, machines[0].assign(NOT_OPEN)]


async def _pic(host: Host) -> Machine:
    machine = await host.machine()
    machine.pic_up()
    machine.route((GSI, ("pic", GSI)), (GSI + 1, ("pic", GSI + 1)))
    return machine
