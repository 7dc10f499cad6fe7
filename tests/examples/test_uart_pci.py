"""The serial port, without a guest: its registers, and when its pin is up."""

from __future__ import annotations

import asyncio
import json
import os

import pytest

from aioirqfd.pci import PciFunction, PciFunctionState
from examples.ns16550 import FIFO
from examples.uart_pci import Uart, readable

DATA, ENABLE, IDENTIFY, LINE, MODEM, STATUS, SCRATCH = 0, 1, 2, 3, 4, 5, 7


class Bench:
    """A card, and the other ends of its wires."""

    def __init__(self, function, outside, inside):
        self.read, self.write, self.reset = function.read, function.write, function.reset
        self.device = function.device
        self.outside, self.inside = outside, inside


@pytest.fixture
async def uart():
    outside, sink = os.pipe()
    source, inside = os.pipe()
    async with PciFunction(Uart(source, sink)) as function:
        yield Bench(function, outside, inside)
    for fd in (outside, sink, source, inside):
        os.close(fd)


async def read(uart, offset):
    return (await uart.read(0, offset, 1))[0]


async def write(uart, offset, value):
    await uart.write(0, offset, bytes([value]))


async def listen(uart):
    """As a driver that has opened it: FIFOs, RTS, and the interrupt connected."""
    await write(uart, IDENTIFY, 1)
    await write(uart, MODEM, 0x0A)


async def until(uart, wanted):
    async with asyncio.timeout(60):
        while not wanted():
            await asyncio.sleep(0)


async def test_what_is_sent_comes_out(uart):
    for byte in b"hello":
        await write(uart, DATA, byte)
    await readable(uart.outside)
    assert os.read(uart.outside, 100) == b"hello"
    assert await read(uart, STATUS) == 0x60


async def test_what_comes_in_is_read(uart):
    await listen(uart)
    await write(uart, ENABLE, 1)
    os.write(uart.inside, b"ab")
    await until(uart, lambda: uart.device.pin)
    assert (await read(uart, IDENTIFY), await read(uart, STATUS)) == (0xC4, 0x61)
    assert await read(uart, DATA) == ord("a")
    assert uart.device.pin
    assert await read(uart, DATA) == ord("b")
    assert (await read(uart, IDENTIFY), uart.device.pin) == (0xC1, False)


async def test_no_more_is_taken_than_there_is_room_for(uart):
    await listen(uart)
    os.write(uart.inside, bytes(range(40)))
    await until(uart, lambda: len(uart.device.chip.received) == FIFO)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(uart.device.chip.received) == FIFO
    got = []
    while len(got) < 40:
        await until(uart, lambda: uart.device.chip.received)
        got.append(await read(uart, DATA))
    assert got == list(range(40))


async def test_nothing_is_taken_from_a_source_while_the_driver_does_not_listen(uart):
    os.write(uart.inside, b"early")
    for _ in range(10):
        await asyncio.sleep(0)
    assert await read(uart, STATUS) == 0x60
    await listen(uart)
    await until(uart, lambda: len(uart.device.chip.received) == 5)
    await write(uart, MODEM, 0x08)
    os.write(uart.inside, b"late")
    await uart.reset()
    for _ in range(10):
        await asyncio.sleep(0)
    assert await read(uart, STATUS) == 0x60
    await listen(uart)
    await until(uart, lambda: len(uart.device.chip.received) == 4)


async def test_whoever_asks_for_room_is_told_once(uart):
    await write(uart, MODEM, 0x08)
    await read(uart, IDENTIFY)
    await write(uart, ENABLE, 2)
    assert uart.device.pin
    assert await read(uart, IDENTIFY) == 2
    assert (uart.device.pin, await read(uart, IDENTIFY)) == (False, 1)
    await write(uart, DATA, 65)
    assert uart.device.pin
    await write(uart, ENABLE, 0)
    assert not uart.device.pin


async def test_the_pin_is_connected_by_out2(uart):
    await write(uart, ENABLE, 2)
    assert not uart.device.pin
    await write(uart, MODEM, 0x08)
    assert uart.device.pin


async def test_the_divisor_hides_two_registers(uart):
    await write(uart, ENABLE, 5)
    await write(uart, LINE, 0x83)
    await uart.write(0, DATA, b"\x0c\x01")
    assert (uart.device.chip.divisor, await read(uart, DATA), await read(uart, ENABLE)) == (0x010C, 0x0C, 1)
    await write(uart, LINE, 0x03)
    assert (await read(uart, ENABLE), await read(uart, LINE)) == (5, 3)


async def test_what_a_driver_looks_for(uart):
    await write(uart, SCRATCH, 0xA5)
    assert await read(uart, SCRATCH) == 0xA5
    await write(uart, IDENTIFY, 1)
    assert await read(uart, IDENTIFY) & 0xC0 == 0xC0  # it has a FIFO
    await write(uart, MODEM, 0x1A)
    assert await read(uart, 6) & 0xF0 == 0x90  # looped back
    await write(uart, DATA, 0x42)
    assert (await read(uart, DATA), await read(uart, STATUS)) == (0x42, 0x60)
    await uart.reset()
    assert await uart.read(0, 0, 8) == bytes([0, 0, 1, 0, 0, 0x60, 0xB0, 0])


async def test_it_is_saved_and_no_byte_is_taken_meanwhile(uart):
    """What had come is in the state, with its interrupt; what comes during the pause stays where it is, for whoever goes on."""
    await listen(uart)
    await write(uart, SCRATCH, 0x5A)
    await write(uart, ENABLE, 1)
    os.write(uart.inside, b"ab")
    await until(uart, lambda: uart.device.pin)
    function = uart.device.function
    await function.pause()
    os.write(uart.inside, b"cd")
    for _ in range(20):
        await asyncio.sleep(0)
    state = PciFunctionState.from_dict(json.loads(json.dumps(function.save().to_dict())))
    async with PciFunction(Uart(uart.device.source, uart.device.sink)) as other:
        await other.pause()
        await other.restore(state)
        other.resume()
        await until(uart, lambda: len(other.device.chip.received) == 4)
        assert list(uart.device.chip.received) == list(b"ab")
        assert other.device.pin
        assert [(await other.read(0, DATA, 1))[0] for _ in range(4)] == list(b"abcd")
        assert not other.device.pin
        assert await other.read(0, SCRATCH, 1) == b"\x5a"
