"""The tree: what is shown is what is, by path and depth; who belongs elsewhere is asked there; and nothing is kept, or done beforehand."""

# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportOptionalSubscript=false, reportGeneralTypeIssues=false
# (what is read is JSON, of whose inside no type checker knows)
from __future__ import annotations

import asyncio
import gc
import json
import os
import re

import pytest
import uvloop

from aioirqfd import EventFd, IoBus, IrqManager, Msi, MsixTable, NullTracer, Retry, State, WorkQueue, nodes
from aioirqfd.inspect import InspectError, read, write
from aioirqfd.sinks import RecordingSink
from aioirqfd.tracing import StructlogTracer
from tests.forks import in_child
from tests.inspect.helpers import blocked, elsewhere
from tests.irqfd.helpers import turns

HERE = r"inspect/test_tree\.py:\d+"


# ------------------------------------------------------------------------------------------------- by path and depth


async def test_a_part_is_found_by_its_path_and_shown_as_deep_as_was_asked():
    async with IrqManager(RecordingSink(), name="vm") as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5, name="uart")
            assert irqs.inspect("irqfds", 0) == {"uart": "..."}
            assert irqs.inspect("irqfds/uart/gsi") == 5
            assert irqs.inspect("gsi/5/irqfds") == ["uart"]
            assert irqs.inspect("gsi/5/routes") == ["ioapic pin 5"]
            assert read("managers/vm/irqfds/uart") == irqs.inspect("irqfds/uart")
            assert read("managers/vm/irqfds", 0) == {"uart": "..."}
            assert read("managers", 0) == {"vm": "..."}
            assert read("", 0)["managers"] == "..."
            assert read("", 1)["managers"] == {"vm": "..."}
            assert read("", 2)["managers"]["vm"] == irqs.inspect("", 0)
            assert read("managers/*/irqfds/*/gsi") == {"vm": {"uart": 5}}
            assert read("*/vm/stage") == {"managers": {"vm": "open"}}
            assert read("process/pid") == os.getpid()


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (
            "nothing",
            "there is no 'nothing', only process, managers, msix, buses, pci, vhost_user, vfio_user, faults, tracers",
        ),
        ("managers/0", "managers: there is no '0', only vm"),
        ("managers/vm/irqfds/x", "managers/vm: there is no 'x', only uart"),
        ("managers/vm/stage/x", "managers/vm: there is no 'x': it has no parts"),
        ("process/x", "process: there is no 'x', only pid, python, implementation, time"),
    ],
)
async def test_what_is_not_there_is_said_with_what_there_is(path, why):
    async with IrqManager(RecordingSink(), name="vm") as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5, name="uart")
            with pytest.raises(InspectError, match=f"^{re.escape(why)}$"):
                read(path)
            with pytest.raises(LookupError, match="there is no 'x'"):
                irqs.inspect("x")


async def test_all_of_it_is_json():
    queue = WorkQueue(maxsize=4)
    async with IrqManager(RecordingSink(), queue=queue, name="vm") as irqs:
        with EventFd() as kick, EventFd() as line, EventFd() as unmask:
            irqs.assign(kick, gsi=5, masked=True)
            irqs.assign(line, gsi=9, resamplefd=unmask)
            line.signal()
            async with MsixTable(irqs, vectors=2) as table:
                table.write_control(MsixTable.ENABLE)
                table.unmask(0)
                table.signal(0)
                table.signal(1)
                bus = IoBus(name="mmio")
                with bus.ioeventfd(kick, address=0x1000, length=4, datamatch=7, values=2):
                    tree = read()
                    assert json.loads(json.dumps(tree, allow_nan=False)) == tree
    assert read("managers") == {}
    assert read("msix") == {}


def test_of_two_of_one_name_the_second_has_a_number_behind_it():
    first, second = IoBus(name="mmio"), IoBus(name="mmio")
    here = set(read("buses", 0))
    assert nodes.key_of(first) == "mmio"
    assert re.fullmatch(r"mmio-\d+", nodes.key_of(second))
    assert {nodes.key_of(first), nodes.key_of(second)} <= here


async def test_of_two_irqfds_of_one_name_the_second_is_known_by_its_eventfd():
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as one, EventFd() as other:
            irqs.assign(one, gsi=5, name="kick")
            second = irqs.assign(other, gsi=6, name="kick")
            assert irqs.inspect("irqfds/*/gsi") == {"kick": 5, str(second.eventfd_id): 6}
            assert second.name == "kick"


@pytest.mark.parametrize("name", ["", "a/b", "*", "a\nb"])
async def test_a_name_is_part_of_a_path(name):
    with pytest.raises(ValueError, match="the name of a manager is part of a path"):
        IrqManager(RecordingSink(), name=name)
    with pytest.raises(TypeError, match="the name of a bus is a string, not 5"):
        IoBus(name=5)
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick:
            with pytest.raises(ValueError, match="the name of an irqfd is part of a path"):
                irqs.assign(kick, gsi=5, name=name)
            assert irqs.irqfds == ()


