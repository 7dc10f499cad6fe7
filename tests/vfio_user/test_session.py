"""Every message of the specification's table, by a client over the real socket."""

# pyright: reportOptionalMemberAccess=false
from __future__ import annotations

import asyncio
import errno
import mmap
import os
import socket
import struct

import pytest

from aioirqfd import EventFd
from aioirqfd.pci import DmaError
from aioirqfd.vfio_user import Server, messages
from aioirqfd.vfio_user.capabilities import Capabilities
from aioirqfd.vfio_user.client import Client
from aioirqfd.vfio_user.messages import Command, SetIrq
from tests.vfio_user.conftest import VECTORS, Device, refused, taken

MSIX, INTX, ERR, REQ = 2, 0, 3, 4
EVENTFD_TRIGGER = SetIrq.DATA_EVENTFD | SetIrq.TRIGGER
NONE_TRIGGER = SetIrq.DATA_NONE | SetIrq.TRIGGER


async def settled(server):
    await server.function.interrupts.flush()
    await asyncio.sleep(0)
    await server.function.interrupts.flush()


# -- what a client is told -----------------------------------------------------------------------------------------------


async def test_what_the_server_can(client):
    assert client.server == Capabilities(max_msg_fds=16)


async def test_device_info(client):
    reply = await client.ask(Command.DEVICE_GET_INFO, struct.pack("<IIII", 32, 0, 0, 0))
    assert struct.unpack("<IIII", reply.data) == (16, 3, 9, 5)
    for data in (b"", bytes(8), struct.pack("<IIII", 8, 0, 0, 0)):
        with refused():
            await client.ask(Command.DEVICE_GET_INFO, data)


async def test_region_info(client):
    sizes, flags = [], []
    for index in range(9):
        reply = await client.region_info(index)
        info = messages.REGION_INFO.unpack_from(reply.data)
        assert (info[2], info[5]) == (index, 0)
        flags.append(info[1])
        sizes.append(info[4])
        for fd in reply.fds:
            os.close(fd)
    assert sizes == [4096, 16, 0x8000, 4096, 0, 0, 0, 4096, 0]
    assert flags == [3, 3, 15, 7, 0, 0, 0, 3, 0]
    with refused():
        await client.region_info(9)
    with refused():
        await client.region_info(0, room=31)


async def test_parts_of_a_region_that_can_be_mapped(client, server):
    reply = await client.region_info(2)
    need, _, _, place, *_ = messages.REGION_INFO.unpack_from(reply.data)
    assert (need, place, len(reply.data), len(reply.fds)) == (80, 32, 80, 1)
    assert struct.unpack_from("<HHIIIQQQQ", reply.data, 32) == (1, 1, 0, 2, 0, 0x2000, 0x1000, 0x4000, 0x2000)
    with mmap.mmap(reply.fds[0], 0x1000, offset=0x2000) as page:
        os.close(reply.fds[0])
        page[:4] = b"here"
        assert await client.read(2, 0x2000, 4) == b"here"
        await client.write(2, 0x2004, b"there")
        assert page[4:9] == b"there"
    # Without room for the list, it is said how much it needs.
    reply = await client.region_info(2, room=32)
    assert messages.REGION_INFO.unpack(reply.data)[:4] == (80, 7, 2, 0)
    os.close(reply.fds[0])


