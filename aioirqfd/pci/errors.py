"""The errors of :mod:`aioirqfd.pci`, one branch of the package's tree.

::

    IrqfdError
    +-- PciError
        +-- DmaError          an address that is not mapped, or not for that
        |   +-- DmaMapError   a mapping that cannot be made or taken away; says an errno
        +-- RegionError       an access beyond the end of a BAR or of the configuration space
"""

from __future__ import annotations

from aioirqfd.errors import IrqfdError


class PciError(IrqfdError):
    """The root of every error of :mod:`aioirqfd.pci`."""


class DmaError(PciError):
    """The device asked for memory that it may not have: not mapped, not readable, not writable, or going away."""


class DmaMapError(DmaError):
    """A mapping that cannot be made, or that is not there to be taken away.

    Args:
        errno: What the protocol answers: EEXIST, ENOENT, ENOSPC, EINVAL.
        detail: What is wrong, in words.
    """

    def __init__(self, errno: int, detail: str) -> None:
        super().__init__(detail)
        self.errno = errno


class RegionError(PciError):
    """An access to a region that the device does not have, or beyond its end. Nothing was read or written."""