# ------------------------------------------------------------------------------------------------ the states are true


def marks(irqs):
    node = irqs.inspect("irqfds/kick")
    irqfd = irqs.irqfds[0]
    shown = {name: node[name] for name in ("state", "pending", "masked", "paused", "held")}
    # The same by public attributes.
    assert shown == {
        "state": irqfd.state.name,
        "pending": irqfd.pending,
        "masked": irqfd.masked,
        "paused": irqs.paused,
        "held": irqfd.held,
    }
    return {name for name, value in shown.items() if value is True} | {node["state"]}


async def test_what_waits_is_never_idle_and_says_what_for():
    gate = asyncio.Event()

    async def on_wakeup(irqfd, count):
        await gate.wait()

    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, name="kick", wakeup=on_wakeup)
            assert marks(irqs) == {"IDLE"}
            irqfd.mask()
            assert marks(irqs) == {"IDLE", "masked"}
            os.eventfd_write(kick.fileno(), 1)  # as another process does: no turn of the loop since
            assert marks(irqs) == {"PENDING", "pending", "masked"}
            assert irqs.inspect("irqfds/kick")["masked_by"].startswith("inspect/test_tree.py:")
            await irqs.pause()
            assert marks(irqs) == {"PENDING", "pending", "masked", "paused", "held"}
            irqfd.unmask()
            assert marks(irqs) == {"PENDING", "pending", "paused", "held"}
            assert "masked_by" not in irqs.inspect("irqfds/kick")
            assert re.fullmatch(HERE, irqs.inspect("paused_by"))
            irqs.resume()
            await turns(5)
            assert marks(irqs) == {"INJECTING"}
            assert re.search(rf"on_wakeup \({HERE}\), in Event\.wait$", irqs.inspect("irqfds/kick/running"))
            kick.signal()
            assert marks(irqs) == {"INJECTING_PENDING", "pending"}
            gate.set()
            await irqs.flush()
            assert marks(irqs) == {"IDLE"}
            assert irqs.inspect("irqfds/kick/running") is None


async def test_a_gsi_that_waits_for_a_route_is_held():
    async with IrqManager(RecordingSink(), routing={}, unrouted="hold") as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, name="kick")
            kick.signal()
            assert marks(irqs) == {"PENDING", "pending", "held"}
            irqs.set_route(5, Msi(0xFEE00000, 0x31))
            await irqs.flush()
            assert marks(irqs) == {"IDLE"}
            assert irqs.inspect("routes") == {
                "generation": 1,
                "others": "nowhere",
                "gsis": {"5": "msi 0xfee00000 data 0x31"},
            }
            await irqfd.aclose()
            assert (irqfd.state, irqfd.held, irqfd.pending) == (State.CLOSED, False, False)


async def test_what_waits_for_room_is_held_and_the_workers_say_where_they_stand():
    gate = asyncio.Event()

    class Slow:
        async def inject(self, interrupt):
            await gate.wait()

    async with IrqManager(Slow(), queue=WorkQueue(maxsize=1)) as irqs:
        kicks = [EventFd() for _ in range(3)]
        for gsi, kick in enumerate(kicks):
            irqs.assign(kick, gsi=gsi, name=f"kick {gsi}")
        kicks[0].signal()
        await turns(5)  # it is in the sink's hands
        kicks[1].signal()
        kicks[2].signal()
        await turns(5)
        assert [irqfd.held for irqfd in irqs.irqfds] == [False, False, True]
        assert irqs.inspect("irqfds/*/held") == {"kick 0": False, "kick 1": False, "kick 2": True}
        assert irqs.inspect("held") == 1
        (worker,) = irqs.inspect("queue/workers")
        assert "Slow.inject (inspect/test_tree.py:" in worker
        gate.set()
        await irqs.flush()
        for kick in kicks:
            kick.close()


@pytest.mark.trouble
async def test_an_irqfd_that_was_given_up_says_for_what():
    class Failing:
        async def inject(self, interrupt):
            raise OSError(5, "broken")

    async with IrqManager(Failing(), retry=Retry(attempts=0)) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, name="kick")
            kick.signal()
            await turns(5)
            assert irqs.inspect("irqfds/kick/error") == "OSError(5, 'broken')"
            assert irqs.inspect("broken") == 1
            await irqfd.aclose()
        irqs._irqfds.delivery.first_error = None


