"""A table goes on elsewhere, with every signal exactly once."""

from __future__ import annotations

import json

import pytest

from aioirqfd import EventFd, IrqManager, MsixTable, SnapshotError, WouldBlock
from aioirqfd.sinks import RecordingSink
from tests.irqfd.msix import BASE, ENABLE, program, sent


def registers(table):
    return [table.read(offset, 8) for offset in range(0, len(table) * 16, 8)]


async def test_a_table_goes_on_elsewhere_with_everything_pending():
    first, second = RecordingSink(), RecordingSink()
    async with IrqManager(first) as irqs, MsixTable(irqs, vectors=6) as table:
        table.write_control(ENABLE)
        for vector in range(5):
            program(table, vector, 0x30 + vector)
            table.eventfd(vector)
        table.mask(1)
        table.mask(2)
        table.signal(1)  # in a masked irqfd
        program(table, 5, 0x35, masked=True)
        table.signal(5)  # in an eventfd without irqfd
        await irqs.pause()
        table.signal(3)  # held for the pause
        state = json.loads(json.dumps({"irqs": irqs.snapshot(), "msix": table.snapshot()}))
        seen = registers(table)
    assert first.interrupts == []
    async with IrqManager(second) as irqs, MsixTable(irqs, vectors=6) as table:
        await irqs.pause()
        table.restore(state["msix"])
        irqs.restore(state["irqs"])
        assert (registers(table), table.control) == (seen, ENABLE | 5)
        assert table.read(table.pba_offset, 8) == 0b101010
        irqs.resume()
        await irqs.flush()
        assert sent(second) == [0x33]
        table.unmask(1)
        table.unmask(2)
        table.unmask(5)
        await irqs.flush()
        assert sorted(sent(second)) == [0x31, 0x33, 0x35]
        table.signal(4)
        assert sent(second)[-1] == 0x34
        assert table.gsi(5) == 29


async def test_a_snapshot_takes_its_signals_out_of_the_callers_eventfds_exactly_once():
    sink = RecordingSink()
    with EventFd() as eventfd:
        async with IrqManager(sink) as irqs:
            table = MsixTable(irqs, vectors=1, eventfds={0: eventfd})
            table.write_control(ENABLE)
            program(table, 0, 0x31, masked=True)
            eventfd.signal(3)
            await irqs.pause()
            state = table.snapshot()
            assert state["entries"] == [[0, BASE, 0x31, 1, None, 3]]
            eventfd.signal(2)  # not in the snapshot
            await table.aclose()
        assert eventfd.read_nowait() == 2
        eventfd.signal(2)
        async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=1, eventfds={0: eventfd}) as table:
            await irqs.pause()
            table.restore(state)
            irqs.resume()
            table.unmask(0)
            await irqs.flush()
            assert sent(sink) == [0x31]
            assert eventfd.read_nowait() == 5  # row P03: injected, and left to be read


async def test_a_manager_that_goes_on_after_a_snapshot_keeps_its_signals():
    with EventFd() as eventfd:
        async with IrqManager(RecordingSink()) as irqs:
            table = MsixTable(irqs, vectors=1, eventfds={0: eventfd})
            eventfd.signal(3)
            await irqs.pause()
            table.snapshot()
            irqs.resume()
            await table.aclose()
        assert eventfd.read_nowait() == 3


async def test_a_snapshot_from_before_the_manager_went_on_takes_nothing():
    with EventFd() as eventfd:
        async with IrqManager(RecordingSink()) as irqs:
            table = MsixTable(irqs, vectors=1, eventfds={0: eventfd})
            eventfd.signal(3)
            await irqs.pause()
            table.snapshot()
            irqs.resume()
            eventfd.signal()
            await irqs.pause()
            await table.aclose()
        assert eventfd.read_nowait() == 4


