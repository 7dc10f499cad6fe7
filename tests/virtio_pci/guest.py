"""A guest's driver of a virtio-pci function, over a vfio-user client: it reads and writes registers, and has rings in memory that it has mapped."""

from __future__ import annotations

import asyncio
import os
import struct
from typing import TYPE_CHECKING, Self

from aioirqfd import EventFd
from aioirqfd.vfio_user import messages
from aioirqfd.vfio_user.client import Client
from aioirqfd.vfio_user.messages import Command, Irq
from aioirqfd.vhost_user.driver import DriverMemory, DriverQueue
from aioirqfd.virtio.features import VirtioFeature
from aioirqfd.virtio_pci import VirtioPci
from aioirqfd.virtio_pci.capability import ConfigAccess
from aioirqfd.virtio_pci.function import NOTIFY, Status

if TYPE_CHECKING:
    from aioirqfd.pci import Register
    from aioirqfd.vfio_user import Server
    from aioirqfd.vhost_user.driver import Used

RAM = 0x4000_0000
CONFIG = 7
FEATURES = VirtioFeature.VERSION_1 | VirtioFeature.EVENT_IDX | VirtioFeature.INDIRECT_DESC
UP = Status.ACKNOWLEDGE | Status.DRIVER
DRIVER_OK = UP | Status.FEATURES_OK | Status.DRIVER_OK
NO_VECTOR = 0xFFFF


class Queue:
    """One queue, whose interrupt is an eventfd."""

    def __init__(self, guest: Guest, index: int, driver: DriverQueue) -> None:
        self.guest = guest
        self.index = index
        self.driver = driver
        self.kicks = self.calls = 0
        self.call = guest.vectors[index + 1]

    async def kick(self) -> None:
        """A write of the driver's to the queue's doorbell."""
        self.kicks += 1
        await self.guest.client.write(0, NOTIFY + 4 * self.index, struct.pack("<H", self.index))

    async def put(self, readable=(), writable=()) -> int:
        head = self.driver.request(readable, writable)
        if self.driver.kick_needed():
            await self.kick()
        return head

    async def answers(self, count: int = 1) -> list[Used]:
        """Wait for interrupts until that many answers are there."""
        found: list[Used] = []
        async with asyncio.timeout(60):
            while True:
                found += self.driver.collect()
                if len(found) >= count:
                    return found
                if not self.driver.enable_calls():
                    self.calls += await self.call.read()

    async def ask(self, readable=(), writable=()) -> bytes:
        """One request, its interrupt, and its answer."""
        self.driver.enable_calls()
        await self.put(readable, writable)
        async with asyncio.timeout(60):
            self.calls += await self.call.read()
        (used,) = self.driver.collect()
        return used.data


