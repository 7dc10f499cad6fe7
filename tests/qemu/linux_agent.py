"""What runs inside the guest that has KVM: the example VMM with Debian's kernel as a guest of its own.

Each result is a line of JSON on the console, after the word RESULT: a name, and what came of it. A check is a function of
:data:`CHECKS`, which boots a machine; what the machine's own guest says of itself is a line NAME=VALUE of its script's output, and
a result NAME of its own. ``python -m tests.qemu.linux_agent KERNEL INITRAMFS [CHECK...]`` does the same on any machine
with KVM, as root, while no other virtual machine runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import hashlib
import json
import platform
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import aioirqfd
import aioirqfd.kvm.vcpu
from aioirqfd import inspect
from aioirqfd.faults import Fail, Faults, Match
from aioirqfd.kvm import usable
from aioirqfd.testing import guest
from aioirqfd.tracing import FlightRecorder
from aioirqfd.virtio_pci import VirtioPci
from examples.edu_pci import Edu
from examples.net_user import UserNet
from examples.nvme import Nvme
from examples.vhost_user_blk import Blk
from examples.vhost_user_rng import Rng
from examples.virtio_console import Console as VirtioConsole
from examples.virtio_net import Net
from examples.vmm.linux import address_map, snapshot
from examples.vmm.linux.bzimage import BzImage
from examples.vmm.linux.guest import machine as vmm
from examples.vmm.linux.machine import Ending, Machine
from examples.vmm.linux.power import Power
from examples.vmm.linux.uart import Uart
from tests.qemu.kvm_counts import KvmCounts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from aioirqfd import IrqFd
    from aioirqfd.virtio import Chain
    from examples.vmm.linux.ports import PortTable

MEMORY = 192 << 20
COMMAND_LINE = "console=ttyS0 panic=-1 nokaslr no_timer_check quiet"
SECONDS = 200
"""That a machine may take before all stacks are printed and everything ends."""
# What the machine's guest runs, according to the words of its command line.
SCRIPT = """
irqs() { grep "$1" /proc/interrupts | awk '{ n = 0; for (i = 2; $i ~ /^[0-9]+$/; i++) n += $i; print n }'; }
devices() {
    echo found=$(cat /sys/bus/pci/devices/*/device | tr '\\n' ' ')
    echo 0 >/sys/block/vda/queue/read_ahead_kb
    dd if=/dev/vda bs=4096 count=1000 2>/dev/null | sha256sum | sed 's/^/blk=/'
    mkdir -p /mnt; /sbin/mkfs.ext4 -q /dev/vdb && mount -t ext4 /dev/vdb /mnt && dd if=/dev/vda of=/mnt/copy bs=64k count=16 2>/dev/null
    umount /mnt && /sbin/e2fsck -fn /dev/vdb >/dev/null 2>&1; echo fsck=$?
    mount -t ext4 /dev/vdb /mnt && sha256sum </mnt/copy | sed 's/^/copy=/'; umount /mnt
    chmod +x /bin/leased; ip link set eth0 up; udhcpc -qn -i eth0 -s /bin/leased >/dev/null 2>&1; cat /tmp/lease
    echo pings=$(for n in $(seq 20); do ping -c 1 -W 30 10.0.0.1; done | grep -c 'bytes from')
    exec 4<>/dev/hvc0; stty raw -echo <&4; echo ready >&4; head -c 3000 <&4 | sha256sum | sed 's/^/typed=/'
    dd if=/dev/vda bs=1000 count=3 2>/dev/null >&4; dd if=/dev/hwrng bs=4096 count=1 2>/dev/null >&4; exec 4>&-
    dd if=/dev/nvme0n1 bs=4096 count=256 2>/dev/null | sha256sum | sed 's/^/nvme=/'
    edu
    echo blkirqs=$(irqs virtio0-req)
    echo msix=$(grep -cE 'PCI-MSI.*(virtio|nvme)' /proc/interrupts)
}
edu() {
    echo "1234 11e8" >/sys/bus/pci/drivers/uio_pci_generic/new_id
    bar=$(cut -d ' ' -f 1 /sys/bus/pci/drivers/uio_pci_generic/0000*/resource | head -n 1)
    echo edu=$(devmem $((bar)) 32)
    devmem $((bar + 8)) 32 6; echo factorial=$(devmem $((bar + 8)) 32)
    config=$(echo /sys/bus/pci/drivers/uio_pci_generic/0000*/config)
    exec 3<>/dev/uio0
    for turn in 1 2 3; do
        # The driver has disabled the pin at the interrupt: the upper byte of the command register enables it again.
        printf '\\0' | dd of=$config bs=1 seek=5 conv=notrunc 2>/dev/null
        devmem $((bar + 0x60)) 32 $turn
        count=$(dd bs=4 count=1 <&3 2>/dev/null | od -An -tu4 | tr -d ' ')
        raised="$raised $(devmem $((bar + 0x24)) 32):$count"
        devmem $((bar + 0x64)) 32 $turn
    done
    echo raised=$raised
    echo eduirqs=$(irqs uio_pci_generic)
}
echo userland=1
word() { grep -qw "$1" /proc/cmdline; }
echo cpus=$(nproc)
if word check.irqs; then
    echo uart=$(grep '^ *4:' /proc/interrupts)
    echo clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
    echo timer=$(grep -c '^ *0:' /proc/interrupts)
    echo complaints=$(dmesg | grep -ciE 'acpi.*(error|warning|bios bug)|firmware bug')
