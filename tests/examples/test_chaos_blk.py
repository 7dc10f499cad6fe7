"""The disk that misbehaves: every knob, with a driver that collects when it is interrupted and at no other time, as Linux's does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from aioirqfd import WouldBlock
from aioirqfd.faults.command import COMPLETIONS, INTERRUPTS, parse, parse_script
from aioirqfd.faults.virtio import BLOCK_KINDS
from aioirqfd.vhost_user import Backend
from aioirqfd.vhost_user.driver import DriverError
from aioirqfd.vhost_user.features import ProtocolFeature
from aioirqfd.vhost_user.messages import Inflight, Request
from aioirqfd.virtio.features import VirtioFeature
from examples.chaos_blk import Chaos, say
from examples.vhost_user_blk import Status, Type
from tests.vhost_user.frontend import FEATURES, PROTOCOL_FEATURES, FrontEnd

ROOT = Path(__file__).parents[2]
BLOCK = (*BLOCK_KINDS.values(), "other")
NEVER = 3_600_000
"""Milliseconds."""


@contextlib.asynccontextmanager
async def served(disk, path, *, queues=1, features=FEATURES):
    device = Chaos(str(disk), num_queues=queues)
    async with Backend(device, path), FrontEnd(path) as front:
        await front.negotiate(features | device.features)
        await front.set_memory()
        for index in range(queues):
            await front.queue(index, 64).start()
            await front.queues[index].call.read()
        yield device, front
    device.close()


@pytest.fixture
async def chaos(path, disk):
    async with served(disk, path) as (device, front):
        yield device, front.queues[0]


@pytest.fixture
async def pair(path, disk):
    async with served(disk, path, queues=2) as (device, front):
        yield device, front.queues[0], front.queues[1]


def line(device, queue=0):
    return device.faults.targets[0].lines[queue]


def request(kind, sector=0):
    return struct.pack("<IIQ", kind, 0, sector)


def put(queue, count=1, kind=Type.IN):
    """Requests for the first sectors, one after the other."""
    data, room = {Type.IN: ([], [512]), Type.OUT: ([bytes(512)], []), Type.FLUSH: ([], [])}[kind]
    return [queue.put([request(kind, sector), *data], [*room, 1]) for sector in range(count)]


def count(eventfd):
    try:
        return eventfd.read_nowait()
    except WouldBlock:
        return 0


async def answered(device, number, queue=0):
    """Wait until the device has answered so many requests, whether the driver looks or not; and a little longer."""
    while device.transport.answers(queue) < number:
        await asyncio.sleep(0)
    await turns()


async def turns(number=10):
    for _ in range(number):
        await asyncio.sleep(0)


async def drive(queue, total, depth):
    """Read sectors with so many requests under way; return the sectors' bytes, and how many interrupts that took."""
    sent: dict[int, int] = {}
    data: dict[int, bytes] = {}
    interrupts = 0
    started = 0
    queue.driver.enable_calls()
    while len(data) < total:
        while started < total and len(sent) < depth:
            sent[queue.driver.request([request(Type.IN, started)], [512, 1])] = started
            started += 1
        queue.publish()
        interrupts += await queue.call.read()
        more = True
        while more:
            for used in queue.driver.collect():
                assert used.data[-1] == Status.OK
                data[sent.pop(used.head)] = used.data[:-1]
            more = queue.driver.enable_calls()
    return [data[sector] for sector in range(total)], interrupts


@pytest.mark.parametrize("event_idx", [True, False])
@pytest.mark.parametrize(
    "manners",
    [
        "delay=0.05 jitter=0.1",
        "reorder=3 hold=1",
        "merge=5 hold=1",
        "reorder=4 merge=2 jitter=0.2 hold=1",
        "irq-delay=0.1",
        "irq-merge=2 irq-hold=1",
        "irq-merge=64 irq-hold=0.5",
        "irq-duplicate=2",
        "irq-spurious=0.2",
        "type=write error=1000 withhold=1000",
        "irq-merge=3 irq-delay=0.1 irq-duplicate=1 irq-spurious=1 merge=2 reorder=2 delay=0.1 hold=1 irq-hold=1",
    ],
)
async def test_nothing_is_lost(path, disk, manners, event_idx):
    features = FEATURES if event_idx else FEATURES & ~VirtioFeature.EVENT_IDX
    async with served(disk, path, features=features) as (device, front):
        await device.command(f"set {manners}")
        image = disk.read_bytes()
        wanted = [image[sector * 512 : sector * 512 + 512] for sector in range(48)]
        for depth in (1, 8):
            data, interrupts = await drive(front.queues[0], 48, depth)
            assert data == wanted
            assert interrupts >= 1
        await device.command("reset")
        assert (await drive(front.queues[0], 8, 8))[0] == wanted[:8]


