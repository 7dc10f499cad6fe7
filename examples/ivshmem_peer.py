"""A process that joins an ivshmem-doorbell server as a peer, beside guests.

python -m examples.ivshmem_peer ivshmem.sock                    # print who comes, who goes and who rings
python -m examples.ivshmem_peer ivshmem.sock --ring 0 2         # ring vector 2 of peer 0, which is the server
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import mmap
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Final, Self

from aioirqfd import EventFd

if TYPE_CHECKING:
    from types import TracebackType


PATIENCE: Final = 10.0
"""Seconds to wait for a server's welcome, which comes all at once."""
_ONE_FD: Final = socket.CMSG_LEN(4)
"""Bytes of room for what comes with a message."""


class Client:
    """A peer: shared memory, the others' vectors to ring, vectors of its own to wait on. Made by :meth:`connect`.

    Attributes:
        id: This peer's number.
        memory: What all peers share.
        vectors: This peer's own: ``await vector.read()`` is how often it was rung.
        peers: The others' by their number, as they come and go; ``signal()`` interrupts.
    """

    memory: mmap.mmap

    def __init__(self, connection: socket.socket) -> None:
        self.id = -1
        self.vectors: list[EventFd] = []
        self.peers: dict[int, list[EventFd]] = {}
        self.changed = asyncio.Event()
        self._connection = connection
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, path: str | os.PathLike[str], vectors: int) -> Self:
        """Join, and wait until this peer's own vectors have come.

        Args:
            path: The server's socket.
            vectors: How many each peer has; the protocol does not say.

        Raises:
            OSError: Nobody listens there, or not an ivshmem server, or one whose peers have fewer vectors.
        """
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        self = cls(connection)
        try:
            await asyncio.get_running_loop().sock_connect(connection, os.fspath(path))
            async with asyncio.timeout(PATIENCE):
                await self._be_welcomed(vectors)
        except BaseException as error:
            await self.aclose()
            if isinstance(error, OSError):
                raise self._explained(error, os.fspath(path), vectors) from error
            raise
        self._reading = asyncio.ensure_future(self._follow())
        return self

    def _explained(self, error: OSError, path: str, vectors: int) -> OSError:
        if isinstance(error, TimeoutError):
            came = f"{len(self.vectors)} of {vectors} vectors came" if self.id >= 0 else "nothing came"
            why = f"{came} within {PATIENCE:g} seconds; is it an ivshmem server with {vectors} vectors for each peer?"
            return TimeoutError(errno.ETIMEDOUT, why, path)
        why = error.strerror or str(error)
        if error.errno in {errno.ENOENT, errno.ECONNREFUSED}:
            why += "; no server listens there"
        # Those from here have no number, and of a path that is too long Python says so by itself, without one.
        number = error.errno or (errno.EPROTO if isinstance(error, ConnectionError) else errno.ENAMETOOLONG)
        return type(error)(number, why, path)

    async def _be_welcomed(self, vectors: int) -> None:
        version, _ = await self._receive()
        if version != 0:
            raise ConnectionError(f"not an ivshmem server that this program knows: protocol version {version}, not 0")
        self.id, _ = await self._receive()
        _, memory = await self._receive()
        if memory is None:
            raise ConnectionError("not an ivshmem server: no memory came")
        try:
            self.memory = mmap.mmap(memory, 0)
        finally:
            os.close(memory)
        while len(self.vectors) < vectors:
            await self._step()

    async def _follow(self) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await self._step()

    async def wait_gone(self) -> None:
        """Wait until the server has gone. The vectors of the peers that are here still work, and nobody else comes."""
        if self._reading is not None:
            await asyncio.wait({self._reading})

    async def _step(self) -> None:
        number, fd = await self._receive()
        if fd is None:
            for eventfd in self.peers.pop(number, ()):
                eventfd.close()
        else:
            eventfd = EventFd.from_fd(fd, owns=True)
            (self.vectors if number == self.id else self.peers.setdefault(number, [])).append(eventfd)
        self.changed.set()

    async def _receive(self) -> tuple[int, int | None]:
        # No more than one message at a time: more bytes would glue this message to the next one's descriptor.
        data, fd = b"", None
        while len(data) < 8:
            try:
                # Not recv_fds(): a program that is started meanwhile would inherit the descriptor.
                part, ancillary, _, _ = self._connection.recvmsg(8 - len(data), _ONE_FD, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                await self._readable()
                continue
            for _, _, piece in ancillary:
                fd = int.from_bytes(piece, sys.byteorder)
            if not part:
                raise ConnectionResetError("the server hung up")
            data += part
        return int.from_bytes(data, "little", signed=True), fd

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def readable() -> None:
            if not ready.done():
                ready.set_result(None)

        loop.add_reader(self._connection, readable)
        try:
            await ready
        finally:
            loop.remove_reader(self._connection)

    async def until(self, number: int, vectors: int) -> None:
        """Wait until a peer has that many vectors; 0: until it has left."""
        while len(self.peers.get(number, ())) != vectors:
            self.changed.clear()
            await self.changed.wait()

    async def aclose(self) -> None:
        """Leave."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})
        self._connection.close()
        for eventfd in (*self.vectors, *(vector for vectors in self.peers.values() for vector in vectors)):
            eventfd.close()
        if hasattr(self, "memory"):
            self.memory.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


async def join(options: argparse.Namespace) -> None:
    """Ring once, or print what happens until SIGINT or SIGTERM."""
    # docs: begin client
    async with await Client.connect(options.socket, options.vectors) as client:
        print(f"peer {client.id}, {len(client.memory)} bytes shared, beside {sorted(client.peers)}", flush=True)
        if options.ring:
            peer, vector = options.ring
            vectors = client.peers.get(peer, [])
            if not 0 <= vector < len(vectors):
                there = ", ".join(f"{number} has 0..{len(each) - 1}" for number, each in sorted(client.peers.items()))
                sys.exit(f"ivshmem_peer: peer {peer} has no vector {vector}; peer {there}")
            vectors[vector].signal()
            return

        async def listen(vector: int, eventfd: EventFd) -> None:
            async for count in eventfd:
                print(f"vector {vector}: rung {count} times", flush=True)
                # docs: end client

        async def follow() -> None:
            await client.wait_gone()
            print("the server has gone; who is here can still ring", flush=True)

        tasks = [asyncio.ensure_future(listen(*each)) for each in enumerate(client.vectors)]
        following = asyncio.ensure_future(follow())
        stopping = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        await stopping.wait()
        following.cancel()
    await asyncio.wait({*tasks, following})
    print("stopped", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="join an ivshmem-doorbell server")
    parser.add_argument("socket", help="the server's socket")
    parser.add_argument("--vectors", type=int, default=1, help="of each peer, as the server has it (default 1)")
    parser.add_argument("--ring", type=int, nargs=2, metavar=("PEER", "VECTOR"), help="ring once and leave")
    options = parser.parse_args()
    if options.vectors < 1:
        parser.error(f"argument --vectors: 1 or more, not {options.vectors}")
    try:
        asyncio.run(join(options))
    except OSError as error:
        sys.exit(f"ivshmem_peer: {error}")
    except KeyboardInterrupt:  # before the handlers were in place
        sys.exit("ivshmem_peer: stopped")


if __name__ == "__main__":
    main()
