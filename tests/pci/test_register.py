"""Registers by declaration: which of them an access touches, what may be written, what is called, and in which order."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioirqfd.pci import Bar, PciDevice, PciFunction, RegionError, Register


class Log(PciDevice):
    """One register of each kind, and everything that was called."""

    bars = (Bar(4096), None, Bar(16, io=True))

    plain = Register(0x00, reset=0x11223344)
    fixed = Register(0x04, access="ro", reset=0x55667788)
    orders = Register(0x08, access="wo")
    causes = Register(0x0C, access="w1c", reset=0xFF)
    wide = Register(0x10, 8)
    masked = Register(0x18, 2, reset=0xA00A, mask=0x0FF0)
    byte = Register(0x1B, 1, reset=0x99)
    port = Register(0x00, 1, bar=2)

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.gate: asyncio.Event | None = None

    @plain.on_write
    def plain_written(self, value: int) -> None:
        self.calls.append(("plain", value))

    @orders.on_write
    async def ordered(self, value: int) -> None:
        if self.gate is not None:
            await self.gate.wait()
        self.calls.append(("orders", value))

    @causes.on_write
    def cleared(self, value: int) -> None:
        self.calls.append(("causes", value))

    @wide.on_write
    def wide_written(self, value: int) -> None:
        self.calls.append(("wide", value))

    @byte.on_read
    async def counted(self) -> int:
        self.byte += 1
        return self.byte


def number(value: int, size: int = 4) -> bytes:
    return value.to_bytes(size, "little")


async def test_an_access_of_the_registers_own_size(tracer):
    async with PciFunction(Log(), tracer=tracer) as function:
        log = function.device
        assert await function.read(0, 0x00, 4) == number(0x11223344)
        await function.write(0, 0x00, number(0xCAFE))
        assert (log.plain, log.calls) == (0xCAFE, [("plain", 0xCAFE)])
        assert await function.read(0, 0x00, 4) == number(0xCAFE)
    assert tracer.events == []


async def test_who_may_write_what(tracer):
    async with PciFunction(Log(), tracer=tracer) as function:
        log = function.device
        await function.write(0, 0x04, number(1))
        assert await function.read(0, 0x04, 4) == number(0x55667788)
        await function.write(0, 0x08, number(7))
        assert await function.read(0, 0x08, 4) == number(0)
        await function.write(0, 0x0C, number(0x10F))
        assert await function.read(0, 0x0C, 4) == number(0xF0)
        await function.write(0, 0x18, number(0xFFFF, 2))
        assert await function.read(0, 0x18, 2) == number(0xAFFA, 2)
        assert log.calls == [("orders", 7), ("causes", 0x10F)]
    assert tracer.events == [("read_only_write", {"device": "Log", "bar": 0, "offset": 4, "size": 4})]


async def test_a_part_of_a_register_changes_that_part():
    async with PciFunction(Log()) as function:
        log = function.device
        await function.write(0, 0x14, number(0xAABBCCDD))
        await function.write(0, 0x10, number(0x11))
        assert log.wide == 0xAABBCCDD_00000011
        assert log.calls == [("wide", 0xAABBCCDD_00000000), ("wide", 0xAABBCCDD_00000011)]
        assert await function.read(0, 0x15, 1) == b"\xcc"


async def test_an_access_that_crosses_touches_each_from_the_lowest_up():
    async with PciFunction(Log()) as function:
        log = function.device
        await function.write(0, 0x06, bytes.fromhex("aabb 01020304 0500"))
        assert log.calls == [("orders", 0x04030201), ("causes", 5)]
        assert log.fixed == 0x55667788
        assert await function.read(0, 0x00, 8) == number(0x55667788_11223344, 8)
        assert await function.read(0, 0x02, 4) == bytes.fromhex("2211 8877")


async def test_what_is_not_declared(tracer):
    log = Log()
    async with PciFunction(log, tracer=tracer) as function:
        assert await function.read(0, 0x400, 4) == b"\xff" * 4
        assert await function.read(0, 0x19, 4) == b"\xa0\xff\x9a\xff"
        log.undeclared = 0
        assert await function.read(0, 0x400, 4) == bytes(4)
        await function.write(0, 0x400, b"\1\2\3\4")
        await function.write(0, 0x400, b"\1\2\3\4")
    assert [(event, fields["offset"], fields["size"]) for event, fields in tracer.events] == [
        ("undeclared_read", 0x400, 4),
        ("undeclared_read", 0x19, 4),
        ("undeclared_write", 0x400, 4),
    ]


async def test_a_guest_cannot_fill_the_log_with_places(tracer):
    async with PciFunction(Log(), tracer=tracer) as function:
        for offset in range(0x100, 0x1000):
            await function.read(0, offset, 1)
    assert len(tracer.events) == 256


async def test_a_method_that_reads_is_called_once_an_access():
    async with PciFunction(Log()) as function:
        assert await function.read(0, 0x1B, 1) == b"\x9a"
        assert (await function.read(0, 0x18, 8))[3] == 0x9B


async def test_a_write_waits_for_its_coroutine_and_the_loop_does_not():
    async with PciFunction(Log()) as function:
        log = function.device
        log.gate = asyncio.Event()
        writing = asyncio.create_task(function.write(0, 0x08, number(1)))
        await asyncio.sleep(0)
        assert not writing.done()
        log.gate.set()
        await writing
        assert log.calls == [("orders", 1)]


async def test_a_reset_gives_every_register_its_value():
    async with PciFunction(Log()) as function:
        await function.write(0, 0x00, number(1))
        await function.write(0, 0x10, number(1, 8))
        await function.reset()
        assert (function.device.plain, function.device.wide) == (0x11223344, 0)


@pytest.mark.parametrize(
    ("region", "offset", "size"), [(0, 4093, 4), (0, -1, 4), (0, 4096, 1), (1, 0, 1), (2, 15, 2), (8, 0, 1), (-1, 0, 1)]
)
async def test_beyond_the_end(region, offset, size):
    async with PciFunction(Log()) as function:
        with pytest.raises(RegionError):
            await function.read(region, offset, size)
        with pytest.raises(RegionError):
            await function.write(region, offset, bytes(size))


async def test_ports_are_registers_too():
    async with PciFunction(Log()) as function:
        await function.write(2, 0, b"\x5a")
        assert await function.read(2, 0, 1) == b"\x5a"


def test_what_cannot_be_declared():
    with pytest.raises(ValueError, match="1, 2, 4 or 8 bytes"):
        Register(0, 3)
    with pytest.raises(ValueError, match="access"):
        Register(0, access="r")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="out of range"):
        Register(0, 1, reset=256)
    with pytest.raises(ValueError, match="overlaps"):
        type("Twice", (PciDevice,), {"one": Register(0), "two": Register(2)})
    outside = type("Outside", (PciDevice,), {"bars": (Bar(16),), "one": Register(16)})
    with pytest.raises(ValueError, match="not there or smaller"):
        PciFunction(outside())


def test_a_subclass_puts_its_own_in_the_place_of_another():
    class Other(Log):
        plain = Register(0x20)

        def cleared(self, value: int) -> None:
            self.calls.append(("other", value))

    assert {one.offset for one in Other.registers if one.name == "plain"} == {0x20}
    assert {one.offset for one in Log.registers if one.name == "plain"} == {0x00}

    async def write() -> list[tuple[str, int]]:
        async with PciFunction(Other()) as function:
            await function.write(0, 0x0C, number(1))
            return function.device.calls

    assert asyncio.run(write()) == [("other", 1)]


class Memory(PciDevice):
    """Every byte is a register's, of all four widths: what is read must be what was written."""

    bars = (Bar(16),)
    undeclared = 0
    one = Register(0, 1)
    two = Register(2, 2)
    four = Register(4, 4)
    eight = Register(8, 8)
    rest = Register(1, 1)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 15), st.binary(min_size=1, max_size=8)), max_size=20))
def test_registers_side_by_side_are_memory(writes):
    async def run() -> None:
        model = bytearray(16)
        async with PciFunction(Memory()) as function:
            for offset, data in writes:
                piece = data[: 16 - offset]
                model[offset : offset + len(piece)] = piece
                await function.write(0, offset, piece)
                assert await function.read(0, offset, len(piece)) == piece
            assert await function.read(0, 0, 16) == model

    asyncio.run(run())
