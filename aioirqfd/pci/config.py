"""The configuration space of a function: 256 bytes, or 4,096 with PCI Express; what the guest may write of it; its capabilities."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, final

from aioirqfd.pci.capability import Capability, MsiX, PciExpress, VendorSpecific
from aioirqfd.pci.errors import RegionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from aioirqfd.pci.bar import Bar

SIZE: Final = 256
EXTENDED_SIZE: Final = 4096
COMMAND: Final = 0x04
STATUS: Final = 0x06
BAR_0: Final = 0x10
ROM: Final = 0x30
IO_SPACE: Final = 1 << 0
"""Bit of the command register: the function answers in port space."""
MEMORY_SPACE: Final = 1 << 1
"""Bit of the command register: the function answers in memory space."""
INTX_DISABLE: Final = 1 << 10
"""Bit of the command register: the function does not use its interrupt pin."""
INTX_STATUS: Final = 1 << 3
"""Bit of the status register: the device wants its interrupt pin up."""
_CAPABILITIES: Final = 0x34
_CAPABILITY_LIST: Final = 1 << 4
_COMMAND_MASK: Final = 0x0547  # ports, memory, bus master, parity, SERR, interrupt pin off
_HEADER_END: Final = 0x40


@final
class ConfigSpace:
    """The configuration space.

    Args:
        vendor: Vendor id.
        device: Device id.
        subsystem: Vendor id and id of the subsystem.
        class_code: 24 bits: class, subclass, programming interface.
        revision: Revision id.
        bars: The BARs.
        rom: Bytes of the expansion ROM, a power of two; 0: none.
        pin: Whether there is an interrupt pin.
        capabilities: In the order of the list.

    Attributes:
        size: 256, or 4,096 with a :class:`PciExpress` capability.

    Writes go by byte: of each, the bits that may be written. Nothing that a guest writes raises.

    Raises:
        ValueError: The capabilities do not fit, or an extended one is there without :class:`PciExpress`.
    """

    def __init__(
        self,
        *,
        vendor: int,
        device: int,
        subsystem: tuple[int, int],
        class_code: int,
        revision: int,
        bars: Mapping[int, Bar],
        rom: int,
        pin: bool,
        capabilities: Sequence[Capability],
    ) -> None:
        extended = any(isinstance(one, PciExpress) for one in capabilities)
        self.size: Final = EXTENDED_SIZE if extended else SIZE
        self._data = bytearray(self.size)
        self._mask = bytearray(self.size)
        self._watchers: list[tuple[int, int, Callable[[], None]]] = []
        self._places: dict[Capability, int] = {}
        pack = struct.pack_into
        pack("<HH", self._data, 0, vendor, device)
        pack("<I", self._data, 8, class_code << 8 | revision)
        pack("<HH", self._data, 0x2C, *subsystem)
        pack("<H", self._mask, COMMAND, _COMMAND_MASK)
        self._mask[0x0C] = 0xFF  # cache line size: of no use, but the guest's to keep
        self._mask[0x3C] = 0xFF  # interrupt line: the same
        self._data[0x3D] = int(pin)
        for index, bar in bars.items():
            pack("<I", self._data, BAR_0 + 4 * index, bar.flags)
            field = struct.pack("<Q", ~(bar.size - 1) % 2**64)
            width = 8 if bar.wide else 4
            start = BAR_0 + 4 * index
            self._mask[start : start + width] = field[:width]
        if rom:
            pack("<I", self._mask, ROM, (~(rom - 1) & 0xFFFF_F800) | 1)
        self._put(capabilities, extended=extended)
        self._initial = bytes(self._data)

    def _put(self, capabilities: Sequence[Capability], *, extended: bool) -> None:
        here, link = _HEADER_END, _CAPABILITIES
        for one in capabilities:
            if one.extended:
                continue
            body = one.body()
            here = -(-here // 4) * 4
            if here + 2 + len(body) > SIZE:
                raise ValueError(f"no room for {one!r}: the capabilities have 192 bytes")
            self._data[link] = here
            self._data[here] = one.number
            self._fill(one, here, here + 2, body)
            link = here + 1
            here += 2 + len(body)
        if link != _CAPABILITIES:
            struct.pack_into("<H", self._data, STATUS, _CAPABILITY_LIST)
        here, before = SIZE, 0
        for one in capabilities:
            if not one.extended:
                continue
            body = one.body()
            here = -(-here // 4) * 4
            if not extended or here + 4 + len(body) > self.size:
                raise ValueError(f"no room for {one!r}: it needs a PciExpress capability, and room behind 0x100")
            self.put(here, one.number | one.version << 16, 4)
            if before:
                self.put(
                    before + 2, self.word(before + 2) | here << 4
                )  # the next one's place, in the upper twelve bits
            self._fill(one, here, here + 4, body)
            before = here
            here += 4 + len(body)

    def _fill(self, one: Capability, place: int, start: int, body: bytes) -> None:
        self._places[one] = place
        self._data[start : start + len(body)] = body
        mask = one.writable()
        self._mask[start : start + len(mask)] = mask
        if isinstance(one, VendorSpecific) and one.on_write is not None:
            call, length = one.on_write, len(one.data)
            self.watch(start + 1, length, lambda: call(self.read(start + 1, length)))

    def find(self, kind: type[Capability]) -> int:
        """Return where the first capability of a kind is; 0: there is none."""
        return next((place for one, place in self._places.items() if isinstance(one, kind)), 0)

    def watch(self, offset: int, size: int, call: Callable[[], None]) -> None:
        """Have something called whenever the guest has written there."""
        self._watchers.append((offset, offset + size, call))

    def reset(self) -> None:
        """As after a reset; what the firmware has put in is gone."""
        self._data[:] = self._initial

    def restore(self, data: bytes) -> None:
        """As it was saved: all that :meth:`read` gave of it, which :meth:`differs` has found to be of the same device."""
        self._data[:] = data

    def differs(self, data: bytes) -> int | None:
        """Where somebody else's configuration space, of the same size, has other ids than this one; None: nowhere."""
        ids = (*range(COMMAND), *range(0x08, 0x0C), 0x0E, *range(0x2C, 0x30), _CAPABILITIES, 0x3D)
        return next((at for at in ids if data[at] != self._initial[at]), None)

    def read(self, offset: int, size: int) -> bytes:
        """Return what is there.

        Raises:
            RegionError: It is beyond the end.
        """
        self._check(offset, size)
        return bytes(self._data[offset : offset + size])

    def word(self, offset: int, size: int = 2) -> int:
        """Return what is there, as a number."""
        return int.from_bytes(self._data[offset : offset + size], "little")

    def put(self, offset: int, value: int, size: int = 2) -> None:
        """Set what is there, whatever the guest may."""
        self._data[offset : offset + size] = value.to_bytes(size, "little")

    def write(self, offset: int, data: bytes) -> None:
        """The guest writes there.

        Raises:
            RegionError: It is beyond the end. Nothing was written.
        """
        self._check(offset, len(data))
        end = offset + len(data)
        mask = int.from_bytes(self._mask[offset:end], "little")
        kept = int.from_bytes(self._data[offset:end], "little") & ~mask
        # In one piece: another thread may be reading (PciFunction.peek_config).
        self._data[offset:end] = (kept | int.from_bytes(data, "little") & mask).to_bytes(len(data), "little")
        for start, stop, call in self._watchers:
            if start < end and offset < stop:
                call()

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise RegionError(f"{size} bytes at {offset:#x} of a configuration space of {self.size}")

    @property
    def capabilities(self) -> Mapping[Capability, int]:
        """The capabilities, and where each is; in the order of the lists."""
        return self._places

    @property
    def msix(self) -> MsiX | None:
        """The MSI-X capability, if there is one."""
        return next((one for one in self._places if isinstance(one, MsiX)), None)
