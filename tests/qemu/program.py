"""Which QEMU the tests run: the program that AIOIRQFD_QEMU names, else the installed one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache

import pytest

VARIABLE = "AIOIRQFD_QEMU"
CHOSEN = os.environ.get(VARIABLE)
PROGRAM = CHOSEN or "qemu-system-x86_64"
PACKAGES = "qemu-system-x86 qemu-utils linux-image-cloud-amd64 busybox-static e2fsprogs pciutils socat acpica-tools"
"""What Debian calls what these tests need."""


def path() -> str | None:
    """Where it is; None if there is none. One that was chosen has to be there."""
    found = shutil.which(PROGRAM)
    if CHOSEN and found is None:
        raise FileNotFoundError(f"{VARIABLE}={CHOSEN}: no such program; tests/qemu/fetch.sh gets one")
    return found


@cache
def version() -> tuple[int, ...]:
    """Of QEMU, such as (7, 2, 22)."""
    said = subprocess.run([PROGRAM, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.match(r"QEMU emulator version ([\d.]+)", said)
    assert found is not None, said
    return tuple(map(int, found[1].split(".")))


def need(least: tuple[int, ...], what: str) -> None:
    """Skip the test where QEMU is too old for it, and say how to get a newer one."""
    if version() < least:
        numbers = ".".join(map(str, least))
        pytest.skip(f"needs QEMU: {numbers} or later for {what}; tests/qemu/fetch.sh trixie-backports gets one")


def reconnect() -> str:
    """The option of a socket that is connected to anew a second after the other side has gone."""
    return "reconnect-ms=1000" if version() >= (9, 2) else "reconnect=1"