async def test_it_behaves_at_first(chaos):
    _, queue = chaos
    heads = put(queue, 8)
    assert [used.head for used in await queue.answers(8)] == heads


# -- completions ---------------------------------------------------------------------------------------------------------


async def test_completions_are_withheld(chaos):
    device, queue = chaos
    assert await device.command("set withhold=2") == "ok"
    heads = put(queue, 5)
    assert [used.head for used in await queue.answers(3)] == heads[2:]
    assert "held=2 " in await device.command("status")
    await device.command("release")
    assert sorted(used.head for used in await queue.answers(2)) == sorted(heads[:2])


async def test_completions_are_reordered_the_same_way_for_the_same_seed(chaos):
    device, queue = chaos
    await device.command(f"set reorder=8 hold={NEVER}")
    orders = []
    for seed in (5, 5, *range(32)):
        await device.command(f"seed {seed}")
        heads = put(queue, 8)
        orders.append([heads.index(used.head) for used in await queue.answers(8)])
    assert orders[0] == orders[1]
    assert orders[0] != list(range(8))
    assert all(sorted(order) == list(range(8)) for order in orders)
    # Whoever came last is any of them: it does not come last because it has only just begun to wait.
    assert {order.index(7) for order in orders} > {0, 7}


async def test_too_few_to_reorder_come_all_the_same(chaos):
    device, queue = chaos
    await device.command("set reorder=8 hold=0.1")
    heads = put(queue, 3)
    assert sorted(used.head for used in await queue.answers(3)) == sorted(heads)


@pytest.mark.parametrize("what", ["reorder", "merge"])
async def test_a_full_group_takes_its_timer_along(chaos, what):
    """It would break up the next group, otherwise."""
    device, queue = chaos
    await device.command(f"set {what}=2 hold={NEVER}")
    (active,) = device.faults.active
    for _ in range(3):
        put(queue, 1)
        await turns()
        (group,) = active.groups.values()
        assert group.timer is not None
        put(queue, 1)
        assert len(await queue.answers(2)) == 2
        assert group.timer is None


async def test_merged_completions_come_in_order_with_one_interrupt(chaos):
    device, queue = chaos
    await device.command(f"set merge=4 hold={NEVER}")
    for _ in range(3):
        heads = []
        queue.driver.enable_calls()
        for _ in range(4):
            assert queue.driver.collect() == []
            heads += put(queue, 1)
            await turns()
        assert await queue.call.read() == 1
        assert [used.head for used in queue.driver.collect()] == heads


async def test_completions_are_late(chaos):
    device, queue = chaos
    loop = asyncio.get_running_loop()
    for milliseconds in (0.05, 2):
        await device.command(f"set delay={milliseconds}")
        start = loop.time()
        put(queue, 1)
        await queue.answers(1)
        # uvloop's clock ticks in milliseconds.
        assert loop.time() - start >= milliseconds / 1000 - 0.0011


async def test_requests_fail_and_are_not_carried_out(chaos, disk):
    device, queue = chaos
    before = disk.read_bytes()
    await device.command("set type=write error=2")
    assert [await queue.ask([request(Type.OUT), bytes(512)], [1]) for _ in range(2)] == [bytes([Status.IOERR])] * 2
    assert disk.read_bytes() == before
    assert await queue.ask([request(Type.OUT), bytes(512)], [1]) == bytes([Status.OK])
    assert disk.read_bytes() == bytes(512) + before[512:]
    # A read that fails gives no byte but the status, which lies behind a gap.
    await device.command("set error=1")
    head = queue.driver.request([request(Type.IN)], [512, 1])
    status, _ = queue.driver._sent[head].writable[-1]
    queue.publish()
    (used,) = await queue.answers()
    assert used.written == 0
    assert queue.driver.memory.at(status, 1)[0] == Status.IOERR
    assert "errors=3 " in await device.command("status")


