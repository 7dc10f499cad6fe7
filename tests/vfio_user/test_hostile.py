"""A client that means no good: it is answered with an error, or sent away, and the next one is served; nothing is leaked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct

import pytest

from aioirqfd.vfio_user.capabilities import Capabilities
from aioirqfd.vfio_user.client import Client
from aioirqfd.vfio_user.messages import HEADER, Command, Message
from aioirqfd.vfio_user.protocol import encode

VERSION = encode(Message(1, Command.VERSION, Capabilities(max_msg_fds=16).pack()))


@contextlib.contextmanager
def connected():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        sock.connect("socket")
        yield sock


async def everything(sock):
    """What the server says until it hangs up."""
    said = b""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(60):
        while True:
            try:
                data = await loop.sock_recv(sock, 1 << 16)
            except ConnectionError:
                return said
            if not data:
                return said
            said += data


async def serves():
    async with Client("socket") as client:
        assert await client.read(0, 0, 4) == bytes(4)


REFUSED = {
    "no version": encode(Message(5, Command.DEVICE_GET_INFO, bytes(16))),
    "a version that is too short": encode(Message(5, Command.VERSION, b"\0\0")),
    "another major": encode(Message(5, Command.VERSION, struct.pack("<HH", 999, 1))),
    "no NUL": encode(Message(5, Command.VERSION, struct.pack("<HH", 0, 1) + b"{}")),
    "no JSON": encode(Message(5, Command.VERSION, struct.pack("<HH", 0, 1) + b"{\0")),
    "takes no fd": encode(Message(5, Command.VERSION, Capabilities(max_msg_fds=0).pack())),
    "takes no data": encode(Message(5, Command.VERSION, Capabilities(max_data_xfer_size=0).pack())),
    "a header of 15 bytes": HEADER.pack(5, 8, 15, 0, 0),
    "of 2 GiB": HEADER.pack(5, 8, 2**31, 0, 0),
    "of type 15": HEADER.pack(5, 8, 16, 15, 0),
    "after a good one, of 15 bytes": VERSION + HEADER.pack(5, 8, 15, 0, 0),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_sent_away_with_an_error(server, tracer, name):
    with connected() as sock:
        await asyncio.get_running_loop().sock_sendall(sock, REFUSED[name])
        said = await everything(sock)
        number, _, size, flags, error = HEADER.unpack(said[-16:])
        assert (number, size, flags, error) == (5, 16, 0x21, 22)
    await serves()
    assert tracer.of("client_disconnected")[0]["reason"] is not None


async def test_cut_anywhere(server):
    whole = VERSION + encode(Message(2, Command.REGION_WRITE, struct.pack("<QII", 0, 0, 4) + b"abcd"))
    for length in range(0, len(whole), 7):
        with connected() as sock:
            await asyncio.get_running_loop().sock_sendall(sock, whole[:length])
    with connected() as sock:
        for byte in VERSION:
            await asyncio.get_running_loop().sock_sendall(sock, bytes([byte]))
            await asyncio.sleep(0)
        sock.shutdown(socket.SHUT_WR)
        assert await everything(sock)
    await serves()


async def test_a_reply_that_nobody_waits_for(client, tracer):
    await client._connections[0].send(Message(3, Command.DMA_READ, bytes(16), reply=True))
    await client._connections[0].send(Message(3, Command.REGION_READ, bytes(16), reply=True, error=5))
    assert await client.read(0, 0, 4) == bytes(4)
    assert len(tracer.of("reply_unexpected")) == 1  # the second one in time


async def test_fds_with_messages_that_have_none(client, memory):
    """The fixtures see that none is left open."""
    for command in (*Command, 0, 999):
        with contextlib.suppress(Exception):
            await asyncio.wait_for(client.ask(command, bytes(20), [memory] * 16), 60)
    assert await client.read(0, 0, 4) == bytes(4)


async def test_more_fds_than_a_message_may_have(server, memory):
    with connected() as sock:
        await asyncio.get_running_loop().sock_sendall(sock, VERSION)
        socket.send_fds(sock, [HEADER.pack(5, 8, 36, 0, 0)], [memory] * 17)
        assert b"max_msg_fds" in await everything(sock)
    await serves()


async def test_an_eventfd_that_is_full_stops_nobody(client, server, eventfds):
    (fd,) = eventfds(1)
    blocking = os.eventfd(2**32 - 1)
    try:
        for _ in range(2):
            os.eventfd_write(fd, 2**63 - 1)
        await client.bind(2, 0, [fd, blocking])
        os.set_blocking(fd, True)
        for _ in range(3):
            server.device.interrupt(0)
            server.device.interrupt(1)
        assert await client.read(0, 0, 4) == bytes(4)
    finally:
        os.close(blocking)


async def test_a_twin_socket_on_which_the_client_commands(server, tracer):
    proposal = Capabilities(max_msg_fds=16, twin_socket=True)
    async with Client("socket", capabilities=proposal) as client:
        await client._connections[1].send(Message(1, Command.REGION_READ, struct.pack("<QII", 0, 0, 4)))
        while not tracer.of("twin_socket_failed"):
            await asyncio.sleep(0)
        assert await client.read(0, 0, 4) == bytes(4)


async def test_a_flood_behind_a_register_that_waits(server, tracer):
    """The reading stops, and the client's own socket fills up."""
    flood = encode(Message(7, Command.REGION_WRITE, struct.pack("<QII", 0, 0, 4) + b"abcd", no_reply=True)) * 1000
    with connected() as sock:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, VERSION + encode(Message(2, Command.REGION_READ, struct.pack("<QII", 8, 0, 4))))
        sent = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while True:
                    await loop.sock_sendall(sock, flood)
                    sent += 1
        assert sent < 40
        assert server._session._size < 5 << 20
    await serves()


@pytest.mark.parametrize("seed", range(4))
async def test_any_bytes(server, seed):
    chance = random.Random(seed)
    for _ in range(40):
        with connected() as sock:
            loop = asyncio.get_running_loop()
            with contextlib.suppress(ConnectionError, BlockingIOError):
                await loop.sock_sendall(sock, VERSION)
                for _ in range(20):
                    command = chance.choice([*Command, chance.randrange(2**16)])
                    data = chance.randbytes(chance.choice([0, 8, 16, 20, 24, 32, 40, 100]))
                    if chance.random() < 0.6:
                        # Numbers that are nearly right.
                        numbers = [
                            chance.choice([0, 1, 2, 3, 4, 9, 16, 20, 24, 32, 36, 4096, 2**31, 2**32 - 1])
                            for _ in range(8)
                        ]
                        data = struct.pack("<8I", *numbers)[: chance.choice([16, 20, 24, 32])]
                    if command == Command.REGION_READ and data[:1] == b"\x08":
                        continue  # the register that waits
                    fds = [os.eventfd(0) for _ in range(chance.choice([0, 0, 1, 2, 16]))]
                    try:
                        socket.send_fds(sock, [encode(Message(1, command, data, no_reply=chance.random() < 0.2))], fds)
                    finally:
                        for fd in fds:
                            os.close(fd)
                sock.shutdown(socket.SHUT_WR)
                await everything(sock)
    server.device.gate.set()
    async with Client("socket") as client:
        await client.ask(Command.DEVICE_RESET)
        assert await client.read(0, 0, 4) == bytes(4)
