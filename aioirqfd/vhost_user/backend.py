"""The back-end: a Unix socket that front-ends connect to, and the device behind it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import os
import signal
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, final

from aioirqfd.counter import Kicks
from aioirqfd.irqfd.interrupt import Msi
from aioirqfd.irqfd.manager import IrqManager
from aioirqfd.tracer import NULL_TRACER
from aioirqfd.vhost_user.blockfile import BlockFile
from aioirqfd.vhost_user.calls import Calls
from aioirqfd.vhost_user.connection import Connection
from aioirqfd.vhost_user.eager import Eager
from aioirqfd.vhost_user.messages import MAX_CONFIG
from aioirqfd.vhost_user.session import Session
from aioirqfd.vhost_user.vring import Vring

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from aioirqfd.counter import Transfer
    from aioirqfd.irqfd.interrupt import Interrupt
    from aioirqfd.tracer import Tracer
    from aioirqfd.vhost_user.chain import Chain
    from aioirqfd.vhost_user.device import Device
    from aioirqfd.vhost_user.vring import VringStatistics


ACCEPT_AGAIN: Final = 1.0
"""Seconds until a connection that could not be accepted is tried again."""


@final
@dataclass(frozen=True, slots=True)
class BackendStatistics:
    """Counts of a back-end, as they are now.

    Attributes:
        sessions: How many front-ends have connected.
        queues: Each queue's.
    """

    sessions: int
    queues: tuple[VringStatistics, ...]


@final
class _KickSink:
    """Where kicks go: gsi n is queue n's. A kick is an interrupt, too, only the other way round."""

    def __init__(self, calls: Calls, count: int) -> None:
        self.vrings: list[Vring] = []
        self.transfers: list[Transfer | None] = [None] * count
        self.try_inject = Kicks(self._on_kick, self.transfers, calls.open).try_inject

    def _on_kick(self, queue: int) -> None:
        self.vrings[queue].on_kick()

    async def inject(self, interrupt: Interrupt) -> None:
        self._on_kick(interrupt.gsi)


