"""The console: what the guest prints goes to the output, in order."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from typing import TYPE_CHECKING, Final, final

from aioirqfd import EventFd
from examples.vmm import ports

if TYPE_CHECKING:
    from examples.vmm.portio import PortIo
    from examples.vmm.streams import Output

_ROOM: Final = 64 * 1024
"""Bytes that may wait to be written before the serial receiver is held back."""
_GATHER: Final = 0.002
"""Seconds to collect before writing: the guest prints four bytes at a time."""


@final
class Console:
    """Collects on the CPU's thread, writes on the loop's.

    Args:
        output: Where the bytes go.

    Attributes:
        printed: Bytes the guest printed.
        digest: A hash over them.
    """

    __slots__ = ("_buffer", "_filled", "_lock", "_output", "_received", "_written", "digest", "printed")

    def __init__(self, output: Output) -> None:
        self._output = output
        self._buffer = bytearray()
        self._lock = threading.Lock()
        self._filled = EventFd()
        self._written = asyncio.Event()
        self._received = 0
        self.printed = 0
        self.digest = hashlib.blake2b()

    def connect(self, io: PortIo) -> None:
        """Take what the guest prints at ``CONSOLE_PORT``."""
        io.on_write(ports.CONSOLE_PORT, self._print)

    async def run(self) -> None:
        """Write until cancelled.

        Raises:
            OSError: The output failed.
        """
        while True:
            await self._filled.read()
            await asyncio.sleep(_GATHER)
            with self._lock:
                data = bytes(self._buffer)
                self._buffer.clear()
            self.digest.update(data)
            await self._output.write(data)
            self.printed += len(data)
            self._written.set()

    async def wait_room(self) -> None:
        """Wait until less than 64 KiB wait to be written."""
        await self._wait_below(_ROOM)

    async def wait_written(self) -> None:
        """Wait until everything printed before this call is written."""
        await self._wait_below(1)

    def close(self) -> None:
        """Close the eventfd."""
        self._filled.close()

    async def _wait_below(self, below: int) -> None:
        while self._received - self.printed >= below:
            self._written.clear()
            await self._written.wait()

    def _print(self, data: bytes, _size: int) -> None:
        with self._lock:
            idle = not self._buffer
            self._buffer += data
        self._received += len(data)
        if idle:
            self._filled.signal()
