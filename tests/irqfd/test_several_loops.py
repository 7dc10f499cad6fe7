"""Several loops in several threads, and others that signal, close and drop: every count is exact, with a GIL and without one."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import queue
import random
import sys
import threading

import pytest
import uvloop

from aioirqfd import EventFd, EventFdBusyError, IrqManager, Msi, WouldBlock
from aioirqfd.sinks import RecordingSink

LOOPS, EVENTFDS, SIGNALLERS, SIGNALS = 3, 4, 3, 6000
ROUTES = {gsi: Msi(0xFEE00000, gsi) for gsi in range(32, 64)}

both_loops = pytest.mark.parametrize(
    "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


@pytest.fixture
def impatient():
    """Has a GIL change hands as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Threads:
    """Threads that are joined at the end of the block, and whose first error is raised there."""

    def __init__(self):
        self._threads = []
        self._errors = []

    def start(self, call, *args):
        def run():
            try:
                call(*args)
            except BaseException as error:
                self._errors.append(error)

        thread = threading.Thread(target=run)
        self._threads.append(thread)
        thread.start()
        return thread

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]


def run_on(new_loop, main, *args):
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main(*args))


class Heard:
    """What the handlers of one eventfd were told, on whichever loop it is."""

    def __init__(self):
        self.count = 0

    async def wakeup(self, _irqfd, count):
        self.count += count


class Refuses:
    """Every third interrupt goes by the work queue."""

    def __init__(self):
        self._turns = 0

    async def inject(self, interrupt):
        pass

    def try_inject(self, interrupt):
        self._turns += 1
        return self._turns % 3 != 0


def shout(eventfds, sent, seed):
    chance = random.Random(seed)
    for _ in range(SIGNALS):
        number = chance.randrange(len(eventfds))
        if chance.random() < 0.8:
            assert eventfds[number].signal() == 1
        else:
            os.eventfd_write(eventfds[number].fileno(), 1)
        sent[number] += 1


async def restless(irqs, own, heard, busy, seed):
    """Masks, unmasks, deassigns and assigns what it has, until nobody is busy."""
    chance = random.Random(seed)
    irqfds = [irqs.assign(eventfd, gsi=32 + number, wakeup=heard[number].wakeup) for number, eventfd in enumerate(own)]
    while any(thread.is_alive() for thread in busy):
        number = chance.randrange(len(own))
        deed = chance.randrange(5)
        if deed == 0:
            irqfds[number].mask()
        elif deed == 1:
            irqfds[number].unmask()
        elif deed == 2:
            await irqs.deassign(irqfds[number])
            irqfds[number] = irqs.assign(own[number], gsi=32 + number, wakeup=heard[number].wakeup)
        elif deed == 3:
            await irqs.flush()
        await asyncio.sleep(0)
    for irqfd in irqfds:
        irqfd.unmask()
    await irqs.flush()


@pytest.mark.stress
@pytest.mark.usefixtures("impatient")
@both_loops
def test_counts_are_exact_while_every_loop_masks_and_rebinds(new_loop):
    eventfds = [[EventFd() for _ in range(EVENTFDS)] for _ in range(LOOPS)]
    heard = [[Heard() for _ in range(EVENTFDS)] for _ in range(LOOPS)]
    flat = [eventfd for own in eventfds for eventfd in own]
    sent = [[0] * len(flat) for _ in range(SIGNALLERS)]

    async def main(me):
        async with IrqManager(Refuses(), routing=ROUTES) as irqs:
            await restless(irqs, eventfds[me], heard[me], busy, me)

    with Threads() as threads:
        busy = [threads.start(shout, flat, sent[me], me) for me in range(SIGNALLERS)]
        for me in range(LOOPS):
            threads.start(run_on, new_loop, main, me)
    assert [each.count for own in heard for each in own] == [sum(each) for each in zip(*sent, strict=True)]
    assert sum(map(sum, sent)) == SIGNALLERS * SIGNALS
    for eventfd in flat:
        with pytest.raises(WouldBlock):
            eventfd.read_nowait()
        eventfd.close()


