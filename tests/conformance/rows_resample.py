"""R: level-triggered lines, lowered and told of at the guest's end of interrupt."""

from __future__ import annotations

from tests.conformance.machine import BIT, GSI, TOP, Event, Host, Machine
from tests.conformance.row import row

VECTOR = 0x20 + GSI
_LEVEL_UNMASKED = 0x8000
_MASKED = 1 << 16


async def _level(host: Host, *, level: int = 0, auto_eoi: bool = False) -> tuple[Machine, Event, Event]:
    """A machine whose gsi is a PIC pin, and a resample irqfd on it."""
    machine = await host.machine()
    machine.pic_up(level=level, auto_eoi=auto_eoi)
    machine.route((GSI, ("pic", GSI)), (GSI + 1, ("pic", GSI + 1)))
    trigger, resample = host.event(), host.event()
    machine.assign(trigger, GSI, resample)
    return machine, trigger, resample


async def _fire(machine: Machine, event: Event) -> None:
    event.write()
    await machine.settle()


def _high(machine: Machine) -> bool:
    return bool(machine.lines() & BIT)


@row(
    "R01", "A write raises the line and it stays up; later writes give no interrupt of their own.", [True, VECTOR, None]
)
async def asserted(host: Host) -> object:
    machine, trigger, _ = await _level(host)
    await _fire(machine, trigger)
    high = _high(machine)
    first = machine.take()
    await _fire(machine, trigger)
    machine.eoi()
    return [high, first, machine.take()]


@row(
    "R02",
    "At the end of interrupt the line is lowered and each resamplefd signalled once, in the call that ended it.",
    [True, 0, False, 1],
)
async def end_of_interrupt(host: Host) -> object:
    machine, trigger, resample = await _level(host)
    await _fire(machine, trigger)
    machine.take()
    before: list[object] = [_high(machine), resample.count()]
    machine.eoi()
    return [*before, _high(machine), resample.count()]


@row("R03", "The most recently assigned is told first.", [True, False])
async def newest_first(host: Host) -> object:
    result = []
    for modes in (("startup", "init"), ("init", "startup")):
        # Told in the order reset, start, the second CPU starts; told the other way round, the reset forgets the start.
        machine = await host.machine(cpus=2)
        machine.enable(0)
        machine.enable(1)
        machine.pic_up()
        machine.route((GSI, ("pic", GSI)), *((100 + n, ("msi", 0x10, 1, mode)) for n, mode in enumerate(modes)))
        triggers = []
        for n in range(2):
            trigger, resample = host.event(), host.event()
            machine.assign(resample, 100 + n)
            machine.assign(trigger, GSI, resample)
            triggers.append(trigger)
        await _fire(machine, triggers[0])
        machine.take()
        machine.eoi()
        result.append(machine.started(1))
    return result


@row("R04", "Everybody on the gsi is told, whoever triggered.", [1, 1])
async def everybody(host: Host) -> object:
    machine, _, first = await _level(host)
    trigger, second = host.event(), host.event()
    machine.assign(trigger, GSI, second)
    await _fire(machine, trigger)
    machine.take()
    machine.eoi()
    return [first.count(), second.count()]


@row(
    "R05",
    "So they are when the interrupt was not the resampler's: a device's pulse, a plain irqfd, an EOI of nothing.",
    [1, 1, 1],
)
async def others_interrupt(host: Host) -> object:
    machine, _, resample = await _level(host)
    result = []
    machine.line(GSI, 1)
    machine.line(GSI, 0)
    machine.take()
    machine.eoi()
    result.append(resample.read())
    plain = host.event()
    machine.assign(plain)
    await _fire(machine, plain)
    machine.take()
    machine.eoi()
    result.append(resample.read())
    machine.out(0x20, 0x60 | GSI)
    return [*result, resample.read()]


@row("R06", "An end of interrupt of another gsi tells nobody here.", [VECTOR + 1, "EAGAIN"])
async def another_gsi(host: Host) -> object:
    machine, _, resample = await _level(host)
    machine.line(GSI + 1, 1)
    machine.line(GSI + 1, 0)
    taken = machine.take()
    machine.eoi()
    return [taken, resample.read()]