GOOD = {
    "version": 1,
    "vectors": 2,
    "enabled": True,
    "function_mask": False,
    "entries": [[0, BASE, 0x31, 0, 24, 0], [1, BASE, 0x32, 1, None, 7]],
}


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": True},
        {"vectors": 3},
        {"enabled": 1},
        {"function_mask": None},
        {"entries": {}},
        {"entries": [7]},
        {"entries": [[0, BASE, 0x31, 0, 24]]},
        {"entries": [[2, BASE, 0x31, 0, 24, 0]]},
        {"entries": [[-1, BASE, 0x31, 0, 24, 0]]},
        {"entries": [[True, BASE, 0x31, 0, 24, 0]]},
        {"entries": [[0, 2**64, 0x31, 0, 24, 0]]},
        {"entries": [[0, BASE, 2**32, 0, 24, 0]]},
        {"entries": [[0, BASE, 0x31, -1, 24, 0]]},
        {"entries": [[0, BASE, 0x31, 0, 4096, 0]]},
        {"entries": [[0, BASE, 0x31, 0, 24, 10**5000]]},
        {"entries": [[0, BASE, 0x31, 0, 24, [-(10**5000)]]]},
        {"vectors": 10**5000},
        {"entries": [[0, BASE, 0x31, 0, 24, 1]]},
        {"entries": [[0, BASE, 0x31, 0, None, 2**64 - 1]]},
        {"entries": [[0, BASE, 0x31, 0, None, 1.0]]},
        {"entries": [[0, BASE + 1, 0x31, 0, 24, 0]]},
        {"entries": [[0, BASE, 0x31, 0, 24, 0], [0, BASE, 0x31, 0, 25, 0]]},
        {"entries": [[0, BASE, 0x31, 0, 24, 0], [1, BASE, 0x31, 0, 24, 0]]},
        {"entries": [[0, BASE, 0x31, 0, 24, 0], [1, BASE, 0x31, 0, 7, 0]]},  # 7 is routed to a pin
        {"more": 1},
    ],
)
async def test_a_state_that_does_not_fit_changes_nothing(change):
    async with IrqManager(RecordingSink()) as irqs, MsixTable(irqs, vectors=2) as table:
        await irqs.pause()
        before, routing = registers(table), irqs.routing
        with pytest.raises(SnapshotError):
            table.restore(GOOD | change)
        assert (registers(table), table.control, irqs.irqfds) == (before, 1, ())
        assert dict(irqs.routing) == dict(routing)
        assert irqs.gsis.statistics().held == 0
        table.restore(GOOD)
        assert (table.gsi(0), table.pending(1), table.control) == (24, True, ENABLE | 1)
        with pytest.raises(WouldBlock):
            table.eventfd(0).read_nowait()


async def test_a_gsi_below_24_is_not_a_vectors():
    async with IrqManager(RecordingSink(), routing={}) as irqs, MsixTable(irqs, vectors=2) as table:
        await irqs.pause()
        with pytest.raises(SnapshotError, match="gsi 23"):
            table.restore(GOOD | {"entries": [[0, BASE, 0x31, 0, 23, 0]]})
        assert (irqs.irqfds, len(irqs.routing)) == ((), 0)


async def test_an_eventfd_that_is_bound_elsewhere_undoes_the_whole_restore():
    with EventFd() as busy:
        async with IrqManager(RecordingSink()) as irqs, MsixTable(irqs, vectors=3, eventfds={2: busy}) as table:
            irqs.assign(busy, gsi=5)
            await irqs.pause()
            state = GOOD | {"vectors": 3, "entries": [*GOOD["entries"], [2, BASE, 0x33, 0, 25, 0]]}
            with pytest.raises(SnapshotError, match="busy"):
                table.restore(state)
            assert len(irqs.irqfds) == 1
            assert (irqs.gsis.statistics().held, len(irqs.routing), table.enabled) == (0, 24, False)


async def test_a_snapshot_needs_a_pause_and_a_restore_an_unused_table():
    async with IrqManager(RecordingSink()) as irqs, MsixTable(irqs, vectors=2) as table:
        with pytest.raises(SnapshotError, match="pause"):
            table.snapshot()
        with pytest.raises(SnapshotError, match="pause"):
            table.restore(GOOD)
        await irqs.pause()
        table.restore(GOOD)
        with pytest.raises(SnapshotError, match="not used"):
            table.restore(GOOD)
