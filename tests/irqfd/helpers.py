"""Interrupts as the default routing makes them, and sinks that several tests share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource

from aioirqfd import Action, Interrupt, IrqchipPin, Msi, WouldBlock

MSI = Msi(0xFEE00000, 0x31)
OTHER_MSI = Msi(0xFEE00000, 0x32)
CLOSED_FD = 10**6


def pulse(gsi, route=None):
    return Interrupt(gsi, IrqchipPin("ioapic", gsi) if route is None else route)


def asserted(gsi, route=None):
    return Interrupt(gsi, IrqchipPin("ioapic", gsi) if route is None else route, Action.ASSERT)


def deasserted(gsi, route=None):
    return Interrupt(gsi, IrqchipPin("ioapic", gsi) if route is None else route, Action.DEASSERT)


def write(eventfd, count=1):
    """What another process does."""
    os.eventfd_write(eventfd.fileno(), count)


def count(eventfd):
    """What a read takes; 0 where there is nothing."""
    try:
        return eventfd.read_nowait()
    except WouldBlock:
        return 0


@contextlib.contextmanager
def room_for_fds(count):
    """So many new fds can be made, and no more: EMFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fds = [os.dup(0) for _ in range(count + 1)]  # each the lowest that was free
    resource.setrlimit(resource.RLIMIT_NOFILE, (fds[-1], hard))
    for fd in fds:
        os.close(fd)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def turns(count=20):
    """Let everything run that can run by itself."""
    for _ in range(count):
        await asyncio.sleep(0)


class SlowSink:
    """No fast path: everything by the work queue."""

    def __init__(self):
        self.interrupts = []

    async def inject(self, interrupt):
        await asyncio.sleep(0)
        self.interrupts.append(interrupt)


class OffloadingSink:
    """Watches eventfds by itself, as a kernel would: what is written to them is its business until they are reclaimed."""

    def __init__(self, *, able=True):
        self.able = able
        self.error: Exception | None = None
        self.interrupts = []
        self.log = []

    async def inject(self, interrupt):
        self.interrupts.append(interrupt)

    def try_inject(self, interrupt):
        self.interrupts.append(interrupt)
        return True

    def offload(self, eventfd, interrupt, resamplefd):
        if self.error is not None:
            raise self.error
        if self.able:
            self.log.append(("offload", eventfd, interrupt, resamplefd))
        return self.able

    def reclaim(self, eventfd, interrupt):
        self.log.append(("reclaim", eventfd, interrupt))
        if self.error is not None:
            raise self.error
