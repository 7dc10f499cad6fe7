"""The other side of vhost-user, for tests of a device without a guest: a front-end with guest memory and drivers of its own.

::

    async with vhost_user_frontend(Upper()) as front:
        assert await front.queues[0].ask([b"hello"], [5]) == b"HELLO"
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING, Final, Self

from aioirqfd.eventfd import EventFd
from aioirqfd.testing.tracer import Tail
from aioirqfd.tracer import NULL_TRACER
from aioirqfd.vhost_user.backend import Backend
from aioirqfd.vhost_user.connection import Connection
from aioirqfd.vhost_user.driver import DriverMemory, DriverQueue
from aioirqfd.vhost_user.errors import VhostUserError
from aioirqfd.vhost_user.features import ProtocolFeature
from aioirqfd.vhost_user.messages import U64, MemoryTable, Message, Request, VringAddr, VringFd, VringState
from aioirqfd.vhost_user.protocol import Direction
from aioirqfd.virtio.device import Device
from aioirqfd.virtio.features import VirtioFeature

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from aioirqfd.tracer import Tracer
    from aioirqfd.vhost_user.driver import Used
    from aioirqfd.vhost_user.messages import AnyPayload

FEATURES: Final = (
    VirtioFeature.VERSION_1 | VirtioFeature.EVENT_IDX | VirtioFeature.INDIRECT_DESC | VirtioFeature.PROTOCOL_FEATURES
)
"""What a front-end takes of the ring's features, if it is not told otherwise."""
PROTOCOL_FEATURES: Final = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK
"""The same of the protocol's."""
BASE: Final = 0x1_0000_0000
"""Where the guest sees its memory."""
PATIENCE: Final = 20.0
"""Seconds until a back-end that does not answer fails the test."""


class FrontEndError(VhostUserError):
    """The back-end said no, or something else than what was asked for, or has hung up."""


class Queue:
    """One queue: its ring in the guest's memory, its kick and its call. Made by :meth:`FrontEnd.queue`.

    Attributes:
        driver: The driver's side of the ring.
        kick: What the driver signals.
        call: What the device signals.
        err: What the back-end signals when the ring is broken.
        kicks: How often the driver has kicked.
        calls: How many calls :meth:`answers` has taken.
    """

    def __init__(self, front: FrontEnd, index: int, driver: DriverQueue) -> None:
        self.front = front
        self.index = index
        self.driver = driver
        self.kick = EventFd()
        self.call = EventFd()
        self.err = EventFd()
        self.kicks = self.calls = 0

    def close(self) -> None:
        """Close its eventfds."""
        for eventfd in (self.kick, self.call, self.err):
            eventfd.close()

    def publish(self) -> None:
        """Kick, if the device wants it."""
        if self.driver.kick_needed():
            self.kicks += 1
            self.kick.signal()

    def put(self, readable: Sequence[bytes] = (), writable: Sequence[int] = ()) -> int:
        """Send a request.

        Args:
            readable: What the device is to read, in so many buffers.
            writable: The sizes of the buffers that it is to fill.

        Returns:
            The number by which the answer is known.
        """
        head = self.driver.request(readable, writable)
        self.publish()
        return head

    async def answers(self, count: int = 1) -> list[Used]:
        """Wait for calls until that many answers are there; return them and what has come with them."""
        found: list[Used] = []
        while True:
            found += self.driver.collect()
            if len(found) >= count:
                return found
            if not self.driver.enable_calls():
                self.calls += await self.call.read()

    async def ask(self, readable: Sequence[bytes] = (), writable: Sequence[int] = ()) -> bytes:
        """Send one request, and return its answer's bytes. No other may be under way."""
        self.put(readable, writable)
        (used,) = await self.answers()
        return used.data

    async def start(self, *, base: int = 0, enable: bool = True, address: VringAddr | None = None) -> None:
        """Start the ring, with the messages in QEMU's order."""
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
        """Stop the ring; return where it is to go on."""
        reply = await self.front.ask(Request.GET_VRING_BASE, VringState(self.index, 0))
        if not isinstance(reply.payload, VringState) or reply.payload.index != self.index:
            raise FrontEndError(f"queue {self.index} was stopped, and the back-end answered {reply}")
        return reply.payload.num


