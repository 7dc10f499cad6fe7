"""Debian's kernel with an initramfs made on the spot: busybox, an init script, kernel modules, and what else a test needs."""

from __future__ import annotations

import gzip
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.qemu.program import PACKAGES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# no_timer_check: on a busy host Linux may find that the emulated timer does not tick, and panic.
APPEND = "console=ttyS0 no_timer_check noirqdebug quiet panic=-1 tsc=unstable"
# What is loaded by then, and its byte code where there is some.
LIST_MODULES = """
import encodings.ascii, encodings.latin_1, importlib, os, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
for module in list(sys.modules.values()):
    for path in (getattr(module, "__file__", None), getattr(module, "__cached__", None)):
        if path and os.path.isfile(path):
            print(path)
"""
LARGE = 8 << 20
"""Bytes from which an archive is not compressed."""
DIRECTORIES = ("bin", "dev", "etc", "lib", "lib64", "mnt", "proc", "root", "run", "sys", "tmp", "usr", "usr/bin")
PRELUDE = """#!/bin/busybox sh
export PATH=/bin:/usr/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
for module in $(cat /etc/modules); do insmod $module || echo "insmod $module failed"; done
"""


@dataclass(frozen=True)
class Linux:
    """What a :class:`tests.qemu.harness.Qemu` boots."""

    kernel: Path
    initrd: bytes
    append: str


def need(what: object, name: str) -> None:
    """Skip the test, and say how to get what it lacks."""
    if not what:
        pytest.skip(f"needs QEMU: no {name}; on Debian: apt-get install {PACKAGES}")


@cache
def kernel() -> Path:
    """The newest of Debian's cloud kernels that has its modules here too."""
    kernels = [path for path in Path("/boot").glob("vmlinuz-*-cloud-amd64") if modules_directory(path).is_dir()]
    need(kernels, "/boot/vmlinuz-*-cloud-amd64")
    return max(kernels, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])


def modules_directory(path: Path) -> Path:
    return Path("/lib/modules") / path.name.removeprefix("vmlinuz-")


def module_paths(names: Iterable[str]) -> list[Path]:
    """The files of kernel modules and of what they depend on, in the order they are to be loaded."""
    root = modules_directory(kernel())
    files: dict[str, tuple[Path, list[Path]]] = {}
    for line in (root / "modules.dep").read_text().splitlines():
        module, _, needs = line.partition(":")
        files[module_name(Path(module))] = (root / module, [root / other for other in needs.split()])
    builtin = {module_name(Path(line)) for line in (root / "modules.builtin").read_text().splitlines()}
    wanted: dict[Path, None] = {}
    for name in names:
        key = name.replace("-", "_")
        if key in builtin:
            continue
        path, needs = files[key]
        for other in (*reversed(needs), path):
            wanted.setdefault(other)
    return list(wanted)


def module_name(path: Path) -> str:
    return path.name.split(".")[0].replace("-", "_")


def libraries(program: Path) -> list[Path]:
    """The shared libraries of a program, and its loader."""
    listing = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", listing)]


def initramfs(
    init: str,
    *,
    modules: Sequence[str] = (),
    files: Mapping[str, bytes | str | Path] | None = None,
    programs: Sequence[str | Path] = (),
    append: str = "",
) -> Linux:
    """A Linux to boot: busybox and what is asked for, the script as its init, on the serial console.

    Args:
        init: Shell (busybox) after the file systems are mounted and the modules loaded; the machine powers off at its end.
        modules: Kernel modules by name; what they depend on comes along. What is built in is no error.
        files: More files: the path inside (without its leading slash), and the contents, or the path of a file here. What is
            in bin/ or begins with #! may be run.
        programs: Programs from here, with their shared libraries, at the same place.
        append: More of the kernel's command line.
    """
    busybox = Path("/bin/busybox")
    need(busybox.exists(), "/bin/busybox")
    contents: dict[str, bytes | Path] = {"bin/busybox": busybox}
    order: list[str] = []
    for path in module_paths(modules):
        contents[f"lib/modules/{path.name}"] = path
        order.append(f"/lib/modules/{path.name}")
    contents["etc/modules"] = "\n".join(order).encode()
    contents["init"] = f"{PRELUDE}{init}\npoweroff -f\n".encode()
    for program in map(Path, programs):
        for path in (program, *libraries(program)):
            contents[str(path).lstrip("/")] = path
    for name, value in (files or {}).items():
        contents[name.lstrip("/")] = value.encode() if isinstance(value, str) else value
    data = archive(contents)
    # The guest reads a large one faster than it unpacks it.
    return Linux(kernel(), gzip.compress(data, 1) if len(data) < LARGE else data, f"{APPEND} {append}".strip())


def archive(contents: Mapping[str, bytes | Path]) -> bytes:
    """A cpio archive in the "newc" format that the kernel unpacks. A file from here keeps its time."""
    parents = {str(parent) for name in contents for parent in Path(name).parents if str(parent) != "."}
    parts = [entry(name, 0o040755, b"") for name in sorted(parents | set(DIRECTORIES))]
    # init's console, before anything is mounted.
    parts.append(entry("dev/console", 0o020600, b"", rdev=(5, 1)))
    for name, source in contents.items():
        data = source.read_bytes() if isinstance(source, Path) else source
        time = int(source.stat().st_mtime) if isinstance(source, Path) else 0
        runs = "bin/" in name or data[:2] in {b"#!", b"\x7fE"}
        parts.append(entry(name, 0o100755 if runs else 0o100644, data, time=time))
    parts.append(entry("TRAILER!!!", 0, b""))
    return b"".join(parts)


def entry(name: str, mode: int, data: bytes, *, rdev: tuple[int, int] = (0, 0), time: int = 0) -> bytes:
    """One file: the magic, 13 numbers of 8 hex digits, the name, the contents; both parts padded to 4 bytes."""
    path = name.encode() + b"\0"
    numbers = (0, mode, 0, 0, 1, time, len(data), 0, 0, *rdev, len(path), 0)
    head = b"070701" + b"".join(b"%08x" % number for number in numbers) + path
    return pad(head) + pad(data)


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def python_files(*modules: str) -> dict[str, Path]:
    """This very Python for :func:`initramfs`: the interpreter, and what these modules import, at the same places as here.

    Args:
        modules: Names; what they import only when they are called has to be named too.
    """
    program = Path(sys.executable).resolve()
    listing = subprocess.run(
        [sys.executable, "-c", LIST_MODULES, *modules],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(python_path())},
    ).stdout
    files = {program, *map(Path, listing.splitlines())}
    for path in [path for path in files if ".so" in path.suffixes or path == program]:
        files.update(libraries(path))
    return {str(path): path for path in files}


def python_path() -> list[str]:
    """Where Python finds what the tests import, here and in the guest."""
    return [str(Path(__file__).parents[2]), *(path for path in sys.path if path.endswith("-packages"))]


assert platform.machine() == "x86_64", "the guest is Debian's amd64"
