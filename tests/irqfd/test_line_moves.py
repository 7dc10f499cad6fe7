"""What is yet to be done with a line: refused, re-routed, handed over, paused and migrated in the middle of it."""

from __future__ import annotations

import asyncio
import json

import pytest

from aioirqfd import Action, EventFd, InjectionError, IrqchipPin, IrqManager, Retry, SnapshotError, WouldBlock
from aioirqfd.irqchip import IoApic
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import FlakySink
from tests.irqfd.helpers import MSI, OffloadingSink, SlowSink, asserted, deasserted, turns

PIC, IOAPIC = IrqchipPin("pic", 9), IrqchipPin("ioapic", 9)
ELSEWHERE = IrqchipPin("ioapic", 10)
UP, DOWN = asserted(9), deasserted(9)
SINKS = pytest.mark.parametrize("make", [RecordingSink, SlowSink])


def count(eventfd):
    try:
        return eventfd.read_nowait()
    except WouldBlock:
        return 0


@pytest.fixture
def eventfds():
    eventfds = [EventFd() for _ in range(4)]
    yield eventfds
    for eventfd in eventfds:
        eventfd.close()


# --------------------------------------------------------------------------------------------------- refused, or failed


@pytest.mark.trouble
@pytest.mark.parametrize("how", ["masked", "broken"])
async def test_a_line_that_the_sink_refused_is_lowered_when_its_irqfd_goes(eventfds, how):
    kick, unmask = eventfds[:2]
    out = Full(fails=how == "broken")
    ioapic = IoApic(out)
    ioapic.mmio_write(0x00, 0x10 + 2 * 9)
    ioapic.mmio_write(0x10, 0x8031)
    irqs = IrqManager(ioapic, retry=Retry(0))
    await irqs.__aenter__()
    irqfd = irqs.assign(kick, gsi=9, resamplefd=unmask)
    kick.signal()
    if how == "masked":
        irqfd.mask()
    await turns()
    assert ioapic.waiting == ({9} if how == "broken" else set())  # one that is masked does not keep it up
    await irqs.deassign(irqfd)
    assert kick.read_nowait() == 1
    out.full = False
    for _ in range(3):
        ioapic.eoi(0x31)
        await ioapic.flush()
    assert out.interrupts == []
    if how == "broken":
        with pytest.raises(InjectionError):
            await irqs.aclose()
    else:
        await irqs.aclose()


class Full:
    """The sink behind an IOAPIC that has no room, and says so or fails."""

    def __init__(self, *, fails):
        self.full = True
        self.fails = fails
        self.interrupts = []

    def try_inject(self, interrupt):
        if not self.full:
            self.interrupts.append(interrupt)
        return not self.full

    async def inject(self, interrupt):
        if self.fails and self.full:
            raise OSError(5, "no")
        self.interrupts.append(interrupt)


# ------------------------------------------------------------------------------------------------------------ re-routed


@SINKS
@pytest.mark.parametrize("unrouted", ["drop", "hold"])
async def test_a_line_moves_along_whatever_the_other_irqfds_of_its_gsi_do(eventfds, make, unrouted):
    sink = make()
    first, _, kick, unmask = eventfds
    async with IrqManager(sink, unrouted=unrouted) as irqs:
        masked = irqs.assign(first, gsi=9, resamplefd=eventfds[1], masked=True)
        irqs.assign(kick, gsi=9, resamplefd=unmask)
        kick.signal()
        await irqs.flush()
        irqs.set_routing({})
        irqs.set_routing({9: ELSEWHERE})
        await irqs.flush()
        await turns()
        assert irqs._irqfds.lines.asserted() == {9: (ELSEWHERE,)}
        await irqs.deassign(masked)
        assert irqs._irqfds.lines.asserted() == {9: (ELSEWHERE,)}
        irqs.ack(9)
        assert await unmask.read() == 1
        assert sink.interrupts == [UP, DOWN, asserted(9, ELSEWHERE), deasserted(9, ELSEWHERE)]


@pytest.mark.trouble
async def test_a_line_moves_along_beside_an_irqfd_that_is_broken(eventfds):
    sink = FlakySink(1)
    broken, _, kick, unmask = eventfds
    irqs = IrqManager(sink, retry=Retry(0))
    await irqs.__aenter__()
    irqs.assign(broken, gsi=9, resamplefd=eventfds[1])
    irqs.assign(kick, gsi=9, resamplefd=unmask)
    broken.signal()
    await irqs.flush()
    kick.signal()
    await irqs.flush()
    irqs.set_routing({9: ELSEWHERE})
    await irqs.flush()
    assert irqs._irqfds.lines.asserted() == {9: (ELSEWHERE,)}
    with pytest.raises(InjectionError):
        await irqs.aclose()


