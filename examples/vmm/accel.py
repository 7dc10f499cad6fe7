"""Which CPU, and which way the interrupts take to it."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from aioirqfd.kvm import usable
from examples.vmm.cpu import CpuError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioirqfd import Interrupt
    from aioirqfd.irqchip import Pic
    from aioirqfd.irqfd.routing import RoutingTable
    from aioirqfd.irqfd.sink import InterruptSink
    from examples.vmm.cpu import Cpu
    from examples.vmm.portio import PortIo


@final
class SlowPic:
    """The 8259 pair without its fast tiers, so that each interrupt takes the way through the work queue."""

    __slots__ = ("_pic",)

    def __init__(self, pic: Pic) -> None:
        self._pic = pic

    async def inject(self, interrupt: Interrupt) -> None:
        """Take an interrupt."""
        await self._pic.inject(interrupt)

    def bind(self, ack: Callable[[int], None]) -> None:
        """Keep the callable for the end of interrupt."""
        self._pic.bind(ack)

    def set_routing(self, table: RoutingTable) -> None:
        """Learn the routing."""
        self._pic.set_routing(table)


@final
@dataclass(frozen=True, slots=True)
class Chosen:
    """A CPU, and how interrupts get to it.

    Attributes:
        cpu: The CPU.
        sink: Where to inject.
        way: ``offload``, ``fast`` or ``queue``.
        why_not_kvm: Why ``auto`` did not take KVM, and what to do about it; None if it did, or was not asked.
    """

    cpu: Cpu
    sink: InterruptSink
    way: str
    why_not_kvm: str | None = None


def choose(accel: str, inject: str, io: PortIo) -> Chosen:
    """Make the CPU the user asked for.

    Args:
        accel: ``auto``, ``kvm`` or ``unicorn``.
        inject: ``auto``, ``offload``, ``fast`` or ``queue``.
        io: The port space.

    Returns:
        What was chosen.

    Raises:
        CpuError: It cannot be had, with the reason.
    """
    if accel == "unicorn":
        return _unicorn(inject, io, None)
    try:
        return _kvm(inject, io)
    except CpuError as error:
        if accel == "kvm":
            raise
        return _unicorn(inject, io, str(error))


def _kvm(inject: str, io: PortIo) -> Chosen:
    reason = usable()
    if reason is not None:
        raise CpuError(reason)
    from examples.vmm.cpu_kvm import KvmCpu  # noqa: PLC0415  only what is used is loaded

    way = "offload" if inject == "auto" else inject
    try:
        cpu = KvmCpu(io, offload=way == "offload", fast=way == "fast")
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "no errno")
        raise CpuError(f"KVM made a virtual machine, but not this one: {error.strerror} ({name})") from error
    return Chosen(cpu, cpu.sink, way)


def _unicorn(inject: str, io: PortIo, why_not_kvm: str | None) -> Chosen:
    if inject == "offload":
        reason = f"; KVM cannot be used: {why_not_kvm}" if why_not_kvm else ""
        raise CpuError(f"--inject offload is the kernel's own irqfd, which needs --accel kvm{reason}")
    try:
        from examples.vmm.cpu_unicorn import UnicornCpu  # noqa: PLC0415  an optional dependency
    except ImportError as error:
        reason = f"; KVM cannot be used either: {why_not_kvm}" if why_not_kvm else ""
        raise CpuError(f"the Unicorn emulator cannot be loaded ({error}); try: pip install unicorn{reason}") from error
    cpu = UnicornCpu(io)
    if inject == "queue":
        return Chosen(cpu, SlowPic(cpu.sink), inject, why_not_kvm)
    return Chosen(cpu, cpu.sink, "fast", why_not_kvm)
