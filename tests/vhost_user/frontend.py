"""A front-end that plays QEMU over the real socket: its own guest RAM, its own driver for each queue."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Self

from aioirqfd import EventFd
from aioirqfd.vhost_user.connection import Connection
from aioirqfd.vhost_user.driver import DriverMemory, DriverQueue, Used
from aioirqfd.vhost_user.features import ProtocolFeature
from aioirqfd.vhost_user.messages import (
    U64,
    AnyPayload,
    MemoryTable,
    Message,
    Request,
    VringAddr,
    VringFd,
    VringState,
)
from aioirqfd.vhost_user.protocol import Direction
from aioirqfd.virtio.features import VirtioFeature

FEATURES = (
    VirtioFeature.VERSION_1 | VirtioFeature.EVENT_IDX | VirtioFeature.INDIRECT_DESC | VirtioFeature.PROTOCOL_FEATURES
)
PROTOCOL_FEATURES = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK
BASE = 0x1_0000_0000


class Queue:
    """One queue: its ring in the guest's RAM, its kick and its call."""

    def __init__(self, front: FrontEnd, index: int, driver: DriverQueue) -> None:
        self.front = front
        self.index = index
        self.driver = driver
        self.kick = EventFd()
        self.call = EventFd()
        self.err = EventFd()
        self.kicks = self.calls = 0

    def close(self) -> None:
        for eventfd in (self.kick, self.call, self.err):
            eventfd.close()

    def publish(self) -> None:
        """Kick, if the device wants it."""
        if self.driver.kick_needed():
            self.kicks += 1
            self.kick.signal()

    def put(self, readable=(), writable=()) -> int:
        head = self.driver.request(readable, writable)
        self.publish()
        return head

    async def answers(self, count: int = 1) -> list[Used]:
        """Wait for calls until that many answers are there."""
        found: list[Used] = []
        while True:
            found += self.driver.collect()
            if len(found) >= count:
                return found
            if not self.driver.enable_calls():
                self.calls += await self.call.read()

    async def ask(self, readable=(), writable=()) -> bytes:
        """One request, and its answer's bytes."""
        self.put(readable, writable)
        (used,) = await self.answers()
        return used.data

    async def start(self, *, base: int = 0, enable: bool = True, address: VringAddr | None = None) -> None:
        """The messages in QEMU's order."""
        front, index = self.front, self.index
        await front.tell(Request.SET_VRING_NUM, VringState(index, self.driver.size))
        await front.tell(Request.SET_VRING_BASE, VringState(index, base))
        await front.tell(Request.SET_VRING_ADDR, address or self.driver.address(index))
        await front.tell(Request.SET_VRING_KICK, VringFd(index), [self.kick.fileno()])
        if enable:
            await front.tell(Request.SET_VRING_ENABLE, VringState(index, 1))
        await front.tell(Request.SET_VRING_CALL, VringFd(index), [self.call.fileno()])
        await front.tell(Request.SET_VRING_ERR, VringFd(index), [self.err.fileno()])

    async def stop(self) -> int:
        reply = await self.front.ask(Request.GET_VRING_BASE, VringState(self.index, 0))
        assert isinstance(reply.payload, VringState)
        assert reply.payload.index == self.index
        return reply.payload.num


class FrontEnd:
    """A connection to a back-end, and a guest's RAM.

    Args:
        path: The back-end's socket; or one that is connected to it.
        ram: Bytes of RAM.
        memory: The RAM of an earlier front-end, to go on with; stays the caller's.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | socket.socket,
        *,
        ram: int = 1 << 20,
        memory: DriverMemory | None = None,
    ) -> None:
        self.path = path
        self.stack = contextlib.ExitStack()
        self.ram = memory or self.stack.enter_context(DriverMemory(ram, guest_address=BASE))
        self.features = VirtioFeature(0)
        self.queues: dict[int, Queue] = {}

    async def __aenter__(self) -> Self:
        self.sock = self.path if isinstance(self.path, socket.socket) else await connected(os.fspath(self.path))
        self.connection = Connection(self.sock, Direction.REPLY)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.connection.close()
        for queue in self.queues.values():
            queue.close()
            del queue.driver
        self.stack.close()
        del self.ram  # its mapping is an fd, as long as somebody has it

    async def send(
        self, request: Request | int, payload: AnyPayload | None = None, fds=(), *, need_reply=False
    ) -> None:
        await self.connection.send(Message(request, payload, tuple(fds), need_reply=need_reply))

    async def ask(self, request: Request, payload: AnyPayload | None = None, fds=(), *, need_reply=False) -> Message:
        await self.send(request, payload, fds, need_reply=need_reply)
        async with asyncio.timeout(20):
            message = await self.connection.receive()
        assert message is not None, "the back-end has closed the connection"
        assert message.request == request
        return message

    async def tell(self, request: Request | int, payload: AnyPayload | None = None, fds=()) -> None:
        """A message that must be acknowledged as done."""
        assert await self.status(request, payload, fds) == 0

    async def status(self, request, payload=None, fds=()) -> int:
        reply = await self.ask(request, payload, fds, need_reply=True)
        assert isinstance(reply.payload, U64)
        return reply.payload.value

    async def closed(self) -> bool:
        """Wait until the back-end hangs up."""
        async with asyncio.timeout(20):
            return await self.connection.receive() is None

    async def number(self, request: Request) -> int:
        reply = await self.ask(request)
        assert isinstance(reply.payload, U64)
        return reply.payload.value

    async def negotiate(self, features=FEATURES, protocol_features=PROTOCOL_FEATURES) -> None:
        """What QEMU says first; what is not offered is left out."""
        offered = await self.number(Request.GET_FEATURES)
        known = await self.number(Request.GET_PROTOCOL_FEATURES)
        await self.send(Request.SET_PROTOCOL_FEATURES, U64(int(protocol_features) & known))
        await self.tell(Request.SET_OWNER)
        self.features = VirtioFeature(offered & features)
        await self.tell(Request.SET_FEATURES, U64(int(self.features)))

    async def set_memory(self, *rams: DriverMemory) -> None:
        rams = rams or (self.ram,)
        await self.tell(
            Request.SET_MEM_TABLE, MemoryTable(tuple(ram.region for ram in rams)), [ram.fileno() for ram in rams]
        )

    def queue(self, index: int = 0, size: int = 16, *, driver: DriverQueue | None = None) -> Queue:
        if driver is None:
            driver = DriverQueue(self.ram, size, event_idx=VirtioFeature.EVENT_IDX in self.features)
        self.queues[index] = queue = Queue(self, index, driver)
        return queue

    async def start(self, index: int = 0, size: int = 16) -> Queue:
        """Everything up to a running queue."""
        if not self.features:
            await self.negotiate()
            await self.set_memory()
        queue = self.queue(index, size)
        await queue.start()
        return queue


async def connected(path: str) -> socket.socket:
    """A socket that is connected to a path, as soon as somebody listens at what is there."""
    async with asyncio.timeout(20):
        while True:
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(sock, path)
            except ConnectionRefusedError:
                sock.close()
                await asyncio.sleep(0.01)  # another process has made its socket, and is about to listen
            except BaseException:
                sock.close()
                raise
            else:
                return sock
