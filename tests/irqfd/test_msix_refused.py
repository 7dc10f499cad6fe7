"""Vectors whose route, irqfd or gsi is refused: pending, traced in time, and there again when it is refused no more."""

from __future__ import annotations

import asyncio
import copy
import errno
import json
import pickle

import pytest

from aioirqfd import EventFd, IrqchipPin, IrqManager, Msi, MsixTable, Retry, RoutingError, SnapshotError
from aioirqfd.irqfd.binding import Binding
from aioirqfd.irqfd.irqfds import Irqfds
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import RecordingTracer
from tests.integers import int64
from tests.irqfd.helpers import room_for_fds, turns
from tests.irqfd.msix import BASE, ENABLE, FUNCTION_MASK, program, sent

SOON = Retry(5, 0, 0)


class Refusing:
    """Refuses so many tables."""

    def __init__(self):
        self.interrupts = []
        self.refuse = []
        self.asked = 0

    async def inject(self, interrupt):
        self.interrupts.append(interrupt)

    def set_routing(self, _table):
        self.asked += 1
        if self.refuse:
            error = self.refuse.pop(0)
            if error is not None:
                raise error


NO_MEMORY = OSError(errno.ENOMEM, "no memory")
ERRORS = [NO_MEMORY, RoutingError("not now"), OSError(errno.EBUSY, "busy"), MemoryError(), RuntimeError("closed")]


async def test_a_reset_of_the_function_takes_no_descriptor():
    async with IrqManager(RecordingSink()) as irqs, MsixTable(irqs, vectors=2) as table:
        table.write_control(ENABLE)
        program(table, 0, 0x31)
        for vector in (0, 1):
            table.mask(vector)
            table.signal(vector)
        with room_for_fds(0):
            assert await table.reset_function() == 2
        assert not table.pending(0)
        assert not table.pending(1)


# ------------------------------------------------------------------------------------------------------ tried again


@pytest.mark.parametrize("error", ERRORS, ids=repr)
async def test_a_route_that_the_sink_refuses_for_a_while(error):
    sink, log = Refusing(), RecordingTracer()
    async with IrqManager(sink, retry=SOON, tracer=log) as irqs, MsixTable(irqs, vectors=2) as table:
        table.write_control(ENABLE)
        for vector in (0, 1):
            table.signal(vector)
        sink.refuse = [error, error, error]
        program(table, 0, 0x31)
        program(table, 1, 0x32)
        assert (table.pending(0), irqs.gsis.statistics().held) == (True, 0)
        await turns(40)
        await irqs.flush()
        assert sorted(sent(sink)) == [0x31, 0x32]
        assert irqs.gsis.statistics().held == 2
        assert log.of("msix_vector_failed")[0]["error"] == repr(error)


async def test_one_that_the_sink_refuses_for_good_is_left_to_the_guest():
    sink = Refusing()
    async with IrqManager(sink, retry=Retry(3, 0, 0)) as irqs, MsixTable(irqs, vectors=1) as table:
        table.write_control(ENABLE)
        table.signal(0)
        sink.asked, sink.refuse = 0, [RoutingError("never")] * 100
        program(table, 0, 0x31)
        errors = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
        await turns(60)
        assert sink.asked == 4, "the first time, and three more"
        assert [str(error) for error in errors] == ["[Errno 22] Invalid argument: never"], "once, where nobody traces"
        assert (table.pending(0), irqs.gsis.statistics().held, irqs.irqfds) == (True, 0, ())
        sink.refuse = []
        table.mask(0)
        table.unmask(0)
        await irqs.flush()
        assert sent(sink) == [0x31]


async def test_what_the_guest_can_mend_waits_for_the_guest():
    sink = Refusing()
    async with IrqManager(sink, retry=SOON) as irqs, MsixTable(irqs, vectors=1) as table:
        table.write_control(ENABLE)
        table.signal(0)
        program(table, 0, 0x31, address=BASE + 1)
        sink.asked = 0
        await turns(40)
        assert (sink.asked, irqs.gsis.statistics().held) == (0, 0)
        table.write(0, BASE, 4)
        await irqs.flush()
        assert sent(sink) == [0x31]


@pytest.mark.parametrize("then", ["masked", "disabled", "closed", "programmed"])
async def test_what_is_to_be_tried_again_is_not_if_it_is_not_wanted_any_more(then):
    sink = Refusing()
    async with IrqManager(sink, retry=SOON) as irqs, MsixTable(irqs, vectors=1) as table:
        table.write_control(ENABLE)
        table.signal(0)
        sink.refuse = [NO_MEMORY]
        program(table, 0, 0x31)
        match then:
            case "masked":
                table.mask(0)
            case "disabled":
                table.write_control(0)
            case "closed":
                await table.aclose()
            case _:
                program(table, 0, 0x32)
        sink.asked = 0
        await turns(40)
        await irqs.flush()
        assert sent(sink) == ([0x32] if then == "programmed" else [])
        assert sink.asked == 0
        assert irqs.gsis.statistics().held == (then == "programmed")