async def test_a_line_names_those_who_hold_it_up():
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as one, EventFd() as other, EventFd() as third, EventFd() as unmask:
            irqs.assign(one, gsi=9, resamplefd=unmask, name="nic")
            disk = irqs.assign(other, gsi=9, resamplefd=unmask, name="disk")
            irqs.assign(third, gsi=9, resamplefd=unmask, name="usb")
            assert irqs.inspect("lines/9/held_by") == []
            one.signal()
            other.signal()
            await irqs.flush()
            line = irqs.inspect("lines/9")
            assert (line["up"], line["held_by"], line["up_at"]) == (True, ["nic", "disk"], ["ioapic pin 9"])
            assert line["up_for"] >= 0
            assert irqs.inspect("gsi/9/line/held_by") == ["nic", "disk"]
            await irqs.deassign(disk)
            assert irqs.inspect("lines/9/held_by") == ["nic"]
            irqs.ack(9)
            line = irqs.inspect("lines/9")
            assert (line["up"], line["held_by"], line["up_at"], line["up_for"]) == (False, [], [], None)
            third.signal()
            assert irqs.inspect("lines/9/held_by") == ["usb"]


async def test_a_line_that_the_sink_took_its_time_for_names_its_holder_too():
    class Slow:
        async def inject(self, interrupt):
            await asyncio.sleep(0)

    async with IrqManager(Slow()) as irqs:
        with EventFd() as kick, EventFd() as unmask:
            irqs.assign(kick, gsi=9, resamplefd=unmask, name="nic")
            kick.signal()
            await irqs.flush()
            assert irqs.inspect("lines/9/held_by") == ["nic"]


async def test_explain_is_a_part_that_is_only_shown_by_its_path():
    async with IrqManager(RecordingSink(), name="vm") as irqs:
        assert read("managers/vm/explain") == "nothing stops its 0 irqfds."
        with EventFd() as kick:
            irqs.assign(kick, gsi=5, name="kick").mask()
            assert "explain" not in irqs.inspect("irqfds/kick")
            said = irqs.explain(5)
            assert read("managers/vm/gsi/5/explain") == said
            assert read("managers/vm/irqfds/kick/explain") == said
            assert read("managers/*/explain") == {"vm": said}


async def test_a_sink_of_ones_own_shows_itself_and_what_it_raises_spoils_nothing_else():
    class Mine:
        broken = False

        async def inject(self, interrupt):
            pass

        def inspect(self):
            if self.broken:
                raise OSError(5, "broken")
            return {"level": 3, "inner": {1: {2}}, "far": float("inf"), "object": IrqManager}

    sink = Mine()
    async with IrqManager(sink, name="vm") as irqs:
        shown = {"type": Mine.__qualname__, "level": 3, "inner": {"1": [2]}, "far": "inf", "object": repr(IrqManager)}
        assert irqs.inspect("sink") == shown
        sink.broken = True
        assert irqs.inspect()["sink"] == {"error": "OSError(5, 'broken')"}
        assert irqs.inspect("stage") == "open"
        with pytest.raises(OSError, match="broken"):
            read("managers/vm/sink")


# ------------------------------------------------------------------------------------------------------ other threads


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
async def test_what_belongs_to_another_loop_is_asked_there(new_loop):
    with elsewhere("other", new_loop):
        async with IrqManager(RecordingSink(), name="here"):
            assert read("managers/*/irqfds/*/gsi", timeout=60) == {"here": {}, "other": {"kick": 5}}
            assert read("managers/other/gsi/5/explain", timeout=60).startswith("kick (gsi 5): no signal has come")


def test_it_is_asked_from_a_thread_without_a_loop():
    with elsewhere("other"):
        assert read("managers/other/stage", timeout=60) == "open"


async def test_a_loop_that_does_not_answer_costs_the_time_limit_and_no_other_answer():
    with elsewhere("other") as loop:
        async with IrqManager(RecordingSink(), name="here"):
            with blocked(loop):
                why = "managers/other: its event loop has not answered in time: it is busy, or waits in a call that blocks"
                with pytest.raises(InspectError, match=f"^{why}$"):
                    read("managers/other", timeout=0)
                assert read("managers/*/stage", timeout=0) == {"here": "open", "other": {"error": why}}
                with pytest.raises(InspectError, match="has not answered in time"):
                    write("managers/other/stage", 1, timeout=0)
            assert read("managers/other/stage", timeout=60) == "open"


async def test_one_alone_that_has_no_such_part_says_so_whatever_else_is_asked_of_it():
    async with IrqManager(RecordingSink(), name="vm"):
        with pytest.raises(InspectError, match="there is no 'nothing'"):
            read("managers/vm/nothing/*")


