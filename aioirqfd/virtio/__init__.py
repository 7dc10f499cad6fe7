"""A virtio device in Python, whatever brings it to a guest: :mod:`aioirqfd.vhost_user`, or :mod:`aioirqfd.virtio_pci`.

Subclass :class:`Device`.

From the ground up: ``errors``, ``features``, ``ring`` (figures), ``memory`` (the guest's memory), ``chain``, ``blockfile`` (requests that
need no handler), ``fast`` (the C of it), ``statistics`` and ``virtqueue`` (requests). None of these does any I/O but mapping memory.
Above them: ``device``, ``eager`` (coroutines begun on the spot) and ``in_order`` (receive queues).
"""

from __future__ import annotations

from aioirqfd.virtio.blockfile import BlockFile
from aioirqfd.virtio.chain import Chain
from aioirqfd.virtio.device import NEEDS_RESET, Device
from aioirqfd.virtio.errors import ChainError, VirtioError
from aioirqfd.virtio.statistics import VringStatistics

__all__ = ["NEEDS_RESET", "BlockFile", "Chain", "ChainError", "Device", "VirtioError", "VringStatistics"]
