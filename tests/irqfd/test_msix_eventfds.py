"""The eventfds of vectors: the caller's and the table's own, another one, and the same one twice."""

from __future__ import annotations

import os

import pytest

from aioirqfd import ClosedError, EventFd, EventFdBusyError, IrqManager, MsixTable
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import RecordingTracer
from tests.irqfd.msix import ENABLE, program, sent


async def test_an_eventfd_that_is_bound_elsewhere_is_tried_again_when_the_guest_unmasks():
    sink, log = RecordingSink(), RecordingTracer()
    with EventFd() as eventfd:
        async with (
            IrqManager(sink, tracer=log) as irqs,
            MsixTable(irqs, vectors=1, eventfds={0: eventfd}) as table,
        ):
            other = irqs.assign(eventfd, gsi=5, masked=True)
            table.write_control(ENABLE)
            program(table, 0, 0x31)
            assert "EventFdBusyError" in str(log.of("msix_vector_failed")[0]["error"])
            assert irqs.gsis.statistics().held == 0
            await irqs.deassign(other)
            eventfd.signal()
            table.mask(0)
            table.unmask(0)
            await irqs.flush()
            assert sent(sink) == [0x31]


async def test_an_eventfd_that_its_owner_closes():
    sink, log = RecordingSink(), RecordingTracer()
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
