"""C: how long things live; B: interrupts that bypass the host."""

from __future__ import annotations

import gc
import os
import select
import socket

from tests.conformance.machine import BIT, GSI, Event, Host, Machine
from tests.conformance.row import row, unobservable

_TRIES = 5
"""Other processes make eventfds too, and may be faster."""


async def _bound(host: Host, resample: Event | None = None) -> tuple[Machine, Event]:
    machine = await host.machine()
    machine.pic_up()
    machine.route((GSI, ("pic", GSI)))
    event = host.event()
    machine.assign(event, GSI, resample)
    return machine, event


def _freed(host: Host, number: int) -> bool:
    """Whether a new eventfd gets the number of one that is gone: the lowest that is free is taken first."""
    spare: list[Event] = []
    while len(spare) < 500:
        spare.append(host.event())
        if spare[-1].id() >= number:
            break
    found = spare[-1].id() == number
    for event in spare:
        event.close()
    return found


@row(
    "C01",
    "With one of several fds of the trigger closed, it is still bound.",
    [True],
    limit="The EventFd that was assigned is the one that counts: its own close() deassigns, whatever dups there are.",
)
async def one_of_several(host: Host) -> object:
    machine, event = await _bound(host)
    event.dup().close()
    event.write()
    return [await machine.settled(GSI)]


@row(
    "C02",
    "A trigger whose fd is on its way to another process is still bound.",
    [True],
    limit="Its EventFd stays open meanwhile: aioirqfd's hold on an eventfd is that object.",
)
async def in_flight(host: Host) -> object:
    machine, event = await _bound(host)
    here, there = socket.socketpair()
    with here, there:
        twin = event.dup()
        socket.send_fds(here, [b"x"], [twin.fd])
        twin.close()
        if host.name == "kernel":
            event.close()
            await machine.settle()
        received = socket.recv_fds(there, 1, 1)[1][0]
    os.eventfd_write(received, 1)
    result = await machine.settled(GSI)
    os.close(received)
    return [result]


@row("C03", "To be registered in an epoll keeps no eventfd alive.", [True, []])
async def epoll_keeps_nothing(host: Host) -> object:
    result: list[object] = []
    for _ in range(_TRIES):
        event = host.event(1)
        watch = event.watch()
        epoll = select.epoll()
        epoll.register(event.fd, select.EPOLLIN)
        number = event.id()
        event.close()
        gc.collect()
        result = [_freed(host, number), epoll.poll(0)]
        epoll.close()
        await watch.stop()
        if result[0]:
            break
    return result


@row(
    "C04",
    "The last close of the trigger deassigns it, and the eventfd is gone.",
    [True, False, True],
    limit="By EventFd.close(). A close(2) behind its back cannot be seen: an owner inside this process holds a reference of its own, or "
    "loses the fd in silence. close() injects what was signalled, and leaves the poller before the number can be anybody else's. "
    "Of an fd that is given as an int the irqfd has a dup of its own, and stays bound until it is deassigned.",
)
async def last_close(host: Host) -> object:
    result: list[object] = []
    for _ in range(_TRIES):
        machine, event = await _bound(host, host.event())
        event.write()
        await machine.settle()
        high = bool(machine.lines() & BIT)
        number = event.id()
        event.close()
        await machine.settle()
        result = [high, bool(machine.lines() & BIT), _freed(host, number)]
        if result[-1]:
            break
    return result


@row(
    "C05",
    "The end of the machine releases its irqfds at once, though its CPUs are still there; the eventfds can be bound "
    "elsewhere.",
    ["EBUSY", "ok"],
)
async def machine_closed(host: Host) -> object:
    machine, event = await _bound(host)
    other = await host.machine()
    busy = other.assign(event)
    await machine.close()
    return [busy, other.assign(event)]


@row(
    "C06",
    "A second reference to the machine keeps everything.",
    [True],
    limit="A dup of its fd there, an irqfd of the manager's here.",
)
async def second_reference(host: Host) -> object:
    machine, event = await _bound(host)
    machine.second_reference()
    event.write()
    return [await machine.settled(GSI)]


@row(
    "C07",
    "Who can only signal an eventfd does not keep its irqfd: with an ioeventfd on the trigger, its close still deassigns.",
    [True, False],
)
async def producer_keeps_nothing(host: Host) -> object:
    machine, event = await _bound(host, host.event())
    machine.doorbell(event, 0x90, 1)
    machine.out(0x90, 1)
    await machine.settle()
    high = bool(machine.lines() & BIT)
    event.close()
    await machine.settle()
    return [high, bool(machine.lines() & BIT)]


_HARDWARE = (
    "It is a meeting of device and CPU below any program: it needs an IOMMU and VFIO, and cannot be seen from here."
)
unobservable(
    "B01",
    "An irqfd whose eventfd a VFIO device signals lets the hardware post the interrupt to the CPU.",
    f"{_HARDWARE} With a KvmSink the irqfd is the kernel's, which does it.",
)
unobservable(
    "B02",
    "Only messages to one CPU are posted; that is looked at again at each change of the table.",
    f"{_HARDWARE} With a KvmSink the irqfd is the kernel's, which does it.",
)
unobservable(
    "B03",
    "If that cannot be set up, assign succeeds all the same.",
    f"{_HARDWARE} Where a KvmSink's offload fails, the manager watches the eventfd itself.",
)
