"""The registers of the table as the guest sees them, accesses that are ignored, and both kinds of reset."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioirqfd import EventFd, IrqManager, MsixTable, WrongLoopError
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import RecordingTracer
from tests.irqfd.msix import ENABLE, Slow, program, sent, write


async def test_a_table_begins_disabled_and_masked_and_holds_nothing():
    async with IrqManager(RecordingSink()) as irqs, MsixTable(irqs, vectors=65) as table:
        assert (len(table), table.control, table.enabled, table.function_mask) == (65, 64, False, False)
        assert (table.pba_offset, table.size) == (4096, 4096 + 16)
        assert [table.read(64 * 16 + dword * 4, 4) for dword in range(4)] == [0, 0, 0, 1]
        assert all(table.masked(vector) for vector in range(65))
        assert irqs.gsis.statistics().held == 0
        assert irqs.irqfds == ()


@pytest.mark.parametrize("vectors", [0, -1, 2049])
async def test_a_table_has_1_to_2048_vectors(vectors):
    async with IrqManager(RecordingSink()) as irqs:
        with pytest.raises(ValueError, match=r"1\.\.2048"):
            MsixTable(irqs, vectors=vectors)


@pytest.mark.parametrize("offset", [0, 31, 33, 36])
async def test_the_pending_bit_array_does_not_overlap_the_table(offset):
    async with IrqManager(RecordingSink()) as irqs:
        with pytest.raises(ValueError, match="multiple of 8"):
            MsixTable(irqs, vectors=2, pba_offset=offset)


async def test_registers_read_back_as_written_in_either_size():
    async with IrqManager(RecordingSink()) as irqs, MsixTable(irqs, vectors=2, pba_offset=32) as table:
        table.write(16, 0x1234_FEE0_0000, 8)
        table.write(24, 0x8000_0001_0000_0042, 8)
        assert [table.read(16 + dword * 4, 4) for dword in range(4)] == [0xFEE00000, 0x1234, 0x42, 0x80000001]
        assert (table.read(16, 8), table.read(24, 8)) == (0x1234_FEE0_0000, 0x8000_0001_0000_0042)
        table.write(20, 0x77, 4)
        table.write(16, 2**32 + 8, 4)
        assert table.read(16, 8) == 0x77_0000_0008
        assert table.read(0, 8) == 0


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 1), (0, 2), (2, 4), (4, 8), (-4, 4), (32, 4), (4096, 4), (4104, 8), (10**30, 4), (0, 16)]
)
async def test_what_the_specification_leaves_undefined_is_ignored_and_traced(offset, size):
    log = RecordingTracer()
    async with IrqManager(RecordingSink(), tracer=log) as irqs, MsixTable(irqs, vectors=2) as table:
        table.write(offset, 0, size)
        assert log.of("msix_access_ignored") == [{"write": True, "offset": offset, "size": size}]
        assert [table.read(entry * 16 + 12, 4) for entry in range(2)] == [1, 1]


async def test_a_read_of_nothing_gives_0():
    log = RecordingTracer()
    async with IrqManager(RecordingSink(), tracer=log) as irqs, MsixTable(irqs, vectors=2) as table:
        assert (table.read(32, 4), table.read(4088, 8)) == (0, 0)
        assert log.of("msix_access_ignored") == []
        assert (table.read(4104, 8), table.read(1, 4), table.read(12, 8)) == (0, 0, 0)
        assert len(log.of("msix_access_ignored")) == 3


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 4, 8, 12, 16, 28, 32, 36, 4096, 4100, -4, 3]) | st.integers(),
            st.integers(),
            st.sampled_from([4, 8]) | st.integers(),
        ),
        max_size=20,
    )
)
def test_nothing_a_guest_writes_raises(accesses):
    async def guest():
        async with IrqManager(RecordingSink()) as irqs, MsixTable(irqs, vectors=3) as table:
            table.write_control(ENABLE)
            for vector in range(3):
                table.eventfd(vector)
            for offset, value, size in accesses:
                table.write(offset, value, size)
                table.write_control(value)
                assert 0 <= table.read(offset, size) < 2**64
                table.signal(0)
            await irqs.flush()

    asyncio.run(guest())


async def test_another_thread_may_not_touch_the_registers_of_a_live_vector():
    async with IrqManager(RecordingSink()) as irqs, MsixTable(irqs, vectors=1) as table:
        table.write_control(ENABLE)
        table.eventfd(0)
        with pytest.raises(WrongLoopError):
            await asyncio.to_thread(table.write, 12, 0, 4)
        assert irqs.irqfds == ()


async def test_there_are_no_other_vectors():
    async with IrqManager(RecordingSink()) as irqs, MsixTable(irqs, vectors=2) as table:
        for method in (table.eventfd, table.signal, table.mask, table.unmask, table.masked, table.pending, table.gsi):
            for vector in (-1, 2):
                with pytest.raises(ValueError, match=r"0\.\.1"):
                    method(vector)


async def test_reset():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=2) as table:
        table.write_control(ENABLE)
        program(table, 1, 0x31)
        table.eventfd(1)
        table.reset()
        table.signal(1)
        assert [table.read(16 + dword * 4, 4) for dword in range(4)] == [0, 0, 0, 1]
        assert (table.control, irqs.gsis.statistics().held, table.pending(1), sink.interrupts) == (1, 0, True, [])


async def test_a_reset_of_the_function_forgets_what_is_pending():
    sink = RecordingSink()
    with EventFd() as never, EventFd(3, semaphore=True) as semaphore:
        given = {2: never, 3: semaphore}
        async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=5, eventfds=given) as table:
            table.write_control(ENABLE)
            program(table, 1, 0x31)
            table.signal(1)
            table.mask(1)
            write(table, 1, 4)  # in the eventfd of a masked irqfd
            write(table, 2, 2)  # in one without an irqfd
            table.signal(0)
            assert table.read(table.pba_offset, 8) == 0b1111
            assert await table.reset_function() == 4 + 2 + 3 + 1
            assert (table.read(table.pba_offset, 8), table.control, irqs.gsis.statistics().held) == (0, 4, 0)
            assert [table.read(16 + dword * 4, 4) for dword in range(4)] == [0, 0, 0, 1]
            assert (sent(sink), irqs.irqfds, await table.reset_function()) == ([0x31], (), 0)
            table.write_control(ENABLE)
            program(table, 1, 0x32)
            table.signal(1)
            assert sent(sink) == [0x31, 0x32]


async def test_a_reset_of_the_function_waits_for_what_is_being_injected():
    sink = Slow()
    async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=1) as table:
        table.write_control(ENABLE)
        program(table, 0, 0x31)
        table.signal(0)
        for _ in range(4):
            await asyncio.sleep(0)
        table.signal(0)
        assert (await table.reset_function(), sink.data, table.pending(0)) == (1, [0x31], False)