async def test_doorbells(client, server):
    with EventFd() as one, EventFd() as other:
        server.device.doorbell(one, bar=0, offset=0x100, length=4, datamatch=5)
        server.device.doorbell(other, bar=0, offset=0x108)
        server.device.doorbell(one, bar=0, offset=0x110, length=2)
        reply = await client.ask(Command.DEVICE_GET_REGION_IO_FDS, struct.pack("<IIII", 4096, 0, 0, 0))
        assert struct.unpack_from("<IIII", reply.data) == (16 + 3 * 40, 0, 0, 3)
        assert len(reply.fds) == 2
        bells = [messages.IOEVENTFD.unpack_from(reply.data, 16 + 40 * number) for number in range(3)]
        assert bells == [(0x100, 4, 0, 0, 1, 0, 5), (0x108, 0, 1, 0, 0, 0, 0), (0x110, 2, 0, 0, 0, 0, 0)]
        os.eventfd_write(reply.fds[1], 3)
        assert other.read_nowait() == 3
        for fd in reply.fds:
            os.close(fd)
        await client.write(0, 0x100, struct.pack("<I", 5))
        assert one.read_nowait() == 1
        reply = await client.ask(Command.DEVICE_GET_REGION_IO_FDS, struct.pack("<IIII", 16, 0, 0, 0))
        assert (struct.unpack("<IIII", reply.data), reply.fds) == ((136, 0, 0, 0), ())
    reply = await client.ask(Command.DEVICE_GET_REGION_IO_FDS, struct.pack("<IIII", 512, 0, 1, 0))
    assert struct.unpack("<IIII", reply.data) == (16, 0, 1, 0)
    for size, flags, index, count in ((512, 1, 0, 0), (512, 0, 0, 1), (15, 0, 0, 0), (512, 0, 5, 0), (512, 0, 512, 0)):
        with refused():
            await client.ask(Command.DEVICE_GET_REGION_IO_FDS, struct.pack("<IIII", size, flags, index, count))


async def test_irq_info(client):
    told = []
    for index in range(5):
        reply = await client.ask(Command.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 32, 0, index, 0))
        told.append(struct.unpack("<IIII", reply.data))
    assert told == [(16, 7, 0, 1), (16, 3, 1, 0), (16, 3, 2, VECTORS), (16, 1, 3, 1), (16, 1, 4, 1)]
    for data in (bytes(8), struct.pack("<IIII", 8, 0, 4, 0), struct.pack("<IIII", 16, 0, 5, 0)):
        with refused():
            await client.ask(Command.DEVICE_GET_IRQ_INFO, data)


# -- regions -------------------------------------------------------------------------------------------------------------


async def test_reads_and_writes(client, server):
    await client.write(0, 0, b"\1\2\3\4")
    assert await client.read(0, 0, 4) == b"\1\2\3\4"
    assert server.device.scratch == 0x04030201
    await client.write(1, 0, b"\5")
    assert await client.read(1, 0, 4) == b"\5\0\0\0"
    assert (await client.read(7, 0, 2)) == b"\x34\x12"
    for region, offset, size in (
        (0, 4095, 2),
        (0, 2**64 - 1, 1),
        (4, 0, 1),
        (9, 0, 1),
        (2**32 - 1, 0, 1),
        (7, 4096, 1),
    ):
        with refused():
            await client.read(region, offset, size)
        with refused():
            await client.write(region, offset, bytes(size))
    with refused():
        await client.ask(Command.REGION_READ, struct.pack("<QII", 0, 2, 2**20 + 1))
    for data in (bytes(15), struct.pack("<QII", 0, 0, 4) + b"abc", struct.pack("<QII", 0, 0, 4) + b"abcde"):
        with refused():
            await client.ask(Command.REGION_WRITE, data)


async def test_many_writes_in_one(client, server):
    def one(offset, data, count=None):
        return struct.pack("<QII", offset, 0, len(data) if count is None else count) + data.ljust(8, b"\0")

    reply = await client.ask(Command.REGION_WRITE_MULTI, struct.pack("<Q", 2) + one(0, b"\1\0\0\0") + one(0, b"\2"))
    assert reply.data == struct.pack("<Q", 2)
    assert server.device.log == ["scratch 1", "scratch 2"]
    for data in (
        b"",
        struct.pack("<Q", 2) + one(0, b"\1"),
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 1) + one(0, b"", 9),
    ):
        with refused():
            await client.ask(Command.REGION_WRITE_MULTI, data)
    assert server.device.log == ["scratch 1", "scratch 2"]


