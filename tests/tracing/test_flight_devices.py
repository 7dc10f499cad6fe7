"""What devices have records of: kicks, requests and calls of queues, accesses and vectors of PCI devices."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest

from aioirqfd import EventFd
from aioirqfd.faults import Drop, Faults, Match, Misroute, Withhold
from aioirqfd.pci import Bar, PciDevice, PciFunction, Register
from aioirqfd.testing import vhost_user_frontend
from aioirqfd.tracing import FlightKind, FlightRecorder
from aioirqfd.tracing.journey import Journeys
from aioirqfd.tracing.ledger import ledger
from aioirqfd.tracing.trouble import troubles
from aioirqfd.virtio import Chain, Device
from aioirqfd.virtio_pci import VirtioPci
from examples.vhost_user_blk import Blk, Type

if TYPE_CHECKING:
    from pathlib import Path


class Upper(Device):
    """Answers with what it was sent, in capitals."""

    async def handle(self, request: Chain) -> int:
        data = request.read()
        if data == b"fail":
            raise ValueError(data)
        return request.write(data.upper())


def steps(recorder: FlightRecorder, source: str) -> list[tuple[Any, ...]]:
    return [
        (record.event, *(value for name, value in record.fields.items() if name not in {"source", "fd", "error"}))
        for record in recorder.records()
        if record.fields.get("source") == source
    ]


@pytest.mark.trouble
async def test_a_request_leaves_its_steps():
    recorder = FlightRecorder()
    async with vhost_user_frontend(Upper(), tracer=recorder) as front:
        queue = front.queues[0]
        before = len(steps(recorder, "Upper queue 0"))
        assert await queue.ask([b"abc"], [3]) == b"ABC"
        await queue.ask([b"fail"], [3])
        found = steps(recorder, "Upper queue 0")[before:]
    assert [event for event, *_ in found] == [
        "queue_kicked",
        "request_begun",
        "request_completed",
        "call_written",
        "queue_kicked",
        "request_begun",
        "request_failed",
        "request_completed",
        "call_written",
    ]
    heads = [step[2] for step in found if str(step[0]).startswith("request_")]
    assert heads == [heads[0]] * 2 + [heads[2]] * 3
    # The kick is an interrupt, too.
    sources = {str(record.fields.get("source", "")) for record in recorder.records()}
    (source,) = (source for source in sources if source.endswith("-kicks"))
    kicks = [event for event, *_ in steps(recorder, source)]
    assert kicks.count("interrupt_seen") == kicks.count("interrupt_injected") >= 2


class Two(Upper):
    num_queues = 2


@pytest.mark.parametrize("fault", [Misroute(1), Drop()])
async def test_an_interrupt_that_goes_by_another_queue_is_named(fault):
    """A call is there when the driver is interrupted, and for the queue by which it is."""
    recorder, faults = FlightRecorder(), Faults(nonconforming=True)
    device = faults.wrap(Two())
    faults.add(Match("interrupt", queue=0, nth=1), fault)
    async with vhost_user_frontend(device, tracer=recorder) as front:
        front.queues[0].put([b"abc"], [3])
        while "request_completed" not in [event for event, *_ in steps(recorder, "Two queue 0")]:
            await asyncio.sleep(0)
        log = recorder.log()
    calls = [record.fields["source"] for record in log.records if record.kind is FlightKind.CALL]
    (found,) = [one.text for one in troubles(log, Journeys.of(log), slow_ns=0) if one.what == "no_interrupt"]
    if isinstance(fault, Misroute):
        assert calls == ["Two queue 1"]
        assert found.endswith("; Two queue 1 was interrupted 1 times in its place: the wrong vector")
    else:
        assert calls == []
        assert found.endswith("; right where the driver has asked for none")


class Patient(Device):
    """Waits a little for each request."""

    async def handle(self, request: Chain) -> int:
        await asyncio.sleep(0)
        return request.write(b"done")


async def test_a_request_that_waits_is_completed_when_it_ends():
    recorder = FlightRecorder()
    async with vhost_user_frontend(Patient(), tracer=recorder) as front:
        before = len(steps(recorder, "Patient queue 0"))
        assert await front.queues[0].ask([b"abc"], [4]) == b"done"
        found = steps(recorder, "Patient queue 0")[before:]
    assert [event for event, *_ in found] == ["queue_kicked", "request_begun", "request_completed", "call_written"]


async def test_what_is_served_without_python_has_its_records_too(tmp_path: Path):
    image = tmp_path / "image"
    image.write_bytes(random.Random(7).randbytes(64 * 512))
    recorder = FlightRecorder()
    device = Blk(os.fspath(image))
    try:
        async with vhost_user_frontend(device, tracer=recorder) as front:
            queue = front.queues[0]
            request = [struct.pack("<IIQ", Type.IN, 0, 1)], [512, 1]
            await queue.ask(*request)
            before = len(steps(recorder, "Blk queue 0"))
            for _ in range(3):
                assert (await queue.ask(*request))[-1:] == b"\0"
            found = steps(recorder, "Blk queue 0")[before:]
    finally:
        device.close()
    events = [event for event, *_ in found]
    assert (events.count("queue_kicked"), events.count("call_written")) == (3, 3)
    # By the C module three times one, by the twin three requests.
    served = sum(step[2] for step in found if step[0] == "requests_served")
    assert served + events.count("request_completed") == 3


class Doubler(PciDevice):
    """Doubles what is written, and interrupts."""

    bars, vectors = (Bar(4096),), 1
    number = Register(0x08)

    @number.on_write
    def double(self, value: int) -> None:
        self.number = 2 * value
        self.interrupt()


async def test_a_register_access_and_its_vector_are_there():
    recorder = FlightRecorder()
    async with PciFunction(Doubler(), tracer=recorder) as function:
        function.interrupts.bind(0, EventFd())
        await function.write(0, 0x08, (21).to_bytes(4, "little"))
        await function.interrupts.flush()
        await function.read(0, 0x08, 4)
    found = [
        (record.event, record.fields.get("region"), record.fields.get("offset", record.fields.get("vector")))
        for record in recorder.records()
        if record.event in {"register_written", "register_read", "vector"}
    ]
    assert found == [("register_written", 0, 8), ("vector", None, 0), ("register_read", 0, 8)]


class Pair(PciDevice):
    bars, vectors = (Bar(4096),), 2


async def taken(device: PciDevice, recorder: FlightRecorder, *vectors: int) -> None:
    """Interrupt by each of them, after what was before it."""
    for vector in vectors:
        count = sum(record.event == "interrupt_injected" for record in recorder.records())
        device.interrupt(vector)
        while sum(record.event == "interrupt_injected" for record in recorder.records()) == count:
            await asyncio.sleep(0)


@pytest.mark.parametrize("fault", [Drop(), Withhold()])
@pytest.mark.parametrize("before", [0, 2])
async def test_an_interrupt_that_goes_no_further_than_its_manager_is_named(fault, before):
    """By the file alone: the sink has taken it, and the vector was not sent."""
    recorder, faults = FlightRecorder(), Faults(nonconforming=True)
    device = faults.wrap(Pair())
    async with PciFunction(device, tracer=recorder) as function:
        for vector in range(2):
            function.interrupts.bind(vector, EventFd())
        await taken(device, recorder, *[0] * before, 1)
        assert not ledger(recorder.log(), slow_ns=0).owed
        bad = faults.add(Match("interrupt", vector=0), fault)
        await taken(device, recorder, 0, 1)
        found = ledger(recorder.log(), slow_ns=0)
        assert [(one.vector, one.owed) for one in found.entries] == [(0, True), (1, False)]
        assert "1 injected and not sent on, the first at" in found.entries[0].said
        assert found.entries[0].said.endswith("a fault that was set drops it, or keeps it back")
        # One that goes through tells of all before it.
        bad.remove()
        await taken(device, recorder, 0)
        assert not ledger(recorder.log(), slow_ns=0).owed


async def test_what_went_on_while_the_recorder_was_off_is_not_owed():
    recorder, faults = FlightRecorder(), Faults(nonconforming=True)
    device = faults.wrap(Pair())
    async with PciFunction(device, tracer=recorder) as function:
        function.interrupts.bind(0, EventFd())
        held = faults.add(Match("interrupt", vector=0), Withhold())
        await taken(device, recorder, 0)
        assert ledger(recorder.log(), slow_ns=0).owed
        recorder.on = False
        held.remove()
        assert function.interrupts.sent(0) == 1
        recorder.on = True
        assert not ledger(recorder.log(), slow_ns=0).owed
        faults.add(Match("interrupt", vector=0), Drop())
        await taken(device, recorder, 0)
        assert ledger(recorder.log(), slow_ns=0).owed


async def test_an_interrupt_is_late_from_its_injection_on():
    """Where it waited before, it waited for the guest."""
    recorder, faults = FlightRecorder(), Faults(nonconforming=True)
    device = faults.wrap(Pair())
    async with PciFunction(device, tracer=recorder) as function:
        function.interrupts.bind(0, EventFd())
        function.interrupts.mask(0)
        device.interrupt(0)
        begun = time.monotonic_ns()
        faults.add(Match("interrupt", vector=0), Withhold())
        while time.monotonic_ns() - begun < 50_000_000:
            await asyncio.sleep(0)
        function.interrupts.unmask(0)
        await function.interrupts.flush()
        log = recorder.log()
    (injected,) = (record.time_ns for record in log.records if record.kind is FlightKind.INJECTED)
    log = dataclasses.replace(log, until_ns=injected + 10)
    journeys = Journeys([record for record in log.records if record.time_ns <= injected], until_ns=injected + 10)
    for slow_ns, owed in ((11, []), (10, ["not_sent"])):
        assert [one.what for one in troubles(log, journeys, slow_ns=slow_ns) if one.what == "not_sent"] == owed


async def test_the_queues_of_a_function_that_comes_again_are_its_own():
    recorder = FlightRecorder()
    for completed in (False, True):
        device = Pair()
        async with PciFunction(device, tracer=recorder, name="Pair-1"):
            device.note(FlightKind.KICK, 0)
            if completed:
                device.note(FlightKind.REQUEST_COMPLETED, 3, 1)  # the first that it has to say of this queue
    owed = [ledger(recorder.log(), device=name, slow_ns=0).owed for name in ("Pair-1", "Pair-1 2")]
    assert owed == [False, True]


async def test_a_device_notes_the_steps_of_its_own_queues():
    recorder = FlightRecorder()
    device = Pair()
    device.note(FlightKind.KICK, 5)  # served by nobody: nothing happens
    async with PciFunction(device, tracer=recorder, name="Pair-3") as function:
        function.interrupts.bind(0, EventFd())
        device.note(FlightKind.KICK, 5)
        device.note(FlightKind.REQUEST_BEGUN, 5, 77)
        device.note(FlightKind.REQUEST_COMPLETED, 5, 77)
        found = ledger(recorder.log(), slow_ns=0)
        assert found.owed
        assert found.troubles[0].startswith("Pair-3 queue 5: 1 completions without an interrupt")
        device.note(FlightKind.CALL, 5)
        assert not ledger(recorder.log(), slow_ns=0).owed
    assert steps(recorder, "Pair-3 queue 5") == [
        ("queue_kicked", 5),
        ("request_begun", 5, 77),
        ("request_completed", 5, 77),
        ("call_written", 5),
    ]
    async with PciFunction(Pair()):
        pass


@pytest.mark.parametrize("name", ["Upper-7", None])
async def test_the_queues_and_the_vectors_of_a_virtio_function_have_one_name(name):
    recorder = FlightRecorder()
    async with PciFunction(VirtioPci(Upper()), tracer=recorder, name=name):
        sources = set(recorder.log().sources.values())
    assert {f"{name or 'Upper'}-vectors", f"{name or 'Upper'} queue 0", name or "Upper"} <= sources
