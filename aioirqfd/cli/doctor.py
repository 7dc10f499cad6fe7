"""``aioirqfd doctor``: what of this machine the package needs and finds, and what to do about the rest."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import platform
import re
import resource
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from aioirqfd.counter import IMPLEMENTATION
from aioirqfd.eventfd import EventFd
from aioirqfd.kvm import usable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Verdict = Literal["ok", "absent", "broken"]
MODULES: Final = {"aioirqfd.counter._native": "the event path", "aioirqfd.virtio.fast._native": "virtio queues"}
EXTRAS: Final = {
    "uvloop": "uvloop",
    "unicorn": "vmm",
    "argcomplete": "cli",
    "perfetto": "perfetto",
    "resvg-py": "plot",
    "prometheus-client": "prometheus",
}
"""Packages, and the extra that brings each."""
FILES: Final = 4096
KVM_CAN: Final = "irqfds, resampling, routing, MSIs, ioeventfds"
"""What :func:`aioirqfd.kvm.usable` makes sure of."""
VFIO_USER: Final = (10, 1)
_SECONDS: Final = 20


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        name: What it is.
        verdict: ``ok``; ``absent``: the package works without; ``broken``: it does not.
        found: What was seen.
        do: What to do about it, or nothing.
    """

    name: str
    verdict: Verdict
    found: str
    do: str = ""


def _python() -> Iterator[Finding]:
    yield Finding("kernel", "ok", f"Linux {platform.release()}, {platform.machine()}")
    yield Finding("python", "ok", f"{platform.python_implementation()} {platform.python_version()}")
    for module, what in MODULES.items():
        name = f"C module for {what}"
        if os.environ.get("AIOIRQFD_PURE_PYTHON", "") not in {"", "0"}:
            yield Finding(name, "absent", "AIOIRQFD_PURE_PYTHON asks for the Python twin", "unset it")
            continue
        try:
            built = importlib.import_module(module)
        except ImportError as error:
            do = "install a C compiler and Python's headers (Debian: gcc, python3-dev), and install the package again"
            yield Finding(name, "absent", f"{error}; the Python twin serves in its place", do)
        else:
            stale = _stale(str(built.__file__), str(getattr(built, "__built_from__", "")))
            if stale is not None:
                do = (
                    "build it anew: `make install` in a checkout, or `pip install --force-reinstall --no-deps aioirqfd`"
                )
                yield Finding(name, "broken", stale, do)
                continue
            yield Finding(name, "ok", f"live ({IMPLEMENTATION})" if module.startswith("aioirqfd.counter") else "live")


def _stale(file: str, built_from: str) -> str | None:
    """Why a C module does not belong to the files beside it; None: it does. Where its sources are there they count, else its twin."""
    sources, twin = built_from.split() if built_from else ("", "")
    folder = Path(file).parent
    there, patterns = (sources, ("*.c", "*.h")) if any(folder.glob("*.c")) else (twin, ("*.py",))
    files = sorted(one for pattern in patterns for one in folder.rglob(pattern))
    if hashlib.sha256(b"".join(one.read_bytes() for one in files)).hexdigest()[:16] == there:
        return None
    return f"{file} is stale: it was built from other {patterns[0]} files than those in {folder}"


def _eventfds() -> Iterator[Finding]:
    try:
        with EventFd() as one:
            number = one.id
        yield Finding("eventfd", "ok", f"works, and has an id ({number})")
    except OSError as error:
        do = "mount /proc; Linux 5.2 or later names an eventfd's id there"
        yield Finding("eventfd", "broken", str(error), do)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough: Verdict = "ok" if soft >= FILES else "absent"
    do = "" if soft >= FILES else f"an irqfd is a descriptor: `ulimit -n {hard}` in the shell before the program"
    yield Finding("open files", enough, f"{soft}, may be raised to {hard}", do)


def _kvm() -> Iterator[Finding]:
    why = usable()
    if why is None:
        yield Finding("KVM", "ok", f"/dev/kvm makes a virtual machine with an irqchip; has {KVM_CAN}")
    else:
        yield Finding(
            "KVM", "absent", why, "needed by KvmSink and aioirqfd.kvm alone; the example VMM runs on Unicorn too"
        )


def _qemu() -> Iterator[Finding]:
    # The first one is the one that runs by its name; others are there for those who name them.
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    there = [path for folder in folders if (path := shutil.which("qemu-system-x86_64", path=folder)) is not None]
    if not there:
        yield Finding("QEMU", "absent", "no qemu-system-x86_64 on the PATH", "Debian: apt-get install qemu-system-x86")
    names: dict[str, str] = {}
    for path in there:
        names.setdefault(os.path.realpath(path), path)
    for path in names.values():
        yield from _version_of(path)


def _version_of(path: str) -> Iterator[Finding]:
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=_SECONDS, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding("QEMU", "absent", f"{path} does not run: {error}", "install it anew")
        return
    version = re.search(r"version (\d+)\.(\d+)", said)
    line = said.partition("\n")[0]
    if version is not None and (int(version[1]), int(version[2])) >= VFIO_USER:
        yield Finding("QEMU", "ok", f"{line}: vhost-user and vfio-user")
    else:
        yield Finding("QEMU", "ok", f"{line}: vhost-user; vfio-user needs 10.1 or later")


def _packages() -> Iterator[Finding]:
    for package in ("structlog", "anyio"):
        yield Finding(package, "ok", metadata.version(package))
    for package, extra in EXTRAS.items():
        try:
            yield Finding(package, "ok", metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Finding(package, "absent", "not installed", f"pip install 'aioirqfd[{extra}]'")


def findings() -> list[Finding]:
    """Look at everything."""
    return [finding for look in (_python, _eventfds, _kvm, _qemu, _packages) for finding in look()]


def parser() -> argparse.ArgumentParser:
    """Its options."""
    made = argparse.ArgumentParser(
        prog="aioirqfd doctor",
        description="Look at what the package needs of this machine. The exit status is 1 where it cannot work here.",
        epilog="examples:\n  aioirqfd doctor\n  aioirqfd doctor --json | jq '.[] | select(.verdict != \"ok\")'",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--json", action="store_true", help="a list of objects: name, verdict, found, do")
    return made


def run(arguments: Sequence[str]) -> int:
    """Print what was found; 1 where the package cannot work."""
    given = parser().parse_args(arguments)
    found = findings()
    if given.json:
        print(json.dumps([finding._asdict() for finding in found], indent=2))
    else:
        width = max(len(finding.name) for finding in found)
        for finding in found:
            print(f"{finding.verdict:<7} {finding.name:<{width}}  {finding.found}")
            if finding.do:
                print(f"{'':<{width + 10}}{finding.do}")
    return int(any(finding.verdict == "broken" for finding in found))
