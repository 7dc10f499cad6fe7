"""Drain and EventFdCtx in both implementations and without an event loop: who gets which event, and how often."""

from __future__ import annotations

import itertools
import os
import select
import threading
from types import CellType

import pytest

from tests.counter.rig import Irqfd, Sink, keeps_unread, write

# ------------------------------------------------------------------------------------------------- passes and fairness


@pytest.mark.parametrize("fast", [False, True])
def test_more_ready_events_than_one_pass_takes_all_arrive(rig, fast):
    drain = rig.another_drain(max_events=8)
    sink = Sink()
    top_half = rig.module.TopHalf(sink.try_inject, sink.try_inject_batch)
    irqfds = []
    for number in range(100):
        ctx = rig.eventfd()
        drain.add(ctx)
        irqfds.append(rig.bind(ctx, top_half, interrupt=number if fast else None))
        write(ctx, 3)
    passes = [drain.run() for _ in range(13)]
    # Two of the events may be the drain's own, and are nobody's dispatch.
    assert all(passed <= 8 for passed in passes)
    assert sum(passes) == 100
    assert drain.run() == 0
    if fast:
        assert sorted(sink.interrupts) == list(range(100))
        assert [irqfd.log for irqfd in irqfds] == [[]] * 100
    else:
        assert [len(irqfd.wakeups) for irqfd in irqfds] == [1] * 100


def test_each_source_is_bounded_by_itself(rig):
    drain = rig.another_drain(max_events=4)
    ctxs = [rig.eventfd() for _ in range(20)]
    for ctx in ctxs:
        drain.add(ctx)
        rig.bind(ctx)
    thread = threading.Thread(target=lambda: [ctx.signal() for ctx in ctxs[:10]])
    thread.start()
    thread.join()
    for ctx in ctxs[10:]:
        write(ctx)
    assert drain.run() <= 8
    assert rig.run(drain) > 0
    assert [ctx._wakeups for ctx in ctxs] == [1] * 20


@pytest.mark.parametrize("inside", [True, False], ids=["in-process", "by write(2)"])
@pytest.mark.parametrize("fast", [False, True])
def test_one_eventfd_signalled_without_end_does_not_keep_the_others_waiting(rig, inside, fast):
    top_half = rig.module.TopHalf(lambda _interrupt: True)
    hog = rig.eventfd()
    rig.bind(hog, top_half, interrupt="hog" if fast else None)
    others = [rig.eventfd() for _ in range(1000)]
    for ctx in others:
        rig.bind(ctx, top_half, interrupt="other" if fast else None)
    stop = threading.Event()
    started = threading.Event()

    def shout():
        while not stop.is_set():
            hog.signal() if inside else os.eventfd_write(hog._fd, 1)
            started.set()

    thread = threading.Thread(target=shout)
    thread.start()
    try:
        started.wait()
        for ctx in others:
            write(ctx)
        rig.drain.run()
        rig.drain.run()
        late = [ctx for ctx in others if ctx._wakeups != 1]
    finally:
        stop.set()
        thread.join()
    assert late == []
    rig.run()
    assert hog._wakeups >= 1


def test_two_hogs_in_a_narrow_drain_do_not_keep_the_others_waiting(rig):
    # Each pass takes two events and two posts, and the hogs are ready again at once.
    drain = rig.another_drain(max_events=2)
    hogs = [rig.eventfd() for _ in range(2)]
    others = [rig.eventfd() for _ in range(50)]
    for ctx in (*hogs, *others):
        drain.add(ctx)
        rig.bind(ctx)
    for ctx in others:
        write(ctx)
    for _ in range(60):
        for hog in hogs:
            write(hog)
        drain.run()
    assert [ctx._wakeups for ctx in others] == [1] * 50
    assert all(hog._wakeups > 1 for hog in hogs)


