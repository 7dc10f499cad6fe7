"""Faults of a disk, as its driver sees them by vhost-user and by virtio-pci; and that the disk is as fast as ever when they are gone."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import pytest

import aioirqfd
from aioirqfd import WouldBlock
from aioirqfd.faults import (
    Corrupt,
    Delay,
    Drop,
    Duplicate,
    EarlyInterrupt,
    Fail,
    FaultError,
    Faults,
    Hang,
    Lose,
    Match,
    Merge,
    Misroute,
    Reorder,
    Reset,
    Resize,
    Spurious,
    Withhold,
)
from aioirqfd.serving.reports import name_of
from aioirqfd.testing import RecordingTracer
from aioirqfd.vhost_user import Backend
from aioirqfd.vhost_user.driver import DriverError
from aioirqfd.virtio import Device
from examples.vhost_user_blk import Blk, Status

OK, IOERR = Status.OK, Status.IOERR


@pytest.fixture(params=["vhost-user", "virtio-pci"])
def transport(request):
    """All of this is the same on both."""
    return request.param


def sector(image, number):
    return image.read_bytes()[number * 512 :][:512]


async def turns(number=12):
    for _ in range(number):
        await asyncio.sleep(0)


async def rung(queue):
    await turns()
    try:
        return queue.call.read_nowait()
    except WouldBlock:
        return 0


async def test_the_third_write_fails(serve, image):
    async with serve() as disk:
        third = disk.faults.add(Match("write", nth=3), Fail())
        before = sector(image, 3)
        assert [(await disk.ask("write", number))[1] for number in range(1, 5)] == [OK, OK, IOERR, OK]
        await third.hit()
        assert (third.hits, third.requests) == (1, 3)
        assert sector(image, 3) == before
        assert sector(image, 4) == b"w" * 512


async def test_a_status_of_the_devices_own(serve):
    async with serve() as disk:
        disk.faults.add(Match("flush"), Fail(status=Status.UNSUPP))
        assert await disk.ask("flush") == (b"", Status.UNSUPP)


async def test_a_test_waits_for_the_moment_and_acts_in_it(serve):
    async with serve() as disk:
        fault = disk.faults.add(Match("flush", nth=2), Withhold())
        disk.put("flush")
        head = disk.put("flush")
        await fault.hit()
        assert len(await disk.queue.answers(1)) == 1
        fault.release()
        assert [used.head for used in await disk.queue.answers(1)] == [head]


async def test_waiting_for_what_cannot_come(serve):
    async with serve() as disk:
        fault = disk.faults.add(Match("flush", count=1), Fail(), name="first")
        with pytest.raises(FaultError, match="first hits 1 at most; 2 were waited for"):
            await fault.hit(2)
        waiting = asyncio.ensure_future(fault.hit())
        await turns()
        fault.remove()
        with pytest.raises(FaultError, match="first was removed after 0 hits"):
            await waiting


async def test_a_delay_is_the_clocks(serve, clock):
    async with serve(Faults(clock=clock)) as disk:
        fault = disk.faults.add(Match("read", count=1), Delay(3600))
        slow, fast = disk.put(sector=0), disk.put(sector=1)
        assert [used.head for used in await disk.queue.answers(1)] == [fast]
        assert fault.hits == 1
        clock.advance(3599)
        await turns()
        assert disk.queue.driver.collect() == []
        clock.advance(1)
        assert [used.head for used in await disk.queue.answers(1)] == [slow]


async def test_a_window_of_time(serve, clock):
    async with serve(Faults(clock=clock)) as disk:
        disk.faults.add(Match("read", after=10, until=20), Fail())
        statuses = []
        for _ in range(5):
            statuses.append((await disk.ask())[1])
            clock.advance(5)
        assert statuses == [OK, OK, IOERR, IOERR, OK]


async def test_what_is_switched_off_lets_go_and_comes_back(serve):
    async with serve() as disk:
        fault = disk.faults.add(Match("read"), Withhold())
        disk.put()
        await fault.hit()
        fault.disable()
        await disk.queue.answers(1)
        assert await disk.ask() != (b"", IOERR)
        fault.enable()
        disk.put()
        await fault.hit(2)
        fault.remove()
        await disk.queue.answers(1)


async def test_it_is_never_answered(serve):
    async with serve() as disk:
        drop = disk.faults.add(Match("read", sector=5), Drop())
        head = disk.put(sector=5)
        await drop.hit()
        assert (await disk.ask(sector=6))[1] == OK
        assert disk.queue.driver.outstanding == 1
        # Not even when the queue stops; and what comes after does not begin anew.
        assert await disk.queue.stop() in {2, None}
        assert disk.queue.driver.collect() == []
        assert head in disk.queue.driver._sent


async def test_it_is_answered_and_was_not_done(serve, image):
    async with serve() as disk:
        disk.faults.add(Match("write"), Lose())
        before = sector(image, 1)
        assert (await disk.ask("write", 1))[1] == OK
        assert sector(image, 1) == before


async def test_bytes_are_corrupted(serve, image):
    async with serve() as disk:
        read = disk.faults.add(Match("read"), Corrupt("data", offset=2, size=2, mask=0x0F))
        data, status = await disk.ask(sector=7)
        true = sector(image, 7)
        assert (data[:2], data[2], data[3], data[4:], status) == (
            true[:2],
            true[2] ^ 0x0F,
            true[3] ^ 0x0F,
            true[4:],
            OK,
        )
        read.remove()
        disk.faults.add(Match("write"), Corrupt("written", offset=511, mask=1))
        assert (await disk.ask("write", 8))[1] == OK
        assert sector(image, 8) == b"w" * 511 + bytes([ord("w") ^ 1])


@pytest.mark.parametrize(("by", "length"), [(-512, 1), (-1000, 0), (7, 520)])
async def test_an_answer_says_another_length(serve, by, length):
    async with serve() as disk:
        disk.faults.add(Match("read"), Resize(by))
        disk.put()
        if length <= 513:
            (used,) = await disk.queue.answers(1)
            assert used.written == length
        else:
            await answers(disk, 1)
            with pytest.raises(DriverError, match=f"with {length} bytes"):
                disk.queue.driver.collect()


async def test_an_answers_length_is_corrupted(serve):
    async with serve() as disk:
        disk.faults.add(Match("read"), Corrupt("length", mask=0x10000))
        disk.put()
        await answers(disk, 1)
        with pytest.raises(DriverError, match=f"with {513 + 0x10000} bytes"):
            disk.queue.driver.collect()


async def test_an_answer_is_another_requests(serve):
    async with serve() as disk:
        disk.faults.add(Match("read", count=1), Corrupt("id", mask=1))
        head = disk.put()
        await answers(disk, 1)
        with pytest.raises(DriverError, match=f"chain {head ^ 1}"):
            disk.queue.driver.collect()


async def test_an_answer_comes_twice(serve, clock):
    async with serve(Faults(clock=clock, nonconforming=True)) as disk:
        disk.faults.add(Match("read", count=1), Duplicate(times=1, gap=1))
        assert (await disk.ask())[1] == OK
        clock.advance(1)
        await answers(disk, 2)
        with pytest.raises(DriverError):
            disk.queue.driver.collect()


async def answers(disk, number):
    """Wait until the device has given so many, whether the driver can take them or not."""
    while disk.answers() < number:
        await asyncio.sleep(0)
    await turns()


async def test_answers_are_reordered_in_a_window(serve):
    async with serve(Faults(seed=5)) as disk:
        disk.faults.add(Match("read"), Reorder(8, hold=3600))
        heads = [disk.put(sector=number) for number in range(8)]
        order = [heads.index(used.head) for used in await disk.queue.answers(8)]
        assert order != list(range(8))
        assert sorted(order) == list(range(8))


async def test_answers_are_merged(serve):
    async with serve() as disk:
        disk.faults.add(Match("read"), Merge(3, hold=3600))
        disk.put()
        disk.put()
        await turns()
        assert disk.answers() == 0
        disk.put()
        assert len(await disk.queue.answers(3)) == 3


async def test_the_interrupt_comes_first(serve, clock):
    async with serve(Faults(clock=clock)) as disk:
        disk.queue.driver.enable_calls()
        disk.faults.add(Match("read"), EarlyInterrupt(lead=1))
        disk.put()
        await disk.queue.call.read()
        assert disk.queue.driver.collect() == []
        clock.advance(1)
        assert len(await disk.queue.answers(1)) == 1


async def test_it_hangs(serve):
    async with serve() as disk:
        hang = disk.faults.add(Match("read", nth=2), Hang())
        assert (await disk.ask())[1] == OK
        disk.put()
        disk.put("write")
        await hang.hit()
        await turns()
        assert disk.answers() == 1
        hang.release()
        assert len(await disk.queue.answers(2)) == 2
        assert (await disk.ask())[1] == OK


async def test_it_hangs_up(serve):
    async with serve() as disk:
        disk.faults.add(Match("flush"), Reset())
        disk.put("flush")
        assert await disk.front.closed()


# -- interrupts ------------------------------------------------------------------------------------------------------------


async def collected(disk, queue=0):
    """Ask for something, look after all interrupts, and want to hear of the next answer."""
    disk.put(queue=queue)
    before = disk.answers(queue)
    while disk.answers(queue) == before:
        await asyncio.sleep(0)
    await turns()


async def test_the_second_interrupt_is_lost(serve):
    async with serve() as disk:
        lost = disk.faults.add(Match("interrupt", nth=2), Drop())
        heard = []
        for _ in range(3):
            disk.queue.driver.collect()
            disk.queue.driver.enable_calls()
            await collected(disk)
            heard.append(await rung(disk.queue))
        assert heard == [1, 0, 1]
        assert lost.hits == 1


async def test_an_interrupt_goes_elsewhere(serve):
    async with serve(queues=2) as disk:
        for queue in disk.front.queues.values():
            queue.driver.enable_calls()
        disk.faults.add(Match("interrupt", queue=0, count=1), Misroute(to=1))
        await collected(disk)
        assert [await rung(queue) for queue in disk.front.queues.values()] == [0, 1]


async def test_an_interrupt_is_withheld_and_late(serve, clock):
    async with serve(Faults(clock=clock)) as disk:
        disk.queue.driver.enable_calls()
        withhold = disk.faults.add(Match("interrupt"), Withhold())
        late = disk.faults.add(Match("interrupt"), Delay(5))
        await collected(disk)
        assert await rung(disk.queue) == 0
        withhold.release()
        assert await rung(disk.queue) == 0
        clock.advance(5)
        assert await rung(disk.queue) == 1
        assert late.hits == 1


async def test_interrupts_for_nothing(serve, clock):
    async with serve(Faults(clock=clock)) as disk:
        spurious = disk.faults.add(Match("interrupt", queue=0, count=3), Spurious(every=1))
        heard = []
        for _ in range(5):
            clock.advance(1)
            heard.append(await rung(disk.queue))
        assert heard == [1, 1, 1, 0, 0]
        await spurious.hit(3)


async def test_a_hit_says_whose_interrupt_it_is(serve, clock):
    tracer = RecordingTracer()
    async with serve(Faults(clock=clock, tracer=tracer)) as disk:
        disk.faults.add(Match("interrupt", queue=0, count=1), Spurious(every=1), name="for nothing")
        clock.advance(1)
        disk.faults.add(Match("interrupt", count=1), Delay(0), name="late")
        await disk.ask("write")
        await turns()
        hits = tracer.of("fault_hit")
        assert [hit["faults"] for hit in hits] == [["for nothing"], ["late"]]
        assert {(hit["device"], hit["queue"]) for hit in hits} == {(name_of(disk.device), 0)}


async def test_none_for_nothing_before_the_driver_is_ready_nor_after_a_reset(serve, clock):
    """Virtio 1.2, 2.1.2 and 2.4.1; a late one that is due neither."""
    faults = Faults(clock=clock)
    device = Upper()
    spurious = faults.add(Match("interrupt"), Spurious(every=1))
    faults.wrap(device)
    clock.advance(3)
    assert spurious.hits == 0
    async with serve(faults, device=device, wrapped=True) as disk:
        clock.advance(1)
        assert (spurious.hits, await rung(disk.queue)) == (1, 1)
        faults.add(Match("interrupt"), Duplicate(times=3, gap=1), name="again")
        faults.add(Match("interrupt"), Delay(1), name="late")
        await collected(disk)
        await disk.front.reset()
        # What is kept back comes before the queue stops, and then no more.
        assert await rung(disk.queue) == 1
        clock.advance(10)
        assert (spurious.hits, await rung(disk.queue)) == (1, 0)


async def test_always_is_no_conforming_devices(serve, clock):
    with pytest.raises(
        FaultError, match=r"no conforming device may interrupt whenever it likes \(virtio 1.2, 2.1.2 and 2.4.1"
    ):
        Faults(clock=clock).add(Match("interrupt"), Spurious(every=1, always=True))
    async with serve(Faults(clock=clock, nonconforming=True)) as disk:
        spurious = disk.faults.add(Match("interrupt"), Spurious(every=1, always=True))
        await disk.front.reset()
        clock.advance(2)
        assert spurious.hits == 2


# -- what is refused -------------------------------------------------------------------------------------------------------


async def test_a_conforming_set_refuses_what_no_device_may_do(serve):
    async with serve(Faults()) as disk:
        with pytest.raises(
            FaultError, match=r"no conforming device may drop a request \(virtio 1.2, 2.7.8.*nonconforming=True"
        ):
            disk.faults.add(Match("read"), Drop())
        disk.faults.add(Match("read"), Withhold())
        # An interrupt that is not told again is lost; one that is told twice is not.
        disk.faults.add(Match("interrupt"), Duplicate())
        with pytest.raises(FaultError, match="no conforming device may drop an interrupt"):
            disk.faults.add(Match("interrupt"), Drop())


async def test_what_has_no_status_cannot_fail(serve):
    """An empty answer of an entropy device is none (virtio 1.2, 5.4.6.2)."""

    class Entropy(Upper):
        device_id = 4

    class Honest(Entropy):
        def failed(self, request, error):
            return request.write(b"!")

    refused = r"no conforming device may fail a request that has no status \(virtio 1.2, 5.4.6.2: one byte or more\)"
    faults = Faults()
    faults.add(Match("flush"), Fail())
    faults.wrap(Entropy())
    for match in (Match(), Match("req*")):
        with pytest.raises(FaultError, match=refused):
            faults.add(match, Fail())
    first = Faults()
    first.add(Match(), Fail())
    with pytest.raises(FaultError, match=refused):
        first.wrap(Entropy())
    async with serve(Faults(), device=Honest()) as disk:
        disk.faults.add(Match(), Fail())
        assert await disk.queue.ask([b"x"], [5]) == b"!"
    async with serve(device=Entropy()) as disk:
        disk.faults.add(Match(nth=1), Fail())
        assert [await disk.queue.ask([b"x"], [5]) for _ in range(2)] == [b"", b"X"]


async def test_a_slip_of_the_keyboard_is_told(serve):
    async with serve() as disk:
        with pytest.raises(FaultError, match="no kind wriet; there are"):
            disk.faults.add(Match("wriet"), Fail())
        with pytest.raises(FaultError, match="no field sektor; there are"):
            disk.faults.add(Match("write", sektor=3), Fail())
        with pytest.raises(FaultError, match="fail is for dma, request, and cannot happen to interrupt"):
            disk.faults.add(Match("interrupt"), Fail())
        with pytest.raises(FaultError, match="there is a fault 'one' already"):
            for _ in range(2):
                disk.faults.add(Match("read"), Fail(), name="one")
        with pytest.raises(FaultError, match="is wrapped already"):
            disk.faults.wrap(disk.device)


def test_what_is_no_device_cannot_be_wrapped():
    with pytest.raises(TypeError, match="faults are made of a virtio or PCI device, or of an interrupt sink, not of 3"):
        Faults().wrap(3)


# -- the end ---------------------------------------------------------------------------------------------------------------


async def test_all_is_let_go_when_the_queue_stops(serve):
    async with serve() as disk:
        for fault in (Withhold(), Reorder(9, hold=3600), Delay(3600), Merge(9, hold=3600)):
            disk.faults.add(Match("read"), fault)
        for _ in range(4):
            disk.put()
        while len(disk.faults.held) < 4:
            await asyncio.sleep(0)
        assert await disk.queue.stop() in {4, None}
        assert len(disk.queue.driver.collect()) == 4


async def test_every_hit_is_told(serve):
    tracer = RecordingTracer()
    async with serve(Faults(tracer=tracer)) as disk:
        disk.faults.add(Match("write", sector=2), Fail(), name="second sector")
        for number in range(3):
            await disk.ask("write", number)
        (hit,) = tracer.of("fault_hit")
        assert hit == {
            "faults": ["second sector"],
            "kind": "write",
            "request": ("write sector=2", 1),
            "do": {"failed": True},
            "device": name_of(disk.device),
            "queue": 0,
        }
        assert disk.faults.status()["faults"][0]["hits"] == 1


# -- no cost ---------------------------------------------------------------------------------------------------------------


class Counting(Blk):
    """A disk that counts what Python is asked for, and is served like one that does not."""

    asked = 0

    def describe(self, request):
        self.asked += 1
        return super().describe(request)


@pytest.fixture
def calls(monkeypatch):
    """How often handle() was called."""
    numbers = []
    handle = Blk.handle

    async def counted(self, request):
        numbers.append(request.head)
        return await handle(self, request)

    monkeypatch.setattr(Blk, "handle", counted)
    return numbers


async def test_the_fast_path_comes_back_with_the_last_fault(serve, calls):
    in_c = aioirqfd.IMPLEMENTATION == "c"
    async with serve() as disk:

        async def python_was_asked():
            before = len(calls)
            await disk.ask()
            return len(calls) > before

        def lent():
            """Whether the next kick is served without a line of Python."""
            return disk.front.requests(0)._transfers[0] is not None

        assert await python_was_asked() is not in_c
        assert lent() is in_c
        fault = disk.faults.add(Match("write"), Fail())
        assert not lent()
        assert await python_was_asked()
        assert not lent()
        fault.remove()
        assert await python_was_asked() is not in_c
        assert lent() is in_c
        # One that can hit no more is as good as gone.
        disk.faults.add(Match("read", nth=2), Fail())
        for _ in range(2):
            await disk.ask()
        await turns()
        assert disk.device.interception is None
        assert await python_was_asked() is not in_c
        assert lent() is in_c


async def test_what_is_kept_back_keeps_the_faults_in_between(serve):
    async with serve() as disk:
        late = disk.faults.add(Match("interrupt", nth=1), Withhold())
        disk.queue.driver.enable_calls()
        await collected(disk)
        assert disk.device.interception is not None
        late.release()
        assert disk.device.interception is None
        assert await rung(disk.queue) == 1


# -- any device ------------------------------------------------------------------------------------------------------------


class Upper(Device):
    """A device of a reader's own."""

    async def handle(self, request):
        return request.write(request.read().upper())


