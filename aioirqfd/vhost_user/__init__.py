"""The back-end of vhost-user: a virtio device in Python for a guest of somebody else's VMM.

Subclass :class:`aioirqfd.virtio.Device`, and give it to a :class:`Backend`, to :func:`run`, or, for a program with the options that such
programs have, to :func:`main`.

From the ground up: ``errors``, ``features``, ``messages`` and ``protocol`` (the codec), ``inflight`` (requests that outlive a
crash), ``driver`` (the other side, for tests). None of these does any I/O but mapping memory. Above them: ``calls``
(interrupts), ``kick``, ``vring`` (a queue's life), ``connection``, ``backchannel``, ``session``, ``backend`` and ``program`` (the
command line). What does not depend on the protocol is in ``aioirqfd.virtio``; what all of this shares with other protocols is in
``aioirqfd.serving``.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from aioirqfd import virtio
from aioirqfd.vhost_user.backend import Backend, BackendStatistics
from aioirqfd.vhost_user.errors import VhostUserError
from aioirqfd.vhost_user.program import main, run

if TYPE_CHECKING:
    from aioirqfd.virtio import BlockFile as BlockFile
    from aioirqfd.virtio import Chain as Chain
    from aioirqfd.virtio import ChainError as ChainError
    from aioirqfd.virtio import Device as Device
    from aioirqfd.virtio import VringStatistics as VringStatistics

__all__ = ["Backend", "BackendStatistics", "VhostUserError", "main", "run"]
_MOVED = frozenset({"BlockFile", "Chain", "ChainError", "Device", "VringStatistics"})


def __getattr__(name: str) -> object:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{__name__}.{name} is aioirqfd.virtio.{name} now", DeprecationWarning, stacklevel=2)
    return getattr(virtio, name)
