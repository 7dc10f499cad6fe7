"""A count that moves from one eventfd of a vector to another arrives once, whatever happens to either of them meanwhile."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace

import pytest

from aioirqfd import ClosedError, EventFd, EventFdBusyError, InjectionError, IrqManager, MsixTable, Retry
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import GatedSink
from tests.forks import in_child
from tests.irqfd.helpers import room_for_fds, turns
from tests.irqfd.msix import ENABLE, program, sent

FULL = 2**64 - 2


class Stubborn:
    """Holds an injection up, and fails it, until it is mended."""

    def __init__(self):
        self.begun = asyncio.Event()
        self.fail = asyncio.Event()
        self.mended = False
        self.interrupts = []

    async def inject(self, interrupt):
        if not self.mended:
            self.begun.set()
            await self.fail.wait()
            raise OSError("not now")
        self.interrupts.append(interrupt)


@pytest.fixture
async def rig():
    """A table of one vector, which is unmasked, and a sink that has its first interrupt in its hands and will fail it."""
    sink = Stubborn()
    irqs = IrqManager(sink, retry=Retry(0), on_error=[].append)
    await irqs.__aenter__()
    table = MsixTable(irqs, vectors=1)
    table.write_control(ENABLE)
    program(table, 0, 0x31)
    table.signal(0)
    await sink.begun.wait()
    yield SimpleNamespace(sink=sink, irqs=irqs, table=table)
    sink.fail.set()
    await table.aclose()
    with pytest.raises(InjectionError):
        await irqs.aclose()


async def delivered(rig):
    """The interrupts that come in the end, once the sink works and the guest has unmasked once more."""
    rig.sink.mended = True
    rig.sink.fail.set()
    await turns()
    rig.table.mask(0)
    rig.table.unmask(0)
    await rig.irqs.flush()
    return sent(rig.sink)


async def begin(coroutine):
    task = asyncio.ensure_future(coroutine)
    await turns()
    assert not task.done()
    return task


@pytest.mark.parametrize("by", ["object", "fd"])
@pytest.mark.parametrize("when", ["done", "cancelled"])
async def test_what_the_sink_fails_follows_into_the_new_one(rig, by, when):
    with EventFd() as new:
        old = rig.table.eventfd(0)
        moving = await begin(rig.table.set_eventfd(0, new if by == "object" else new.fileno()))
        if when == "cancelled":
            moving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await moving
            assert not old.closed, "its injection is under way yet"
        assert await delivered(rig) == [0x31]
        assert old.closed
        if when == "done":
            await moving
        new.signal()
        await rig.irqs.flush()
        assert sent(rig.sink) == [0x31, 0x31]


async def test_the_new_one_is_closed_meanwhile(rig):
    old, new = rig.table.eventfd(0), EventFd()
    moving = await begin(rig.table.set_eventfd(0, new))
    new.close()
    rig.sink.fail.set()
    with pytest.raises(ClosedError):
        await moving
    assert rig.table.eventfd(0) is old
    assert rig.table.pending(0)
    assert await delivered(rig) == [0x31]


async def test_the_new_one_is_closed_behind_our_back(rig):
    old, fd = rig.table.eventfd(0), os.eventfd(0, os.EFD_NONBLOCK)
    moving = await begin(rig.table.set_eventfd(0, EventFd.from_fd(fd)))
    os.close(fd)
    rig.sink.fail.set()
    with pytest.raises(OSError, match="Bad file descriptor"):
        await moving
    assert rig.table.eventfd(0) is old
    assert await delivered(rig) == [0x31]


async def test_the_new_one_is_bound_by_somebody_else_meanwhile(rig):
    with EventFd() as new:
        old = rig.table.eventfd(0)
        moving = await begin(rig.table.set_eventfd(0, new))
        other = rig.irqs.assign(new, gsi=5, masked=True)
        rig.sink.fail.set()
        with pytest.raises(EventFdBusyError):
            await moving
        assert rig.table.eventfd(0) is old
        assert await delivered(rig) == [0x31]
        assert (other.pending, old.closed) == (False, False)


async def test_the_callers_own_is_the_vectors_again():
    sink = Stubborn()
    irqs = IrqManager(sink, retry=Retry(0), on_error=[].append)
    await irqs.__aenter__()
    with EventFd() as old:
        async with MsixTable(irqs, vectors=1, eventfds={0: old}) as table:
            table.write_control(ENABLE)
            program(table, 0, 0x31)
            table.signal(0)
            await sink.begun.wait()
            new = EventFd()
            moving = await begin(table.set_eventfd(0, new))
            new.close()
            sink.fail.set()
            with pytest.raises(ClosedError):
                await moving
            assert table.eventfd(0) is old
            assert await delivered(SimpleNamespace(sink=sink, irqs=irqs, table=table)) == [0x31]
    with pytest.raises(InjectionError):
        await irqs.aclose()


async def test_the_new_one_is_full(rig):
    with EventFd() as new:
        new.signal(FULL)
        moving = await begin(rig.table.set_eventfd(0, new))
        rig.sink.fail.set()
        await moving
        assert await delivered(rig) == [0x31]


async def test_replaced_twice_at_the_same_time(rig):
    with EventFd() as first, EventFd() as second:
        moving = [await begin(rig.table.set_eventfd(0, new)) for new in (first, second)]
        rig.sink.fail.set()
        await asyncio.gather(*moving)
        assert rig.table.eventfd(0) is second
        assert await delivered(rig) == [0x31]


async def test_replaced_by_the_very_injection():
    class Replacing:
        def __init__(self):
            self.table: MsixTable
            self.interrupts = []

        async def inject(self, interrupt):
            self.interrupts.append(interrupt)
            if len(self.interrupts) == 1:
                await self.table.set_eventfd(0, new)
                raise OSError("not now")

    sink = Replacing()
    with EventFd() as new:
        irqs = IrqManager(sink, retry=Retry(0), on_error=[].append)
        await irqs.__aenter__()
        async with MsixTable(irqs, vectors=1) as table:
            sink.table = table
            table.write_control(ENABLE)
            program(table, 0, 0x31)
            old = table.eventfd(0)
            table.signal(0)
            await irqs.flush()
            await turns()
            await irqs.flush()
            assert (sent(sink), old.closed) == ([0x31, 0x31], True)
        with pytest.raises(InjectionError):
            await irqs.aclose()


async def test_a_table_that_is_closed_in_a_hurry_keeps_the_callers_counts():
    sink = Stubborn()
    irqs = IrqManager(sink, retry=Retry(0), on_error=[].append)
    await irqs.__aenter__()
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    table = MsixTable(irqs, vectors=1, eventfds={0: fd})
    table.write_control(ENABLE)
    program(table, 0, 0x31)
    os.eventfd_write(fd, 3)
    await sink.begun.wait()
    closing = await begin(table.aclose())
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    sink.fail.set()
    with pytest.raises(InjectionError):
        await irqs.aclose()
    assert os.eventfd_read(fd) == 3
    os.close(fd)


async def test_closed_while_a_hand_over_waits():
    sink = GatedSink()
    with EventFd() as new:
        async with IrqManager(sink) as irqs:
            table = MsixTable(irqs, vectors=1)
            table.write_control(ENABLE)
            program(table, 0, 0x31)
            old = table.eventfd(0)
            old.signal()
            await sink.wait_begun(1)
            moving = await begin(table.set_eventfd(0, new))
            moving.cancel()
            await turns()
            closing = await begin(table.aclose())
            sink.open()
            await closing
            assert old.closed
    assert sent(sink) == [0x31]


async def test_an_eventfd_that_cannot_be_looked_at_is_none():
    async with IrqManager(RecordingSink()) as irqs, MsixTable(irqs, vectors=1) as table:
        with room_for_fds(1), pytest.raises(OSError, match="Too many open files"):
            table.eventfd(0)
        table.write_control(ENABLE)
        program(table, 0, 0x31)
        table.signal(0)
        await irqs.flush()
        assert sent(irqs._irqfds.delivery.tiers.sink) == [0x31]


async def test_a_forked_child_that_closes_its_copy_takes_nothing():
    with EventFd() as eventfd:
        async with IrqManager(RecordingSink()) as irqs, MsixTable(irqs, vectors=1, eventfds={0: eventfd}) as table:
            eventfd.signal(3)
            await irqs.pause()
            assert table.snapshot()["entries"] == [[0, 0, 0, 1, None, 3]]

            def child():
                with pytest.raises(StopIteration):
                    table.aclose().send(None)

            assert in_child(child) == 0
            assert table.pending(0)
            irqs.resume()
        assert eventfd.read_nowait() == 3
