"""The echo device: the guest rings its doorbell, and it answers with what it was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from aioirqfd import EventFd
from examples.vmm import ports
from examples.vmm.portio import register, words

if TYPE_CHECKING:
    from examples.vmm.portio import PortIo


@final
class Echo:
    """Waits for its doorbell, answers, and signals ``trigger``.

    The guest asks again only when it has its answer, so there is one doorbell, one answer and one interrupt for each question.

    Attributes:
        doorbell: The eventfd that the guest's ``out`` signals.
        trigger: The eventfd of the device's irqfd.
        rings: How often the doorbell was rung.
        answers: How many answers were signalled.
    """

    __slots__ = ("_answer", "_question", "answers", "doorbell", "rings", "trigger")

    def __init__(self) -> None:
        self.doorbell = EventFd()
        self.trigger = EventFd()
        self.rings = 0
        self.answers = 0
        self._question = 0
        self._answer = 0

    def connect(self, io: PortIo) -> None:
        """Take questions and give answers at ``ECHO_PORT``. The doorbell is the CPU's to connect."""
        io.on_write(ports.ECHO_PORT, words(self._ask))
        io.on_read(ports.ECHO_PORT, register(lambda: self._answer))

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            self.rings += await self.doorbell.read()
            self._answer = self._question
            self.answers += 1
            self.trigger.signal()

    def close(self) -> None:
        """Close the eventfds."""
        self.doorbell.close()
        self.trigger.close()

    def _ask(self, question: int) -> None:
        self._question = question
