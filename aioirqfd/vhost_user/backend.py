"""The back-end: front-ends on Unix sockets, one after the other, and the device that they are served."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, final

from aioirqfd import nodes
from aioirqfd.flight import is_recorded
from aioirqfd.irqfd.guard import guarded
from aioirqfd.irqfd.interrupt import Msi
from aioirqfd.irqfd.manager import IrqManager
from aioirqfd.serving.peers import Accepted, Connected, Single
from aioirqfd.serving.reports import Reports, name_of
from aioirqfd.serving.sockets import connect, listening, listens, socket_path
from aioirqfd.serving.terminal import Terminal
from aioirqfd.tracer import NULL_TRACER
from aioirqfd.vhost_user.calls import Calls
from aioirqfd.vhost_user.connection import Connection
from aioirqfd.vhost_user.session import Session
from aioirqfd.vhost_user.vring import Vring
from aioirqfd.virtio.device import Device, check
from aioirqfd.virtio.eager import Eager
from aioirqfd.virtio.kicks import KickSink

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from aioirqfd.serving.peers import Peers
    from aioirqfd.tracer import Tracer
    from aioirqfd.virtio.chain import Chain
    from aioirqfd.virtio.statistics import VringStatistics

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
class Backend:
    """Serves a device to front-ends, one at a time: others wait until the first one has gone.

    Args:
        device: The device.
        path: Where the socket is made. A socket that a dead process has left there is taken away first.
        sock: Instead of a path, a Unix stream socket: one that listens, or one that is connected to the only front-end there
            will be. Owned from when the back-end is entered.
        connect: The front-end listens at the path, and the back-end connects to it.
        reconnect: With ``connect``: seconds after which it tries again, where nobody listens or the front-end has gone. None:
            it connects once, on entering.
        tracer: Hears what happens: ``frontend_connected``, ``frontend_disconnected``, ``memory_table``,
            ``vring_started``, ``vring_stopped`` (with a reason if the driver broke its ring), and what the irqfds have to
            say. And what goes wrong, rate-limited (:mod:`aioirqfd.ratelimit`): ``message_refused``, ``request_failed``,
            ``interrupt_failed``, ``device_failed``, ``device_trouble``, ``session_failed``, ``accept_failed``, ``connect_failed``,
            ``inflight_too_small`` (a ring that the front-end's inflight buffer has no room for runs without it).
        require_seal: Take only memory that the front-end can no longer shrink.
        name: Its name in :mod:`aioirqfd.inspect`; without one it is a number.

    Used as ``async with``. Leaving it cancels the requests under way, closes the connection, and takes the socket away.

    What a device's own code raises goes to the tracer or, without one, to the loop's exception handler, which writes the
    traceback to standard error: each place that raises, once in a front-end's time.

    Raises:
        ValueError: The device says of itself what cannot be: how many queues, which of them receive, how many requests at
            once, its configuration. Or the socket is none to serve on.
        TypeError: Its ``handle`` is no coroutine function, or its file no :class:`~aioirqfd.virtio.BlockFile`. Or both a path and a socket were
            given, or neither.
        OSError: On entering, with the path: EINVAL, ENAMETOOLONG, it is none for a socket; EADDRINUSE, somebody listens there
            already, or it is no socket; with ``connect`` and without ``reconnect``, nobody listens there.

    Threads: the loop's.
    """

    def __init__(
        self,
        device: Device,
        path: str | os.PathLike[str] | None = None,
        *,
        sock: socket.socket | None = None,
        connect: bool = False,
        reconnect: float | None = None,
        tracer: Tracer = NULL_TRACER,
        require_seal: bool = False,
        name: str | None = None,
    ) -> None:
        name = nodes.check_name(name, "a back-end")
        check(device)
        _check_place(path, sock, connect=connect, reconnect=reconnect)
        self.device = device
        self._path = path
        self._sock = sock
        self._connect = connect
        self._reconnect = reconnect
        self._tracer = tracer if isinstance(tracer, Terminal) else guarded(tracer, device=name_of(device))
        self._require_seal = require_seal
        self._vrings: list[Vring] = []
        self._calls: Calls | None = None
        self._session: Session | None = None
        self._front_end: socket.socket | None = None
        self._sessions = 0
        self._task: asyncio.Task[None] | None = None
        self._stack = contextlib.AsyncExitStack()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reports: Reports | None = None
        self._key = nodes.add("vhost_user", self, Backend._node, name=name, loop=Backend._loop_of)

    def _loop_of(self) -> asyncio.AbstractEventLoop | None:
        return self._loop

    def _node(self) -> Mapping[str, object]:
        """What there is to see of it."""
        managers = [f"vhost_user-{self._key}-kicks", f"vhost_user-{self._key}-calls"]
        return {
            "device": name_of(self.device),
            "own": nodes.Child(self.device.inspect),
            "path": None if self._path is None else os.fsdecode(self._path),
            "sessions": self._sessions,
            "session": None if self._session is None else self._session.node(),
            "driver_features": f"{self.device.driver_features:#x}",
            "managers": managers if self._vrings else [],
            "queues": nodes.Child(lambda: {str(one.index): nodes.Child(one.node) for one in self._vrings}),
        }

    def __repr__(self) -> str:
        return f"<Backend {self._path if self._sock is None else self._sock!r}>"

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        reports = self._reports = Reports(self._tracer, self._loop)
        async with contextlib.AsyncExitStack() as stack:
            front_ends = await self._front_ends(stack, reports)
            count = self.device.num_queues
            # Of what the managers have to say, a terminal is told by the loop's exception handler.
            tracer = NULL_TRACER if isinstance(self._tracer, Terminal) else self._tracer
            calls = self._calls = Calls(count, tracer=tracer, name=f"vhost_user-{self._key}-calls")
            sink = KickSink(calls.open, recorded=is_recorded(tracer))
            routes = {index: Msi(address=0, data=index) for index in range(count)}
            name = f"vhost_user-{self._key}-kicks"
            kicks = await stack.enter_async_context(IrqManager(sink, routing=routes, tracer=tracer, name=name))
            await stack.enter_async_context(calls)
            eager = Eager(asyncio.get_running_loop())
            stack.push_async_callback(eager.aclose)
            self._vrings = [
                Vring(
                    index,
                    device=self.device,
                    kicks=kicks,
                    calls=calls,
                    transfers=sink.transfers,
                    eager=eager,
                    tracer=self._tracer,
                    reports=reports,
                )
                for index in range(count)
            ]
            sink.requests = [vring.requests for vring in self._vrings]
            self._task = task = asyncio.create_task(self._serve(front_ends, calls, reports), name=f"aioirqfd {self!r}")
            stack.push_async_callback(self._end, task)
            self._attend(stack, reports)
            stack.callback(nodes.discard, self)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _front_ends(self, stack: contextlib.AsyncExitStack, reports: Reports) -> Peers:
        sock = self._sock
        if sock is None:
            assert self._path is not None
            path = socket_path(self._path)
            if not self._connect:
                return Accepted(stack.enter_context(await listening(path)).sock, reports, again=ACCEPT_AGAIN)
            if self._reconnect is not None:
                return Connected(path, reports, reconnect=self._reconnect)
            sock = connect(path)
        stack.callback(sock.close)
        sock.setblocking(False)
        return Accepted(sock, reports, again=ACCEPT_AGAIN) if listens(sock) else Single(sock)

    def _attend(self, stack: contextlib.AsyncExitStack, reports: Reports) -> None:
        """Let the device say that its configuration has changed, and do what it does beside requests."""
        device = self.device
        device.config_watchers += (self._config_changed,)
        stack.callback(self._config_no_more)
        device.transport = self
        stack.callback(self._let_go)
        if type(device).background is not Device.background:
            task = asyncio.create_task(device.background(), name=f"aioirqfd {name_of(device)}.background")
            task.add_done_callback(lambda ended: _background_ended(device, ended, reports))
            stack.push_async_callback(_cancel, task)

    def _config_changed(self) -> None:
        for vring in self._vrings:
            vring.requests.take_file()
        if self._session is not None:
            self._session.config_changed()

    def _config_no_more(self) -> None:
        watchers = self.device.config_watchers
        self.device.config_watchers = tuple(one for one in watchers if one != self._config_changed)

    def _let_go(self) -> None:
        if self.device.transport is self:
            self.device.transport = None

    async def _end(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        for vring in self._vrings:
            vring.requests.close()
        await asyncio.wait({task})
        # A session that was about to end has not waited for what was cancelled, such as a handler with a thread to wait for.
        for vring in self._vrings:
            await vring.requests.end()
        if not task.cancelled():
            task.result()

    async def _serve(self, front_ends: Peers, calls: Calls, reports: Reports) -> None:
        while (sock := await front_ends.next()) is not None:
            self._sessions += 1
            self._front_end = sock
            reports.begin()
            self._session = Session(
                Connection(sock),
                device=self.device,
                vrings=self._vrings,
                calls=calls,
                tracer=self._tracer,
                reports=reports,
                require_seal=self._require_seal,
            )
            try:
                await self._session.run()
            except Exception as error:
                # A fault of this package's; the next front-end is not to suffer for it.
                reports.raised("session_failed", f"{self!r}: a session failed", error)
            finally:
                self._session = self._front_end = None

    def look_again(self) -> None:
        """Let requests and interrupts go by the device's interception, or no longer; its ``intercept()`` calls this."""
        for vring in self._vrings:
            vring.requests.look_again()

    def report(self, what: str) -> None:
        """Tell the tracer what the device says, in time; its own ``report()`` calls this."""
        assert self._reports is not None
        self._reports.trouble("device_trouble", kind=what, what=what)

    def ring(self, queue: int) -> None:
        """Interrupt the driver for a queue, whether there is something to tell or not."""
        self._vrings[queue].requests.ring()

    def answers(self, queue: int) -> int:
        """How many answers a queue has given."""
        return self._vrings[queue].statistics().answers

    def runs(self, queue: int) -> bool:
        """Whether a queue runs: the front-end starts it when the driver has said ``DRIVER_OK``, and stops it before a reset."""
        vring = self._vrings[queue]
        return vring.queue is not None and vring.enabled

    def hang_up(self) -> None:
        """Close the connection to the front-end, as if this process had died; the next one, or the same one anew, is served."""
        if self._front_end is not None:
            # Not closed here: the session reads an end, and closes it.
            self._front_end.shutdown(socket.SHUT_RDWR)

    def answer_again(self, request: Chain, written: int, *, head: int | None = None) -> None:
        """Put the answer to a request into its ring once more: what no device may do, to test a driver with.

        Args:
            request: One that was answered, or whose handler said ``UNANSWERED``.
            written: What is said to have been written, 0..2**32-1.
            head: In place of the request's own, another descriptor's number, below the queue's size.

        Nothing happens if its queue has stopped meanwhile. Until the front-end connects anew, the queue's requests are not
        kept in the inflight buffer when it starts again.
        """
        self._vrings[request.queue].answer_again(request.head if head is None else head, written)

    def statistics(self) -> BackendStatistics:
        """The counts as they are now."""
        return BackendStatistics(self._sessions, tuple(vring.statistics() for vring in self._vrings))

    async def serve_forever(self) -> None:
        """Wait as long as there may be front-ends: until cancelled, unless the only one has gone.

        Front-ends are served anyway, while the back-end is open.

        Raises:
            RuntimeError: The back-end has not been entered.
        """
        if self._task is None:
            raise RuntimeError(f"{self!r} is not open; enter it with `async with`")
        await asyncio.wait({self._task})


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


def _background_ended(device: Device, task: asyncio.Task[None], reports: Reports) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        message = f"background() of {name_of(device)} raised"
        reports.raised("device_failed", message, error, what="background()")


def _check_place(path: object, sock: socket.socket | None, *, connect: bool, reconnect: float | None) -> None:
    """Raise if it is not said where to serve, or twice."""
    if (path is None) == (sock is None):
        raise TypeError("a back-end serves at a path, or on a socket: one of the two")
    if sock is not None:
        listens(sock)
    if connect and path is None:
        raise TypeError("connect=True is for a path; a socket is connected, or it listens")
    if reconnect is not None:
        if not connect:
            raise TypeError("reconnect is for connect=True")
        if not (reconnect > 0 and math.isfinite(reconnect)):
            raise ValueError(f"reconnect is a number of seconds above 0, not {reconnect}")