def test_a_loop_that_is_closed_or_does_not_run():
    loop = asyncio.new_event_loop()
    irqs = IrqManager(RecordingSink(), name="vm")
    loop.run_until_complete(irqs.__aenter__())
    with pytest.raises(InspectError, match=r"^managers/vm: its event loop is not running$"):
        read("managers/vm")
    loop.run_until_complete(irqs.aclose())
    loop.close()
    assert "vm" not in read("managers")

    bus = IoBus()
    nodes.add("buses", bus, lambda _: {}, name="of a closed loop", loop=lambda _: loop)
    with pytest.raises(InspectError, match=r"^buses/of a closed loop: its event loop is closed$"):
        read("buses/of a closed loop")
    assert read("buses")["of a closed loop"] == {"error": "buses/of a closed loop: its event loop is closed"}


# ----------------------------------------------------------------------------------------- nothing kept, nothing done


def test_nothing_is_kept_alive():
    bus = IoBus(name="short")
    assert "short" in read("buses")
    del bus
    gc.collect()
    assert "short" not in read("buses")


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
async def test_a_manager_that_is_dropped_open_is_gone():
    irqs = IrqManager(RecordingSink(), name="dropped")
    await irqs.__aenter__()
    assert "dropped" in read("managers")
    del irqs
    gc.collect()
    assert "dropped" not in read("managers")
    await turns(5)


async def test_nothing_is_computed_while_nobody_asks(monkeypatch):
    asked = []
    monkeypatch.setattr("aioirqfd.irqfd.manager_node.of_irqfd", lambda *_: asked.append("irqfd") or {})
    monkeypatch.setattr("aioirqfd.irqfd.explain.standing", lambda _: asked.append("standing") or "")
    monkeypatch.setattr(nodes, "look", lambda *_: asked.append("look"))

    class Sink(RecordingSink):
        def inspect(self):
            asked.append("sink")
            return {}

    async with IrqManager(Sink()) as irqs:
        with EventFd() as kick, EventFd() as line, EventFd() as unmask:
            irqs.assign(kick, gsi=5)
            irqs.assign(line, gsi=9, resamplefd=unmask)
            for _ in range(100):
                kick.signal()
                line.signal()
                await irqs.flush()
                irqs.ack(9)
    assert asked == []


def test_an_error_keeps_nothing_alive_until_the_collector_comes():
    gc.disable()
    try:
        tracer = StructlogTracer(object(), name="short")
        refused = 0
        try:  # pytest.raises() keeps what it has caught
            write("tracers/short/level", 5)
        except ValueError:
            refused += 1
        try:
            read("tracers/short/x")
        except InspectError:
            refused += 1
        assert refused == 2
        del tracer
        assert "short" not in read("tracers")
    finally:
        gc.enable()


def test_a_forked_child_has_nothing_of_its_parents():
    bus = IoBus(name="parent")
    assert "parent" in read("buses")

    def look():
        assert "parent" not in read("buses")

    assert in_child(look) == 0
    assert nodes.key_of(bus) == "parent"


async def test_looking_changes_no_state_and_loses_no_interrupt():
    sink = RecordingSink()
    async with IrqManager(sink, tracer=NullTracer()) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, name="kick")
            for turn in range(20):
                kick.signal()
                if turn % 3 == 0:
                    irqs.inspect()
                if turn % 4 == 1:
                    irqfd.mask()
                    irqs.inspect()
                    irqfd.unmask()
            await irqs.flush()
            assert irqfd.statistics().signals == 20
            assert irqfd.statistics().injections == len(sink.interrupts)


# ------------------------------------------------------------------------------------------------------------ writing


def test_the_level_of_a_tracer_is_written_at_run_time():
    logged = []

    class Logger:
        def __getattr__(self, level):
            return lambda event, **fields: logged.append((level, event))

    tracer = StructlogTracer(Logger(), name="log")
    tracer.emit("irqfd_masked")
    assert read("tracers/log") == {"type": "StructlogTracer", "per_interrupt": False, "level": "debug"}
    write("tracers/log/level", "warning")
    assert (tracer.level, read("tracers/log/level")) == ("warning", "warning")
    tracer.emit("irqfd_masked")
    tracer.emit("queue_full")
    tracer.level = "off"
    tracer.emit("irqfd_broken")
    assert logged == [("info", "irqfd_masked"), ("warning", "queue_full")]
    with pytest.raises(ValueError, match="a level is one of debug, info, warning, error, off, not 'loud'"):
        write("tracers/log/level", "loud")
    with pytest.raises(ValueError, match="not 3"):
        StructlogTracer(Logger(), level=3)


async def test_only_a_setting_can_be_written():
    async with IrqManager(RecordingSink(), name="vm"):
        with pytest.raises(InspectError, match=r"^managers/vm: stage can be read only$"):
            write("managers/vm/stage", "closed")
        with pytest.raises(InspectError, match="there is no 'x'"):
            write("managers/vm/x", 1)
        for path in ("managers/none/level", "managers", "", "process/pid"):
            with pytest.raises(InspectError, match=f"there is nothing to be set at '{path}'"):
                write(path, 1)