@final
class Backend:
    """Serves a device to front-ends, one at a time: others wait until the first one has gone.

    Args:
        device: The device.
        path: Where the socket is made. A socket that a dead process has left there is taken away first.
        tracer: Hears what happens: ``frontend_connected``, ``frontend_disconnected``, ``memory_table``,
            ``vring_started``, ``vring_stopped`` (with a reason if the driver broke its ring), ``message_refused``,
            ``request_failed``, ``interrupt_failed``, ``session_failed``, ``accept_failed``, and what the irqfds have
            to say.
        require_seal: Take only memory that the front-end can no longer shrink.

    Used as ``async with``. Leaving it cancels the requests under way, closes the connection, and takes the socket away.

    Raises:
        ValueError: The device says of itself what cannot be: how many queues, which of them receive, how many requests at
            once, its configuration.
        TypeError: Its ``handle`` is no coroutine function, or its file no :class:`BlockFile`.
        OSError: EADDRINUSE, somebody listens at the path already; on entering.

    Threads: the loop's.
    """

    def __init__(
        self,
        device: Device,
        path: str | os.PathLike[str],
        *,
        tracer: Tracer = NULL_TRACER,
        require_seal: bool = False,
    ) -> None:
        _check(device)
        self.device = device
        self._path = os.fspath(path)
        self._tracer = tracer
        self._require_seal = require_seal
        self._vrings: list[Vring] = []
        self._sessions = 0
        self._stack = contextlib.AsyncExitStack()

    def __repr__(self) -> str:
        return f"<Backend {self._path!r}>"

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            listener = stack.enter_context(_listen(self._path))
            stack.callback(_unlink, self._path)
            count = self.device.num_queues
            calls = Calls(count, tracer=self._tracer)
            sink = _KickSink(calls, count)
            routes = {index: Msi(address=0, data=index) for index in range(count)}
            kicks = await stack.enter_async_context(IrqManager(sink, routing=routes, tracer=self._tracer))
            await stack.enter_async_context(calls)
            eager = Eager(asyncio.get_running_loop())
            stack.push_async_callback(eager.aclose)
            self._vrings = sink.vrings = [
                Vring(
                    index,
                    device=self.device,
                    kicks=kicks,
                    calls=calls,
                    transfers=sink.transfers,
                    eager=eager,
                    tracer=self._tracer,
                )
                for index in range(count)
            ]
            task = asyncio.create_task(self._accept(listener, calls), name=f"aioirqfd {self!r}")
            stack.push_async_callback(self._end, task)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _end(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        for vring in self._vrings:
            vring.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()

    async def _accept(self, listener: socket.socket, calls: Calls) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                # EMFILE and the like pass; whoever wants to connect waits in the socket's own queue.
                self._tracer.emit("accept_failed", error=str(error))
                await asyncio.sleep(ACCEPT_AGAIN)
                continue
            self._sessions += 1
            session = Session(
                Connection(sock),
                device=self.device,
                vrings=self._vrings,
                calls=calls,
                tracer=self._tracer,
                require_seal=self._require_seal,
            )
            try:
                await session.run()
            except Exception as error:
                # A fault of this package's or the device's; the next front-end is not to suffer for it.
                self._tracer.emit("session_failed", error=repr(error))
                loop.call_exception_handler({"message": f"aioirqfd: {self!r}: a session failed", "exception": error})

    def answer_again(self, request: Chain, written: int) -> None:
        """Put the answer to a request into its ring once more: what no device may do, to test a driver with.

        Args:
            request: One that was answered.
            written: What is said to have been written, 0..2**32-1.

        Nothing happens if its queue has stopped meanwhile. Until the front-end connects anew, the queue's requests are not
        kept in the inflight buffer when it starts again.
        """
        self._vrings[request.queue].answer_again(request.head, written)

    def statistics(self) -> BackendStatistics:
        """The counts as they are now."""
        return BackendStatistics(self._sessions, tuple(vring.statistics() for vring in self._vrings))

    async def serve_forever(self) -> None:
        """Wait until cancelled; the front-ends are served anyway, while the back-end is open."""
        await asyncio.get_running_loop().create_future()


def run(device: Device, path: str | os.PathLike[str], *, tracer: Tracer = NULL_TRACER) -> None:
    """Serve a device until SIGINT or SIGTERM: the whole main program of a back-end. On uvloop, where it is installed.

    Args:
        device: The device.
        path: Where the socket is made.
        tracer: Hears what happens.

    Raises:
        SystemExit: It cannot listen at the path, with a line that says why.
    """
    new_loop: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        import uvloop  # noqa: PLC0415  optional: a turn of its loop costs a third

        new_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        try:
            runner.run(_serve(device, path, tracer))
        except OSError as error:
            if error.filename != os.fspath(path):
                raise
            raise SystemExit(str(error)) from None


async def _serve(device: Device, path: str | os.PathLike[str], tracer: Tracer) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with Backend(device, path, tracer=tracer):
        await stop.wait()


def _check(device: Device) -> None:
    """Raise if a device cannot be what it says. Else it would be found out by a driver, which can tell nobody."""
    count = device.num_queues
    if not 1 <= count <= 256:
        raise ValueError(f"a device has 1..256 queues, not {count}")
    if not all(0 <= queue < count for queue in device.receive_queues):
        raise ValueError(f"receive queues {device.receive_queues} of {count}")
    if device.concurrency < 1:
        raise ValueError(f"a queue has 1 or more requests under way at once, not {device.concurrency}")
    if len(memoryview(device.config)) > MAX_CONFIG:
        raise ValueError(f"a configuration space of {len(device.config)} bytes, more than {MAX_CONFIG}")
    # Devices are written without a type checker, too.
    if not inspect.iscoroutinefunction(device.handle):
        raise TypeError(f"handle() is a coroutine function, not {device.handle!r}")
    file = device.file
    if file is not None and not isinstance(file, BlockFile):  # pyright: ignore[reportUnnecessaryIsInstance]  as above
        raise TypeError(f"a file is a BlockFile, not {file!r}")


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or _somebody_listens(path):
                raise
            Path(path).unlink()
            listener.bind(path)
        listener.listen()
        listener.setblocking(False)
    except BaseException as error:
        listener.close()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, path) from None
        raise
    return listener


def _somebody_listens(path: str) -> bool:
    """Whether what is at the path is not just a dead process's socket."""
    if not stat.S_ISSOCK(Path(path).stat().st_mode):
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
    return True


def _unlink(path: str) -> None:
    Path(path).unlink(missing_ok=True)