async def test_requests_are_done_in_order_and_a_read_that_waits_stops_nobody_else(client, server):
    device = server.device
    reading = asyncio.create_task(client.read(0, 8, 4))
    while "waits" not in device.log:
        await asyncio.sleep(0)
    await client.tell(Command.REGION_WRITE, struct.pack("<QIII", 0, 0, 4, 1))
    behind = asyncio.create_task(client.read(0, 0, 4))
    await asyncio.sleep(0)
    assert device.log == ["waits"]
    device.gate.set()
    assert await reading == struct.pack("<I", 0x600D)
    assert await behind == struct.pack("<I", 1)
    assert device.log == ["waits", "scratch 1"]


async def test_what_a_device_raises_is_traced_and_answered(client, tracer):
    with refused(errno.EIO):
        await client.read(0, 0x10, 4)
    assert await client.read(0, 0, 4) == bytes(4)
    (event,) = tracer.of("device_failed")
    assert "the device's own fault" in str(event["error"])
    assert event["what"] == "REGION_READ"


async def test_reset(client, server, eventfds):
    (fd,) = eventfds(1)
    await client.bind(MSIX, 0, [fd])
    await client.write(0, 0, b"\1\2\3\4")
    await client.write(0, 0x18, struct.pack("<I", 3))
    assert (await client.read(0, 0xC00, 1)) == b"\x08"
    await client.ask(Command.DEVICE_RESET)
    assert server.device.log[-1] == "reset"
    assert await client.read(0, 0, 4) == bytes(4)
    assert await client.read(0, 0xC00, 1) == b"\0"
    # Whom to tell is the client's business.
    await client.write(0, 0x18, bytes(4))
    assert taken(fd) == 1


async def test_what_is_not_there(client):
    for flags in (0x10001, 0x20001, 0x40001, 0x70002):
        with refused(errno.ENOTTY):
            await client.ask(Command.DEVICE_FEATURE, struct.pack("<II", 8, flags))
    with refused():
        await client.ask(Command.DEVICE_FEATURE, bytes(4))
    for command in (Command.MIG_DATA_READ, Command.MIG_DATA_WRITE):
        with refused(errno.ENOTSUP):
            await client.ask(command, bytes(8))
    for command in (0, 14, 19, 999, Command.DMA_READ, Command.DMA_WRITE, Command.VERSION):
        with refused():
            await client.ask(command, bytes(16))


# -- memory --------------------------------------------------------------------------------------------------------------


async def test_map_and_unmap(client, server, memory):
    dma = server.device.dma
    await client.map(0x10000, 0x2000, fd=memory, offset=0x1000)
    await dma.write(0x10004, b"device")
    assert os.pread(memory, 6, 0x1004) == b"device"
    with refused(errno.EEXIST):
        await client.map(0x11000, 0x2000, fd=memory)
    for address, size in ((0x10000, 0x1000), (0x10001, 0x2000)):
        with refused(errno.ENOENT):
            await client.unmap(address, size)
    with refused(errno.ENOTSUP):
        await client.unmap(0x10000, 0x2000, flags=1)
    reply = await client.ask(Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0x10000, 0x2000))
    assert reply.data == struct.pack("<IIQQ", 24, 0, 0x10000, 0x2000)
    with pytest.raises(DmaError):
        await dma.read(0x10004, 6)
    for data, fds in (
        (bytes(8), ()),
        (struct.pack("<IIQQQ", 31, 3, 0, 0, 4096), (memory,)),
        (struct.pack("<IIQQQ", 32, 4, 0, 0, 4096), (memory,)),
        (struct.pack("<IIQQQ", 32, 3, 0, 0, 0), (memory,)),
        (struct.pack("<IIQQQ", 32, 3, 0, 0, 2**21), (memory,)),
        (struct.pack("<IIQQQ", 32, 3, 0, 0, 4096), (memory, memory)),
        (struct.pack("<IIQQQ", 32, 3, 0, 2**64 - 4096, 8192), (memory,)),
    ):
        with refused():
            await client.ask(Command.DMA_MAP, data, fds)
    assert len(dma) == 0


async def test_unmap_all(client, server, memory):
    for number in range(5):
        await client.map(number << 16, 4096, fd=memory)
    with refused():
        await client.unmap(0, 4096, flags=2)
    with refused(errno.ENOTSUP):
        await client.unmap(0, 0, flags=3)
    await client.unmap(0, 0, flags=2)
    assert len(server.device.dma) == 0