@row(
    "R07",
    "A second trigger before the end of interrupt is swallowed by it: one interrupt, and both are told.",
    [1, 1, 1],
)
async def swallowed(host: Host) -> object:
    machine, first, resample = await _level(host)
    second, other = host.event(), host.event()
    machine.assign(second, GSI, other)
    await _fire(machine, first)
    count = 0
    while machine.take() == VECTOR and count < 3:
        count += 1
        if count == 1:
            await _fire(machine, second)
        machine.eoi()
    return [count, resample.count(), other.count()]


@row("R08", "Who triggers again when told interrupts again.", [VECTOR, None, VECTOR, 2])
async def again(host: Host) -> object:
    machine, trigger, resample = await _level(host)
    await _fire(machine, trigger)
    first = machine.take()
    machine.eoi()
    nothing = machine.take()
    await _fire(machine, trigger)
    second = machine.take()
    machine.eoi()
    return [first, nothing, second, resample.count()]


@row(
    "R09",
    "A line that a device holds up too is wired-or: the end of interrupt lowers the resampler's part, the interrupt comes "
    "again, and each end is told.",
    [[VECTOR] * 4, 4, None],
)
async def wired_or(host: Host) -> object:
    machine, trigger, resample = await _level(host, level=BIT)
    machine.line(GSI, 1)
    await _fire(machine, trigger)
    taken = []
    for _ in range(4):
        taken.append(machine.take())
        machine.eoi()
    machine.line(GSI, 0)
    return [taken, resample.count(), machine.take()]


@row("R10", "A resamplefd that k irqfds share is told k times.", 2)
async def shared(host: Host) -> object:
    machine, trigger, resample = await _level(host)
    machine.assign(host.event(), GSI, resample)
    await _fire(machine, trigger)
    machine.take()
    machine.eoi()
    return resample.count()


@row(
    "R11",
    "A resamplefd near its top saturates, and nobody waits.",
    [[VECTOR, VECTOR], False, True, True],
    limit="At 2^64-1, with the error in its poll mask, there; user space cannot write that, so here it stays at 2^64-2.",
)
async def saturated(host: Host) -> object:
    machine, trigger, resample = await _level(host)
    resample.write(TOP - 1)
    taken = []
    for _ in range(2):
        await _fire(machine, trigger)
        taken.append(machine.take())
        machine.eoi()
    count = resample.count()
    return [taken, _high(machine), count >= TOP, resample.read() == count]


@row(
    "R12", "A trigger that is its own resamplefd interrupts without end, until it is deassigned.", [[VECTOR] * 4, None]
)
async def own_resamplefd(host: Host) -> object:
    machine = await host.machine()
    machine.pic_up()
    machine.route((GSI, ("pic", GSI)))
    both = host.event()
    machine.assign(both, GSI, both)
    both.write()
    taken = []
    for _ in range(4):
        await machine.settle()
        taken.append(machine.take())
        machine.eoi()
    await machine.deassign(both)
    if machine.take() is not None:
        machine.eoi()
    await machine.settle()
    return [taken, machine.take()]


@row(
    "R13",
    "Deassign or close of one that is not the last leaves the line as it is, even if that one raised it.",
    [True, True],
)
async def not_the_last(host: Host) -> object:
    machine, trigger, _ = await _level(host)
    second = host.event()
    machine.assign(second, GSI, host.event())
    machine.assign(host.event(), GSI, host.event())
    await _fire(machine, trigger)
    await machine.deassign(trigger)
    result = [_high(machine)]
    second.close()
    await machine.settle()
    return [*result, _high(machine)]


@row("R14", "Deassign of the last lowers the line, and nobody is told.", [True, False, 0])
async def last(host: Host) -> object:
    machine, trigger, resample = await _level(host)
    await _fire(machine, trigger)
    before = _high(machine)
    await machine.deassign(trigger)
    return [before, _high(machine), resample.count()]


@row("R15", "So does the close of the last trigger.", [True, False, 0], limit="By EventFd.close(); see C04.")
async def last_closed(host: Host) -> object:
    machine, trigger, resample = await _level(host)
    await _fire(machine, trigger)
    before = _high(machine)
    trigger.close()
    await machine.settle()
    return [before, _high(machine), resample.count()]


@row("R16", "A resamplefd that its owner closes is still told.", [False, 1])
async def resamplefd_closed(host: Host) -> object:
    machine, trigger, resample = await _level(host)
    twin = resample.dup()
    resample.close()
    await _fire(machine, trigger)
    machine.take()
    machine.eoi()
    return [_high(machine), twin.count()]


