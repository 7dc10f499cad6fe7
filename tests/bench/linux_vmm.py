"""Linux in the example VMM beside QEMU: ``python -m tests.bench.linux_vmm``.

The same kernel and initramfs on the same KVM, by turns: from the guest's entry to its userland, and 4 KiB reads of a virtio disk.
The KVM is that of Debian's kernel in a guest of QEMU's TCG whose CPU has emulated SVM, so that it runs anywhere. The peers are QEMU's
microvm with its disk by virtio-mmio (``mmio``), and by virtio-pci (``pci``); ``plain`` is microvm with all that it has by default,
``memfd`` the example with memory that other processes can be given. After a round to warm up, every round boots each of them
once, every other round backwards, and a ratio is taken within a round. All images are in memory.

A guest is entered when QEMU is told to go on, or when the example's vCPU is first run: its process has started by then. That takes
longer with Python, and is in the table too ("from start"). Reads are done with O_DIRECT by ``vhost_load.c``.

There are two clocks: the guest's and its host's (``wall``), and the CPU time that the nested host has used (``cpu``), which does not
depend on what else runs on the machine. The targets are for the second one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from aioirqfd.testing.initramfs import initramfs, module_paths
from tests.bench.disk import build, cpu_ns
from tests.bench.linux_vmm_agent import KINDS
from tests.qemu import nested_host
from tests.qemu.harness import kernel

Run = dict[str, Any]
MODULES = ("virtio_mmio", "virtio_pci", "virtio_blk")
FIRMWARE = Path("/usr/share/qemu/bios-microvm.bin")
READS = {"depth1": (1, 1000), "depth16": (16, 4000)}
"""How many at a time, and how many in all."""
# The modules are loaded after userland is reached: no kind has to wait for another's.
SCRIPT = """
echo userland=1
for module in $(cat /etc/disk); do insmod $module; done
echo warm=$(/bin/vhost_load /dev/vda rand 4096 4 200)
""" + "".join(
    f"echo {name}=$(/bin/vhost_load /dev/vda rand 4096 {depth} {reads})\n" for name, (depth, reads) in READS.items()
)


class Target(NamedTuple):
    """What is asked for: of times at most, of operations per second at least."""

    what: str
    ratio: float


TARGETS = (Target("to userland, cpu s", 1.0), Target("depth1, cpu us", 0.7), Target("depth16, cpu us", 0.7))
PEER = "mmio"
"""Whom they are beside."""


def inner(program: Path) -> bytes:
    """What the measured guests boot from."""
    paths = module_paths(kernel(), MODULES)
    files: dict[str, bytes | str | Path] = {f"lib/modules/{path.name}": path for path in paths}
    files["etc/disk"] = "\n".join(f"/lib/modules/{path.name}" for path in paths)
    files["bin/vhost_load"] = program
    return initramfs(SCRIPT, kernel=kernel(), files=files)


async def run(program: Path, rounds: int, kinds: list[str]) -> tuple[list[Run], list[str]]:
    """All runs in one nested host, each with the CPU time at its marks; and all that was said."""
    linux = nested_host.nested(
        "tests.bench.linux_vmm_agent",
        str(rounds),
        *kinds,
        inner=inner(program),
        modules=["tests.bench.linux_vmm_ours"],
        files={str(FIRMWARE): FIRMWARE.resolve()},
        programs=["/usr/bin/qemu-system-x86_64"],
    )
    runs: list[Run] = []
    marks: dict[str, int] = {}
    async with nested_host.host(linux, timeout=600, ram=1536 << 20) as qemu:
        while True:
            _, word, *rest = (await qemu.wait_for("AGENT ")).split(maxsplit=2)
            if word == "MARK":
                marks[rest[0]] = cpu_ns(qemu.process.pid)
            elif word == "RUN":
                runs.append(json.loads(rest[0]) | {"cpu": marks})
                marks = {}
            elif word == "ENDED":
                return runs, qemu.console.lines


def figures(run: Run) -> dict[str, float]:
    """Seconds to userland, and microseconds for a read at each depth."""
    cpu = run["cpu"]
    found = {"to userland, cpu s": (cpu["userland"] - cpu["entry"]) / 1e9}
    found |= {"to userland, wall s": run["from entry"], "from start, wall s": run["from start"]}
    before = "warm"
    for name in READS:
        operations, nanoseconds = map(int, run["values"][name].split())
        found[f"{name}, cpu us"] = (cpu[name] - cpu[before]) / operations / 1e3
        found[f"{name}, wall us"] = nanoseconds / operations / 1e3
        before = name
    return found


def report(runs: list[Run], kinds: list[str]) -> bool:
    """Print the table; whether each target was met."""
    found = [(run["kind"], figures(run)) for run in runs[len(kinds) :]]
    rounds = [dict(found[at : at + len(kinds)]) for at in range(0, len(found), len(kinds))]
    peers = [kind for kind in kinds if kind != "ours"] if "ours" in kinds else []
    print(f"{'':20}" + "".join(f"{kind:>10}" for kind in kinds) + "".join(f"{'ours to ' + kind:>26}" for kind in peers))
    targets = dict(TARGETS)
    met = True
    for what in rounds[0][kinds[0]]:
        verdict = ""
        row = f"{what:20}" + "".join(f"{statistics.median(one[kind][what] for one in rounds):10.2f}" for kind in kinds)
        for peer in peers:
            pairs = [(one["ours"][what], one[peer][what]) for one in rounds]
            ratios = [theirs / own if what.startswith("depth") else own / theirs for own, theirs in pairs]
            median = statistics.median(ratios)
            row += f"{f'{median:.2f} ({min(ratios):.2f}..{max(ratios):.2f})':>26}"
            if peer == PEER and what in targets:
                limit = targets[what]
                least = what.startswith("depth")
                good = median >= limit if least else median <= limit
                met &= good
                verdict = f"  at {'least' if least else 'most'} {limit} of {peer}: {'met' if good else 'missed'}"
        row += verdict
        print(row)
    print("A ratio is of times; for a depth, of operations per second.")
    own = [run["own"] for run in runs[len(kinds) :] if run["kind"] == "ours"]
    for name in ("userland", "end") if own else ():
        shares = [one[name]["outside"] / (one[name]["inside"] + one[name]["outside"]) for one in own]
        exits = statistics.median(one[name]["runs"] for one in own)
        print(f"To {name}: {statistics.median(shares):.1%} of the vCPU's time is outside KVM_RUN, {exits:.0f} exits.")
    return met


async def main() -> int:
    """Run, print, and say by the exit status whether each target was met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", default=["ours", "mmio", "pci"], choices=KINDS)
    parser.add_argument("--verbose", action="store_true", help="print each run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs, lines = await run(build(Path(folder)), options.rounds, options.kinds)
    if options.verbose:
        print(*runs, sep="\n")
    if "AGENT DONE" not in lines or any("depth16" not in run["values"] for run in runs):
        print("\n".join(lines), file=sys.stderr)
        return 2
    return 0 if report(runs, options.kinds) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
