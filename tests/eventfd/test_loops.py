"""What else of the package has a loop watch an fd that was just made: a number with a past silences none of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import pytest

from aioirqfd.eventfd.loops import add_reader, remove_reader
from aioirqfd.kvm import Kvm
from aioirqfd.serving.sockets import readable
from aioirqfd.sinks.kvm_line import KvmLine
from aioirqfd.vhost_user.connection import Connection
from tests.conftest import open_fds
from tests.eventfd.helpers import turns


async def leave_behind():
    """Some other library's readers on numbers that are free from here on; the first of them."""
    loop = asyncio.get_running_loop()
    ends = os.pipe()
    for fd in ends:
        loop.add_reader(fd, lambda: None)
    await turns()
    for fd in ends:
        os.close(fd)
    return min(ends)


@contextlib.asynccontextmanager
async def called():
    """A call, and that it is made."""
    event = asyncio.Event()
    yield event.set
    await asyncio.wait_for(event.wait(), 60)


async def test_a_number_with_a_past_is_not_used():
    loop = asyncio.get_running_loop()
    first = await leave_behind()
    before = open_fds()
    ours, theirs = socket.socketpair()
    assert ours.fileno() == first
    async with called() as call:
        fd = add_reader(loop, ours.fileno(), call)
        theirs.send(b"x")
    remove_reader(loop, fd)
    if fd != first:  # asyncio tells that it knew the number, uvloop does not
        os.close(fd)
    ours.close()
    theirs.close()
    assert open_fds() == before


async def test_a_number_without_one_is_used_as_it_is():
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    async with called() as call:
        assert add_reader(loop, ours.fileno(), call) == ours.fileno()
        theirs.send(b"x")
    remove_reader(loop, ours.fileno())
    ours.close()
    theirs.close()


@pytest.mark.parametrize("meanwhile", [False, True])
async def test_a_socket_that_is_waited_for_is_heard(meanwhile):
    first = await leave_behind()
    ours, theirs = socket.socketpair()
    assert ours.fileno() == first
    before = open_fds()
    for _ in range(2):
        reading = asyncio.ensure_future(readable(ours))
        await turns(2)
        if meanwhile:  # whoever left it cleans up at last
            asyncio.get_running_loop().remove_reader(first)
        theirs.send(b"x")
        await asyncio.wait_for(reading, 60)
        assert ours.recv(10) == b"x"
    reading = asyncio.ensure_future(readable(ours))
    await turns(2)
    reading.cancel()
    await asyncio.wait({reading})
    assert open_fds() == before
    ours.close()
    theirs.close()


async def test_the_hang_up_of_a_front_end_is_heard():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    connection = Connection(ours)
    await leave_behind()
    gone = asyncio.Event()
    before = open_fds()
    with connection.watch(gone.set):
        theirs.shutdown(socket.SHUT_RDWR)
        await asyncio.wait_for(gone.wait(), 60)
    assert open_fds() == before
    theirs.close()
    connection.close()


@pytest.mark.kvm
async def test_the_end_of_interrupt_of_a_line_in_kvm_is_heard():
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.create_irqchip()
        await leave_behind()
        before = open_fds()
        async with called() as call:
            line = KvmLine(vm, 5, 5, lambda _line: call())
            os.eventfd_write(line._resample.fileno(), 1)  # as the kernel does at an end of interrupt
        assert line.ended() == (5,)
        line.close()
        assert open_fds() == before