@row(
    "R17",
    "An assign that fails with EBUSY on a gsi without a resampler makes and unmakes one, and so lowers the pin, though "
    "another gsi's resampler holds it up.",
    [True, "EBUSY", False],
    ours=[True, "EBUSY", True],
    differs="Better: what fails changes nothing, and the line stays up.",
)
async def failed_assign(host: Host) -> object:
    machine, trigger, _ = await _level(host)
    machine.route((GSI, ("pic", GSI)), (100, ("pic", GSI)))
    await _fire(machine, trigger)
    before = _high(machine)
    said = machine.assign(trigger, 100, host.event())
    return [before, said, _high(machine)]


@row("R18", "With automatic EOI the interrupt ends as the CPU takes it.", [VECTOR, 1, False])
async def auto_eoi(host: Host) -> object:
    machine, trigger, resample = await _level(host, auto_eoi=True)
    await _fire(machine, trigger)
    return [machine.take(), resample.count(), _high(machine)]


@row(
    "R19",
    "A PIC that is set up anew ends what was waiting on its edge pins.",
    [1, False],
    limit="An interrupt in service is forgotten and ended too here, for no end of it will come; the kernel keeps it in service.",
)
async def set_up_anew(host: Host) -> object:
    machine, trigger, resample = await _level(host)
    await _fire(machine, trigger)
    machine.out(0x20, 0x11)
    return [resample.count(), _high(machine)]


@row("R20", "The IOAPIC's end of interrupt tells too, of level and of edge pins.", [[0x31, 1], [0x31, 1]])
async def ioapic_end(host: Host) -> object:
    result = []
    for trigger_mode in (_LEVEL_UNMASKED, 0):
        machine = await host.machine()
        machine.enable()
        machine.route((GSI, ("ioapic", GSI)))
        machine.ioapic(GSI, trigger_mode | 0x31)
        trigger, resample = host.event(), host.event()
        machine.assign(trigger, GSI, resample)
        await _fire(machine, trigger)
        taken = machine.take()
        machine.end(0x31)
        result.append([taken, resample.count()])
    return result


@row(
    "R21",
    "A guest that unmasks a level IOAPIC pin with a request waiting gets no interrupt: the resamplefds are told instead. "
    "Without a resampler it gets one.",
    [[None, 1], [0x31, 0]],
)
async def unmask(host: Host) -> object:
    result = []
    for with_resample in (True, False):
        machine = await host.machine()
        machine.enable()
        machine.route((GSI, ("ioapic", GSI)))
        machine.ioapic(GSI, _MASKED | _LEVEL_UNMASKED | 0x31)
        trigger, resample = host.event(), host.event()
        if with_resample:
            machine.assign(trigger, GSI, resample)
            await _fire(machine, trigger)
        else:
            machine.line(GSI, 1)
        machine.ioapic(GSI, _LEVEL_UNMASKED | 0x31)
        result.append([machine.take(), resample.count()])
    return result


@row("R22", "Deassigned between the CPU's taking it and its end: the end tells nobody.", [VECTOR, 0])
async def deassigned_in_service(host: Host) -> object:
    machine, trigger, resample = await _level(host)
    await _fire(machine, trigger)
    taken = machine.take()
    await machine.deassign(trigger)
    machine.eoi()
    return [taken, resample.count()]


@row("R23", "The end of the machine tells nobody.", [True, 0])
async def machine_closed(host: Host) -> object:
    machine, trigger, resample = await _level(host)
    await _fire(machine, trigger)
    high = _high(machine)
    await machine.close()
    return [high, resample.count()]


@row(
    "R24",
    "There is one resampler for each gsi of a machine: who shares it is told together and lowers the line once.",
    [1, 1, 0, False],
)
async def one_resampler(host: Host) -> object:
    machine, trigger, resample = await _level(host)
    second, other_gsi = host.event(), host.event()
    machine.assign(host.event(), GSI, second)
    machine.assign(host.event(), GSI + 1, other_gsi)
    await _fire(machine, trigger)
    machine.take()
    machine.eoi()
    return [resample.count(), second.count(), other_gsi.count(), _high(machine)]
