"""What runs inside the guest that has KVM, to load the example VMM: disks whose vectors move from CPU to CPU, and boot after boot.

``python -m tests.qemu.linux_soak_agent KERNEL INITRAMFS INTERRUPTS BOOTS BUSY_BOOTS`` does the same on any machine with KVM, as root,
while no other virtual machine runs. Each result is a line of JSON on the console, after the word RESULT: a name, and what came of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from aioirqfd.virtio_pci import VirtioPci
from examples.nvme import Nvme
from examples.vhost_user_blk import Blk
from examples.vhost_user_rng import Rng
from examples.vmm.linux import address_map
from examples.vmm.linux.bzimage import BzImage
from examples.vmm.linux.machine import Machine
from examples.vmm.linux.power import Power
from examples.vmm.linux.uart import Uart
from tests.qemu.kvm_counts import KvmCounts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aioirqfd.pci import PciDevice, PciSlot

MEMORY = 192 << 20
COMMAND_LINE = "console=ttyS0 panic=-1 nokaslr no_timer_check quiet"
BUSY = 6
"""Loops that do nothing but run, beside the VMM."""
QUIET = 500
"""Seconds without a word from the guest, after which all stacks are printed and everything ends: it hangs."""
CHUNK = 1000
"""Reads by each of two processes before the interrupts are counted."""
# A driver that waits in vain for an interrupt of NVMe looks after 30 seconds, and says so; one of virtio waits for ever.
SCRIPT = f"""
word() {{ sed -n "s/.*$1=\\([0-9]*\\).*/\\1/p" /proc/cmdline; }}
irqs() {{ grep -E "$1" /proc/interrupts | awk '{{ n += $2 + $3 }} END {{ print n + 0 }}'; }}
flip() {{
    while [ ! -e /tmp/enough ]; do
        for mask in 1 2; do
            for irq in $*; do echo $mask >/proc/irq/$irq/smp_affinity || echo refused=$irq; done
            echo >>/tmp/flips; usleep 100000
        done
    done
}}
echo userland=1
dd if=/dev/vda bs=64k 2>/dev/null | sha256sum | sed 's/^/sum=/'
interrupts=$(word soak)
if [ -n "$interrupts" ]; then
    echo cpus=$(nproc)
    movable=$(grep -E 'nvme0q0|virtio1-input' /proc/interrupts | cut -d : -f 1 | tr -d ' ')
    echo movable=$(echo $movable | wc -w)
    flip $movable & flipping=$!
    (while [ ! -e /tmp/enough ] && dd if=/dev/hwrng of=/dev/null bs=64 count=500 2>/dev/null; do :; done) & drawing=$!
    turns=0; done=0
    while [ $(irqs 'nvme0q0|virtio0-req|virtio1-input') -lt $interrupts ]; do
        taskset 1 /bin/vhost_load /dev/nvme0n1 rand 4096 1 {CHUNK} >/tmp/said1 & one=$!
        taskset 2 /bin/vhost_load /dev/nvme0n1 rand 4096 16 {CHUNK} >/tmp/said2 & two=$!
        taskset 1 /bin/vhost_load /dev/vda rand 4096 4 {CHUNK} >/tmp/said3 & three=$!
        taskset 2 /bin/vhost_load /dev/vda rand 4096 1 {CHUNK} >/tmp/said4 & four=$!
        wait $one $two $three $four
        turns=$((turns + 1)); done=$((done + $(cat /tmp/said? | awk '{{ n += $1 }} END {{ print n }}')))
        echo turn $turns $(irqs nvme0q0) $(irqs virtio0-req) $(irqs virtio1-input)
    done
    touch /tmp/enough; wait $flipping $drawing
    echo turns=$turns; echo done=$done; echo flips=$(wc -l </tmp/flips)
    echo nvme=$(grep nvme0q0 /proc/interrupts | awk '{{ print $2, $3 }}')
    echo blk=$(irqs virtio0-req)
    echo rng=$(grep virtio1-input /proc/interrupts | awk '{{ print $2, $3 }}')
    echo inflight=$(cat /sys/block/nvme0n1/inflight /sys/block/vda/inflight)
    echo complaints=$(dmesg | grep -c -i -E 'nvme.*(timeout|polled|aborting)|I/O error|nobody cared|hung|stall')
    echo rest=1; read go
    dd if=/dev/nvme0n1 bs=64k 2>/dev/null | sha256sum | sed 's/^/again=/'
