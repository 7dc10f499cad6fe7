from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import threading
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioirqfd import (
    ClosedError,
    EventFd,
    EventFdBusyError,
    GsiAllocator,
    InjectionError,
    Interrupt,
    IrqchipPin,
    IrqManager,
    Msi,
    MsixTable,
    Retry,
    RoutingError,
    RoutingTable,
    SnapshotError,
    WouldBlock,
    WrongLoopError,
)
from aioirqfd.sinks import RecordingSink

BASE = 0xFEE00000
ENABLE, FUNCTION_MASK = MsixTable.ENABLE, MsixTable.FUNCTION_MASK


@dataclass
class Log:
    """A tracer."""

    per_interrupt = False
    events: list = field(default_factory=list)

    def emit(self, event, /, **fields):
        self.events.append((event, fields))

    def of(self, event):
        return [fields for name, fields in self.events if name == event]


def program(table, vector, data, *, address=BASE, masked=False):
    """What a guest's driver writes."""
    table.write(vector * 16 + 12, 1, 4)
    table.write(vector * 16, address, 8)
    table.write(vector * 16 + 8, data, 4)
    table.write(vector * 16 + 12, int(masked), 4)


def sent(sink):
    return [interrupt.route.data for interrupt in sink.interrupts]


def write(table, vector, count=1):
    os.eventfd_write(table.eventfd(vector).fileno(), count)


@pytest.fixture
def many_fds():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard < 0 else max(soft, min(hard, 16384)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- registers -------------------------------------------------------------------------------------------------------


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
    log = Log()
    async with IrqManager(RecordingSink(), tracer=log) as irqs, MsixTable(irqs, vectors=2) as table:
        table.write(offset, 0, size)
        assert log.of("msix_access_ignored") == [{"write": True, "offset": offset, "size": size}]
        assert [table.read(entry * 16 + 12, 4) for entry in range(2)] == [1, 1]


async def test_a_read_of_nothing_gives_0():
    log = Log()
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


# -- masks -----------------------------------------------------------------------------------------------------------


async def test_an_unmasked_vector_sends_its_message():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=2, devid=7) as table:
        table.write_control(ENABLE)
        program(table, 1, 0x31, address=0x1_FEE0_0000)
        table.signal(1)
        assert sink.interrupts == [Interrupt(24, Msi(0x1_FEE0_0000, 0x31, 7))]
        assert table.gsi(1) == 24
        assert not table.pending(1)


async def test_a_masked_vector_stays_pending_and_is_sent_once():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=2) as table:
        table.write_control(ENABLE)
        program(table, 0, 0x31)
        for _ in range(2):  # with an irqfd that has never been, then with one that has
            table.mask(0)
            table.signal(0)
            write(table, 0, 5)
            await irqs.flush()
            assert table.pending(0)
            assert sink.interrupts == []
            table.unmask(0)
            await irqs.flush()
            assert not table.pending(0)
            assert sent(sink) == [0x31]
            sink.interrupts.clear()


async def test_the_function_mask_masks_every_vector():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=3) as table:
        table.write_control(ENABLE | FUNCTION_MASK)
        assert (table.control, table.function_mask) == (ENABLE | FUNCTION_MASK | 2, True)
        for vector in range(3):
            program(table, vector, 0x30 + vector, masked=vector == 2)
            table.signal(vector)
        await irqs.flush()
        assert (table.read(table.pba_offset, 8), sent(sink)) == (0b111, [])
        table.write_control(ENABLE)
        await irqs.flush()
        assert (table.read(table.pba_offset, 8), sorted(sent(sink))) == (0b100, [0x30, 0x31])
        table.write_control(ENABLE | FUNCTION_MASK)
        for vector in range(3):
            table.signal(vector)
        await irqs.flush()
        assert (table.read(table.pba_offset, 8), len(sink.interrupts)) == (0b111, 2)
        table.unmask(2)
        await irqs.flush()
        assert len(sink.interrupts) == 2
        table.write_control(ENABLE)
        await irqs.flush()
        assert (table.read(table.pba_offset, 8), sorted(sent(sink))) == (0, [0x30, 0x30, 0x31, 0x31, 0x32])


async def test_disabling_gives_the_gsis_back_and_loses_nothing():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=20) as table:
        before = irqs.routing
        table.write_control(ENABLE)
        for vector in range(20):
            program(table, vector, vector)
            table.eventfd(vector)
        assert (len(irqs.irqfds), irqs.gsis.statistics().held, len(irqs.routing)) == (20, 20, 44)
        table.mask(3)
        table.signal(3)
        table.write_control(0)
        table.signal(5)
        assert (irqs.irqfds, irqs.gsis.statistics().held, dict(irqs.routing)) == ((), 0, dict(before))
        assert (table.pending(3), table.pending(5), table.pending(4)) == (True, True, False)
        table.write_control(ENABLE)
        await irqs.flush()
        assert sent(sink) == [5]
        table.unmask(3)
        await irqs.flush()
        assert sent(sink) == [5, 3]


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


# -- the pending-bit array -------------------------------------------------------------------------------------------


def from_a_thread(eventfd):
    thread = threading.Thread(target=os.eventfd_write, args=(eventfd.fileno(), 1))
    thread.start()
    thread.join()


def by_signal_from_a_thread(eventfd):
    thread = threading.Thread(target=eventfd.signal)
    thread.start()
    thread.join()


