"""User-space interrupt controllers that are interrupt sinks: the PC's 8259 pair and its IOAPIC."""

from __future__ import annotations

from aioirqfd.irqchip.ioapic import IoApic
from aioirqfd.irqchip.pic import Pic

__all__ = ["IoApic", "Pic"]
