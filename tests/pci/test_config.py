"""The configuration space: what is in it, what a guest may write, and what its writes do."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioirqfd.pci import (
    Bar,
    Msi,
    MsiX,
    PciDevice,
    PciExpress,
    PciFunction,
    PowerManagement,
    RegionError,
    SerialNumber,
    VendorSpecific,
)

CONFIG = 7


class Plain(PciDevice):
    vendor_id, device_id, class_code, revision = 0x1AF4, 0x1234, 0x010802, 3
    subsystem_vendor_id, subsystem_id = 0x1111, 0x2222
    bars = (Bar(0x4000, wide=True, prefetchable=True), None, Bar(32, io=True))
    intx = True
    rom = b"\x55\xaa" + bytes(3000)


class Full(Plain):
    vectors = 3
    capabilities = (
        PowerManagement(),
        Msi(4),
        VendorSpecific(b"abcd", mask=b"\0\xff"),
        PciExpress(lanes=4, speed=3),
        MsiX(3, bar=0, table=0x1000, pba=0x1800),
        SerialNumber(0x1122334455667788),
    )


def capabilities(data):
    """Id and place of each, as a driver walks them."""
    found, place = [], data[0x34]
    while place:
        found.append((data[place], place))
        place = data[place + 1]
    return found


async def test_the_header():
    async with PciFunction(Plain()) as function:
        data = await function.read(CONFIG, 0, 256)
        assert struct.unpack_from("<HH", data) == (0x1AF4, 0x1234)
        assert struct.unpack_from("<I", data, 8) == (0x01080203,)
        assert struct.unpack_from("<6I", data, 0x10) == (0xC, 0, 1, 0, 0, 0)
        assert struct.unpack_from("<HH", data, 0x2C) == (0x1111, 0x2222)
        assert (data[0x3C], data[0x3D], data[0x34], data[0x0E]) == (0, 1, 0, 0)
        with pytest.raises(RegionError):
            await function.read(CONFIG, 256, 1)


async def test_the_size_of_a_bar_is_found_by_writing_ones():
    async with PciFunction(Plain()) as function:
        for offset in (0x10, 0x14, 0x18, 0x1C, 0x30):
            await function.write(CONFIG, offset, b"\xff" * 4)
        data = await function.read(CONFIG, 0, 256)
        assert struct.unpack_from("<4I", data, 0x10) == (0xFFFFC00C, 0xFFFFFFFF, 0xFFFFFFE1, 0)
        assert struct.unpack_from("<I", data, 0x30) == (0xFFFFF001,)
        rom = await function.read(6, 0, 4096)
        assert rom == Plain.rom.ljust(4096, b"\xff")
        await function.write(6, 0, b"\0")
        assert await function.read(6, 0, 2) == b"\x55\xaa"


async def test_capabilities_are_found_by_walking():
    async with PciFunction(Full()) as function:
        data = await function.read(CONFIG, 0, 4096)
        assert [number for number, _ in capabilities(data)] == [0x01, 0x05, 0x09, 0x10, 0x11]
        assert all(place % 4 == 0 for _, place in capabilities(data))
        assert data[0x06] & 0x10
        places = dict(capabilities(data))
        assert struct.unpack_from("<HII", data, places[0x11] + 2) == (2, 0x1000, 0x1800)
        assert struct.unpack_from("<H", data, places[0x05] + 2) == (0x84,)
        assert data[places[0x09] + 2 : places[0x09] + 7] == b"\x07abcd"
        assert struct.unpack_from("<IQ", data, 0x100) == (0x10003, 0x1122334455667788)


async def test_what_a_guest_may_write_of_a_capability():
    async with PciFunction(Full()) as function:
        before = await function.read(CONFIG, 0, 4096)
        places = dict(capabilities(before))
        # All but the reset bit of PCI Express, byte by byte.
        for at in range(0x40, 4096):
            await function.write(CONFIG, at, b"\xff" if at != places[0x10] + 9 else b"\x7f")
        after = await function.read(CONFIG, 0, 4096)
        assert capabilities(after) == capabilities(before)
        changed = {at for at in range(0x40, 4096) if after[at] != before[at]}
        allowed = {places[0x01] + 4, *range(places[0x05] + 2, places[0x05] + 14), places[0x09] + 4, places[0x11] + 3}
        assert changed <= allowed | {
            *range(places[0x10] + 8, places[0x10] + 10),
            *range(places[0x10] + 16, places[0x10] + 18),
        }
        assert after[places[0x11] + 3] == 0xC0
        assert after[places[0x01] + 4] & 3 == 3
        assert after[0x100:0x10C] == before[0x100:0x10C]


async def test_a_vendors_own_capability_tells_when_it_is_written():
    heard = []
    own = VendorSpecific(b"abcd", mask=b"\xff" * 4, on_write=heard.append)
    device = type("Own", (PciDevice,), {"capabilities": (own,)})()
    async with PciFunction(device) as function:
        place = function.config.find(VendorSpecific)
        await function.write(CONFIG, place + 4, b"XY")
        await function.write(CONFIG, place, b"\0")
        assert heard == [b"aXYd"]


async def test_a_function_level_reset(tracer):
    resets = []

    class Resets(Full):
        async def reset(self) -> None:
            resets.append(self.pin)

    async with PciFunction(Resets(), tracer=tracer) as function:
        place = function.config.find(PciExpress)
        await function.write(CONFIG, 0x04, b"\x07")
        await function.write(CONFIG, place + 8, b"\x00\x80")
        assert resets == [False]
        assert tracer.names == ["function_reset"]
        assert await function.read(CONFIG, 0x04, 1) == b"\0"
        # And what is no reset: the other byte, another bit, another register.
        await function.write(CONFIG, place + 8, b"\x80")
        await function.write(CONFIG, place + 9, b"\x7f")
        await function.write(CONFIG, place + 10, b"\x80\x80")
        assert len(resets) == 1


async def test_the_status_says_whether_the_pin_is_wanted():
    async with PciFunction(Plain()) as function:
        assert not (await function.read(CONFIG, 6, 2))[0] & 8
        function.device.pin = True
        assert (await function.read(CONFIG, 6, 2))[0] & 8
        function.device.pin = False
        assert not (await function.read(CONFIG, 6, 2))[0] & 8


async def test_vectors_get_a_bar_of_their_own():
    device = type("Many", (PciDevice,), {"bars": (Bar(16, wide=True),), "vectors": 300})()
    async with PciFunction(device) as function:
        assert function.msix == MsiX(300, bar=2, table=0, pba=8192)
        assert function.bars[2].size == 16384


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"capabilities": (SerialNumber(1),)}, "PciExpress"),
        ({"capabilities": (VendorSpecific(bytes(180)), PowerManagement(), Msi())}, "no room"),
        ({"capabilities": (MsiX(3, bar=1),)}, "does not fit"),
        ({"bars": (Bar(16),), "capabilities": (MsiX(3),)}, "does not fit"),
        ({"bars": (None,) * 5 + (Bar(16, wide=True),)}, "takes BAR 6"),
        ({"bars": (Bar(16),) * 7}, "BARs are 0..5"),
        ({"class_code": 1 << 24}, "class_code has 24 bits"),
        ({"bars": (Bar(16),) * 6, "vectors": 1}, "no BAR left"),
    ],
)
def test_what_cannot_be(attributes, reason):
    with pytest.raises(ValueError, match=reason):
        PciFunction(type("Wrong", (PciDevice,), attributes)())


@pytest.mark.parametrize(
    "what",
    [
        "Bar(24)",
        "Bar(8)",
        "Bar(512, io=True)",
        "Bar(16, io=True, wide=True)",
        "Bar(4096, shared=((0, 100),))",
        "Bar(8192, shared=((0, 8192), (4096, 4096)))",
        "Msi(3)",
        "Msi(64)",
        "MsiX(0)",
        "MsiX(2049)",
        "MsiX(4, table=4)",
        "MsiX(4, pba=32)",
        "VendorSpecific(bytes(253))",
        "VendorSpecific(b'a', mask=b'ab')",
    ],
)
def test_what_cannot_be_said(what):
    with pytest.raises(ValueError, match=r"not|no longer|lies in|neither"):
        eval(what)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4095), st.binary(min_size=1, max_size=8)), max_size=30))
def test_no_write_changes_who_it_is_or_breaks_the_list(writes):
    function = PciFunction(Full())
    before = function.config.read(0, 4096)
    for offset, data in writes:
        function.config.write(offset, data[: 4096 - offset])
    after = function.config.read(0, 4096)
    assert capabilities(after) == capabilities(before)
    assert after[:4] == before[:4]
    assert after[8:12] == before[8:12]