def from_a_process(eventfd):
    fd = eventfd.fileno()
    subprocess.run([sys.executable, "-c", f"import os; os.eventfd_write({fd}, 1)"], pass_fds=[fd], check=True)


@pytest.mark.parametrize("signal", [from_a_thread, by_signal_from_a_thread, from_a_process])
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("semaphore", [False, True])
async def test_pending_bits_are_right_for_what_the_loop_has_not_seen(signal, used, semaphore):
    sink = RecordingSink()
    with EventFd(semaphore=semaphore) as eventfd:
        async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=130, eventfds={129: eventfd}) as table:
            table.write_control(ENABLE)
            program(table, 129, 0x31, masked=not used)
            table.mask(129)
            assert (table.gsi(129) is not None) is used
            bits = [table.read(table.pba_offset + word * 8, 8) for word in range(3)]
            assert bits == [0, 0, 0]
            signal(eventfd)  # and no turn of the loop
            assert [table.read(table.pba_offset + word * 8, 8) for word in range(3)] == [0, 0, 2]
            assert table.read(table.pba_offset + 16, 4) == 2
            assert table.read(table.pba_offset + 20, 4) == 0
            table.unmask(129)
            await irqs.flush()
            assert table.read(table.pba_offset + 16, 8) == 0
            assert sent(sink) == [0x31]


async def test_what_was_injected_and_left_in_the_eventfd_is_not_pending():
    # Row P01: the count that is there when the irqfd is made is injected once, and stays readable.
    sink = RecordingSink()
    with EventFd(3) as eventfd:
        async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=1, eventfds={0: eventfd}) as table:
            assert table.pending(0)
            table.write_control(ENABLE)
            program(table, 0, 0x31)
            await irqs.flush()
            table.mask(0)
            assert (table.pending(0), sent(sink)) == (False, [0x31])
            write(table, 0)
            assert table.pending(0)
            table.unmask(0)
            await irqs.flush()
            assert (table.pending(0), sent(sink)) == (False, [0x31, 0x31])


async def test_writing_the_pending_bit_array_changes_nothing():
    async with IrqManager(RecordingSink()) as irqs, MsixTable(irqs, vectors=1) as table:
        table.signal(0)
        table.write(table.pba_offset, 0, 8)
        assert table.read(table.pba_offset, 8) == 1


# -- gsis ------------------------------------------------------------------------------------------------------------


async def test_gsis_are_allocated_at_the_first_unmask_and_kept_while_masked():
    async with IrqManager(RecordingSink()) as irqs, MsixTable(irqs, vectors=4) as table:
        table.write_control(ENABLE)
        for vector in (2, 0):
            table.eventfd(vector)
            assert table.gsi(vector) is None
            program(table, vector, vector)
        assert [table.gsi(vector) for vector in range(4)] == [25, None, 24, None]
        irqfds = irqs.irqfds
        for _ in range(3):
            table.mask(2)
            table.unmask(2)
        assert irqs.irqfds == irqfds  # no churn of assign and deassign
        assert (irqs.gsis.statistics().held, irqs.gsis.statistics().idle) == (2, 0)
        table.mask(2)
        assert irqs.gsis.statistics().idle == 1
        assert table.statistics().assigned == 2
        assert table.statistics().unmasked == 1


async def test_a_vector_without_an_eventfd_costs_nothing_until_it_gets_one():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=2) as table:
        table.write_control(ENABLE)
        program(table, 0, 0x31)
        assert irqs.gsis.statistics().held == 0
        table.signal(0)
        assert sent(sink) == [0x31]


async def test_all_of_2048_vectors_at_once(many_fds):
    sink = RecordingSink()
    async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=2048) as table:
        table.write_control(ENABLE)
        for vector in range(2048):
            table.eventfd(vector)
            program(table, vector, vector)
        assert len(irqs.routing) == 24 + 2048
        for vector in range(2048):
            write(table, vector)
        await irqs.flush()
        assert sorted(sent(sink)) == list(range(2048))
        sink.interrupts.clear()
        for vector in range(2048):
            program(table, vector, 5000 + vector)
        for vector in range(2048):
            write(table, vector)
        await irqs.flush()
        assert sorted(sent(sink)) == list(range(5000, 7048))
        table.write_control(0)
        assert len(irqs.routing) == 24


async def test_two_tables_that_together_need_more_gsis_than_there_are(many_fds):
    sink = RecordingSink()
    async with (
        IrqManager(sink) as irqs,
        MsixTable(irqs, vectors=2048) as one,
        MsixTable(irqs, vectors=2048) as two,
    ):
        for table, base in ((one, 0), (two, 10_000)):
            for vector in range(2048):
                table.eventfd(vector)
                program(table, vector, base + vector, masked=True)
            table.write_control(ENABLE)
        for table, other, base in ((one, two, 0), (two, one, 10_000), (one, two, 0)):
            for vector in range(2048):
                other.mask(vector)
                table.unmask(vector)
            assert (table.statistics().unmasked, other.statistics().unmasked) == (2048, 0)
            assert irqs.gsis.statistics().held <= 4072
            for vector in range(2048):
                write(table, vector)
                write(other, vector)
            await irqs.flush()
            pending = sum(other.read(other.pba_offset + word * 8, 8).bit_count() for word in range(32))
            assert pending == 2048
            # What was pending since the last round comes with what was signalled in this one.
            assert sorted(set(sent(sink))) == list(range(base, base + 2048))
            assert 2048 <= len(sink.interrupts) <= 2 * 2048
            sink.interrupts.clear()
        assert irqs.gsis.statistics().recycled >= 24
        assert irqs.gsis.statistics().waiting == 0


