"""A device as it is served: shared memory, doorbells, its own task, and what it may not do."""

from __future__ import annotations

import asyncio

import pytest

from aioirqfd import EventFd, IoEventFdExistsError
from aioirqfd.pci import Bar, PciDevice, PciFunction, RegionError, Register


class Shared(PciDevice):
    bars = (Bar(16384, shared=((4096, 4096), (12288, 4096))),)
    control = Register(0)


async def test_shared_parts_are_memory_and_the_rest_is_the_devices():
    async with PciFunction(Shared()) as function:
        device = function.device
        await function.write(0, 4096, b"abcd")
        assert bytes(device.shared(0)[4096:4100]) == b"abcd"
        device.shared(0)[4100] = 0x65
        assert await function.read(0, 4094, 8) == b"\xff\xffabcde\0"
        await function.write(0, 8190, b"wxyz")  # the second half goes nowhere
        assert await function.read(0, 8188, 8) == b"\0\0wx\xff\xff\xff\xff"
        await function.write(0, 0, b"\1\0\0\0")
        assert device.control == 1
        with pytest.raises(KeyError):
            device.shared(1)


async def test_a_doorbell_takes_the_write():
    async with PciFunction(Shared()) as function:
        device = function.device
        with EventFd() as bell, EventFd() as other:
            device.doorbell(bell, bar=0, offset=0, length=4, datamatch=7, values=4)
            device.doorbell(other, bar=0, offset=8)
            await function.write(0, 0, (7).to_bytes(4, "little"))
            await function.write(0, 8, b"\1")
            assert (bell.read_nowait(), other.read_nowait(), device.control) == (1, 1, 0)
            await function.write(0, 0, (8).to_bytes(4, "little"))
            assert device.control == 8
            with pytest.raises(IoEventFdExistsError):
                device.doorbell(other, bar=0, offset=8, length=2)
            with pytest.raises(RegionError):
                device.doorbell(other, bar=0, offset=16384, length=4)
            with pytest.raises(RegionError):
                device.doorbell(other, bar=1, offset=0)


async def test_a_task_beside_accesses():
    class Ticking(PciDevice):
        state = "new"

        async def background(self) -> None:
            self.state = "runs"
            try:
                await asyncio.Event().wait()
            finally:
                self.state = "ended"

    device = Ticking()
    async with PciFunction(device):
        await asyncio.sleep(0)
        assert device.state == "runs"
    assert device.state == "ended"


async def test_what_the_task_raises_is_told():
    class Failing(PciDevice):
        async def background(self) -> None:
            raise ZeroDivisionError

    heard = []
    async with PciFunction(Failing(), failed=heard.append):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert [type(error) for error in heard] == [ZeroDivisionError]


async def test_a_device_is_served_once_at_a_time():
    device = PciDevice()
    async with PciFunction(device):
        with pytest.raises(ValueError, match="is served already"):
            async with PciFunction(device):
                pass
    async with PciFunction(device) as function:
        assert device.function is function


async def test_a_read_of_another_size_than_asked_for():
    class Short(PciDevice):
        bars = (Bar(16),)

        async def read(self, bar: int, offset: int, size: int) -> bytes:
            return b"\0"

    async with PciFunction(Short()) as function:
        with pytest.raises(ValueError, match="return as many"):
            await function.read(0, 0, 4)
