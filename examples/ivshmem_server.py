"""An ivshmem-doorbell server: memory and interrupts shared between this process, other processes and guests.

    python -m examples.ivshmem_server ivshmem.sock --vectors 4 --size 1M --echo
    qemu-system-x86_64 ... -chardev socket,id=iv,path=ivshmem.sock -device ivshmem-doorbell,chardev=iv,vectors=4

Everyone who connects is a peer: he gets an id, the memory, an eventfd for each vector of every other peer, which he writes to
interrupt that peer, and the eventfds of his own vectors, on which he is interrupted. This process is peer 0: what the others
ring here is injected by an IrqManager, and :meth:`Server.ring` interrupts them.

The protocol is QEMU's: numbers of 8 bytes, little-endian, each with a file descriptor or without.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import fcntl
import mmap
import os
import signal
import socket
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from aioirqfd import EventFd, IrqManager, Msi, inspect
from aioirqfd.serving.options import add_options, watched
from aioirqfd.sinks import CallbackSink
from aioirqfd.tracer import NULL_TRACER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

    from aioirqfd.tracer import Tracer

VERSION: Final = 0
MEMORY: Final = -1
HOST: Final = 0
"""This process's id."""
PEERS: Final = 1 << 16
"""Ids there are: the guest's doorbell register has 16 bits for one."""
VECTORS: Final = 64
SIZE: Final = 1 << 62
"""Bytes of memory at most: the largest power of two that a file can have."""
OUTBOX: Final = 1 << 14
"""Messages that may wait for a peer that does not read. One with more is shown the door, and waits for nobody."""
PAUSE: Final = 0.1
"""Seconds until the next attempt when nobody can be let in, for want of file descriptors for example."""


class Peer:
    """One connection: its id, its vectors, and what it has not read yet."""

    def __init__(self, number: int, connection: socket.socket, vectors: int) -> None:
        self.id = number
        self.connection = connection
        self.vectors = tuple(EventFd() for _ in range(vectors))
        self._outbox: deque[tuple[int, EventFd | int | None]] = deque()
        self._blocked = False

    def send(self, number: int, what: EventFd | int | None = None) -> None:
        """Send one message, or let it wait until the peer reads.

        Args:
            number: The number.
            what: An eventfd, another fd, or nothing to go along.

        Raises:
            OSError: The peer is gone, or reads nothing.
        """
        if len(self._outbox) >= OUTBOX:
            raise BrokenPipeError(f"peer {self.id} does not read")
        self._outbox.append((number, what))
        if not self._blocked:
            self._flush()

    def _flush(self) -> None:
        while self._outbox:
            number, what = self._outbox[0]
            if isinstance(what, EventFd) and what.closed:
                self._outbox.popleft()  # its owner has left meanwhile, which the next messages say
                continue
            fds = [] if what is None else [what if isinstance(what, int) else what.fileno()]
            try:
                socket.send_fds(self.connection, [number.to_bytes(8, "little", signed=True)], fds)
            except BlockingIOError:
                if not self._blocked:
                    self._blocked = True
                    asyncio.get_running_loop().add_writer(self.connection, self._writable)
                return
            self._outbox.popleft()

    def _writable(self) -> None:
        asyncio.get_running_loop().remove_writer(self.connection)
        self._blocked = False
        with contextlib.suppress(OSError):  # whoever reads from this connection hears of it too
            self._flush()

    def close(self) -> None:
        """Hang up."""
        if self._blocked:
            asyncio.get_running_loop().remove_writer(self.connection)
        self.connection.close()
        for eventfd in self.vectors:
            eventfd.close()


