"""Sinks that wait, refuse or fail when a test says so. :class:`aioirqfd.sinks.RecordingSink` is the one that does not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from aioirqfd.irqfd.interrupt import Interrupt


@final
class GatedSink:
    """Each injection waits at a gate until the test lets it through.

    Attributes:
        begun: Every injection that has come to the gate, in order.
        interrupts: Those that were let through, in the order in which they were.
    """

    __slots__ = ("_gates", "_open", "_watchers", "begun", "interrupts")

    def __init__(self) -> None:
        self.begun: list[Interrupt] = []
        self.interrupts: list[Interrupt] = []
        self._gates: list[asyncio.Future[None]] = []
        self._watchers: list[tuple[int, asyncio.Future[None]]] = []
        self._open = False

    @property
    def waiting(self) -> int:
        """How many injections wait at the gate now."""
        return len(self._gates)

    async def inject(self, interrupt: Interrupt) -> None:
        """Wait at the gate, then keep the interrupt."""
        loop = asyncio.get_running_loop()
        self.begun.append(interrupt)
        for count, watcher in self._watchers:
            if len(self.begun) >= count and not watcher.done():
                watcher.set_result(None)
        if not self._open:
            gate: asyncio.Future[None] = loop.create_future()
            self._gates.append(gate)
            try:
                await gate
            finally:
                if gate in self._gates:
                    self._gates.remove(gate)
        self.interrupts.append(interrupt)

    async def wait_begun(self, count: int) -> None:
        """Wait until so many injections have come to the gate since the sink was made."""
        if len(self.begun) < count:
            watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._watchers.append((count, watcher))
            await watcher

    def release(self, count: int = 1) -> None:
        """Let the oldest waiting injections through."""
        for _ in range(min(count, len(self._gates))):
            self._gates.pop(0).set_result(None)

    def open(self) -> None:
        """Let everything through, now and later."""
        self._open = True
        self.release(len(self._gates))

    def shut(self) -> None:
        """Let nothing through any more."""
        self._open = False


@final
class FlakySink:
    """Fails a number of times, then works.

    Args:
        failures: How many injections fail from now on; may be set again at any time.
        error: What they raise.

    Attributes:
        attempts: Every injection.
        interrupts: Those that worked.
    """

    __slots__ = ("attempts", "error", "failures", "interrupts")

    def __init__(self, failures: int = 1, *, error: BaseException | None = None) -> None:
        self.failures = failures
        self.error: BaseException = OSError(5, "flaky") if error is None else error
        self.attempts: list[Interrupt] = []
        self.interrupts: list[Interrupt] = []

    async def inject(self, interrupt: Interrupt) -> None:
        """Raise, or keep the interrupt."""
        self.attempts.append(interrupt)
        if self.failures > 0:
            self.failures -= 1
            raise self.error
        self.interrupts.append(interrupt)


@final
class RefusingSink:
    """Never takes an interrupt at once, so that each goes by the work queue; ``refusing`` may be changed at any time.

    Attributes:
        asked: What ``try_inject`` refused.
        interrupts: What came, either way.
    """

    __slots__ = ("asked", "interrupts", "refusing")

    def __init__(self) -> None:
        self.refusing = True
        self.asked: list[Interrupt] = []
        self.interrupts: list[Interrupt] = []

    async def inject(self, interrupt: Interrupt) -> None:
        """Keep it."""
        self.interrupts.append(interrupt)

    def try_inject(self, interrupt: Interrupt) -> bool:
        """Keep it, unless refusing."""
        if self.refusing:
            self.asked.append(interrupt)
            return False
        self.interrupts.append(interrupt)
        return True