fi
if word check.devices; then
    devices
fi
if word check.moves; then
    for disk in vda nvme0n1; do echo 0 >/sys/block/$disk/queue/read_ahead_kb; done
    for turn in 1 2 3 4 5 6 7 8; do
        echo 1 >/proc/sys/vm/drop_caches
        dd if=/dev/nvme0n1 bs=4096 count=50 2>/dev/null | sha256sum | sed "s/^/nvme$turn=/" &
        dd if=/dev/vda bs=4096 count=150 2>/dev/null | sha256sum | sed "s/^/turn$turn=/"
        wait
    done
    echo blkirqs=$(irqs virtio0-req)
fi
if word check.panic; then echo c >/proc/sysrq-trigger; fi
if word check.reset; then reboot -f; fi
"""
MODULES = (
    "pvpanic-mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio-rng",
    "virtio_net",
    "virtio_console",
    "af_packet",
    "uio_pci_generic",
)
PROGRAMS = ("/sbin/mkfs.ext4", "/sbin/e2fsck")
LEASED = """#!/bin/sh
[ "$1" = bound ] || exit 0
ifconfig $interface $ip netmask $subnet
echo "lease=$ip" >/tmp/lease
"""
FILES = {"bin/leased": LEASED}
DISK = random.Random(1).randbytes(4 << 20)
TYPED = random.Random(2).randbytes(3000)


def say(name: str, value: object) -> None:
    print(f"RESULT {json.dumps([name, value])}", flush=True)


class Console:
    """Takes what the guest prints: NAME=VALUE lines, and when the first of each came."""

    def __init__(self) -> None:
        self.text = b""
        self.values: dict[str, str] = {}
        self.times: dict[str, float] = {}
        self._news = asyncio.Event()

    async def write(self, data: bytes) -> None:
        self.text += data
        *lines, self.text = self.text.split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace").strip()
            # Not as the kernel has it, or it would be taken for a panic of the kernel that this runs on.
            print(f"  guest: {text.replace('Kernel panic', 'Kernel  panic')}", flush=True)
            name, equals, value = text.partition("=")
            if equals and name.isalnum() and name not in self.values:
                self.values[name] = value
                self.times[name] = time.perf_counter()
                self._news.set()

    async def wait_for(self, name: str, running: asyncio.Task[None]) -> None:
        """Wait for a line NAME=VALUE, or for the end of the machine."""
        while name not in self.values and not running.done():
            self._news.clear()
            looking = asyncio.create_task(self._news.wait())
            await asyncio.wait((looking, running), return_when=asyncio.FIRST_COMPLETED)
            looking.cancel()


def count_exits(ports: PortTable) -> dict[str, int]:
    """Count the guest's accesses from now on, by what they are about."""
    counts: dict[str, int] = {}

    def count(name, group):
        plain = getattr(ports, name)

        def access(address, *rest):
            what = group(address)
            counts[what] = counts.get(what, 0) + 1
            return plain(address, *rest)

        setattr(ports, name, access)

    count("port_in", lambda port: f"in {_group(port)}")
    count("port_out", lambda port: f"out {_group(port)}")
    count("mmio_read", lambda _: "mmio read")
    count("mmio_write", lambda _: "mmio write")
    return counts