fi
"""
MODULES = ("virtio_pci", "virtio_blk", "virtio-rng", "nvme")
DISK = random.Random(1).randbytes(4 << 20)


def say(name: str, value: object) -> None:
    print(f"RESULT {json.dumps([name, value])}", flush=True)


class OneVector(Nvme):
    """Its vector is the administrator's to move; those of queues of their own are the kernel's. Counts its interrupts."""

    vectors = 1
    calls = 0

    def interrupt(self, vector: int = 0) -> None:
        self.calls += 1
        super().interrupt(vector)


class Console:
    """Takes what the guest prints, and goes on when it has come to rest and been looked at."""

    def __init__(self, rest: Callable[[], None]) -> None:
        self.values: dict[str, str] = {}
        self._text = b""
        self._rest = rest
        self._typed: asyncio.Queue[bytes] = asyncio.Queue()

    async def write(self, data: bytes) -> None:
        faulthandler.dump_traceback_later(QUIET, exit=True)
        self._text += data
        *lines, self._text = self._text.split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace").strip()
            if text:
                print(f"  guest: {text.replace('Kernel panic', 'Kernel  panic')}", flush=True)
            name, equals, value = text.partition("=")
            if equals and name.isalnum():
                self.values.setdefault(name, value)
            if text == "rest=1":
                self._rest()
                self._typed.put_nowait(b"go\n")

    async def read(self, size: int) -> bytes:
        return await self._typed.get()


async def run(
    kernel: Path,
    initramfs: Path,
    words: str,
    devices: Sequence[PciDevice],
    rest: Callable[[list[PciSlot[PciDevice]]], None],
) -> tuple[str, dict[str, str]]:
    """Boot a machine of two CPUs, and run it to its end: which one, and what the guest said."""
    slots: list[PciSlot[PciDevice]] = []
    console = Console(lambda: rest(slots))
    faulthandler.dump_traceback_later(QUIET, exit=True)
    async with Machine(memory=MEMORY, cpus=2) as machine:
        with contextlib.closing(Uart(console, console)) as uart:
            machine.ports.add(Power(machine.end))
            machine.ports.add(uart)
            irqfd = machine.irqs.assign(uart.trigger, gsi=address_map.COM1_GSI)
            slots += [await machine.pci.plug(device) for device in devices]
            image = BzImage(kernel.read_bytes(), str(kernel))
            machine.load(image, initramfs=initramfs.read_bytes(), command_line=f"{COMMAND_LINE} {words}")
            writing = asyncio.create_task(uart.run())
            try:
                ending = await machine.run()
                await uart.wait_written()
            finally:
                writing.cancel()
                await asyncio.wait((writing,))
            await machine.irqs.deassign(irqfd)
    faulthandler.cancel_dump_traceback_later()
    return ending.name, console.values


async def soak(kernel: Path, initramfs: Path, disk: Path, interrupts: int) -> None:
    """Interrupts of two disks and a random number generator, with the vectors of two of them on the move."""
    nvme, blk, rng = OneVector(str(disk)), VirtioPci(Blk(str(disk))), VirtioPci(Rng())

    def rest(slots: list[PciSlot[PciDevice]]) -> None:
        say("soak.pending", [slot.name for slot in slots if any(slot.function.interrupts.pending_bits())])
        for name, device in (("blk", blk), ("rng", rng)):
            queue = device.statistics()[0]
            say(f"soak.{name}", {"requests": queue.requests, "answers": queue.answers, "calls": queue.calls})
        say("soak.nvme", {"commands": nvme.commands, "calls": nvme.calls})
        say("soak.messages", counts.messages())
        say("soak.repeated", counts.repeated())

    began = time.perf_counter()
    try:
        with KvmCounts() as counts:
            ending, values = await run(kernel, initramfs, f"soak={interrupts}", [blk, rng, nvme], rest)
    finally:
        for device in (nvme, blk, rng):
            device.close()
    say("soak.ending", ending)
    say("soak.seconds", round(time.perf_counter() - began))
    say("soak.values", values)


@contextlib.contextmanager
def busy(loops: int) -> Iterator[None]:
    """So many processes beside this one that do nothing but run."""
    processes = [subprocess.Popen(["/bin/sh", "-c", "while :; do :; done"]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def boots(kernel: Path, initramfs: Path, disk: Path, name: str, count: int, loops: int) -> None:
    """Boot after boot, each to power-off with the disk's checksum."""
    with busy(loops):
        for number in range(count):
            began = time.perf_counter()
            with contextlib.closing(VirtioPci(Blk(str(disk)))) as blk:
                ending, values = await run(kernel, initramfs, "", [blk], lambda _: None)
            took = round(time.perf_counter() - began, 1)
            say(f"{name}.{number}", {"ending": ending, "sum": values.get("sum", "").split()[:1], "seconds": took})


async def main(kernel: Path, initramfs: Path, interrupts: int, plain: int, beside: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder, "disk")
        disk.write_bytes(DISK)
        await boots(kernel, initramfs, disk, "plain", plain, 0)
        await boots(kernel, initramfs, disk, "busy", beside, BUSY)
        if interrupts:
            await soak(kernel, initramfs, disk, interrupts)
    print("AGENT DONE", flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:6])))