def nearly_full(left):
    """A routing table that leaves so many gsis."""
    return {gsi: Msi(0, gsi) for gsi in range(4096 - left)}


async def test_the_gsi_that_was_masked_longest_ago_is_recycled():
    sink = RecordingSink()
    async with IrqManager(sink, routing=nearly_full(2)) as irqs, MsixTable(irqs, vectors=3) as table:
        table.write_control(ENABLE)
        for vector in range(3):
            table.eventfd(vector)
        program(table, 0, 0x30)
        program(table, 1, 0x31)
        table.mask(1)
        table.mask(0)
        table.signal(1)
        program(table, 2, 0x32)
        assert [table.gsi(vector) for vector in range(3)] == [4094, None, 4095]
        assert (table.pending(1), len(irqs.irqfds), irqs.routing.routes(4095)) == (True, 2, (Msi(BASE, 0x32),))
        table.signal(1)
        table.signal(2)
        table.signal(0)
        assert sent(sink) == [0x32]
        table.mask(2)
        table.unmask(0)  # it was idle, not gone
        table.unmask(1)  # so this takes the one of 2
        await irqs.flush()
        assert [table.gsi(vector) for vector in range(3)] == [4094, 4095, None]
        assert sorted(sent(sink)) == [0x30, 0x31, 0x32]


async def test_vectors_without_a_gsi_are_served_in_turn_and_lose_nothing():
    sink, log = RecordingSink(), Log()
    async with (
        IrqManager(sink, routing=nearly_full(1), tracer=log) as irqs,
        MsixTable(irqs, vectors=2) as one,
        MsixTable(irqs, vectors=2) as two,
    ):
        for table, base in ((one, 0), (two, 2)):
            table.write_control(ENABLE)
            for vector in range(2):
                table.signal(vector)
                program(table, vector, base + vector)
        assert [one.gsi(0), one.gsi(1), two.gsi(0), two.gsi(1)] == [4095, None, None, None]
        assert (one.statistics().waiting, two.statistics().waiting, irqs.gsis.statistics().waiting) == (1, 2, 3)
        assert len(log.of("msix_no_gsi")) == 3
        await irqs.flush()
        assert sent(sink) == [0]
        two.mask(0)  # does not want one any more
        one.mask(0)
        await irqs.flush()
        assert sent(sink) == [0, 1]
        one.write_control(0)
        await irqs.flush()
        assert sent(sink) == [0, 1, 3]
        assert (two.pending(0), two.gsi(1)) == (True, 4095)
        await two.aclose()
        assert irqs.gsis.statistics().held == 0


async def test_gsis_that_somebody_routed_by_hand_are_passed_over():
    async with IrqManager(RecordingSink(), routing=nearly_full(2)) as irqs, MsixTable(irqs, vectors=3) as table:
        irqs.set_route(4094, Msi(0, 1))
        table.write_control(ENABLE)
        for vector in range(3):
            table.eventfd(vector)
        program(table, 0, 0x30)
        program(table, 1, 0x31)
        assert (table.gsi(0), table.gsi(1)) == (4095, None)
        for gsi in range(24, 4094):
            irqs.set_route(gsi, ())
        program(table, 2, 0x32)
        program(table, 1, 0x31)
        assert {table.gsi(1), table.gsi(2)} <= set(range(24, 4094))
        assert table.gsi(1) != table.gsi(2)


async def test_a_routing_table_that_is_full_recycles_an_idle_route():
    # Gsis are left, but no room in the table: some gsis go to three chips.
    full = {gsi: Msi(0, gsi) for gsi in range(100, 4093)}
    pins = {gsi: [IrqchipPin("ioapic", gsi), IrqchipPin("pic", gsi)] for gsi in range(16)}
    pins |= {16 + n: [IrqchipPin("ioapic", n), IrqchipPin("pic", 1), IrqchipPin("pic", 9)] for n in range(8)}
    routing = full | pins
    room = 4096 - sum(len(routes) if isinstance(routes, list) else 1 for routes in routing.values())
    sink = RecordingSink()
    async with IrqManager(sink, routing=routing) as irqs, MsixTable(irqs, vectors=room + 2) as table:
        table.write_control(ENABLE)
        for vector in range(room + 1):
            table.eventfd(vector)
            program(table, vector, vector)
        assert (table.statistics().unmasked, table.gsi(room)) == (room, None)
        table.signal(room)
        assert table.statistics().waiting == 1
        table.mask(0)
        await irqs.flush()
        assert (table.gsi(room), table.gsi(0), sent(sink)) == (24, None, [room])


def test_the_allocator_alone():
    gsis = GsiAllocator(lambda gsi: gsi == 2, first=1, stop=5)
    assert [gsis.allocate() for _ in range(4)] == [1, 3, 4, None]
    gsis.release(3)
    assert [gsis.take(gsi) for gsi in (3, 3, 2, 5, 0, -1)] == [True, False, False, False, False, False]
    assert gsis.allocate() is None
    told = []
    gsis.idle(4, lambda: told.append(4))
    gsis.idle(1, lambda: told.append(1))
    gsis.busy(4)
    assert (gsis.allocate(), gsis.allocate(), told) == (1, None, [1])
    gsis.wait("a", lambda: told.append(("a", gsis.allocate())))
    gsis.wait("b", lambda: told.append(("b", gsis.allocate())))
    gsis.wait("a", lambda: told.append("twice"))
    gsis.wait("c", lambda: told.append("forgotten"))
    gsis.forget("c")
    gsis.release(4)
    assert told == [1, ("a", 4)]
    gsis.idle(1, lambda: told.append("again"))
    assert told == [1, ("a", 4), "again", ("b", 1)]
    statistics = gsis.statistics()
    assert (statistics.held, statistics.idle, statistics.waiting, statistics.recycled) == (3, 0, 0, 2)


