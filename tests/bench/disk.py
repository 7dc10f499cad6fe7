"""What the benchmarks of disks have in common: an image in memory, a load in a guest, and what it cost whom."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.qemu.harness import Qemu, initramfs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

ROOT = Path(__file__).parents[2]
IMAGE_BYTES = 256 << 20
INIT = """
cat /proc/interrupts | grep -c virtio >/dev/null
echo GUEST-READY
while read load; do
    echo RESULT $(/bin/vhost_load $load)
done
"""


class Load(NamedTuple):
    """What the guest does: reads of so many bytes, so many of them under way, until so many are done."""

    name: str
    order: str  # rand or seq
    size: int
    depth: int
    operations: int


class Cost(NamedTuple):
    """Of one operation: nanoseconds by the guest's clock, and CPU time of the serving process and of QEMU."""

    wall: float
    server: float
    qemu: float


def cpu_ns(pid: int) -> int:
    """What all tasks of a process have used so far, by their schedstat."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def build(directory: Path) -> Path:
    """The load, as a static program."""
    program = directory / "vhost_load"
    source = Path(__file__).with_name("vhost_load.c")
    subprocess.run(["cc", "-O2", "-static", "-o", program, source], check=True)
    return program


def make_image(directory: Path) -> Path:
    """Random bytes."""
    image = directory / "image"
    with image.open("wb") as file:
        for _ in range(IMAGE_BYTES >> 20):
            file.write(os.urandom(1 << 20))
    return image


def machine(program: Path, modules: Sequence[str] = ()) -> Qemu:
    """A guest of one CPU that waits for loads on its console."""
    linux = initramfs(INIT, modules=modules, files={"bin/vhost_load": program})
    return Qemu(linux=linux, ram=256 << 20, timeout=120)


def vfio_user(socket: Path) -> str:
    """The device behind the socket, for QEMU."""
    return json.dumps({"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(socket)}})


@contextlib.contextmanager
def process(command: Sequence[str], socket: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server, from when it listens on."""
    server = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        while not socket.exists():
            assert server.poll() is None, "the server has ended"
            os.sched_yield()
        yield server
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(10)


@contextlib.asynccontextmanager
async def booted(qemu: Qemu) -> AsyncIterator[Qemu]:
    """The guest, ready for loads."""
    async with qemu:
        await qemu.wait_for("GUEST-READY")
        yield qemu


async def measure(qemu: Qemu, device: str, load: Load, server: int | None) -> Cost:
    """Have the guest do it once.

    Args:
        qemu: A guest that is ready.
        device: The disk's path in it.
        load: What to do.
        server: The process id of who serves the disk; None: QEMU does.
    """
    pids = [qemu.process.pid if server is None else server, qemu.process.pid]
    before = [cpu_ns(pid) for pid in pids]
    await qemu.console.send(f"{device} {load.order} {load.size} {load.depth} {load.operations}\n")
    line = await qemu.wait_for("RESULT ")
    used = [cpu_ns(pid) - start for pid, start in zip(pids, before, strict=True)]
    operations, wall = map(int, line.split("RESULT ")[1].split())
    return Cost(wall / operations, used[0] / operations, used[1] / operations)