async def test_unmap_waits_for_the_device(client, server, memory):
    await client.map(0, 4096, fd=memory)
    with server.device.dma.view(0, 4):
        unmapping = asyncio.create_task(client.unmap(0, 4096))
        await client.tell(Command.REGION_READ, struct.pack("<QII", 0, 0, 4))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not unmapping.done()
    await unmapping


@pytest.mark.parametrize("twin", [False, True])
async def test_memory_without_a_file_descriptor(server, twin):
    ram = bytearray(1 << 16)
    asked = []

    def serve(address, count, data):
        asked.append((address, count))
        if address >= len(ram):
            raise OSError(errno.EFAULT, "beyond")
        if data is None:
            return bytes(ram[address : address + count])
        ram[address : address + count] = data
        return b""

    proposal = Capabilities(max_msg_fds=8, max_data_xfer_size=4096, twin_socket=twin)
    async with Client("socket", capabilities=proposal, memory=serve) as client:
        assert client.server.twin_socket is twin
        await client.map(0, 1 << 20)
        dma = server.device.dma
        await dma.write(0x100, b"by messages")
        assert ram[0x100:0x10B] == b"by messages"
        assert await dma.read(0x103, 8) == b"messages"
        # In pieces that the client takes.
        data = bytes(range(256)) * 40
        await dma.write(0x1000, data)
        assert await dma.read(0x1000, len(data)) == data
        assert asked[2:5] == [(0x1000, 4096), (0x2000, 4096), (0x3000, 2048)]
        with pytest.raises(DmaError, match="errno 14"):
            await dma.read(1 << 16, 4)


async def test_a_register_that_needs_the_clients_memory(tmp_path, monkeypatch):
    class Copies(Device):
        async def read(self, bar, offset, size):
            return await self.dma.read(offset, size)

    monkeypatch.chdir(tmp_path)
    async with (
        Server(Copies(), "other"),
        Client("other", memory=lambda address, count, _: bytes([address % 256]) * count) as client,
    ):
        await client.map(0, 1 << 16)
        assert await client.read(0, 5, 4) == b"\5\5\5\5"


async def test_a_client_that_goes_while_the_device_asks_it(server):
    async with Client("socket") as client:
        await client.map(0, 1 << 16)
        client._tasks[0].cancel()  # it answers nothing any more
        asking = asyncio.create_task(server.device.dma.read(0, 4))
        while not server._session._remote.waiting:
            await asyncio.sleep(0)
    with pytest.raises(DmaError, match="has gone"):
        await asking


# -- interrupts ----------------------------------------------------------------------------------------------------------


async def test_an_interrupt_is_one_write_to_the_clients_eventfd(client, server, eventfds):
    fds = eventfds(VECTORS)
    await client.bind(MSIX, 0, fds)
    await client.write(0, 0x18, struct.pack("<I", 3))
    assert [taken(fd) for fd in fds] == [0, 0, 0, 1, 0, 0, 0, 0]
    server.device.interrupt(7)
    assert taken(fds[7]) == 1


async def test_the_order_in_which_qemu_takes_and_gives(client, server, eventfds):
    """As Linux' driver comes up behind QEMU; what is signalled between two of these waits."""
    one, other, *_ = eventfds(2)
    device = server.device
    device.interrupt(0)
    await client.set_irqs(EVENTFD_TRIGGER, MSIX, 0, 1)
    device.interrupt(0)
    await client.set_irqs(NONE_TRIGGER, MSIX, 0, 0)
    device.interrupt(1)
    await client.bind(MSIX, 0, [one])
    await settled(server)
    assert (taken(one), taken(other)) == (1, 0)
    await client.set_irqs(NONE_TRIGGER, MSIX, 0, 0)
    device.interrupt(0)
    await client.bind(MSIX, 0, [one, other])
    await settled(server)
    assert (taken(one), taken(other)) == (1, 1)
    assert await client.read(0, 0xC00, 8) == bytes(8)


