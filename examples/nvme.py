"""An NVMe disk for a guest, as a process of its own: ``python examples/nvme.py --socket-path nvme.sock disk.img``.

What Linux' own driver needs of NVMe 1.4, section numbers of which are given: several queues, each with an interrupt vector of its
own, PRP lists, flush, write zeroes, dataset management, abort, asynchronous events, doorbells in the driver's memory, reset and
shutdown. The data is in a file. The queues and their interrupts are :mod:`examples.nvme_controller`'s.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import struct
import sys
from pathlib import Path
from typing import Any, Final

if not __package__:  # run as a path: python examples/nvme.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from aioirqfd.errors import SnapshotError
from aioirqfd.pci import DmaError
from aioirqfd.vfio_user import main
from examples.nvme_controller import BLOCK, MAX_EVENTS, PAGE, QUEUES, Controller
from examples.nvme_queues import (
    INTERNAL_ERROR,
    INVALID_FIELD,
    INVALID_LOG,
    INVALID_NAMESPACE,
    OUT_OF_RANGE,
    Command,
    CommandError,
)

MAX_PAGES: Final = 64
"""Pages that one command may transfer: 256 KiB, which is 2**MDTS."""
ALL_NAMESPACES: Final = 0xFFFFFFFF
_PUNCH: Final = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE


class Nvme(Controller):
    """An NVMe controller with one namespace.

    Args:
        path: The file with the namespace's data; whole blocks of it are used.
        shadow: Offer the driver to ring doorbells in its own memory.
    """

    def __init__(self, path: str, *, shadow: bool = True) -> None:
        super().__init__(shadow=shadow)
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.blocks = os.fstat(self.fd).st_size // BLOCK
        self.identity = b"\x52\x54\x00" + os.fstat(self.fd).st_ino.to_bytes(8, "big")[-5:]
        """A number of the disk's own."""
        if not self.blocks:
            os.close(self.fd)
            raise ValueError(f"{path} has no whole block of {BLOCK} bytes")
        self.features: dict[int, int] = {}
        self.admin |= {
            0x02: self.get_log,
            0x06: self.identify,
            0x09: self.set_features,
            0x0A: self.get_features,
        }
        self.io |= {
            0x00: self.flush_data,
            0x01: self.write_blocks,
            0x02: self.read_blocks,
            0x08: self.write_zeroes,
            0x09: self.manage,
        }

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)

    async def shut_down(self) -> None:
        await asyncio.to_thread(os.fdatasync, self.fd)

    async def reset(self) -> None:
        self.features.clear()
        await super().reset()

    def save_state(self) -> dict[str, object]:
        own = {
            "blocks": self.blocks,
            "identity": self.identity.hex(),
            "features": [list(feature) for feature in self.features.items()],
        }
        return super().save_state() | own

    def restore_state(self, state: dict[str, Any], /) -> None:
        if state["blocks"] != self.blocks:
            raise SnapshotError(f"the disk had {state['blocks']} blocks of {BLOCK} bytes, and has {self.blocks}")
        self.identity = bytes.fromhex(state["identity"])  # the driver knows the disk by it
        self.features = dict(state["features"])
        super().restore_state(state)

    # -- data --------------------------------------------------------------------------------------------------------

    async def pages(self, command: Command, size: int) -> list[tuple[int, int]]:
        """Where a command's data is in the guest's memory: addresses and sizes, by its PRP entries (4.3)."""
        if size > MAX_PAGES * PAGE:
            raise CommandError(INVALID_FIELD)
        first = min(size, PAGE - command.prp1 % PAGE)
        found = [(command.prp1, first)]
        size -= first
        if 0 < size <= PAGE:
            found.append((command.prp2, size))
            size = 0
        table = command.prp2
        while size > 0:
            # A list ends with its page; if there is more, its last entry is where the next list begins.
            room = (PAGE - table % PAGE) // 8
            need = -(-size // PAGE)
            count = need if need <= room else room - 1
            entries = struct.unpack(
                f"<{count + (need > room)}Q", await self.dma.read(table, 8 * (count + (need > room)))
            )
            for address in entries[:count]:
                if address % PAGE:
                    raise CommandError(INVALID_FIELD)
                found.append((address, min(size, PAGE)))
                size -= PAGE
            table = entries[-1]
        return found

    async def give(self, command: Command, data: bytes, size: int) -> None:
        """Give data to the driver, as much as it has room for."""
        await self.dma.scatter(await self.pages(command, size), data[:size])

    def range(self, command: Command) -> tuple[int, int]:
        """The bytes of the file that a command is about: first one, and how many."""
        if command.namespace != 1:
            raise CommandError(INVALID_NAMESPACE)
        first, count = command.dw10 | command.dw11 << 32, (command.dw12 & 0xFFFF) + 1
        if first + count > self.blocks:
            raise CommandError(OUT_OF_RANGE)
        return first * BLOCK, count * BLOCK

    # docs: begin read
    async def read_blocks(self, command: Command) -> None:
        offset, size = self.range(command)
        places = await self.pages(command, size)
        try:
            with self.dma.views(places, writable=True) as views:
                done = os.preadv(self.fd, views, offset)
        except DmaError:  # memory without a file descriptor, or over the end of a mapping
            data = os.pread(self.fd, size, offset)
            done = await self.dma.scatter(places, data)
        if done != size:
            raise CommandError(INTERNAL_ERROR)

    # docs: end read

    async def write_blocks(self, command: Command) -> None:
        offset, size = self.range(command)
        places = await self.pages(command, size)
        try:
            with self.dma.views(places) as views:
                done = os.pwritev(self.fd, views, offset)
        except DmaError:
            done = os.pwrite(self.fd, await self.dma.gather(places), offset)
        if done != size:
            raise CommandError(INTERNAL_ERROR)
        if command.dw12 & 1 << 30:  # force unit access
            await self.flush_data(command)

    async def flush_data(self, command: Command) -> None:
        if command.namespace not in {1, ALL_NAMESPACES}:
            raise CommandError(INVALID_NAMESPACE)
        await asyncio.to_thread(os.fdatasync, self.fd)

    async def write_zeroes(self, command: Command) -> None:
        self.zero(*self.range(command))

    async def manage(self, command: Command) -> None:
        """Dataset management (6.7): blocks that the driver no longer needs."""
        if command.namespace != 1:
            raise CommandError(INVALID_NAMESPACE)
        if command.dw11 & 4:
            size = ((command.dw10 & 0xFF) + 1) * 16
            ranges = await self.dma.gather(await self.pages(command, size))
            found = [(first, count) for _, count, first in struct.iter_unpack("<IIQ", ranges)]
            if any(first + count > self.blocks for first, count in found):
                raise CommandError(OUT_OF_RANGE)
            for first, count in found:
                self.zero(first * BLOCK, count * BLOCK)

    def zero(self, offset: int, size: int) -> None:
        """Make a hole in the file, or write zeroes where it can have none."""
        punch = ctypes.CDLL(None, use_errno=True).fallocate
        if punch(self.fd, _PUNCH, ctypes.c_int64(offset), ctypes.c_int64(size)):
            for at in range(0, size, 1 << 20):
                os.pwrite(self.fd, bytes(min(1 << 20, size - at)), offset + at)

    # -- admin commands (section 5) ----------------------------------------------------------------------------------

    async def identify(self, command: Command) -> None:
        match command.dw10 & 0xFF:
            case 0x00 if command.namespace in {1, ALL_NAMESPACES}:
                data = self.namespace_data()
            case 0x01:
                data = self.controller_data()
            case 0x02:
                data = struct.pack("<I", 1) if command.namespace < 1 else b""
            case 0x03 if command.namespace == 1:
                data = bytes([1, 8, 0, 0]) + self.identity  # EUI-64
            case 0x00 | 0x03:
                raise CommandError(INVALID_NAMESPACE)
            case _:
                raise CommandError(INVALID_FIELD)
        await self.give(command, data.ljust(PAGE, b"\0"), PAGE)

    def controller_data(self) -> bytes:
        """What the controller is (5.15.2.2)."""
        data = bytearray(PAGE)
        serial, model, firmware = f"aioirqfd{self.identity.hex()}"[:20], "aioirqfd example disk", "1"
        struct.pack_into(
            "<HH20s40s8s", data, 0, self.vendor_id, 0, _text(serial, 20), _text(model, 40), _text(firmware, 8)
        )
        data[77] = MAX_PAGES.bit_length() - 1
        struct.pack_into("<HI", data, 78, 1, self.version)
        struct.pack_into("<H", data, 256, 1 << 8 if self.shadow else 0)  # doorbell buffers
        data[258:264] = bytes([3, MAX_EVENTS - 1, 2, 0, 0, 0])  # aborts, events, firmware slot 1 is read-only
        struct.pack_into("<HH", data, 266, 343, 363)  # kelvin at which it would be warm, and too hot
        data[512:514] = b"\x66\x44"  # sizes of the entries, 2**n
        struct.pack_into("<IHHBB", data, 516, 1, 1 << 2 | 1 << 3, 0, 0, 1)  # dataset management, write zeroes; a cache
        data[768 : 768 + 64] = f"nqn.2014-08.org.nvmexpress:{serial}".encode().ljust(64, b"\0")
        return bytes(data)

    def namespace_data(self) -> bytes:
        """What the namespace is (5.15.2.1)."""
        data = bytearray(PAGE)
        struct.pack_into("<QQQ", data, 0, self.blocks, self.blocks, self.blocks)
        data[33] = 0x09  # what is deallocated reads as zeroes
        data[120:128] = self.identity
        data[130] = BLOCK.bit_length() - 1
        return bytes(data)

    async def get_log(self, command: Command) -> None:
        size = ((command.dw10 >> 16) + 1) * 4
        page, offset = command.dw10 & 0xFF, command.dw12
        logs = {
            0x01: bytes(64),
            0x02: b"\0" + struct.pack("<HBBB", 300, 100, 10, 0) + bytes(506),
            0x03: b"\1" + bytes(511),
        }
        if page not in logs:
            raise CommandError(INVALID_LOG)
        await self.give(command, logs[page][offset:].ljust(size, b"\0"), size)

    async def set_features(self, command: Command) -> int:
        number = command.dw10 & 0xFF
        if number == 0x07:  # how many queues
            wanted = min(command.dw11 & 0xFFFF, command.dw11 >> 16, QUEUES - 1)
            self.features[number] = wanted | wanted << 16
            return self.features[number]
        if not 0x01 <= number <= 0x0B or number == 0x03:
            raise CommandError(INVALID_FIELD)
        self.features[number] = command.dw11
        return 0

    async def get_features(self, command: Command) -> int:
        number = command.dw10 & 0xFF
        if not 0x01 <= number <= 0x0B or number == 0x03:
            raise CommandError(INVALID_FIELD)
        defaults: dict[int, int] = {0x06: 1, 0x07: (QUEUES - 1) | (QUEUES - 1) << 16}
        return self.features.get(number, defaults.get(number, 0))


def _text(text: str, size: int) -> bytes:
    return text.encode().ljust(size)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An NVMe disk whose data is in a file.")
    parser.add_argument("image", help="the file")
    parser.add_argument("--no-shadow-doorbells", action="store_true", help="have every doorbell rung by a register")
    main(lambda chosen: Nvme(chosen.image, shadow=not chosen.no_shadow_doorbells), parser=parser)
