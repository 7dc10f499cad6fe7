"""What runs inside the guest that has KVM: the example VMM with Debian's kernel as a guest of its own.

Each result is a line of JSON on the console, after the word RESULT: a name, and what came of it. A check is a function of
:data:`CHECKS`, which boots a machine; what the machine's own guest says of itself is a line NAME=VALUE of its script's output, and
a result NAME of its own. ``python -m tests.qemu.linux_agent KERNEL INITRAMFS [CHECK...]`` does the same on any machine with KVM.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import json
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import aioirqfd
import aioirqfd.kvm.vcpu
from aioirqfd.kvm import usable
from examples.vmm.linux import address_map
from examples.vmm.linux.bzimage import BzImage
from examples.vmm.linux.machine import Machine
from examples.vmm.linux.power import Power
from examples.vmm.linux.uart import Uart

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from aioirqfd import IrqFd
    from examples.vmm.linux.ports import PortTable

MEMORY = 192 << 20
COMMAND_LINE = "console=ttyS0 panic=-1 nokaslr no_timer_check quiet"
SECONDS = 100
"""That a machine may take before all stacks are printed and everything ends."""
# What the machine's guest runs, according to the words of its command line.
SCRIPT = """
echo userland=1
word() { grep -qw "$1" /proc/cmdline; }
echo cpus=$(nproc)
if word check.irqs; then
    echo uart=$(grep '^ *4:' /proc/interrupts)
    echo clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
    echo timer=$(grep -c '^ *0:' /proc/interrupts)
    echo complaints=$(dmesg | grep -ciE 'acpi.*(error|warning|bios bug)|firmware bug')
fi
if word check.panic; then echo c >/proc/sysrq-trigger; fi
if word check.reset; then reboot -f; fi
"""
MODULES = ("pvpanic-mmio",)


def say(name: str, value: object) -> None:
    print(f"RESULT {json.dumps([name, value])}", flush=True)


class Console:
    """Takes what the guest prints: NAME=VALUE lines, and when the first of each came."""

    def __init__(self) -> None:
        self.text = b""
        self.values: dict[str, str] = {}
        self.times: dict[str, float] = {}

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

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.console = Console()
        self.uart = Uart(self.console)
        self.uart_irqfd: IrqFd
        self.entered = 0.0
        self.left = 0.0
        self.in_kvm = 0.0
        self.ending = ""

    async def run(self, kernel: Path, initramfs: Path, words: str) -> None:
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
async def pc(*, cpus: int = 1, offload: bool = True) -> AsyncIterator[Ran]:
    """A machine with a console and power management, not yet running."""
    async with Machine(memory=MEMORY, cpus=cpus, offload=offload) as machine:
        ran = Ran(machine)
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
    "reset": reset,
    "panic": panic,
}


def main() -> None:
    print(f"python {platform.python_version()} {aioirqfd.IMPLEMENTATION} kvm {usable() or 'usable'}", flush=True)
    kernel, initramfs, *names = sys.argv[1:]
    for name in names or CHECKS:
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        asyncio.run(CHECKS[name](Path(kernel), Path(initramfs)))
    faulthandler.cancel_dump_traceback_later()
    print("AGENT DONE", flush=True)


if __name__ == "__main__":
    main()
