"""All parts together over a real socket pair, one step of either side at a time: a front-end sets up a ring and uses it."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false
# (a parser that gives None fails the test, as it should)
from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from aioirqfd.vhost_user.driver import DriverMemory, DriverQueue
from aioirqfd.vhost_user.errors import VhostUserProtocolError
from aioirqfd.vhost_user.features import ProtocolFeature
from aioirqfd.vhost_user.messages import U64, MemoryTable, Message, Request, VringFd, VringState
from aioirqfd.vhost_user.protocol import MAX_FDS, Direction, MessageParser, acknowledgement, encode
from aioirqfd.virtio.features import VirtioFeature
from aioirqfd.virtio.memory import GuestMemory
from aioirqfd.virtio.virtqueue import VirtQueue


class End:
    """One end of the socket, reading as the parser asks."""

    def __init__(self, sock, direction):
        self.sock = sock
        self.parser = MessageParser(direction)

    def send(self, request, payload=None, fds=(), **options):
        message = Message(request, payload, tuple(fds), **options)
        socket.send_fds(self.sock, [encode(message)], message.fds)

    def receive(self):
        while (message := self.parser.next_message()) is None:
            data, fds, flags, _ = socket.recv_fds(self.sock, self.parser.wanted, MAX_FDS)
            assert not flags & socket.MSG_CTRUNC
            self.parser.feed(data, fds)
            if not data:
                self.parser.eof()
                return None
        return message


@pytest.fixture
def ends():
    front, back = socket.socketpair()
    with front, back:
        yield End(front, Direction.REPLY), End(back, Direction.REQUEST)


def eventfd_id(fd):
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return next(line for line in lines if line.startswith("eventfd-id"))


def test_fds_stay_with_their_messages_however_many_wait_in_the_socket(ends):
    """Read in bulk, the messages without fds would run into the next ones' fds."""
    front, back = ends
    made = [os.eventfd(0) for _ in range(6)]
    for number, fd in enumerate(made):
        front.send(Request.SET_OWNER)
        front.send(Request.SET_VRING_CALL, VringFd(number), [fd])
        front.send(Request.SET_VRING_NUM, VringState(number, 8))
    for number, fd in enumerate(made):
        assert back.receive() == Message(Request.SET_OWNER)
        call = back.receive()
        assert call.payload == VringFd(number)
        assert [eventfd_id(got) for got in call.fds] == [eventfd_id(fd)]
        assert back.receive() == Message(Request.SET_VRING_NUM, VringState(number, 8))
        os.close(fd)
        os.close(call.fds[0])
    front.sock.shutdown(socket.SHUT_WR)
    assert back.receive() is None
    assert back.parser.close() == ()


def test_an_end_in_the_middle_of_a_message_leaves_its_fds_to_be_closed(ends):
    front, back = ends
    with DriverMemory(1 << 16) as ram:
        data = encode(Message(Request.SET_MEM_TABLE, MemoryTable((ram.region,)), (ram.fileno(),)))
        socket.send_fds(front.sock, [data[:20]], [ram.fileno()])
        front.sock.shutdown(socket.SHUT_WR)
        with pytest.raises(VhostUserProtocolError, match="ended within"):
            back.receive()
        (fd,) = back.parser.close()
        assert os.path.sameopenfile(fd, ram.fileno())
        os.close(fd)


def test_a_whole_session(ends):
    front, back = ends
    with DriverMemory(1 << 16, guest_address=1 << 32) as ram:
        driver = DriverQueue(ram, 16)
        kick, call = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)

        offered = driver.features | VirtioFeature.PROTOCOL_FEATURES
        front.send(Request.GET_FEATURES)
        assert back.receive() == Message(Request.GET_FEATURES)
        back.send(Request.GET_FEATURES, U64(offered), reply=True)
        assert front.receive().payload == U64(offered)
        front.send(Request.SET_PROTOCOL_FEATURES, U64(ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK))
        assert ProtocolFeature(back.receive().payload.value) == ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK

        front.send(Request.SET_MEM_TABLE, MemoryTable((ram.region,)), [ram.fileno()], need_reply=True)
        table = back.receive()
        memory = GuestMemory.map(table.payload.regions, table.fds)
        reply = acknowledgement(table, ok=True)
        back.send(reply.request, reply.payload, reply=True)
        assert front.receive() == Message(Request.SET_MEM_TABLE, U64(0), reply=True)

        front.send(Request.SET_VRING_NUM, VringState(0, driver.size))
        front.send(Request.SET_VRING_BASE, VringState(0, 0))
        front.send(Request.SET_VRING_ADDR, driver.address(0))
        front.send(Request.SET_VRING_KICK, VringFd(0), [kick])
        front.send(Request.SET_VRING_CALL, VringFd(0), [call])
        size, base, address, kicks, calls = (back.receive() for _ in range(5))
        queue = VirtQueue(
            memory, size.payload.num, address.payload, base=base.payload.num, features=int(driver.features)
        )

        driver.request([b"hello"], [32])
        driver.request([b"world"], [32])
        assert driver.kick_needed()
        os.eventfd_write(kick, 1)
        assert os.eventfd_read(kicks.fds[0]) == 1
        while (chain := queue.pop()) is not None:
            queue.push(chain, chain.write(chain.read()[::-1]))
        assert queue.need_notify()
        os.eventfd_write(calls.fds[0], 1)
        assert os.eventfd_read(call) == 1
        assert [used.data for used in driver.collect()] == [b"olleh", b"dlrow"]

        front.send(Request.GET_VRING_BASE, VringState(0, 0))
        stop = back.receive()
        back.send(Request.GET_VRING_BASE, VringState(stop.payload.index, queue.stop()), reply=True)
        assert front.receive().payload == VringState(0, 2)
        for fd in (kick, call, *kicks.fds, *calls.fds):
            os.close(fd)