async def test_masked_by_the_client(client, server, eventfds):
    (fd,) = eventfds(1)
    await client.bind(MSIX, 2, [fd])
    await client.set_irqs(SetIrq.DATA_NONE | SetIrq.MASK, MSIX, 0, VECTORS)
    server.device.interrupt(2)
    assert (taken(fd), await client.read(0, 0xC00, 1)) == (0, b"\x04")
    await client.set_irqs(SetIrq.DATA_BOOL | SetIrq.UNMASK, MSIX, 1, 2, data=b"\1\0")
    await settled(server)
    assert taken(fd) == 0
    await client.set_irqs(SetIrq.DATA_BOOL | SetIrq.UNMASK, MSIX, 1, 2, data=b"\0\1")
    await settled(server)
    assert (taken(fd), await client.read(0, 0xC00, 1)) == (1, b"\0")


async def test_triggered_by_the_client(client, server, eventfds):
    one, other = eventfds(2)
    os.eventfd_write(one, 4)
    os.eventfd_write(other, 8)
    await client.bind(MSIX, 0, [one, other])
    await client.set_irqs(NONE_TRIGGER, MSIX, 1, 1)
    assert (taken(one), taken(other)) == (4, 9)
    await client.set_irqs(SetIrq.DATA_BOOL | SetIrq.TRIGGER, MSIX, 0, 2, data=b"\0\1")
    assert (taken(one), taken(other)) == (0, 1)


async def test_intx_is_masked_by_itself(client, server, eventfds):
    (fd,) = eventfds(1)
    device = server.device
    await client.bind(INTX, 0, [fd])
    device.pin = True
    assert taken(fd) == 1
    device.pin = True
    await settled(server)
    assert taken(fd) == 0
    await client.set_irqs(SetIrq.DATA_NONE | SetIrq.UNMASK, INTX, 0, 1)
    await settled(server)
    assert taken(fd) == 1
    device.pin = False
    await client.set_irqs(SetIrq.DATA_NONE | SetIrq.UNMASK, INTX, 0, 1)
    await settled(server)
    assert taken(fd) == 0
    await client.set_irqs(NONE_TRIGGER, INTX, 0, 1)
    assert taken(fd) == 1


async def test_intx_is_ended_by_the_hypervisor(client, server, eventfds):
    fd, end = eventfds(2)
    await client.bind(INTX, 0, [fd])
    await client.set_irqs(SetIrq.DATA_EVENTFD | SetIrq.UNMASK, INTX, 0, 1, fds=[end])
    server.device.pin = True
    assert taken(fd) == 1
    os.eventfd_write(end, 1)
    for _ in range(20):
        await asyncio.sleep(0)
        await settled(server)
    assert taken(fd) == 1
    await client.set_irqs(SetIrq.DATA_EVENTFD | SetIrq.UNMASK, INTX, 0, 1)


async def test_somebody_hears_of_masks(client, eventfds):
    masked, unmasked = eventfds(2)
    await client.set_irqs(SetIrq.DATA_EVENTFD | SetIrq.MASK, MSIX, 3, 1, fds=[masked])
    await client.set_irqs(SetIrq.DATA_EVENTFD | SetIrq.UNMASK, MSIX, 3, 1, fds=[unmasked])
    await client.set_irqs(SetIrq.DATA_NONE | SetIrq.MASK, MSIX, 0, VECTORS)
    assert (taken(masked), taken(unmasked)) == (1, 0)
    await client.set_irqs(SetIrq.DATA_NONE | SetIrq.UNMASK, MSIX, 3, 1)
    assert (taken(masked), taken(unmasked)) == (0, 1)
    await client.set_irqs(SetIrq.DATA_EVENTFD | SetIrq.MASK, MSIX, 3, 1)
    await client.set_irqs(SetIrq.DATA_NONE | SetIrq.MASK, MSIX, 3, 1)
    assert taken(masked) == 0


