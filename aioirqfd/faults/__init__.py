"""Faults on command: a device, or a sink, that is late, wrong, silent or gone at the moment that a test wants.

Three words: *match*, which requests; *fault*, what is done to them; *verify*, that it was::

    faults = Faults()
    device = faults.wrap(Blk("disk.img"))                # any virtio device, any PciDevice, any interrupt sink
    third = faults.add(Match("write", nth=3), Fail())
    ...
    await third.hit()

From the ground up: ``match``, ``request`` (what a device is asked for, and the plan for it), ``fault`` (declarations), ``waiting``
(groups, clock), ``active`` (a fault that was set), ``line`` (interrupts), ``order`` and ``log`` (replay), ``targets`` (the face of what
was wrapped), ``faults`` (the engine), ``virtio``, ``pci`` and ``sink`` (what was wrapped), ``settings`` and ``command`` (the command
language), ``control`` (its socket).
"""

from __future__ import annotations

from aioirqfd.faults.active import ActiveFault
from aioirqfd.faults.fault import (
    FAULTS,
    AllOnes,
    Corrupt,
    Delay,
    Drop,
    Duplicate,
    EarlyInterrupt,
    Fail,
    Fault,
    Hang,
    Kill,
    Lose,
    Merge,
    Misroute,
    Reorder,
    Reset,
    Resize,
    Rule,
    Spurious,
    Withhold,
)
from aioirqfd.faults.faults import Faults
from aioirqfd.faults.match import FaultError, Match

__all__ = [
    "FAULTS",
    "ActiveFault",
    "AllOnes",
    "Corrupt",
    "Delay",
    "Drop",
    "Duplicate",
    "EarlyInterrupt",
    "Fail",
    "Fault",
    "FaultError",
    "Faults",
    "Hang",
    "Kill",
    "Lose",
    "Match",
    "Merge",
    "Misroute",
    "Reorder",
    "Reset",
    "Resize",
    "Rule",
    "Spurious",
    "Withhold",
]
