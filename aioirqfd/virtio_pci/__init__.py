"""A virtio device in Python as a PCI function, for whatever serves PCI devices: :mod:`aioirqfd.vfio_user` does, to QEMU.

Subclass :class:`aioirqfd.virtio.Device`, as for :mod:`aioirqfd.vhost_user`, and give it to a :class:`VirtioPci`. The same class
does for both, and here also where QEMU knows no vhost-user device of its type.

From the ground up: ``capability`` (where a driver finds what), ``queue``, ``memory``, ``function``.
"""

from __future__ import annotations

from aioirqfd.virtio_pci.function import VirtioPci

__all__ = ["VirtioPci"]
