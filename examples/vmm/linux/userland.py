"""A small userland for a Linux guest: ``python -m examples.vmm.linux.userland DIRECTORY`` makes its initramfs.

It has busybox, the modules of what can be plugged into the machine, and ends at a shell; the machine is off when the shell ends.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aioirqfd.testing.initramfs import BUSYBOX, ROOT, GuestError, debian_kernel, initramfs

if TYPE_CHECKING:
    from collections.abc import Sequence

MODULES: Final = (
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio-rng",
    "nvme",
    "pvpanic-mmio",
    "af_packet",
    "ext4",
)
INIT: Final = """\
for card in /sys/class/net/eth*; do
    [ ! -e $card ] || udhcpc -q -n -t 3 -i ${card##*/} -s /etc/lease
done
echo 'This is a guest of aioirqfd. It has the devices of /sys/bus/virtio/devices; its interrupts are in /proc/interrupts.'
[ "$(cat /sys/class/tty/console/active)" != ttyS0 ] || echo 'exit switches it off; Ctrl-a x leaves it as it is.'
cd /root
setsid cttyhack sh -l
"""
LEASE: Final = """\
#!/bin/sh
# What udhcpc calls with what it was offered.
case $1 in
deconfig) ip link set $interface up ;;
bound) ip addr add $ip/$mask dev $interface; [ -z "$router" ] || ip route add default via $router ;;
esac
"""


def build(kernel: Path, busybox: Path = BUSYBOX) -> bytes:
    """Its initramfs.

    Raises:
        GuestError: Busybox is not there, or a module.
    """
    return initramfs(INIT, kernel=kernel, modules=MODULES, files={"etc/lease": LEASE}, busybox=busybox)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make both in a directory: ``vmlinuz``, a link to the kernel, and ``initramfs``."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.vmm.linux.userland",
        description="Make vmlinuz, which is Debian's, and a small initramfs, to boot in a virtual machine.",
    )
    parser.add_argument(
        "--root", type=Path, default=ROOT, metavar="DIRECTORY", help="where Debian's packages are unpacked (default: /)"
    )
    parser.add_argument("directory", type=Path, help="where the two go")
    given = parser.parse_args(arguments)
    try:
        kernel = debian_kernel(given.root)
        given.directory.mkdir(parents=True, exist_ok=True)
        (given.directory / "initramfs").write_bytes(build(kernel, given.root / BUSYBOX.relative_to(ROOT)))
        link: Path = given.directory / "vmlinuz"
        link.unlink(missing_ok=True)
        link.symlink_to(kernel.resolve())
    except (GuestError, OSError) as error:
        sys.stderr.write(f"userland: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
