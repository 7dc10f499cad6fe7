"""What libvfio-user's own tests assert, and no other test of ours does: see docs/explanation/vfio-user.md."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from aioirqfd import EventFd
from aioirqfd.pci import Bar, MsiX, PciDevice, PciExpress, PowerManagement, SerialNumber
from aioirqfd.pci.errors import RegionError
from aioirqfd.vfio_user import Server
from aioirqfd.vfio_user.capabilities import unpack
from aioirqfd.vfio_user.client import Client
from aioirqfd.vfio_user.messages import MAX_DATA, Command, SetIrq
from tests.vfio_user.conftest import Device, refused, taken

CONFIG, MSIX, ERR, REQ = 7, 2, 3, 4


def test_what_a_client_says_of_migration_is_ignored():
    for said in (b'"23"', b'{"pgsize": "foo"}'):
        assert unpack(struct.pack("<HH", 0, 1) + b'{"capabilities": {"migration": %s}}\0' % said)[:2] == (0, 1)


async def test_the_socket_goes_with_the_server(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    device = Device()
    async with Server(device, "socket"), Client("socket"):
        assert Path("socket").is_socket()
    assert not Path("socket").exists()
    assert "reset" not in device.log


async def test_no_bytes_are_read_and_written(client, server):
    for region in (0, 2, 3, CONFIG):
        assert await client.read(region, 0, 0) == b""
        await client.write(region, 0, b"")
    assert server.device.log == []


@pytest.mark.parametrize("offset", [0, 2**64 - 1])
async def test_too_many_bytes_are_refused(client, offset):
    with refused():
        await client.read(CONFIG, offset, MAX_DATA + 8)


async def test_room_for_doorbells_is_no_request(client):
    reply = await client.ask(Command.DEVICE_GET_REGION_IO_FDS, struct.pack("<IIII", 2**32 - 1, 0, 0, 0))
    assert struct.unpack("<IIII", reply.data) == (16, 0, 0, 0)


async def test_a_doorbell_over_the_end_of_its_region(server):
    with EventFd() as bell, pytest.raises(RegionError):
        server.device.doorbell(bell, bar=0, offset=4092, length=8)


@pytest.mark.parametrize("kind", [ERR, REQ])
async def test_errors_and_requests_have_their_eventfd_taken_away(client, server, eventfds, kind):
    tell = {ERR: server.report_error, REQ: server.request_release}[kind]
    (fd,) = eventfds(1)
    for flags, count in ((SetIrq.DATA_NONE | SetIrq.TRIGGER, 0), (SetIrq.DATA_EVENTFD | SetIrq.TRIGGER, 1)):
        await client.bind(kind, 0, [fd])
        assert tell()
        assert taken(fd) == 1
        await client.set_irqs(flags, kind, 0, count)
        assert not tell()
        await client.set_irqs(flags, kind, 0, count)  # there is none, and that is no error


class Capable(PciDevice):
    bars = (Bar(4096),)
    capabilities = (PowerManagement(), PciExpress(), SerialNumber(0x1122334455667788))


async def test_what_may_be_written_of_the_configuration_space(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with Server(Capable(), "capable") as server, Client("capable") as client:
        config = server.function.config
        power, serial = config.find(PowerManagement), config.find(SerialNumber)
        assert (power, serial) == (0x40, 0x100)
        before = await client.read(CONFIG, 0, 4096)
        for offset in (power, power + 1, power + 2, power + 3, power + 6, power + 7):
            await client.write(CONFIG, offset, b"\xff")
        await client.write(CONFIG, serial, bytes(12))
        for offset in (0x28, 0x30):  # the second device control, and link control
            await client.write(CONFIG, config.find(PciExpress) + offset, b"\xde\xad")
        await client.write(CONFIG, 0x06, b"\xff\xff")
        assert await client.read(CONFIG, 0, 4096) == before
        await client.write(CONFIG, power + 4, b"\3\0")
        assert (await client.read(CONFIG, power + 4, 1))[0] & 3 == 3


async def test_the_control_of_msix_in_pieces(client, server):
    at = server.function.config.find(MsiX)
    whole = await client.read(CONFIG, at, 12)
    enabled = whole[:3] + b"\xc0" + whole[4:]
    for offset, data, expected in (
        (2, b"\xff\xff", enabled),
        (2, b"\0\0", whole),
        (3, b"\xc0\xff", enabled),  # as some versions of QEMU do
        (4, bytes(8), enabled),
    ):
        await client.write(CONFIG, at + offset, data)
        assert await client.read(CONFIG, at, 12) == expected, (offset, data)


async def test_the_very_same_mapping_again(client, server):
    await client.map(0x10000, 0x1000)
    with refused(errno.EEXIST):
        await client.map(0x10000, 0x1000)
    await client.ask(Command.DMA_UNMAP, struct.pack("<IIQQ", 2**32 - 1, 0, 0x10000, 0x1000))
    assert len(server.device.dma) == 0


async def test_a_feature_without_room_for_its_answer(client):
    with refused(errno.ENOTTY):
        await client.ask(Command.DEVICE_FEATURE, struct.pack("<II", 2, 0x10001))
    with refused():
        await client.ask(Command.DEVICE_FEATURE, struct.pack("<II", 8, 0x10001)[:-1])
