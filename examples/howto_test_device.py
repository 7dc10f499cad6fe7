"""Test a device without a machine, without sleeping, and with exact counts."""

from __future__ import annotations

import asyncio

from aioirqfd import Action, EventFd, Interrupt, IrqchipPin, IrqManager
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import GatedSink


class Button:
    """The device under test: interrupts when pressed, as long as its driver has switched it on."""

    def __init__(self, kick: EventFd) -> None:
        """Keep the eventfd that is to be signalled."""
        self.enabled = False
        self._kick = kick

    def press(self) -> None:
        """Somebody presses it."""
        if self.enabled:
            self._kick.signal()


# docs: begin exact
async def test_a_button_interrupts_only_while_it_is_on() -> None:
    """Under pytest-asyncio this is a test as it stands."""
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=7)
            button = Button(kick)
            button.press()
            await irqs.flush()  # a barrier, so there is nothing to sleep for
            assert sink.interrupts == []
            button.enabled = True
            button.press()
            await irqs.flush()
            assert sink.interrupts == [Interrupt(7, IrqchipPin("ioapic", 7), Action.PULSE)]
            assert irqfd.statistics().signals == 1
            # docs: end exact


# docs: begin slow
async def test_a_button_that_is_pressed_while_the_machine_is_slow() -> None:
    """The first interrupt is held at a gate; the presses meanwhile share the next one."""
    sink = GatedSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=7)
            button = Button(kick)
            button.enabled = True
            button.press()
            await sink.wait_begun(1)
            button.press()
            button.press()
            sink.open()
            await irqs.flush()
            assert len(sink.interrupts) == 2
            assert irqfd.statistics().coalesced == 1
            # docs: end slow


asyncio.run(test_a_button_interrupts_only_while_it_is_on())
asyncio.run(test_a_button_that_is_pressed_while_the_machine_is_slow())
print("passed")
