"""As much of QEMU's machine protocol (QMP) as it takes to find the interrupt controllers and to look at them."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Final, Self, cast, final

from aioirqfd.errors import IrqfdError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from types import TracebackType

_LIMIT: Final = 1 << 24
"""Bytes in one message; the longest are lists of properties."""


class QmpError(IrqfdError):
    """QEMU refused a command, or hung up."""


@final
class Qmp:
    """One connection to ``-qmp unix:PATH,server=on,wait=off``; QEMU serves one at a time. Made by :meth:`connect`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.events: list[Mapping[str, object]] = []
        """What QEMU said unasked, in order; seen when a command's reply is read."""
        self._reader = reader
        self._writer = writer
        self._turn = asyncio.Lock()
        self._commands = 0

    @classmethod
    async def connect(cls, path: str | os.PathLike[str]) -> Self:
        """Connect and leave the negotiation mode.

        Raises:
            OSError: Nobody listens.
            QmpError: QEMU hung up.
        """
        self = cls(*await asyncio.open_unix_connection(str(path), limit=_LIMIT))
        try:
            await self._receive()
            await self.execute("qmp_capabilities")
        except BaseException:
            await self.aclose()
            raise
        return self

    async def execute(self, command: str, **arguments: object) -> object:
        """Run a command and return what it returns.

        Raises:
            QmpError: QEMU refused it, or hung up.

        Cancellation:
            QEMU may have run the command, or run it yet; its reply is left out when it comes.
        """
        async with self._turn:
            self._commands += 1
            number = self._commands
            message: dict[str, object] = {"execute": command, "arguments": arguments, "id": number}
            self._writer.write(json.dumps(message).encode() + b"\n")
            while True:
                message = await self._receive()
                if "event" in message:
                    self.events.append(message)
                elif message.get("id", number) != number:
                    continue  # to a command whose caller has gone
                elif "return" in message:
                    return message["return"]
                else:
                    raise QmpError(f"{command}: {message.get('error')}")

    async def hmp(self, line: str) -> str:
        """Run a line of the human monitor (``info pic``) and return its text."""
        return str(await self.execute("human-monitor-command", **{"command-line": line}))

    async def qom_list(self, path: str) -> dict[str, str]:
        """The properties of an object: each one's name and type."""
        items = cast("list[dict[str, str]]", await self.execute("qom-list", path=path))
        return {item["name"]: item["type"] for item in items}

    async def _receive(self) -> dict[str, object]:
        try:
            line = await self._reader.readline()
        except (ConnectionError, ValueError) as error:
            raise QmpError(f"QEMU hung up: {error}") from error
        if not line:
            raise QmpError("QEMU hung up")
        try:
            message: object = json.loads(line)
        except ValueError as error:
            raise QmpError(f"what answers is no QEMU: {error}") from error
        if not isinstance(message, dict):
            raise QmpError(f"what answers is no QEMU: {message!r}")
        return cast("dict[str, object]", message)

    async def aclose(self) -> None:
        """Hang up; idempotent."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            return

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