@pytest.mark.trouble
async def test_a_line_that_cannot_be_raised_again_is_tried_again(eventfds):
    sink = FlakySink(0)
    kick, unmask = eventfds[:2]
    async with IrqManager(sink, retry=Retry(5, 0, 0)) as irqs:
        irqs.assign(kick, gsi=9, resamplefd=unmask)
        kick.signal()
        await irqs.flush()
        irqs.set_routing({})
        await irqs.flush()
        sink.failures = 2
        irqs.set_routing({9: ELSEWHERE})
        while irqs._irqfds.lines.asserted() == {} or sink.attempts.count(asserted(9, ELSEWHERE)) < 3:
            await asyncio.sleep(0)
        await irqs.flush()
        assert irqs._irqfds.lines.asserted() == {9: (ELSEWHERE,)}


@SINKS
async def test_only_what_changes_is_lowered_and_raised(eventfds, make):
    sink = make()
    kick, unmask = eventfds[:2]
    async with IrqManager(sink, routing={9: [PIC, IOAPIC]}) as irqs:
        irqs.assign(kick, gsi=9, resamplefd=unmask)
        kick.signal()
        await irqs.flush()
        before = len(sink.interrupts)
        irqs.set_route(9, [PIC, ELSEWHERE])
        await irqs.flush()
        assert sink.interrupts[before:] == [DOWN, asserted(9, ELSEWHERE)]
        irqs.set_route(9, PIC)
        await irqs.flush()
        assert sink.interrupts[before + 2 :] == [deasserted(9, ELSEWHERE)]
        assert irqs._irqfds.lines.asserted() == {9: (PIC,)}


@SINKS
async def test_a_line_that_becomes_a_message_is_told_and_interrupts_again_if_there_is_a_reason(eventfds, make):
    sink = make()
    kick, unmask = eventfds[:2]
    async with IrqManager(sink) as irqs:
        irqs.assign(kick, gsi=9, resamplefd=unmask)
        kick.signal()
        await irqs.flush()
        irqs.set_routing({9: MSI})
        await irqs.flush()
        assert (sink.interrupts, irqs._irqfds.lines.asserted()) == ([UP, DOWN], {})
        assert count(unmask) == 1
        irqs.set_routing({9: IOAPIC})
        await irqs.flush()
        assert (sink.interrupts, count(unmask)) == ([UP, DOWN], 0)


# ----------------------------------------------------------------------------------------------------- paused, migrated


@SINKS
async def test_a_paused_manager_raises_nothing(eventfds, make):
    sink = make()
    kick, unmask = eventfds[:2]
    async with IrqManager(sink) as irqs:
        irqs.assign(kick, gsi=9, resamplefd=unmask)
        kick.signal()
        await irqs.flush()
        irqs.set_routing({})
        await irqs.pause()
        irqs.set_routing({9: ELSEWHERE})
        await turns()
        assert sink.interrupts == [UP, DOWN]
        irqs.resume()
        await irqs.flush()
        assert sink.interrupts == [UP, DOWN, asserted(9, ELSEWHERE)]


async def migrated(irqs, sink, kick, unmask, change=lambda irqs: None, **options):
    """A second manager that has taken over from the first."""
    await irqs.pause()
    change(irqs)
    state = json.loads(json.dumps(irqs.snapshot()))
    await irqs.aclose()
    second = await IrqManager(sink, **options).__aenter__()
    second.assign(kick, gsi=9, resamplefd=unmask)
    await second.pause()
    second.restore(state)
    assert second.snapshot() == state
    second.resume()
    return second


@SINKS
async def test_a_stranded_line_is_in_the_snapshot(eventfds, make):
    kick, unmask = eventfds[:2]
    irqs = await IrqManager(make()).__aenter__()
    irqs.assign(kick, gsi=9, resamplefd=unmask)
    kick.signal()
    await irqs.flush()
    irqs.set_routing({})
    await irqs.flush()
    sink = make()
    second = await migrated(irqs, sink, kick, unmask)
    assert sink.interrupts == []
    second.set_routing({9: IOAPIC})
    await second.flush()
    assert sink.interrupts == [UP]
    await second.aclose()


class FailsToLower:
    def __init__(self):
        self.failing = True
        self.attempts = []

    async def inject(self, interrupt):
        self.attempts.append(interrupt)
        if self.failing and interrupt.action is Action.DEASSERT:
            raise OSError(5, "not now")


