"""An NVMe disk for a guest: ``AIOIRQFD_QEMU=$(tests/qemu/fetch.sh trixie-backports) python -m tests.bench.nvme``.

The same guest, image and load for ``examples/nvme.py``, with and without doorbells in the driver's memory, and for QEMU's own
``-device nvme``; every round boots each of them once, every other round backwards, and a ratio is taken within a round. The image
is in memory. With ``--profile`` it says where the server's CPU time goes, by ``sampled.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import statistics
import sys
import tempfile
from pathlib import Path

from tests.bench.disk import Cost, Load, booted, build, machine, make_image, measure, process, vfio_user

LOADS = (Load("4k random, depth 1", "rand", 4096, 1, 6000), Load("4k random, depth 32", "rand", 4096, 32, 16000))
PROGRAMS = {
    "profile": ["-m", "tests.bench.sampled", "examples/nvme.py"],
    "ours": ["examples/nvme.py"],
    "registers": ["examples/nvme.py", "--no-shadow-doorbells"],
    "mapped": ["-m", "tests.bench.nvme_mapped"],
}
PROFILED = Load("", "rand", 4096, 32, 60000)


async def round_of(kind: str, image: Path, program: Path) -> list[Cost]:
    """Boot, and do each load once."""
    qemu = machine(program)
    socket = qemu.directory / "nvme.sock"
    with contextlib.ExitStack() as stack:
        server = None
        if kind == "qemu":
            qemu.add_arguments("-drive", f"file={image},format=raw,if=none,id=disk")
            qemu.add_arguments("-device", "nvme,drive=disk,serial=1")
        else:
            server = stack.enter_context(process(command(kind, image, socket), socket)).pid
            qemu.add_arguments("-device", vfio_user(socket))
        async with booted(qemu):
            return [await measure(qemu, "/dev/nvme0n1", load, server) for load in LOADS]


def command(kind: str, image: Path, socket: Path) -> list[str]:
    """What serves the image."""
    return [sys.executable, *PROGRAMS[kind], "--socket-path", str(socket), str(image)]


async def profile(image: Path, program: Path) -> None:
    """Have the server print where it spent its time while the guest read at depth 32."""
    qemu = machine(program)
    socket = qemu.directory / "nvme.sock"
    with process(command("profile", image, socket), socket) as server:
        qemu.add_arguments("-device", vfio_user(socket))
        async with booted(qemu):
            server.send_signal(signal.SIGUSR1)
            cost = await measure(qemu, "/dev/nvme0n1", PROFILED, server.pid)
            print(f"{cost.server / 1e3:.1f} us of the server's CPU for a command", flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", default=["ours", "registers", "qemu"], choices=[*PROGRAMS, "qemu"])
    parser.add_argument("--profile", action="store_true", help="a profile of the server, and no comparison")
    parser.add_argument("--directory", default="/dev/shm", help="where the image is made, and should be memory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        program, image = build(directory), make_image(directory)
        if options.profile:
            await profile(image, program)
            return
        results: dict[str, list[list[Cost]]] = {kind: [] for kind in options.kinds}
        for number in range(options.rounds):
            for kind in options.kinds if number % 2 else reversed(options.kinds):
                results[kind].append(await round_of(kind, image, program))
    print(f"{'':24}{'':10}{'us/op':>8}{'server us':>11}{'QEMU us':>9}{'x qemu':>9}{'lowest..highest':>18}")
    for place, load in enumerate(LOADS):
        for kind, found in results.items():
            costs = [costs[place] for costs in found]
            wall, server, qemu = (statistics.median(values) / 1e3 for values in zip(*costs, strict=True))
            row = f"{load.name:24}{kind:10}{wall:8.1f}{server:11.1f}{qemu:9.1f}"
            if "qemu" in results:  # operations per second, ours over QEMU's
                ratios = [peer[place].wall / own.wall for own, peer in zip(costs, results["qemu"], strict=True)]
                row += f"{statistics.median(ratios):9.2f}{f'{min(ratios):.2f}..{max(ratios):.2f}':>18}"
            print(row)


if __name__ == "__main__":
    asyncio.run(main())
