"""A virtio driver over qtest: the modern PCI transport (virtio 1.2, section 4.1), the rings in QEMU's shared RAM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aioirqfd.vhost_user.driver import USER_BASE, DriverMemory, DriverQueue
from aioirqfd.vhost_user.messages import MemoryRegion
from aioirqfd.virtio.features import VirtioFeature
from tests.qemu import program
from tests.qemu.pci import VENDOR_SPECIFIC, Pci

if TYPE_CHECKING:
    from tests.qemu.harness import Qemu
    from tests.qemu.pci import MsixDevice

VENDOR = 0x1AF4
COMMON, NOTIFY = 1, 2
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8
NO_VECTOR = 0xFFFF
RINGS = 1 << 20
"""Where in the guest's memory the rings and buffers are: above what a firmware uses."""


def guest_memory(qemu: Qemu, start: int = RINGS, size: int = 1 << 20) -> DriverMemory:
    """A piece of QEMU's RAM that driver queues can be put into."""
    memory = DriverMemory.__new__(DriverMemory)
    memory._fd = -1
    memory._free = {}
    memory._top = 0
    memory.region = MemoryRegion(start, size, USER_BASE, 0)
    memory.view = memoryview(qemu.ram)[start : start + size]
    return memory


class VirtioPci:
    """One device, from reset to DRIVER_OK. Each queue's interrupt is a word of RAM, ``qemu.ram[word : word + 4]``."""

    pci: Pci
    msix: MsixDevice

    def __init__(self, qemu: Qemu) -> None:
        self.qemu = qemu
        self.memory = guest_memory(qemu)
        self.structures: dict[int, int] = {}
        self.notify_multiplier = 0
        self.features = VirtioFeature(0)
        self.queues: dict[int, DriverQueue] = {}
        self.notify: dict[int, int] = {}
        self.words: dict[int, int] = {}

    async def find(self, device: int) -> None:
        self.pci = await Pci.find(self.qemu.qtest, VENDOR, device)
        await self.pci.enable()
        self.msix = await self.pci.msix()
        for number, at in await self.pci.capabilities():
            if number == VENDOR_SPECIFIC:
                kind = await self.pci.read(at + 3, 1)
                bar = await self.pci.read(at + 4, 1)
                if bar in self.pci.bars:
                    self.structures.setdefault(kind, self.pci.bars[bar] + await self.pci.read(at + 8, 4))
                if kind == NOTIFY:
                    self.notify_multiplier = await self.pci.read(at + 16, 4)

    async def read(self, offset: int, size: int) -> int:
        letter = "?bw?l"[size]
        return int(await self.qemu.qtest.command(f"read{letter} {self.structures[COMMON] + offset:#x}"), 16)

    async def write(self, offset: int, value: int, size: int) -> None:
        if size == 8:
            await self.write(offset, value & 0xFFFFFFFF, 4)
            await self.write(offset + 4, value >> 32, 4)
            return
        letter = "?bw?l"[size]
        await self.qemu.qtest.command(f"write{letter} {self.structures[COMMON] + offset:#x} {value:#x}")

    async def begin(self, features: int) -> None:
        """Reset, and agree on features."""
        await self.write(0x14, 0, 1)
        await self.write(0x14, ACKNOWLEDGE | DRIVER, 1)
        offered = 0
        for half in range(2):
            await self.write(0x00, half, 4)
            offered |= await self.read(0x04, 4) << 32 * half
        self.features = VirtioFeature(offered & features)
        for half in range(2):
            await self.write(0x08, half, 4)
            await self.write(0x0C, int(self.features) >> 32 * half & 0xFFFFFFFF, 4)
        await self.write(0x14, ACKNOWLEDGE | DRIVER | FEATURES_OK, 1)
        assert await self.read(0x14, 1) & FEATURES_OK
        await self.write(0x10, NO_VECTOR, 2)

    async def queue(self, index: int, size: int) -> DriverQueue:
        """Set a queue up, of this size or the largest that the device takes: vector ``index + 1`` is its interrupt."""
        await self.write(0x16, index, 2)
        # QEMU's source of randomness says that 4 is the most. QEMU 10.0 took more all the same; QEMU 11 gives the device up.
        if program.version() >= (10, 1):
            size = min(size, await self.read(0x18, 2))
        driver = DriverQueue(self.memory, size, event_idx=VirtioFeature.EVENT_IDX in self.features)
        desc, avail, used = driver._places
        await self.write(0x18, size, 2)
        await self.write(0x1A, index + 1, 2)
        assert await self.read(0x1A, 2) == index + 1
        for offset, place in ((0x20, desc), (0x28, avail), (0x30, used)):
            await self.write(offset, place, 8)
        self.notify[index] = self.structures[NOTIFY] + await self.read(0x1E, 2) * self.notify_multiplier
        self.words[index] = word = self.memory.allocate(16)
        self.qemu.ram[word] = 0  # it may have been a request's
        await self.msix.point(index + 1, word, 0x51 + index)
        await self.write(0x1C, 1, 2)
        self.queues[index] = driver
        return driver

    async def go(self) -> None:
        await self.write(0x14, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK, 1)

    async def stop(self) -> None:
        """Reset: the back-end's rings are stopped when this returns."""
        await self.write(0x14, 0, 1)

    def kick(self, index: int) -> str:
        """The qtest command that notifies a queue."""
        return f"writew {self.notify[index]:#x} {index}"

    def interrupted(self, index: int = 0) -> bool:
        """Whether the queue's interrupt has come since this last said so."""
        word = self.words[index]
        if self.qemu.ram[word] == 0:
            return False
        assert self.qemu.ram[word] == 0x51 + index
        self.qemu.ram[word] = 0
        return True
