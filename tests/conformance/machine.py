"""The scenario language: what a scenario can do to a host, its eventfds and its virtual machines, and what it can see.

Two back-ends speak it: the kernel (:mod:`tests.conformance.kernel`) and aioirqfd (:mod:`tests.conformance.ours`). What can fail
answers with the name of the errno instead of raising, so that refusals are results like any other.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import select
import threading
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from aioirqfd.errors import WrongLoopError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Route = tuple[str, int] | tuple[str, int, int] | tuple[str, int, int, str] | tuple[str, int, int, str, int]
    """("pic", pin), ("ioapic", pin), ("msi", vector) and then cpu, mode and device; or something bad."""

TOP = 2**64 - 2
GSI = 5
BIT = 1 << GSI
NOT_OPEN = 10**6
"""Far above what is open: a number closed just now would be the next eventfd's."""

_libc = ctypes.CDLL(None, use_errno=True)

# What Python refuses before there is an errno, by what the kernel says to the same.
IN_PYTHON = {TypeError: "EINVAL", ValueError: "EINVAL", OverflowError: "EINVAL", WrongLoopError: "EIO"}


def attempt(call: Callable[..., object], *args: object, **kwargs: object) -> object:
    """What the call returns ("ok" for nothing), or the name of its errno."""
    try:
        result = call(*args, **kwargs)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    except tuple(IN_PYTHON) as error:
        return IN_PYTHON[next(kind for kind in type(error).__mro__ if kind in IN_PYTHON)]
    return "ok" if result is None else result


async def attempt_async(call: Awaitable[object]) -> object:
    """The same, of something that may wait."""
    try:
        result = await call
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    except tuple(IN_PYTHON) as error:
        return IN_PYTHON[next(kind for kind in type(error).__mro__ if kind in IN_PYTHON)]
    return "ok" if result is None else result


def message_of(route: Route) -> tuple[int, str, int | None]:
    """The rest of a message: cpu, mode, device."""
    return (
        route[2] if len(route) > 2 else 0,
        route[3] if len(route) > 3 else "fixed",
        route[4] if len(route) > 4 else None,
    )


def raw(name: str, *args: object) -> object:
    """A C library call: its result, or the name of its errno. The GIL is released."""
    result = getattr(_libc, name)(*args)
    return errno.errorcode[ctypes.get_errno()] if result < 0 else result


def fdinfo(fd: int) -> dict[str, str]:
    """What /proc says about an fd."""
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text("ascii").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def sleeps_in(thread: threading.Thread, call: int) -> None:
    """Return once the thread sleeps in that system call; the kernel says so itself."""
    path = Path(f"/proc/self/task/{thread.native_id}/syscall")
    while not path.read_text().startswith(f"{call} "):
        await asyncio.sleep(0)


def sleeps_in_now(thread: threading.Thread, call: int) -> None:
    """The same, without giving the loop a turn."""
    path = Path(f"/proc/self/task/{thread.native_id}/syscall")
    while not path.read_text().startswith(f"{call} "):
        os.sched_yield()


class Event(ABC):
    """One eventfd of a scenario. ``write``, ``poll`` and the like are what anybody does who holds the fd."""

    fd: int

    def write(self, n: int = 1) -> object:
        """write(2) by somebody else."""
        return attempt(os.eventfd_write, self.fd, n)

    @abstractmethod
    def signal(self, n: int = 1) -> object:
        """The owner's own signal."""

    @abstractmethod
    def read(self) -> object:
        """The owner's own read: the count, or EAGAIN."""

    @abstractmethod
    def count(self) -> int:
        """The count; nothing is consumed."""

    @abstractmethod
    def dup(self) -> Event:
        """Another fd for the same eventfd."""

    @abstractmethod
    def close(self) -> object:
        """Close this fd."""

    @abstractmethod
    async def waiting_read(self) -> int:
        """A read that waits."""

    @abstractmethod
    def watch(self) -> Watch:
        """Ask, from now on, whether somebody who waits for the eventfd is woken."""

    def poll(self) -> int:
        """The poll mask for IN, OUT and ERR."""
        poller = select.poll()
        poller.register(self.fd, select.POLLIN | select.POLLOUT)
        return dict(poller.poll(0)).get(self.fd, 0)

    def id(self) -> int:
        """The kernel's number for the eventfd."""
        return int(fdinfo(self.fd)["eventfd-id"])

    def flags(self) -> int:
        """The file's flags."""
        return fcntl.fcntl(self.fd, fcntl.F_GETFL)

    def write_blocking(self, n: int) -> threading.Thread:
        """Start a thread that writes on a blocking fd."""
        thread = threading.Thread(target=os.eventfd_write, args=(self.fd, n), daemon=True)
        thread.start()
        return thread


class Watch(ABC):
    """Whether somebody who waits has been woken."""

    @abstractmethod
    async def woken(self) -> bool:
        """Since the last time this was asked."""

    @abstractmethod
    async def stop(self) -> None:
        """Wait no longer."""


