"""A disk for a guest, four ways: ``python -m tests.bench.vhost_blk``.

The same guest, image and load for ``examples/vhost_user_blk.py``, for ``qemu-storage-daemon``'s vhost-user-blk export, and
for QEMU's own virtio-blk; and for ``vhost_floor.py``, the least that there is to do, in C and in Python. With a QEMU that has vfio-user (``AIOIRQFD_QEMU``),
``--kinds ours vfio qemu`` sets the example beside itself as a PCI device. The image is in memory.
What a process has used is from its tasks' schedstat.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.disk import ROOT, Cost, Load, booted, build, machine, make_image, measure, process, vfio_user

LOADS = (
    Load("4k random, depth 1", "rand", 4096, 1, 8000),
    Load("4k random, depth 16", "rand", 4096, 16, 24000),
    Load("1M sequential, depth 1", "seq", 1 << 20, 1, 600),
    Load("1M sequential, depth 4", "seq", 1 << 20, 4, 1000),
)


def build_floor(directory: Path) -> Path:
    """The loop that does nothing but what must be done, as a library."""
    library = directory / "vhost_floor.so"
    source = Path(__file__).with_name("vhost_floor.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def servers(kind: str, image: Path, socket: Path) -> list[str] | None:
    """The command of the process that serves the image; None: QEMU itself does."""
    if kind in {"ours", "vfio"}:
        transport = "vhost-user" if kind == "ours" else "vfio-user"
        return [
            sys.executable, str(ROOT / "examples/vhost_user_blk.py"),
            "--transport", transport, "--socket-path", str(socket), "--blk-file", str(image),
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


async def rounds_of(kind: str, image: Path, program: Path, rounds: int) -> dict[str, list[Cost]]:
    """What each load cost in each round."""
    qemu = machine(program, ["virtio_pci", "virtio_blk"])
    socket = qemu.directory / "blk.sock"
    command = servers(kind, image, socket)
    with contextlib.ExitStack() as stack:
        server = None
        if command is not None:
            server = stack.enter_context(process(command, socket)).pid
        if kind == "vfio":
            qemu.add_arguments("-device", vfio_user(socket))
        elif command is not None:
            qemu.add_arguments("-chardev", f"socket,id=blk,path={socket}")
            qemu.add_arguments("-device", "vhost-user-blk-pci,chardev=blk,num-queues=1")
        else:
            qemu.add_arguments("-drive", f"file={image},format=raw,if=none,id=disk")
            qemu.add_arguments("-device", "virtio-blk-pci,drive=disk,num-queues=1")
        found: dict[str, list[Cost]] = {load.name: [] for load in LOADS}
        async with booted(qemu):
            for _ in range(rounds):
                for load in LOADS:
                    found[load.name].append(await measure(qemu, "/dev/vda", load, server))
        return found


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
        image = make_image(directory)
        results = {kind: await rounds_of(kind, image, program, options.rounds) for kind in options.kinds}
    print(f"{'':24}" + "".join(f"{kind + ' us/op':>14}{'cpu us':>9}{'MiB/s':>9}" for kind in results) + "   ours/qsd")
    for load in LOADS:
        row = f"{load.name:24}"
        medians: dict[str, float] = {}
        for kind, found in results.items():
            wall = medians[kind] = statistics.median(cost.wall for cost in found[load.name])
            used = statistics.median(cost.server for cost in found[load.name])
            row += f"{wall / 1e3:14.1f}{used / 1e3:9.1f}{load.size / (1 << 20) / wall * 1e9:9.0f}"
        if {"ours", "qsd"} <= medians.keys():
            row += f"{medians['qsd'] / medians['ours']:11.2f}"
        print(row)


if __name__ == "__main__":
    asyncio.run(main())
