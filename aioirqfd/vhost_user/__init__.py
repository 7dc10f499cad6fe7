"""A virtio device in Python: the back-end of vhost-user.

Subclass :class:`Device`, and give it to a :class:`Backend`, to :func:`run`, or, for a program with the options that such
programs have, to :func:`main`.

From the ground up: ``errors``, ``features``, ``messages`` and ``protocol`` (the codec), ``ring`` (figures), ``memory``
(the guest's memory), ``inflight`` (requests that outlive a crash), ``chain`` and ``virtqueue`` (requests), ``driver``
(the other side, for tests), ``blockfile`` (requests that need no handler). None of these does any I/O but mapping
memory. Above them: ``device``, ``eager`` (coroutines begun on the spot), ``calls``
(interrupts), ``kick``, ``in_order`` (receive queues), ``vring`` (a queue's life), ``connection``, ``backchannel``,
``session``, ``backend`` and ``program`` (the command line). What all of this shares with other protocols is in ``aioirqfd.serving``.
"""

from __future__ import annotations

from aioirqfd.vhost_user.backend import Backend, BackendStatistics
from aioirqfd.vhost_user.blockfile import BlockFile
from aioirqfd.vhost_user.chain import Chain
from aioirqfd.vhost_user.device import Device
from aioirqfd.vhost_user.errors import ChainError, VhostUserError
from aioirqfd.vhost_user.program import main, run
from aioirqfd.vhost_user.statistics import VringStatistics

__all__ = [
    "Backend",
    "BackendStatistics",
    "BlockFile",
    "Chain",
    "ChainError",
    "Device",
    "VhostUserError",
    "VringStatistics",
    "main",
    "run",
]