async def test_a_users_own_device_in_three_lines(serve):
    faults = Faults(nonconforming=True)
    async with serve(faults, device=Upper()) as disk:
        second = faults.add(Match(nth=2), Corrupt("data", offset=0, mask=0x20))
        assert [await disk.queue.ask([b"hello"], [5]) for _ in range(3)] == [b"HELLO", b"hELLO", b"HELLO"]
        await second.hit()
        failed = faults.add(Match("request"), Fail())
        assert await disk.queue.ask([b"hello"], [5]) == b""
        assert failed.hits == 1


async def test_what_is_never_answered_holds_up_no_other_of_a_receive_queue(serve):
    class Receives(Upper):
        receive_queues = (0,)
        concurrency = 4

    faults = Faults(nonconforming=True)
    async with serve(faults, device=Receives()) as disk:
        dropped = faults.add(Match("receive", nth=1), Drop())
        late = faults.add(Match("receive", nth=1), Withhold())
        first = disk.queue.put([b"one"], [3])
        await dropped.hit()
        second = disk.queue.put([b"two"], [3])
        await turns()
        # They come back in order: the first one holds up the second, until it is clear that it never comes.
        assert disk.queue.driver.collect() == []
        late.release()
        assert [used.head for used in await disk.queue.answers(1)] == [second]
        assert first != second


async def test_every_hit_goes_to_structlog(serve):
    import structlog

    from aioirqfd.tracing.structlog import StructlogTracer

    with structlog.testing.capture_logs() as logs:
        async with serve(Faults(tracer=StructlogTracer(structlog.get_logger()))) as disk:
            disk.faults.add(Match("flush"), Fail(), name="broken")
            await disk.ask("flush")
    (hit,) = [entry for entry in logs if entry["event"] == "fault_hit"]
    assert (hit["faults"], hit["kind"], hit["do"]["failed"]) == (["broken"], "flush", True)


def test_the_process_is_killed(tmp_path):
    program = """
import asyncio
from aioirqfd.faults import Faults, Kill, Match
from aioirqfd.faults.request import Request
class Some(Request):
    async def perform(self): print("done", flush=True)
async def main():
    faults = Faults(nonconforming=True)
    faults.add(Match("some", nth=2), Kill())
    for _ in range(3):
        await faults.course(Some("some", {}))
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGKILL, "done\n", "")


async def test_two_backends_do_not_share_faults(image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    device = Blk(str(image))
    faults = Faults()
    faults.wrap(device)
    async with Backend(device, "one"):
        assert device.transport is not None
    assert device.transport is None
    device.close()
