"""A server with a device that has a little of everything, and clients of it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from typing import TYPE_CHECKING

import pytest

from aioirqfd.pci import Bar, MsiX, PciDevice, PciExpress, PowerManagement, Register
from aioirqfd.testing import RecordingTracer
from aioirqfd.vfio_user import Server
from aioirqfd.vfio_user.client import Client
from aioirqfd.vfio_user.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

VECTORS = 8


class Device(PciDevice):
    """Registers, a gate that a register waits at, shared pages, and eight vectors."""

    bars = (
        Bar(4096),
        Bar(16, io=True),
        Bar(0x8000, shared=((0x2000, 0x1000), (0x4000, 0x2000))),
        Bar(4096, shared=((0, 4096),)),
    )
    intx = True
    capabilities = (PowerManagement(), PciExpress(), MsiX(VECTORS, bar=0, table=0x800, pba=0xC00))

    scratch = Register(0x00)
    gated = Register(0x08)
    fails = Register(0x10)
    ring = Register(0x18, access="wo")
    port = Register(0x00, bar=1)

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.log: list[str] = []

    @scratch.on_write
    def scratched(self, value: int) -> None:
        self.log.append(f"scratch {value}")

    @gated.on_read
    async def wait(self) -> int:
        self.log.append("waits")
        await self.gate.wait()
        return 0x600D

    @fails.on_read
    def fail(self) -> int:
        raise ZeroDivisionError("the device's own fault")

    @ring.on_write
    def rung(self, vector: int) -> None:
        self.interrupt(vector)

    def reset(self) -> None:
        self.log.append("reset")


@pytest.fixture
def tracer() -> RecordingTracer:
    return RecordingTracer()


@pytest.fixture
async def server(tmp_path, monkeypatch, tracer) -> AsyncIterator[Server]:
    monkeypatch.chdir(tmp_path)
    async with Server(Device(), "socket", tracer=tracer) as server:
        yield server


@pytest.fixture
async def client(server) -> AsyncIterator[Client]:
    async with Client("socket") as client:
        yield client


@contextlib.contextmanager
def refused(number: int = errno.EINVAL) -> Iterator[None]:
    """The server must answer with this errno."""
    with pytest.raises(RefusedError) as caught:
        yield
    assert caught.value.errno == number, f"{errno.errorcode[caught.value.errno]}: {caught.value}"


@pytest.fixture
def eventfds() -> Iterator[Callable[[int], list[int]]]:
    """Make eventfds of the client's."""
    made: list[int] = []

    def make(count: int) -> list[int]:
        fresh = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count)]
        made.extend(fresh)
        return fresh

    yield make
    for fd in made:
        os.close(fd)


def taken(fd: int) -> int:
    """How often an eventfd was signalled since the last look."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, 1 << 20)
    yield fd
    os.close(fd)