def test_a_gsi_that_somebody_unroutes_is_handed_out():
    routed = set(range(100))
    gsis = GsiAllocator(routed.__contains__, stop=100)
    told = []
    assert gsis.allocate() is None
    gsis.wait("a", lambda: told.append(gsis.allocate()))
    routed.remove(99)
    gsis.unrouted(99)
    assert (told, gsis.allocate()) == ([99], None)
    routed.remove(98)
    assert gsis.take(98)
    gsis.unrouted(98)  # as when its new owner takes its own route away
    gsis.release(98)
    assert (gsis.allocate(), gsis.allocate()) == (98, None)


@pytest.mark.parametrize("one", [True, False])
async def test_a_vector_without_a_gsi_is_served_when_routes_by_hand_go_away(one):
    sink = RecordingSink()
    routing = {gsi: Msi(BASE, 1) for gsi in range(4096)}
    async with IrqManager(sink, routing=routing) as irqs, MsixTable(irqs, vectors=2) as table:
        table.write_control(ENABLE)
        for vector in range(2):
            table.signal(vector)
            program(table, vector, 0x30 + vector)
        assert (table.statistics().waiting, irqs.gsis.statistics().waiting) == (2, 2)
        if one:
            irqs.set_route(3, ())  # room in the table, but no gsi for a vector
            assert (table.statistics().waiting, irqs.gsis.statistics().waiting) == (2, 2)
            irqs.set_route(4000, ())
            irqs.set_route(4001, ())
        else:
            irqs.set_routing({})
        await irqs.flush()
        assert (table.statistics().waiting, irqs.gsis.statistics().waiting, sorted(sent(sink))) == (0, 0, [0x30, 0x31])


async def test_a_vector_without_room_in_the_table_is_served_when_there_is():
    # Gsis are left all the time.
    routing = {gsi: [IrqchipPin("ioapic", gsi % 24), IrqchipPin("pic", gsi % 16)] for gsi in range(2048)}
    sink = RecordingSink()
    async with IrqManager(sink, routing=routing) as irqs, MsixTable(irqs, vectors=2) as table:
        table.write_control(ENABLE)
        for vector in range(2):
            table.signal(vector)
            program(table, vector, 0x30 + vector)
        assert (table.statistics().waiting, irqs.gsis.statistics().held) == (2, 0)
        irqs.set_route(0, IrqchipPin("ioapic", 0))
        await irqs.flush()
        assert (table.statistics().waiting, sent(sink)) == (1, [0x30])
        table.write_control(0)
        assert (table.statistics().waiting, irqs.gsis.statistics().waiting, irqs.gsis.statistics().held) == (0, 0, 0)


@pytest.mark.parametrize(("first", "stop"), [(-1, 5), (5, 4), (0, 4097)])
def test_an_allocator_stays_within_the_routable_gsis(first, stop):
    with pytest.raises(ValueError, match=r"0\.\.4095"):
        GsiAllocator(lambda gsi: False, first=first, stop=stop)


# -- changing a vector while it is in use ----------------------------------------------------------------------------


class LockStep:
    """A thread that signals, waits for the injection, and signals again: nothing coalesces, so nothing may be lost or doubled."""

    def __init__(self, eventfd, rounds, *, by_signal):
        self.injected = threading.Semaphore(0)
        self.stop = False
        self._signal = eventfd.signal if by_signal else lambda: os.eventfd_write(eventfd.fileno(), 1)
        self._rounds = rounds
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        for _ in range(self._rounds):
            self._signal()
            while not self.injected.acquire(timeout=0.1):
                if self.stop:
                    return

    async def finished(self):
        while self.thread.is_alive():
            await asyncio.sleep(0)
        self.thread.join()


class Fast:
    def __init__(self):
        self.data = []
        self.on_injection = lambda: None

    async def inject(self, interrupt):
        self.try_inject(interrupt)

    def try_inject(self, interrupt):
        self.data.append(interrupt.route.data)
        self.on_injection()
        return True


class Slow:
    def __init__(self):
        self.data = []
        self.on_injection = lambda: None

    async def inject(self, interrupt):
        await asyncio.sleep(0)
        self.data.append(interrupt.route.data)
        self.on_injection()


async def guest_writes(table, data):
    program(table, 0, data)


async def set_message(table, data):
    await table.set_message(0, address=BASE, data=data)


async def unmasked_write(table, data):
    table.write(8, data, 4)


