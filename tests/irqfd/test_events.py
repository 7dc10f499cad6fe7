"""What a tracer hears of a manager."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# (what is of another kind fails the test, as it should)
from __future__ import annotations

import pytest

from aioirqfd import EventFd, InjectionError, IrqManager, MsixTable, Retry
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import FlakySink, RecordingTracer
from tests.irqfd.helpers import MSI, SlowSink
from tests.irqfd.msix import program


async def test_events_of_a_whole_life():
    tracer = RecordingTracer()
    async with IrqManager(RecordingSink(), tracer=tracer) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal(4)
            irqs.set_routing({5: MSI})
            irqfd.mask()
            irqfd.unmask()
            await irqs.pause()
            irqs.resume()
    assert tracer.names == [
        "irqfd_assigned",
        "routing_changed",
        "irqfd_masked",
        "irqfd_unmasked",
        "manager_paused",
        "manager_resumed",
        "irqfd_deassigned",
    ]
    assert tracer.of("irqfd_assigned")[0] | {"fd": 0, "eventfd_id": 0} == {
        "gsi": 5,
        "fd": 0,
        "eventfd_id": 0,
        "resample": False,
        "offloaded": False,
        "masked": False,
    }
    last = tracer.of("irqfd_deassigned")[0]
    assert (last["signals"], last["injections"], last["coalesced"], last["dropped"]) == (4, 1, 3, 0)
    paused_for = tracer.of("manager_resumed")[0]["paused_for"]
    assert isinstance(paused_for, float)
    assert paused_for >= 0


async def test_per_interrupt_events():
    tracer = RecordingTracer(per_interrupt=True)
    for make, fast in ((RecordingSink, True), (SlowSink, False)):
        tracer.events.clear()
        async with IrqManager(make(), tracer=tracer) as irqs:
            with EventFd() as kick:
                irqs.assign(kick, gsi=5)
                for _ in range(3):
                    kick.signal()
                    await irqs.flush()
                irqs.set_routing({})
                kick.signal()
                await irqs.flush()
        assert [fields["fast"] for fields in tracer.of("interrupt_injected")] == [fast] * 3
        assert len(tracer.of("interrupt_dropped")) == 1


# -- whose it is ---------------------------------------------------------------------------------------------------------


async def test_a_manager_with_a_name_says_it():
    tracer = RecordingTracer()
    irqs = IrqManager(RecordingSink(), tracer=tracer, name="vm")
    assert irqs.name == "vm"
    assert repr(irqs).startswith("<IrqManager 'vm' irqfds=0 ")
    async with irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            await irqs.pause()
            irqs.resume()
    assert [fields["manager"] for _, fields in tracer.events] == ["vm"] * 4
    nameless = IrqManager(RecordingSink())
    assert nameless.name is None
    assert repr(nameless).startswith("<IrqManager irqfds=0 ")
    with pytest.raises(TypeError, match="the name of a manager is a string, not 3"):
        IrqManager(RecordingSink(), name=3)


async def test_an_irqfds_labels_are_on_each_of_its_events_and_on_no_other():
    tracer = RecordingTracer()
    labels = {"device": "disk", "queue": 2, "gsi": "not mine to say"}
    async with IrqManager(RecordingSink(), tracer=tracer) as irqs:
        with EventFd() as kick, EventFd() as other:
            irqfd = irqs.assign(kick, gsi=5, labels=labels)
            labels["queue"] = 3  # the irqfd has a copy
            irqs.assign(other, gsi=6)
            irqfd.mask()
            irqfd.unmask()
            irqs.set_routing({})
    mine = [name for name, fields in tracer.events if (fields.get("device"), fields.get("queue")) == ("disk", 2)]
    assert mine == ["irqfd_assigned", "irqfd_masked", "irqfd_unmasked", "irqfd_deassigned"]
    assert {fields["gsi"] for _, fields in tracer.events if "device" in fields} == {5}
    assert all("queue" not in fields for _, fields in tracer.events if fields.get("gsi") != 5)


@pytest.mark.parametrize("labels", [{5: "queue"}, ["queue"], "queue", {"event": "x"}])
async def test_labels_that_are_none_are_refused(labels):
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick:
            with pytest.raises(TypeError, match="labels map names to values"):
                irqs.assign(kick, gsi=5, labels=labels)
            assert irqs.irqfds == ()


async def test_the_vectors_of_two_msix_tables_are_told_apart():
    tracer = RecordingTracer()
    async with IrqManager(RecordingSink(), routing={}, tracer=tracer) as irqs:
        for name in ("net", "disk"):
            async with MsixTable(irqs, vectors=2, name=name) as table:
                for vector in range(2):
                    table.eventfd(vector)
                    program(table, vector, 0x30 + vector)
                table.write_control(MsixTable.ENABLE)
    assert [(fields["device"], fields["vector"]) for fields in tracer.of("irqfd_assigned")] == [
        ("net", 0),
        ("net", 1),
        ("disk", 0),
        ("disk", 1),
    ]
    assert [fields["device"] for fields in tracer.of("msix_control")] == ["net", "disk"]


# -- what was raised -----------------------------------------------------------------------------------------------------


@pytest.mark.trouble
async def test_each_failure_carries_what_was_raised():
    tracer = RecordingTracer()
    sink = FlakySink(2)
    with pytest.raises(InjectionError) as raised:
        async with IrqManager(sink, retry=Retry(1, 0, 0), tracer=tracer) as irqs:
            with EventFd() as kick:
                irqs.assign(kick, gsi=5)
                kick.signal()
                await irqs.flush()
    for event in ("injection_failed", "irqfd_broken"):
        (fields,) = tracer.of(event)
        assert fields["error"] == repr(fields["exc_info"]) == "OSError(5, 'flaky')"
    assert fields["exc_info"] is raised.value.__cause__ is sink.error
    assert fields["exc_info"].__traceback__ is not None


class Unspeakable(Exception):  # noqa: N818
    def __repr__(self):
        raise ZeroDivisionError


async def test_an_error_whose_repr_raises_is_told_by_its_class_and_loses_nothing():
    tracer = RecordingTracer()
    sink = FlakySink(1, error=Unspeakable())
    async with IrqManager(sink, retry=Retry(1, 0, 0), tracer=tracer) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal()
            await irqs.flush()
            assert irqfd.statistics().injections == 1
    assert [fields["error"] for fields in tracer.of("injection_failed")] == ["Unspeakable"]
