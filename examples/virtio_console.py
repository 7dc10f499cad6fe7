"""A console for a guest, ``/dev/hvc0``, on standard input and output: ``python examples/virtio_console.py --socket-path console.sock``."""

from __future__ import annotations

import asyncio
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

if not __package__:  # run as a path: python examples/virtio_console.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from aioirqfd.vhost_user import main
from aioirqfd.virtio import NEEDS_RESET, Chain, Device
from examples.vmm.streams import FdSource, Output

if TYPE_CHECKING:
    from collections.abc import Mapping

RECEIVE, TRANSMIT = 0, 1
SIZE: Final = 1 << 0
"""The feature bit that says that the configuration space has columns and rows (virtio 1.2, section 5.3.3)."""
PIECE: Final = 4096
"""Bytes that are read or written at once."""
GRACE: Final = 1.0
"""Seconds that what is being written has to end in, when the device is served no more."""


class ByteSource(Protocol):
    """Where a console's input comes from: :class:`examples.vmm.streams.FdSource`, or like it."""

    async def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes, at least one; none at the end. Cancellation: none are taken."""
        ...


class ByteSink(Protocol):
    """Where its output goes: :class:`examples.vmm.streams.Output`, or like it."""

    async def write(self, data: bytes, /) -> None:
        """Write everything."""


class Console(Device):
    """Virtio console device (section 5.3) with one port. No byte is lost, either way.

    Args:
        source: What is typed. It is read when the guest has a buffer for it.
        sink: What is shown. A request is answered when it was written.
        size: Columns and rows, 0..65535 each; (0, 0): not known.
    """

    device_id = 3
    num_queues = 2
    receive_queues = (RECEIVE, TRANSMIT)  # both may have to wait
    features = SIZE

    def __init__(self, source: ByteSource, sink: ByteSink, *, size: tuple[int, int] = (0, 0)) -> None:
        self.received = self.transmitted = 0
        self.config = struct.pack("<HH", *size)
        self._source = source
        self._sink = sink
        self._late: asyncio.Task[None] | None = None
        self._leaving = False

    def resize(self, columns: int, rows: int) -> None:
        """The terminal has another size: 0..65535 each. The driver is told."""
        self.config = struct.pack("<HH", columns, rows)
        self.config_changed()

    async def handle(self, request: Chain) -> int:
        """Write what the guest writes; fill a buffer of the other queue once there is something to fill it with."""
        return await (self._receive(request) if request.queue == RECEIVE else self._transmit(request))

    async def _receive(self, request: Chain) -> int:
        if not request.writable_size:
            return 0
        data = await self._source.read(min(request.writable_size, PIECE))
        if not data:
            # The end of what is typed is not the end of the terminal.
            await asyncio.get_running_loop().create_future()
        self.received += len(data)
        return request.write(data)

    # docs: begin transmit
    async def _transmit(self, request: Chain) -> int:
        if self._late is not None:
            await asyncio.wait({self._late})
            self._end_late()
        # What is longer than 1 MiB is refused: Linux sends no more than 32 KiB.
        writing = asyncio.create_task(self._write(request.read()), name="aioirqfd console")
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # Some of it may be out already. Were the request to come again, that would be shown twice: so it is answered.
            self._late = writing
            if self._leaving:
                await self._finish()
        return 0

    async def _write(self, data: bytes) -> None:
        await self._sink.write(data)
        self.transmitted += len(data)

    # docs: end transmit

    def _end_late(self) -> None:
        """What was still being written of a request that was cancelled has ended; raise what that raised."""
        late, self._late = self._late, None
        assert late is not None
        late.result()

    async def background(self) -> None:
        """When the device is served no more, wait for what is being written.

        Raises:
            TimeoutError: Nobody takes it, so some of it is lost.
        """
        self._leaving = False
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._leaving = True
            await self._finish()

    async def _finish(self) -> None:
        if (late := self._late) is not None:
            await asyncio.wait({late}, timeout=GRACE)
            if late.done():
                self._end_late()
                return
            self._late = None
            late.cancel()
            await asyncio.wait({late})
            raise TimeoutError(f"what the guest has written was not taken within {GRACE:g} s: some of it is lost")

    def failed(self, request: Chain, error: BaseException) -> int:
        """Stop the receive queue if nothing can be read: the driver would offer an empty buffer again at once."""
        return NEEDS_RESET if request.queue == RECEIVE else super().failed(request, error)

    def inspect(self) -> Mapping[str, object]:
        """How many bytes have gone each way."""
        return {"received": self.received, "transmitted": self.transmitted}


if __name__ == "__main__":
    main(lambda _options: Console(FdSource(0), Output(1)), kind="console")
