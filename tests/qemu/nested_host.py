"""A host that has KVM wherever QEMU runs: Debian's kernel on TCG's emulated SVM, and this very Python in it, which runs an agent."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.qemu.harness import Linux, Qemu, initramfs, kernel
from tests.qemu.initramfs import python_files, python_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# What is imported only when it is needed.
LATER = ("anyio._backends._asyncio", "concurrent.futures.thread")
KERNEL, INITRAMFS = "/boot/vmlinuz", "/boot/initramfs"
"""Where the agent finds what its own guest boots."""
CPU = "qemu64,+svm,+npt"
TICKS = "nolapic_timer nohz=off highres=off"
"""For the host's command line: its clock ticks by the PIT, all the time.

QEMU's TCG forgets an interrupt now and then: where it leaves a guest of its own it clears a bit of the CPU's pending ones without a
lock, and one that a device sets at that moment is gone, though the local APIC has it (seen in 7.2, twice in 200 minutes; newer ones have
the lock). The next interrupt of any kind brings it back. A timer that is set anew at each interrupt never has a next one.
"""


def nested(
    agent: str,
    *arguments: str,
    inner: bytes | None = None,
    modules: Sequence[str] = (),
    files: Mapping[str, Path] | None = None,
    programs: Sequence[str] = (),
    warnings: str = "error",
) -> Linux:
    """The host, to boot.

    Args:
        agent: The module that it runs, with KERNEL and INITRAMFS, if there is one, and the arguments.
        arguments: More of its arguments.
        inner: The initramfs of its guest; None: it boots none.
        modules: More that Python shall find there.
        files: More files.
        programs: Programs from here, with their libraries.
        warnings: For Python's ``-W``.
    """
    variables = {"PYTHONPATH": ":".join(python_path())}
    variables |= {name: value for name, value in os.environ.items() if name == "AIOIRQFD_PURE_PYTHON"}
    assignments = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    python = Path(sys.executable).resolve()
    boots: dict[str, bytes | str | Path] = {} if inner is None else {KERNEL: kernel(), INITRAMFS: inner}
    command = shlex.join([str(python), "-W", warnings, "-m", agent, *boots, *arguments])
    return initramfs(
        f"ulimit -n 4096; {assignments} {command} 2>&1; echo AGENT ENDED $?",
        modules=["irqbypass", "kvm", "kvm-amd"],
        files=python_files(agent, *LATER, *modules) | boots | dict(files or {}),
        programs=programs,
        append=TICKS,
    )


def host(linux: Linux, *, timeout: float, ram: int = 1 << 30) -> Qemu:
    """The machine that boots it: one CPU. ``timeout``: seconds of one wait."""
    return Qemu(linux=linux, cpu=CPU, ram=ram, timeout=timeout)


async def outcome(linux: Linux, *, timeout: float) -> tuple[list[str], dict[str, object]]:
    """Run the agent to its end: what it said, and its results, each of which is a line of JSON after the word RESULT."""
    async with host(linux, timeout=timeout) as qemu:
        await qemu.wait_for("AGENT ENDED")
        lines = qemu.console.lines
    results = [json.loads(line.removeprefix("RESULT ")) for line in lines if line.startswith("RESULT ")]
    return lines, dict(results)
