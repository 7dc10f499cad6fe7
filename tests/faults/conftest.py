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
from aioirqfd.vfio_user import Server
from aioirqfd.vhost_user import Backend
from aioirqfd.virtio.features import VirtioFeature
from aioirqfd.virtio_pci import VirtioPci
from examples.vhost_user_blk import Blk, Type
from tests.vhost_user.frontend import FEATURES, FrontEnd
from tests.virtio_pci import guest

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

    def __init__(self, device, front, faults):
        self.device, self.front, self.faults = device, front, faults

    @property
    def queue(self):
        return self.front.queues[0]

    def answers(self, queue=0):
        """How many the device has given."""
        return self.device.transport.answers(queue)

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
def transport():
    """What brings the disk to its driver; a file of tests may have both."""
    return "vhost-user"


@pytest.fixture
def serve(image, tmp_path, monkeypatch, transport):
    """Serves the disk: ``async with serve(faults) as disk``."""
    monkeypatch.chdir(tmp_path)
    connected = {"vhost-user": by_vhost_user, "virtio-pci": by_virtio_pci}[transport]

    @contextlib.asynccontextmanager
    async def serve(faults=None, *, queues=1, device=None, wrapped=False):
        faults = faults or Faults(nonconforming=True)
        device = device or Blk(str(image), num_queues=queues)
        if not wrapped:
            faults.wrap(device)
        with contextlib.closing(device), contextlib.closing(faults):
            async with connected(device, queues) as front:
                yield Disk(device, front, faults)
        Path("socket").unlink(missing_ok=True)

    return serve


@contextlib.asynccontextmanager
async def by_vhost_user(device, queues):
    """A front-end with its queues running."""
    async with Backend(device, "socket") as backend, VhostUser("socket", backend) as front:
        await front.negotiate(FEATURES | device.features)
        await front.set_memory()
        for index in range(queues):
            await front.queue(index, 64).start()
            await front.queues[index].call.read()
        yield front


class VhostUser(FrontEnd):
    """A front-end, and the back-end that it drives."""

    def __init__(self, path, backend):
        super().__init__(path)
        self.backend = backend

    def requests(self, queue):
        return self.backend._vrings[queue].requests

    async def reset(self):
        await self.queues[0].stop()


@contextlib.asynccontextmanager
async def by_virtio_pci(device, queues):
    """The same for a PCI function."""
    async with Server(VirtioPci(device), "socket") as server, guest.Guest(server) as driver:
        await driver.start(queues=queues, size=64, features=PCI_FEATURES | device.features)
        yield Function(driver)


PCI_FEATURES = guest.FEATURES | VirtioFeature.RING_RESET


class Function:
    """A driver of a function, with the face of a front-end."""

    def __init__(self, driver):
        self.driver = driver
        self.queues = {queue.index: Rung(queue) for queue in driver.queues}

    def requests(self, queue):
        return self.driver.device._queues[queue].requests

    async def read(self, register):
        return await self.driver.read(register)

    async def closed(self):
        """Whether the device has been reset by itself, which the driver sees when it looks."""
        while await self.driver.read("device_status"):
            pass
        return True

    async def reset(self):
        await self.driver.write("device_status", 0)


class Rung:
    """A queue whose doorbell is rung without the device's process hearing of a write, as a VMM does it."""

    def __init__(self, queue):
        self.guest, self.index, self.driver, self.call = queue.guest, queue.index, queue.driver, queue.call
        self.answers = queue.answers

    def publish(self):
        if self.driver.kick_needed():
            self.guest.device._queues[self.index].doorbell.signal()

    def put(self, readable=(), writable=()):
        head = self.driver.request(readable, writable)
        self.publish()
        return head

    async def ask(self, readable=(), writable=()):
        self.put(readable, writable)
        (used,) = await self.answers()
        return used.data

    async def stop(self):
        """Reset the queue. Nobody asks where it is to go on."""
        await self.guest.write("queue_select", self.index)
        await self.guest.write("queue_reset", 1)
