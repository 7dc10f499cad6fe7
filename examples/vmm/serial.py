"""The serial receiver: a level-triggered line that stays up while there is something to read."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from typing import TYPE_CHECKING, Final, final

from aioirqfd import EventFd
from examples.vmm import ports
from examples.vmm.portio import register

if TYPE_CHECKING:
    from examples.vmm.console import Console
    from examples.vmm.portio import PortIo
    from examples.vmm.streams import Source

FIFO_SIZE: Final = 4096
"""Bytes the receiver holds; four times what the guest takes at an interrupt."""


@final
class Serial:
    """Hands the bytes of a source to the guest, FIFO by FIFO.

    A signal of ``trigger`` asserts the line. The guest's handler reads what it can and sends its EOI; that lowers the line and
    signals ``resample`` (row R02), and here the receiver looks whether anything is left: if so, it asserts again (row R08).

    Args:
        source: Where the bytes come from.
        console: Where the guest prints them. While it holds too much that is not written yet, the receiver waits: a slow
            reader of the output slows the guest down, and memory stays bounded.
        patience: Seconds to wait for an EOI.

    Attributes:
        trigger: The eventfd of the device's irqfd.
        resample: Its resamplefd.
        asserted: How often the line was asserted.
        fed: Bytes put into the FIFO.
        digest: A hash over them.
    """

    __slots__ = (
        "_console",
        "_fifo",
        "_lock",
        "_patience",
        "_source",
        "asserted",
        "digest",
        "fed",
        "resample",
        "trigger",
    )

    def __init__(self, source: Source, console: Console, *, patience: float) -> None:
        self._source = source
        self._console = console
        self._patience = patience
        self._fifo = bytearray()
        self._lock = threading.Lock()
        self.trigger = EventFd()
        self.resample = EventFd()
        self.asserted = 0
        self.fed = 0
        self.digest = hashlib.blake2b()

    def connect(self, io: PortIo) -> None:
        """Answer the guest at ``SERIAL_PORT`` and ``SERIAL_COUNT_PORT``."""
        io.on_read(ports.SERIAL_PORT, self._take)
        io.on_read(ports.SERIAL_COUNT_PORT, register(lambda: len(self._fifo)))

    async def run(self) -> None:
        """Feed the guest until the source ends and the guest has read everything.

        Raises:
            TimeoutError: The guest sent no EOI: an interrupt was lost, or the guest hangs.
            OSError: The source cannot be read.
        """
        while data := await self._source.read(FIFO_SIZE):
            await self._console.wait_room()
            with self._lock:
                self._fifo += data
            self.fed += len(data)
            self.digest.update(data)
            while self._fifo:
                self.asserted += 1
                self.trigger.signal()
                async with asyncio.timeout(self._patience):
                    await self.resample.read()

    def close(self) -> None:
        """Close the eventfds."""
        self.trigger.close()
        self.resample.close()

    def _take(self, size: int, count: int) -> bytes:
        wanted = size * count
        with self._lock:
            data = bytes(self._fifo[:wanted])
            del self._fifo[:wanted]
        return data.ljust(wanted, b"\xff")
