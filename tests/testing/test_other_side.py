"""The other side of a device's socket, as it is shipped: devices served here, and elsewhere."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap

import pytest

from aioirqfd.faults import Corrupt, Faults, Match
from aioirqfd.pci import Bar, PciDevice, Register
from aioirqfd.testing import FrontEndError, RecordingTracer, vfio_user_client, vhost_user_frontend
from aioirqfd.vfio_user import Server
from aioirqfd.vhost_user import Backend
from aioirqfd.vhost_user.messages import Request, VringState
from aioirqfd.virtio import Device


class Upper(Device):
    num_queues = 2
    features = 1 << 3

    async def handle(self, request):
        return request.write(request.read().upper())


class Plain(PciDevice):
    bars = (Bar(4096),)
    value = Register(0, reset=5)


async def test_a_virtio_device_that_is_served_here():
    tracer = RecordingTracer()
    device = Upper()
    async with vhost_user_frontend(device, tracer=tracer) as front:
        assert list(front.queues) == [0, 1]
        assert front.features & 1 << 3
        for queue in front.queues.values():
            assert await queue.ask([b"hello"], [5]) == b"HELLO"
    assert tracer.names.count("vring_started") == 2
    assert device.transport is None


async def test_a_virtio_device_that_is_served_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with Backend(Upper(), "socket"), vhost_user_frontend("socket", queues=1, size=8, features=0) as front:
        assert list(front.queues) == [0]
        assert front.queues[0].driver.size == 8
        assert not front.features & 1 << 3
        assert await front.queues[0].ask([b"hello"], [5]) == b"HELLO"


async def test_a_back_end_that_says_no():
    async with vhost_user_frontend(Upper()) as front:
        with pytest.raises(FrontEndError, match=r"SET_VRING_NUM.* was sent, and acknowledged as failed: 1"):
            await front.tell(Request.SET_VRING_NUM, VringState(0, 3))


async def test_a_back_end_that_hangs_up():
    device = Upper()
    async with vhost_user_frontend(device) as front:
        assert device.transport is not None
        device.transport.hang_up()
        assert await front.closed()
        with pytest.raises((FrontEndError, ConnectionError)):
            await front.number(Request.GET_FEATURES)


async def test_a_pci_device_that_is_served_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with vfio_user_client(Plain()) as client:
        assert await client.read(0, 0, 4) == b"\5\0\0\0"
    async with Server(Plain(), "socket"), vfio_user_client("socket") as client:
        assert await client.read(0, 0, 4) == b"\5\0\0\0"


async def test_faults_are_made_of_both():
    with contextlib.closing(Faults(nonconforming=True)) as faults:
        fault = faults.add(Match(("request", "register-read")), Corrupt("data", mask=0x20))
        async with vhost_user_frontend(faults.wrap(Upper())) as front:
            assert await front.queues[0].ask([b"hello"], [5]) == b"hELLO"
        async with vfio_user_client(faults.wrap(Plain())) as client:
            assert await client.read(0, 0, 4) == b"\x25\0\0\0"
        assert fault.hits == 2


def test_the_fixtures(tmp_path):
    (tmp_path / "test_suite.py").write_text(
        textwrap.dedent("""
        import asyncio
        from aioirqfd import testing
        from aioirqfd.virtio import Device

        class Upper(Device):
            async def handle(self, request):
                return request.write(request.read().upper())

        def test_it(vhost_user_frontend, vfio_user_client, guest):
            assert (vfio_user_client, guest) == (testing.vfio_user_client, testing.guest)

            async def ask():
                async with vhost_user_frontend(Upper()) as front:
                    return await front.queues[0].ask([b"hello"], [5])

            assert asyncio.run(ask()) == b"HELLO"
        """)
    )
    done = subprocess.run(
        [
            *(sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio"),
            *("-p", "aioirqfd.testing.plugin", "test_suite.py"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