async def test_some_percent_of_the_requests_fail(chaos):
    device, queue = chaos

    async def failed():
        return [(await queue.ask([request(Type.FLUSH)], [1]))[0] for _ in range(40)].count(Status.IOERR)

    await device.command("set error-percent=100")
    assert await failed() == 40
    await device.command("set error-percent=25")
    numbers = []
    for _ in range(2):
        await device.command("seed 1")
        numbers.append(await failed())
    assert numbers[0] == numbers[1]
    assert 0 < numbers[0] < 40


async def test_settings_are_for_a_queue_or_a_type(pair):
    device, one, two = pair
    await device.command("set queue=1 type=write,flush withhold=2")
    assert len(put(one, 3, Type.OUT)) == len(await one.answers(3)) == 3
    put(two, 2)
    assert len(await two.answers(2)) == 2
    heads = put(two, 1, Type.OUT) + put(two, 1, Type.FLUSH)
    while len(device.faults.held) < 2:
        await asyncio.sleep(0)
    # What a command is for shares its number: two of them all, not of each.
    after = put(two, 1, Type.OUT)
    assert [used.head for used in await two.answers(1)] == after
    await device.command("release queue=0")
    assert len(device.faults.held) == 2
    await device.command("release type=flush")
    assert [used.head for used in await two.answers(1)] == heads[1:]
    await device.command("release queue=1")
    assert [used.head for used in await two.answers(1)] == heads[:1]


async def test_those_of_other_types_stay_in_the_group(chaos):
    device, queue = chaos
    await device.command(f"set merge=3 hold={NEVER}")
    write, read = put(queue, 1, Type.OUT) + put(queue, 1)
    while len(device.faults.held) < 2:
        await asyncio.sleep(0)
    await device.command("release type=write")
    assert [used.head for used in await queue.answers(1)] == [write]
    heads = put(queue, 2)
    assert [used.head for used in await queue.answers(3)] == [read, *heads]


async def test_completions_are_duplicated(chaos):
    device, queue = chaos
    await device.command("set duplicate=2")
    (head,) = put(queue, 1)
    await answered(device, 3)
    # The driver's own side is the judge of what no device may do.
    for _ in range(2):
        with pytest.raises(DriverError, match=f"gave back chain {head} with 513 bytes"):
            queue.driver.collect()
    assert queue.driver.collect() == []
    assert queue.driver.outstanding == 0
    await device.command("reset")
    statistics = device.transport.statistics().queues[0]
    assert (statistics.requests, statistics.answers) == (1, 3)


async def test_duplicates_and_the_disk_starts_again(path, disk):
    """With the inflight buffer, too, from which the next start would come out too far ahead."""
    device = Chaos(str(disk))
    async with Backend(device, path), FrontEnd(path) as front:
        await front.negotiate(FEATURES | device.features, PROTOCOL_FEATURES | ProtocolFeature.INFLIGHT_SHMFD)
        await front.set_memory()
        reply = await front.ask(Request.GET_INFLIGHT_FD, Inflight(0, 0, 1, 64))
        await front.tell(Request.SET_INFLIGHT_FD, reply.payload, reply.fds)
        os.close(*reply.fds)
        queue = front.queue(0, 64)
        await queue.start()
        await device.command("set duplicate=2")
        put(queue, 1)
        await answered(device, 3)
        for _ in range(2):
            with pytest.raises(DriverError):
                queue.driver.collect()
        await device.command("reset")
        base = await queue.stop()
        assert base == 1
        queue.close()
        again = front.queue(0, driver=queue.driver)
        await again.start(base=base)
        (head,) = put(again, 1)
        assert [used.head for used in await again.answers(1)] == [head]
    device.close()


# -- interrupts ----------------------------------------------------------------------------------------------------------


async def ask_for(device, queue, number):
    """Requests one at a time, whose answers nobody collects; return after which the interrupts came."""
    came = []
    before = device.transport.answers(queue.index)
    for sector in range(number):
        queue.put([request(Type.IN, sector)], [512, 1])
        await answered(device, before + sector + 1, queue.index)
        came += [sector] * count(queue.call)
    return came