def test_collect_ends_although_the_writers_do_not(rig):
    drain = rig.another_drain(max_events=1)
    ctx = rig.eventfd()
    drain.add(ctx)
    rig.bind(ctx)
    child = os.fork()
    if child == 0:
        try:
            while os.getppid() != 1:
                os.eventfd_write(ctx._fd, 1)
                os.eventfd_read(ctx._fd)
        finally:
            os._exit(0)
    try:
        for _ in range(200):
            drain.collect()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    write(ctx)  # not before: the child reads too, and may take this one with its own
    drain.collect()
    assert ctx._owed


@pytest.mark.parametrize("who", ["thread", "collect itself"])
def test_a_collect_that_takes_the_wake_up_leaves_the_drain_ready(rig, who):
    drain = rig.another_drain(max_events=1)
    ctxs = [rig.eventfd() for _ in range(3)]
    for ctx in ctxs:
        drain.add(ctx)
        rig.bind(ctx)
    poller = select.poll()
    poller.register(drain.fileno(), select.POLLIN)
    if who == "thread":
        thread = threading.Thread(target=lambda: [ctx.signal() for ctx in ctxs])
        thread.start()
        thread.join()
    else:
        for ctx in ctxs:
            write(ctx)
    for _ in range(3):
        drain.collect()
        assert poller.poll(0), "nobody would ever run it"
    assert rig.run(drain) == 3
    assert [ctx._wakeups for ctx in ctxs] == [1] * 3
    drain.collect()
    assert not poller.poll(0)


# -------------------------------------------------------------------------------------------------------- stale events


def test_an_event_of_the_same_batch_does_not_reach_who_took_over_the_fd_number(rig):
    newcomer = []

    class Killer(Irqfd):
        def wakeup(self, count, /):
            super().wakeup(count)
            if not newcomer:
                victim = second if self is first_irqfd else first
                rig.unbind(victim)
                number = victim._fd
                os.close(number)
                victim._fd = -1
                ctx = rig.eventfd()
                assert ctx._fd == number
                newcomer.append((ctx, rig.bind(ctx)))

    first, second = rig.eventfd(), rig.eventfd()
    first_irqfd = rig.bind(first, irqfd=Killer())
    second_irqfd = rig.bind(second, irqfd=Killer())
    write(first)
    write(second)
    rig.run()
    assert len(first_irqfd.wakeups) + len(second_irqfd.wakeups) == 1
    ctx, irqfd = newcomer[0]
    assert irqfd.wakeups == []
    write(ctx)
    rig.run()
    assert irqfd.wakeups == [1]


def test_a_dup_that_outlives_its_eventfd_reports_to_nobody(rig):
    # Row E22: the epoll goes on reporting under the old number, which is somebody else's by now.
    old = rig.eventfd()
    rig.bind(old)
    dup = os.dup(old._fd)
    number = old._fd
    os.close(number)
    old._fd = -1
    newcomer = rig.eventfd()
    assert newcomer._fd == number
    old._unbind()
    rig.drain.remove(old)
    irqfd = rig.bind(newcomer, want_count=True)
    os.eventfd_write(dup, 1)
    rig.run()
    assert irqfd.wakeups == []
    write(newcomer, 5)
    rig.run()
    assert irqfd.wakeups == [5]
    os.close(dup)


def test_an_fd_closed_behind_our_back_is_not_unregistered_under_its_new_owner(rig):
    old = rig.eventfd()
    rig.bind(old)
    os.close(old._fd)
    newcomer = rig.eventfd()
    assert newcomer._fd == old._fd
    irqfd = rig.bind(newcomer)
    old._unbind()
    rig.drain.remove(old)
    old._fd = -1
    write(newcomer)
    rig.run()
    assert irqfd.wakeups == [1]


