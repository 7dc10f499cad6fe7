"""The console of the machine that boots Linux: each edge of its interrupt, and both directions between vCPU and loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from examples.ns16550 import DATA, ENABLE, FIFO, IDENTIFY, LOOP, MODEM, OUT2, RTS, SCRATCH, STATUS
from examples.vmm.linux.address_map import COM1_PORTS
from examples.vmm.linux.uart import Uart
from examples.vmm.streams import TextSource


class Output:
    """Takes what is written, when the test lets it."""

    def __init__(self) -> None:
        self.data = b""
        self.open = asyncio.Event()
        self.open.set()
        self.waits = asyncio.Event()

    async def write(self, data):
        self.waits.set()
        await self.open.wait()
        self.data += data


async def turns():
    """Time for the loop to do what it must not do."""
    for _ in range(20):
        await asyncio.sleep(0)


class Bench:
    def __init__(self, uart, output):
        self.uart, self.output = uart, output

    def read(self, offset, size=1):
        return self.uart.port_in(COM1_PORTS[offset], size)

    def write(self, offset, value, size=1):
        self.uart.port_out(COM1_PORTS[offset], size, value)

    def edges(self):
        try:
            return self.uart.trigger.read_nowait()
        except BlockingIOError:
            return 0

    def start(self, enabled=0x03):
        """Open it as Linux does, with these interrupts."""
        self.write(IDENTIFY, 0x81)
        self.write(MODEM, RTS | OUT2)
        self.write(ENABLE, enabled)

    def handle(self, sends=None):
        """What Linux' interrupt handler does: look until there is no reason, and end asking for room when nothing is left."""
        got, sends = b"", bytearray() if sends is None else sends
        while not self.read(IDENTIFY) & 1:
            while self.read(STATUS) & 1:
                got += bytes([self.read(DATA)])
            if self.read(STATUS) & 0x20 and self.read(ENABLE) & 2:
                for value in sends[:FIFO]:
                    self.write(DATA, value)
                del sends[:FIFO]
                if not sends:
                    self.write(ENABLE, 1)
        return got


@pytest.fixture
async def running():
    """Makes a UART that runs, with some input."""
    tasks, uarts = [], []

    def run(source=None, output=None):
        output = output or Output()
        uart = Uart(output, source, gather=0)
        uarts.append(uart)
        tasks.append(asyncio.create_task(uart.run()))
        return Bench(uart, output)

    yield run
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for uart in uarts:
        uart.close()


@pytest.fixture
async def bench(running):
    return running()


class TestEdges:
    """Whenever the wire rises, and not otherwise."""

    async def test_asking_for_room_is_one_and_asking_again_another(self, bench):
        bench.start(0)
        assert bench.edges() == 0
        bench.write(ENABLE, 0x02)
        assert bench.edges() == 1
        assert bench.read(IDENTIFY) == 0xC2
        bench.write(ENABLE, 0)
        bench.write(ENABLE, 0x02)
        assert bench.edges() == 1

    async def test_a_fifo_of_output_is_one_however_many_bytes_it_has(self, bench):
        bench.start()
        assert (bench.edges(), bench.read(IDENTIFY)) == (1, 0xC2)
        for value in bytes(FIFO):
            bench.write(DATA, value)
        assert bench.edges() == 1
        for value in bytes(FIFO):
            bench.write(DATA, value)
        assert bench.edges() == 0  # the wire is still up
        assert (bench.read(IDENTIFY), bench.read(IDENTIFY)) == (0xC2, 0xC1)
        assert bench.edges() == 0

    async def test_output_by_polling_is_none(self, bench):
        bench.start(0x01)
        for value in b"a message of the kernel's":
            assert bench.read(STATUS) == 0x60
            bench.write(DATA, value)
        assert bench.edges() == 0

    async def test_the_wire_rises_when_it_is_connected(self, bench):
        bench.write(ENABLE, 0x02)
        assert bench.edges() == 0
        bench.write(MODEM, OUT2)
        assert bench.edges() == 1
        bench.write(MODEM, LOOP | OUT2)
        bench.write(MODEM, OUT2)
        assert bench.edges() == 1

    async def test_each_refill_is_one_though_the_wire_is_up(self, running):
        bench = running(TextSource(bytes(range(40))))
        bench.start(0x01)
        await bench.uart.trigger.wait()
        assert bench.edges() == 1
        got = []
        for _ in range(3):
            got += [bench.read(DATA) for _ in range(8)]
            await bench.uart.trigger.wait()
            assert (bench.edges(), bench.read(IDENTIFY)) == (1, 0xC4)
        got += [bench.read(DATA) for _ in range(8)]
        await turns()
        assert (bench.edges(), bench.read(IDENTIFY)) == (0, 0xC4)
        assert got == [*range(32)]

    async def test_a_handler_that_looks_until_there_is_no_reason_is_never_forgotten(self, running):
        """Output and input of a guest that does nothing but wait for its interrupt."""
        text = bytes(range(256)) * 40
        bench = running(TextSource(text))
        bench.start()
        sends, got = bytearray(text[::-1]), b""
        async with asyncio.timeout(60):
            while sends or len(got) < len(text):
                await bench.uart.trigger.read()
                got += bench.handle(sends)
            await bench.uart.wait_written()
        assert (got, bench.output.data) == (text, text[::-1])