@pytest.mark.parametrize("event_idx", [True, False])
async def test_each_third_completion_has_an_interrupt(path, disk, event_idx):
    features = FEATURES if event_idx else FEATURES & ~VirtioFeature.EVENT_IDX
    async with served(disk, path, queues=2, features=features) as (device, front):
        await device.command(f"set irq-merge=3 irq-hold={NEVER}")
        for _ in range(3):
            # Each queue for itself.
            for queue in front.queues.values():
                queue.driver.enable_calls()
                assert await ask_for(device, queue, 2) == []
            for queue in front.queues.values():
                assert await ask_for(device, queue, 1) == [0]
                assert len(queue.driver.collect()) == 3


async def test_merged_interrupts_wait_no_longer_than_they_are_to(chaos):
    device, queue = chaos
    await device.command("set irq-merge=100 irq-hold=0.1")
    _, interrupts = await drive(queue, 5, 1)
    assert interrupts == 5


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("irq-merge=100", "irq-merge=0"),
        ("irq-merge=100", "irq-merge=2"),
        ("irq-merge=100", "irq-hold=0"),
        ("irq-withhold=1", "irq-withhold=0"),
        (f"irq-delay={NEVER}", "irq-delay=0"),
    ],
)
async def test_what_a_setting_keeps_back_comes_when_it_no_longer_does(chaos, before, after):
    device, queue = chaos
    await device.command(f"set irq-hold={NEVER} {before}")
    queue.driver.enable_calls()
    assert await ask_for(device, queue, 3) == []
    await device.command(f"set {after}")
    assert await queue.call.read() == 1
    assert len(queue.driver.collect()) == 3


async def test_interrupts_are_withheld_until_released(pair):
    device, one, two = pair
    await device.command("set queue=0 irq-withhold=1")
    for queue in (one, two):
        queue.driver.enable_calls()
    assert await ask_for(device, one, 3) == []
    assert await ask_for(device, two, 1) == [0]
    assert "silent=1" in await device.command("status")
    await device.command("release type=read")
    await turns()
    assert count(one.call) == 0
    await device.command("release queue=0")
    assert await one.call.read() == 1
    one.driver.collect()
    one.driver.enable_calls()
    assert await ask_for(device, one, 1) == [0]


async def test_interrupts_are_duplicated_and_come_for_nothing(chaos):
    device, queue = chaos
    await device.command("set irq-duplicate=2")
    queue.driver.enable_calls()
    put(queue, 1)
    total = 0
    while total < 3:
        total += await queue.call.read()
    assert line(device).rung == 3
    await device.command("set irq-duplicate=0 irq-spurious=0.5")
    for _ in range(3):
        assert await queue.call.read() >= 1
    await device.command("reset")
    assert "irq-spurious=0 " in await device.command("status")


# -- the end -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("manners", ["withhold=100", f"delay={NEVER}", "reorder=99", "merge=99", f"jitter={NEVER}"])
async def test_all_is_let_go_when_the_queue_stops(chaos, manners):
    device, queue = chaos
    # From one reason to wait to the next, were they not told to hurry.
    await device.command(f"set hold={NEVER} {manners} irq-withhold=1")
    if manners != "withhold=100":
        await device.command("set withhold=2")
    put(queue, 5)
    while len(device.faults.held) < 5:
        await asyncio.sleep(0)
    assert await queue.stop() == 5
    assert len(queue.driver.collect()) == 5
    assert await queue.call.read() >= 1


async def test_a_request_that_is_served_while_the_queue_stops_is_not_kept_back(chaos, monkeypatch):
    device, queue = chaos
    gate = asyncio.get_running_loop().create_future()
    in_thread = device._in_thread

    async def slowly(*arguments):
        await gate
        await in_thread(*arguments)

    monkeypatch.setattr(device, "_in_thread", slowly)
    await device.command(f"set delay={NEVER}")
    put(queue, 1, Type.FLUSH)
    await turns()
    stopping = asyncio.ensure_future(queue.stop())
    while not device.faults.targets[0].ending:
        await asyncio.sleep(0)
    gate.set_result(None)
    assert await stopping == 1


# -- commands ------------------------------------------------------------------------------------------------------------