def test_what_has_left_is_not_dispatched(rig):
    ctx = rig.eventfd()
    rig.drain.add(ctx)
    ctx._listening = True
    thread = threading.Thread(target=ctx.signal)
    thread.start()
    thread.join()
    write(ctx)
    rig.drain.collect()
    assert ctx._owed
    rig.drain.remove(ctx)
    assert not ctx._owed
    rig.run()
    assert ctx.ready == 0
    # Nothing is lost by it: the count is there, and an event wherever it is added next.
    rig.drain.add(ctx)
    rig.run()
    assert ctx.ready == 1
    assert ctx._take() == 2


def test_a_count_of_this_process_is_an_event_when_it_is_added(rig):
    ctx = rig.eventfd()
    rig.drain.add(ctx)
    ctx._listening = True
    rig.drain.remove(ctx)
    other = rig.another_drain()
    other.add(ctx)
    thread = threading.Thread(target=ctx.signal)
    thread.start()
    thread.join()
    other.remove(ctx)
    assert (ctx._count, rig.count(ctx)) == (1, 0)
    irqfd = rig.bind(ctx)
    rig.run()
    assert irqfd.wakeups == [1]


@pytest.mark.parametrize("fate", ["idle", "closed", "run later"])
def test_an_eventfd_that_changes_drains_with_a_post_under_way_is_not_deaf(rig, fate):
    ctx = rig.eventfd()
    irqfd = rig.bind(ctx)
    bystander = rig.eventfd()
    bystander_irqfd = rig.bind(bystander)

    def elsewhere(*ctxs):
        thread = threading.Thread(target=lambda: [each.signal() for each in ctxs])
        thread.start()
        thread.join()

    elsewhere(ctx, bystander)
    rig.drain.remove(ctx)
    if fate == "closed":
        rig.drain.close()
    other = rig.another_drain()
    other.add(ctx)
    assert rig.run(other) == 1
    assert irqfd.wakeups == [1]
    elsewhere(ctx)
    assert rig.run(other) == 1
    assert irqfd.wakeups == [1, 1]
    if fate == "run later":
        assert rig.run(rig.drain) == 1
        assert bystander_irqfd.wakeups == [1]
        assert irqfd.wakeups == [1, 1]


# ------------------------------------------------------------------------------------- signals of this process, nested


def test_what_a_pass_that_is_torn_apart_has_not_reached_comes_in_the_next(rig):
    # In the twin a Python signal handler may raise in the middle of it. Here it is whoever queues the first one's handler.
    if keeps_unread(rig):
        return
    ctxs = [rig.eventfd() for _ in range(4)]
    errors = [KeyboardInterrupt]

    def on_ready():
        if errors:
            raise errors.pop()

    top_half = rig.module.TopHalf(None, None, None, on_ready)
    for number, ctx in enumerate(ctxs):
        rig.drain.add(ctx)
        ctx._bind(top_half, Irqfd(), True, print, None)
        ctx._arm(CellType("it"))
        if number % 2:
            write(ctx)
        else:
            thread = threading.Thread(target=ctx.signal)
            thread.start()
            thread.join()
    with pytest.raises(KeyboardInterrupt):
        rig.run()
    assert not rig.drain.dispatching
    rig.run()
    assert [ctx._queued for ctx in ctxs] == [True] * 4
    assert top_half.ready == 4


def test_a_signal_on_the_drains_own_thread_runs_the_wakeup_at_once(rig):
    ctx = rig.eventfd()
    sink = Sink()
    top_half = rig.module.TopHalf(sink.try_inject)
    irqfd = rig.bind(ctx, top_half, interrupt="it")
    assert ctx.signal(3) == 3
    assert sink.interrupts == ["it"]
    assert (ctx._signals, ctx._wakeups, ctx._fast, ctx._owed, ctx._count) == (3, 1, 1, False, 0)
    ctx._arm(None)
    ctx.signal(2)
    assert irqfd.wakeups == [2]
    assert rig.drain.run() == 0
    assert rig.count(ctx) == 0


