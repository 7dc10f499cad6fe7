"""Registers, declared in a device's class body: where, how wide, who may write, and what happens then.

What an access does is the same rule for every size and place: **each register that it touches has its turn once, from the lowest
up, with the bytes of it that were touched**. So a 4-byte write to a half of an 8-byte register changes that half, an 8-byte access to two
4-byte registers is one to each, and an unaligned one touches parts of two. Bytes that belong to no register read as the device's
``undeclared`` byte, and what is written there is dropped; both are traced, each place once.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar, final, overload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from aioirqfd.pci.device import PciDevice

_T = TypeVar("_T", bound="Callable[..., object]")
_WIDTHS: Final = (1, 2, 4, 8)
_ACCESS: Final = ("rw", "ro", "wo", "w1c")


@final
class Register:
    """A register of a :class:`~aioirqfd.pci.PciDevice`. On a device it is its value, an unsigned number.

    ::

        class Counter(PciDevice):
            bars = (Bar(4096),)
            count = Register(0x00, access="ro")
            add = Register(0x04, access="wo")

            @add.on_write
            def added(self, value: int) -> None:
                self.count += value

    Args:
        offset: Bytes from the beginning of the BAR.
        width: Bytes: 1, 2, 4 or 8.
        bar: Which BAR.
        access: What the guest may do. ``"rw"``; ``"ro"``: what it writes is dropped; ``"wo"``: it reads 0, and nothing is kept;
            ``"w1c"``: the bits that it writes as 1 are cleared.
        reset: The value after a reset.
        mask: The bits that the guest may write; None: all. The others keep their value.

    The device itself may set any of them at any time; what it sets is cut to the register's width.

    Raises:
        ValueError: A number is out of range.
    """

    __slots__ = ("access", "bar", "limit", "mask", "name", "offset", "reader", "reset", "width", "writer")

    def __init__(
        self,
        offset: int,
        width: int = 4,
        *,
        bar: int = 0,
        access: Literal["rw", "ro", "wo", "w1c"] = "rw",
        reset: int = 0,
        mask: int | None = None,
    ) -> None:
        if width not in _WIDTHS:
            raise ValueError(f"a register has 1, 2, 4 or 8 bytes, not {width}")
        if access not in _ACCESS:
            raise ValueError(f"access is one of {', '.join(_ACCESS)}, not {access!r}")
        limit = (1 << 8 * width) - 1
        if offset < 0 or not 0 <= reset <= limit or not 0 <= (limit if mask is None else mask) <= limit:
            raise ValueError(f"offset, reset value or mask of the register at {offset:#x} is out of range")
        self.offset: Final = offset
        self.width: Final = width
        self.bar: Final = bar
        self.access: Final = access
        self.reset: Final = reset
        self.limit: Final = limit
        self.mask: Final = limit if mask is None else mask
        self.name = ""
        self.writer = self.reader = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, device: None, owner: type) -> Self: ...
    @overload
    def __get__(self, device: object, owner: type) -> int: ...
    def __get__(self, device: object | None, owner: type) -> Self | int:
        if device is None:
            return self
        value: int = device.__dict__.get(self.name, self.reset)
        return value

    def __set__(self, device: object, value: int) -> None:
        device.__dict__[self.name] = value & self.limit

    def __repr__(self) -> str:
        return f"<Register {self.name} BAR {self.bar} at {self.offset:#x}, {self.width} bytes, {self.access}>"

    def on_write(self, method: _T) -> _T:
        """Decorate the method, a coroutine function or not, that is called after the guest has written.

        It is handed the register's new value; of a ``wo`` register what was written, of a ``w1c`` register the bits that were
        written as 1. A write waits for a coroutine, and so do the accesses behind it.
        """
        self.writer = method.__name__
        return method

    def on_read(self, method: _T) -> _T:
        """Decorate the method, a coroutine function or not, that returns what the guest reads; called once for each access."""
        self.reader = method.__name__
        return method

    async def read(self, device: PciDevice) -> int:
        """What the guest reads."""
        if self.reader:
            value: Any = getattr(device, self.reader)()
            if hasattr(value, "__await__"):
                value = await value
            return int(value) & self.limit
        return 0 if self.access == "wo" else self.__get__(device, type(device))

    async def write(self, device: PciDevice, written: int, lanes: int) -> bool:
        """The guest writes those bits of it that are in ``lanes``; False: it may not."""
        lanes &= self.mask
        old = self.__get__(device, type(device))
        if self.access == "rw":
            value = (old & ~lanes) | (written & lanes)
            device.__dict__[self.name] = value
        elif self.access == "wo":
            value = written & lanes
        elif self.access == "w1c":
            value = written & lanes
            device.__dict__[self.name] = old & ~value
        else:
            return False
        if self.writer:
            result: Awaitable[None] | None = getattr(device, self.writer)(value)
            if result is not None:
                await result
        return True


@final
class RegisterFile:
    """All registers of a class of devices, by BAR and offset.

    Args:
        registers: The registers.

    Raises:
        ValueError: Two of them overlap.
    """

    __slots__ = ("_bars", "_exact", "_starts")

    def __init__(self, registers: list[Register]) -> None:
        self._exact = {(one.bar, one.offset, one.width): one for one in registers}
        self._bars: dict[int, list[Register]] = {}
        for one in sorted(registers, key=lambda one: one.offset):
            others = self._bars.setdefault(one.bar, [])
            if others and others[-1].offset + others[-1].width > one.offset:
                raise ValueError(f"{one!r} overlaps {others[-1]!r}")
            others.append(one)
        self._starts = {bar: [one.offset for one in there] for bar, there in self._bars.items()}

    def __iter__(self) -> Iterator[Register]:
        return (one for there in self._bars.values() for one in there)

    def ends(self) -> dict[int, int]:
        """By BAR, where its last register ends."""
        return {bar: there[-1].offset + there[-1].width for bar, there in self._bars.items()}

    def reset(self, device: object) -> None:
        """Every register has its reset value."""
        for one in self:
            device.__dict__.pop(one.name, None)

    def _touched(self, bar: int, offset: int, size: int) -> list[Register]:
        there = self._bars.get(bar, [])
        first = bisect_right(self._starts.get(bar, []), offset) - 1
        if first >= 0 and there[first].offset + there[first].width <= offset:
            first += 1
        first = max(first, 0)
        last = first
        while last < len(there) and there[last].offset < offset + size:
            last += 1
        return there[first:last]

    async def read(self, device: PciDevice, bar: int, offset: int, size: int) -> bytes:
        """What the guest reads there."""
        exact = self._exact.get((bar, offset, size))
        if exact is not None:
            return (await exact.read(device)).to_bytes(size, "little")
        data = bytearray([device.undeclared]) * size
        covered = 0
        for one in self._touched(bar, offset, size):
            value = (await one.read(device)).to_bytes(one.width, "little")
            first, last = max(offset, one.offset), min(offset + size, one.offset + one.width)
            data[first - offset : last - offset] = value[first - one.offset : last - one.offset]
            covered += last - first
        if covered < size:
            device.trace_once("undeclared_read", bar=bar, offset=offset, size=size)
        return bytes(data)

    async def write(self, device: PciDevice, bar: int, offset: int, data: bytes) -> None:
        """The guest writes there."""
        size = len(data)
        exact = self._exact.get((bar, offset, size))
        if exact is not None:
            if not await exact.write(device, int.from_bytes(data, "little"), exact.limit):
                device.trace_once("read_only_write", bar=bar, offset=offset, size=size)
            return
        covered = 0
        for one in self._touched(bar, offset, size):
            first, last = max(offset, one.offset), min(offset + size, one.offset + one.width)
            shift = 8 * (first - one.offset)
            lanes = ((1 << 8 * (last - first)) - 1) << shift
            written = int.from_bytes(data[first - offset : last - offset], "little") << shift
            if await one.write(device, written, lanes):
                covered += last - first
        if covered < size:
            device.trace_once("undeclared_write", bar=bar, offset=offset, size=size)
