"""What a tracer hears of a manager."""

from __future__ import annotations

from aioirqfd import EventFd, IrqManager
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import RecordingTracer
from tests.irqfd.helpers import MSI, SlowSink


async def test_events_of_a_whole_life():
    tracer = RecordingTracer()
    async with IrqManager(RecordingSink(), tracer=tracer) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal(4)
            irqs.set_routing({5: MSI})
            irqfd.mask()
            irqfd.unmask()
            await irqs.pause()
            irqs.resume()
    assert tracer.names == [
        "irqfd_assigned",
        "routing_changed",
        "irqfd_masked",
        "irqfd_unmasked",
        "manager_paused",
        "manager_resumed",
        "irqfd_deassigned",
    ]
    assert tracer.of("irqfd_assigned")[0] | {"fd": 0, "eventfd_id": 0} == {
        "gsi": 5,
        "fd": 0,
        "eventfd_id": 0,
        "resample": False,
        "offloaded": False,
        "masked": False,
    }
    last = tracer.of("irqfd_deassigned")[0]
    assert (last["signals"], last["injections"], last["coalesced"], last["dropped"]) == (4, 1, 3, 0)
    paused_for = tracer.of("manager_resumed")[0]["paused_for"]
    assert isinstance(paused_for, float)
    assert paused_for >= 0


async def test_per_interrupt_events():
    tracer = RecordingTracer(per_interrupt=True)
    for make, fast in ((RecordingSink, True), (SlowSink, False)):
        tracer.events.clear()
        async with IrqManager(make(), tracer=tracer) as irqs:
            with EventFd() as kick:
                irqs.assign(kick, gsi=5)
                for _ in range(3):
                    kick.signal()
                    await irqs.flush()
                irqs.set_routing({})
                kick.signal()
                await irqs.flush()
        assert [fields["fast"] for fields in tracer.of("interrupt_injected")] == [fast] * 3
        assert len(tracer.of("interrupt_dropped")) == 1
