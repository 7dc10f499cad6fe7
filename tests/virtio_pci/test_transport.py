"""What comes between a virtio function and its device: it hears of a driver's reset, and knows when a driver may be interrupted."""

from __future__ import annotations

from aioirqfd.faults import Faults, Match, Spurious
from tests.faults.conftest import FakeClock
from tests.vhost_user.devices import Upper


class Between:
    """Lets everything by, and says what it has heard of."""

    def __init__(self, device):
        self.device = device
        self.heard = []

    async def handle(self, request):
        self.heard.append("request")
        return await self.device.handle(request)

    def interrupt(self, queue, ring):
        self.heard.append(f"interrupt {queue}")
        ring()

    def stopping(self, queue):
        self.heard.append(f"stopping {queue}")

    def reset(self):
        self.heard.append("reset")


async def test_an_interception_hears_of_requests_interrupts_and_the_reset(serve):
    device = Upper(num_queues=2)
    async with serve(device) as guest:
        queue = await guest.start(queues=2)
        between = Between(device)
        device.intercept(between)
        assert await queue.ask([b"hello"], [5]) == b"HELLO"
        await guest.write("device_status", 0)
        assert between.heard == ["request", "interrupt 0", "stopping 0", "stopping 1", "reset"]
        device.intercept(None)
    assert device.transport is None


async def test_an_interrupt_for_nothing_needs_a_driver_that_is_ready(serve):
    clock, device = FakeClock(), Upper()
    faults = Faults(clock=clock)
    spurious = faults.add(Match("interrupt"), Spurious(every=1))
    faults.wrap(device)
    async with serve(device) as guest:
        clock.advance(1)
        assert spurious.hits == 0
        for hits in (1, 2):
            await guest.start()
            clock.advance(1)
            assert spurious.hits == hits
            await guest.write("device_status", 0)
            clock.advance(5)
            assert spurious.hits == hits
        faults.close()
