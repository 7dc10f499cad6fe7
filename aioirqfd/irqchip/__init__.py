"""User-space interrupt controllers that are interrupt sinks: the PC's 8259 pair, its IOAPIC, and both as one."""

from __future__ import annotations

from aioirqfd.irqchip.chipset import Chipset
from aioirqfd.irqchip.ioapic import IoApic
from aioirqfd.irqchip.pic import Pic

__all__ = ["Chipset", "IoApic", "Pic"]
