"""What the machine asks of a CPU, whichever runs the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from aioirqfd import EventFd
    from aioirqfd.irqfd.sink import InterruptSink


class CpuError(Exception):
    """The CPU cannot be had, or the guest did what it cannot go on from; the text is for the user."""


class Cpu(Protocol):
    """One processor with 64 KiB of RAM and an 8259 pair, whose interrupts come through ``sink``."""

    @property
    def name(self) -> str:
        """What the user calls it: ``kvm`` or ``unicorn``."""
        ...

    @property
    def sink(self) -> InterruptSink:
        """Where an :class:`aioirqfd.IrqManager` injects."""
        ...

    def load(self, address: int, image: bytes) -> None:
        """Copy the program into RAM and let the processor begin there, in real mode, with interrupts disabled."""

    def add_doorbell(self, eventfd: EventFd, *, port: int, value: int) -> None:
        """Signal ``eventfd`` when the guest writes the byte ``value`` to ``port``."""

    def run(self) -> None:
        """Run the guest until :meth:`stop`. Blocks: give it a thread of its own.

        Raises:
            CpuError: The guest crashed.
        """

    def stop(self) -> None:
        """Make :meth:`run` return soon; also when it has not begun yet. Any thread, any number of times."""

    def close(self) -> None:
        """Give everything back. Not while :meth:`run` runs; idempotent."""
