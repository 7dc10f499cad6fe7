"""O: doorbells. A guest's write signals an eventfd."""

from __future__ import annotations

from tests.conformance.machine import BIT, GSI, NOT_OPEN, TOP, Host
from tests.conformance.row import row

_PORT = 0x90
_BUS = "What is in front of the IoBus is the machine's to say; here it asks the PIC and memory first, as KVM does."


@row(
    "O01",
    "0, 1, 2, 4 and 8 bytes in either space; anything else is EINVAL, and ENOENT to deassign.",
    [["ok"] * 5, ["ok"] * 5, "EINVAL", "EINVAL", "ENOENT"],
)
async def lengths(host: Host) -> object:
    machine = await host.machine()
    event = host.event()
    good = [[machine.doorbell(event, 0x1000 * n, n, space=space) for n in (0, 1, 2, 4, 8)] for space in ("pio", "mmio")]
    return [
        *good,
        machine.doorbell(event, 0x50, 3),
        machine.doorbell(event, 0x50, 16),
        machine.undoorbell(event, 0x50, 3),
    ]


@row("O02", "A value to match needs a length: EINVAL.", "EINVAL")
async def match_without_length(host: Host) -> object:
    return (await host.machine()).doorbell(host.event(), 0x50, 0, 1)


@row("O03", "Address and length must end below 2^64: EINVAL.", ["EINVAL", "ok"])
async def wraps(host: Host) -> object:
    machine, event = await host.machine(), host.event()
    return [machine.doorbell(event, 2**64 - 4, 4, space="mmio"), machine.doorbell(event, 2**64 - 5, 4, space="mmio")]


@row(
    "O04",
    "An unknown flag is EINVAL.",
    "EINVAL",
    limit="There it is a bit of the flags word, here a space that is neither pio nor mmio. Deassign, which does not look at them "
    "there, has none here.",
)
async def flags(host: Host) -> object:
    return (await host.machine()).doorbell(host.event(), 0x50, 1, space="other")


@row(
    "O05",
    "A closed fd is EBADF, one that is no eventfd EINVAL; the length is looked at first.",
    ["EBADF", "EINVAL", "EINVAL"],
    limit="A doorbell takes an EventFd, which an fd becomes by EventFd.from_fd().",
)
async def bad_fd(host: Host) -> object:
    machine = await host.machine()
    closed = host.event()
    twin = closed.dup()
    closed.close()
    result = [
        machine.doorbell(closed if host.name != "kernel" else NOT_OPEN, 0x50, 1),
        machine.doorbell(host.file(), 0x50, 1),
        machine.doorbell(closed if host.name != "kernel" else NOT_OPEN, 0x50, 3),
    ]
    twin.close()
    return result


@row("O06", "No interrupt controller and no CPU is needed, and a port may be above 64 K.", ["ok", "ok"])
async def bare(host: Host) -> object:
    machine = await host.machine(irqchip="none")
    return [machine.doorbell(host.event(), 0x50, 1), machine.doorbell(host.event(), 0x12345, 1)]


def _collides() -> list[list[str]]:
    kinds = [(0, None), (1, None), (1, 1), (1, 2), (2, None), (2, 1)]
    result = []
    for length, match in kinds:
        line = []
        for other, other_match in kinds:
            same = length == other and (match is None or other_match is None or match == other_match)
            line.append("EEXIST" if not length or not other or same else "ok")
        result.append(line)
    return result


@row(
    "O07",
    "At one address two collide (EEXIST) if either takes any length; or if they have one length, and either takes any value "
    "or both the same. Ranges that overlap do not collide.",
    [_collides(), "ok"],
)
async def collisions(host: Host) -> object:
    machine = await host.machine()
    event = host.event()
    kinds = [(0, None), (1, None), (1, 1), (1, 2), (2, None), (2, 1)]
    result = []
    address = 0x100
    for length, match in kinds:
        line = []
        for other, other_match in kinds:
            address += 0x10
            machine.doorbell(event, address, length, match)
            line.append(machine.doorbell(event, address, other, other_match))
        result.append(line)
    machine.doorbell(event, 0x2000, 4)
    return [result, machine.doorbell(event, 0x2002, 4)]


@row("O08", "A port and a memory address of the same number are two.", ["ok", "ok"])
async def spaces(host: Host) -> object:
    machine, event = await host.machine(), host.event()
    return [machine.doorbell(event, 0x90, 1, space=space) for space in ("pio", "mmio")]


@row(
    "O09",
    "Deassign must match space, eventfd, address, length and value, or it is ENOENT; a dup of the eventfd will do.",
    [["ENOENT"] * 6, "ok"],
)
async def deassign(host: Host) -> object:
    machine, event = await host.machine(), host.event()
    machine.doorbell(event, 0x90, 1, 5)
    wrong = [
        machine.undoorbell(event, 0x90, 1, 5, "mmio"),
        machine.undoorbell(host.event(), 0x90, 1, 5),
        machine.undoorbell(event, 0x91, 1, 5),
        machine.undoorbell(event, 0x90, 2, 5),
        machine.undoorbell(event, 0x90, 1),
        machine.undoorbell(event, 0x90, 1, 6),
    ]
    return [wrong, machine.undoorbell(event.dup(), 0x90, 1, 5)]


@row("O10", "A write that matches adds 1, whatever its value, and user space does not see it.", [True, True, 2])
async def rings(host: Host) -> object:
    machine, event = await host.machine(), host.event()
    machine.doorbell(event, _PORT, 1)
    return [machine.out(_PORT, 7), machine.out(_PORT, 200), event.read()]