def _group(port: int) -> str:
    if port in address_map.COM1_PORTS:
        return "console"
    if port in address_map.PCI_CONFIG_PORTS:
        return "pci config"
    if port in range(0x500, 0x608):
        return "acpi"
    return "others"


class Ran:
    """A machine of a check, and what is known of it."""

    def __init__(self, machine: Machine, console: Console) -> None:
        self.machine = machine
        self.console = console
        self.uart = Uart(self.console)
        self.uart_irqfd: IrqFd
        self.entered = 0.0
        self.left = 0.0
        self.in_kvm = 0.0
        self.ending = ""

    async def run(self, kernel: Path | None, initramfs: Path, words: str) -> None:
        """Boot, or go on with what was restored."""
        if kernel is not None:
            image, archive = kernel.read_bytes(), initramfs.read_bytes()
            self.machine.load(BzImage(image, str(kernel)), initramfs=archive, command_line=f"{COMMAND_LINE} {words}")
        writing = asyncio.create_task(self.uart.run())
        try:
            with timed_runs() as times:
                self.entered = time.perf_counter()
                ending = await self.machine.run()
                self.left = time.perf_counter()
                self.in_kvm = times[0]
            self.ending = ending.name
            await self.uart.wait_written()
        finally:
            writing.cancel()
            await asyncio.wait((writing,))


@contextlib.contextmanager
def timed_runs() -> Iterator[list[float]]:
    """Sum up the seconds that all threads are in KVM_RUN."""
    total = [0.0]
    plain: Callable[..., int] = aioirqfd.kvm.vcpu._run

    def timed(*args: int) -> int:
        start = time.perf_counter()
        result = plain(*args)
        total[0] += time.perf_counter() - start
        return result

    aioirqfd.kvm.vcpu._run = timed
    try:
        yield total
    finally:
        aioirqfd.kvm.vcpu._run = plain


@contextlib.asynccontextmanager
async def pc(
    *, console: Console | None = None, cpus: int = 1, offload: bool = True, doorbells: bool = True
) -> AsyncIterator[Ran]:
    """A machine with a console and power management, not yet running."""
    async with Machine(memory=MEMORY, cpus=cpus, offload=offload, doorbells=doorbells) as machine:
        ran = Ran(machine, console or Console())
        try:
            machine.ports.add(Power(machine.end))
            machine.ports.add(ran.uart)
            ran.uart_irqfd = machine.irqs.assign(ran.uart.trigger, gsi=address_map.COM1_GSI)
            yield ran
            await machine.irqs.deassign(ran.uart_irqfd)
        finally:
            ran.uart.close()


def report(check: str, ran: Ran) -> None:
    say(f"{check}.ending", ran.ending)
    for name, value in ran.console.values.items():
        say(f"{check}.{name}", value)


