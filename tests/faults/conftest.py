"""A disk with faults and a driver for it, and a clock that goes when it is told."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import struct
from pathlib import Path

import pytest

from aioirqfd.faults import Faults
from aioirqfd.vhost_user import Backend
from examples.vhost_user_blk import Blk, Type
from tests.vhost_user.frontend import FEATURES, FrontEnd

SECTORS = 64


class FakeClock:
    """A clock that goes when it is told."""

    def __init__(self):
        self.now = 0.0
        self._calls = []
        self._order = itertools.count()

    def time(self):
        return self.now

    def call_later(self, delay, callback):
        timer = FakeTimer(callback)
        heapq.heappush(self._calls, (self.now + delay, next(self._order), timer))
        return timer

    def advance(self, seconds):
        end = self.now + seconds
        while self._calls and self._calls[0][0] <= end:
            self.now, _, timer = heapq.heappop(self._calls)
            timer.come()
        self.now = end


class FakeTimer:
    def __init__(self, callback):
        self._callback = callback

    def cancel(self):
        self._callback = None

    def come(self):
        if self._callback is not None:
            self._callback()


class Disk:
    """The disk, its driver's side, and its faults."""

    def __init__(self, device, backend, front, faults):
        self.device, self.backend, self.front, self.faults = device, backend, front, faults

    @property
    def queue(self):
        return self.front.queues[0]

    def put(self, kind="read", sector=0, data=b"", queue=0):
        header = struct.pack("<IIQ", {"read": Type.IN, "write": Type.OUT, "flush": Type.FLUSH}[kind], 0, sector)
        readable = [header, data or b"w" * 512] if kind == "write" else [header]
        return self.front.queues[queue].put(readable, [512, 1] if kind == "read" else [1])

    async def ask(self, kind="read", sector=0, data=b"", queue=0):
        """A request: its data, and its status."""
        driver = self.front.queues[queue].driver
        # A request that has failed gives no byte but the status, which lies behind a gap.
        status, _ = driver._sent[self.put(kind, sector, data, queue)].writable[-1]
        (used,) = await self.front.queues[queue].answers()
        return used.data[:-1], driver.memory.at(status, 1)[0]


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(os.urandom(SECTORS * 512))
    return path


@pytest.fixture
def serve(image, tmp_path, monkeypatch):
    """Serves the disk: ``async with serve(faults) as disk``."""
    monkeypatch.chdir(tmp_path)

    @contextlib.asynccontextmanager
    async def serve(faults=None, *, queues=1, device=None):
        faults = faults or Faults(nonconforming=True)
        device = device or Blk(str(image), num_queues=queues)
        faults.wrap(device)
        with contextlib.closing(device), contextlib.closing(faults):
            async with Backend(device, "socket") as backend, FrontEnd("socket") as front:
                await front.negotiate(FEATURES | device.features)
                await front.set_memory()
                for index in range(queues):
                    await front.queue(index, 64).start()
                    await front.queues[index].call.read()
                yield Disk(device, backend, front, faults)
        Path("socket").unlink(missing_ok=True)

    return serve
