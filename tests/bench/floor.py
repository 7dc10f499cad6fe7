"""Builds floor.c on the spot and makes cases of it; nothing where there is no compiler, no uv_poll where there is no libuv."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.measure import Case

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).with_name("floor.c")


def _build(*flags: str) -> ctypes.CDLL | None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "floor.so")
        command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), *flags]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
        return ctypes.CDLL(str(library))


@contextlib.contextmanager
def eventfds(n: int) -> Iterator[list[int]]:
    """n plain eventfds."""
    fds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(n)]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def cases(sizes: dict[int, int]) -> list[Case]:
    """One case for each number of eventfds (of so many passes) and floor."""
    found: list[Case] = []
    plain = _build()
    if plain is None:
        return found
    plain.floor_epoll.restype = ctypes.c_uint64
    uv = _build("-DWITH_LIBUV", "-luv")
    for n, passes in sizes.items():
        found.append(Case(f"external/{n}/C epoll+read", _epoll(plain, n, passes)))
        if uv is not None:
            uv.floor_uv.restype = ctypes.c_uint64
            found.append(Case(f"external/{n}/C libuv uv_poll", _uv(uv, n, passes)))
    return found


def _epoll(library: ctypes.CDLL, n: int, passes: int):
    def run() -> float:
        with eventfds(n) as fds, select.epoll() as epoll:
            for fd in fds:
                epoll.register(fd, select.EPOLLIN)
            array = (ctypes.c_int * n)(*fds)
            return statistics.median(library.floor_epoll(epoll.fileno(), array, n) for _ in range(passes)) / n

    return run


def _uv(library: ctypes.CDLL, n: int, passes: int):
    def run() -> float:
        with eventfds(n) as fds:
            return library.floor_uv((ctypes.c_int * n)(*fds), n, passes) / n / passes

    return run
