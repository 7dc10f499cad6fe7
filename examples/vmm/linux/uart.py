"""The serial port, the guest's console: a 16550A at COM1's ports, between the threads of the vCPUs and the loop.

Its interrupt is an edge, as everywhere in a PC: a signal of an eventfd that KVM injects by itself. Linux' driver reads IDENTIFY until
it says that there is no reason any more; so each time the wire rises there must be an edge, and as long as it is up the driver will
look again. With one exception: a driver gives up a loop that lasts too long (Linux: after 512 rounds), and would then wait for an
edge on a wire that is up already. That can happen while input is refilled faster than it is read, so each refill is an edge.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol, cast, final

from aioirqfd import EventFd
from examples.ns16550 import FIFO, Ns16550
from examples.vmm.linux.address_map import COM1_PORTS

if TYPE_CHECKING:
    from collections.abc import Sequence

_GATHER: Final = 0.002
"""Seconds to collect before writing: the guest sends byte by byte."""


class Input(Protocol):
    """Where the guest's input comes from."""

    async def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes, at least one; none at the end."""
        ...


class Output(Protocol):
    """Where the guest's output goes."""

    async def write(self, data: bytes, /) -> None:
        """Write everything."""
        ...


@final
class Uart:
    """Takes output in the vCPU's thread, without waiting for the loop, and writes it on the loop; input the other way.

    When whoever reads the output is slow, STATUS says that there is no room to send once 4 KiB wait, besides those that are being
    written; the guest's programs wait for the interrupt then. Only the kernel's own messages do not wait for ever: what it sends
    all the same is dropped and counted, and ``dmesg`` still has it. Input is taken from its source 16 bytes at a time, when the
    guest has a driver that listens (RTS) and room in the FIFO; none is lost.

    Args:
        output: Where the guest's output goes.
        source: Where its input comes from; None: from nowhere.
        ports: Eight ports, from a multiple of 8 on.
        gather: Seconds to collect output before it is written, 0 or more.

    Attributes:
        trigger: The eventfd of the interrupt, an edge, to be bound to ``COM1_GSI``, or that of its ports.
        ports: Where it is.

    Threads: :meth:`port_in` and :meth:`port_out` on any, the rest on the loop's. The vCPUs stop before :meth:`close`.
    """

    def __init__(
        self, output: Output, source: Input | None = None, *, ports: range = COM1_PORTS, gather: float = _GATHER
    ) -> None:
        self._output = output
        self._source = source
        self._gather = gather
        self._chip = Ns16550()
        self._lock = threading.Lock()
        self._up = False  # the wire, when it was last looked at
        self._starved = False  # input waits for room
        self._writing = False
        self._filled = EventFd()
        self._room = EventFd()
        self._written = asyncio.Event()
        self.trigger = EventFd()
        self.ports: Sequence[range] = (ports,)

    @property
    def dropped(self) -> int:
        """Bytes of output that came although the guest was told that there is no room for them."""
        return self._chip.dropped

    def save_state(self) -> dict[str, object]:
        """The chip; output that is being written just now is the loop's, and will be."""
        with self._lock:
            return {"chip": self._chip.save_state(), "up": self._up}

    def restore_state(self, state: dict[str, object]) -> None:
        """The chip; what it had not sent yet is sent from here."""
        with self._lock:
            self._chip.restore_state(cast("dict[str, Any]", state["chip"]))
            self._up = bool(state["up"])
            if self._chip.sent:
                self._filled.signal()

    def port_in(self, port: int, size: int) -> int:
        """Registers, the one at ``port`` in the lowest byte."""
        with self._lock:
            value = sum(self._chip.read(port + at & 7) << 8 * at for at in range(size))
            self._settle()
        return value

    def port_out(self, port: int, size: int, value: int) -> None:
        """Registers, the one at ``port`` in the lowest byte."""
        with self._lock:
            idle = not self._chip.sent
            for at in range(size):
                self._chip.write(port + at & 7, value >> 8 * at & 0xFF)
            if idle and self._chip.sent:
                self._filled.signal()
            self._settle()

    async def run(self) -> None:
        """Write output and take input until cancelled. When the input ends, the guest goes on without.

        Raises:
            ExceptionGroup: Of OSError: the output or the input failed.

        Cancellation: output that is being written may be lost; :meth:`wait_written` first.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._transmit())
            if self._source is not None:
                group.create_task(self._receive(self._source))

    async def wait_written(self) -> None:
        """Wait until everything that the guest has sent is written; :meth:`run` is running meanwhile."""
        while self._chip.sent or self._writing:
            self._written.clear()
            await self._written.wait()

    def close(self) -> None:
        """Close the eventfds. Idempotent."""
        for eventfd in (self.trigger, self._filled, self._room):
            eventfd.close()

    async def _transmit(self) -> None:
        while True:
            await self._filled.read()
            await asyncio.sleep(self._gather)
            with self._lock:
                data = self._chip.take()
                self._writing = True
                self._settle()
            await self._output.write(data)
            self._writing = False
            self._written.set()

    async def _receive(self, source: Input) -> None:
        while data := await source.read(FIFO):
            while data:
                with self._lock:
                    room = self._chip.room
                    self._starved = not room
                    if room:
                        self._chip.receive(data[:room])
                        self._up = False  # an edge, whether or not the wire was up
                        self._settle()
                data = data[room:]
                if not room:
                    await self._room.read()

    def _settle(self) -> None:
        """After whatever may have changed something: an edge if the wire rises, and room for input that waits. Locked."""
        up = self._chip.interrupt
        if up and not self._up:
            self.trigger.signal()
        self._up = up
        if self._starved and self._chip.room:
            self._starved = False
            self._room.signal()
