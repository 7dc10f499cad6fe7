"""Which CPU, and which way the interrupts take to it."""

from __future__ import annotations

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


def choose(accel: str, inject: str, io: PortIo) -> tuple[Cpu, InterruptSink, str]:
    """Make the CPU the user asked for.

    Args:
        accel: ``auto``, ``kvm`` or ``unicorn``.
        inject: ``auto``, ``offload``, ``fast`` or ``queue``.
        io: The port space.

    Returns:
        The CPU, the sink to inject into, and the way that was chosen.

    Raises:
        CpuError: It cannot be had, with the reason.
    """
    if accel == "auto":
        accel = "unicorn" if usable() else "kvm"
    if accel == "kvm":
        way = "offload" if inject == "auto" else inject
        return _kvm(way, io)
    way = "fast" if inject == "auto" else inject
    if way == "offload":
        raise CpuError("--inject offload is the kernel's own irqfd, which needs --accel kvm")
    return _unicorn(way, io)


def _kvm(way: str, io: PortIo) -> tuple[Cpu, InterruptSink, str]:
    from examples.vmm.cpu_kvm import KvmCpu  # noqa: PLC0415  only what is used is loaded

    cpu = KvmCpu(io, offload=way == "offload", fast=way == "fast")
    return cpu, cpu.sink, way


def _unicorn(way: str, io: PortIo) -> tuple[Cpu, InterruptSink, str]:
    try:
        from examples.vmm.cpu_unicorn import UnicornCpu  # noqa: PLC0415  an optional dependency
    except ImportError as error:
        raise CpuError(f"the Unicorn emulator cannot be loaded ({error}); try: pip install unicorn") from error
    cpu = UnicornCpu(io)
    return cpu, SlowPic(cpu.sink) if way == "queue" else cpu.sink, way
