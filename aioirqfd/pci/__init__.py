"""A PCI function in Python, whatever serves it: registers, configuration space, interrupts, DMA.

Subclass :class:`PciDevice`, and give it to :func:`aioirqfd.vfio_user.run`, which serves it to QEMU, to a :class:`PciBus` of your own
VMM, or, in a test, to a :class:`PciFunction`.

From the ground up: ``errors``, ``bar``, ``capability``, ``register`` (declarations), ``config`` (the configuration space), ``dma`` (the guest's
memory), ``interrupts`` (a trigger for each vector), ``device`` (the base class), ``shared_memory`` (behind a BAR),
``function`` (a device that is being served), ``standstill``, ``snapshot`` and ``state`` (a function that is saved), ``slot`` and ``bus`` (where it is plugged in, in a VMM).
"""

from __future__ import annotations

from aioirqfd.pci.bar import Bar
from aioirqfd.pci.bus import HostBridge, PciBus
from aioirqfd.pci.capability import (
    Capability,
    Msi,
    MsiX,
    PciExpress,
    PowerManagement,
    SerialNumber,
    VendorSpecific,
)
from aioirqfd.pci.config import ConfigSpace
from aioirqfd.pci.device import PciDevice
from aioirqfd.pci.dma import Dma, DmaWatcher
from aioirqfd.pci.errors import DmaError, DmaMapError, PciError, RegionError
from aioirqfd.pci.function import PciFunction
from aioirqfd.pci.host import FunctionHost
from aioirqfd.pci.interrupts import Interrupts
from aioirqfd.pci.register import Register
from aioirqfd.pci.slot import PciSlot
from aioirqfd.pci.state import DoorbellCount, PciFunctionState

__all__ = [
    "Bar",
    "Capability",
    "ConfigSpace",
    "Dma",
    "DmaError",
    "DmaMapError",
    "DmaWatcher",
    "DoorbellCount",
    "FunctionHost",
    "HostBridge",
    "Interrupts",
    "Msi",
    "MsiX",
    "PciBus",
    "PciDevice",
    "PciError",
    "PciExpress",
    "PciFunction",
    "PciFunctionState",
    "PciSlot",
    "PowerManagement",
    "RegionError",
    "Register",
    "SerialNumber",
    "VendorSpecific",
]
