"""A disk for a guest, three ways: ``python -m tests.bench.vhost_blk``.

The same guest, image and load for ``examples/vhost_user_blk.py``, for ``qemu-storage-daemon``'s vhost-user-blk export, and
for QEMU's own virtio-blk; and for ``vhost_floor.py``, the least that there is to do, in C and in Python. The image is in memory.
What a process has used is from its tasks' schedstat.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.qemu.harness import Qemu, initramfs

ROOT = Path(__file__).parents[2]
IMAGE_BYTES = 256 << 20
# Name, rand or seq, bytes, depth, operations.
LOADS = (
    ("4k random, depth 1", "rand", 4096, 1, 8000),
    ("4k random, depth 16", "rand", 4096, 16, 24000),
    ("1M sequential, depth 1", "seq", 1 << 20, 1, 600),
    ("1M sequential, depth 4", "seq", 1 << 20, 4, 1000),
)
INIT = """
cat /proc/interrupts | grep -c virtio >/dev/null
echo GUEST-READY
while read load; do
    echo RESULT $(/bin/vhost_load /dev/vda $load)
done
"""


def cpu_ns(pid: int) -> int:
    """What all tasks of a process have used so far."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def build(directory: Path) -> Path:
    """The load, as a static program."""
    program = directory / "vhost_load"
    source = Path(__file__).with_name("vhost_load.c")
    subprocess.run(["cc", "-O2", "-static", "-o", program, source], check=True)
    return program


def build_floor(directory: Path) -> Path:
    """The loop that does nothing but what must be done, as a library."""
    library = directory / "vhost_floor.so"
    source = Path(__file__).with_name("vhost_floor.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def servers(kind: str, image: Path, socket: Path) -> list[str] | None:
    """The command of the process that serves the image; None: QEMU itself does."""
    if kind == "ours":
        return [
            sys.executable, str(ROOT / "examples/vhost_user_blk.py"), "--socket-path", str(socket), "--blk-file", str(image),
        ]  # fmt: skip
    if kind == "qsd":
        return [
            "qemu-storage-daemon",
            "--blockdev", f"driver=file,node-name=disk,filename={image}",
            "--export", f"type=vhost-user-blk,id=disk,node-name=disk,addr.type=unix,addr.path={socket},writable=on",
        ]  # fmt: skip
    if kind in {"c", "python"}:
        library = image.with_name("vhost_floor.so")
        return [sys.executable, "-m", "tests.bench.vhost_floor", kind, str(socket), str(image), str(library)]
    return None


async def measure(kind: str, image: Path, program: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """For each load and round: seconds, and the CPU seconds of the serving process."""
    linux = initramfs(INIT, modules=["virtio_pci", "virtio_blk"], files={"bin/vhost_load": program})
    qemu = Qemu(linux=linux, ram=256 << 20, timeout=120)
    socket = qemu.directory / "blk.sock"
    command = servers(kind, image, socket)
    server = None
    try:
        if command is not None:
            server = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
            while not socket.exists():
                await asyncio.sleep(0.01)
            qemu.add_arguments("-chardev", f"socket,id=blk,path={socket}")
            qemu.add_arguments("-device", "vhost-user-blk-pci,chardev=blk,num-queues=1")
        else:
            qemu.add_arguments("-drive", f"file={image},format=raw,if=none,id=disk")
            qemu.add_arguments("-device", "virtio-blk-pci,drive=disk,num-queues=1")
        found: dict[str, list[tuple[float, float]]] = {}
        async with qemu:
            await qemu.wait_for("GUEST-READY")
            pid = server.pid if server is not None else qemu.process.pid
            for _ in range(rounds):
                for name, *load in LOADS:
                    before = cpu_ns(pid)
                    await qemu.console.send(" ".join(map(str, load)) + "\n")
                    line = await qemu.wait_for("RESULT ")
                    used = cpu_ns(pid) - before
                    operations, wall = map(int, line.split("RESULT ")[1].split())
                    found.setdefault(name, []).append((wall / operations, used / operations))
        return found
    finally:
        if server is not None:
            server.send_signal(signal.SIGTERM)
            server.wait(10)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=["ours", "qsd", "qemu", "c", "python"])
    parser.add_argument(
        "--directory", default="/dev/shm", help="where the image is made; in memory, so that no disk is measured"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        program = build(directory)
        build_floor(directory)
        image = directory / "image"
        with image.open("wb") as file:
            for _ in range(IMAGE_BYTES >> 20):
                file.write(os.urandom(1 << 20))
        results = {kind: await measure(kind, image, program, options.rounds) for kind in options.kinds}
    print(f"{'':24}" + "".join(f"{kind + ' us/op':>14}{'cpu us':>9}{'MiB/s':>9}" for kind in results) + "   ours/qsd")
    for name, _, size, _, _ in LOADS:
        row = f"{name:24}"
        medians: dict[str, float] = {}
        for kind, found in results.items():
            wall = medians[kind] = statistics.median(wall for wall, _ in found[name])
            used = statistics.median(used for _, used in found[name])
            row += f"{wall / 1e3:14.1f}{used / 1e3:9.1f}{size / (1 << 20) / wall * 1e9:9.0f}"
        if {"ours", "qsd"} <= medians.keys():
            row += f"{medians['qsd'] / medians['ours']:11.2f}"
        print(row)


if __name__ == "__main__":
    asyncio.run(main())
