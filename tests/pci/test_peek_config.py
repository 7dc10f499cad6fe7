"""Reads of the configuration space without the loop: the same bytes, or word that the loop has to be asked."""

from __future__ import annotations

import threading

import pytest

from aioirqfd.faults import Corrupt, Faults, Match
from aioirqfd.pci import Bar, PciDevice, PciExpress, PciFunction, RegionError
from aioirqfd.pci.config import COMMAND, STATUS
from aioirqfd.tracing import FlightRecorder
from aioirqfd.virtio_pci import VirtioPci
from aioirqfd.virtio_pci.capability import ConfigAccess
from examples.vhost_user_rng import Rng

CONFIG = 7


class Plain(PciDevice):
    bars = (Bar(4096),)
    vectors = 2
    intx = True
    capabilities = (PciExpress(),)


class Answering(Plain):
    """Says by itself what is read: everywhere, as far as anybody knows."""

    async def read_config(self, offset, size):
        return b"\x5a" * size


class Declared(Answering):
    """Says where: 4 bytes at 0x40 and 4 at 0x80."""

    def live_config(self, config):
        return (range(0x40, 0x44), range(0x80, 0x84))


async def test_it_reads_what_a_read_on_the_loop_reads():
    async with PciFunction(Plain()) as function:
        await function.write(CONFIG, 0x10, b"\0\0\0\xfe")
        await function.write(CONFIG, COMMAND, b"\6\4")
        for size in (1, 2, 4):
            for offset in range(function.config.size - size + 1):
                assert function.peek_config(offset, size) == await function.read(CONFIG, offset, size)
        whole = function.peek_config(0, function.config.size)
        assert whole == await function.read(CONFIG, 0, function.config.size)


async def test_whether_the_pin_is_wanted_is_seen_at_once():
    async with PciFunction(Plain()) as function:
        places = [(STATUS, 1), (STATUS, 2), (COMMAND, 4), (0, 64)]
        for wanted in (True, False, True):
            function.device.pin = wanted
            peeked = [function.peek_config(*place) or b"" for place in places]
            assert [bool(data[STATUS - at] & 8) for data, (at, _) in zip(peeked, places, strict=True)] == [wanted] * 4
            assert peeked == [await function.read(CONFIG, *place) for place in places]
        assert function.peek_config(STATUS + 1, 1) == await function.read(CONFIG, STATUS + 1, 1)


async def test_another_thread_reads_while_the_loop_does_not_run():
    async with PciFunction(Plain()) as function:
        found = []
        thread = threading.Thread(target=lambda: found.append(function.peek_config(0, 4)))
        thread.start()
        thread.join()  # the loop's thread waits here: nothing was asked of it
        assert found == [(0xFFFF_1234).to_bytes(4, "little")]


async def test_another_thread_sees_no_half_of_a_write():
    async with PciFunction(Plain()) as function:
        seen, done = set(), threading.Event()

        def look():
            while not done.is_set():
                seen.add(function.peek_config(0x10, 4))

        thread = threading.Thread(target=look)
        thread.start()
        try:
            for turn in range(2000):
                await function.write(CONFIG, 0x10, bytes([0, 0xF0, 0xFF, 0xFF] if turn % 2 else 4))
        finally:
            done.set()
            thread.join()
        assert seen <= {bytes(4), b"\0\xf0\xff\xff"}


async def test_of_a_device_that_answers_by_itself_nothing_is_known():
    async with PciFunction(Answering()) as function:
        assert function.peek_config(0, 4) is None
        assert function.peek_config(4095, 1) is None
        assert await function.read(CONFIG, 0, 4) == b"\x5a" * 4


@pytest.mark.parametrize(
    ("offset", "size", "known"),
    [
        (0x3C, 4, True),
        (0x3C, 5, False),
        (0x40, 1, False),
        (0x43, 1, False),
        (0x44, 4, True),
        (0x7F, 2, False),
        (0x30, 0x80, False),
    ],
)
async def test_where_a_device_answers_by_itself_it_may_say(offset, size, known):
    async with PciFunction(Declared()) as function:
        expected = function.config.read(offset, size)
        assert function.peek_config(offset, size) == (expected if known else None)


async def test_of_a_virtio_function_only_the_window_is_the_loops():
    async with PciFunction(VirtioPci(Rng())) as function:
        window = function.config.find(ConfigAccess)
        data = window + ConfigAccess.DATA
        places = [at for at in range(0, function.config.size, 4) if function.peek_config(at, 4) is None]
        assert places == [data]
        # The window shows the number of queues, which is at 0x12 of BAR 0.
        await function.write(CONFIG, window + ConfigAccess.BAR, b"\0")
        await function.write(CONFIG, window + ConfigAccess.OFFSET, b"\x12\0\0\0")
        await function.write(CONFIG, window + ConfigAccess.SIZE, b"\2\0\0\0")
        assert function.peek_config(data, 2) is None
        assert await function.read(CONFIG, data, 2) == b"\1\0"


async def test_beyond_the_end():
    async with PciFunction(Plain()) as function:
        for place in ((4096, 1), (4093, 4), (-1, 1), (0, 4097)):
            with pytest.raises(RegionError):
                function.peek_config(*place)


async def test_a_fault_comes_between():
    faults = Faults(nonconforming=True)
    device = faults.wrap(Plain())
    async with PciFunction(device) as function:
        assert function.peek_config(0, 2) == b"\x34\x12"
        faults.add(Match("config-read"), Corrupt("data", mask=0x01))
        assert function.peek_config(0, 2) is None
        assert await function.read(CONFIG, 0, 2) == b"\x35\x12"
        faults.clear()
        assert function.peek_config(0, 2) == b"\x34\x12"


async def test_the_flight_recorder_has_it():
    recorder = FlightRecorder()
    async with PciFunction(Plain(), tracer=recorder) as function:
        function.peek_config(0x34, 1)
        await function.read(CONFIG, 0x40, 4)
        read = [record.fields for record in recorder.records() if record.event == "register_read"]
    assert [(fields["region"], fields["offset"]) for fields in read] == [(CONFIG, 0x34), (CONFIG, 0x40)]


async def test_a_device_that_is_not_served():
    device = Plain()
    function = PciFunction(device)
    assert function.peek_config(0, 4) is None
    async with function, PciFunction(Plain()) as other:
        assert function.peek_config(0, 4) == other.peek_config(0, 4) is not None
    assert function.peek_config(0, 4) is None
