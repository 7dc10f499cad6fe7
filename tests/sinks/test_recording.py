"""The recording sink."""

from __future__ import annotations

from aioirqfd import BatchSink, EventFd, IrqManager, OffloadSink
from aioirqfd.sinks import RecordingSink
from tests.irqfd.helpers import pulse, write


async def test_all_its_tiers_keep_interrupts_in_order():
    sink = RecordingSink()
    await sink.inject(pulse(1))
    assert sink.try_inject(pulse(2)) is True
    assert sink.try_inject_batch([pulse(3), pulse(4)]) == 2
    assert sink.interrupts == [pulse(1), pulse(2), pulse(3), pulse(4)]
    assert isinstance(sink, BatchSink)
    assert not isinstance(sink, OffloadSink)


async def test_in_a_manager():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        kicks = [EventFd() for _ in range(4)]
        for gsi, kick in enumerate(kicks):
            irqs.assign(kick, gsi=gsi)
            write(kick)
        await irqs.flush()
        assert sorted(interrupt.gsi for interrupt in sink.interrupts) == [0, 1, 2, 3]
        for kick in kicks:
            kick.close()