@pytest.mark.parametrize(
    ("sink_type", "change"),
    [(Fast, guest_writes), (Fast, set_message), (Fast, unmasked_write), (Slow, set_message)],
)
@pytest.mark.parametrize("by_signal", [False, True])
async def test_a_change_under_load_loses_nothing_and_sends_nothing_to_the_old_vector(sink_type, change, by_signal):
    sink, rounds = sink_type(), 300
    async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=1) as table:
        table.write_control(ENABLE)
        table.eventfd(0)
        await change(table, 0)
        table.unmask(0)
        step = LockStep(table.eventfd(0), rounds, by_signal=by_signal)
        sink.on_injection = step.injected.release
        step.thread.start()
        try:
            data = 0
            while step.thread.is_alive():
                await asyncio.sleep(0)
                data += 1
                await change(table, data)
                changed_at = len(sink.data)
                await asyncio.sleep(0)
                assert set(sink.data[changed_at:]) <= {data}
        finally:
            step.stop = True
            await step.finished()
        await irqs.flush()
        assert len(sink.data) == rounds
        assert sink.data == sorted(sink.data)


@pytest.mark.parametrize("by_signal", [False, True])
async def test_recycling_under_load_loses_nothing(by_signal):
    # Two vectors take the one gsi from each other, while a thread signals one of them.
    sink, rounds = Fast(), 300
    async with IrqManager(sink, routing=nearly_full(1)) as irqs, MsixTable(irqs, vectors=2) as table:
        table.write_control(ENABLE)
        for vector in range(2):
            table.eventfd(vector)
            program(table, vector, vector, masked=True)
        step = LockStep(table.eventfd(0), rounds, by_signal=by_signal)
        sink.on_injection = step.injected.release
        step.thread.start()
        try:
            while step.thread.is_alive():
                table.mask(1)
                table.unmask(0)
                for _ in range(3):  # a loop looks at its fds once a turn, and ours are behind one of them
                    await asyncio.sleep(0)
                table.mask(0)
                table.unmask(1)
                assert table.gsi(0) is None
                await asyncio.sleep(0)
        finally:
            step.stop = True
            await step.finished()
        assert sink.data == [0] * rounds
        assert irqs.gsis.statistics().recycled > 0


async def test_set_message_waits_for_what_is_on_its_way_to_the_old_one():
    class Gate:
        def __init__(self):
            self.begun = asyncio.Event()
            self.open = asyncio.Event()
            self.done = []

        async def inject(self, interrupt):
            self.begun.set()
            await self.open.wait()
            self.done.append(interrupt.route.data)

    sink = Gate()
    async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=1) as table:
        table.write_control(ENABLE)
        program(table, 0, 0x31)
        table.signal(0)
        await sink.begun.wait()
        table.signal(0)
        changing = asyncio.create_task(table.set_message(0, address=BASE, data=0x32))
        for _ in range(10):
            await asyncio.sleep(0)
        assert (changing.done(), sink.done, irqs.routing.routes(24)) == (False, [], (Msi(BASE, 0x31),))
        assert table.pending(0)
        sink.open.set()
        await changing
        assert irqs.routing.routes(24) == (Msi(BASE, 0x32),)
        await irqs.flush()
        assert sink.done == [0x31, 0x32]


async def test_set_message_that_is_cancelled_has_changed_it():
    class Gate:
        def __init__(self):
            self.open = asyncio.Event()
            self.done = []

        async def inject(self, interrupt):
            await self.open.wait()
            self.done.append(interrupt.route.data)

    sink = Gate()
    async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=1) as table:
        table.write_control(ENABLE)
        program(table, 0, 0x31)
        table.signal(0)
        changing = asyncio.create_task(table.set_message(0, address=BASE, data=0x32))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        changing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await changing
        assert (irqs.routing.routes(24), table.statistics().unmasked) == ((Msi(BASE, 0x32),), 1)
        sink.open.set()
        await irqs.flush()


async def test_a_vector_that_the_guest_masks_during_set_message_is_recyclable_afterwards():
    async with IrqManager(Slow()) as irqs, MsixTable(irqs, vectors=1) as table:
        table.write_control(ENABLE)
        program(table, 0, 0x31)
        table.signal(0)
        changing = asyncio.create_task(table.set_message(0, address=BASE, data=0x32))
        await asyncio.sleep(0)
        table.mask(0)
        assert irqs.gsis.statistics().idle == 0
        await changing
        assert irqs.gsis.statistics().idle == 1


@pytest.mark.parametrize("message", [(BASE + 2, 1), (2**64, 1), (BASE, 2**32), (-4, 1)])
async def test_set_message_refuses_what_cannot_be_sent(message):
    async with IrqManager(RecordingSink()) as irqs, MsixTable(irqs, vectors=1) as table:
        table.write_control(ENABLE)
        table.eventfd(0)
        program(table, 0, 0x31)
        with pytest.raises(RoutingError):
            await table.set_message(0, address=message[0], data=message[1])
        assert irqs.routing.routes(24) == (Msi(BASE, 0x31),)


class Offloading:
    """A kernel, of which the order of what is asked is noted."""

    def __init__(self):
        self.log = []
        self.table = None

    def set_routing(self, table):
        routes = table.get(24, ())
        self.log.append(("route", *(route.data for route in routes)))

    async def inject(self, interrupt):
        raise AssertionError

    def offload(self, eventfd, interrupt, resamplefd):
        self.log.append(("assign", interrupt.route.data))
        return True

    def reclaim(self, eventfd, interrupt):
        self.log.append(("deassign", interrupt.route.data))


