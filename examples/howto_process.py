"""Notify an event loop from another process: once with an eventfd of ours, once with one of theirs."""

from __future__ import annotations

import asyncio
import socket
import sys

from aioirqfd import EventFd

# docs: begin ours
WRITER = """
import os, sys
os.eventfd_write(int(sys.argv[1]), 3)
"""


async def give() -> None:
    """Our eventfd, inherited by a child."""
    with EventFd() as kick:
        fd = kick.fileno()
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, str(fd), pass_fds=[fd])
        print("from the child:", await kick.read())
        await child.wait()
        # docs: end ours


# docs: begin theirs
OWNER = """
import os, socket, sys
fd = os.eventfd(0)
with socket.socket(fileno=int(sys.argv[1])) as parent:
    socket.send_fds(parent, [b"here it is"], [fd])
os.eventfd_write(fd, 4)
"""


async def take() -> None:
    """Their eventfd, received over a socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        number = theirs.fileno()
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", OWNER, str(number), pass_fds=[number])
        # Not recv_fds(): a program that is started meanwhile would inherit the descriptor.
        flags = socket.MSG_CMSG_CLOEXEC
        _, [(_, _, fd)], _, _ = await asyncio.to_thread(ours.recvmsg, 100, socket.CMSG_LEN(4), flags)
    with EventFd.from_fd(int.from_bytes(fd, sys.byteorder), owns=True) as kick:
        print("from theirs:", await kick.read())
    await child.wait()
    # docs: end theirs


async def main() -> None:
    """Both ways."""
    await give()
    await take()


asyncio.run(main())