async def power_off(kernel: Path, initramfs: Path) -> None:
    """One CPU: to userland, what Linux makes of the machine, and off by ACPI."""
    async with pc() as ran:
        exits = count_exits(ran.machine.ports)
        await ran.run(kernel, initramfs, "check.irqs")
        say("off.offloaded", ran.uart_irqfd.offloaded)
        seconds = ran.console.times.get("userland", ran.left) - ran.entered
        outside = ran.left - ran.entered - ran.in_kvm
        say("off.figures", {"to userland": seconds, "whole": ran.left - ran.entered, "outside KVM_RUN": outside})
        say("off.exits", exits)
    report("off", ran)


class Stream(Rng):
    """Bytes that are known, in the place of random ones."""

    def __init__(self) -> None:
        self.known = random.Random(7).randbytes(1 << 16)
        self.given = 0

    async def handle(self, request: Chain) -> int:
        size = request.writable_size
        start, self.given = self.given, self.given + size
        return request.write(self.known[start : start + size])


class Wire:
    """Both ends of a console: what is typed once the guest is ready, and what was shown."""

    def __init__(self, typed: bytes) -> None:
        self.typed = typed
        self.shown = b""
        self.ready = asyncio.Event()

    async def read(self, size: int) -> bytes:
        await self.ready.wait()
        if not self.typed:
            await asyncio.get_running_loop().create_future()
        data, self.typed = self.typed[:size], self.typed[size:]
        return data

    async def write(self, data: bytes) -> None:
        self.shown += data
        if b"ready" in self.shown:
            self.ready.set()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def devices(kernel: Path, initramfs: Path, check: str = "devices", *, by_kernel: bool = True) -> None:
    """The devices that vhost-user and vfio-user carry, in the machine's own slots."""
    stream, wire, network = Stream(), Wire(TYPED), UserNet()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("disk", "empty", "nvme")]
        for path, content in zip(paths, (DISK, bytes(16 << 20), DISK), strict=True):
            path.write_bytes(content)
        disk = VirtioPci(Blk(str(paths[0])))
        made = [
            disk,
            VirtioPci(Blk(str(paths[1]))),
            VirtioPci(stream),
            VirtioPci(Net(network)),
            VirtioPci(VirtioConsole(wire, wire)),
        ]
        made += [Edu(), Nvme(str(paths[2]))]
        async with pc(offload=by_kernel, doorbells=by_kernel) as ran:
            for device in made:
                await ran.machine.pci.plug(device)
            exits = count_exits(ran.machine.ports)
            await ran.run(kernel, initramfs, "check.devices")
            say(f"{check}.exits", exits)
            say(f"{check}.offloaded", ran.machine.irqs.statistics().offloaded)
            say(f"{check}.calls", sum(queue.calls for queue in disk.statistics()))
        for device in made:
            device.close()
    said = b"ready\n" + DISK[:3000]
    say(f"{check}.shown", wire.shown.startswith(said))
    drawn = wire.shown[len(said) :]
    # Linux' own thread draws now and then, too: not all in one piece.
    places = [stream.known.find(drawn[at : at + 32]) for at in range(0, len(drawn), 32)]
    say(f"{check}.random", [len(drawn), places.count(-1), places == sorted(set(places))])
    say(f"{check}.network", dict(network.counts))
    report(check, ran)


async def fixture(_kernel: Path, _initramfs: Path) -> None:
    """``aioirqfd.testing.guest`` by this machine in place of QEMU: commands, a fault, the books of the interrupts, the tree."""
    faults, recorder = Faults(), FlightRecorder(capacity=1 << 14)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "disk")
        path.write_bytes(DISK)
        disk = faults.wrap(Blk(str(path)))
        async with guest(disk, modules=["virtio_blk"], faults=faults, tracer=recorder, vmm=vmm) as vm:
            await vm.run("echo 0 >/sys/block/vda/queue/read_ahead_kb", check=True)
            async with vm.books(recorder, device="Blk-1", address="00:01.0") as books:
                said = await vm.run("dd if=/dev/vda bs=4096 count=50 2>/dev/null | sha256sum", check=True)
            entry = next(entry for entry in books.ledger.entries if entry.vector == 1)
            say("fixture.read", said.output.split()[0] == sha256(DISK[: 50 << 12]))
            say("fixture.books", [books.ledger.owed, entry.signalled, entry.injected, entry.qemu, entry.guest])
            bad = faults.add(Match("read", sector=816), Fail())
            script = "for n in 100 101 102 103; do dd if=/dev/vda of=/dev/null bs=4096 count=1 skip=$n 2>/dev/null; echo $?; done"
            say("fixture.statuses", (await vm.run(script)).output.split())
            bad.remove()
            say("fixture.dmesg", "I/O error, dev vda, sector 816" in (await vm.run("dmesg | grep I.O")).output)
            say("fixture.tree", inspect.read("pci/*/01"))
        disk.close()