class Server:
    """Serves peers on a unix socket, and is peer 0 itself.

    Args:
        path: The socket, made by the server and removed at the end.
        doorbell: Called with the vector and how often it was rung. The counts add up to the others' writes exactly.
        vectors: Vectors of each peer, 1..64.
        size: Bytes of shared memory: a power of two, for QEMU, and at least a page.
        ids: How many numbers there are for peers, 2..65536, the host's 0 among them. They are handed out in turn, so that
            one comes again only after all others: QEMU 7.2 writes to memory that it has freed when it hears of a number
            anew whose bearer has left.
        watch: Told of a peer's coming (True) and going.
        tracer: Hears what happens to the interrupts.

    Raises:
        ValueError: One of the numbers is out of range.
        OSError: On entering: there is not so much memory, or the path cannot be listened at.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        doorbell: Callable[[int, int], Awaitable[None]],
        *,
        vectors: int = 1,
        size: int = 1 << 20,
        ids: int = PEERS,
        watch: Callable[[int, bool], object] = lambda _peer, _here: None,
        tracer: Tracer = NULL_TRACER,
    ) -> None:
        if not 1 <= vectors <= VECTORS:
            raise ValueError(f"vectors of each peer: 1..{VECTORS}, not {vectors}")
        if not mmap.PAGESIZE <= size <= SIZE or size & (size - 1):
            raise ValueError(f"size of the memory: a power of two, {mmap.PAGESIZE}..{SIZE} bytes, not {size}")
        if not HOST + 1 < ids <= PEERS:
            raise ValueError(f"ids, the host's among them: 2..{PEERS}, not {ids}")
        self.path = os.fspath(path)
        self.peers: dict[int, Peer] = {}
        self.vectors: Sequence[EventFd] = ()
        self._doorbell = doorbell
        self._watch = watch
        self._tracer = tracer
        self._count = vectors
        self._size = size
        self._ids = ids
        self._next = HOST + 1
        self._tasks: set[asyncio.Task[None]] = set()
        self._stack = contextlib.AsyncExitStack()

    # docs: begin host
    async def _enter(self, stack: contextlib.AsyncExitStack) -> None:
        memfd = os.memfd_create("ivshmem", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        stack.callback(os.close, memfd)
        try:
            os.ftruncate(memfd, self._size)
            self.memory = stack.enter_context(mmap.mmap(memfd, self._size))
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: {self._size} bytes of shared memory") from error
        # Every peer has this fd. Were one to make it shorter, all others would die of SIGBUS at their next look.
        fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._memfd = memfd
        # Peer 0 is a device with a message for each vector; who rings is not told, which vector is.
        self.vectors = [stack.enter_context(EventFd()) for _ in range(self._count)]
        routing = {vector: Msi(HOST, vector) for vector in range(self._count)}
        sink = CallbackSink(lambda _interrupt: None)
        irqs = await stack.enter_async_context(IrqManager(sink, routing=routing, tracer=self._tracer, name="ivshmem"))
        for vector, eventfd in enumerate(self.vectors):
            irqs.assign(eventfd, gsi=vector, wakeup=lambda irqfd, count: self._doorbell(irqfd.gsi, count))
        self.irqs = irqs

    def ring(self, peer: int, vector: int, count: int = 1) -> bool:
        """Interrupt a peer; whether there is such a peer and vector. ``count`` rings at once may be one interrupt to it."""
        if peer not in self.peers or not 0 <= vector < self._count:
            return False
        self.peers[peer].vectors[vector].signal(count)
        return True

    # docs: end host

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await self._enter(stack)
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.setblocking(False)
            _bind(listener, self.path)
            stack.callback(os.unlink, self.path)
            listener.listen()
            stack.push_async_callback(self._hang_up)
            self._start(self._accept(listener))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _hang_up(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self, coroutine: Awaitable[None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                # Whoever knocks waits in the listener's queue, and comes in when somebody has left.
                loop.call_exception_handler({"message": f"{self.path}: no peer can be let in", "exception": error})
                await asyncio.sleep(PAUSE)
                continue
            self._start(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        number = self._free_id()
        if number is None:
            connection.close()
            return
        try:
            peer = Peer(number, connection, self._count)
        except OSError:  # no file descriptors left
            connection.close()
            return
        # Its eventfds are new: who still writes those of the number's last bearer rings nobody.
        self.peers[number] = peer
        try:
            self._welcome(peer)
            self._watch(number, True)
            # A peer has nothing to say: whatever comes, it is the end.
            await asyncio.get_running_loop().sock_recv(connection, 1)
        except OSError:
            pass
        finally:
            self._leave(peer)

    def _free_id(self) -> int | None:
        for _ in range(HOST + 1, self._ids):
            number = self._next
            self._next = number + 1 if number + 1 < self._ids else HOST + 1
            if number not in self.peers:
                return number
        return None

    # docs: begin protocol
    def _welcome(self, peer: Peer) -> None:
        peer.send(VERSION)
        peer.send(peer.id)
        peer.send(MEMORY, self._memfd)
        others = [other for other in self.peers.values() if other is not peer]
        for number, vectors in ((HOST, self.vectors), *((other.id, other.vectors) for other in others)):
            for eventfd in vectors:
                peer.send(number, eventfd)
        for eventfd in peer.vectors:
            self._tell(others, peer.id, eventfd)
            peer.send(peer.id, eventfd)

    def _leave(self, peer: Peer) -> None:
        del self.peers[peer.id]
        peer.close()
        self._tell(list(self.peers.values()), peer.id)
        self._watch(peer.id, False)

    def _tell(self, others: Sequence[Peer], number: int, eventfd: EventFd | None = None) -> None:
        for other in others:
            try:
                other.send(number, eventfd)
            except OSError:
                # Its own task hears of the end, and says so to the rest.
                other.connection.shutdown(socket.SHUT_RDWR)

    # docs: end protocol


def _bind(listener: socket.socket, path: str) -> None:
    """Bind to a path, and take away first what a dead server has left there."""
    try:
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            if not Path(path).is_socket():
                raise OSError(error.errno, f"{error.strerror} by a file that is no socket") from None
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(path) != errno.ECONNREFUSED:
                    raise
            Path(path).unlink()
            listener.bind(path)
    except OSError as error:
        # Of a path that is too long Python says so by itself, without a number.
        raise OSError(error.errno or errno.ENAMETOOLONG, error.strerror or str(error), path) from None


def size_of(text: str) -> int:
    """``4096``, ``64K``, ``1M``, ``1G``."""
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:].upper(), 1)
    number = text if factor == 1 else text[:-1]
    if not (number.isascii() and number.isdigit()):
        raise argparse.ArgumentTypeError(f"not a size such as 65536, 64K, 1M or 1G: {text!r}")
    return int(number) * factor


async def serve(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM."""

    async def doorbell(vector: int, count: int) -> None:
        print(f"vector {vector}: rung {count} times", flush=True)
        if options.echo:
            for peer in list(server.peers):
                server.ring(peer, vector, count)

    def watch(peer: int, here: bool) -> None:  # noqa: FBT001  a peer, and whether it is there
        print(f"peer {peer} {'came' if here else 'left'}", flush=True)

    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with contextlib.AsyncExitStack() as stack:
        tracer = stack.enter_context(watched(options, NULL_TRACER))
        try:
            server = Server(
                options.socket, doorbell, vectors=options.vectors, size=options.size, watch=watch, tracer=tracer
            )
        except ValueError as error:
            parser.error(str(error))
        if options.inspect is not None:
            await stack.enter_async_context(await inspect.serve(options.inspect))
        await stack.enter_async_context(server)
        print(
            f"serving on {options.socket}; a guest joins with:\n"
            f"  -chardev socket,id=iv,path={options.socket} -device ivshmem-doorbell,chardev=iv,vectors={options.vectors}",
            flush=True,
        )
        await stopping.wait()
    print("stopped", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="ivshmem-doorbell server; this process is peer 0")
    parser.add_argument("socket", help="unix socket to serve on")
    parser.add_argument("--vectors", type=int, default=1, help="of each peer (default 1)")
    parser.add_argument("--size", type=size_of, default=1 << 20, help="of the shared memory: 64K, 1M (default), 1G")
    parser.add_argument("--echo", action="store_true", help="ring the same vector of every peer back")
    add_options(parser)
    try:
        asyncio.run(serve(parser, parser.parse_args()))
    except OSError as error:
        sys.exit(f"ivshmem_server: {error}")
    except KeyboardInterrupt:  # before the handlers were in place
        sys.exit("ivshmem_server: stopped")


if __name__ == "__main__":
    main()
