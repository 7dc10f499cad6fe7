"""What ``linux_vmm.py`` runs in the host that has KVM: Linux in the example VMM and in QEMU, by turns.

Each run is a line of JSON on the console, after the words AGENT RUN; before it, a line ``AGENT MARK NAME`` where a part begins or
ends, for whoever counts the CPU time of this host. The first round only warms up. ``python -m tests.bench.linux_vmm_agent KERNEL INITRAMFS ROUNDS KIND...``
does the same on any machine with KVM.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from aioirqfd.sinks.qmp import Qmp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MEMORY = 192 << 20
COMMAND_LINE = "console=ttyS0 panic=-1 nokaslr no_timer_check quiet"
DISK_BYTES = 32 << 20
SECONDS = 900
"""That one guest may take."""
MARKS = ("userland", "warm", "depth1", "depth16")
"""What the guest says at the end of each part."""
QEMU = "qemu-system-x86_64"
# As QEMU's own page on microvm has it, which is as little as there can be.
MICROVM = "microvm,accel=kvm,x-option-roms=off,pit=off,pic=off,isa-serial=on,rtc=off"
MACHINES = {
    "plain": ("microvm,accel=kvm", "virtio-blk-device,drive=disk,num-queues=1"),
    "mmio": (MICROVM, "virtio-blk-device,drive=disk,num-queues=1"),
    "pci": (f"{MICROVM},pcie=on", "virtio-blk-pci,drive=disk,num-queues=1,disable-legacy=on"),
}
OURS = {"ours": False, "memfd": True}
"""Whether the guest's memory is a memfd, which other processes can be given."""
KINDS = (*OURS, *MACHINES)


def mark(name: str) -> None:
    """Say that it is now."""
    print(f"AGENT MARK {name}", flush=True)


class Guest:
    """A guest under way: its console, line by line, with the time of each line's end."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.values: dict[str, str] = {}
        self.times: dict[str, float] = {}
        self.lines: list[str] = []

    async def read(self) -> None:
        """To the end of the process."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            now = time.perf_counter()
            text = line.decode("utf-8", "replace").strip()
            self.lines.append(text)
            if text == "ENTERED":
                mark("entry")
            name, equals, value = text.partition("=")
            if equals and name in MARKS:
                mark(name)
                self.values.setdefault(name, value)
                self.times.setdefault(name, now)
        await self.process.wait()


@contextlib.asynccontextmanager
async def started(*command: str, pass_fds: tuple[int, ...] = ()) -> AsyncIterator[Guest]:
    """A process whose standard output is a guest's console; killed in the end."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, pass_fds=pass_fds
    )
    try:
        yield Guest(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ours(kind: str, kernel: str, initramfs: str, disk: str) -> dict[str, object]:
    """In the example VMM."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "tests.bench.linux_vmm_ours", kernel, initramfs, disk, str(MEMORY)]
    command += [str(int(OURS[kind])), COMMAND_LINE]
    async with started(*command) as guest:
        await guest.read()
    said = next((line.removeprefix("OURS ") for line in guest.lines if line.startswith("OURS ")), "{}")
    own = json.loads(said)
    return result(kind, guest, began, own.pop("entered", began)) | {"own": own}


async def qemu(kind: str, kernel: str, initramfs: str, disk: str) -> dict[str, object]:
    """In QEMU. It is told to go on when it is ready to: then the guest is entered, its firmware first."""
    machine, device = MACHINES[kind]
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = Path(folder, "qmp")
        listener.bind(str(path))
        listener.listen()
        command = [QEMU, "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", "-S"]
        command += ["-M", machine, "-cpu", "host", "-m", f"{MEMORY >> 20}M"]
        command += ["-chardev", f"socket,id=qmp,fd={listener.fileno()},server=on,wait=off"]
        command += ["-mon", "chardev=qmp,mode=control"]
        command += ["-chardev", "stdio,id=console", "-serial", "chardev:console"]
        command += ["-kernel", kernel, "-initrd", initramfs, "-append", COMMAND_LINE]
        command += ["-drive", f"file={disk},format=raw,if=none,id=disk", "-device", device]
        began = time.perf_counter()
        async with started(*command, pass_fds=(listener.fileno(),)) as guest:
            qmp = await Qmp.connect(path)
            mark("entry")
            entered = time.perf_counter()
            await qmp.execute("cont")
            await guest.read()
            await qmp.aclose()
    return result(kind, guest, began, entered)


def result(kind: str, guest: Guest, began: float, entered: float) -> dict[str, object]:
    """What a run took: seconds from the entry, and from the process' start, to userland; what the guest has said."""
    found: dict[str, object] = {"kind": kind, "status": guest.process.returncode, "values": guest.values}
    if "userland" in guest.times:
        userland = guest.times["userland"]
        found |= {
            "from entry": userland - entered,
            "from start": userland - began,
            "whole": time.perf_counter() - entered,
        }
    else:
        found["lines"] = guest.lines[-20:]
    return found


async def main(kernel: str, initramfs: str, rounds: int, kinds: list[str]) -> None:
    """Run each kind in each round, every other round backwards."""
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder, "disk")
        part = os.urandom(1 << 20)
        disk.write_bytes(part * (DISK_BYTES >> 20))
        for number in range(rounds + 1):
            for kind in reversed(kinds) if number % 2 else kinds:
                async with asyncio.timeout(SECONDS):
                    if kind in OURS:
                        run = await ours(kind, kernel, initramfs, str(disk))
                    else:
                        run = await qemu(kind, kernel, initramfs, str(disk))
                print(f"AGENT RUN {json.dumps(run)}", flush=True)
    print("AGENT DONE", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:] or list(KINDS)))
