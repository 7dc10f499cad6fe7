"""Poller on both loops: one for each loop, registered once, gone with its last user."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref

import pytest
import uvloop

from aioirqfd import EventFd, IrqManager, WrongLoopError
from aioirqfd.eventfd import Poller
from aioirqfd.eventfd.poller import _pollers
from aioirqfd.sinks import RecordingSink
from tests.conftest import open_fds


def of_kind(kind):
    """How many of our fds are of a kind, e.g. eventpoll."""
    return sum(kind in what for what in open_fds().values())


async def start_reading(efd):
    task = asyncio.ensure_future(efd.read())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not task.done()
    return task


def gone(reference):
    poller = reference()
    assert poller is not None
    return poller.gone


class NoReaders:
    def add_reader(self, fd, call):
        raise NotImplementedError


@pytest.mark.parametrize("loop", [None, NoReaders()])
def test_one_that_could_not_be_made_has_nothing_to_end(loop, monkeypatch):
    before, again = open_fds(), []
    monkeypatch.setattr("sys.unraisablehook", again.append)
    with pytest.raises(WrongLoopError, match=r"needs an event loop with add_reader\(\)"):
        Poller(loop)
    gc.collect()
    assert (again, open_fds()) == ([], before)


class Calls:
    """Notes a loop's add_reader and remove_reader."""

    def __init__(self, loop, monkeypatch):
        self.added, self.removed = [], []
        monkeypatch.setattr(Poller, "__init__", self.wrapped(Poller.__init__))
        monkeypatch.setattr(Poller, "_close", self.closing(Poller._close))

    def wrapped(self, original):
        def init(poller, loop, **kwargs):
            original(poller, loop, **kwargs)
            self.added.append(poller.drain.fileno())

        return init

    def closing(self, original):
        def close(poller):
            if poller.drain.fileno() >= 0:
                self.removed.append(poller.drain.fileno())
            original(poller)

        return close


async def test_one_for_all_users_of_a_loop_registered_once(monkeypatch):
    calls = Calls(asyncio.get_running_loop(), monkeypatch)
    before = of_kind("eventpoll")
    efds = [EventFd() for _ in range(10)]
    tasks = [await start_reading(efd) for efd in efds]
    async with IrqManager(RecordingSink()) as irqs:
        irqs.assign(efds[0], gsi=1)
        assert len(calls.added) == 1
        assert of_kind("eventpoll") == before + 1
        assert len({efd._poller for efd in efds}) == 1
        assert efds[0]._poller is Poller.get()
    for efd in efds:
        efd.close()
    assert calls.removed == calls.added
    assert of_kind("eventpoll") == before
    assert asyncio.get_running_loop() not in _pollers
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_its_last_user_closes_it():
    before = open_fds()
    with EventFd() as first, EventFd() as second:
        tasks = [await start_reading(efd) for efd in (first, second)]
        poller = Poller.get()
        assert poller.drain.attached == 2
        first.close()
        assert poller.drain.fileno() >= 0
        second.close()
        assert poller.drain.fileno() == -1
        await asyncio.gather(*tasks, return_exceptions=True)
    assert open_fds() == before


async def test_who_is_not_waiting_any_more_is_let_go_at_the_next_event():
    before = open_fds()
    efd = EventFd()
    task = await start_reading(efd)
    efd.signal(3)
    assert await task == 3
    poller = weakref.ref(Poller.get())
    os.eventfd_write(efd.fileno(), 5)
    while efd._registered:
        await asyncio.sleep(0)
    left = poller()
    assert left is None or left.gone
    del left
    assert efd.read_nowait() == 5
    efd.close()
    assert open_fds() == before


async def test_a_reader_that_comes_back_gets_a_new_one_when_the_old_is_gone():
    with EventFd() as efd:
        for number in range(1, 6):
            task = await start_reading(efd)
            os.eventfd_write(efd.fileno(), number)
            assert await task == number
            os.eventfd_write(efd.fileno(), 10)
            while efd._registered:
                await asyncio.sleep(0)
            assert efd.read_nowait() == 10


