"""One guest of the example VMM, for ``linux_vmm.py``: its console is the standard output, and the last line says what it took."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import aioirqfd.kvm.vcpu
from aioirqfd.virtio_pci import VirtioPci
from examples.vhost_user_blk import Blk
from examples.vmm.linux import address_map
from examples.vmm.linux.bzimage import BzImage
from examples.vmm.linux.machine import Machine
from examples.vmm.linux.power import Power
from examples.vmm.linux.uart import Uart

if TYPE_CHECKING:
    from collections.abc import Callable

USERLAND = b"userland="


class Shares:
    """What the one vCPU's thread has spent in ``KVM_RUN`` and between two of them: seconds, and how often it was left."""

    def __init__(self) -> None:
        self.runs = 0
        self.inside = self.outside = 0.0
        self._left = 0.0
        self._plain: Callable[..., int] = aioirqfd.kvm.vcpu._run
        aioirqfd.kvm.vcpu._run = self._run

    def _run(self, *args: int) -> int:
        entered = time.perf_counter()
        if self._left:
            self.outside += entered - self._left
        result = self._plain(*args)
        self._left = time.perf_counter()
        self.inside += self._left - entered
        self.runs += 1
        return result

    def now(self) -> dict[str, float]:
        """So far."""
        return {"runs": self.runs, "inside": self.inside, "outside": self.outside}


class Output:
    """The guest's console."""

    def __init__(self, shares: Shares) -> None:
        self.shares = shares
        self.userland: dict[str, float] = {}
        self._text = b""

    async def write(self, data: bytes) -> None:
        """To the standard output, and see whether userland has been reached."""
        os.write(1, data)
        if not self.userland:
            self._text += data
            if USERLAND in self._text:
                self.userland = self.shares.now()


async def main(kernel: str, initramfs: str, disk: str, memory: str, shared: str, command_line: str) -> None:
    """Boot, and run to the guest's end."""
    shares = Shares()
    output = Output(shares)
    async with Machine(memory=int(memory), shared=bool(int(shared))) as machine:
        with contextlib.closing(Uart(output)) as uart, contextlib.closing(VirtioPci(Blk(disk))) as blk:
            machine.ports.add(Power(machine.end))
            machine.ports.add(uart)
            machine.irqs.assign(uart.trigger, gsi=address_map.COM1_GSI)
            slot = await machine.pci.plug(blk)
            image = BzImage(Path(kernel).read_bytes(), kernel)
            machine.load(image, initramfs=Path(initramfs).read_bytes(), command_line=command_line)
            async with asyncio.TaskGroup() as group:
                writing = group.create_task(uart.run())
                os.write(1, b"ENTERED\n")
                entered = time.perf_counter()
                ending = await machine.run()
                await uart.wait_written()
                writing.cancel()
            queue = blk.statistics()[0]
            await machine.pci.unplug(slot.number)
    said = {"entered": entered, "ending": ending.name, "userland": output.userland, "end": shares.now()}
    said |= {"requests": queue.requests, "kicks": queue.kicks, "wakeups": queue.wakeups, "calls": queue.calls}
    os.write(1, f"\nOURS {json.dumps(said)}\n".encode())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