@pytest.mark.stress
@pytest.mark.usefixtures("impatient")
@both_loops
def test_nothing_is_lost_of_an_eventfd_that_goes_from_loop_to_loop(new_loop):
    eventfds = [EventFd() for _ in range(EVENTFDS)]
    heard = {eventfd: Heard() for eventfd in eventfds}
    sent = [[0] * EVENTFDS for _ in range(SIGNALLERS)]
    to_whom = [queue.SimpleQueue() for _ in range(LOOPS)]

    async def main(me):
        async with IrqManager(Refuses(), routing=ROUTES) as irqs:
            while any(thread.is_alive() for thread in busy):
                with contextlib.suppress(queue.Empty):
                    eventfd = to_whom[me].get_nowait()
                    irqfd = irqs.assign(eventfd, gsi=32 + me, wakeup=heard[eventfd].wakeup)
                    await asyncio.sleep(0)
                    await irqs.deassign(irqfd)
                    to_whom[(me + 1) % LOOPS].put(eventfd)
                await asyncio.sleep(0)

    for number, eventfd in enumerate(eventfds):
        to_whom[number % LOOPS].put(eventfd)
    with Threads() as threads:
        busy = [threads.start(shout, eventfds, sent[me], me) for me in range(SIGNALLERS)]
        for me in range(LOOPS):
            threads.start(run_on, new_loop, main, me)
    for number, eventfd in enumerate(eventfds):
        rest = 0
        with contextlib.suppress(WouldBlock):
            rest = eventfd.read_nowait()
        assert heard[eventfd].count + rest == sum(each[number] for each in sent)
        eventfd.close()


@pytest.mark.stress
@pytest.mark.usefixtures("impatient")
@both_loops
def test_of_two_managers_that_bind_one_eventfd_at_once_one_is_refused(new_loop):
    rounds = 200
    eventfds = [EventFd() for _ in range(rounds)]
    gate = threading.Barrier(2)
    results = [[], []]

    async def main(me):
        async with IrqManager(RecordingSink(), routing=ROUTES) as irqs:
            for eventfd in eventfds:
                gate.wait()
                try:
                    irqfd = irqs.assign(eventfd, gsi=32)
                except EventFdBusyError as error:
                    irqfd = None
                    results[me].append(error.errno)
                else:
                    results[me].append(0)
                gate.wait()
                if irqfd is not None:
                    await irqs.deassign(irqfd)

    with Threads() as threads:
        for me in range(2):
            threads.start(run_on, new_loop, main, me)
    assert [sorted(pair) for pair in zip(*results, strict=True)] == [[0, errno.EBUSY]] * rounds
    for eventfd in eventfds:
        eventfd.close()


@pytest.mark.stress
@pytest.mark.usefixtures("impatient")
def test_an_eventfd_that_two_threads_close_at_once_is_closed_once():
    # Closed twice, the number would by then be what the third one has opened.
    rounds = 2000
    gate = threading.Barrier(3)
    eventfds = [EventFd() for _ in range(rounds)]
    numbers = [eventfd.fileno() for eventfd in eventfds]
    opened = []

    def close():
        for eventfd in eventfds:
            gate.wait()
            eventfd.close()

    def take_the_number():
        for _ in range(rounds):
            gate.wait()
            opened.append(os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            opened.append(os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    with Threads() as threads:
        for _ in range(2):
            threads.start(close)
        threads.start(take_the_number)
    assert set(numbers) & set(opened)
    for fd in opened:
        assert os.eventfd_read(fd) == 1
        os.close(fd)


@pytest.mark.stress
@pytest.mark.usefixtures("impatient")
@both_loops
def test_what_is_closed_or_dropped_elsewhere_while_its_loop_runs(new_loop):
    # Registered there by who has waited for it, and nobody's since. Its loop has signals of others meanwhile, which it counts.
    rounds = 400
    given = queue.SimpleQueue()
    steady, heard, sent = EventFd(), Heard(), 0

    async def main():
        async with IrqManager(RecordingSink(), routing=ROUTES) as irqs:
            irqs.assign(steady, gsi=32, wakeup=heard.wakeup)
            for _ in range(rounds):
                eventfd = EventFd()
                reader = asyncio.ensure_future(eventfd.read())
                await asyncio.sleep(0)
                eventfd.signal()
                assert await reader == 1
                given.put(eventfd)
                del eventfd
            given.put(None)
            given.put(None)
            while any(thread.is_alive() for thread in others):
                await asyncio.sleep(0)
            await irqs.flush()

    def close():
        while (eventfd := given.get()) is not None:
            eventfd.signal()
            eventfd.close()

    def keep_signalling():
        nonlocal sent
        while any(thread.is_alive() for thread in others[:2]):
            sent += steady.signal()

    with Threads() as threads:
        others = [threads.start(close), threads.start(close)]
        others.append(threads.start(keep_signalling))
        threads.start(run_on, new_loop, main)
    assert heard.count == sent
    steady.close()
