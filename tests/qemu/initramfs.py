"""Debian's kernel with an initramfs made on the spot, for a :class:`tests.qemu.harness.Qemu`."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aioirqfd.testing.initramfs import BUSYBOX, debian_kernel, libraries
from aioirqfd.testing.initramfs import initramfs as archive_of
from tests.qemu.program import PACKAGES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    need(any(Path("/boot").glob("vmlinuz-*-cloud-amd64")), "/boot/vmlinuz-*-cloud-amd64")
    return debian_kernel()


def initramfs(
    init: str,
    *,
    modules: Sequence[str] = (),
    files: Mapping[str, bytes | str | Path] | None = None,
    programs: Sequence[str | Path] = (),
    append: str = "",
) -> Linux:
    """A Linux to boot, as :func:`aioirqfd.testing.initramfs.initramfs` makes it; ``append``: more of its command line."""
    need(BUSYBOX.exists(), str(BUSYBOX))
    data = archive_of(init, kernel=kernel(), modules=modules, files=files, programs=programs)
    return Linux(kernel(), data, f"{APPEND} {append}".strip())


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
