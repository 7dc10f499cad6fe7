"""Front-ends that say anything at all, in any order: the back-end survives each of them, and serves the next one as ever."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from pathlib import Path

import pytest

from aioirqfd.testing import RecordingTracer
from aioirqfd.vhost_user import Backend
from aioirqfd.vhost_user.driver import DriverMemory
from aioirqfd.vhost_user.errors import VhostUserProtocolError
from aioirqfd.vhost_user.messages import (
    U64,
    ConfigSpace,
    Inflight,
    MemoryRegion,
    MemoryTable,
    Request,
    SingleRegion,
    VringAddr,
    VringFd,
    VringState,
)
from tests.vhost_user.devices import Upper
from tests.vhost_user.frontend import FEATURES, FrontEnd

NUMBERS = (0, 1, 2, 3, 4, 8, 16, 255, 256, 4096, 65535, 65536, 2**31, 2**32 - 1)
WIDE = (*NUMBERS, int(FEATURES), 2**32, 2**63, 2**64 - 1)
EVENTFD, MEMORY, FILE, SOCKET = "eventfd", "memory", "file", "socket"


class Fuzzer:
    """Messages that are mostly right, and wrong in one thing."""

    def __init__(self, seed: int, front: FrontEnd) -> None:
        self.random = random.Random(seed)
        self.front = front
        self.queue = front.queue(0, 8)
        self.driver = self.queue.driver

    def number(self, good):
        return good if self.random.random() < 0.9 else self.random.choice(NUMBERS)

    def wide(self, good):
        return good if self.random.random() < 0.9 else self.random.choice(WIDE)

    def index(self):
        return self.number(self.random.randrange(2))

    def region(self):
        good = self.front.ram.region
        return MemoryRegion(
            self.wide(good.guest_address),
            self.wide(good.size),
            self.wide(good.user_address),
            self.wide(good.mmap_offset),
        )

    def fds(self, *kinds):
        if self.random.random() < 0.005:
            kinds = tuple(self.random.choice((EVENTFD, MEMORY, FILE)) for _ in range(self.random.randrange(4)))
        return kinds

    def message(self):
        """A request, its payload, and the kinds of its fds."""
        good = self.driver.address(0)
        index = self.index()
        byte = index & 0xFF
        address = VringAddr(index, 0, self.wide(good.descriptor), self.wide(good.used), self.wide(good.available))
        inflight = Inflight(
            self.wide(4096), self.wide(0), self.random.choice((1, 2, 65535)), self.random.choice((8, 0, 65535))
        )
        choices = [
            (Request.GET_FEATURES, None),
            (Request.SET_FEATURES, U64(self.wide(int(FEATURES)))),
            (Request.SET_PROTOCOL_FEATURES, U64(self.wide(9))),
            (Request.SET_OWNER, None),
            (Request.RESET_OWNER, None),
            (Request.RESET_DEVICE, None),
            (Request.GET_QUEUE_NUM, None),
            (Request.GET_MAX_MEM_SLOTS, None),
            (Request.SET_MEM_TABLE, MemoryTable((self.region(),)), MEMORY),
            (Request.SET_MEM_TABLE, MemoryTable((self.front.ram.region,)), MEMORY),
            (Request.ADD_MEM_REG, SingleRegion(self.region()), MEMORY),
            (Request.REM_MEM_REG, SingleRegion(self.region())),
            (Request.SET_VRING_NUM, VringState(index, self.number(8))),
            (Request.SET_VRING_BASE, VringState(index, self.number(0))),
            (Request.GET_VRING_BASE, VringState(index, 0)),
            (Request.SET_VRING_ENABLE, VringState(index, self.number(1))),
            (Request.SET_VRING_ADDR, address),
            (Request.SET_VRING_ADDR, good),
            (Request.SET_VRING_KICK, VringFd(byte), EVENTFD),
            (Request.SET_VRING_KICK, VringFd(byte, has_fd=False)),
            (Request.SET_VRING_CALL, VringFd(byte), EVENTFD),
            (Request.SET_VRING_CALL, VringFd(byte, has_fd=False)),
            (Request.SET_VRING_ERR, VringFd(byte), EVENTFD),
            (Request.GET_CONFIG, ConfigSpace(self.number(0), 0, bytes(self.random.choice((0, 1, 60, 256))))),
            (Request.SET_CONFIG, ConfigSpace(self.number(0), 0, bytes(4))),
            (Request.GET_INFLIGHT_FD, inflight),
            (Request.SET_INFLIGHT_FD, inflight, MEMORY),
            (Request.GET_STATUS, None),
            (Request.SET_STATUS, U64(self.wide(15))),
            (Request.SET_BACKEND_REQ_FD, None, SOCKET),
        ]
        if self.random.random() < 0.005:
            choices = [(self.random.choice((0, 41, 4711, *Request)), None)]
        request, payload, *kinds = self.random.choice(choices)
        return request, payload, self.fds(*kinds)

    def guest(self):
        """The guest scribbles on its rings, and kicks."""
        view = self.front.ram.view
        for _ in range(self.random.randrange(8)):
            view[self.random.randrange(1024)] = self.random.choice((0, 1, 2, 3, 4, 7, 255, self.random.randrange(256)))


@pytest.mark.parametrize("seed", range(40))
async def test_any_order_of_messages_is_survived(tmp_path, monkeypatch, seed):
    monkeypatch.chdir(tmp_path)
    tracer = RecordingTracer()
    with DriverMemory(1 << 18, guest_address=1 << 32) as ram:
        device = Upper(num_queues=2, config=bytes(60))
        async with Backend(device, "socket", tracer=tracer):
            for round_ in range(5):
                async with FrontEnd("socket", memory=ram) as front:
                    fuzzer = Fuzzer(1000 * seed + round_, front)
                    await front.negotiate()
                    await front.set_memory()
                    await fuzzer.queue.start()
                    await drive(front, fuzzer, 100)
                    device.config_changed()
                ram.view[:4096] = bytes(4096)
                ram._top = 0
                ram._free.clear()
            async with FrontEnd("socket") as front:
                queue = await front.start()
                assert await queue.ask([b"fine"], [8]) == b"FINE"
    assert tracer.of("session_failed") == []


async def drive(front, fuzzer, count):
    eventfds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
    ours, theirs = socket.socketpair()
    with Path(__file__).open("rb") as file, ours, theirs:
        kinds = {
            EVENTFD: lambda: fuzzer.random.choice(eventfds),
            MEMORY: front.ram.fileno,
            FILE: file.fileno,
            SOCKET: theirs.fileno,
        }
        try:
            for _ in range(count):
                fuzzer.guest()
                os.eventfd_write(fuzzer.random.choice(eventfds), 1)
                request, payload, wanted = fuzzer.message()
                fds = tuple(kinds[kind]() for kind in wanted)
                try:
                    await front.send(request, payload, fds, need_reply=fuzzer.random.random() < 0.2)
                except VhostUserProtocolError:
                    # What this side's own codec would not send is sent past it.
                    data = b"" if payload is None else payload.pack()
                    socket.send_fds(front.sock, [b"".join(map(_word, (request, 1, len(data)))) + data], fds)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                with contextlib.suppress(BlockingIOError):
                    _, got, _, _ = socket.recv_fds(front.sock, 65536, 8)
                    for fd in got:
                        os.close(fd)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            for fd in eventfds:
                os.close(fd)


def _word(number):
    return int(number).to_bytes(4, "little")
