"""The tree for other processes: a Unix socket, on which lines of JSON ask and answer.

Who may connect owns the program, or is root: the socket's file is made with mode 0600, and the kernel is asked who the other end is
(``SO_PEERCRED``), for the file may have been given away since. A client can ask for anything that :func:`aioirqfd.inspect.read` gives, and
write the settings; nothing else.

A client is never waited for by anybody but its own task: one that sends half a line, or does not read its answers, holds a place, and
there are :data:`CLIENTS` of them. Whoever comes when all are taken is let in, and the one that has been silent longest is sent away, so
those that hang cannot keep out who looks for the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from typing import TYPE_CHECKING, Final, Self, cast, final

from aioirqfd.inspect.tree import TIMEOUT, InspectError, aread, awrite
from aioirqfd.nodes import plain
from aioirqfd.serving.sockets import listening, serve_streams, socket_path

if TYPE_CHECKING:
    from types import TracebackType

    from aioirqfd.serving.sockets import Listener

PROTOCOL: Final = 1
"""The version of the protocol, in each answer."""
MODE: Final = 0o600
CLIENTS: Final = 16
"""Clients at once."""
MAX_LINE: Final = 65536
"""Bytes of a request's line, with its end."""
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid
_FIELDS: Final = frozenset({"path", "depth", "set", "id"})


def peer_uid(sock: socket.socket) -> int:
    """Whose process is at the other end, by the kernel."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(raw)[1]
    return uid


@final
class InspectServer:
    """Serves the tree at a path; made by :func:`serve`.

    An async context manager; :meth:`aclose` ends it.

    Threads:
        The loop's that it was made on.
    """

    def __init__(self, path: str | os.PathLike[str], *, patience: float = TIMEOUT) -> None:
        self._patience = patience
        self._clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.path: Final = socket_path(path)
        """Where it listens."""
        self._listener: Listener
        self._server: asyncio.Server | None = None

    def __repr__(self) -> str:
        return f"<InspectServer {self.path}>"

    async def start(self) -> Self:
        """Begin to listen.

        :meta private:
        """
        self._listener = await listening(self.path, mode=MODE)
        try:
            self._server = await serve_streams(self._connected, self._listener, limit=MAX_LINE)
        except BaseException:
            self._listener.__exit__()
            raise
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Send all clients away, and take the socket away from the path; idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        self._listener.__exit__()
        tasks = [*self._clients]
        for task, writer in self._clients.items():
            writer.transport.abort()
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # -- clients -----------------------------------------------------------------------------------------------------

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:
            writer.transport.abort()
            return
        if len(self._clients) >= CLIENTS and not _may(_uid(writer)):
            writer.transport.abort()  # a stranger sends nobody away
            return
        while len(self._clients) >= CLIENTS:
            silent = next(iter(self._clients))
            self._clients.pop(silent).transport.abort()  # which ends its task
        writer.transport.set_write_buffer_limits(0)  # so that drain() waits until the client has taken it all
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer), name=f"aioirqfd {self!r}")
        self._clients[task] = writer
        task.add_done_callback(lambda task: self._clients.pop(task, None))

    def _heard_of(self) -> None:
        """The client that is served just now is not the one that has been silent longest."""
        task = asyncio.current_task()
        assert task is not None
        writer = self._clients.pop(task, None)
        if writer is not None:
            self._clients[task] = writer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                uid = _uid(writer)
                if not _may(uid):
                    writer.write(
                        _line(
                            {"error": f"this program is not that of uid {uid}: ask as uid {os.geteuid()}, or as root"}
                        )
                    )
                    await writer.drain()
                    return
                while await self._answer(reader, writer):
                    pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one line; False: there will be no more."""
        try:
            line = await reader.readuntil()
        except asyncio.IncompleteReadError:
            return False  # it has gone; what it has not ended with a newline is no request
        except asyncio.LimitOverrunError:
            writer.write(_line({"error": f"a request is a line of {MAX_LINE} bytes at most"}))
            await writer.drain()
            return False
        self._heard_of()
        writer.write(_line(await self._reply(line)))
        await writer.drain()
        return True

    async def _reply(self, line: bytes) -> dict[str, object]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError) as error:
            return {"error": f"a request is a line with an object of JSON: {error}"}
        if not isinstance(request, dict):
            return {"error": f"a request is an object of JSON, not {str(cast('object', request))[:80]}"}
        fields = cast("dict[str, object]", request)
        answer: dict[str, object] = {}
        try:
            answer = {"id": plain(fields["id"])} if "id" in fields else {}
            return answer | {"value": await self._do(fields)}
        except (InspectError, ValueError, TypeError) as error:
            return answer | {"error": str(error)}
        except Exception as error:
            # A sink's or a device's own code, in a node that was asked for alone.
            return answer | {"error": repr(error)}

    async def _do(self, request: dict[str, object]) -> object:
        unknown = sorted(request.keys() - _FIELDS)
        if unknown:
            raise ValueError(f"a request has {', '.join(sorted(_FIELDS))}, not {', '.join(unknown)}")
        path, depth = request.get("path", ""), request.get("depth")
        if not isinstance(path, str):
            raise TypeError(f"path is a string, not {path!r}")
        if depth is not None and (not isinstance(depth, int) or isinstance(depth, bool) or depth < 0):
            raise ValueError(f"depth is a number from 0 on, or null, not {depth!r}")
        # Tempting, and wrong: to wait in a thread of the loop's executor. A program that has filled that is one that is looked into.
        if "set" in request:
            await awrite(path, request["set"], patience=self._patience)
            return request["set"]
        return await aread(path, depth, patience=self._patience)


def _uid(writer: asyncio.StreamWriter) -> int:
    return peer_uid(cast("socket.socket", writer.get_extra_info("socket")))


def _may(uid: int) -> bool:
    return uid in {os.geteuid(), 0}


def _line(answer: dict[str, object]) -> bytes:
    return json.dumps({"protocol": PROTOCOL, **answer}, allow_nan=False).encode() + b"\n"


async def serve(path: str | os.PathLike[str], *, patience: float = TIMEOUT) -> InspectServer:
    """Serve the tree of this process to whoever owns it: ``async with await inspect.serve("/run/user/1000/vmm.sock"): ...``.

    Args:
        path: Where the socket is made, with mode 0600. One that a dead process has left there is taken away first.
        patience: Seconds within which each event loop that is asked has to answer.

    Returns:
        What serves it, until it is closed.

    Raises:
        OSError: With the path: it is none for a socket; EADDRINUSE, somebody listens there already, or it is no socket.
    """
    return await InspectServer(path, patience=patience).start()
