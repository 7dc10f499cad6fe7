"""Fuzz a whole vfio-user server: ``make fuzz TARGET=vfio_user``.

The input is a client's messages: a command, a number of fds, a length, and that many bytes of payload. Whatever they are, the server
answers, or sends the client away, and leaves nothing open.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["aioirqfd.pci", "aioirqfd.serving", "aioirqfd.vfio_user"]):
    from aioirqfd.pci import Bar, MsiX, PciDevice, PciExpress, Register
    from aioirqfd.testing import RecordingTracer
    from aioirqfd.vfio_user import Server
    from aioirqfd.vfio_user.capabilities import Capabilities
    from aioirqfd.vfio_user.messages import Command, Message
    from aioirqfd.vfio_user.protocol import encode

VERSION = encode(Message(0, Command.VERSION, Capabilities(max_msg_fds=16).pack()))


class Device(PciDevice):
    """A little of everything, and nothing that waits."""

    bars = (Bar(4096), Bar(16, io=True), Bar(8192, shared=((4096, 4096),)))
    capabilities = (PciExpress(), MsiX(4, table=0x800, pba=0xC00))
    intx = True
    scratch, ring = Register(0), Register(4, access="wo")

    @ring.on_write
    def rung(self, value: int) -> None:
        """Interrupt, or raise the pin."""
        if value < 4:
            self.interrupt(value)
        self.pin = bool(value & 1)


def messages(data: bytes) -> list[tuple[bytes, int]]:
    """What an input stands for: bytes, and how many fds go with them."""
    found = [(VERSION, 0)]
    at = 0
    while at + 3 <= len(data):
        command, fds, length = data[at] % 32, data[at + 1], data[at + 2]
        message = encode(Message(at, command, data[at + 3 : at + 3 + length], no_reply=bool(fds & 0x40)))
        # One in four is cut: the rest of the stream is then anything.
        found.append((message[: length if fds & 0x80 else None], fds & 3))
        at += 3 + length
    return found


def memory() -> int:
    """Some of the guest's memory."""
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 1 << 20)
    return fd


def open_fds() -> int:
    """How many there are."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def serve(data: bytes) -> None:
    """Be served."""
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    theirs.setblocking(False)
    with theirs:
        async with Server(Device(), sock=ours, tracer=RecordingTracer()) as server:
            for message, count in messages(data):
                fds = [memory() if count == 1 else os.eventfd(0) for _ in range(count)]
                with contextlib.suppress(OSError):
                    socket.send_fds(theirs, [message], fds)
                for fd in fds:
                    os.close(fd)
            theirs.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(20):
                with contextlib.suppress(ConnectionError):
                    while await loop.sock_recv(theirs, 1 << 16):
                        pass
                await server.serve_forever()


def test_one_input(data: bytes) -> None:
    """Feed one input."""
    before = open_fds()
    asyncio.run(serve(data))
    if open_fds() != before:
        raise AssertionError("fds leaked")


if __name__ == "__main__":
    # By its first word libFuzzer starts itself anew, to merge what it has found.
    atheris.Setup([f"{sys.executable} {sys.argv[0]}", *sys.argv[1:]], test_one_input)
    atheris.Fuzz()
