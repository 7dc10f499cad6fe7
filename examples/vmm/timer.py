"""The timer: an edge-triggered interrupt every period."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, final

from aioirqfd import EventFd
from examples.vmm import ports
from examples.vmm.portio import register

if TYPE_CHECKING:
    from examples.vmm.portio import PortIo


@final
class Timer:
    """Signals ``trigger`` once a period, and tells the guest by a port how often it has.

    The guest keeps the last number it read. While an edge waits in the 8259 another one on the same pin changes nothing (row
    W05), so there may be fewer interrupts than ticks; but the number read by the last of them covers every tick.

    Args:
        period: Seconds between two ticks, > 0.
        ticks: How many there are to be.

    Attributes:
        trigger: The eventfd of the timer's irqfd.
        ticks: Ticks signalled so far.
        seen: What the guest read last.
    """

    __slots__ = ("_limit", "_period", "_read", "seen", "ticks", "trigger")

    def __init__(self, *, period: float, ticks: int) -> None:
        self._period = period
        self._limit = ticks
        self._read = EventFd()
        self.trigger = EventFd()
        self.ticks = 0
        self.seen = 0

    def connect(self, io: PortIo) -> None:
        """Answer the guest at ``TIMER_PORT``."""
        io.on_read(ports.TIMER_PORT, register(self._take))

    async def run(self) -> None:
        """Tick until all ticks are signalled. A tick that is late is signalled at once: the mean rate is kept."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        while self.ticks < self._limit:
            await asyncio.sleep(start + (self.ticks + 1) * self._period - loop.time())
            self.ticks += 1  # before the signal: the handler that it causes must read this tick too
            self.trigger.signal()

    async def wait_seen(self) -> None:
        """Wait until the guest has read of every tick that was signalled."""
        while self.seen != self.ticks:
            await self._read.read()

    def close(self) -> None:
        """Close the eventfds."""
        self.trigger.close()
        self._read.close()

    def _take(self) -> int:
        self.seen = self.ticks
        self._read.signal()
        return self.seen
