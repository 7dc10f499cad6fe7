"""A log, and its replay: the same faults at the same requests, and completions in the same order, whatever the timing."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import pytest

from aioirqfd.faults import (
    Corrupt,
    Delay,
    Duplicate,
    Fail,
    FaultError,
    Faults,
    Lose,
    Match,
    Merge,
    Reorder,
    Withhold,
)
from aioirqfd.testing import RecordingTracer
from examples.vhost_user_blk import Type
from tests.faults.busy import busy
from tests.vhost_user.frontend import FEATURES, FrontEnd

TOTAL, DEPTH = 48, 8
MANNERS = [
    (Match("read", probability=0.5), Delay(0.0002, jitter=0.002)),
    (Match("read", probability=0.3), Reorder(3, hold=0.002)),
    (Match("read", probability=0.3), Merge(4, hold=0.002)),
    (Match("read", every=7), Fail()),
    (Match("read", probability=0.2), Corrupt("data", offset=1)),
    (Match("read", sector=(5, 6)), Withhold()),
]


def sector_request(sector):
    import struct

    return struct.pack("<IIQ", Type.IN, 0, sector)


async def drive(disk, release=None):
    """Read sectors with some under way at all times; the order in which they came back, and what came."""
    queue = disk.queue
    sent, came, started = {}, [], 0
    queue.driver.enable_calls()
    while len(came) < TOTAL:
        while started < TOTAL and len(sent) < DEPTH:
            sent[queue.driver.request([sector_request(started)], [512, 1])] = started
            started += 1
        queue.publish()
        if release is not None and len(came) >= 20:
            release()
        async with asyncio.timeout(60):
            await queue.call.read()
        more = True
        while more:
            came += [(sent.pop(used.head), used.written, used.data[:4]) for used in queue.driver.collect()]
            more = queue.driver.enable_calls()
    return came


async def record(serve, path):
    async with serve(Faults(seed=3, log=path, nonconforming=True)) as disk:
        for match, fault in MANNERS:
            disk.faults.add(match, fault)
        return await drive(disk, disk.faults.release)


def told(path):
    """What a log says, but for the time and for who did it."""
    entries = [json.loads(line) for line in Path(path).read_text().splitlines()[1:]]
    for entry in entries:
        for name in ("time", "after", "faults", "batch"):
            entry.pop(name, None)
        for name in ("withhold", "reorder", "merge", "delay"):
            entry.get("do", {}).pop(name, None)
        # The number by which the driver calls it is whichever was free.
        entry.get("fields", {}).pop("head", None)
    return entries


def faults_of(entries):
    return [entry for entry in entries if entry["what"] == "fault" and entry["do"]]


async def replayed(serve, log, path, *, pace=1.0):
    tracer = RecordingTracer()
    faults = Faults(log=path, nonconforming=True, tracer=tracer)
    async with serve(faults) as disk:
        faults.replay(log, pace=pace)
        came = await drive(disk)
    assert tracer.of("replay_diverged") == []
    return came


@pytest.mark.parametrize("loops", [0, pytest.param(6, marks=pytest.mark.slow)])
async def test_a_replay_is_the_same_run(serve, image, tmp_path, loops):
    """Twenty times, beside nothing and beside six busy loops."""
    came = await record(serve, tmp_path / "log")
    true = image.read_bytes()
    # Something has happened: not in order, not all of it well, and not all of it what is on the disk.
    assert [sector for sector, _, _ in came] != list(range(TOTAL))
    assert {written for _, written, _ in came} == {0, 513}
    assert any(data and data != true[sector * 512 :][:4] for sector, _, data in came)
    entries = told(tmp_path / "log")
    with busy(loops):
        for number in range(20):
            again = tmp_path / f"log-{number}"
            assert await replayed(serve, tmp_path / "log", again) == came, number
            assert [entry for entry in told(again) if entry["what"] == "complete"] == [
                entry for entry in entries if entry["what"] == "complete"
            ]
            assert faults_of(told(again)) == faults_of(entries)


async def test_a_replay_need_not_take_the_time(serve, tmp_path, clock):
    faults = Faults(clock=clock, log=tmp_path / "log")
    async with serve(faults) as disk:
        late = faults.add(Match("read", sector=0), Delay(3600))
        for number in range(3):
            disk.put(sector=number)
        await late.hit()
        first = await disk.queue.answers(2)
        clock.advance(3600)
        first += await disk.queue.answers(1)
    async with serve(Faults()) as disk:
        disk.faults.replay(tmp_path / "log", pace=0)
        for number in range(3):
            disk.put(sector=number)
        again = await disk.queue.answers(3)
    assert [used.data for used in again] == [used.data for used in first]
    assert [used.head for used in again] == [used.head for used in first]


async def test_what_the_log_has_and_this_run_has_not_holds_nothing_up(serve, tmp_path, clock):
    faults = Faults(log=tmp_path / "log")
    async with serve(faults) as disk:
        faults.add(Match("read", sector=1), Fail())
        for number in range(3):
            await disk.ask(sector=number)
    tracer = RecordingTracer()
    faults = Faults(clock=clock, tracer=tracer)
    async with serve(faults) as disk:
        faults.replay(tmp_path / "log", pace=0, patience=5)
        disk.put(sector=2)
        disk.put(sector=9)
        assert len(await disk.queue.answers(1)) == 1
        for _ in range(10):
            await asyncio.sleep(0)
        assert disk.queue.driver.collect() == []
        clock.advance(5)
        assert len(await disk.queue.answers(1)) == 1
        assert tracer.of("replay_diverged") == [{"missing": [("read sector=0", 1), ("read sector=1", 1)]}]
        assert (await disk.ask(sector=1))[1] == 1


async def test_a_replay_ends_with_the_queue(serve, tmp_path, clock):
    faults = Faults(log=tmp_path / "log")
    async with serve(faults) as disk:
        for number in range(2):
            await disk.ask(sector=number)
    async with serve(Faults(clock=clock)) as disk:
        disk.faults.replay(tmp_path / "log")
        disk.put(sector=1)
        while not disk.faults._in_line:
            await asyncio.sleep(0)
        assert await disk.queue.stop() == 1
        assert len(disk.queue.driver.collect()) == 1


async def test_a_front_end_that_goes_leaves_the_order_whole(serve, tmp_path):
    """Whoever was in line is cancelled, also in the very turn in which its time has come."""
    async with serve(Faults(log=tmp_path / "log")) as disk:
        for number in range(6):
            disk.put(sector=number)
        disk.faults.add(Match("read", count=1), Withhold())
        for number in range(6):
            disk.put(sector=number)
        for _ in range(3):
            await asyncio.sleep(0)
        disk.front.connection.close()
        while disk.faults._plans:
            await asyncio.sleep(0)
        async with FrontEnd("socket") as again:
            await again.negotiate(FEATURES | disk.device.features)
            await again.set_memory()
            queue = await again.start()
            assert len(await queue.ask([sector_request(1)], [512, 1])) == 513


async def test_what_a_log_says(serve, tmp_path, clock):
    path = tmp_path / "log"
    async with serve(Faults(seed=9, clock=clock, log=path, nonconforming=True)) as disk:
        disk.faults.add(Match("write", sector=3), Lose(), name="gone")
        disk.faults.add(Match("write"), Duplicate(gap=1), name="twice")
        clock.advance(1.5)
        await disk.ask("write", 3)
        # Each line is there at once: who is killed has a log, too.
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"log": "aioirqfd.faults", "version": 1, "seed": 9},
        {
            "what": "fault",
            "time": 1.5,
            "request": ["write sector=3", 1],
            "fields": {"queue": 0, "head": lines[1]["fields"]["head"], "type": 1, "sector": 3, "size": 512},
            "faults": ["gone", "twice"],
            "do": {"lose": True, "repeats": 1, "gap": 1},
        },
        {"what": "complete", "time": 1.5, "request": ["write sector=3", 1], "after": 0.0, "batch": 0},
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", None),
        ("hello\n", "line 1: no log of faults"),
        ('{"log": "aioirqfd.faults", "version": 7}\n', "line 1: .*a log of version 1 is wanted"),
        ('{"log": "aioirqfd.faults", "version": 1}\n{"what": "fault"}\n', "line 2: no log of faults: KeyError"),
        (
            '{"log": "aioirqfd.faults", "version": 1}\n{"what": "fault", "request": ["read", 1], "do": {"fly": 1}}\n',
            "line 2: .*a log says what there is not: fly",
        ),
    ],
)
async def test_what_is_no_log(tmp_path, text, why):
    (tmp_path / "log").write_text(text)
    with contextlib.closing(Faults()) as faults:
        if why is None:
            faults.replay(tmp_path / "log")
        else:
            with pytest.raises(FaultError, match=why):
                faults.replay(tmp_path / "log")
