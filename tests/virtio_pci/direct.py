"""A driver on a virtio function without a transport between them, which moves to another function with all that it has.

What a machine has beside the function moves as a VMM would move it: RAM as a copy at the same addresses, and what the function's
eventfds have told already as a count.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import struct
from typing import TYPE_CHECKING, Any, Self

from aioirqfd import EventFd
from aioirqfd.pci import PciFunction, PciFunctionState
from aioirqfd.pci.capability import MsiX
from aioirqfd.tracer import NULL_TRACER
from aioirqfd.vhost_user.driver import DriverMemory, DriverQueue
from aioirqfd.virtio.features import VirtioFeature
from aioirqfd.virtio_pci import VirtioPci
from aioirqfd.virtio_pci.function import NOTIFY, Status
from tests.virtio_pci.guest import CONFIG, DRIVER_OK, RAM, UP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aioirqfd.pci import Register
    from aioirqfd.testing import RecordingTracer
    from aioirqfd.vhost_user.driver import Used
    from aioirqfd.virtio import Device

SIZE = 1 << 20


def moved(driver: DriverQueue, ram: DriverMemory) -> DriverQueue:
    """The driver of a ring, in a copy of the memory that it is in."""
    there = copy.copy(driver)
    there.memory = ram
    desc, avail, used = there._places
    there._desc = ram.at(desc, len(driver._desc))
    there._avail = ram.at(avail, driver._avail.nbytes).cast("H")
    there._used = ram.at(used, len(driver._used))
    there._used_words = there._used.cast("H")
    return there


class Machine:
    """A function, the guest's RAM, an eventfd for each vector, and drivers of queues."""

    def __init__(
        self,
        device: Device,
        *,
        queue_size: int = 64,
        features: VirtioFeature = VirtioFeature.VERSION_1,
        tracer: RecordingTracer | None = None,
    ) -> None:
        self.device: Any = device
        self.features = features
        self.function = PciFunction(VirtioPci(device, queue_size=queue_size), tracer=tracer or NULL_TRACER)
        self.ram = DriverMemory(SIZE, guest_address=RAM, user_address=RAM)
        self.vectors = [EventFd() for _ in range(device.num_queues + 1)]
        self.pin = EventFd()
        self.drivers: list[DriverQueue] = []

    async def __aenter__(self) -> Self:
        await self.function.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.function.__aexit__(None, None, None)
        for eventfd in (*self.vectors, self.pin):
            eventfd.close()
        self.drivers.clear()
        self.ram.close()
        del self.ram

    def map(self) -> None:
        self.function.dma.map(RAM, SIZE, fd=self.ram.fileno())

    def bind(self) -> None:
        for vector, eventfd in enumerate(self.vectors):
            self.function.interrupts.bind(vector, EventFd.from_fd(os.dup(eventfd.fileno()), owns=True))

    async def read(self, name: str) -> int:
        register: Register = getattr(VirtioPci, name)
        return int.from_bytes(await self.function.read(0, register.offset, register.width), "little")

    async def write(self, name: str, value: int) -> None:
        register: Register = getattr(VirtioPci, name)
        await self.function.write(0, register.offset, value.to_bytes(register.width, "little"))

    async def negotiate(self) -> None:
        await self.write("device_status", UP)
        for select in (0, 1):
            await self.write("driver_feature_select", select)
            await self.write("driver_feature", self.features >> 32 * select & 0xFFFF_FFFF)
        await self.write("device_status", UP | Status.FEATURES_OK)

    async def queue(self, index: int, size: int = 32) -> DriverQueue:
        driver = DriverQueue(
            self.ram,
            size,
            event_idx=bool(self.features & VirtioFeature.EVENT_IDX),
            indirect=bool(self.features & VirtioFeature.INDIRECT_DESC),
        )
        address = driver.address(index)
        await self.write("queue_select", index)
        await self.write("queue_size", size)
        await self.write("queue_msix_vector", index + 1)
        await self.write("queue_desc", address.descriptor)
        await self.write("queue_driver", address.available)
        await self.write("queue_device", address.used)
        await self.write("queue_enable", 1)
        self.drivers.append(driver)
        return driver

    async def begun(self, *names: bytes) -> None:
        """Wait until a gated device has begun these requests."""
        while not set(names) <= set(self.device.gates):
            await asyncio.sleep(0)

    async def msix(self) -> None:
        place = self.function.config.find(MsiX)
        await self.function.write(CONFIG, place + 2, struct.pack("<H", 0x8000))

    async def start(self, size: int = 32) -> Self:
        """All that a driver does until its device runs."""
        self.map()
        self.bind()
        await self.msix()
        await self.negotiate()
        for index in range(self.device.num_queues):
            await self.queue(index, size)
        await self.write("device_status", DRIVER_OK)
        return self

    async def kick(self, queue: int = 0) -> None:
        await self.function.write(0, NOTIFY + 4 * queue, struct.pack("<H", queue))

    async def put(self, data: bytes, queue: int = 0, *, writable: Sequence[int] = ()) -> int:
        driver = self.drivers[queue]
        head = driver.request([data], writable or [len(data)])
        if driver.kick_needed():
            await self.kick(queue)
        return head

    async def answers(self, count: int, queue: int = 0) -> list[Used]:
        """Wait for interrupts until that many answers are there."""
        found: list[Used] = []
        async with asyncio.timeout(60):
            while True:
                found += self.drivers[queue].collect()
                if len(found) >= count:
                    return found
                if not self.drivers[queue].enable_calls():
                    await self.vectors[queue + 1].read()

    def text(self) -> str:
        """Its function's state as a file has it."""
        return json.dumps(self.function.save().to_dict())

    async def take_over(self, other: Machine, text: str) -> None:
        """Be the other machine, which stands still, and whose state this is; not resumed yet."""
        self.ram.view[:] = other.ram.view
        self.ram._top, self.ram._free = other.ram._top, {size: [*free] for size, free in other.ram._free.items()}
        self.drivers = [moved(driver, self.ram) for driver in other.drivers]
        for mine, its in zip((*self.vectors, self.pin), (*other.vectors, other.pin), strict=True):
            try:
                mine.signal(its.read_nowait())
            except BlockingIOError:
                continue
        await self.function.pause()
        await self.function.restore(PciFunctionState.from_dict(json.loads(text)))
