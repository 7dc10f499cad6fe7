"""The power button: asks the guest to stop, takes its report, and switches the machine off."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from aioirqfd import EventFd
from examples.vmm import ports
from examples.vmm.portio import words

if TYPE_CHECKING:
    from collections.abc import Callable

    from examples.vmm.portio import PortIo


@final
class Power:
    """The beginning and the end of the guest.

    Args:
        off: Stops the CPU; called on the CPU's thread.

    Attributes:
        trigger: The eventfd of the button's irqfd.
        presses: How often the button was pressed.
        words: What the guest reported.
    """

    __slots__ = ("_off", "_ready", "presses", "trigger", "words")

    def __init__(self, off: Callable[[], None]) -> None:
        self._off = off
        self._ready = EventFd()
        self.trigger = EventFd()
        self.presses = 0
        self.words: list[int] = []

    def connect(self, io: PortIo) -> None:
        """Listen at ``READY_PORT``, ``REPORT_PORT`` and ``SHUTDOWN_PORT``."""
        io.on_write(ports.READY_PORT, lambda _data, _size: self._say_ready())
        io.on_write(ports.REPORT_PORT, words(self.words.append))
        io.on_write(ports.SHUTDOWN_PORT, lambda _data, _size: self._off())

    async def wait_ready(self) -> None:
        """Wait until the guest takes interrupts: the 8259 forgets an edge that comes before its initialisation (row R19)."""
        await self._ready.read()

    def press(self) -> None:
        """Ask the guest to stop."""
        self.presses += 1
        self.trigger.signal()

    def close(self) -> None:
        """Close the eventfds."""
        self.trigger.close()
        self._ready.close()

    def _say_ready(self) -> None:
        self._ready.signal()
