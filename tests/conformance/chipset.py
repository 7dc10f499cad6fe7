"""What a small PC has between the manager and its CPU: PIC pair, IOAPIC and local APICs, as one interrupt sink.

The PIC and the IOAPIC are aioirqfd's. The local APICs are a model of a few lines, for a message needs somewhere to go: what a
CPU accepts is the sink's business, not the package's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aioirqfd import Action, Msi, irqchip
from aioirqfd.irqchip import IoApic, Pic

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioirqfd import Interrupt, IrqchipPin

_BROADCAST = 0xFF
_LOGICAL = 4
_FIXED, _LOWEST, _INIT, _STARTUP = 0, 1, 5, 6


class LocalApics:
    """Takes messages for some CPUs."""

    def __init__(self, cpus: int) -> None:
        self.requested: list[set[int]] = [set() for _ in range(cpus)]
        self.enabled = [False] * cpus
        self.modes: list[list[int]] = [[] for _ in range(cpus)]

    def deliver(self, route: Msi) -> int:
        """How many CPUs took it; -1 if there was no candidate (row S03)."""
        vector, mode = route.data & 0xFF, route.data >> 8 & 7
        destination = route.address >> 12 & 0xFF
        cpus = range(len(self.enabled))
        if route.address & _LOGICAL:
            chosen = [cpu for cpu in cpus if destination >> cpu & 1]
        else:
            chosen = [cpu for cpu in cpus if destination in {cpu, _BROADCAST}]
        if mode == _LOWEST:
            chosen = [cpu for cpu in chosen if self.enabled[cpu]][:1]
            if not chosen:
                return -1
        if not cpus:
            return -1
        taken = 0
        for cpu in chosen:
            if mode in {_FIXED, _LOWEST}:
                if self.enabled[cpu]:
                    self.requested[cpu].add(vector)
                    taken += 1
            else:
                self.modes[cpu].append(mode)
                taken += 1
        return taken

    def started(self, cpu: int) -> bool:
        """A reset forgets the start before it."""
        modes = self.modes[cpu]
        return _INIT in modes and _STARTUP in modes[modes.index(_INIT) :]

    def try_inject(self, interrupt: Interrupt) -> bool:
        route = interrupt.route
        assert isinstance(route, Msi)
        if route.address >> 12 & 0xFF == _BROADCAST or route.address & _LOGICAL:
            return False  # these are searched for, which may take its time (row M02)
        self._send(interrupt.action, route)
        return True

    async def inject(self, interrupt: Interrupt) -> None:
        route = interrupt.route
        assert isinstance(route, Msi)
        self._send(interrupt.action, route)

    def _send(self, action: Action, route: Msi) -> None:
        if action is Action.PULSE:  # a message has no level (row M07)
            self.deliver(route)


class Chipset:
    """The package's, with local APICs to take the messages. While it is ``slow`` it takes nothing at once."""

    def __init__(self, cpus: int, on_output: Callable[[bool], None] | None = None) -> None:
        self.apics = LocalApics(cpus)
        self.pic = Pic(on_output)
        self.ioapic = IoApic(self.apics, resample=self._resample)
        self.resample: Callable[[int], bool] | None = None
        self.slow = False
        self._sink = irqchip.Chipset(pic=self.pic, ioapic=self.ioapic, msi=self.apics)
        self.bind = self._sink.bind
        self.set_routing = self._sink.set_routing
        self.inject = self._sink.inject

    def _resample(self, gsi: int) -> bool:
        return self.resample is not None and self.resample(gsi)

    def try_inject(self, interrupt: Interrupt) -> bool:
        return not self.slow and self._sink.try_inject(interrupt)

    def set_irq(self, route: IrqchipPin | Msi, level: int) -> int:
        """Drive a pin as a device does; a message is sent by its rise alone (row M04)."""
        if isinstance(route, Msi):
            return self.apics.deliver(route) if level else -1
        chip = self.pic if route.chip == "pic" else self.ioapic
        return chip.set_irq(route.pin, level)