class Machine(ABC):
    """One virtual machine: irqfds, routing, interrupt controllers, and a CPU that does what the scenario says."""

    @abstractmethod
    def assign(self, event: Event | int, gsi: int = GSI, resample: Event | int | None = None) -> object:
        """Bind an eventfd."""

    @abstractmethod
    def assign_with_unknown_flag(self, event: Event) -> object:
        """The same, asking for what does not exist."""

    @abstractmethod
    def assign_unreadable(self) -> object:
        """The same, with what is no argument at all."""

    @abstractmethod
    async def deassign(self, event: Event | int, gsi: int = GSI, resample: int | None = None) -> object:
        """Unbind it; a barrier. ``resample``: name a resamplefd too, where that can be said."""

    @abstractmethod
    def route(self, *entries: tuple[int, Route]) -> object:
        """Replace the routing table."""

    @abstractmethod
    def line(self, gsi: int, level: int) -> int:
        """Drive the gsi's pins as a device; the status."""

    @abstractmethod
    async def msi(self, vector: int, cpu: int = 0, mode: str = "fixed", *, devid: int | None = None) -> object:
        """Send a message; how many local APICs took it."""

    @abstractmethod
    async def settle(self) -> None:
        """Everything that was signalled up to here has been injected."""

    @abstractmethod
    def irr(self) -> int:
        """What the PIC pair was asked for, 16 pins."""

    @abstractmethod
    def isr(self) -> int:
        """What the PIC pair has in service."""

    @abstractmethod
    def lines(self) -> int:
        """The levels at the PIC pair's pins."""

    @abstractmethod
    def imr(self) -> int:
        """The master PIC's mask."""

    @abstractmethod
    def pin(self, pin: int) -> int:
        """The low half of the IOAPIC's redirection entry."""

    @abstractmethod
    def vectors(self, cpu: int = 0) -> list[int]:
        """What the CPU's local APIC was asked for."""

    @abstractmethod
    def enable(self, cpu: int = 0) -> None:
        """Switch the CPU's local APIC on."""

    @abstractmethod
    def started(self, cpu: int) -> bool:
        """Whether the CPU was told to start after it was told to reset."""

    @abstractmethod
    def out(self, port: int, value: int, size: int = 1) -> bool:
        """The guest writes to a port; whether somebody below user space (or the bus) took it."""

    @abstractmethod
    def out_string(self, port: int, data: bytes) -> int:
        """The guest writes the bytes with one instruction; how many were left to user space."""

    @abstractmethod
    def mmio(self, address: int, value: int, size: int = 4) -> bool:
        """The guest writes to memory; whether somebody below user space (or the bus, or memory) took it."""

    @abstractmethod
    def take(self) -> int | None:
        """The CPU takes an interrupt, if there is one: its vector."""

    @abstractmethod
    def end(self, vector: int) -> None:
        """The CPU ends an interrupt of its local APIC."""

    @abstractmethod
    async def halt(self) -> Callable[[], Awaitable[int]]:
        """The CPU halts; returns what waits for the interrupt that wakes it, and gives its vector."""

    @abstractmethod
    def doorbell(
        self, event: Event | int, address: int, length: int, match: int | None = None, space: str = "pio"
    ) -> object:
        """Register an ioeventfd."""

    @abstractmethod
    def undoorbell(
        self, event: Event | int, address: int, length: int, match: int | None = None, space: str = "pio"
    ) -> object:
        """Take it off."""

    @abstractmethod
    async def close(self) -> None:
        """The end of the machine."""

    @abstractmethod
    def second_reference(self) -> None:
        """Let go of the machine itself, and hold it by something else."""

    @abstractmethod
    def assign_to_no_machine(self, fd: int) -> object:
        """Ask a file for an irqfd that is no virtual machine."""

    # -- what both do by those ---------------------------------------------------------------------------------------

    def pic_up(self, *, auto_eoi: bool = False, level: int = 0) -> None:
        """The guest sets up the PIC pair: vectors 0x20 and 0x28, nothing masked; ``level`` are level-triggered pins."""
        for port, base, wiring in ((0xA0, 0x28, 2), (0x20, 0x20, 4)):
            self.out(port, 0x11)
            self.out(port + 1, base)
            self.out(port + 1, wiring)
            self.out(port + 1, 3 if auto_eoi else 1)
            self.out(port + 1, 0)
        self.out(0x4D0, level & 0xFF)
        self.out(0x4D1, level >> 8)

    def eoi(self) -> None:
        """The guest ends the interrupt that the master PIC has in service."""
        self.out(0x20, 0x20)

    def ioapic(self, pin: int, low: int) -> None:
        """The guest writes the low half of a redirection entry."""
        self.mmio(0xFEC0_0000, 0x10 + 2 * pin)
        self.mmio(0xFEC0_0010, low)

    async def settled(self, gsi: int, *events: Event) -> bool:
        """After everything is injected: whether the PIC was asked for the gsi's pin."""
        del events
        await self.settle()
        return bool(self.irr() >> gsi & 1)


class Host(ABC):
    """Where a scenario runs. Everything it made is closed at its end."""

    name: str

    @abstractmethod
    def event(self, initial: int = 0, *, semaphore: bool = False, blocking: bool = False) -> Event:
        """Make an eventfd."""

    @abstractmethod
    async def machine(self, *, irqchip: str = "full", cpus: int = 1) -> Machine:
        """Make a virtual machine; irqchip is "full", "split" or "none"."""

    @abstractmethod
    async def saturate(self, event: Event) -> None:
        """Let the kernel itself signal an eventfd once."""

    @abstractmethod
    async def in_child(self, machine: Machine, event: Event) -> list[object]:
        """In a forked child: assign, then deassign, then route, and write to the eventfd."""

    @abstractmethod
    async def close(self) -> None:
        """Close everything."""

    def file(self, path: str = "/dev/null") -> int:
        """An fd that is no eventfd; closed at the end."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.fds.append(fd)
        return fd

    def pipe(self) -> tuple[int, int]:
        """A pipe; closed at the end."""
        ends = os.pipe()
        self.fds.extend(ends)
        return ends

    def __init__(self) -> None:
        self.fds: list[int] = []

    def close_fds(self) -> None:
        """Close what ``file`` and ``pipe`` made."""
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()