BAD = {
    "": "no command: ''; there are set, release",
    "dance": "no command: 'dance'",
    "set": "nothing to set",
    "set queue=0": "nothing to set",
    "set delay": "'delay' is not NAME=VALUE",
    "set irq-witholt=1": "no setting 'irq-witholt'; there are delay, jitter",
    "set delay=x": "delay is a number from 0 on, not 'x'",
    "set delay=nan": "delay is a number from 0 on, not 'nan'",
    "set delay=-1": "delay is a number",
    "set delay=inf": "delay is a number",
    "set merge=1.5": "merge is a whole number from 0 on, not '1.5'",
    "set delay=1 delay=2": "delay is there twice",
    "set error-percent=101": "error-percent is at most 100",
    "set irq-withhold=2": "irq-withhold is at most 1",
    "set queue=2 delay=1": "no queue '2'; there are 0, 1",
    "set queue=0,x delay=1": "no queue 'x'",
    "set type=trim delay=1": "no type 'trim'; there are read, write, flush",
    "set type=read irq-merge=2": "an interrupt has no type: irq-merge",
    "release delay=1": "'delay' has no place here",
    "reset queue=1": "'queue' has no place here",
    "seed": "a number is missing",
    "seed x": "seed is a whole number",
    "sleep x": "sleep is a number",
    "requests": "a number is missing (requests N [queue=Q,..] [type=T,..])",
    "requests 1 2": "'2' is not NAME=VALUE",
}


@pytest.mark.parametrize(("line", "why"), BAD.items(), ids=BAD)
def test_bad_commands(line, why):
    with pytest.raises(ValueError) as caught:
        parse(line, 2, BLOCK)
    assert why in str(caught.value)


def test_a_script_is_read_as_a_whole():
    (command,) = parse_script(["# nothing", "", "set delay=0.25  # but this"], 1, BLOCK)
    assert command.settings == {"delay": 0.25}
    with pytest.raises(ValueError, match=r"^line 3: no setting 'irq-witholt'"):
        parse_script(["set delay=1", "", "set irq-witholt=1"], 1, BLOCK)


async def test_a_script_waits_for_requests(chaos, capsys):
    device, queue = chaos
    commands = device.control.parse_script(["set withhold=1", "requests 2 type=read", "release"])
    script = asyncio.ensure_future(device.control.run_script(commands, say))
    await turns()
    put(queue, 2, Type.FLUSH)
    assert len(await queue.answers(1)) == 1
    await turns()
    assert not script.done()
    put(queue, 2)
    assert len(await queue.answers(3)) == 3
    await script
    assert capsys.readouterr().out.splitlines()[-1] == "chaos: release: ok"


async def test_status(pair):
    device, one, _ = pair
    await device.command("set queue=1 type=read delay=0.5 error=3")
    await device.command("set queue=1 irq-merge=2")
    put(one, 3)
    await one.answers(3)
    said = dict(pair.split("=") for pair in (await device.command("status")).split())
    assert said.keys() == {*COMPLETIONS, *INTERRUPTS, *["requests", "errors", "held", "interrupts", "rung", "silent"]}
    assert (said["delay"], said["irq-merge"], said["hold"], said["requests"]) == ("*", "*", "20", "3")
    said = dict(pair.split("=") for pair in (await device.command("status queue=1 type=read")).split())
    assert (said["delay"], said["error"], said["irq-merge"], said["requests"]) == ("0.5", "3", "2", "0")
    await device.command("reset")
    for cell in device.control.settings.completions:
        assert device.control.settings.shown(cell) == COMPLETIONS
    assert device.control.settings.interrupts == {0: INTERRUPTS, 1: INTERRUPTS}


async def test_the_control_socket(chaos):
    device, _ = chaos
    server = await asyncio.start_unix_server(device.control.serve, "control")
    reader, writer = await asyncio.open_unix_connection("control")
    for command, answer in (
        ("set delay=3", "ok"),
        ("sleep x", "error: sleep is a number from 0 on, not 'x' (sleep SECONDS)"),
        ("reset", "ok"),
    ):
        writer.write(f"{command}\n".encode())
        assert (await reader.readline()).decode() == f"{answer}\n"
    # A line without an end is nobody's command.
    writer.write(b"x" * 100_000)
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
    await turns()


def test_a_script_that_is_none_ends_it_before_it_serves(path, disk):
    Path("script").write_text("set delay=1\nset irq-witholt=1\n")
    arguments = ["--socket-path", path, "--blk-file", str(disk), "--script", "script"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "examples.chaos_blk", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("chaos_blk: script: line 2: no setting 'irq-witholt'; there are delay, ")
    assert not Path(path).exists()