async def test_an_irqfd_that_cannot_be_watched_for_a_while(monkeypatch):
    sink = RecordingSink()
    async with IrqManager(sink, retry=SOON) as irqs, MsixTable(irqs, vectors=1) as table:
        table.write_control(ENABLE)
        table.signal(0)
        errors = [OSError(errno.ENOSPC, "no more watches")] * 2
        bind = Irqfds.bind

        def refuse(self, *args, **options):
            if errors:
                raise errors.pop()
            return bind(self, *args, **options)

        monkeypatch.setattr(Irqfds, "bind", refuse)
        program(table, 0, 0x31)
        assert (table.pending(0), irqs.gsis.statistics().held, irqs.routing.routes(24)[0]) == (
            True,
            0,
            IrqchipPin("ioapic", 24),  # where the default table sends it
        )
        await turns(40)
        await irqs.flush()
        assert sent(sink) == [0x31]


async def test_a_route_that_the_sink_keeps_keeps_its_gsi():
    sink, log = Refusing(), RecordingTracer()
    async with IrqManager(sink, tracer=log) as irqs, MsixTable(irqs, vectors=2) as table:
        table.write_control(ENABLE)
        table.eventfd(0)
        program(table, 0, 0x31)
        sink.refuse = [NO_MEMORY]
        table.write_control(0)
        assert log.of("msix_unroute_failed") == [{"gsis": 1, "error": repr(NO_MEMORY), "exc_info": NO_MEMORY}]
        assert (irqs.gsis.statistics().held, irqs.routing.routes(24)) == (0, (Msi(BASE, 0x31),))
        table.write_control(ENABLE)
        assert table.gsi(0) == 25, "not one that leads elsewhere"
        irqs.reset_route(24)
        table.eventfd(1)
        program(table, 1, 0x32)
        assert table.gsi(1) == 24


async def test_one_that_cannot_be_given_up_does_not_keep_others_from_theirs(monkeypatch):
    sink, log = RecordingSink(), RecordingTracer()
    nearly_full = {gsi: Msi(0, gsi) for gsi in range(24, 4095)}
    async with IrqManager(sink, routing=nearly_full, tracer=log) as irqs, MsixTable(irqs, vectors=2) as table:
        table.write_control(ENABLE)
        for vector in (0, 1):
            table.eventfd(vector)
        program(table, 0, 0x31)
        table.mask(0)
        shut = Binding.shut

        def refuse(self):
            shut(self)
            raise OSError(errno.EIO, "no")

        with monkeypatch.context() as patch:
            patch.setattr(Binding, "shut", refuse)
            program(table, 1, 0x32)
        table.signal(1)
        await irqs.flush()
        assert (sent(sink), table.gsi(0), table.gsi(1)) == ([0x32], None, 4095)
        assert len(log.of("msix_vector_failed")) == 1


@pytest.mark.parametrize("room", [0, 1, 2])
async def test_a_restore_without_room_for_descriptors_changes_nothing(room):
    async with IrqManager(RecordingSink()) as irqs:
        async with MsixTable(irqs, vectors=2) as table:
            table.write_control(ENABLE)
            for vector in (0, 1):
                table.signal(vector)
                program(table, vector, 0x31, masked=bool(vector))
            table.mask(0)
            table.signal(0)
            await irqs.pause()
            state = json.loads(json.dumps(table.snapshot()))
            irqs.resume()
            before = dict(irqs.routing)
        async with MsixTable(irqs, vectors=2) as other:
            await irqs.pause()
            with room_for_fds(room), pytest.raises(SnapshotError, match="Too many open files"):
                other.restore(state)
            assert (irqs.gsis.statistics().held, irqs.irqfds) == (0, ())
            assert dict(irqs.routing) == {gsi: routes for gsi, routes in before.items() if gsi < 24}
            other.restore(state)
            irqs.resume()


async def test_a_restore_that_cannot_be_undone_undoes_the_rest(monkeypatch):
    sink = Refusing()
    state = {
        "version": 1,
        "vectors": 3,
        "enabled": True,
        "function_mask": False,
        "entries": [[0, BASE, 1, 1, 24, 0], [1, BASE, 2, 1, 25, 0], [2, BASE, 3, 1, 26, 0]],
    }
    async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=3) as table:
        await irqs.pause()
        # The third route is refused, and so is the first one's end.
        sink.refuse = [None, None, NO_MEMORY, NO_MEMORY, None]
        with pytest.raises(OSError, match="no memory"):
            table.restore(state)
        assert (irqs.irqfds, irqs.gsis.statistics().held) == ((), 0)
        irqs.set_routing({})
        table.restore(state)
        irqs.resume()


# ------------------------------------------------------------------------------------------------ what a guest repeats