async def test_errors_and_requests_of_the_device(client, server, eventfds):
    error, request = eventfds(2)
    assert not server.report_error()
    await client.bind(ERR, 0, [error])
    await client.bind(REQ, 0, [request])
    assert server.report_error()
    assert server.request_release()
    await client.set_irqs(NONE_TRIGGER, REQ, 0, 1)
    assert (taken(error), taken(request)) == (1, 2)
    await client.set_irqs(EVENTFD_TRIGGER, ERR, 0, 1)
    assert not server.report_error()


BAD = {
    "no such kind": (NONE_TRIGGER, 5, 0, 0, b"", 0),
    "two actions": (SetIrq.DATA_NONE | SetIrq.MASK | SetIrq.UNMASK, MSIX, 0, 1, b"", 0),
    "no action": (SetIrq.DATA_NONE, MSIX, 0, 1, b"", 0),
    "two kinds of data": (SetIrq.DATA_NONE | SetIrq.DATA_BOOL | SetIrq.MASK, MSIX, 0, 1, b"", 0),
    "no data": (SetIrq.MASK, MSIX, 0, 1, b"", 0),
    "a flag that is not known": (NONE_TRIGGER | 0x40, MSIX, 0, 1, b"", 0),
    "over the end": (SetIrq.DATA_NONE | SetIrq.MASK, MSIX, VECTORS - 1, 2, b"", 0),
    "behind the end": (SetIrq.DATA_NONE | SetIrq.MASK, MSIX, VECTORS + 1, 1, b"", 0),
    "over 2**32": (SetIrq.DATA_NONE | SetIrq.MASK, MSIX, 2**32 - 1, 2, b"", 0),
    "ERR masked": (SetIrq.DATA_NONE | SetIrq.MASK, ERR, 0, 1, b"", 0),
    "REQ unmasked": (SetIrq.DATA_NONE | SetIrq.UNMASK, REQ, 0, 1, b"", 0),
    "two of ERR": (NONE_TRIGGER, ERR, 0, 2, b"", 0),
    "none, from 1 on": (NONE_TRIGGER, MSIX, 1, 0, b"", 0),
    "none masked": (SetIrq.DATA_NONE | SetIrq.MASK, MSIX, 0, 0, b"", 0),
    "none by bools": (SetIrq.DATA_BOOL | SetIrq.TRIGGER, MSIX, 0, 0, b"", 0),
    "bools and an fd": (SetIrq.DATA_BOOL | SetIrq.TRIGGER, MSIX, 0, 1, b"\1", 1),
    "no data and an fd": (NONE_TRIGGER, MSIX, 0, 1, b"", 1),
    "one fd for two": (EVENTFD_TRIGGER, MSIX, 0, 2, b"", 1),
    "three fds for two": (EVENTFD_TRIGGER, MSIX, 0, 2, b"", 3),
    "too few bools": (SetIrq.DATA_BOOL | SetIrq.TRIGGER, MSIX, 0, 2, b"\0", 0),
    "too many bools": (SetIrq.DATA_BOOL | SetIrq.TRIGGER, MSIX, 0, 2, b"\0\0\0", 0),
    "MSI that is not there": (NONE_TRIGGER, 1, 0, 1, b"", 0),
}


@pytest.mark.parametrize("name", BAD)
async def test_interrupts_that_are_refused(client, server, eventfds, name):
    flags, index, start, count, data, fds = BAD[name]
    (bound,) = eventfds(1)
    await client.bind(MSIX, 0, [bound])
    with refused():
        await client.set_irqs(flags, index, start, count, data=data, fds=eventfds(fds))
    server.device.interrupt(0)
    assert taken(bound) == 1


async def test_other_interrupts_that_are_refused(client, server, eventfds, memory):
    (bound,) = eventfds(1)
    with refused():
        await client.ask(Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 3, NONE_TRIGGER, REQ, 0, 0))
    for data in (b"", bytes(8)):
        with refused():
            await client.ask(Command.DEVICE_SET_IRQS, data)
    # One that is no eventfd: none is taken.
    with refused():
        await client.bind(MSIX, 0, [bound, memory])
    server.device.interrupt(0)
    assert (taken(bound), server.function.interrupts.pending(0)) == (0, True)