class FrontEnd:
    """A connection to a back-end, and a guest's memory. Used as ``async with``.

    Args:
        path: The back-end's socket, waited for until somebody listens; or a socket that is connected to it, owned from then on.
        ram: Bytes of memory.
        memory: The memory of an earlier front-end, to go on with; stays the caller's.

    Attributes:
        ram: The memory.
        features: What was agreed on.
        queues: Those that were made.

    Threads: the loop's.
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

    # -- messages ----------------------------------------------------------------------------------------------------

    async def send(
        self,
        request: Request | int,
        payload: AnyPayload | None = None,
        fds: Sequence[int] = (),
        *,
        need_reply: bool = False,
    ) -> None:
        """Send a message; the fds stay the caller's."""
        await self.connection.send(Message(request, payload, tuple(fds), need_reply=need_reply))

    async def ask(
        self,
        request: Request | int,
        payload: AnyPayload | None = None,
        fds: Sequence[int] = (),
        *,
        need_reply: bool = False,
    ) -> Message:
        """Send a message, and return its reply.

        Raises:
            FrontEndError: The back-end has hung up, or answered something else.
            TimeoutError: It does not answer.
        """
        await self.send(request, payload, fds, need_reply=need_reply)
        async with asyncio.timeout(PATIENCE):
            message = await self.connection.receive()
        if message is None:
            raise FrontEndError(f"{request!r} was sent, and the back-end has closed the connection")
        if message.request != request:
            raise FrontEndError(f"{request!r} was sent, and {message} came")
        return message

    async def tell(self, request: Request | int, payload: AnyPayload | None = None, fds: Sequence[int] = ()) -> None:
        """Send a message that must be acknowledged as done.

        Raises:
            FrontEndError: It was not.
        """
        if status := await self.status(request, payload, fds):
            raise FrontEndError(f"{request!r} was sent, and acknowledged as failed: {status}")

    async def status(self, request: Request | int, payload: AnyPayload | None = None, fds: Sequence[int] = ()) -> int:
        """Send a message that is acknowledged; return how: 0 is done."""
        reply = await self.ask(request, payload, fds, need_reply=True)
        return _number(reply)

    async def closed(self) -> bool:
        """Wait until the back-end hangs up."""
        async with asyncio.timeout(PATIENCE):
            return await self.connection.receive() is None

    async def number(self, request: Request | int) -> int:
        """Send a message whose reply is a number."""
        return _number(await self.ask(request))

    # -- what a front-end does ---------------------------------------------------------------------------------------

    async def negotiate(self, features: int = FEATURES, protocol_features: int = PROTOCOL_FEATURES) -> None:
        """What QEMU says first; what is not offered is left out."""
        offered = await self.number(Request.GET_FEATURES)
        known = await self.number(Request.GET_PROTOCOL_FEATURES)
        await self.send(Request.SET_PROTOCOL_FEATURES, U64(int(protocol_features) & known))
        await self.tell(Request.SET_OWNER)
        self.features = VirtioFeature(offered & features)
        await self.tell(Request.SET_FEATURES, U64(int(self.features)))

    async def set_memory(self, *rams: DriverMemory) -> None:
        """Say where the guest's memory is: here, or in these."""
        rams = rams or (self.ram,)
        await self.tell(
            Request.SET_MEM_TABLE, MemoryTable(tuple(ram.region for ram in rams)), [ram.fileno() for ram in rams]
        )

    def queue(self, index: int = 0, size: int = 16, *, driver: DriverQueue | None = None) -> Queue:
        """Make a queue; :meth:`Queue.start` starts it."""
        if driver is None:
            driver = DriverQueue(self.ram, size, event_idx=VirtioFeature.EVENT_IDX in self.features)
        self.queues[index] = queue = Queue(self, index, driver)
        return queue

    async def start(self, index: int = 0, size: int = 16) -> Queue:
        """Do everything up to a running queue."""
        if not self.features:
            await self.negotiate()
            await self.set_memory()
        queue = self.queue(index, size)
        await queue.start()
        return queue


def _number(reply: Message) -> int:
    if not isinstance(reply.payload, U64):
        raise FrontEndError(f"the reply is no number, but {reply}")
    return reply.payload.value


@contextlib.asynccontextmanager
async def vhost_user_frontend(
    device: Device | str | os.PathLike[str] | socket.socket,
    *,
    queues: int | None = None,
    size: int = 64,
    features: int | None = None,
    ram: int = 1 << 20,
    tracer: Tracer = NULL_TRACER,
) -> AsyncGenerator[FrontEnd]:
    """Have a front-end with its queues running, for as long as the block lasts.

    Args:
        device: A device, which is served for as long; or the socket of one that is served elsewhere, by its path or connected.
        queues: How many of its queues are started; None: all of a device's, one of a socket's.
        size: Entries of each ring, a power of 2 up to 32768.
        features: What is agreed on, of what is offered; None: the ring's features, and all of the device's own.
        ram: Bytes of guest memory.
        tracer: Hears what happens to a device that is served here. What is raised in the block shows the last of it, with or without.
    """
    async with contextlib.AsyncExitStack() as stack:
        place: str | os.PathLike[str] | socket.socket
        if isinstance(device, Device):
            ours, place = socket.socketpair()
            tail = Tail(tracer)
            stack.enter_context(tail.shown())
            await stack.enter_async_context(Backend(device, sock=ours, tracer=tail))
            queues = device.num_queues if queues is None else queues
            features = FEATURES | device.features if features is None else features
        else:
            place = device
        front = await stack.enter_async_context(FrontEnd(place, ram=ram))
        # The bits of a device's own are 0..23 and from 50 on.
        everything = int(FEATURES) | 0xFFFFFF
        await front.negotiate(everything if features is None else features)
        await front.set_memory()
        for index in range(1 if queues is None else queues):
            queue = front.queue(index, size)
            await queue.start()
            # A call that is new is signalled once.
            await queue.call.read()
        yield front


async def connected(path: str) -> socket.socket:
    """Return a socket that is connected to a path, as soon as somebody listens at what is there."""
    async with asyncio.timeout(PATIENCE):
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