def told(log, event):
    """How many times it was told, and how many it stands for by then."""
    events = log.of(event)
    return len(events), len(events) + sum(fields.get("suppressed", 0) for fields in events)


async def test_bad_accesses_are_told_in_time_and_counted():
    log = RecordingTracer()
    async with IrqManager(RecordingSink(), tracer=log) as irqs, MsixTable(irqs, vectors=2) as table:
        for number in range(10_000):
            table.read(1 + 4 * number, 4)
        lines, stand_for = told(log, "msix_access_ignored")
        assert lines < 20
        assert stand_for == 10_000
        table.write(1, 0, 4)
        assert log.of("msix_access_ignored")[-1] == {"write": True, "offset": 1, "size": 4}, "the first of its kind"


async def test_register_writes_to_and_fro_are_told_in_time_and_counted():
    log = RecordingTracer()
    async with IrqManager(RecordingSink(), tracer=log) as irqs, MsixTable(irqs, vectors=1) as table:
        table.eventfd(0)
        program(table, 0, 0x31)
        for number in range(1000):
            table.write_control(ENABLE)
            table.write_control(ENABLE | FUNCTION_MASK)
            table.mask(0)
            table.write(8, number, 4)
            table.write_control(ENABLE)
            table.unmask(0)
            table.write_control(0)
        assert len(log.events) < 200
        assert told(log, "msix_control")[1] >= 3 * 1000
        before = len(log.of("irqfd_masked"))
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            for _ in range(20):
                irqfd.mask()
                irqfd.unmask()
        assert len(log.of("irqfd_masked")) - before == 20, "a program's own are each told"


async def test_messages_that_cannot_be_sent_are_told_in_time_and_counted():
    log = RecordingTracer()
    async with IrqManager(RecordingSink(), tracer=log) as irqs, MsixTable(irqs, vectors=2) as table:
        table.write_control(ENABLE)
        for vector in (0, 1):
            table.eventfd(vector)
            table.unmask(vector)
            table.write(vector * 16, 2, 8)
        for _ in range(1000):
            table.write(0, 1, 4)
        assert told(log, "msix_vector_failed") == (5, 1001), "the last one is told with the next"
        assert [fields["vector"] for fields in log.of("msix_vector_failed")[:2]] == [0, 1], "the first of each vector"
        assert len(log.events) < 60


# ------------------------------------------------------------------------------------------------ numbers and copies


async def test_other_libraries_integers_become_plain_ones():
    sink = RecordingSink()
    async with (
        IrqManager(sink) as irqs,
        MsixTable(irqs, vectors=int64(2), devid=int64(7), pba_offset=int64(32)) as table,
    ):
        assert (len(table), table.pba_offset, type(table.pba_offset)) == (2, 32, int)
        table.write_control(ENABLE)
        table.write(int64(16), int64(BASE), int64(8))
        table.write(int64(24), int64(0x31), int64(8))
        table.signal(int64(1))
        await irqs.flush()
        assert table.read(int64(16), int64(8)) == BASE
        await table.set_message(int64(1), address=int64(BASE), data=int64(0x32))
        table.signal(1)
        await irqs.flush()
        assert sent(sink) == [0x31, 0x32]
        message = sink.interrupts[0].route
        assert isinstance(message, Msi)
        assert {type(number) for number in (message.address, message.data, message.devid)} == {int}
        await irqs.pause()
        json.dumps([irqs.snapshot(), table.snapshot()])
        irqs.resume()


@pytest.mark.parametrize("number", [True, 1.0, "1", None, -1, 2])
async def test_what_is_no_vector(number):
    async with IrqManager(RecordingSink()) as irqs, MsixTable(irqs, vectors=2) as table:
        for use in (table.eventfd, table.signal, table.mask, table.unmask, table.masked, table.pending, table.gsi):
            with pytest.raises(ValueError, match=r"vectors are 0\.\.1, not"):
                use(number)
        with EventFd() as eventfd, pytest.raises(ValueError, match=r"vectors are 0\.\.1, not"):
            MsixTable(irqs, vectors=2, eventfds={number: eventfd})


@pytest.mark.parametrize("options", [{"vectors": True}, {"vectors": 1.0}, {"vectors": 1, "pba_offset": True}])
async def test_what_is_no_number(options):
    async with IrqManager(RecordingSink()) as irqs:
        with pytest.raises(ValueError, match="not"):
            MsixTable(irqs, **options)
        with pytest.raises(RoutingError):
            MsixTable(irqs, vectors=1, devid=True)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
async def test_a_table_is_not_copied(how):
    async with IrqManager(RecordingSink()) as irqs, MsixTable(irqs, vectors=1) as table:
        eventfd = table.eventfd(0)
        with pytest.raises(TypeError, match=r"cannot be copied or pickled. Take its snapshot\(\)"):
            how(table)
        assert not eventfd.closed
    await asyncio.sleep(0)