# -- clients come and go -------------------------------------------------------------------------------------------------


async def test_a_client_goes_and_another_comes(server, tracer, eventfds, memory):
    one, other = eventfds(2)
    async with Client("socket") as client:
        await client.map(0, 4096, fd=memory)
        await client.bind(MSIX, 0, [one])
        await client.set_irqs(SetIrq.DATA_NONE | SetIrq.MASK, MSIX, 1, 1)
        await client.write(0, 0, b"kept")
    async with Client("socket") as client:
        assert len(server.device.dma) == 0
        assert await client.read(0, 0, 4) == b"kept"
        server.device.interrupt(0)
        server.device.interrupt(1)
        assert taken(one) == 0
        await client.bind(MSIX, 0, [other, other])
        await settled(server)
        assert taken(other) == 2
        assert server.statistics().sessions == 2
    while tracer.names.count("client_disconnected") < 2:
        await asyncio.sleep(0)
    assert [event["reason"] for event in tracer.of("client_disconnected")] == [None, None]


async def test_a_server_goes_and_another_comes(tmp_path, monkeypatch, eventfds, memory):
    """What a client can count on: it is told, whatever it waits for; and the next server knows of nothing."""
    monkeypatch.chdir(tmp_path)
    (fd,) = eventfds(1)
    device = Device()
    async with Server(device, "socket"):
        client = await Client("socket").__aenter__()
        await client.bind(MSIX, 0, [fd])
        await client.map(0, 4096, fd=memory)
        reading = asyncio.create_task(client.read(0, 8, 4))
        while "waits" not in device.log:
            await asyncio.sleep(0)
    with pytest.raises(ConnectionError):
        await reading
    with pytest.raises(ConnectionError):
        await client.read(0, 0, 4)
    await client.aclose()
    async with Server(Device(), "socket") as server, Client("socket") as client:
        assert await client.read(0, 0, 4) == bytes(4)
        assert len(server.device.dma) == 0
        server.device.interrupt(0)
        assert taken(fd) == 0
        await client.bind(MSIX, 0, [fd])
        await settled(server)
        assert taken(fd) == 1


async def test_a_client_that_goes_while_a_register_waits(server):
    async with Client("socket") as client:
        reading = asyncio.create_task(client.read(0, 8, 4))
        while "waits" not in server.device.log:
            await asyncio.sleep(0)
    reading.cancel()
    async with Client("socket") as client:
        assert await client.read(0, 0, 4) == bytes(4)


async def test_a_server_is_told_to_end_while_it_ends_a_client(tmp_path, monkeypatch, tracer, eventfds):
    """A register takes its time to be cancelled. What the client has given is closed all the same."""
    monkeypatch.chdir(tmp_path)
    slow, cancelled = asyncio.Event(), asyncio.Event()

    class Slow(Device):
        async def read(self, bar, offset, size):
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
                await slow.wait()
            return bytes(size)

    server = Server(Slow(), "socket", tracer=tracer)
    await server.__aenter__()
    client = Client("socket")
    await client.__aenter__()
    await client.bind(MSIX, 0, eventfds(2))
    reading = asyncio.ensure_future(client.read(0, 0, 4))
    while server.statistics().messages < 3:
        await asyncio.sleep(0)
    reading.cancel()
    await client.__aexit__(None, None, None)
    await cancelled.wait()
    ending = asyncio.ensure_future(server.__aexit__(None, None, None))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not ending.done()
    slow.set()
    await ending


async def test_a_socket_that_is_handed_in(tracer):
    ours, theirs = socket.socketpair()
    async with Server(Device(), sock=ours, tracer=tracer) as server:
        async with Client(theirs) as client:
            assert await client.read(0, 0, 4) == bytes(4)
        await server.serve_forever()  # the only client has gone


def test_where_a_server_cannot_serve(tmp_path):
    with pytest.raises(TypeError, match="one of the two"):
        Server(Device())
    with pytest.raises(ValueError, match="Unix stream socket"), socket.socket() as other:
        Server(Device(), sock=other)
