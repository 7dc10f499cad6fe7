"""The errors of the vhost-user back-end, one branch of the package's tree.

::

    IrqfdError
    +-- VhostUserError
        +-- VhostUserProtocolError    a message that breaks the protocol: close the connection
        +-- RefusedError              a message that asks for what cannot be: acknowledged as failed
        |   +-- RingError             and without what it asks for, a ring cannot run

What has to do with rings and the guest's memory is in :mod:`aioirqfd.virtio.errors`.
"""

from __future__ import annotations

from aioirqfd.errors import IrqfdError
from aioirqfd.vhost_user.moved import moved


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


__getattr__ = moved(
    __name__,
    "aioirqfd.virtio.errors",
    "ChainError",
    "GuestMemoryError",
    "InflightError",
    "VirtqueueError",
    "VirtqueueStoppedError",
)
