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

import importlib
import sys
from typing import TYPE_CHECKING

from aioirqfd.vhost_user.backend import Backend, BackendStatistics
from aioirqfd.vhost_user.errors import VhostUserError
from aioirqfd.vhost_user.moved import moved
from aioirqfd.vhost_user.program import main, run

if TYPE_CHECKING:
    from aioirqfd.virtio import BlockFile as BlockFile
    from aioirqfd.virtio import Chain as Chain
    from aioirqfd.virtio import ChainError as ChainError
    from aioirqfd.virtio import Device as Device
    from aioirqfd.virtio import VringStatistics as VringStatistics

__all__ = ["Backend", "BackendStatistics", "VhostUserError", "main", "run"]
__getattr__ = moved(__name__, "aioirqfd.virtio", "BlockFile", "Chain", "ChainError", "Device", "VringStatistics")
# Its modules that are virtio's, for whoever imports from one of them.
for _name in ("blockfile", "chain", "device", "eager", "in_order", "memory", "ring", "virtqueue"):
    sys.modules[f"{__name__}.{_name}"] = importlib.import_module(f"aioirqfd.virtio.{_name}")