async def test_the_order_is_mask_deassign_route_assign_unmask():
    sink = Offloading()
    routing = {gsi: Msi(0, gsi) for gsi in range(24)}
    async with IrqManager(sink, routing=routing) as irqs, MsixTable(irqs, vectors=1) as table:
        sink.log.clear()
        table.write_control(ENABLE)
        table.eventfd(0)
        program(table, 0, 0x31)
        assert sink.log == [("route", 0x31), ("assign", 0x31)]
        sink.log.clear()
        program(table, 0, 0x32)
        assert sink.log == [("deassign", 0x31), ("route", 0x32), ("assign", 0x32)]
        sink.log.clear()
        table.write_control(0)
        assert sink.log == [("deassign", 0x32), ("route",)]
        # Whatever is pending is in the eventfd, of which the kernel knows nothing any more.
        table.signal(0)
        assert table.pending(0)


# -- what can go wrong -----------------------------------------------------------------------------------------------


async def test_a_message_that_cannot_be_sent_leaves_the_vector_pending():
    sink, log = RecordingSink(), Log()
    async with IrqManager(sink, tracer=log) as irqs, MsixTable(irqs, vectors=1) as table:
        table.write_control(ENABLE)
        table.eventfd(0)
        program(table, 0, 0x31, address=BASE + 1)
        table.signal(0)
        await irqs.flush()
        assert (table.pending(0), sink.interrupts, len(log.of("msix_vector_failed"))) == (True, [], 1)
        program(table, 0, 0x31)
        await irqs.flush()
        assert (table.pending(0), sent(sink)) == (False, [0x31])
        # The same to a vector that is in use.
        table.write(0, BASE + 2, 4)
        table.signal(0)
        await irqs.flush()
        assert (table.pending(0), sent(sink), table.gsi(0)) == (True, [0x31], None)
        table.write(0, BASE, 4)
        await irqs.flush()
        assert (table.pending(0), sent(sink)) == (False, [0x31, 0x31])


async def test_a_sink_that_refuses_a_route_leaves_the_vector_pending():
    class Picky(RecordingSinkLike):
        def set_routing(self, table):
            if any(isinstance(route, Msi) and route.data == 0x66 for routes in table.values() for route in routes):
                raise RoutingError("0x66")

    sink, log = Picky(), Log()
    async with IrqManager(sink, tracer=log) as irqs, MsixTable(irqs, vectors=1) as table:
        table.write_control(ENABLE)
        table.signal(0)
        program(table, 0, 0x66)
        await irqs.flush()
        assert (table.pending(0), sink.interrupts, table.gsi(0)) == (True, [], None)
        assert len(log.of("msix_vector_failed")) == 1
        assert irqs.gsis.statistics().held == 0
        program(table, 0, 0x67)
        await irqs.flush()
        assert [interrupt.route.data for interrupt in sink.interrupts] == [0x67]


class RecordingSinkLike:
    def __init__(self):
        self.interrupts = []

    async def inject(self, interrupt):
        self.interrupts.append(interrupt)

    def try_inject(self, interrupt):
        self.interrupts.append(interrupt)
        return True


async def test_an_eventfd_that_is_bound_elsewhere_is_tried_again_when_the_guest_unmasks():
    sink, log = RecordingSink(), Log()
    with EventFd() as eventfd:
        async with (
            IrqManager(sink, tracer=log) as irqs,
            MsixTable(irqs, vectors=1, eventfds={0: eventfd}) as table,
        ):
            other = irqs.assign(eventfd, gsi=5, masked=True)
            table.write_control(ENABLE)
            program(table, 0, 0x31)
            assert "EventFdBusyError" in log.of("msix_vector_failed")[0]["error"]
            assert irqs.gsis.statistics().held == 0
            await irqs.deassign(other)
            eventfd.signal()
            table.mask(0)
            table.unmask(0)
            await irqs.flush()
            assert sent(sink) == [0x31]


async def test_an_eventfd_that_its_owner_closes():
    sink, log = RecordingSink(), Log()
    eventfd = EventFd()
    async with IrqManager(sink, tracer=log) as irqs, MsixTable(irqs, vectors=1, eventfds={0: eventfd}) as table:
        table.write_control(ENABLE)
        program(table, 0, 0x31)
        eventfd.signal()
        eventfd.close()
        assert (sent(sink), table.pending(0)) == ([0x31], False)
        table.mask(0)
        table.unmask(0)
        assert irqs.gsis.statistics().held == 0
        assert irqs.irqfds == ()
        new = EventFd()
        await table.set_eventfd(0, new)
        new.signal()
        assert sent(sink) == [0x31, 0x31]
    new.close()


async def test_a_table_outlives_its_manager_without_a_murmur():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        table = MsixTable(irqs, vectors=20)
        table.write_control(ENABLE)
        for vector in range(20):
            table.eventfd(vector)
            program(table, vector, vector)
    table.signal(0)
    program(table, 0, 0x32)
    assert table.pending(0)
    table.write_control(0)
    await table.aclose()
    assert sink.interrupts == []


@pytest.mark.trouble
async def test_a_broken_vector_gets_another_chance_when_it_is_unmasked():
    class Failing:
        def __init__(self):
            self.failing = True
            self.interrupts = []

        async def inject(self, interrupt):
            if self.failing:
                raise OSError("no")
            self.interrupts.append(interrupt)

    sink = Failing()
    with pytest.raises(InjectionError):
        async with IrqManager(sink, retry=Retry(attempts=0)) as irqs, MsixTable(irqs, vectors=1) as table:
            table.write_control(ENABLE)
            program(table, 0, 0x31)
            table.signal(0)
            await irqs.flush()
            assert table.pending(0)
            sink.failing = False
            program(table, 0, 0x32)
            await irqs.flush()
            assert (sink.interrupts, table.pending(0)) == ([Interrupt(24, Msi(BASE, 0x32))], False)


