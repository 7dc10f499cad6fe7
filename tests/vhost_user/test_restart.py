"""A back-end process that is killed in mid-load and started again loses no request: the inflight buffer remembers them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from aioirqfd.vhost_user import Backend
from aioirqfd.vhost_user.driver import DriverMemory, DriverQueue
from aioirqfd.vhost_user.features import ProtocolFeature
from aioirqfd.vhost_user.messages import Inflight, Request
from tests.vhost_user.devices import Gated, Receiver, Upper
from tests.vhost_user.frontend import PROTOCOL_FEATURES, FrontEnd

ROOT = Path(__file__).parents[2]
KILLS = 8
LOAD = 400
"""Answers per queue between two kills."""


@contextlib.contextmanager
def mortal(path):
    """The back-end as a process of its own; killed at the end."""
    process = subprocess.Popen([sys.executable, "-W", "error", "-m", "tests.vhost_user.mortal", path], cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def connected(path, memory):
    """A front-end, as soon as the process listens; the old one's socket is still there."""
    while True:
        try:
            return await FrontEnd(path, memory=memory).__aenter__()
        except (FileNotFoundError, ConnectionRefusedError):
            await asyncio.sleep(0.01)


async def with_inflight(front, description=None, fd=None, *, size=32):
    await front.negotiate(protocol_features=PROTOCOL_FEATURES | ProtocolFeature.INFLIGHT_SHMFD)
    if fd is None:
        reply = await front.ask(Request.GET_INFLIGHT_FD, Inflight(0, 0, 2, size))
        description, (fd,) = reply.payload, reply.fds
    await front.tell(Request.SET_INFLIGHT_FD, description, [fd])
    await front.set_memory()
    return description, fd


@pytest.mark.slow
async def test_sigkill_under_load_loses_no_request(tmp_path):
    path = f"/tmp/aioirqfd-{os.getpid()}-{tmp_path.name[-20:]}"
    expected: dict[tuple[int, int], bytes] = {}
    answered = 0
    number = 0
    with DriverMemory(1 << 20, guest_address=1 << 32) as ram, contextlib.ExitStack() as stack:
        stack.callback(Path(path).unlink, missing_ok=True)
        drivers = [DriverQueue(ram, 32, indirect=bool(index)) for index in range(2)]
        description = fd = None
        for life in range(KILLS + 1):
            with mortal(path) as process:
                front = await connected(path, ram)
                try:
                    description, fd = await with_inflight(front, description, fd)
                    if not life:
                        stack.callback(os.close, fd)
                    queues = [front.queue(index, driver=driver) for index, driver in enumerate(drivers)]
                    for queue in queues:
                        # What QEMU does after a crash: it goes on from the used ring's index.
                        await queue.start(base=queue.driver._used_words[1])
                    goal = answered + 2 * LOAD
                    last = life == KILLS
                    while expected or answered < goal:
                        for queue in queues:
                            while queue.driver.outstanding < 15 and answered + len(expected) < goal:
                                text = b"request %d" % number
                                head = queue.driver.request([text], [32])
                                assert (queue.index, head) not in expected
                                expected[queue.index, head] = text.upper()
                                number += 1
                            queue.publish()
                        if not last and answered >= goal - LOAD and expected:
                            break  # in mid-load
                        for queue in queues:
                            for used in queue.driver.collect():
                                assert expected.pop((queue.index, used.head)) == used.data
                                answered += 1
                            queue.driver.enable_calls()
                        await asyncio.sleep(0)
                    process.kill()
                    process.wait()
                    assert last or expected
                finally:
                    await front.__aexit__()
    assert not expected
    assert answered == number


async def test_requests_in_flight_come_again_in_order(tmp_path, monkeypatch):
    """The same in one process, each step of it: the front-end goes while requests wait, and the next life gets them first."""
    monkeypatch.chdir(tmp_path)
    with DriverMemory(1 << 18, guest_address=1 << 32) as ram:
        driver = DriverQueue(ram, 32)
        device = Gated()
        async with Backend(device, "socket") as backend, FrontEnd("socket", memory=ram) as front:
            description, fd = await with_inflight(front)
            queue = front.queue(0, driver=driver)
            await queue.start()
            for name in (b"a", b"b", b"c", b"d"):
                queue.put([name], [4])
            while len(device.gates) < 4:
                await asyncio.sleep(0)
            device.open(b"b")
            assert [used.data for used in await queue.answers()] == [b"B"]
            assert backend.statistics().queues[0].answers == 1
        device = Gated()
        async with Backend(device, "socket") as backend, FrontEnd("socket", memory=ram) as front:
            await with_inflight(front, description, fd)
            os.close(fd)
            queue = front.queue(0, driver=driver)
            queue.put([b"new"], [4])
            await queue.start(base=driver._used_words[1])
            while len(device.gates) < 4:
                await asyncio.sleep(0)
            assert list(device.gates) == [b"a", b"c", b"d", b"new"]
            device.open(b"a", b"c", b"d", b"new")
            answers = await queue.answers(4)
            assert sorted(used.data for used in answers) == [b"A", b"C", b"D", b"NEW"]
            assert backend.statistics().queues[0].resubmitted == 3


async def test_a_clean_stop_leaves_nothing_in_flight(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with Backend(Upper(num_queues=2), "socket") as backend, FrontEnd("socket") as front:
        _, fd = await with_inflight(front)
        os.close(fd)
        queue = front.queue(0, 32)
        await queue.start()
        for _ in range(40):
            await queue.ask([b"a"], [1])
        base = await queue.stop()
        assert base == 40
        await queue.start(base=base)
        assert await queue.ask([b"a"], [1]) == b"A"
        assert backend.statistics().queues[0].resubmitted == 0


async def test_a_reset_leaves_nothing_in_flight(tmp_path, monkeypatch):
    """The next ring is another one, in which the requests that were cancelled mean nothing."""
    monkeypatch.chdir(tmp_path)
    device = Receiver()
    async with Backend(device, "socket") as backend, FrontEnd("socket") as front:
        _, fd = await with_inflight(front)
        os.close(fd)
        queue = front.queue(0, 32)
        await queue.start()
        for name in (b"a", b"b", b"c"):
            queue.put([name], [4])
        while len(device.gates) < 3:
            await asyncio.sleep(0)
        protocol_features = PROTOCOL_FEATURES | ProtocolFeature.RESET_DEVICE | ProtocolFeature.INFLIGHT_SHMFD
        await front.negotiate(protocol_features=protocol_features)
        await front.tell(Request.RESET_DEVICE)
        assert device.cancelled == [b"a", b"b", b"c"]
        device.gates.clear()
        await front.negotiate(protocol_features=protocol_features)
        again = front.queue(0, 32)
        await again.start()
        again.put([b"new"], [4])
        while not device.gates:
            await asyncio.sleep(0)
        device.open(b"new")
        assert [used.data for used in await again.answers()] == [b"NEW"]
        assert backend.statistics().queues[0].resubmitted == 0
        queue.close()


async def test_a_terminated_back_end_takes_its_socket_away(tmp_path):
    path = f"/tmp/aioirqfd-{os.getpid()}-{tmp_path.name[-20:]}"
    with mortal(path) as process:
        while True:
            with socket.socket(socket.AF_UNIX) as sock:
                try:
                    sock.connect(path)
                    break
                except (FileNotFoundError, ConnectionRefusedError):
                    await asyncio.sleep(0.01)
        process.terminate()
        assert process.wait() == 0
    assert not Path(path).exists()