def test_one_for_each_loop():
    def use(loop, results):
        async def go():
            with EventFd() as efd:
                task = await start_reading(efd)
                poller = Poller.get()
                assert poller is efd._poller
                assert poller.loop is loop
                efd.signal(2)
                results.append((await task, id(poller)))

        loop.run_until_complete(go())
        loop.close()

    results = []
    threads = []
    for _ in range(3):
        loop = asyncio.new_event_loop()
        threads.append(threading.Thread(target=use, args=(loop, results)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [count for count, _ in results] == [2, 2, 2]


def test_without_a_loop_there_is_none():
    with pytest.raises(WrongLoopError):
        Poller.get()


async def test_check_here():
    poller = Poller.get()
    poller.acquire()
    poller.check_here()
    errors = []

    def elsewhere():
        try:
            poller.check_here()
        except WrongLoopError as error:
            errors.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(errors) == 1
    poller.release()
    assert poller.gone


def test_a_loop_that_is_closed_first():
    before = open_fds()
    loop = asyncio.new_event_loop()
    efd = EventFd()

    async def use():
        task = await start_reading(efd)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return weakref.ref(Poller.get())

    poller = loop.run_until_complete(use())
    assert not gone(poller)
    loop.close()
    assert poller() is None
    efd.signal(2)
    assert efd.read_nowait() == 2
    efd.close()
    assert open_fds() == before


def test_a_loop_that_is_dropped_is_not_kept():
    loop = asyncio.new_event_loop()

    async def use():
        with EventFd() as efd:
            task = await start_reading(efd)
            efd.signal()
            await task

    loop.run_until_complete(use())
    loop.close()
    gone = weakref.ref(loop)
    del loop
    gc.collect()
    assert gone() is None


def test_a_loop_that_is_stopped_in_the_middle_and_goes_on():
    loop = asyncio.new_event_loop()
    sink = RecordingSink()
    efds = [EventFd() for _ in range(5)]

    async def enter():
        irqs = IrqManager(sink)
        await irqs.__aenter__()
        for number, efd in enumerate(efds):
            irqs.assign(efd, gsi=number)
        return irqs

    irqs = loop.run_until_complete(enter())
    loop.call_soon(loop.stop)
    loop.run_forever()
    for efd in efds:
        os.eventfd_write(efd.fileno(), 1)
    thread = threading.Thread(target=lambda: [efd.signal() for efd in efds])
    thread.start()
    thread.join()
    assert sink.interrupts == []

    async def leave():
        await irqs.flush()
        assert sorted({interrupt.gsi for interrupt in sink.interrupts}) == [0, 1, 2, 3, 4]
        await irqs.aclose()

    loop.run_until_complete(leave())
    for efd in efds:
        efd.close()
    loop.close()


class Threads:
    """A fast sink or a slow one, which notes the threads that it was called in."""

    def __init__(self):
        self.threads = []
        self.heard = threading.Event()

    async def inject(self, interrupt):
        self.note()

    def note(self, *_):
        self.threads.append(threading.current_thread().name)
        self.heard.set()
        return True


class FastThreads(Threads):
    def try_inject(self, interrupt):
        return self.note()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("kind", ["reader", "slow", "fast"])
def test_a_loop_set_up_by_one_thread_and_run_by_another(new_loop, kind):
    # The signals of the first thread are not the loop's own.
    loop = new_loop()
    efd = EventFd()
    sink = FastThreads() if kind == "fast" else Threads()

    async def set_up():
        if kind == "reader":
            task = await start_reading(efd)
            task.add_done_callback(sink.note)
            return task
        irqs = IrqManager(sink)
        await irqs.__aenter__()
        irqs.assign(efd, gsi=5)
        return irqs

    kept = loop.run_until_complete(set_up())
    running = threading.Event()
    thread = threading.Thread(target=loop.run_forever, name="the loop's")
    thread.start()
    loop.call_soon_threadsafe(running.set)
    running.wait()
    efd.signal()
    assert sink.heard.wait(60)

    async def leave():
        if kind != "reader":
            await kept.aclose()

    asyncio.run_coroutine_threadsafe(leave(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    efd.close()
    assert sink.threads == ["the loop's"]


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_nothing_is_injected_while_the_loop_stands_still(new_loop):
    loop = new_loop()
    sink = RecordingSink()
    with EventFd() as efd:

        async def set_up():
            irqs = IrqManager(sink)
            await irqs.__aenter__()
            irqs.assign(efd, gsi=5)
            efd.signal()
            assert len(sink.interrupts) == 1
            return irqs

        irqs = loop.run_until_complete(set_up())
        efd.signal()
        assert len(sink.interrupts) == 1

        async def another_loops():
            efd.signal()

        asyncio.run(another_loops())
        assert len(sink.interrupts) == 1

        async def leave():
            await asyncio.sleep(0)
            await irqs.flush()
            assert len(sink.interrupts) == 2
            efd.signal()
            assert len(sink.interrupts) == 3
            await irqs.aclose()

        loop.run_until_complete(leave())
    loop.close()


async def test_a_forked_child_leaves_the_parents_alone():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick, EventFd() as other:
            irqs.assign(kick, gsi=5)
            task = await start_reading(other)
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    assert gone(lambda: kick._poller)
                    assert len(_pollers) == 0
                    # Nobody here listens: through the kernel, to the parent.
                    kick.signal()
                    other.signal(4)
                    other.close()
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            await irqs.flush()
            assert [interrupt.gsi for interrupt in sink.interrupts] == [5]
            assert await task == 4
            kick.signal()
            os.eventfd_write(kick.fileno(), 1)
            await irqs.flush()
            assert [interrupt.gsi for interrupt in sink.interrupts] == [5, 5, 5]


async def test_what_the_parent_has_counted_is_injected_by_the_parent_alone():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            thread = threading.Thread(target=kick.signal, args=(3,))
            thread.start()
            thread.join()
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    assert kick._count == 0
                    kick._stop_listening()
                    kick._spill()
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            await irqs.flush()
            assert len(sink.interrupts) == 1
            assert irqfd.statistics().signals == 3


async def test_more_ready_than_a_pass_takes_all_arrive():
    poller = Poller.get(max_events=4)
    poller.acquire()
    assert poller.drain.max_events == 4
    assert Poller.get() is poller
    efds = [EventFd() for _ in range(50)]
    tasks = [await start_reading(efd) for efd in efds]
    for number, efd in enumerate(efds, 1):
        os.eventfd_write(efd.fileno(), number)
    assert await asyncio.gather(*tasks) == list(range(1, 51))
    for efd in efds:
        efd.close()
    poller.release()


async def test_other_callbacks_get_their_turn_between_passes():
    with EventFd() as efd:
        turns = []
        rounds = 0

        def tick():
            turns.append(rounds)
            if rounds < 50:
                asyncio.get_running_loop().call_soon(tick)

        asyncio.get_running_loop().call_soon(tick)
        while rounds < 50:
            task = asyncio.ensure_future(efd.read())
            await asyncio.sleep(0)
            os.eventfd_write(efd.fileno(), 1)
            assert await task == 1
            rounds += 1
        await asyncio.sleep(0)
        assert set(range(50)) <= set(turns)
