"""Signals from many threads while the drain's own thread unbinds and binds: the sums are exact, and nobody waits for ever."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading

import pytest

from tests.counter.rig import Irqfd, write

THREADS = 4
SIGNALS = 4000
EVENTFDS = 6


@pytest.fixture
def impatient():
    """Threads change as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


class Seeing(Irqfd):
    """Notes what had been sent when its dispatch began."""

    def __init__(self, sent, number):
        super().__init__()
        self.sent = sent
        self.number = number
        self.seen = 0

    def wakeup(self, count, /):
        self.seen = sum(self.sent[self.number])
        super().wakeup(count)

    defer = wakeup


def pump(rig, threads, step=lambda: None):
    """The loop: sleeps in the epoll as a loop does, so that a wake that is lost would be a hang."""
    poller = select.poll()
    poller.register(rig.drain.fileno(), select.POLLIN)
    while any(thread.is_alive() for thread in threads):
        poller.poll(20)
        rig.drain.run()
        step()
    for thread in threads:
        thread.join()


@pytest.mark.stress
@pytest.mark.parametrize("inside", [True, False], ids=["in-process", "by write(2)"])
@pytest.mark.parametrize("rebinding", [False, True])
@pytest.mark.usefixtures("impatient")
def test_sums_are_exact_and_every_last_signal_is_seen(rig, inside, rebinding):
    ctxs = [rig.eventfd() for _ in range(EVENTFDS)]
    sent = [[0] * THREADS for _ in ctxs]
    top_half = rig.module.TopHalf()
    irqfds = [rig.bind(ctx, top_half, irqfd=Seeing(sent, number), want_count=True) for number, ctx in enumerate(ctxs)]

    def shout(me):
        for turn in range(SIGNALS):
            number = (turn + me) % EVENTFDS
            sent[number][me] += 1
            if inside:
                assert ctxs[number].signal() == 1
            else:
                os.eventfd_write(ctxs[number]._fd, 1)

    turns = iter(range(10**9))

    def rebind():
        number = next(turns) % EVENTFDS
        ctx, irqfd = ctxs[number], irqfds[number]
        owed = rig.unbind(ctx)
        if owed:
            irqfd.wakeup(owed)
        rig.bind(ctx, top_half, irqfd=irqfd, want_count=True)

    threads = [threading.Thread(target=shout, args=(me,)) for me in range(THREADS)]
    for thread in threads:
        thread.start()
    pump(rig, threads, rebind if rebinding else lambda: None)
    rig.run()
    assert [irqfd.seen for irqfd in irqfds] == [sum(each) for each in sent]
    assert [sum(irqfd.wakeups) for irqfd in irqfds] == [sum(each) for each in sent]
    assert [ctx._signals for ctx in ctxs] == [sum(each) for each in sent]
    assert sum(map(sum, sent)) == THREADS * SIGNALS
    assert [ctx._count + rig.count(ctx) for ctx in ctxs] == [0] * EVENTFDS


@pytest.mark.stress
@pytest.mark.usefixtures("impatient")
def test_on_the_fast_path_with_a_sink_that_refuses_and_a_queue_that_fills(rig):
    ctxs = [rig.eventfd() for _ in range(EVENTFDS)]
    sent = [[0] * THREADS for _ in ctxs]
    seen = [0] * EVENTFDS
    turns = iter(range(10**9))

    def look(number):
        seen[number] = sum(sent[number])

    def try_inject(number):
        turn = next(turns)
        if turn % 7 == 0:
            top_half.full = not top_half.full
        if turn % 3 == 0:
            return False
        look(number)
        return True

    top_half = rig.module.TopHalf(try_inject)
    irqfds = []
    for number, ctx in enumerate(ctxs):
        irqfd = Seeing(sent, number)
        irqfd.wakeup = irqfd.defer = lambda _count, number=number: look(number)
        irqfds.append(rig.bind(ctx, top_half, irqfd=irqfd, interrupt=number))

    def shout(me):
        for turn in range(SIGNALS):
            number = (turn + me) % EVENTFDS
            sent[number][me] += 1
            if turn % 2:
                ctxs[number].signal()
            else:
                os.eventfd_write(ctxs[number]._fd, 1)

    def make_room():
        top_half.full = False
        top_half.release()

    threads = [threading.Thread(target=shout, args=(me,)) for me in range(THREADS)]
    for thread in threads:
        thread.start()
    pump(rig, threads, make_room)
    while top_half.held or rig.run():
        make_room()
        rig.drain.read_unread(EVENTFDS)
    rig.drain.read_unread(EVENTFDS)
    assert seen == [sum(each) for each in sent]
    assert [ctx._signals for ctx in ctxs] == [sum(each) for each in sent]


@pytest.mark.stress
@pytest.mark.usefixtures("impatient")
def test_a_thread_that_signals_while_nobody_listens_any_more(rig):
    # The look whether somebody listens and the count are one step: nothing may stay behind in this process's counter.
    ctx = rig.eventfd()
    total = 0
    stop = threading.Event()
    sent = []

    def shout():
        mine = 0
        while not stop.is_set():
            mine += ctx.signal()
        sent.append(mine)

    threads = [threading.Thread(target=shout) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        rig.drain.add(ctx)
        ctx._listening = True
        rig.drain.run()
        ctx._listening = False
        ctx._spill()
        rig.drain.remove(ctx)
        assert ctx._count == 0
        total += ctx._take()
    stop.set()
    for thread in threads:
        thread.join()
    total += ctx._take()
    assert total == sum(sent)


@pytest.mark.stress
@pytest.mark.usefixtures("impatient")
def test_a_drain_that_is_closed_while_threads_signal(rig):
    ctx = rig.eventfd()
    stop = threading.Event()
    sent = []

    def shout():
        mine = 0
        while not stop.is_set():
            mine += ctx.signal()
        sent.append(mine)

    threads = [threading.Thread(target=shout) for _ in range(2)]
    for thread in threads:
        thread.start()
    total = 0
    for _ in range(200):
        drain = rig.module.Drain()
        drain.add(ctx)
        ctx._listening = True
        drain.run()
        total += ctx._take()
        ctx._listening = False
        ctx._spill()
        drain.remove(ctx)
        drain.close()
    stop.set()
    for thread in threads:
        thread.join()
    assert total + ctx._take() == sum(sent)


def test_a_signal_handler_may_signal_in_the_middle_of_a_signal(rig):
    # A lock that its own thread cannot take twice would hang here.
    ctx = rig.eventfd()
    irqfd = rig.bind(ctx, want_count=True)
    handled = []

    def handler(_number, _frame):
        handled.append(ctx.signal())

    before = signal.signal(signal.SIGVTALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, 1e-4, 1e-4)
        sent = 0
        while len(handled) < 200:
            sent += ctx.signal()
            rig.drain.run()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    rig.run()
    assert sum(irqfd.wakeups) == sent + len(handled)


def test_the_thread_that_runs_the_drain_is_its_owner(rig):
    ctx = rig.eventfd()
    irqfd = rig.bind(ctx)

    def elsewhere():
        rig.drain.run()
        ctx.signal()
        assert irqfd.wakeups == [1]

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    ctx.signal()
    assert irqfd.wakeups == [1]
    rig.drain.run()
    assert irqfd.wakeups == [1, 1]
    write(ctx)
    rig.run()
    assert len(irqfd.wakeups) == 3