async def plain(kernel: Path, initramfs: Path) -> None:
    """The same, and every interrupt and every doorbell passes through this process."""
    await devices(kernel, initramfs, "plain", by_kernel=False)


async def moved(kernel: Path, initramfs: Path) -> None:
    """Saved to a file while Linux reads its disks, three times, and each time it goes on in another machine."""
    calls, seconds = 0, []
    with tempfile.TemporaryDirectory() as folder:
        disk, file = Path(folder, "disk"), Path(folder, "machine")
        disk.write_bytes(DISK)
        console = Console()
        for life in range(4):
            blk, nvme = VirtioPci(Blk(str(disk))), Nvme(str(disk))
            async with pc(console=console, cpus=2) as ran:
                await ran.machine.pci.plug(blk)
                await ran.machine.pci.plug(nvme)
                if life:
                    await snapshot.restore(ran.machine, file)
                running = asyncio.create_task(ran.run(None if life else kernel, initramfs, "check.moves"))
                if life < 3:
                    await console.wait_for(f"turn{2 * life + 1}", running)
                    await asyncio.sleep(0.2 * (life + 1))  # into the next turn
                    start = time.perf_counter()
                    await ran.machine.pause()
                    await snapshot.save(ran.machine, file)
                    seconds.append(time.perf_counter() - start)
                    ran.machine.end(Ending.STOPPED)
                await running
                calls += sum(queue.calls for queue in blk.statistics())
            blk.close()
            nvme.close()
            say(f"moved.ending{life}", ran.ending)
    say("moved.calls", calls)
    say("moved.seconds", seconds)
    for name, value in console.values.items():
        say(f"moved.{name}", value)


async def reset(kernel: Path, initramfs: Path) -> None:
    """Two CPUs, no irqfd offloaded; and the guest starts itself anew."""
    async with pc(cpus=2, offload=False) as ran:
        await ran.run(kernel, initramfs, "check.irqs check.reset")
        say("reset.offloaded", ran.uart_irqfd.offloaded)
    report("reset", ran)


async def panic(kernel: Path, initramfs: Path) -> None:
    """The guest's kernel panics."""
    async with pc() as ran:
        await ran.run(kernel, initramfs, "check.panic")
    report("panic", ran)


CHECKS: dict[str, Callable[[Path, Path], Coroutine[object, object, None]]] = {
    "off": power_off,
    "devices": devices,
    "plain": plain,
    "fixture": fixture,
    "moved": moved,
    "reset": reset,
    "panic": panic,
}


def main() -> None:
    print(f"python {platform.python_version()} {aioirqfd.IMPLEMENTATION} kvm {usable() or 'usable'}", flush=True)
    kernel, initramfs, *names = sys.argv[1:]
    for name in names or CHECKS:
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        with KvmCounts() as counts:
            asyncio.run(CHECKS[name](Path(kernel), Path(initramfs)))
            say(f"{name}.messages", counts.messages())
            say(f"{name}.repeated", counts.repeated())
    faulthandler.cancel_dump_traceback_later()
    print("AGENT DONE", flush=True)


if __name__ == "__main__":
    main()
