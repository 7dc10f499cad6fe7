"""P: the count of a bound eventfd, what is pending at assign time, and who else waits."""

from __future__ import annotations

from tests.conformance.machine import BIT, GSI, TOP, Host, Machine, sleeps_in, sleeps_in_now
from tests.conformance.row import row

_WRITE = 1


async def _pic(host: Host, level: int = 0) -> Machine:
    machine = await host.machine()
    machine.pic_up(level=level)
    machine.route((GSI, ("pic", GSI)))
    return machine


def _served(machine: Machine) -> int:
    """How many interrupts the CPU takes and ends, one after the other, up to 3."""
    count = 0
    while count < 3 and machine.take() is not None:
        machine.eoi()
        count += 1
    return count


@row("P01", "A count that is there at assign time is injected once, and stays.", [1, 3])
async def pending_at_assign(host: Host) -> object:
    machine = await _pic(host)
    event = host.event(3)
    machine.assign(event)
    await machine.settle()
    return [_served(machine), event.count()]


@row("P02", "So with resample: the line is raised, once.", [True, 1, 2])
async def pending_at_resample_assign(host: Host) -> object:
    machine = await _pic(host)
    event = host.event(2)
    machine.assign(event, GSI, host.event())
    await machine.settle()
    return [bool(machine.lines() & BIT), _served(machine), event.count()]


@row("P03", "What was there can be read while bound.", [3, "EAGAIN"])
async def read_leftover(host: Host) -> object:
    machine = await _pic(host)
    event = host.event(3)
    machine.assign(event)
    await machine.settle()
    return [event.read(), event.read()]


@row("P04", "The next write takes it all along, for one injection.", [1, 1, 0])
async def next_write(host: Host) -> object:
    machine = await _pic(host)
    event = host.event(3)
    machine.assign(event)
    await machine.settle()
    first = _served(machine)
    event.write()
    await machine.settle()
    return [first, _served(machine), event.count()]


@row(
    "P05",
    "Deassign, and the end of the machine, drain: all of a count, 1 of a semaphore's, nothing of 0.",
    [0, 6, 0, 0],
)
async def drained(host: Host) -> object:
    machine, other = await _pic(host), await host.machine()
    result = []
    for event in (host.event(7), host.event(7, semaphore=True), host.event()):
        machine.assign(event)
        await machine.deassign(event)
        result.append(event.count())
    event = host.event(3)
    other.assign(event)
    await other.close()
    return [*result, event.count()]


@row(
    "P06",
    "A write to a semaphore injects once and takes 1, and the rest piles up; one that does not fit injects nothing.",
    [1, 4, "EAGAIN", 0, True],
)
async def semaphore(host: Host) -> object:
    machine = await _pic(host)
    event = host.event(semaphore=True)
    machine.assign(event)
    event.write(5)
    await machine.settle()
    result: list[object] = [_served(machine), event.count()]
    event.write(TOP - 4)
    await machine.settle()
    _served(machine)
    said = event.write(2)
    await machine.settle()
    return [*result, said, _served(machine), event.count() == TOP - 1]


@row(
    "P07",
    "Assigned with 2^64-2 in it, a write of 1 is EAGAIN and injects nothing until somebody reads or deassigns.",
    [1, "EAGAIN", 0, TOP, "ok", 1, 0],
    limit="There a write of 0 frees it too; here nobody sees one (P10).",
)
async def full_at_assign(host: Host) -> object:
    machine = await _pic(host)
    event = host.event()
    event.write(TOP)
    machine.assign(event)
    await machine.settle()
    first = _served(machine)
    said = event.write()
    await machine.settle()
    second = _served(machine)
    taken = event.read()
    again = event.write()
    await machine.settle()
    return [first, said, second, taken, again, _served(machine), event.count()]


@row(
    "P08",
    "A writer that sleeps on a full bound eventfd sleeps on when the kernel drains it; a deassign that drains more than "
    "0 wakes it.",
    ["asleep", 0, "woken"],
    ours=["woken", 0, "woken"],
    differs="Better: aioirqfd drains by reading, and a read wakes the writer.",
)
async def sleeping_writer(host: Host) -> object:
    machine = await _pic(host)
    event, other = host.event(blocking=True), host.event(TOP % 2**32, blocking=True)
    other.write(TOP - TOP % 2**32)
    machine.assign(other)
    await machine.settle()
    if host.name == "kernel":
        event.write(TOP)
        machine.assign(event)
    else:
        machine.assign(event)
        event.write(TOP)  # drained when the loop has its turn
    writers = [event.write_blocking(1), other.write_blocking(1)]
    for writer in writers:
        await sleeps_in(writer, _WRITE) if host.name == "kernel" else sleeps_in_now(writer, _WRITE)
    if host.name == "kernel":
        event.write(0)  # injected, and drained
    else:
        await machine.settle()
        writers[0].join()
    await machine.settle()
    result: list[object] = ["asleep" if writers[0].is_alive() else "woken"]
    await machine.deassign(event)
    result.append(event.count())
    await machine.deassign(other)
    writers[1].join()
    event.write(1)
    event.read()
    writers[0].join()
    return [*result, "woken"]


@row(
    "P09",
    "Nobody else who waits for a bound eventfd hears of a write, whoever was first; after the deassign they do.",
    [False, False, True],
    limit="True of the readers and waiters of an EventFd. A foreign poll, epoll or read(2) on the fd cannot be shut out from "
    "user space: it may see, and even take, what was meant for the irqfd.",
)
async def others_waiting(host: Host) -> object:
    machine = await _pic(host)
    event = host.event()
    before = event.watch()
    await before.woken()
    machine.assign(event)
    after = event.watch()
    await after.woken()
    event.write(2)
    await machine.settle()
    result = [await before.woken(), await after.woken()]
    await machine.deassign(event)
    event.write()
    result.append(await before.woken())
    await before.stop()
    await after.stop()
    return result


@row(
    "P10",
    "A write of 0 to a bound eventfd injects.",
    1,
    ours=0,
    differs="It leaves no trace that user space could see: epoll reports a count, and there is none. signal(0) is a ValueError, "
    "so that nobody relies on it.",
)
async def write_zero(host: Host) -> object:
    machine = await _pic(host)
    event = host.event()
    machine.assign(event)
    event.write(0)
    await machine.settle()
    return _served(machine)


@row("P11", "The value written does not matter: 1000 is one injection.", [1, 0])
async def value_ignored(host: Host) -> object:
    machine = await _pic(host)
    event = host.event()
    machine.assign(event)
    event.write(1000)
    await machine.settle()
    return [_served(machine), event.count()]


@row("P12", "What is left is injected at each assign: a count of 3 at the first alone, a semaphore's at each.", [1, 2])
async def leftover_cycles(host: Host) -> object:
    machine = await _pic(host)
    result = []
    for event in (host.event(3), host.event(3, semaphore=True)):
        total = 0
        for _ in range(2):
            machine.assign(event)
            await machine.settle()
            total += _served(machine)
            await machine.deassign(event)
            total += _served(machine)
        result.append(total)
    return result
