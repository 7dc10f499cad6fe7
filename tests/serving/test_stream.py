"""A socket read as its parser asks: what is registered with the loop, and that nothing is lost."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from aioirqfd.vfio_user.connection import Connection
from aioirqfd.vfio_user.errors import VfioUserProtocolError
from aioirqfd.vfio_user.messages import Command, Message
from aioirqfd.vfio_user.protocol import encode

DATA = encode(Message(1, Command.DEVICE_RESET, b"abcdefgh"))


@pytest.fixture
async def pair():
    ours, theirs = socket.socketpair()
    connection = Connection(ours)
    with theirs:
        yield connection, theirs
    connection.close()


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_message_that_comes_byte_by_byte(pair):
    connection, theirs = pair
    receiving = asyncio.create_task(connection.receive())
    for byte in DATA:
        await turns(2)
        theirs.send(bytes([byte]))
    assert (await receiving).data == b"abcdefgh"


async def test_the_socket_stays_with_the_loop_between_messages(pair):
    connection, theirs = pair
    numbers = set()
    for _ in range(5):
        receiving = asyncio.create_task(connection.receive())
        await turns()
        numbers.add(connection._reader)
        theirs.send(DATA)
        await receiving
    assert len(numbers) == 1
    assert None not in numbers


async def test_when_nobody_reads_it_is_not_reported_in_each_turn(pair):
    connection, theirs = pair
    receiving = asyncio.create_task(connection.receive())
    await turns()
    theirs.send(DATA)
    await receiving
    theirs.send(DATA)
    async with asyncio.timeout(60):
        while connection._reader is not None:
            await asyncio.sleep(0)
    assert (await connection.receive()).data == b"abcdefgh"


async def test_a_wait_that_is_given_up_loses_nothing(pair):
    connection, theirs = pair
    for part in (DATA[:10], DATA[10:20]):
        receiving = asyncio.create_task(connection.receive())
        await turns()
        theirs.send(part)
        receiving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receiving
    theirs.send(DATA[20:])
    assert (await connection.receive()).data == b"abcdefgh"


async def test_the_peer_goes(pair):
    connection, theirs = pair
    receiving = asyncio.create_task(connection.receive())
    await turns()
    theirs.close()
    assert await receiving is None
    assert await connection.receive() is None


async def test_the_peer_goes_within_a_message(pair):
    connection, theirs = pair
    receiving = asyncio.create_task(connection.receive())
    await turns()
    theirs.send(DATA[:20])
    theirs.close()
    with pytest.raises(VfioUserProtocolError, match="ended within a message"):
        await receiving


async def test_fds_come_with_their_message(pair):
    connection, theirs = pair
    receiving = asyncio.create_task(connection.receive())
    await turns()
    socket.send_fds(theirs, [DATA], [0, 1])
    message = await receiving
    assert len(message.fds) == 2
    for fd in message.fds:
        os.close(fd)


async def test_close_while_it_is_registered(pair):
    connection, _ = pair
    receiving = asyncio.create_task(connection.receive())
    await turns()
    receiving.cancel()
    await turns()
    connection.close()
    assert connection._reader is None
