"""The errors of the vhost-user back-end, one branch of the package's tree.

::

    IrqfdError
    +-- VhostUserError
        +-- VhostUserProtocolError    a message that breaks the protocol: close the connection
        +-- RefusedError              a message that asks for what cannot be: acknowledged as failed
        |   +-- RingError             and without what it asks for, a ring cannot run
        +-- GuestMemoryError          an address outside the memory table, or a table that cannot be mapped
        +-- InflightError             an inflight buffer that cannot be used
        +-- VirtqueueError            the driver broke its ring: the queue is stopped until it is set up anew
        |   +-- VirtqueueStoppedError used after its end: by the front-end's wish, or because it was broken before
        +-- ChainError (ValueError)   the device misused a chain: pushed twice, more bytes than there is room for, or read
                                      whole although it is longer than that allows
"""

from __future__ import annotations

from aioirqfd.errors import IrqfdError


class VhostUserError(IrqfdError):
    """The root of every error of :mod:`aioirqfd.vhost_user`."""


class VhostUserProtocolError(VhostUserError):
    """A message that breaks the protocol; the stream cannot be trusted from here on."""


class RefusedError(VhostUserError):
    """A well-formed message that asks for what cannot be. It is acknowledged as failed, and nothing was changed."""


class RingError(RefusedError):
    """A ring cannot run as the front-end has set it up. The front-end must hear of it, or its guest waits for ever.

    Args:
        reason: What is wrong.
        told: Whether the ring's error eventfd has been signalled.
    """

    def __init__(self, reason: str, *, told: bool) -> None:
        super().__init__(reason)
        self.told = told


class GuestMemoryError(VhostUserError):
    """An address range outside the guest's memory, or a memory region that cannot be mapped."""


class InflightError(VhostUserError):
    """An inflight buffer that is too small, malformed, or of another shape than the queues."""


class VirtqueueError(VhostUserError):
    """The driver's ring breaks the virtio rules. The queue reads and writes nothing more."""


class VirtqueueStoppedError(VirtqueueError):
    """The queue was used after it had been stopped. A request that finishes late meets this: drop its result."""


class ChainError(VhostUserError, ValueError):
    """The device, not the driver, is at fault. Nothing was changed; the queue goes on."""