async def test_closing_keeps_what_is_pending_in_the_callers_eventfds():
    sink = RecordingSink()
    with EventFd() as used, EventFd() as unused:
        async with IrqManager(sink) as irqs:
            table = MsixTable(irqs, vectors=3, eventfds={0: used, 1: unused.fileno()})
            owned = table.eventfd(2)
            table.write_control(ENABLE)
            program(table, 0, 0x31)
            table.mask(0)
            used.signal(4)
            unused.signal(2)
            await table.aclose()
            await table.aclose()
            assert (irqs.irqfds, irqs.gsis.statistics().held, len(irqs.routing)) == ((), 0, 24)
            assert (used.read_nowait(), unused.read_nowait(), owned.closed) == (4, 2, True)
            with pytest.raises(ClosedError):
                table.eventfd(2)
            table.unmask(0)
            assert irqs.irqfds == ()
    assert sink.interrupts == []


async def test_closing_while_the_sink_is_busy_injects_or_keeps_every_signal():
    sink = Slow()
    with EventFd() as eventfd:
        async with IrqManager(sink) as irqs:
            async with MsixTable(irqs, vectors=1, eventfds={0: eventfd}) as table:
                table.write_control(ENABLE)
                program(table, 0, 0x31)
                eventfd.signal()  # queued, not begun
            assert (eventfd.read_nowait(), sink.data) == (1, [])


async def test_eventfds_are_checked():
    async with IrqManager(RecordingSink()) as irqs:
        closed = EventFd()
        closed.close()
        with pytest.raises(ClosedError):
            MsixTable(irqs, vectors=1, eventfds={0: closed})
        with EventFd() as eventfd, pytest.raises(ValueError, match=r"0\.\.0"):
            MsixTable(irqs, vectors=1, eventfds={1: eventfd})
        async with MsixTable(irqs, vectors=1) as table:
            with pytest.raises(ClosedError):
                await table.set_eventfd(0, closed)


async def test_another_eventfd_takes_along_what_is_pending_in_the_tables_own():
    sink = RecordingSink()
    with EventFd() as new, EventFd() as newer:
        async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=1) as table:
            table.write_control(ENABLE)
            program(table, 0, 0x31)
            table.mask(0)
            old = table.eventfd(0)
            old.signal(3)
            await table.set_eventfd(0, new)
            assert (old.closed, table.pending(0)) == (True, True)
            table.unmask(0)
            await irqs.flush()
            assert sent(sink) == [0x31]
            table.mask(0)
            new.signal(2)
            await table.set_eventfd(0, newer.fileno())
            assert (new.read_nowait(), table.pending(0)) == (2, False)


@pytest.mark.parametrize("by", ["object", "dup", "fd"])
async def test_the_eventfd_that_a_vector_has_already(by):
    sink = RecordingSink()
    async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=1) as table:
        table.write_control(ENABLE)
        program(table, 0, 0x31)
        own = table.eventfd(0)
        twin = os.dup(own.fileno())
        same = {"object": own, "dup": EventFd.from_fd(twin), "fd": twin}[by]
        await table.set_eventfd(0, same)
        os.eventfd_write(twin, 1)
        await irqs.flush()
        assert (sent(sink), own.closed) == ([0x31], by != "object")
    os.close(twin)


async def test_one_eventfd_is_no_two_vectors():
    with EventFd() as first, EventFd() as second, EventFd() as bound:
        twin = os.dup(first.fileno())
        async with IrqManager(RecordingSink()) as irqs:
            for other in (first, twin):
                with pytest.raises(EventFdBusyError):
                    MsixTable(irqs, vectors=2, eventfds={0: first, 1: other})
            irqs.assign(bound, gsi=5)
            async with MsixTable(irqs, vectors=2, eventfds={0: first, 1: second}) as table:
                table.write_control(ENABLE)
                program(table, 1, 0x31)
                for busy in (first, twin, bound, bound.fileno()):
                    with pytest.raises(EventFdBusyError):
                        await table.set_eventfd(1, busy)
                second.signal()
                assert sent(irqs._irqfds.delivery.tiers.sink) == [0x31]
                first.close()
                await table.set_eventfd(1, twin)  # the vector that had it will not miss it
        os.close(twin)


@pytest.mark.parametrize("late", [False, True])
async def test_an_fd_may_be_closed_and_its_number_be_anothers(late):
    sink = RecordingSink()
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    device = os.dup(fd)
    async with IrqManager(sink) as irqs:
        async with MsixTable(irqs, vectors=1, eventfds={} if late else {0: fd}) as table:
            if late:
                await table.set_eventfd(0, fd)
            table.write_control(ENABLE)
            program(table, 0, 0x31)
            os.close(fd)
            stranger = os.eventfd(5, os.EFD_NONBLOCK)
            assert stranger == fd
            os.eventfd_write(device, 1)
            await irqs.flush()
            table.mask(0)
            os.eventfd_write(device, 2)
            assert (sent(sink), table.pending(0), os.eventfd_read(stranger)) == ([0x31], True, 5)
        assert os.eventfd_read(device) == 2
    os.close(stranger)
    os.close(device)


# -- one route at a time ---------------------------------------------------------------------------------------------


ROUTES = st.sampled_from(
    [(), Msi(BASE, 1), [Msi(BASE, 2)], IrqchipPin("ioapic", 3), [IrqchipPin("ioapic", 4), IrqchipPin("pic", 4)]]
)


