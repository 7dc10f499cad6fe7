"""The errors of virtio devices, whatever serves them: one branch of the package's tree.

::

    IrqfdError
    +-- VirtioError
        +-- GuestMemoryError          an address outside the guest's memory, or memory that cannot be mapped
        +-- InflightError             an inflight buffer that cannot be used
        +-- VirtqueueError            the driver broke its ring: the queue is stopped until it is set up anew
        |   +-- VirtqueueStoppedError used after its end: it was stopped, or because it was broken before
        +-- ChainError (ValueError)   the device misused a chain: pushed twice, more bytes than there is room for, or read
                                      whole although it is longer than that allows
"""

from __future__ import annotations

from aioirqfd.errors import IrqfdError


class VirtioError(IrqfdError):
    """The root of every error of :mod:`aioirqfd.virtio`."""


class GuestMemoryError(VirtioError):
    """An address range outside the guest's memory, or a memory region that cannot be mapped."""


class InflightError(VirtioError):
    """An inflight buffer that is too small, malformed, or of another shape than the queues."""


class VirtqueueError(VirtioError):
    """The driver's ring breaks the virtio rules. The queue reads and writes nothing more."""


class VirtqueueStoppedError(VirtqueueError):
    """The queue was used after it had been stopped. A request that finishes late meets this: drop its result."""


class ChainError(VirtioError, ValueError):
    """The device, not the driver, is at fault. Nothing was changed; the queue goes on."""
