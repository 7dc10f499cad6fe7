"""A virtio function that is saved with requests on their way, and goes on in another one: nothing is lost, nothing is done twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import struct
from typing import TYPE_CHECKING

import pytest

from aioirqfd import EventFd
from aioirqfd.errors import SnapshotError
from aioirqfd.pci import PciFunctionState
from aioirqfd.pci.interrupts import PIN
from aioirqfd.virtio import BlockFile
from aioirqfd.virtio.features import VirtioFeature
from aioirqfd.virtio_pci.function import Status
from tests.vhost_user.devices import Gated, Receiver, Upper
from tests.virtio_pci.direct import Machine
from tests.virtio_pci.guest import DRIVER_OK, NO_VECTOR, RAM, UP

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aioirqfd.virtio import Chain

EVENT_IDX = VirtioFeature.VERSION_1 | VirtioFeature.EVENT_IDX
INDIRECT = VirtioFeature.VERSION_1 | VirtioFeature.INDIRECT_DESC
RINGS = pytest.mark.parametrize(
    "features",
    [VirtioFeature.VERSION_1, EVENT_IDX, INDIRECT, EVENT_IDX | INDIRECT],
    ids=["plain", "idx", "ind", "both"],
)


async def turns(count: int = 5) -> None:
    """Time for whatever would happen now, if it happened."""
    for _ in range(count):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def after_a_move(machine: Machine, device, **how) -> AsyncIterator[Machine]:
    """Another machine, which goes on where this one was saved; this one has gone."""
    await machine.function.pause()
    text = machine.text()
    async with Machine(device, features=machine.features, **how) as there:
        there.map()
        there.bind()
        await there.take_over(machine, text)
        await machine.function.__aexit__(None, None, None)
        there.function.resume()
        yield there


# -- under load ------------------------------------------------------------------------------------------------------------


class Busy(Upper):
    """Some requests are answered at once, others a few turns of the loop later; it remembers which it was given."""

    def __init__(self, handled: list[bytes]) -> None:
        super().__init__(num_queues=2, concurrency=8)
        self.handled = handled

    async def handle(self, request: Chain) -> int:
        data = request.read()
        self.handled.append(data)
        for _ in range(data[-1] % 4):
            await asyncio.sleep(0)
        return request.write(data.upper())


class Load:
    """A driver of two queues that keeps some requests with its device, and sleeps until it is interrupted."""

    ROOM = 7

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.wanted = [[b"q%d request %d %c" % (queue, n, 97 + n % 26) for n in range(600)] for queue in range(2)]
        self.answered: list[list[bytes]] = [[], []]

    async def put(self, machine: Machine, most: int) -> None:
        for queue, driver in enumerate(machine.drivers):
            first = len(self.answered[queue]) + driver.outstanding
            for data in self.wanted[queue][first : first + min(most, self.ROOM - driver.outstanding)]:
                await machine.put(data, queue)

    async def take(self, machine: Machine) -> None:
        for queue, driver in enumerate(machine.drivers):
            if driver.outstanding:
                self.answered[queue] += [used.data for used in await machine.answers(1, queue)]

    @property
    def done(self) -> bool:
        return [*map(len, self.answered)] == [*map(len, self.wanted)]


@RINGS
async def test_requests_are_done_once_each_however_often_the_function_moves(features):
    """An interrupt that is lost is a test that does not end: the driver does not look before it is interrupted."""
    load = Load(int(features))
    handled: list[bytes] = []
    moves = loaded = 0
    async with contextlib.AsyncExitStack() as stack:
        machine = await stack.enter_async_context(Machine(Busy(handled), features=features))
        await machine.start(size=16)
        while not load.done:
            await load.put(machine, load.rng.randint(0, load.ROOM))
            await turns(load.rng.randrange(4))
            if load.rng.randrange(8) == 0:
                moves += 1
                loaded += bool(machine.function.device.under_way())
                await machine.function.pause()
                begun = len(handled)
                await load.put(machine, 1)  # a machine's devices are paused before its CPUs
                await turns()
                machine = await stack.enter_async_context(after_a_move(machine, Busy(handled)))
                assert len(handled) == begun
            await load.take(machine)
    assert moves > 20
    assert loaded > 5
    assert [sorted(data) for data in load.answered] == [sorted(one.upper() for one in queue) for queue in load.wanted]
    assert sorted(handled) == sorted(one for queue in load.wanted for one in queue)


@RINGS
async def test_requests_are_done_once_each_however_often_the_function_pauses(features):
    load = Load(int(features))
    handled: list[bytes] = []
    async with Machine(Busy(handled), features=features) as machine:
        await machine.start(size=16)
        while not load.done:
            await load.put(machine, load.rng.randint(0, load.ROOM))
            await turns(load.rng.randrange(4))
            if load.rng.randrange(4) == 0:
                await machine.function.pause()
                assert not machine.function.device.under_way()
                machine.text()
                machine.function.resume()
            await load.take(machine)
        calls = [counts.calls for counts in machine.function.device.statistics()]
        await machine.function.interrupts.flush()
        assert sorted(handled) == sorted(one for queue in load.wanted for one in queue)
        answers = [counts.answers for counts in machine.function.device.statistics()]
        assert answers == [600, 600]
        assert all(0 < machine.function.interrupts.sent(queue + 1) <= calls[queue] for queue in range(2))


class Disk(Upper):
    """Its queue serves reads by itself, in C where there is C."""

    device_id = 2

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd
        self.file = BlockFile(fd, os.fstat(fd).st_size)

    async def handle(self, request: Chain) -> int:
        _, sector = struct.unpack("<QQ", request.read(16))
        return request.write(os.pread(self.fd, 512, 512 * sector) + b"\0")


@RINGS
async def test_a_queue_that_serves_its_file_by_itself_goes_on_too(features):
    sectors = 64
    rng = random.Random(5)
    content = rng.randbytes(512 * sectors)
    fd = os.memfd_create("disk", os.MFD_CLOEXEC)
    os.pwrite(fd, content, 0)
    wanted = [rng.randrange(sectors) for _ in range(200)]
    asked: dict[int, int] = {}
    answers: list[tuple[int, bytes]] = []
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(os.close, fd)
        machine = await stack.enter_async_context(Machine(Disk(fd), features=features))
        await machine.start(size=16)
        for number, sector in enumerate(wanted):
            asked[await machine.put(struct.pack("<QQ", 0, sector), writable=[512, 1])] = sector
            if rng.randrange(10) == 0:
                machine = await stack.enter_async_context(after_a_move(machine, Disk(fd)))
            if len(asked) == 5 or number == len(wanted) - 1:
                answers += [(asked.pop(used.head), used.data) for used in await machine.answers(len(asked))]
    assert len(answers) == len(wanted)
    assert all(data == content[512 * sector :][:512] + b"\0" for sector, data in answers)


# -- what is in a state, one by one ------------------------------------------------------------------------------------------


async def test_an_interrupt_that_nobody_took_is_owed_by_the_copy():
    async with Machine(Upper(), features=EVENT_IDX) as machine:
        await machine.start()
        machine.function.interrupts.bind(1, None)
        await machine.put(b"owed")
        await machine.function.pause()
        text = machine.text()
        assert json.loads(text)["pending"] == [1]
        async with Machine(Upper(), features=EVENT_IDX) as there:
            there.map()
            await there.take_over(machine, text)
            there.bind()
            await turns()
            assert there.function.interrupts.pending(1)
            there.function.resume()
            await there.function.interrupts.flush()
            assert there.vectors[1].read_nowait() == 1
            assert [used.data for used in there.drivers[0].collect()] == [b"OWED"]
            assert there.function.device.statistics()[0].requests == 0


async def test_a_doorbell_that_is_rung_while_the_function_stands_still_is_heard_afterwards():
    async with Machine(Upper(), features=EVENT_IDX) as machine:
        await machine.start()
        await machine.function.pause()
        await machine.put(b"one")
        await turns()
        assert machine.drivers[0].collect() == []
        machine.function.resume()
        assert [used.data for used in await machine.answers(1)] == [b"ONE"]
        await machine.function.pause()
        await machine.put(b"two")
        async with after_a_move(machine, Upper()) as there:
            assert [used.data for used in await there.answers(1)] == [b"TWO"]


async def test_requests_that_wait_for_what_may_never_come_stay_with_the_driver():
    names = [b"a", b"b", b"c"]
    async with Machine(Receiver(), features=EVENT_IDX) as machine:
        await machine.start()
        for name in names:
            await machine.put(name)
        await machine.begun(*names)
        machine.device.open(b"b")  # its answer waits for that of a, and is void
        await machine.function.pause(timeout=60)
        assert sorted(machine.device.cancelled) == [b"a", b"c"]
        assert machine.drivers[0].collect() == []
        machine.function.resume()
        await machine.begun(*names)
        async with after_a_move(machine, Receiver()) as there:
            await there.begun(*names)
            there.device.open(*names)
            assert [used.data for used in await there.answers(3)] == [b"A", b"B", b"C"]


async def test_an_interrupt_that_the_device_withholds_is_made_up_for_by_the_copy():
    class Late(Upper):
        def interrupt(self, queue, ring):
            return True

    async with Machine(Late(), features=EVENT_IDX) as machine:
        await machine.start()
        await machine.put(b"held back")
        await turns()
        async with after_a_move(machine, Late()) as there:
            async with asyncio.timeout(60):
                assert await there.vectors[1].read() == 1
            assert [used.data for used in there.drivers[0].collect()] == [b"HELD BACK"]


async def test_the_pin_and_its_reason_move():
    async with Machine(Upper(), features=EVENT_IDX) as machine:
        machine.map()
        await machine.negotiate()
        await machine.queue(0)
        await machine.write("device_status", DRIVER_OK)
        await machine.put(b"pin")
        await turns()
        async with after_a_move(machine, Upper()) as there:
            there.function.interrupts.bind(PIN, EventFd.from_fd(os.dup(there.pin.fileno()), owns=True))
            await there.function.interrupts.flush()
            assert there.pin.read_nowait() == 1
            assert there.function.interrupts.pin
            assert await there.read("isr_status") == 1
            assert not there.function.interrupts.pin
            assert await there.read("isr_status") == 0
            assert [used.data for used in there.drivers[0].collect()] == [b"PIN"]


async def test_a_driver_that_has_just_begun_goes_on():
    async with Machine(Upper(num_queues=2, config=b"abcd"), features=EVENT_IDX) as machine:
        machine.map()
        await machine.write("device_status", UP)
        await machine.write("driver_feature_select", 1)
        await machine.write("driver_feature", 1)
        await machine.write("queue_select", 1)
        await machine.write("queue_size", 8)
        await machine.write("queue_desc", RAM + 0x1000)
        await machine.write("config_msix_vector", 2)
        await machine.function.write(0, 0x2000, b"AB")
        machine.device.config_changed()
        async with after_a_move(machine, Upper(num_queues=2, config=b"xxxx")) as there:
            assert there.device.config == b"ABcd"
            assert there.device.driver_features == 0
            names = ("device_status", "driver_feature_select", "driver_feature", "queue_select", "queue_size")
            assert [await there.read(name) for name in names] == [UP, 1, 1, 1, 8]
            assert await there.read("queue_desc") == RAM + 0x1000
            assert await there.read("config_msix_vector") == 2
            assert await there.read("config_generation") == 1
            assert await there.read("queue_msix_vector") == NO_VECTOR
            await there.write("queue_select", 0)
            assert await there.read("queue_size") == 64


async def test_memory_may_come_after_the_state():
    async with Machine(Upper(), features=EVENT_IDX) as machine:
        await machine.start()
        await machine.function.pause()
        await machine.put(b"late")
        text = machine.text()
        async with Machine(Upper(), features=EVENT_IDX) as there:
            there.bind()
            await there.take_over(machine, text)
            there.function.resume()
            await turns()
            assert there.drivers[0].collect() == []
            there.map()
            assert [used.data for used in await there.answers(1)] == [b"LATE"]
            assert not await there.read("device_status") & Status.NEEDS_RESET


async def test_the_device_s_own_state_moves():
    class Counting(Upper):
        seen = 0

        async def handle(self, request):
            self.seen += 1
            return await super().handle(request)

        def save_state(self):
            return {"seen": self.seen}

        def restore_state(self, state):
            self.seen = state["seen"]

    async with Machine(Counting(), features=EVENT_IDX) as machine:
        await machine.start()
        await machine.put(b"one")
        await machine.answers(1)
        async with after_a_move(machine, Counting()) as there:
            await there.put(b"two")
            await there.answers(1)
            assert there.device.seen == 2
            assert there.device.driver_features == EVENT_IDX


async def test_a_ring_that_was_broken_stays_so(tracer):
    async with Machine(Upper(), features=EVENT_IDX, tracer=tracer) as machine:
        await machine.start()
        machine.drivers[0].publish(0x1234)
        await machine.kick()
        while not await machine.read("device_status") & Status.NEEDS_RESET:
            await asyncio.sleep(0)
        async with after_a_move(machine, Upper()) as there:
            await there.kick()
            await turns()
            assert await there.read("device_status") & Status.NEEDS_RESET
            assert there.function.device.statistics()[0].starts == 0


# -- a driver that goes on while the function stands still --------------------------------------------------------------------


async def test_a_driver_may_start_its_device_meanwhile():
    async with Machine(Upper(), features=EVENT_IDX) as machine:
        machine.map()
        machine.bind()
        await machine.msix()
        await machine.function.pause()
        await machine.negotiate()
        await machine.queue(0)
        await machine.write("device_status", DRIVER_OK)
        await machine.put(b"early")
        await turns()
        assert machine.function.device.statistics()[0].starts == 0
        async with after_a_move(machine, Upper()) as there:
            assert [used.data for used in await there.answers(1)] == [b"EARLY"]


async def test_memory_may_come_and_go_meanwhile():
    async with Machine(Upper(), features=EVENT_IDX) as machine:
        await machine.start()
        await machine.function.pause()
        await machine.put(b"waits")
        await machine.function.dma.unmap(RAM, machine.ram.region.size)
        machine.map()
        await turns()
        assert machine.drivers[0].collect() == []
        assert machine.function.device.statistics()[0].starts == 1
        machine.function.resume()
        assert [used.data for used in await machine.answers(1)] == [b"WAITS"]
        assert machine.function.device.statistics()[0].starts == 2


async def test_a_ring_that_is_nowhere_is_found_out_afterwards(tracer):
    async with Machine(Upper(), features=EVENT_IDX, tracer=tracer) as machine:
        machine.map()
        await machine.negotiate()
        await machine.function.pause()
        await machine.write("queue_desc", 0x1000)
        await machine.write("queue_enable", 1)
        await machine.write("device_status", DRIVER_OK)
        assert not await machine.read("device_status") & Status.NEEDS_RESET
        machine.function.resume()
        assert await machine.read("device_status") & Status.NEEDS_RESET
        assert len(tracer.of("vring_stopped")) == 1


async def test_a_driver_may_reset_its_device_meanwhile():
    async with Machine(Upper(), features=EVENT_IDX) as machine:
        await machine.start()
        await machine.function.pause()
        await machine.put(b"void")
        await machine.write("device_status", 0)
        machine.function.resume()
        await turns()
        assert machine.drivers[0].collect() == []
        assert await machine.read("queue_enable") == 0
        await machine.negotiate()
        machine.drivers.clear()
        await machine.queue(0)
        await machine.write("device_status", DRIVER_OK)
        await machine.put(b"anew")
        assert [used.data for used in await machine.answers(1)] == [b"ANEW"]


# -- requests that do not end ------------------------------------------------------------------------------------------------


async def test_a_pause_that_takes_too_long_names_the_request_and_the_device_runs_on():
    async with Machine(Gated(num_queues=2), features=EVENT_IDX) as machine:
        await machine.start()
        head = await machine.put(b"for ever", 1)
        await machine.begun(b"for ever")
        pausing = asyncio.ensure_future(machine.function.pause(timeout=0.05))
        await turns()
        await machine.put(b"meanwhile", 1)
        await machine.put(b"paused before", 0)
        with pytest.raises(
            TimeoutError, match=rf"Gated .* 0\.05 s \(request {head} of queue 1 stands at .*handle.*devices\.py"
        ):
            await pausing
        assert not machine.function.paused
        await machine.begun(b"meanwhile", b"paused before")
        machine.device.open(b"for ever", b"meanwhile", b"paused before")
        assert len(await machine.answers(2, 1)) == 2
        assert len(await machine.answers(1, 0)) == 1
        await machine.function.pause(timeout=0)
        assert machine.function.paused


async def test_a_pause_that_fails_has_not_touched_what_waits_for_ever():
    async with Machine(Receiver(num_queues=2), features=EVENT_IDX) as machine:
        await machine.start()
        await machine.put(b"received", 0)
        await machine.put(b"sent", 1)
        await machine.begun(b"received", b"sent")
        with pytest.raises(TimeoutError, match=r"request \d+ of queue 0 .*; request \d+ of queue 1"):
            await machine.function.pause(timeout=0.05)
        assert machine.device.cancelled == []
        machine.device.open(b"received", b"sent")
        assert len(await machine.answers(1, 0)) == len(await machine.answers(1, 1)) == 1


async def test_a_pause_that_fails_goes_on_with_what_was_not_begun():
    """No kick comes for it: it was in the ring already."""
    async with Machine(Gated(concurrency=2), features=EVENT_IDX) as machine:
        await machine.start()
        for name in (b"a", b"b", b"c"):
            await machine.put(name)
        await machine.begun(b"a", b"b")
        pausing = asyncio.ensure_future(machine.function.pause(timeout=0.05))
        await turns()
        machine.device.open(b"a")
        with pytest.raises(TimeoutError):
            await pausing
        async with asyncio.timeout(60):
            await machine.begun(b"c")
        machine.device.open(b"b", b"c")
        assert len(await machine.answers(3)) == 3


async def test_a_pause_that_is_cancelled_changes_nothing():
    async with Machine(Gated(), features=EVENT_IDX) as machine:
        await machine.start()
        await machine.put(b"slow")
        await machine.begun(b"slow")
        pausing = asyncio.ensure_future(machine.function.pause())
        await turns()
        pausing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pausing
        await machine.put(b"next")
        await machine.begun(b"next")
        machine.device.open(b"slow", b"next")
        assert len(await machine.answers(2)) == 2


async def test_a_pause_waits_for_the_end_of_what_it_has_cancelled():
    """Else a buffer that is given back would stay with a handler."""

    class Stubborn(Receiver):
        def __init__(self):
            super().__init__()
            self.let_go = asyncio.Event()

        async def handle(self, request):
            try:
                return await super().handle(request)
            except asyncio.CancelledError:
                await self.let_go.wait()
                raise

    device = Stubborn()
    async with Machine(device, features=EVENT_IDX) as machine:
        await machine.start()
        await machine.put(b"a")
        await machine.begun(b"a")
        pausing = asyncio.ensure_future(machine.function.pause())
        while not device.cancelled:
            await asyncio.sleep(0)
        for _ in range(3):
            pausing.cancel()
            await turns()
        assert not pausing.done()
        device.gates.clear()
        device.let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await pausing
        await machine.begun(b"a")
        device.open(b"a")
        assert [used.data for used in await machine.answers(1)] == [b"A"]


async def test_what_a_fault_keeps_back_is_ended(tracer):
    from aioirqfd.faults import Delay, Faults, Match
    from tests.faults.conftest import FakeClock

    device = Upper(concurrency=4)
    faults = Faults(clock=FakeClock())
    faults.add(Match("request"), Delay(10.0))
    faults.wrap(device)
    async with Machine(device, features=EVENT_IDX, tracer=tracer) as machine:
        await machine.start()
        await machine.put(b"kept")
        await turns()
        assert machine.drivers[0].collect() == []
        async with after_a_move(machine, Upper()) as there:
            assert [used.data for used in await there.answers(1)] == [b"KEPT"]
            assert there.function.device.statistics()[0].requests == 0
    faults.close()


# -- what does not fit -------------------------------------------------------------------------------------------------------


async def text_of(device: Upper, *, size: int = 32, features: VirtioFeature = EVENT_IDX) -> str:
    async with Machine(device, features=features) as machine:
        await machine.start(size)
        await machine.function.pause()
        return machine.text()


class Offering(Upper):
    features = 0x4


@pytest.mark.parametrize(
    ("here", "said"),
    [
        (Upper(num_queues=2), r"vectors is 0x2 in the state, and 0x3 here"),
        (Offering(), r"relies on features that Upper does not offer here: 0x8"),
        (Upper(config=b"a"), "cannot have the configuration that is in the state"),
    ],
    ids=["queues", "features", "configuration"],
)
async def test_a_state_of_another_device_is_refused(here, said):
    class Theirs(Upper):
        features = 0x8

    theirs, features = Upper(), EVENT_IDX
    if "features" in said:
        theirs, features = Theirs(), VirtioFeature(EVENT_IDX | 0x8)
        said = said.replace("Upper", "Offering")
    if "configuration" in said:
        theirs = Upper(config=b"abcd")
    text = await text_of(theirs, features=features)
    async with Machine(here) as machine:
        await machine.function.pause()
        with pytest.raises(SnapshotError, match=said):
            await machine.function.restore(PciFunctionState.from_dict(json.loads(text)))
        machine.function.resume()
        machine.features = EVENT_IDX
        await machine.start()
        await machine.put(b"runs")
        assert [used.data for used in await machine.answers(1)] == [b"RUNS"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": 256}, r"status is a number, 0\.\.255, not 256"),
        ({"status": True}, "status is a number"),
        ({"driver_features": -1}, "driver_features is a number"),
        ({"isr": 4}, "isr is a number"),
        ({"generation": "1"}, "generation is a number"),
        ({"queues": {}}, "queues is a list"),
        ({"queues": []}, "has 0 queues, and it has 1"),
        ({"queues": [{}]}, "queue 0 has the fields"),
        ({"config": "?"}, "config is base64 text"),
        ({"config": 1}, "config is base64 text"),
        ({"device": []}, "device is a dict"),
        ({"device": {"a": 1}}, "has no state of its own, but was given a"),
        ({"more": 1}, "has the fields .*more"),
    ],
)
async def test_a_malformed_state_is_refused(change, said):
    await refused(lambda state: state["own"].update(change), said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": 0}, "a size is a power of 2 up to 64, not 0"),
        ({"size": 24}, "a size is a power of 2 up to 64, not 24"),
        ({"size": 128}, r"size is a number, 0\.\.64, not 128"),
        ({"vector": 1 << 16}, "vector is a number"),
        ({"vector": 2}, r"queue 0: a vector is 0\.\.1, or 0xffff, not 0x2"),
        ({"base": -1}, "base is a number"),
        ({"descriptor": 1 << 64}, "descriptor is a number"),
        ({"available": None}, "available is a number"),
        ({"used": 1.5}, "used is a number"),
        ({"enabled": 1}, "enabled is true or false"),
        ({"enabled": False}, "runs, but is not enabled"),
    ],
)
async def test_a_malformed_queue_is_refused(change, said):
    await refused(lambda state: state["own"]["queues"][0].update(change), said)


async def test_what_follows_from_the_rest_is_not_taken_from_a_file():
    state = json.loads(await text_of(Upper()))
    state["registers"].update(device_status=0xFF, queue_size=5, queue_enable=7)
    async with Machine(Upper()) as machine:
        await machine.function.pause()
        await machine.function.restore(PciFunctionState.from_dict(state))
        assert [await machine.read(name) for name in ("device_status", "queue_size", "queue_enable")] == [
            DRIVER_OK,
            32,
            1,
        ]


async def test_a_vector_that_is_none_for_the_configuration_is_refused():
    await refused(lambda state: state["registers"].update(config_msix_vector=2), r"a vector is 0\.\.1")


async def refused(change, said: str) -> None:
    state = json.loads(await text_of(Upper()))
    change(state)
    async with Machine(Upper()) as machine:
        await machine.function.pause()
        with pytest.raises(SnapshotError, match=said):
            await machine.function.restore(PciFunctionState.from_dict(state))
        assert await machine.read("device_status") == 0
        assert await machine.read("queue_enable") == 0
        machine.function.resume()


async def test_a_ring_that_is_nowhere_in_a_state_breaks_nothing():
    """It may be that its memory comes later."""
    state = json.loads(await text_of(Upper()))
    state["own"]["queues"][0]["descriptor"] = 1 << 60
    async with Machine(Upper()) as machine:
        machine.map()
        await machine.function.pause()
        await machine.function.restore(PciFunctionState.from_dict(state))
        machine.function.resume()
        await machine.kick()
        await turns()
        assert machine.function.device.statistics()[0].starts == 0