@row(
    "O11",
    "Another size, value or address is left to user space.",
    [False, False, False, True, 1],
    limit="So is every read there; an IoBus is not asked about reads.",
)
async def passes(host: Host) -> object:
    machine, event = await host.machine(), host.event()
    machine.doorbell(event, _PORT, 1, 5)
    return [
        machine.out(_PORT, 5, 2),
        machine.out(_PORT, 6),
        machine.out(_PORT + 1, 5),
        machine.out(_PORT, 5),
        event.read(),
    ]


@row("O12", "Length 0 takes a write of any size at its very address.", [True, True, True, False, 3])
async def any_size(host: Host) -> object:
    machine, event = await host.machine(), host.event()
    machine.doorbell(event, _PORT, 0)
    taken = [machine.out(_PORT, 1, size) for size in (1, 2, 4)]
    return [*taken, machine.out(_PORT + 1, 1), event.read()]


@row("O13", "The value is compared as 64 bits: one beyond the length never matches.", ["ok", False, 0])
async def high_bits(host: Host) -> object:
    machine, event = await host.machine(), host.event()
    return [machine.doorbell(event, _PORT, 1, 0x105), machine.out(_PORT, 5), event.count()]


@row(
    "O14",
    "Of several at one address the one that matches rings.",
    [[True, True, True], 2, 1, [True, True, False], 1, 1],
)
async def several(host: Host) -> object:
    machine = await host.machine()
    byte, word, five, six = (host.event() for _ in range(4))
    machine.doorbell(byte, _PORT, 1)
    machine.doorbell(word, _PORT, 2)
    machine.doorbell(five, _PORT + 8, 1, 5)
    machine.doorbell(six, _PORT + 8, 1, 6)
    sizes = [machine.out(_PORT, 1), machine.out(_PORT, 1), machine.out(_PORT, 1, 2)]
    values = [machine.out(_PORT + 8, value) for value in (5, 6, 7)]
    return [sizes, byte.read(), word.read(), values, five.read(), six.read()]


@row("O15", "A string instruction rings once for each element.", [0, 4])
async def string(host: Host) -> object:
    machine, event = await host.machine(), host.event()
    machine.doorbell(event, _PORT, 1)
    return [machine.out_string(_PORT, b"abcd"), event.read()]


@row(
    "O16",
    "At the address of a chip it can be registered, and the chip takes the write.",
    ["ok", True, 0xFE, 0],
    limit=_BUS,
)
async def chips_address(host: Host) -> object:
    machine, event = await host.machine(), host.event()
    return [machine.doorbell(event, 0x21, 1), machine.out(0x21, 0xFE), machine.imr(), event.count()]


@row("O17", "Inside memory it can be registered, and the write is a write to memory.", ["ok", True, 0], limit=_BUS)
async def in_memory(host: Host) -> object:
    machine, event = await host.machine(), host.event()
    said = machine.doorbell(event, 0x5000, 4, space="mmio")
    return [said, machine.mmio(0x5000, 1), event.count()]


@row(
    "O18",
    "With its eventfd closed it swallows writes on, keeps its address, and cannot be taken off.",
    [True, "EEXIST", "EBADF"],
    ours=[False, "ok", "EBADF"],
    differs="Better: a closed doorbell leaves the bus at the next write, which is user space's again, and the address is free.",
)
async def closed(host: Host) -> object:
    machine, event = await host.machine(), host.event()
    machine.doorbell(event, _PORT, 1)
    number = event.fd
    event.close()
    result = [machine.out(_PORT, 1), machine.doorbell(host.event(), _PORT, 1)]
    return [*result, machine.undoorbell(event if host.name != "kernel" else NOT_OPEN + number, _PORT, 1)]


@row("O19", "One eventfd may hang at many addresses, of many machines.", ["ok", "ok", "ok", 3])
async def many(host: Host) -> object:
    machine, other, event = await host.machine(), await host.machine(), host.event()
    said = [machine.doorbell(event, _PORT, 1), machine.doorbell(event, _PORT + 1, 1), other.doorbell(event, _PORT, 1)]
    machine.out(_PORT, 1)
    machine.out(_PORT + 1, 1)
    other.out(_PORT, 1)
    return [*said, event.read()]


@row(
    "O20",
    "A doorbell whose eventfd is a trigger: the guest's write injects, and user space is not asked.",
    [True, BIT, 0],
)
async def doorbell_to_irqfd(host: Host) -> object:
    machine, event = await host.machine(), host.event()
    machine.pic_up()
    machine.route((GSI, ("pic", GSI)))
    machine.assign(event)
    machine.doorbell(event, _PORT, 1)
    taken = machine.out(_PORT, 1)
    await machine.settle()
    return [taken, machine.irr(), event.count()]


@row(
    "O21",
    "A semaphore is read 1 by 1; a count near its top saturates, the write is taken all the same, and nobody waits.",
    [[1, 1, 1, "EAGAIN"], [True, True, True], True, True],
    limit="At 2^64-1, with the error in its poll mask, there; user space cannot write that, so here it stays at 2^64-2.",
)
async def semaphore_and_top(host: Host) -> object:
    machine, semaphore, full = await host.machine(), host.event(semaphore=True), host.event()
    machine.doorbell(semaphore, _PORT, 1)
    machine.doorbell(full, _PORT + 1, 1)
    full.write(TOP - 1)
    taken = []
    for _ in range(3):
        machine.out(_PORT, 1)
        taken.append(machine.out(_PORT + 1, 1))
    count = full.count()
    return [[semaphore.read() for _ in range(4)], taken, count >= TOP, full.read() == count]


@row("O22", "A machine may have thousands.", [2000, 1])
async def thousands(host: Host) -> object:
    machine, event = await host.machine(), host.event()
    count = sum(machine.doorbell(event, 0x1000 + n, 1) == "ok" for n in range(2000))
    machine.out(0x1000 + 1234, 1)
    return [count, event.read()]
