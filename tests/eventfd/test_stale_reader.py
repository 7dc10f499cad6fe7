"""Another library's reader on an fd number that it has closed, and that the kernel gives to us: whatever it does, events arrive."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from aioirqfd import EventFd, IrqManager
from aioirqfd.eventfd import Poller
from aioirqfd.sinks import RecordingSink
from tests.conftest import open_fds
from tests.eventfd.helpers import turns


class Other:
    """A library that watches the end of a pipe."""

    def __init__(self, watch):
        self.loop = asyncio.get_running_loop()
        self.fd, self.writer = os.pipe()
        self.called = 0
        if watch in ("reader", "both"):
            self.loop.add_reader(self.fd, self.on_event)
        if watch in ("writer", "both"):
            self.loop.add_writer(self.fd, self.on_event)

    def on_event(self):
        self.called += 1

    def close(self):
        """Its mistake."""
        os.close(self.fd)
        os.close(self.writer)


async def delivers(irqs, sink, efd):
    """Whether a write from outside is injected without anybody's help but the loop's."""
    before = len(sink.interrupts)
    os.eventfd_write(efd.fileno(), 1)
    async with asyncio.timeout(60):
        while len(sink.interrupts) == before:
            await asyncio.sleep(0.001)


def trouble():
    """What the loop's exception handler hears."""
    heard = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: heard.append(context["message"]))
    return heard


@pytest.mark.parametrize("watch", ["reader", "writer", "both"])
async def test_left_behind(efd, watch):
    heard = trouble()
    other = Other(watch)
    await turns()
    called = other.called
    other.close()
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        poller = Poller.get()
        assert poller.drain.fileno() == other.fd, "or nothing is tested here"
        irqs.assign(efd, gsi=1)
        await delivers(irqs, sink, efd)
        assert other.called <= called + 1
    assert heard == []


@pytest.mark.parametrize("watch", ["reader", "both"])
async def test_left_behind_and_cleaned_up_later(efd, watch):
    heard = trouble()
    other = Other(watch)
    await turns()
    other.close()
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        irqs.assign(efd, gsi=1)
        await delivers(irqs, sink, efd)
        for _ in range(3):
            other.loop.remove_reader(other.fd)  # asyncio's would be ours, had we taken the number
            await delivers(irqs, sink, efd)
    for message in heard:  # uvloop says nothing of what it knew under a number
        assert f"somebody has called remove_reader({other.fd}) or add_reader({other.fd}, ...)" in message
    assert len(heard) <= 1


async def test_somebody_removes_our_reader(efd):
    heard = trouble()
    loop = asyncio.get_running_loop()
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        irqs.assign(efd, gsi=1)
        poller = Poller.get()
        numbers = []
        for count in range(1, 4):
            numbers.append(poller._fd)
            loop.remove_reader(poller._fd)
            await delivers(irqs, sink, efd)
            assert len(heard) == count
            assert f"remove_reader({numbers[-1]})" in heard[-1]
            assert f"it goes on with fd {poller._fd}" in heard[-1]
            assert poller._fd != numbers[-1]


async def test_somebody_takes_our_reader_over(efd):
    heard = trouble()
    loop = asyncio.get_running_loop()
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        irqs.assign(efd, gsi=1)
        fd = Poller.get()._fd
        loop.add_reader(fd, lambda: None)  # who thinks that the number is still his
        await delivers(irqs, sink, efd)
        assert Poller.get()._fd != fd
        loop.remove_reader(fd)
        await delivers(irqs, sink, efd)
        assert len(heard) == 1


async def test_a_number_that_a_transport_holds(efd):
    # Its socket was closed under it: asyncio refuses to add or remove a reader for that number.
    ours, theirs = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    number = ours.fileno()
    spare = os.dup(number)  # so that the transport can be closed in the end
    os.close(number)
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        poller = Poller.get()
        assert poller.drain.fileno() == number
        assert poller._fd != number
        irqs.assign(efd, gsi=1)
        await delivers(irqs, sink, efd)
    os.dup2(spare, number)
    os.close(spare)
    transport.close()
    theirs.close()
    await turns()


async def test_where_there_is_no_room_for_a_dup_the_leftover_is_gone_at_least(efd, no_room):
    other = Other("reader")
    await turns()
    other.close()
    with no_room(leaving=3):  # an epoll, and two fds for whatever wakes it
        task = asyncio.ensure_future(efd.read())
        await turns(2)
        assert not task.done()
    os.eventfd_write(efd.fileno(), 4)
    assert await asyncio.wait_for(task, 60) == 4


async def test_one_poller_after_another_keeps_no_dups():
    sink = RecordingSink()
    before = open_fds()
    for _ in range(3):
        other = Other("reader")
        await turns()
        other.close()
        async with IrqManager(sink) as irqs:
            with EventFd() as efd:
                irqs.assign(efd, gsi=1)
                await delivers(irqs, sink, efd)
    assert open_fds() == before