@pytest.mark.trouble
@pytest.mark.parametrize("ends", [True, False])
async def test_an_end_of_interrupt_whose_lowering_failed_is_told_by_the_next_manager(eventfds, ends):
    kick, unmask = eventfds[:2]
    irqs = await IrqManager(FailsToLower(), retry=Retry(5, 0, 3600)).__aenter__()
    irqs.assign(kick, gsi=9, resamplefd=unmask)
    kick.signal()
    await irqs.flush()
    irqs.ack(9)
    await irqs.flush()
    assert count(unmask) == 0
    if ends:
        await irqs.aclose()
        assert count(unmask) == 1, "without a snapshot it is told before it goes"
        return
    sink = RecordingSink()
    second = await migrated(irqs, sink, kick, unmask)
    assert (sink.interrupts, count(unmask)) == ([DOWN], 1)
    await second.aclose()
    assert count(unmask) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"asserted": [[9, [["pic", 3]]]]},
        {"asserted": [[9, [["ioapic", 9], ["ioapic", 9]]]]},
        {"routing": []},
        {"moving": [{"gsi": 9, "falling": [], "tell": False}]},
        {"moving": [{"gsi": 5, "falling": [], "tell": False, "again": True}]},
        {"moving": [{"gsi": True, "falling": [], "tell": False, "again": True}]},
        {"moving": [{"gsi": 9, "falling": [["ioapic", 9]], "tell": False, "again": False}]},
        {"moving": [{"gsi": 9, "falling": [["msi", 0, 0, None]], "tell": False, "again": False}]},
        {"moving": [{"gsi": 9, "falling": [["pic", 3]] * 2, "tell": False, "again": False}]},
        {"moving": [{"gsi": 9, "falling": [], "tell": 1, "again": False}]},
        {"moving": [{"gsi": 9, "falling": [], "tell": False, "again": None}]},
        {"moving": [{"gsi": 9, "falling": [], "tell": True, "again": False}] * 2},
        {"moving": {}},
    ],
)
async def test_a_line_that_contradicts_itself_is_refused(eventfds, change):
    kick, unmask = eventfds[:2]
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        irqs.assign(kick, gsi=9, resamplefd=unmask)
        kick.signal()
        await irqs.pause()
        state = json.loads(json.dumps(irqs.snapshot()))
        with pytest.raises(SnapshotError):
            irqs.restore(state | change)
        assert (irqs.snapshot(), sink.interrupts) == (state, [UP])
        irqs.restore(state)
        irqs.resume()


# ----------------------------------------------------------------------------------------------------------- handed over


async def nothing(irqfd, number):
    pass


async def test_a_line_is_the_sinks_or_the_loops_as_a_whole(eventfds):
    sink = OffloadingSink()
    first, first_unmask, second, second_unmask = eventfds
    async with IrqManager(sink) as irqs:
        plain = irqs.assign(first, gsi=9, resamplefd=first_unmask)
        assert plain.offloaded
        handled = irqs.assign(second, gsi=9, resamplefd=second_unmask, wakeup=nothing)
        assert (plain.offloaded, handled.offloaded) == (False, False)
        irqs.ack(9)
        assert [count(first_unmask), count(second_unmask)] == [1, 1]
        await irqs.deassign(handled)
        other = irqs.assign(second, gsi=9, resamplefd=second_unmask)
        assert (plain.offloaded, other.offloaded) == (True, True)
        other.mask()
        assert (plain.offloaded, other.offloaded) == (False, False)
        other.unmask()
        assert (plain.offloaded, other.offloaded) == (True, True)
        irqs.ack(9)
        assert [count(first_unmask), count(second_unmask)] == [0, 0], "the sink has told them"


async def test_a_line_that_is_up_stays_the_loops_if_another_joins_that_the_sink_could_watch(eventfds):
    sink = OffloadingSink()
    first, first_unmask, second, second_unmask = eventfds
    async with IrqManager(sink) as irqs:
        irqs.assign(first, gsi=9, resamplefd=first_unmask, wakeup=nothing)
        first.signal()
        await irqs.flush()
        assert not irqs.assign(second, gsi=9, resamplefd=second_unmask).offloaded
        assert (sink.interrupts, irqs._irqfds.lines.asserted()) == ([UP], {9: (IOAPIC,)})
        irqs.ack(9)
        assert [count(first_unmask), count(second_unmask)] == [1, 1]