@given(st.lists(st.tuples(st.sampled_from([0, 1, 5, 4095]), ROUTES), max_size=12))
def test_one_route_at_a_time_gives_the_same_table_as_all_at_once(changes):
    table, plain = RoutingTable.default(), dict(RoutingTable.default())
    for gsi, routes in changes:
        before = dict(table)
        changed = table.with_route(gsi, routes)
        assert dict(table) == before
        plain[gsi] = routes
        table = changed
    assert dict(table) == dict(RoutingTable(plain))
    assert table._entries == sum(map(len, table.values()))


@pytest.mark.parametrize(
    ("gsi", "routes"),
    [
        (4096, Msi(0, 0)),
        (-1, Msi(0, 0)),
        (True, Msi(0, 0)),
        (5, [Msi(0, 0), Msi(0, 1)]),
        (5, [IrqchipPin("ioapic", 1), IrqchipPin("ioapic", 2)]),
        (5, "pin"),
        (5, None),
    ],
)
async def test_a_route_that_is_refused_changes_nothing(gsi, routes):
    async with IrqManager(RecordingSink()) as irqs:
        before, generation = irqs.routing, irqs._irqfds.routes.generation
        with pytest.raises(RoutingError):
            irqs.set_route(gsi, routes)
        assert irqs.routing is before
        assert irqs._irqfds.routes.generation == generation


async def test_one_route_too_many():
    async with IrqManager(RecordingSink(), routing={gsi: Msi(0, gsi) for gsi in range(4096)}) as irqs:
        with pytest.raises(RoutingError, match="4096"):
            irqs.set_route(0, [IrqchipPin("ioapic", 0), IrqchipPin("pic", 0)])
        irqs.set_route(0, IrqchipPin("ioapic", 0))
        irqs.set_route(1, ())
        irqs.set_route(0, [IrqchipPin("ioapic", 0), IrqchipPin("pic", 0)])
        assert len(irqs.routing) == 4095


@pytest.mark.trouble
async def test_a_bound_irqfd_sees_its_new_route_and_the_others_keep_theirs():
    sink = RecordingSink()
    with EventFd() as kick, EventFd() as other:
        async with IrqManager(sink) as irqs:
            irqs.assign(kick, gsi=5)
            irqs.assign(other, gsi=6)
            kick.signal()
            irqs.set_route(5, Msi(BASE, 0x31))
            kick.signal()
            other.signal()
            irqs.set_route(5, ())
            kick.signal()
            assert sink.interrupts == [
                Interrupt(5, IrqchipPin("ioapic", 5)),
                Interrupt(5, Msi(BASE, 0x31)),
                Interrupt(6, IrqchipPin("ioapic", 6)),
            ]
            assert irqs.statistics().dropped == 1


async def test_a_held_interrupt_goes_out_when_its_one_route_appears():
    sink = RecordingSink()
    with EventFd() as kick, EventFd() as other:
        async with IrqManager(sink, routing={}, unrouted="hold") as irqs:
            irqs.assign(kick, gsi=5)
            irqs.assign(other, gsi=6)
            kick.signal()
            other.signal()
            irqs.set_route(5, Msi(BASE, 0x31))
            await irqs.flush()
            assert sink.interrupts == [Interrupt(5, Msi(BASE, 0x31))]
            irqs.set_route(6, Msi(BASE, 0x32))
            await irqs.flush()
            assert sink.interrupts[1:] == [Interrupt(6, Msi(BASE, 0x32))]


async def test_changing_one_gsi_does_not_begin_another_ones_half_done_injection_again():
    class FailsOnce:
        def __init__(self):
            self.interrupts = []
            self.failed = asyncio.Event()

        async def inject(self, interrupt):
            if interrupt.route.chip == "pic" and not self.failed.is_set():
                self.failed.set()
                raise OSError("not now")
            self.interrupts.append(interrupt)

    sink = FailsOnce()
    pins = [IrqchipPin("ioapic", 5), IrqchipPin("pic", 5)]
    with EventFd() as kick:
        async with IrqManager(sink, routing={5: pins}, retry=Retry(initial=0.0, maximum=0.0)) as irqs:
            irqs.assign(kick, gsi=5)
            kick.signal()
            await sink.failed.wait()
            irqs.set_route(6, Msi(BASE, 1))
            await irqs.flush()
            assert sink.interrupts == [Interrupt(5, pin) for pin in pins]


async def test_changing_its_own_gsi_does():
    class FailsOnce:
        def __init__(self):
            self.interrupts = []
            self.failed = asyncio.Event()

        async def inject(self, interrupt):
            if interrupt.route == old[1] and not self.failed.is_set():
                self.failed.set()
                raise OSError("not now")
            self.interrupts.append(interrupt)

    old = [IrqchipPin("ioapic", 5), IrqchipPin("pic", 5)]
    new = [IrqchipPin("ioapic", 6), IrqchipPin("pic", 6)]
    sink = FailsOnce()
    with EventFd() as kick:
        async with IrqManager(sink, routing={5: old}, retry=Retry(initial=0.0, maximum=0.0)) as irqs:
            irqs.assign(kick, gsi=5)
            kick.signal()
            await sink.failed.wait()
            irqs.set_route(5, new)
            await irqs.flush()
            assert sink.interrupts == [Interrupt(5, pin) for pin in (old[0], *new)]


# -- snapshot --------------------------------------------------------------------------------------------------------


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