class TestOutput:
    async def test_what_is_sent_in_a_vcpus_thread_comes_out_in_order(self, bench):
        def guest():
            for value in bytes(range(256)):
                bench.write(DATA, value)

        thread = threading.Thread(target=guest)
        thread.start()
        while thread.is_alive():
            await asyncio.sleep(0)
        thread.join()
        await bench.uart.wait_written()
        assert bench.output.data == bytes(range(256))

    async def test_what_is_sent_together_is_written_together(self, bench):
        for value in b"hello":
            bench.write(DATA, value)
        assert bench.output.data == b""
        await bench.uart.wait_written()
        assert bench.output.data == b"hello"

    async def test_nothing_sent_is_written_at_once(self, bench):
        await bench.uart.wait_written()

    async def test_a_slow_reader_stops_the_guest_and_nothing_is_lost(self, bench):
        bench.output.open.clear()
        bench.start(0x02)
        assert bench.edges() == 1
        bench.write(DATA, 0)
        await bench.output.waits.wait()
        sent = [0]
        while bench.read(STATUS) & 0x20:
            bench.read(IDENTIFY)
            for _ in range(FIFO):
                sent.append(len(sent) & 0xFF)
                bench.write(DATA, sent[-1])
        assert 4096 - FIFO < len(sent) - 1 <= 4096
        bench.edges()
        assert bench.read(IDENTIFY) == 0xC1  # the guest waits for the interrupt
        bench.output.open.set()
        async with asyncio.timeout(60):
            await bench.uart.trigger.wait()
            assert (bench.edges(), bench.read(STATUS), bench.read(IDENTIFY)) == (1, 0x60, 0xC2)
            await bench.uart.wait_written()
        assert (bench.output.data, bench.uart.dropped) == (bytes(sent), 0)

    async def test_whoever_does_not_heed_it_loses_what_is_counted(self, bench):
        bench.output.open.clear()
        for value in range(5000):
            bench.write(DATA, value & 0xFF)
        assert bench.uart.dropped == 5000 - 4096
        bench.output.open.set()
        await bench.uart.wait_written()
        assert bench.output.data == bytes(value & 0xFF for value in range(4096))

    async def test_an_output_that_fails_ends_it(self):
        class Broken:
            async def write(self, data):
                raise BrokenPipeError

        uart = Uart(Broken(), gather=0)
        uart.port_out(COM1_PORTS[0], 1, 65)
        with pytest.raises(ExceptionGroup) as raised:
            await uart.run()
        uart.close()
        assert [type(error) for error in raised.value.exceptions] == [BrokenPipeError]


class TestInput:
    async def test_it_waits_until_the_driver_listens(self, running):
        bench = running(TextSource(b"early"))
        await turns()
        bench.write(IDENTIFY, 0x01)  # a driver that clears the FIFOs before it listens
        bench.write(IDENTIFY, 0x07)
        assert bench.read(STATUS) == 0x60
        bench.start(0x01)
        await bench.uart.trigger.wait()
        assert bench.handle() == b"early"

    async def test_nothing_is_lost_to_the_driver_that_stops_listening(self, running):
        bench = running(TextSource(bytes(range(20))))
        bench.start(0x01)
        await bench.uart.trigger.wait()
        bench.write(MODEM, OUT2)
        got = bench.handle()
        bench.write(MODEM, LOOP | RTS)
        await turns()
        assert (got, bench.edges()) == (bytes(range(16)), 1)
        bench.write(MODEM, OUT2 | RTS)
        await bench.uart.trigger.wait()
        assert bench.handle() == bytes(range(16, 20))

    async def test_the_guest_goes_on_without_when_it_ends(self, running):
        bench = running(TextSource(b""))
        bench.write(DATA, 65)
        await bench.uart.wait_written()
        assert bench.output.data == b"A"


async def test_accesses_of_several_bytes_are_registers_in_order(bench):
    bench.write(SCRATCH, 0x5A)
    assert bench.read(STATUS, 2) == 0xB060
    assert bench.read(MODEM, 4) == 0x5AB06000
    bench.write(3, 0x1B80, 2)
    assert (bench.read(3), bench.read(MODEM)) == (0x80, 0x1B)
    bench.write(0, 0x010C, 2)
    assert bench.read(0, 2) == 0x010C
