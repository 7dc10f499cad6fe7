"""Snapshot and restore: through JSON, here and elsewhere, and with every way a state can be wrong."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import threading
from typing import cast

import pytest

from aioirqfd import EventFd, IrqchipPin, IrqManager, Msi, Retry, SnapshotError, State, WouldBlock
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import FlakySink, GatedSink
from tests.irqfd.helpers import MSI, OTHER_MSI, SlowSink, asserted, deasserted, pulse, turns, write

WIDE = Msi(2**64 - 1, 2**32 - 1, devid=7)
ROUTING = {5: MSI, 6: [IrqchipPin("pic", 6), IrqchipPin("ioapic", 6)], 7: WIDE, 9: IrqchipPin("ioapic", 9)}


def count(eventfd):
    try:
        return eventfd.read_nowait()
    except WouldBlock:
        return 0


def irqfd_states(irqs):
    return cast("list[dict[str, object]]", irqs.snapshot()["irqfds"])


class Machine:
    """A manager with an irqfd on each gsi of ROUTING, 9 being level-triggered."""

    def __init__(self, sink=None, **options):
        self.sink = RecordingSink() if sink is None else sink
        self.irqs = IrqManager(self.sink, routing=ROUTING, **options)
        self.kicks = {gsi: EventFd() for gsi in ROUTING}
        self.unmask = EventFd()
        self.counts = []

    async def on_wakeup(self, irqfd, number):
        self.counts.append(number)

    async def __aenter__(self):
        await self.irqs.__aenter__()
        self.irqfds = {
            gsi: self.irqs.assign(
                kick,
                gsi=gsi,
                resamplefd=self.unmask if gsi == 9 else None,
                wakeup=self.on_wakeup if gsi == 6 else (),
            )
            for gsi, kick in self.kicks.items()
        }
        return self

    async def __aexit__(self, *error):
        try:
            await self.irqs.__aexit__(*error)
        finally:
            for eventfd in (*self.kicks.values(), self.unmask):
                eventfd.close()


async def a_rich_state():
    async with Machine() as machine:
        machine.kicks[9].signal()
        machine.irqfds[5].mask()
        machine.kicks[5].signal(2)
        await machine.irqs.pause()
        machine.kicks[6].signal(3)
        write(machine.kicks[7], 4)
        return machine.irqs.snapshot()


async def test_what_it_looks_like():
    assert await a_rich_state() == {
        "version": 1,
        "routing": [
            [5, [["msi", 0xFEE00000, 0x31, None]]],
            [6, [["pic", 6], ["ioapic", 6]]],
            [7, [["msi", 2**64 - 1, 2**32 - 1, 7]]],
            [9, [["ioapic", 9]]],
        ],
        "irqfds": [
            {"gsi": 5, "level": False, "masked": True, "pending": True, "count": 2},
            {"gsi": 6, "level": False, "masked": False, "pending": True, "count": 3},
            {"gsi": 7, "level": False, "masked": False, "pending": True, "count": 4},
            {"gsi": 9, "level": True, "masked": False, "pending": False, "count": 0},
        ],
        "asserted": [[9, [["ioapic", 9]]]],
    }


@pytest.mark.parametrize("make", [RecordingSink, SlowSink])
async def test_restored_through_json_into_another_machine(make):
    state = json.loads(json.dumps(await a_rich_state()))
    async with Machine(make()) as machine:
        machine.irqs.set_routing({})
        await machine.irqs.pause()
        machine.irqs.restore(state)
        assert dict(machine.irqs.routing) == dict(IrqManager(RecordingSink(), routing=ROUTING).routing)
        await turns()
        assert [i for i in machine.sink.interrupts if i != asserted(9)] == []
        assert {gsi: irqfd.pending for gsi, irqfd in machine.irqfds.items()} | {9: False} == {
            5: True,
            6: True,
            7: True,
            9: False,
        }
        machine.irqs.resume()
        await machine.irqs.flush()
        assert sorted(map(repr, machine.sink.interrupts)) == sorted(
            map(
                repr,
                [
                    pulse(6, IrqchipPin("pic", 6)),
                    pulse(6, IrqchipPin("ioapic", 6)),
                    pulse(7, WIDE),
                    asserted(9),
                ],
            )
        )
        assert machine.counts == [3]
        assert machine.irqs._irqfds.lines.asserted() == {9: (IrqchipPin("ioapic", 9),)}
        machine.irqfds[5].unmask()
        machine.irqs.ack(9)
        await machine.irqs.flush()
        await turns()
        assert machine.sink.interrupts[-2:] in (
            [pulse(5, MSI), deasserted(9)],
            [deasserted(9), pulse(5, MSI)],
        )
        assert count(machine.unmask) == 1


async def test_restored_into_the_same_machine_again_and_again_it_is_injected_once():
    async with Machine() as machine:
        await machine.irqs.pause()
        machine.kicks[6].signal(3)
        state = machine.irqs.snapshot()
        for _ in range(3):
            machine.irqs.restore(state)
        assert machine.irqs.snapshot() == state
        machine.irqs.resume()
        await machine.irqs.flush()
        assert machine.counts == [3]
        assert len(machine.sink.interrupts) == 2


async def test_what_was_owed_here_and_is_in_no_snapshot_is_not_forgotten():
    async with Machine() as machine:
        await machine.irqs.pause()
        empty = machine.irqs.snapshot()
        machine.kicks[6].signal(3)
        assert irqfd_states(machine.irqs)[1]["count"] == 3
        machine.irqs.resume()
        await machine.irqs.flush()
        await machine.irqs.pause()
        machine.kicks[6].signal(4)
        machine.irqs.restore(empty)
        machine.irqs.resume()
        await machine.irqs.flush()
        assert machine.counts == [3, 4]


@pytest.mark.parametrize("how", ["masked", "failing"])
async def test_what_is_pending_here_and_in_no_snapshot_is_not_forgotten(how):
    sink = FlakySink(1)
    async with IrqManager(sink, retry=Retry(5, 3600, 3600)) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            await irqs.pause()
            empty = irqs.snapshot()
            irqs.resume()
            if how == "masked":
                irqfd.mask()
                sink.failures = 0
            kick.signal(2)
            while irqfd.state not in {State.RETRYING, State.PENDING}:
                await asyncio.sleep(0)
            await irqs.pause()
            irqs.restore(empty)
            assert (irqfd.masked, irqfd.pending) == (False, True)
            irqs.restore(empty)
            assert irqfd_states(irqs)[0]["count"] == 2, "and not twice"
            irqs.resume()
            await irqs.flush()
            assert sink.interrupts == [pulse(5)]


async def test_restored_and_closed_without_resuming_it_is_given_back():
    state = await a_rich_state()
    async with Machine() as machine:
        dup = EventFd.from_fd(os.dup(machine.kicks[6].fileno()), owns=True)
        await machine.irqs.pause()
        machine.irqs.restore(state)
    assert count(dup) == 3
    dup.close()


async def test_what_was_injected_just_before_the_pause_counts_for_neither_snapshot_nor_deassign():
    # The counter module leaves counts unread for a while after the injection.
    async with Machine() as machine:
        kick = machine.kicks[5]
        for _ in range(3):
            write(kick)
            await machine.irqs.flush()
        await machine.irqs.pause()
        write(kick)
        states = irqfd_states(machine.irqs)
        assert [state["count"] for state in states if state["gsi"] == 5] == [1]
        machine.irqs.resume()
        await machine.irqs.flush()
        assert len(machine.sink.interrupts) == 4
        for _ in range(3):
            write(kick)
            await machine.irqs.flush()
        await machine.irqs.pause()
        write(kick, 2)
        await machine.irqs.deassign(machine.irqfds[5])
        assert count(kick) == 2
        assert machine.irqfds[5].statistics().signals == machine.irqfds[5].statistics().injections == 7


async def test_a_snapshot_takes_what_it_counts_and_leaves_what_comes_later():
    kick = EventFd()
    async with IrqManager(RecordingSink()) as irqs:
        irqs.assign(kick, gsi=5)
        await irqs.pause()
        kick.signal(2)
        assert irqfd_states(irqs)[0]["count"] == 2
        kick.signal(5)
        write(kick)
    assert count(kick) == 6
    kick.close()


@pytest.mark.parametrize("there", ["written", "at assign"])
async def test_a_pending_interrupt_whose_count_was_left_unread_is_injected_once_in_all(there):
    with EventFd(3 if there == "at assign" else 0) as kick:
        async with IrqManager(RecordingSink()) as irqs:
            irqfd = irqs.assign(kick, gsi=5, masked=True)
            if there == "written":
                write(kick, 3)
            while irqfd.state != State.PENDING:  # seen by the loop, though nobody asked how often
                await asyncio.sleep(0)
            await irqs.pause()
            state = irqs.snapshot()
            assert irqfd_states(irqs)[0]["pending"] is True
            assert irqfd_states(irqs)[0]["count"] == 3
        assert count(kick) == 0, "it is the snapshot's"
        sink = RecordingSink()
        async with IrqManager(sink) as irqs:
            irqfd = irqs.assign(kick, gsi=5)
            await irqs.pause()
            irqs.restore(state)
            irqs.resume()
            assert sink.interrupts == []
            irqfd.unmask()
            await irqs.flush()
            assert sink.interrupts == [pulse(5)]


async def test_a_snapshot_that_is_followed_by_a_resume_took_nothing():
    async with Machine() as machine:
        await machine.irqs.pause()
        machine.kicks[6].signal(2)
        machine.irqs.snapshot()
        machine.irqs.resume()
        await machine.irqs.flush()
        assert machine.counts == [2]
        await machine.irqs.pause()
        machine.kicks[6].signal(5)
        machine.irqs.snapshot()
        machine.irqs.resume()
        irqfd = machine.irqfds[6]
        irqfd.mask()
        machine.kicks[6].signal(1)
        await machine.irqs.deassign(irqfd)
        assert sum(machine.counts) + count(machine.kicks[6]) == 8


async def test_what_was_there_when_it_was_assigned_and_a_signal_on_top():
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd(3) as kick:
            irqs.assign(kick, gsi=5)
            await irqs.flush()
            await irqs.pause()
            assert irqfd_states(irqs)[0] | {"gsi": 0} == {
                "gsi": 0,
                "level": False,
                "masked": False,
                "pending": False,
                "count": 0,
            }
            assert count(kick) == 3
            write(kick)
            assert irqfd_states(irqs)[0]["pending"] is True


async def test_a_failed_injection_is_owed():
    sink = FlakySink(1)
    async with IrqManager(sink, retry=Retry(5, 3600, 3600)) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal(2)
            while irqfd.state is not State.RETRYING:
                await asyncio.sleep(0)
            await irqs.pause()
            state = irqs.snapshot()
            (one,) = irqfd_states(irqs)
            assert (one["pending"], one["count"]) == (True, 2)
            irqs.restore(state)
            irqs.resume()
            await irqs.flush()
            assert sink.interrupts == [pulse(5)], "at once, and not in an hour"


async def test_a_mask_that_a_snapshot_brings_holds():
    async with Machine() as machine:
        machine.kicks[5].signal()
        await machine.irqs.pause()
        machine.irqs.restore(await a_rich_state())
        machine.irqs.resume()
        before = len(machine.sink.interrupts)
        machine.kicks[5].signal()
        await machine.irqs.flush()
        assert machine.irqfds[5].masked
        assert all(interrupt.gsi != 5 for interrupt in machine.sink.interrupts[before:])


# ------------------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize("how", ["sink", "handler", "leaving"])
async def test_not_while_something_is_being_injected_after_a_pause_that_was_given_up(how):
    gated, gate = GatedSink(), asyncio.Event()
    sink = RecordingSink() if how == "handler" else gated

    async def on_wakeup(irqfd, count):
        await gate.wait()

    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=on_wakeup if how == "handler" else ())
            kick.signal(2)
            await turns()
            pausing = asyncio.ensure_future(irqs.pause())
            deassigning = asyncio.ensure_future(irqs.deassign(irqfd)) if how == "leaving" else None
            await turns()
            pausing.cancel()
            await turns()
            for call in (irqs.snapshot, lambda: irqs.restore({})):
                with pytest.raises(SnapshotError, match="let it finish"):
                    call()
            gate.set()
            gated.open()
            await irqs.pause()
            entries = irqs.snapshot()["irqfds"]
            if deassigning is not None:
                await deassigning
            injected = len(sink.interrupts)
            assert injected == (how != "handler")
            assert [entry["pending"] for entry in cast("list[dict[str, object]]", entries)] == {
                "sink": [False],
                "handler": [True],
                "leaving": [],
            }[how]
            irqs.resume()
            await irqs.flush()
            assert len(sink.interrupts) == 1


async def test_only_while_paused():
    async with Machine() as machine:
        with pytest.raises(SnapshotError, match="pause"):
            machine.irqs.snapshot()
        with pytest.raises(SnapshotError, match="pause"):
            machine.irqs.restore(await a_rich_state())


def tamper(path, value):
    def change(state):
        *way, last = path
        where = state
        for key in way:
            where = where[key]
        if value is KeyError:
            del where[last]
        else:
            where[last] = value

    return change


TAMPERED = {
    "no version": tamper(["version"], KeyError),
    "another version": tamper(["version"], 2),
    "a version that is no number": tamper(["version"], "1"),
    "a version that is a bool": tamper(["version"], True),
    "something more": tamper(["more"], 1),
    "routing that is no list": tamper(["routing"], {}),
    "an entry that is no pair": tamper(["routing", 0], [5]),
    "a gsi twice": tamper(["routing", 1], [5, [["ioapic", 5]]]),
    "a gsi that cannot be routed": tamper(["routing", 0, 0], 4096),
    "a gsi that is a bool": tamper(["routing", 0, 0], True),
    "routes that are no list": tamper(["routing", 0, 1], "msi"),
    "an unknown chip": tamper(["routing", 0, 1, 0], ["lapic", 5]),
    "an unknown pin": tamper(["routing", 0, 1, 0], ["ioapic", 24]),
    "half a message": tamper(["routing", 0, 1, 0], ["msi", 1]),
    "a message out of range": tamper(["routing", 0, 1, 0], ["msi", 2**64, 0, None]),
    "two routes to a chip": tamper(["routing", 0, 1], [["ioapic", 5], ["ioapic", 6]]),
    "irqfds that are no list": tamper(["irqfds"], 4),
    "too few irqfds": tamper(["irqfds", 0], KeyError),
    "another gsi": tamper(["irqfds", 0, "gsi"], 8),
    "a negative gsi": tamper(["irqfds", 0, "gsi"], -1),
    "no gsi": tamper(["irqfds", 0, "gsi"], KeyError),
    "a level elsewhere": tamper(["irqfds", 0, "level"], True),
    "a mask that is a number": tamper(["irqfds", 0, "masked"], 1),
    "a pending that is a number": tamper(["irqfds", 0, "pending"], 0),
    "a negative count": tamper(["irqfds", 0, "count"], -1),
    "a count that is a bool": tamper(["irqfds", 0, "count"], True),
    "a count without pending": tamper(["irqfds", 3, "count"], 1),
    "an irqfd that is no dict": tamper(["irqfds", 0], []),
    "something more about an irqfd": tamper(["irqfds", 0, "more"], 1),
    "a line that nobody drives": tamper(["asserted"], [[5, [["ioapic", 5]]]]),
    "a line without a pin": tamper(["asserted"], [[9, []]]),
    "a message for a line": tamper(["asserted"], [[9, [["msi", 0, 0, None]]]]),
    "asserted that is no list": tamper(["asserted"], None),
    "a count that cannot be printed": tamper(["irqfds", 0, "count"], 10**5000),
    "a version that cannot be printed": tamper(["version"], -(10**5000)),
    "a pin that cannot be printed": tamper(["routing", 0, 1, 0], ["ioapic", 10**5000]),
    "a field that cannot be printed": tamper([10**5000], 1),
    "a state within itself": lambda state: state["routing"].append(state),
}


@pytest.mark.parametrize("what", TAMPERED)
async def test_a_wrong_state_is_refused_and_nothing_changed(what):
    good = json.loads(json.dumps(await a_rich_state()))
    bad = copy.deepcopy(good)
    TAMPERED[what](bad)
    async with Machine() as machine:
        machine.irqs.set_routing({7: OTHER_MSI})
        machine.kicks[7].signal()
        machine.irqfds[7].mask()
        machine.kicks[7].signal(3)
        await machine.irqs.pause()
        before = machine.irqs.snapshot()
        interrupts = list(machine.sink.interrupts)
        with pytest.raises(SnapshotError):
            machine.irqs.restore(bad)
        assert machine.irqs.snapshot() == before
        assert machine.sink.interrupts == interrupts
        machine.irqs.restore(good)


@pytest.mark.parametrize("state", [None, [], 5, "{}", {}])
async def test_what_is_no_state(state):
    async with Machine() as machine:
        await machine.irqs.pause()
        with pytest.raises(SnapshotError):
            machine.irqs.restore(state)


async def test_more_irqfds_here_than_there_and_the_other_way_round():
    state = await a_rich_state()
    async with Machine() as machine:
        with EventFd() as extra:
            irqfd = machine.irqs.assign(extra, gsi=5)
            await machine.irqs.pause()
            with pytest.raises(SnapshotError, match="more irqfds here"):
                machine.irqs.restore(state)
            await machine.irqs.deassign(irqfd)
            await machine.irqs.deassign(machine.irqfds[6])
            with pytest.raises(SnapshotError, match="fewer irqfds here"):
                machine.irqs.restore(state)


# ---------------------------------------------------------------------------------------------------------- migration


@pytest.mark.parametrize("rounds", [60, pytest.param(1000, marks=pytest.mark.slow)])
async def test_migrated_again_and_again_with_signals_from_a_thread(rounds):
    """Each round another manager takes over, with a snapshot and the same eventfds. Nothing is lost, no count is wrong."""
    gsis = range(3)
    kicks = [EventFd() for _ in gsis]
    counts = dict.fromkeys(gsis, 0)
    sent = dict.fromkeys(gsis, 0)
    injected = dict.fromkeys(gsis, 0)
    begun_after = {}
    stop = threading.Event()

    class Sink:
        async def inject(self, interrupt):
            await asyncio.sleep(0)
            injected[interrupt.gsi] += 1

    async def on_wakeup(irqfd, number):
        counts[irqfd.gsi] += number
        begun_after[irqfd.gsi] = True

    def device():
        turn = 0
        while not stop.is_set():
            turn += 1
            for gsi, kick in enumerate(kicks):
                sent[gsi] += 1 + turn % 3
                (kick.signal if turn % 2 else lambda n, kick=kick: write(kick, n))(1 + turn % 3)
            if turn % 50 == 0:
                stop.wait(0.0005)

    thread = threading.Thread(target=device)
    thread.start()
    state = None
    for number in range(rounds + 1):
        irqs = IrqManager(Sink())
        await irqs.__aenter__()
        for gsi, kick in enumerate(kicks):
            irqs.assign(kick, gsi=gsi, wakeup=on_wakeup, masked=state is not None)
        await irqs.pause()
        if state is not None:
            irqs.restore(json.loads(json.dumps(state)))
        irqs.resume()
        await asyncio.sleep(0)
        if number == rounds:
            stop.set()
            while thread.is_alive():
                await asyncio.sleep(0)
            thread.join()
            begun_after.clear()
            for gsi, kick in enumerate(kicks):
                sent[gsi] += 1
                kick.signal()
            await irqs.flush()
            assert begun_after == dict.fromkeys(gsis, True)
        else:
            await irqs.pause()
            state = irqs.snapshot()
        await irqs.aclose()
    assert counts == sent
    assert all(0 < injected[gsi] <= sent[gsi] for gsi in gsis)
    assert [count(kick) for kick in kicks] == [0, 0, 0]
    for kick in kicks:
        kick.close()


@pytest.mark.parametrize("ends", ["resume", "close", "restore"])
async def test_signals_that_a_snapshot_has_of_an_irqfd_that_was_deassigned_since(ends):
    sink = RecordingSink()
    with EventFd() as kick:
        irqs = await IrqManager(sink).__aenter__()
        irqfd = irqs.assign(kick, gsi=5, masked=True)
        kick.signal(3)
        await irqs.pause()
        state = irqs.snapshot()
        await irqs.deassign(irqfd)
        again = irqs.assign(kick, gsi=5)
        assert not again.pending, "they are the snapshot's as long as nobody goes on here"
        if ends == "restore":
            irqs.restore(state)
            again.unmask()
        if ends != "close":
            irqs.resume()
            await irqs.flush()
            assert sink.interrupts == [pulse(5)]
            assert again.statistics().signals == (3 if ends == "resume" else 0)
        await irqs.aclose()
        assert len(sink.interrupts) == (ends != "close")
        with pytest.raises(WouldBlock):
            kick.read_nowait()
