"""A disk in a Linux guest, and the books of its interrupts; needs QEMU 10.1 or later."""

from __future__ import annotations

import asyncio
import sys

from aioirqfd.testing import guest
from aioirqfd.tracing import FlightRecorder
from examples.nvme import Nvme

UNBIND = "cd /sys/bus/pci/drivers/nvme && for device in 0000:*; do echo $device >unbind; done"


# docs: begin example
async def main(image: str, qemu: str = "qemu-system-x86_64") -> None:
    """A hundred reads; then an interrupt for a driver that has gone."""
    disk = Nvme(image)
    with FlightRecorder() as recorder:
        async with guest(disk, modules=["nvme"], tracer=recorder, qemu=qemu) as vm:
            async with vm.books(recorder) as books:
                await vm.run("dd if=/dev/nvme0n1 of=/dev/null bs=4k count=100 iflag=direct", check=True)
            print(books.ledger)
            async with vm.books(recorder) as books:
                await vm.run(UNBIND, check=True)
                disk.interrupt(1)
            print(books.ledger)
    disk.close()


# docs: end example


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
