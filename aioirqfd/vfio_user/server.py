"""The server: clients on a Unix socket, one after the other, and the device that they are served."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, final

from aioirqfd import nodes
from aioirqfd.irqfd.guard import guarded
from aioirqfd.pci.function import PciFunction
from aioirqfd.serving.peers import Accepted, Single
from aioirqfd.serving.reports import Reports, name_of
from aioirqfd.serving.sockets import listening, listens, socket_path
from aioirqfd.serving.terminal import Terminal
from aioirqfd.tracer import NULL_TRACER
from aioirqfd.vfio_user.connection import Connection
from aioirqfd.vfio_user.messages import Irq
from aioirqfd.vfio_user.session import Session

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping
    from types import TracebackType

    from aioirqfd.pci.device import PciDevice
    from aioirqfd.serving.peers import Peers
    from aioirqfd.tracer import Tracer

ACCEPT_AGAIN: Final = 1.0
"""Seconds until a connection that could not be accepted is tried again."""


@final
@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """Counts of a server, as they are now.

    Attributes:
        sessions: How many clients have connected.
        messages: How many messages they have sent.
        mappings: DMA mappings there are.
    """

    sessions: int
    messages: int
    mappings: int


@final
class Server:
    """Serves a PCI device to clients, one at a time: others wait until the first one has gone.

    The device keeps its state from one client to the next; only its DMA mappings and the eventfds of its interrupts go with the
    client. What it signals while there is none is pending.

    Args:
        device: The device.
        path: Where the socket is made. A socket that a dead process has left there is taken away first.
        sock: Instead of a path, a Unix stream socket: one that listens, or one that is connected to the only client there will
            be. Owned from when the server is entered.
        tracer: Hears what happens: ``client_connected``, ``client_disconnected`` (with a reason if the client broke the protocol),
            ``function_reset``, what the irqfds have to say and, once for each place, ``undeclared_read``, ``undeclared_write``,
            ``read_only_write``. And what goes wrong, rate-limited (:mod:`aioirqfd.ratelimit`): ``message_refused``,
            ``device_failed``, ``device_trouble`` (of a virtio device), ``reply_unexpected``, ``twin_socket_failed``, ``session_failed``, ``accept_failed``.
        require_seal: Take only memory that the client can no longer shrink.
        name: Its name in :mod:`aioirqfd.inspect`; without one it is a number.

    Used as ``async with``. Leaving it ends what is under way, closes the connection, and takes the socket away.

    What a device's own code raises goes to the tracer or, without one, to the loop's exception handler, which writes the
    traceback to standard error: each place that raises, once in a client's time. The client's message is answered with EIO.

    Raises:
        ValueError: The device says of itself what cannot be, or the socket is none to serve on.
        TypeError: Both a path and a socket were given, or neither.
        OSError: On entering, with the path: EINVAL, ENAMETOOLONG, it is none for a socket; EADDRINUSE, somebody listens there
            already, or it is no socket.

    Threads: the loop's.
    """

    def __init__(
        self,
        device: PciDevice,
        path: str | os.PathLike[str] | None = None,
        *,
        sock: socket.socket | None = None,
        tracer: Tracer = NULL_TRACER,
        require_seal: bool = False,
        name: str | None = None,
    ) -> None:
        name = nodes.check_name(name, "a server")
        if (path is None) == (sock is None):
            raise TypeError("a server serves at a path, or on a socket: one of the two")
        if sock is not None:
            listens(sock)
        self.device = device
        self._path = path
        self._sock = sock
        self._tracer = tracer if isinstance(tracer, Terminal) else guarded(tracer, device=name_of(device))
        self._require_seal = require_seal
        self._session: Session | None = None
        self._sessions = 0
        self._messages = 0
        self._reports: Reports | None = None
        self._task: asyncio.Task[None] | None = None
        self._stack = contextlib.AsyncExitStack()
        # Of what the managers have to say, a terminal is told by the loop's exception handler.
        own = NULL_TRACER if isinstance(self._tracer, Terminal) else self._tracer
        self._loop: asyncio.AbstractEventLoop | None = None
        self._key = nodes.add("vfio_user", self, Server._node, name=name, loop=Server._loop_of)
        self.function: Final = PciFunction(
            device, tracer=own, failed=self._background_failed, name=f"{name_of(device)}-{self._key}"
        )

    def _loop_of(self) -> asyncio.AbstractEventLoop | None:
        return self._loop

    def _node(self) -> Mapping[str, object]:
        """What there is to see of it."""
        return {
            "path": None if self._path is None else os.fsdecode(self._path),
            "session": self._session is not None,
            **nodes.counts(self.statistics()),
            **self.function.node(),
        }

    def __repr__(self) -> str:
        return f"<Server {self._path if self._sock is None else self._sock!r}>"

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._reports = self.function.reports = reports = Reports(self._tracer, self._loop)
        async with contextlib.AsyncExitStack() as stack:
            peers = await self._peers(stack, reports)
            await stack.enter_async_context(self.function)
            self._task = task = asyncio.create_task(self._serve(peers, reports), name=f"aioirqfd {self!r}")
            stack.push_async_callback(_end, task)
            stack.callback(nodes.discard, self)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _peers(self, stack: contextlib.AsyncExitStack, reports: Reports) -> Peers:
        sock = self._sock
        if sock is None:
            assert self._path is not None
            listener = stack.enter_context(await listening(socket_path(self._path)))
            return Accepted(listener.sock, reports, again=ACCEPT_AGAIN)
        stack.callback(sock.close)
        sock.setblocking(False)
        return Accepted(sock, reports, again=ACCEPT_AGAIN) if listens(sock) else Single(sock)

    def _background_failed(self, error: BaseException) -> None:
        if self._reports is not None:
            message = f"background() of {name_of(self.device)} raised"
            self._reports.raised("device_failed", message, error, what="background()")

    async def _serve(self, peers: Peers, reports: Reports) -> None:
        while (sock := await peers.next()) is not None:
            self._sessions += 1
            reports.begin()
            self._session = session = Session(
                Connection(sock),
                function=self.function,
                tracer=self._tracer,
                reports=reports,
                require_seal=self._require_seal,
            )
            try:
                await session.run()
            except Exception as error:
                # A fault of this package's; the next client is not to suffer for it.
                reports.raised("session_failed", f"{self!r}: a session failed", error)
            finally:
                self._session = None
                self._messages += session.messages

    def report_error(self) -> bool:
        """Tell the client that the device has failed beyond repair (``ERR``): QEMU stops its guest. False: nobody listens."""
        return self._session is not None and self._session.irqs.signal(Irq.ERR)

    def request_release(self) -> bool:
        """Ask the client to give the device back (``REQ``): QEMU unplugs it. False: nobody listens."""
        return self._session is not None and self._session.irqs.signal(Irq.REQ)

    def statistics(self) -> ServerStatistics:
        """The counts as they are now."""
        here = 0 if self._session is None else self._session.messages
        return ServerStatistics(self._sessions, self._messages + here, len(self.function.dma))

    async def serve_forever(self) -> None:
        """Wait as long as there may be clients: until cancelled, unless the only one has gone.

        Clients are served anyway, while the server is open.

        Raises:
            RuntimeError: The server has not been entered.
        """
        if self._task is None:
            raise RuntimeError(f"{self!r} is not open; enter it with `async with`")
        await asyncio.wait({self._task})


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()
