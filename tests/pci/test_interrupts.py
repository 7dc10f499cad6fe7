"""Interrupts of a function: whom they go to, and what becomes of them while there is nobody."""

from __future__ import annotations

import threading

import pytest

from aioirqfd import ClosedError
from aioirqfd.pci import Bar, Interrupts, MsiX, PciDevice, PciFunction
from aioirqfd.pci.interrupts import PIN
from aioirqfd.tracer import NULL_TRACER
from tests.pci.conftest import settled


@pytest.fixture
async def interrupts():
    async with Interrupts(70, tracer=NULL_TRACER) as interrupts:
        yield interrupts


async def test_at_once(interrupts, target):
    one, other = target(), target()
    interrupts.bind(3, one.lend())
    interrupts.bind(69, other.lend())
    interrupts.signal(3)
    await settled(interrupts)
    assert (one.taken(), other.taken()) == (1, 0)
    interrupts.signal(3)
    interrupts.signal(69)
    await settled(interrupts)
    assert (one.taken(), other.taken()) == (1, 1)


async def test_what_comes_before_there_is_somebody_is_pending(interrupts, target):
    interrupts.signal(5)
    interrupts.signal(5)
    assert interrupts.pending(5)
    assert not interrupts.pending(4)
    one = target()
    interrupts.bind(5, one.lend())
    await settled(interrupts)
    assert one.taken() == 1
    assert not interrupts.pending(5)


async def test_the_eventfd_is_away_for_a_moment(interrupts, target):
    one, other = target(), target()
    interrupts.bind(5, one.lend())
    interrupts.bind(5, None)
    interrupts.signal(5)
    await settled(interrupts)
    assert (one.taken(), interrupts.pending(5)) == (0, True)
    interrupts.bind(5, other.lend())
    await settled(interrupts)
    assert (one.taken(), other.taken(), interrupts.pending(5)) == (0, 1, False)
    # Nothing is made up: another eventfd, and no interrupt in between.
    interrupts.bind(5, one.lend())
    await settled(interrupts)
    assert (one.taken(), other.taken()) == (0, 0)


async def test_masked(interrupts, target):
    one = target()
    interrupts.bind(0, one.lend())
    interrupts.mask(0)
    interrupts.mask(0)
    interrupts.signal(0)
    interrupts.signal(0)
    await settled(interrupts)
    assert (one.taken(), interrupts.pending(0)) == (0, True)
    interrupts.unmask(0)
    await settled(interrupts)
    assert (one.taken(), interrupts.pending(0)) == (1, False)
    interrupts.mask(1)
    interrupts.bind(1, one.lend())
    interrupts.signal(1)
    await settled(interrupts)
    assert one.taken() == 0
    interrupts.unmask(1)
    await settled(interrupts)
    assert one.taken() == 1


async def test_the_pending_bit_array(interrupts, target):
    for vector in (0, 9, 64, 69):
        interrupts.signal(vector)
    assert interrupts.pending_bits() == bytes([1, 2, 0, 0, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0, 0, 0])
    interrupts.bind(9, target().lend())
    await settled(interrupts)
    assert interrupts.pending_bits()[1] == 0


async def test_from_threads(interrupts, target):
    one = target()
    threads = [threading.Thread(target=interrupts.signal, args=(7,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    interrupts.bind(7, one.lend())
    await settled(interrupts)
    assert one.taken() == 1


async def test_the_pin_is_a_level(interrupts, target):
    one = target()
    interrupts.bind(PIN, one.lend())
    interrupts.pin = True
    await settled(interrupts)
    assert one.taken() == 1
    interrupts.pin = True
    interrupts.pin = False
    interrupts.pin = True
    await settled(interrupts)
    assert one.taken() == 0  # the guest has not ended the first one
    interrupts.unmask(PIN)
    await settled(interrupts)
    assert one.taken() == 1  # and it is wanted still
    interrupts.pin = False
    interrupts.unmask(PIN)
    await settled(interrupts)
    assert one.taken() == 0
    interrupts.pin = True
    await settled(interrupts)
    assert one.taken() == 1


async def test_a_pin_that_is_wanted_no_more_does_not_interrupt(interrupts, target):
    one = target()
    interrupts.bind(PIN, one.lend())
    interrupts.mask(PIN)
    interrupts.pin = True
    interrupts.pin = False
    interrupts.unmask(PIN)
    await settled(interrupts)
    assert one.taken() == 0
    interrupts.pin = True
    await settled(interrupts)
    assert one.taken() == 1


async def test_another_eventfd_for_a_pin_that_is_up(interrupts, target):
    one, other = target(), target()
    interrupts.bind(PIN, one.lend())
    interrupts.pin = True
    interrupts.bind(PIN, None)
    interrupts.bind(PIN, other.lend())
    await settled(interrupts)
    assert (one.taken(), other.taken()) == (1, 1)


async def test_the_guest_forbids_the_pin(target):
    device = type("Pinned", (PciDevice,), {"intx": True})()
    async with PciFunction(device) as function:
        one = target()
        function.interrupts.bind(PIN, one.lend())
        await function.write(7, 4, b"\0\4")
        device.pin = True
        await settled(function.interrupts)
        assert one.taken() == 0
        await function.write(7, 4, b"\0\0")
        await settled(function.interrupts)
        assert one.taken() == 1


async def test_a_reset_throws_away_what_is_pending_and_nothing_else(interrupts, target):
    one, pin = target(), target()
    interrupts.bind(1, one.lend())
    interrupts.bind(PIN, pin.lend())
    interrupts.mask(1)
    interrupts.signal(1)
    interrupts.signal(2)
    interrupts.mask(PIN)
    interrupts.pin = True
    await interrupts.discard()
    assert not any(interrupts.pending_bits())
    interrupts.unmask(1)
    interrupts.unmask(PIN)
    await settled(interrupts)
    assert (one.taken(), pin.taken(), interrupts.pin) == (0, 0, False)
    interrupts.signal(1)
    interrupts.pin = True
    await settled(interrupts)
    assert (one.taken(), pin.taken()) == (1, 1)


async def test_vectors_that_are_not_there(interrupts):
    for vector in (-1, 70):
        with pytest.raises(ValueError, match=r"vectors 0\.\.69"):
            interrupts.signal(vector)


async def test_a_device_that_is_not_served():
    device = PciDevice()
    for use in (device.interrupt, lambda: device.dma, lambda: device.pin):
        with pytest.raises(ClosedError, match="is not served"):
            use()
    interrupts = Interrupts(1, tracer=NULL_TRACER)
    with pytest.raises(ClosedError):
        interrupts.signal(0)


async def test_table_and_pending_bits_in_a_bar(target):
    device = type(
        "Tabled", (PciDevice,), {"bars": (None, Bar(8192)), "capabilities": (MsiX(2, bar=1, table=16, pba=4096),)}
    )()
    async with PciFunction(device) as function:
        assert await function.read(1, 16, 32) == (bytes(12) + b"\1\0\0\0") * 2
        await function.write(1, 20, b"\1\2\3\4")
        assert await function.read(1, 16, 8) == b"\0\0\0\0\1\2\3\4"
        device.interrupt(1)
        assert await function.read(1, 4096, 8) == b"\2" + bytes(7)
        await function.write(1, 4096, b"\0")
        assert await function.read(1, 4090, 8) == b"\xff" * 6 + b"\2\0"
        await function.reset()
        assert await function.read(1, 4096, 4) == bytes(4)
        assert await function.read(1, 20, 4) == bytes(4)
