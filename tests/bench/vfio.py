"""vfio-user without a guest: what a register access costs its client, and an interrupt the device.

The server is a process of its own, as it is beside a VMM; the floor's is a thread that runs C alone. The client is C for both.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from aioirqfd import EventFd
from aioirqfd.pci import Bar, PciDevice, PciFunction, Register
from aioirqfd.vfio_user import Server
from aioirqfd.vfio_user.capabilities import Capabilities
from aioirqfd.vfio_user.messages import HEADER, REGION_ACCESS, Command, Message
from aioirqfd.vfio_user.protocol import encode
from tests.bench.loops import LOOPS, on_loops
from tests.bench.measure import Case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("vfio_floor.c")
ACCESSES = 5_000
INTERRUPTS = 20_000
REQUESTS = {
    "read": encode(Message(1, Command.REGION_READ, REGION_ACCESS.pack(0, 0, 4))),
    "write": encode(Message(1, Command.REGION_WRITE, REGION_ACCESS.pack(0, 0, 4) + bytes(4))),
}


class Plain(PciDevice):
    """One register, and one vector."""

    bars = (Bar(4096),)
    vectors = 1
    scratch = Register(0)


def _build() -> ctypes.CDLL | None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "vfio_floor.so")
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
        built = ctypes.CDLL(str(library))
    built.vfio_floor_ask.restype = ctypes.c_uint64
    return built


# -- a register access ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(loop: str) -> Iterator[socket.socket]:
    """A server in a process of its own, which the version has been agreed on with."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            command = [sys.executable, "-m", "tests.bench.vfio", loop, str(theirs.fileno())]
            server = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()])
        try:
            ours.sendall(encode(Message(0, Command.VERSION, Capabilities(max_msg_fds=16).pack())))
            assert len(ours.recv(4096)) > HEADER.size
            yield ours
            ours.shutdown(socket.SHUT_RDWR)
            assert server.wait(10) == 0
        finally:
            server.kill()
            server.wait()


@contextlib.contextmanager
def floor(library: ctypes.CDLL) -> Iterator[socket.socket]:
    """A thread that answers, and does nothing else."""
    ours, theirs = socket.socketpair()
    with theirs:
        thread = threading.Thread(target=library.vfio_floor_serve, args=(theirs.fileno(),))
        with ours:
            thread.start()
            yield ours
            ours.shutdown(socket.SHUT_RDWR)
        thread.join()


def accesses(
    library: ctypes.CDLL, request: bytes, server: Callable[[], contextlib.AbstractContextManager[socket.socket]]
) -> Callable[[], float]:
    """One access after the other, each answered before the next."""

    def run() -> float:
        with server() as sock:
            ask = library.vfio_floor_ask
            assert ask(sock.fileno(), request, len(request), ACCESSES // 10)
            took = ask(sock.fileno(), request, len(request), ACCESSES)
            assert took
            return took / ACCESSES / 1000

    return run


async def serve(fd: int) -> None:
    """Serve the one client at the other end."""
    async with Server(Plain(), sock=socket.socket(fileno=fd)) as server:
        await server.serve_forever()


# -- an interrupt --------------------------------------------------------------------------------------------------------


async def interrupt() -> float:
    """From ``device.interrupt()`` until the client's eventfd has been written to: it is one call."""
    device = Plain()
    with EventFd() as seen:
        async with PciFunction(device) as function:
            function.interrupts.bind(0, EventFd.from_fd(os.dup(seen.fileno()), owns=True))
            call = device.interrupt
            begin = time.perf_counter_ns()
            for _ in range(INTERRUPTS):
                call(0)
            took = time.perf_counter_ns() - begin
            assert os.eventfd_read(seen.fileno()) == INTERRUPTS
    return took / INTERRUPTS


def eventfd_write() -> float:
    """The write alone."""
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    write = os.eventfd_write
    begin = time.perf_counter_ns()
    for _ in range(INTERRUPTS):
        write(fd, 1)
    took = time.perf_counter_ns() - begin
    os.close(fd)
    return took / INTERRUPTS


def cases() -> list[Case]:
    """All that this machine can run."""
    found = [*on_loops("vfio interrupt/{loop}", interrupt), Case("vfio interrupt/eventfd_write", eventfd_write)]
    library = _build()
    if library is None:
        return found
    for name, request in REQUESTS.items():
        for loop in LOOPS:
            run = accesses(library, request, lambda loop=loop: served(loop))
            found.append(Case(f"vfio {name}/{loop}", run, "us"))
        found.append(Case(f"vfio {name}/C floor", accesses(library, request, lambda: floor(library)), "us"))
    return found


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=LOOPS[sys.argv[1]]) as runner:
        runner.run(serve(int(sys.argv[2])))