def test_a_signal_of_another_thread_wakes_the_drain_once_for_all(rig):
    ctxs = [rig.eventfd() for _ in range(3)]
    irqfds = [rig.bind(ctx) for ctx in ctxs]
    thread = threading.Thread(target=lambda: [ctx.signal(number) for number in (1, 2, 3) for ctx in ctxs])
    thread.start()
    thread.join()
    assert select.select([rig.drain.fileno()], [], [], 0)[0]
    assert all(ctx._owed for ctx in ctxs)
    assert rig.drain.run() == 3
    assert [irqfd.wakeups for irqfd in irqfds] == [[6]] * 3
    assert select.select([rig.drain.fileno()], [], [], 0)[0] == []


def test_a_signal_from_within_a_wakeup_waits_its_turn(rig):
    ctxs = [rig.eventfd() for _ in range(50)]
    sink = Sink()
    chain = itertools.cycle(ctxs)
    left = iter(range(10_000))

    def another(_interrupt):
        if next(left, None) is not None:
            next(chain).signal()

    sink.on_interrupt = another
    top_half = rig.module.TopHalf(sink.try_inject, sink.try_inject_batch)
    for ctx in ctxs:
        rig.bind(ctx, top_half, interrupt="it")
    next(chain).signal()
    assert len(sink.interrupts) == 1
    rig.run(limit=20_000)
    assert len(sink.interrupts) == 10_001
    assert sink.deepest == 1
    assert sum(ctx._signals for ctx in ctxs) == 10_001


def test_an_irqfd_that_signals_itself_comes_again_in_the_next_pass(rig):
    ctx = rig.eventfd()

    class Own(Irqfd):
        def wakeup(self, count, /):
            super().wakeup(count)
            if len(self.wakeups) < 5:
                ctx.signal(2)

    irqfd = rig.bind(ctx, irqfd=Own())
    ctx.signal()
    for done in range(1, 6):
        assert len(irqfd.wakeups) == done
        rig.drain.run()
    assert irqfd.wakeups == [1, 2, 2, 2, 2]


def test_a_pass_inside_a_pass_does_nothing(rig):
    ctx = rig.eventfd()
    other = rig.eventfd()
    passes = []

    class Greedy(Irqfd):
        def wakeup(self, count, /):
            super().wakeup(count)
            assert rig.drain.dispatching
            passes.append(rig.drain.run())

    irqfds = [rig.bind(ctx, irqfd=Greedy()), rig.bind(other, irqfd=Greedy())]
    write(ctx)
    write(other)
    assert rig.drain.run() == 2
    assert not rig.drain.dispatching
    assert passes == [0, 0]
    assert [irqfd.wakeups for irqfd in irqfds] == [[1], [1]]


def test_a_spurious_event_is_nobodys_wakeup(rig):
    # Somebody else has read it between the event and its dispatch.
    ctx = rig.eventfd()
    irqfd = rig.bind(ctx, want_count=True)
    write(ctx, 3)
    rig.drain.collect()
    assert ctx._owed
    assert os.eventfd_read(ctx._fd) == 3
    rig.drain.run()
    assert irqfd.wakeups == []
    assert (ctx._owed, ctx._wakeups, ctx._signals) == (False, 0, 0)
    write(ctx, 2)
    rig.drain.run()
    assert irqfd.wakeups == [2]


def test_read_out_does_not_owe_what_somebody_else_has_read(rig):
    ctx = rig.eventfd()
    irqfd = rig.bind(ctx, want_count=True)
    write(ctx, 3)
    rig.drain.collect()
    assert os.eventfd_read(ctx._fd) == 3
    assert rig.drain.read_out(ctx) == 0
    rig.run()
    assert irqfd.wakeups == []


def test_an_event_that_was_read_before_the_pass_is_none(rig):
    ctx = rig.eventfd()
    irqfd = rig.bind(ctx)
    write(ctx)
    os.eventfd_read(ctx._fd)
    assert rig.drain.run() == 0
    assert irqfd.wakeups == []