class Guest:
    """A connection to a server, RAM at an address that is not 0, and the eventfds of all vectors."""

    def __init__(self, server: Server, *, ram: int = 1 << 20) -> None:
        self.server = server
        self.device: VirtioPci = server.device  # type: ignore[assignment]
        self.client = Client("socket")
        self.ram = DriverMemory(ram, guest_address=RAM, user_address=RAM)
        self.vectors = [EventFd() for _ in range(self.device.vectors)]
        self.pin = EventFd()
        self.queues: list[Queue] = []

    async def __aenter__(self) -> Self:
        await self.client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.__aexit__()
        for eventfd in (*self.vectors, self.pin):
            eventfd.close()
        self.queues.clear()
        self.ram.close()
        del self.ram

    async def read(self, name: str) -> int:
        """Read a register of the common configuration."""
        register: Register = getattr(VirtioPci, name)
        return int.from_bytes(await self.client.read(0, register.offset, register.width), "little")

    async def write(self, name: str, value: int) -> None:
        register: Register = getattr(VirtioPci, name)
        await self.client.write(0, register.offset, value.to_bytes(register.width, "little"))

    async def config(self, offset: int, size: int) -> int:
        return int.from_bytes(await self.client.read(CONFIG, offset, size), "little")

    async def capabilities(self) -> dict[int, list[tuple[int, bytes]]]:
        """By id, where each capability is, and its bytes up to the next one's."""
        found: dict[int, list[tuple[int, bytes]]] = {}
        space = await self.client.read(CONFIG, 0, 256)
        place = space[0x34]
        while place:
            found.setdefault(space[place], []).append((place, space[place : place + 24]))
            place = space[place + 1]
        return found

    async def msix(self, *, enabled: bool) -> None:
        """What a VMM does when its guest enables MSI-X, or disables it."""
        place = (await self.capabilities())[0x11][0][0]
        await self.client.write(CONFIG, place + 2, struct.pack("<H", 0x8000 if enabled else 0))
        if enabled:
            fds = [eventfd.fileno() for eventfd in self.vectors]
            for start in range(0, len(fds), 16):
                await self.client.bind(Irq.MSIX, start, fds[start : start + 16])
        else:
            await self.client.set_irqs(0x21, Irq.MSIX, 0, 0)

    async def intx(self) -> None:
        """What it does where the guest has neither."""
        await self.client.bind(Irq.INTX, 0, [self.pin.fileno()])

    async def end_of_interrupt(self) -> None:
        await self.client.set_irqs(0x11, Irq.INTX, 0, 1)

    async def map(self) -> None:
        await self.client.map(RAM, self.ram.region.size, fd=self.ram.fileno())

    async def unmap(self) -> None:
        await self.client.unmap(RAM, self.ram.region.size)

    async def negotiate(self, features: int = FEATURES) -> int:
        """From a reset to FEATURES_OK; what is not offered is left out."""
        await self.write("device_status", 0)
        await self.write("device_status", UP)
        agreed = 0
        for select in (0, 1):
            await self.write("device_feature_select", select)
            await self.write("driver_feature_select", select)
            half = await self.read("device_feature") & (features >> 32 * select)
            await self.write("driver_feature", half & 0xFFFF_FFFF)
            agreed |= half << 32 * select
        await self.write("device_status", UP | Status.FEATURES_OK)
        return agreed

    async def queue(
        self, index: int = 0, size: int = 16, *, features: int = FEATURES, vector: int | None = None
    ) -> Queue:
        """Set one up, and enable it."""
        driver = DriverQueue(self.ram, size, event_idx=bool(features & VirtioFeature.EVENT_IDX))
        address = driver.address(index)
        await self.write("queue_select", index)
        await self.write("queue_size", size)
        await self.write("queue_msix_vector", index + 1 if vector is None else vector)
        await self.write("queue_desc", address.descriptor)
        await self.write("queue_driver", address.available)
        await self.write("queue_device", address.used)
        await self.write("queue_enable", 1)
        queue = Queue(self, index, driver)
        self.queues.append(queue)
        return queue

    async def start(self, *, queues: int = 1, size: int = 16, features: int = FEATURES, msix: bool = True) -> Queue:
        """All that a driver does until its device runs; the first queue."""
        if not len(self.server.function.dma):
            await self.map()
        if msix:
            await self.msix(enabled=True)
        else:
            await self.intx()
        agreed = await self.negotiate(features)
        await self.write("config_msix_vector", 0)
        made = [await self.queue(index, size, features=agreed) for index in range(queues)]
        await self.write("device_status", DRIVER_OK)
        return made[0]

    async def window(self, bar: int, offset: int, size: int) -> int:
        """Choose what the window in the configuration space shows; where its data is."""
        place = next(place for place, data in (await self.capabilities())[9] if data[3] == 5)
        await self.client.write(CONFIG, place + ConfigAccess.BAR, bytes([bar]))
        await self.client.write(CONFIG, place + ConfigAccess.OFFSET, struct.pack("<I", offset))
        await self.client.write(CONFIG, place + ConfigAccess.SIZE, struct.pack("<I", size))
        return place + ConfigAccess.DATA

    async def doorbells(self) -> list[tuple[int, int]]:
        """Address and length of each, as a client is told; their eventfds are closed again."""
        reply = await self.client.ask(Command.DEVICE_GET_REGION_IO_FDS, struct.pack("<IIII", 65536, 0, 0, 0))
        for fd in reply.fds:
            os.close(fd)
        count = struct.unpack_from("<IIII", reply.data)[3]
        bells = [messages.IOEVENTFD.unpack_from(reply.data, 16 + 40 * number) for number in range(count)]
        return [(bell[0], bell[1]) for bell in bells]
