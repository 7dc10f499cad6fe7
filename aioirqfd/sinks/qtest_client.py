"""The client's side of QEMU's qtest protocol, pipelined.

A command is a line, its reply is a line (``OK ...`` or ``FAIL ...``), replies come in the order of the commands. Between them
come lines nobody asked for, ``IRQ raise N`` and ``IRQ lower N``, once a chip's lines are intercepted; what a command causes is
said before its own ``OK``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, Self, cast, final

from aioirqfd.errors import IrqfdError
from aioirqfd.irqfd.guard import report
from aioirqfd.uncopied import refusal

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from types import TracebackType

    OnIrq = Callable[[int, bool], object]

_LINE: Final = 1 << 20
"""Bytes without a line's end after which the peer is taken for something else than a QEMU."""


class QtestError(IrqfdError):
    """QEMU answered ``FAIL``, or what it said is not the qtest protocol."""


class QtestClosedError(QtestError, ConnectionError):
    """The connection ended before the reply: QEMU quit, aborted, was killed, or the client was closed."""


@final
class QtestClient(asyncio.Protocol):
    """One connection to a QEMU's qtest socket; QEMU serves one at a time. Made by :meth:`connect`.

    Attributes:
        on_irq: Called with line and level for each ``IRQ raise`` and ``IRQ lower`` line, on the loop's thread, before the
            reply of the command that caused it; should not raise: what it raises goes to the loop's exception handler.

    Threads:
        The loop's thread.
    """

    def __init__(self, on_irq: OnIrq | None = None) -> None:
        self.on_irq = on_irq
        self.replies = 0
        """Replies so far."""
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._waiting: deque[tuple[asyncio.Future[str], bool]] = deque()
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._error: QtestError | None = None

    @classmethod
    async def connect(cls, path: str | os.PathLike[str], *, on_irq: OnIrq | None = None) -> Self:
        """Connect to ``-qtest unix:PATH,server=on,wait=off`` and wait until QEMU answers.

        Args:
            path: The socket; QEMU makes it long before it answers.
            on_irq: See :attr:`on_irq`.

        Raises:
            OSError: Nobody listens.
            QtestClosedError: QEMU hung up, perhaps because it died while starting.
            QtestError: What answers is no QEMU.
        """
        loop = asyncio.get_running_loop()
        _, self = await loop.create_unix_connection(lambda: cls(on_irq), str(path))
        try:
            await self.command("endianness")
        except BaseException:
            await self.aclose()
            raise
        return self

    def __reduce__(self) -> tuple[object, ...]:
        raise refusal(self, "It is one end of a connection: connect() another one.")

    @property
    def outstanding(self) -> int:
        """Commands without a reply so far."""
        return len(self._waiting)

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._error is not None

    def submit(self, *commands: str) -> asyncio.Future[str]:
        """Send commands in one go.

        Args:
            commands: One or more lines without their end.

        Returns:
            A future for the last one's reply without its ``OK``, or for the first error of any.

        Raises:
            QtestClosedError: The connection is gone.
            ValueError: A line's end inside a command, which would make two of it.
        """
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._send(commands)
        self._waiting.extend([(future, False)] * (len(commands) - 1))
        self._waiting.append((future, True))
        return future

    def _send(self, commands: Sequence[str]) -> None:
        if self._error is not None or self._transport is None:
            raise QtestClosedError(str(self._error or "not connected")) from self._error
        text = "\n".join(commands)
        if not all(commands) or text.count("\n") != len(commands) - 1:
            raise ValueError(f"a qtest command is one line with something in it, not {commands!r}")
        self._transport.write(f"{text}\n".encode())

    async def command(self, command: str) -> str:
        """Send one command and wait for its reply.

        Returns:
            What came after ``OK``; empty for most.

        Raises:
            QtestError: ``FAIL``, with QEMU's reason.
            QtestClosedError: The connection is gone, or ended while waiting.
        """
        return await self.submit(command)

    async def commands(self, *commands: str) -> list[str]:
        """Send commands in one go and wait for the reply of each. Raises as :meth:`command` does, the first error there was."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[str]] = [loop.create_future() for _ in commands]
        self._send(commands)
        self._waiting.extend((future, True) for future in futures)
        await asyncio.wait(futures)
        errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None:
                raise error
        return [future.result() for future in futures]

    # -- the transport's side ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there.

        :meta private:
        """
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of replies, cut anywhere.

        :meta private:
        """
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._take(line.decode("ascii", "replace").rstrip("\r"))
        if len(self._buffer) > _LINE:
            self._fail(QtestError(f"{_LINE} bytes without a line's end: this is no QEMU"))

    def _take(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "IRQ":
            what, _, number = rest.partition(" ")
            if what not in {"raise", "lower"} or not number.isdecimal():
                self._fail(QtestError(f"not a qtest line: {line!r}"))
            elif self.on_irq is not None:
                try:
                    self.on_irq(int(number), what == "raise")
                except Exception as error:
                    # The connection, and every interrupt that is on its way, would end with it.
                    report(f"aioirqfd: on_irq raised: {self.on_irq!r}", error)
            return
        if word not in {"OK", "FAIL", "ERR"} or not self._waiting:
            self._fail(QtestError(f"not a qtest reply: {line!r}"))
            return
        future, last = self._waiting.popleft()
        self.replies += 1
        if future.done():
            return
        if word == "OK":
            if last:
                future.set_result(rest)
        else:
            future.set_exception(QtestError(f"QEMU says: {rest}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone.

        :meta private:
        """
        error = QtestClosedError(f"QEMU hung up{f': {exc}' if exc else ''}")
        error.__cause__ = exc
        self._fail(error)
        if not self._lost.done():
            self._lost.set_result(None)

    def _fail(self, error: QtestError) -> None:
        if self._error is None:
            self._error = error
        waiting, self._waiting = self._waiting, deque()
        for future, _ in waiting:
            if not future.done():
                future.set_exception(self._error)
        if self._transport is not None:
            self._transport.abort()

    async def aclose(self) -> None:
        """Hang up; idempotent. Whoever waits for a reply gets QtestClosedError. QEMU goes on."""
        self._fail(QtestClosedError("the client was closed"))
        if self._transport is not None:
            await asyncio.shield(self._lost)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
