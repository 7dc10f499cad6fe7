"""A QEMU's qtest socket, played by the test: it keeps what it was sent, and answers what it is told to answer."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Peer:
    """Answers OK to everything, or what :attr:`answer` says; nothing while :attr:`holding`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.commands: list[str] = []
        self.answer: Callable[[str], str] = lambda _command: "OK\n"
        self.holding = False
        self._held: list[str] = []
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[object] | None = None
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        self.hang_up()
        if self._task is not None:
            await self._task

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._task = asyncio.current_task()
        with contextlib.suppress(ConnectionError):
            await self._read(reader)
        writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        async for line in reader:
            command = line.decode().rstrip("\n")
            if command != "endianness":
                self.commands.append(command)
                self._news.set()
            if self.holding:
                self._held.append(command)
            else:
                self.say("OK little\n" if command == "endianness" else self.answer(command))

    def say(self, text: str) -> None:
        assert self._writer is not None
        self._writer.write(text.encode())

    def release(self) -> None:
        """Answer what was held back, and whatever comes from now on."""
        self.holding = False
        held, self._held = self._held, []
        for command in held:
            self.say("OK little\n" if command == "endianness" else self.answer(command))

    def hang_up(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()

    async def heard(self, count: int) -> None:
        """Wait until that many commands have come."""
        while len(self.commands) < count:
            self._news.clear()
            await self._news.wait()
