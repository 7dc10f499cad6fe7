"""PCI by qtest: configuration space through 0xcf8 and 0xcfc, BARs, capabilities, MSI-X set up by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aioirqfd.sinks.qtest_client import QtestClient

MSIX = 0x11
VENDOR_SPECIFIC = 0x09
MASK_BIT = 1
ENABLE = 1 << 15
FUNCTION_MASK = 1 << 14


@dataclass
class Pci:
    """One PCI function, the test as its driver. Found by :meth:`find`.

    Attributes:
        bars: Number of each memory BAR, and its guest physical address, once :meth:`enable` has put it somewhere.
    """

    qtest: QtestClient
    devfn: int
    bars: dict[int, int]

    next_address: ClassVar[int] = 0xE0000000

    @classmethod
    async def find(cls, qtest: QtestClient, vendor: int, device: int) -> Pci:
        """The first function of bus 0 with these ids."""
        functions = [cls(qtest, devfn, {}) for devfn in range(256)]
        # All in one go: a busy machine takes its time for each answer.
        replies = await qtest.commands(*(line for function in functions for line in (function._select(0), "inl 0xcfc")))
        for function, reply in zip(functions, replies[1::2], strict=True):
            if int(reply, 16) == vendor | device << 16:
                return function
        raise LookupError(f"no PCI function {vendor:04x}:{device:04x}")

    async def read(self, offset: int, size: int) -> int:
        """1, 2 or 4 bytes of configuration space."""
        _, reply = await self.qtest.commands(self._select(offset), f"in{'?bw?l'[size]} {0xCFC + offset % 4:#x}")
        return int(reply, 16)

    async def write(self, offset: int, value: int, size: int) -> None:
        await self.qtest.commands(self._select(offset), f"out{'?bw?l'[size]} {0xCFC + offset % 4:#x} {value:#x}")

    def _select(self, offset: int) -> str:
        return f"outl 0xcf8 {1 << 31 | self.devfn << 8 | offset & ~3:#x}"

    async def enable(self, base: int = 0xE0000000) -> None:
        """Size the memory BARs, put them at ``base`` and after it, and switch on memory and bus mastering."""
        number = 0
        while number < 6:
            register = 0x10 + 4 * number
            await self.write(register, 0xFFFFFFFF, 4)
            low = await self.read(register, 4)
            if low == 0 or low & 1:
                number += 1
                continue
            mask = low & ~0xF
            wide = low & 4
            if wide:
                await self.write(register + 4, 0xFFFFFFFF, 4)
                mask |= await self.read(register + 4, 4) << 32
                size = (~mask & (1 << 64) - 1) + 1
            else:
                size = (~mask & 0xFFFFFFFF) + 1
            base = (base + size - 1) & ~(size - 1)
            await self.write(register, base, 4)
            if wide:
                await self.write(register + 4, 0, 4)
            self.bars[number] = base
            base += size
            number += 2 if wide else 1
        await self.write(0x04, 0x6, 2)

    async def capabilities(self) -> list[tuple[int, int]]:
        """Id and offset of each, in the order of the list."""
        found: list[tuple[int, int]] = []
        offset = await self.read(0x34, 1)
        while offset:
            found.append((await self.read(offset, 1), offset))
            offset = await self.read(offset + 1, 1)
        return found

    async def msix(self) -> MsixDevice:
        """Its MSI-X, switched on; every vector is masked as after reset."""
        offset = next(offset for number, offset in await self.capabilities() if number == MSIX)
        control = await self.read(offset + 2, 2)
        table = await self.read(offset + 4, 4)
        pba = await self.read(offset + 8, 4)
        await self.write(offset + 2, control | ENABLE, 2)
        return MsixDevice(
            self,
            offset,
            (control & 0x7FF) + 1,
            self.bars[table & 7] + (table & ~7),
            self.bars[pba & 7] + (pba & ~7),
        )


@dataclass
class MsixDevice:
    """The MSI-X table and the pending bits of a function."""

    pci: Pci
    capability: int
    vectors: int
    table: int
    pba: int

    async def point(self, vector: int, address: int, data: int, *, masked: bool = False) -> None:
        """Where a vector's message goes: guest memory will do as well as an interrupt controller."""
        await self.pci.qtest.commands(*self._entry(vector, address, data, masked=masked))

    def _entry(self, vector: int, address: int, data: int, *, masked: bool) -> Iterator[str]:
        base = self.table + 16 * vector
        yield f"writel {base + 12:#x} {MASK_BIT:#x}"
        yield f"writel {base:#x} {address & 0xFFFFFFFF:#x}"
        yield f"writel {base + 4:#x} {address >> 32:#x}"
        yield f"writel {base + 8:#x} {data:#x}"
        if not masked:
            yield f"writel {base + 12:#x} 0"

    async def mask(self, vector: int) -> None:
        await self.pci.qtest.command(f"writel {self.table + 16 * vector + 12:#x} {MASK_BIT:#x}")

    async def unmask(self, vector: int) -> None:
        await self.pci.qtest.command(f"writel {self.table + 16 * vector + 12:#x} 0")

    async def pending(self) -> int:
        """The first 64 pending bits."""
        return int(await self.pci.qtest.command(f"readq {self.pba:#x}"), 16)
