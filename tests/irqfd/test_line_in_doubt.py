"""A line that the sink has raised perhaps, and has not said so: it is not left up while its irqfd is blocked."""

from __future__ import annotations

import asyncio

import pytest

from aioirqfd import Action, EventFd, IrqchipPin, IrqManager, Retry, State, WouldBlock
from tests.irqfd.helpers import turns

PIN = IrqchipPin("ioapic", 3)


class Half:
    """Raises the pin, and says that it could not."""

    def __init__(self, failures):
        self.failures = failures
        self.level = []

    async def inject(self, interrupt):
        self.level.append(interrupt.action)
        if interrupt.action is Action.ASSERT and self.failures:
            self.failures -= 1
            raise OSError(5, "half way")


async def until(irqfd, state):
    while irqfd.state is not state:
        await asyncio.sleep(0)


@pytest.mark.parametrize("at", ["retry", "start"])
@pytest.mark.parametrize("how", ["mask", "pause"])
async def test_a_blocked_irqfd_leaves_no_line_up(how, at):
    sink = Half(failures=1)
    # The back-off ends when the test says so: nobody who looks once a turn is sure to see a short one.
    async with IrqManager(sink, routing={5: PIN}, retry=Retry(attempts=9, initial=1000, maximum=1000)) as irqs:
        with EventFd() as kick, EventFd() as unmask:
            irqfd = irqs.assign(kick, gsi=5, resamplefd=unmask)
            kick.signal()
            await until(irqfd, State.RETRYING)
            (binding,) = irqs._irqfds.bound.values()
            if at == "start":
                binding.injection.retry_now()
                assert irqfd.state is State.QUEUED
            if how == "mask":
                irqfd.mask()
                if at == "retry":
                    binding.injection.retry_now()
                await until(irqfd, State.PENDING)
                await irqs.queue.drain()
                assert sink.level == [Action.ASSERT, Action.DEASSERT]
                irqfd.unmask()
            else:
                # What is yet to be done with the line is a snapshot's, or resume()'s.
                await irqs.pause()
                if at == "retry":
                    binding.injection.retry_now()
                await turns()
                assert sink.level == [Action.ASSERT]
                irqs.resume()
            await irqs.flush()
            assert sink.level[-1] is Action.ASSERT
            assert irqs._irqfds.lines[5].raised == (PIN,)
            assert not irqs._irqfds.lines[5].level.falling
            with pytest.raises(WouldBlock):
                unmask.read_nowait()  # nobody has acknowledged anything
