"""A PCI device in Python for a guest of somebody else's VMM: the server of vfio-user.

Subclass :class:`aioirqfd.pci.PciDevice`, and give it to a :class:`Server`, to :func:`run` or, for a program with options, to
:func:`main`. QEMU from 10.1 on is a client: ``-device '{"driver":"vfio-user-pci","socket":{"type":"unix","path":...}}'``.

From the ground up: ``errors``, ``messages``, ``protocol`` (the codec), ``capabilities`` (what is agreed on). These do no I/O. Above them:
``connection``, ``remote`` (memory of the client), ``irqs`` (who is interrupted), ``regions`` (what a client is told), ``session``,
``server``, ``program`` (the command line), ``client`` (the other side, for tests).
"""

from __future__ import annotations

from aioirqfd.vfio_user.errors import VfioUserError
from aioirqfd.vfio_user.program import main, run
from aioirqfd.vfio_user.server import Server, ServerStatistics

__all__ = ["Server", "ServerStatistics", "VfioUserError", "main", "run"]
