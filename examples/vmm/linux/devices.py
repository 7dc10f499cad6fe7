"""What is in the slots of the machine's PCI bus: virtio devices, the same classes that vhost-user and vfio-user serve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aioirqfd.virtio_pci import VirtioPci
from examples.net_tap import Tap
from examples.net_user import UserNet
from examples.vhost_user_blk import Blk
from examples.vhost_user_rng import Rng
from examples.virtio_net import Net

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aioirqfd.pci import PciDevice
    from examples.vmm.linux.options import Options

_MAC: Final = 0x5254_0012_3456
"""Of the first network card; the next has the next."""


def devices(options: Options) -> Iterator[PciDevice]:
    """Make what the user wants, in the order of the slots; the caller closes each.

    Raises:
        OSError: A disk cannot be opened, or there is no such interface.
        ValueError: A disk's size is not that of one.
    """
    yield VirtioPci(Rng())
    for number, disk in enumerate(options.disks):
        yield VirtioPci(Blk(disk.path, read_only=disk.read_only, serial=f"disk{number}"))
    for number, net in enumerate(options.nets):
        wire = UserNet() if net.tap is None else Tap(net.tap)
        yield VirtioPci(Net(wire, mac=net.mac or (_MAC + number).to_bytes(6, "big")))
