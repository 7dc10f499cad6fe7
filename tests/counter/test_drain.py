"""Drain, EventFdCtx and Drain.settle, in both implementations and without an event loop: who gets which event, and how often."""

from __future__ import annotations

import errno
import itertools
import os
import select
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.counter.rig import FULL, Irqfd, Rig, Sink, write
from tests.counter.test_counter import BOTH


def keeps_unread(rig):
    """Whether this is the implementation that leaves counts unread."""
    return rig.module.__name__.endswith("_native")


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
    stop = threading.Event()
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
        write(ctx)
        drain.collect()
        assert ctx._owed
    finally:
        stop.set()
        os.kill(child, 9)
        os.waitpid(child, 0)


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


def test_settle_does_not_owe_what_somebody_else_has_read(rig):
    ctx = rig.eventfd()
    irqfd = rig.bind(ctx, want_count=True)
    write(ctx, 3)
    rig.drain.collect()
    assert os.eventfd_read(ctx._fd) == 3
    assert rig.drain.settle(ctx) == 0
    rig.run()
    assert irqfd.wakeups == []


def test_an_event_that_was_read_before_the_pass_is_none(rig):
    ctx = rig.eventfd()
    irqfd = rig.bind(ctx)
    write(ctx)
    os.eventfd_read(ctx._fd)
    assert rig.drain.run() == 0
    assert irqfd.wakeups == []


# ---------------------------------------------------------------------------------- what was there, and what is left


def test_a_leftover_is_injected_once_and_stays_until_the_next_write(rig):
    # Rows P01, P03, P04.
    ctx = rig.eventfd(3)
    irqfd = rig.bind(ctx)
    rig.run()
    assert irqfd.wakeups == [1]
    assert (rig.count(ctx), ctx._leftover) == (3, True)
    rig.run()
    assert irqfd.wakeups == [1]
    assert ctx._take() == 3
    write(ctx)
    rig.run()
    assert len(irqfd.wakeups) == 2


def test_the_next_write_consumes_a_leftover(rig):
    # Row P04.
    ctx = rig.eventfd(3)
    irqfd = rig.bind(ctx)
    rig.run()
    write(ctx)
    rig.run()
    assert not ctx._leftover
    assert rig.drain.settle_unread(10) == 0
    assert rig.count(ctx) == 0
    rig.run()
    assert len(irqfd.wakeups) == 2
    assert ctx._signals == 4


def test_who_asks_for_counts_gets_a_leftovers_too(rig):
    ctx = rig.eventfd(3)
    irqfd = rig.bind(ctx, want_count=True)
    rig.run()
    assert irqfd.wakeups == [3]
    assert rig.count(ctx) == 0
    assert not ctx._leftover


@pytest.mark.parametrize(("semaphore", "injections", "left"), [(False, 1, 0), (True, 2, 1)])
def test_cycles_of_assign_and_deassign_with_a_leftover(rig, semaphore, injections, left):
    # Row P12.
    ctx = rig.eventfd(3, semaphore=semaphore)
    wakeups = []
    for _ in range(2):
        irqfd = rig.bind(ctx)
        rig.run()
        assert rig.unbind(ctx) == 0
        wakeups += irqfd.wakeups
    assert wakeups == [1] * injections
    assert rig.count(ctx) == left


@pytest.mark.parametrize(("initial", "semaphore", "left"), [(7, False, 0), (7, True, 6), (0, False, 0), (0, True, 0)])
@pytest.mark.parametrize("seen", [False, True])
def test_deassign_drains(rig, initial, semaphore, left, seen):
    # Row P05; what was not injected yet is owed.
    ctx = rig.eventfd(initial, semaphore=semaphore)
    rig.bind(ctx)
    if seen:
        rig.run()
    owed = rig.unbind(ctx)
    assert rig.count(ctx) == left
    assert bool(owed) == (initial > 0 and not seen)


def test_a_semaphore_gives_one_for_each_injection(rig):
    # Row P06.
    ctx = rig.eventfd(semaphore=True)
    irqfd = rig.bind(ctx)
    for number in range(1, 4):
        write(ctx)
        rig.run()
        assert irqfd.wakeups == [1] * number
        assert rig.count(ctx) == 0
    write(ctx, 5)
    rig.run()
    assert irqfd.wakeups == [1] * 4
    assert rig.count(ctx) == 4
    rig.run()
    assert irqfd.wakeups == [1] * 4


def test_a_semaphore_signalled_in_this_process_piles_up_likewise(rig):
    ctx = rig.eventfd(semaphore=True)
    irqfd = rig.bind(ctx)
    ctx.signal(5)
    assert irqfd.wakeups == [1]
    ctx.signal()
    assert irqfd.wakeups == [1, 1]
    assert ctx._count == 4
    assert rig.unbind(ctx) == 1
    assert (ctx._count, rig.count(ctx)) == (0, 3)


def test_settle_says_what_was_not_injected_yet(rig):
    ctx = rig.eventfd()
    irqfd = rig.bind(ctx)
    assert rig.drain.settle(ctx) == 0
    write(ctx, 3)
    assert rig.drain.settle(ctx) >= 1
    rig.run()
    assert irqfd.wakeups == []
    assert rig.count(ctx) == 0
    write(ctx, 3)
    rig.run()
    assert rig.drain.settle(ctx) == 0
    assert len(irqfd.wakeups) == 1
    write(ctx, 3)
    rig.run()
    write(ctx, 2)
    assert rig.drain.settle(ctx) >= 1
    assert rig.drain.settle(ctx) == 0
    assert rig.count(ctx) == 0
    rig.run()
    assert len(irqfd.wakeups) == 2
    assert ctx._signals == 11


def test_settle_is_exact_for_who_asks_for_counts(rig):
    ctx = rig.eventfd(5)
    irqfd = rig.bind(ctx, want_count=True)
    got = [rig.drain.settle(ctx)]
    for value in (1, 2, 4):
        write(ctx, value)
        rig.run()
        write(ctx, 10 * value)
        thread = threading.Thread(target=ctx.signal, args=(100 * value,))
        thread.start()
        thread.join()
        got.append(rig.drain.settle(ctx))
        rig.run()
    assert irqfd.wakeups == [1, 2, 4]
    assert got == [5, 110, 220, 440]
    assert ctx._signals == 5 + 7 * 111


def test_settle_notes_what_the_others_owe(rig):
    ctxs = [rig.eventfd() for _ in range(3)]
    irqfds = [rig.bind(ctx) for ctx in ctxs]
    for ctx in ctxs:
        write(ctx)
    assert rig.drain.settle(ctxs[1]) == 1
    assert [ctx._owed for ctx in ctxs] == [True, False, True]
    rig.run()
    assert [irqfd.wakeups for irqfd in irqfds] == [[1], [], [1]]


# ---------------------------------------------------------------------------------------- counts that are left unread


def test_a_count_that_nobody_asks_for_stays_unread_until_it_is_settled(rig):
    ctxs = [rig.eventfd() for _ in range(5)]
    irqfds = [rig.bind(ctx) for ctx in ctxs]
    for ctx in ctxs:
        write(ctx, 7)
    rig.run()
    if not keeps_unread(rig):
        assert rig.drain.unread == rig.drain.settle_unread(10) == 0
        assert [rig.count(ctx) for ctx in ctxs] == [0] * 5
        return
    assert rig.drain.unread == 5
    assert [rig.count(ctx) for ctx in ctxs] == [7] * 5
    assert rig.drain.settle_unread(0) == 5
    assert rig.drain.settle_unread(2) == 3
    assert sorted(rig.count(ctx) for ctx in ctxs) == [0, 0, 7, 7, 7]
    assert rig.drain.settle_unread(100) == 0
    assert [rig.count(ctx) for ctx in ctxs] == [0] * 5
    rig.run()
    assert [irqfd.wakeups for irqfd in irqfds] == [[1]] * 5
    assert [ctx._signals for ctx in ctxs] == [7] * 5


def test_a_write_after_the_injection_is_not_taken_for_an_old_one(rig):
    ctx = rig.eventfd()
    irqfd = rig.bind(ctx)
    write(ctx, 7)
    rig.run()
    write(ctx, 2)
    rig.drain.settle_unread(10)
    rig.run()
    assert len(irqfd.wakeups) == 2
    rig.drain.settle_unread(10)
    rig.run()
    assert len(irqfd.wakeups) == 2
    assert (rig.count(ctx), ctx._signals) == (0, 9)


def test_who_is_about_to_be_dispatched_is_settled_afterwards(rig):
    ctx = rig.eventfd()
    rig.bind(ctx)
    write(ctx, 7)
    rig.run()
    write(ctx, 2)
    rig.drain.collect()
    rig.drain.settle_unread(10)
    rig.run()
    assert rig.drain.unread == (1 if keeps_unread(rig) else 0)
    rig.drain.settle_unread(10)
    assert rig.count(ctx) == 0


def wait_until_settled(rig):
    poller = select.poll()
    poller.register(rig.drain.fileno(), select.POLLIN)
    for _ in range(100):
        if not rig.drain.unread:
            return
        assert poller.poll(10_000), "nothing ever settles what was left unread"
        rig.drain.run()
    raise AssertionError("woken again and again, and never settled")


def test_it_is_settled_by_and_by_without_being_asked(rig):
    ctxs = [rig.eventfd() for _ in range(600)]
    for ctx in ctxs:
        rig.bind(ctx)
        write(ctx, 7)
    rig.run()
    wait_until_settled(rig)
    assert sum(rig.count(ctx) for ctx in ctxs) == 0
    assert sum(ctx._wakeups for ctx in ctxs) == 600


def test_it_is_settled_also_when_a_collect_took_the_timers_event(rig):
    ctx = rig.eventfd()
    rig.bind(ctx)
    write(ctx, 7)
    rig.run()
    if keeps_unread(rig):
        poller = select.poll()
        poller.register(rig.drain.fileno(), select.POLLIN)
        assert poller.poll(10_000)
        rig.drain.collect()
        assert rig.drain.unread == 1
    wait_until_settled(rig)
    assert rig.count(ctx) == 0


@pytest.mark.parametrize("module", BOTH, ids=lambda module: module.__name__.rpartition("_")[2])
@given(
    script=st.lists(
        st.sampled_from(["write", "signal", "elsewhere", "run", "collect", "settle", "settle_unread", "rebind"]),
        max_size=40,
    ),
    want_count=st.booleans(),
    fast=st.booleans(),
    initial=st.sampled_from([0, 1, 5]),
)
@settings(max_examples=150, deadline=None)
def test_no_signal_is_lost_and_none_is_counted_twice(module, script, want_count, fast, initial):
    rig = Rig(module)
    try:
        ctx = rig.eventfd(initial)
        injected = []
        top_half = module.TopHalf(lambda _interrupt: injected.append("fast") is None)
        interrupt = "it" if fast and not want_count else None
        irqfd = rig.bind(ctx, top_half, interrupt=interrupt, want_count=want_count)
        irqfds = [irqfd]
        owed = []
        sent = initial
        since_dispatch = bool(initial)
        signals = 1 if initial else 0  # calls that signalled, the leftover being one

        def dispatched():
            return len(injected) + sum(len(each.wakeups) for each in irqfds) + sum(map(bool, owed))

        for number, step in enumerate(script, 1):
            before = dispatched()
            if step in {"write", "signal", "elsewhere"}:
                sent += number
                signals += 1
                since_dispatch = True
                if step == "write":
                    write(ctx, number)
                elif step == "signal":
                    # At once, or together with what is on its way already.
                    on_its_way = ctx._owed
                    ctx.signal(number)
                    assert dispatched() == before + (not on_its_way)
                else:
                    thread = threading.Thread(target=ctx.signal, args=(number,))
                    thread.start()
                    thread.join()
            elif step == "run":
                rig.run()
                if since_dispatch:
                    assert dispatched() > 0
                since_dispatch = False
            elif step == "collect":
                rig.drain.collect()
            elif step == "settle":
                owed.append(rig.drain.settle(ctx))
                since_dispatch = False
            elif step == "settle_unread":
                rig.drain.settle_unread(10)
            else:
                owed.append(rig.unbind(ctx))
                since_dispatch = False
                irqfds.append(rig.bind(ctx, top_half, interrupt=interrupt, want_count=want_count))
            if not since_dispatch and signals:
                assert dispatched() > 0
            assert dispatched() <= signals
        owed.append(rig.unbind(ctx))
        rig.run()
        assert dispatched() <= signals
        assert (dispatched() > 0) == (signals > 0)
        assert ctx._signals == sent
        assert rig.count(ctx) == ctx._count == 0
        if want_count:
            assert sum(sum(each.wakeups) for each in irqfds) + sum(owed) == sent
    finally:
        rig.close()


# ---------------------------------------------------------------------------------------------------- near the top


def test_a_full_counter_is_emptied_at_once(rig):
    # As in the kernel, the next writer finds room, whatever was written before (rows P04, P11).
    ctx = rig.eventfd()
    irqfd = rig.bind(ctx)
    for number in range(1, 4):
        write(ctx, FULL)
        rig.run()
        assert len(irqfd.wakeups) == number
        assert rig.count(ctx) == 0
    write(ctx, FULL - 1)
    rig.run()
    write(ctx, 1)
    rig.run()
    write(ctx, 1)
    rig.run()
    assert len(irqfd.wakeups) == 6


def test_a_full_leftover_refuses_writers_until_it_is_read(rig):
    # Row P07.
    ctx = rig.eventfd()
    write(ctx, FULL)
    irqfd = rig.bind(ctx)
    rig.run()
    assert irqfd.wakeups == [1]
    with pytest.raises(BlockingIOError):
        write(ctx)
    assert ctx._take() == FULL
    write(ctx)
    rig.run()
    assert len(irqfd.wakeups) == 2


def test_a_full_semaphore_refuses_writers(rig):
    # Row P06.
    ctx = rig.eventfd(semaphore=True)
    irqfd = rig.bind(ctx)
    write(ctx, FULL)
    rig.run()
    assert rig.count(ctx) == FULL - 1
    write(ctx)
    rig.run()
    assert irqfd.wakeups == [1, 1]


@pytest.mark.parametrize(("inside", "outside"), [(FULL, FULL), (FULL, 1), (FULL, 2), (1, FULL), (FULL - 1, FULL)])
def test_two_counters_near_the_top_lose_nothing(rig, inside, outside):
    ctx = rig.eventfd()
    irqfd = rig.bind(ctx, want_count=True)
    thread = threading.Thread(target=ctx.signal, args=(inside,))
    thread.start()
    thread.join()
    write(ctx, outside)
    rig.run()
    assert sum(irqfd.wakeups) == inside + outside
    assert all(count < 2**64 for count in irqfd.wakeups)
    assert ctx._signals == (inside + outside) % 2**64


@pytest.mark.parametrize(("inside", "outside"), [(FULL, FULL), (FULL, 1), (FULL, 2), (1, FULL)])
def test_a_reader_of_two_counters_near_the_top_loses_nothing(rig, inside, outside):
    ctx = rig.eventfd()
    rig.drain.add(ctx)
    ctx._listening = True
    thread = threading.Thread(target=ctx.signal, args=(inside,))
    thread.start()
    thread.join()
    write(ctx, outside)
    first = ctx._take()
    assert first < 2**64
    assert first + ctx._take() == inside + outside


def test_the_count_of_this_process_saturates_and_says_so(rig):
    ctx = rig.eventfd()
    rig.drain.add(ctx)
    ctx._listening = True
    added = []
    thread = threading.Thread(target=lambda: added.extend(map(ctx.signal, (FULL - 1, 5, 5))))
    thread.start()
    thread.join()
    assert added == [FULL - 1, 1, 0]
    assert ctx._take() == FULL


def test_a_write_that_does_not_fit_is_cut_to_what_does(rig):
    # Row E07: the kernel would add nothing at all.
    ctx = rig.eventfd()
    assert ctx.signal(FULL - 2) == FULL - 2
    assert ctx.signal(5) == 2
    assert ctx.signal() == 0
    assert rig.count(ctx) == FULL


def test_what_does_not_fit_into_the_kernels_counter_stays_here(rig):
    ctx = rig.eventfd()
    rig.drain.add(ctx)
    ctx._listening = True
    thread = threading.Thread(target=ctx.signal, args=(10,))
    thread.start()
    thread.join()
    write(ctx, FULL - 3)
    ctx._spill()
    assert (rig.count(ctx), ctx._count) == (FULL, 7)
    assert ctx._take() + ctx._take() == FULL + 7


# ------------------------------------------------------------------------------------------------ other people's flags


@pytest.mark.parametrize("semaphore", [False, True])
def test_a_blocking_eventfd_never_blocks(rig, semaphore):
    # The test's time limit is what it would run into.
    ctx = rig.eventfd(blocking=True, semaphore=semaphore)
    assert os.get_blocking(ctx._fd)
    assert ctx._take() == 0
    assert ctx._readable() is False
    irqfd = rig.bind(ctx, want_count=True)
    write(ctx, 3)
    rig.drain.collect()
    drained = [os.eventfd_read(ctx._fd) for _ in range(3 if semaphore else 1)]
    assert sum(drained) == 3
    rig.run()
    assert irqfd.wakeups == []
    assert rig.unbind(ctx) == 0
    assert ctx.signal(FULL - 1) == FULL - 1
    assert ctx.signal(7) == 1
    assert ctx.signal(7) == 0
    assert ctx.signal() == 0
    assert ctx._take() == (1 if semaphore else FULL)
    assert ctx.signal() == 1


def test_where_nobody_listens_a_signal_is_a_write(rig):
    ctx = rig.eventfd()
    assert ctx.signal(3) == 3
    assert (rig.count(ctx), ctx._count) == (3, 0)
    rig.drain.add(ctx)
    ctx.signal(2)
    assert (rig.count(ctx), ctx._count) == (5, 0)
    rig.run()
    assert ctx.ready == 1
    rig.drain.close()
    ctx._listening = True
    ctx.signal(2)
    assert (rig.count(ctx), ctx._count) == (7, 0)


def test_errors_of_the_fd_are_told_and_nothing_is_lost(rig):
    ctx = rig.eventfd()
    rig.drain.add(ctx)
    ctx._listening = True
    thread = threading.Thread(target=ctx.signal, args=(3,))
    thread.start()
    thread.join()
    number = ctx._fd
    ctx._fd = 2**20 - 1
    for touch in (ctx._take, ctx._spill):
        with pytest.raises(OSError) as caught:
            touch()
        assert caught.value.errno == errno.EBADF
        assert ctx._count == 3
    ctx._listening = False
    with pytest.raises(OSError) as caught:
        ctx.signal()
    assert caught.value.errno == errno.EBADF
    ctx._fd = number
    assert ctx._take() == 3


# ------------------------------------------------------------------------------------------------------------- misuse


def test_misuse_is_refused(rig):
    module = rig.module
    drain, other = rig.drain, rig.another_drain()
    ctx = rig.eventfd()
    top_half = module.TopHalf()
    with pytest.raises(TypeError):
        drain.remove(ctx)
    with pytest.raises(TypeError):
        drain.settle(ctx)
    with pytest.raises(RuntimeError):
        ctx._bind(top_half, Irqfd(), False, None)
    drain.add(ctx)
    for again in (drain, other):
        with pytest.raises(RuntimeError):
            again.add(ctx)
    with pytest.raises(TypeError):
        other.remove(ctx)
    ctx._bind(top_half, Irqfd(), False, None)
    with pytest.raises(RuntimeError):
        ctx._bind(top_half, Irqfd(), False, None)
    for bad in (0, -1, 2**20 + 1):
        with pytest.raises(ValueError, match="max_events"):
            module.Drain(bad)
    for bad in (
        lambda: module.Drain("1"),
        lambda: module.EventFdCtx("0"),
        module.EventFdCtx,
        lambda: ctx.signal("x"),
    ):
        with pytest.raises(TypeError):
            bad()
    for bad in (0, -1, 2**64 - 1, 2**64):
        with pytest.raises(ValueError, match="a signal is"):
            ctx.signal(bad)
    assert ctx._count == 0
    assert (drain.attached, other.attached, drain.max_events) == (1, 0, 1024)


def test_an_fd_that_cannot_be_registered(rig):
    end, other_end = os.pipe()
    os.close(other_end)
    os.close(end)
    ctx = rig.module.EventFdCtx(end)
    with pytest.raises(OSError) as caught:
        rig.drain.add(ctx)
    assert caught.value.errno == errno.EBADF
    assert not ctx._registered
    assert rig.drain.attached == 0
    good = rig.eventfd()
    irqfd = rig.bind(good)
    same = rig.module.EventFdCtx(good._fd)
    with pytest.raises(OSError) as caught:
        rig.drain.add(same)
    assert caught.value.errno == errno.EEXIST
    write(good)
    rig.run()
    assert irqfd.wakeups == [1]


def test_a_closed_drain(rig):
    ctx = rig.eventfd()
    rig.bind(ctx)
    drain = rig.drain
    assert drain.fileno() >= 0
    drain.close()
    drain.close()
    assert drain.fileno() == -1
    assert drain.run() == 0
    drain.collect()
    assert drain.settle(ctx) == 0
    assert drain.settle_unread(5) == 0
    with pytest.raises(RuntimeError):
        drain.add(rig.eventfd())
    drain.remove(ctx)
    assert drain.attached == 0


def test_a_drain_that_is_closed_from_within_a_pass(rig):
    ctxs = [rig.eventfd() for _ in range(3)]

    class Last(Irqfd):
        def wakeup(self, count, /):
            super().wakeup(count)
            for ctx in ctxs:
                ctx._unbind()
                rig.drain.remove(ctx)
            rig.drain.close()

    irqfds = [rig.bind(ctx, irqfd=Last()) for ctx in ctxs]
    for ctx in ctxs:
        write(ctx)
    rig.drain.run()
    assert sum(len(irqfd.wakeups) for irqfd in irqfds) == 1
    assert rig.drain.run() == 0


# ---------------------------------------------------------------------------------------------------------------- fork


def in_child(function):
    """Run it in a forked child; its exit status, 0 when it returned."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_child_signals_and_leaves_the_parents_registrations_alone(rig):
    ctx = rig.eventfd()
    irqfd = rig.bind(ctx, want_count=True)

    def child():
        rig.drain.abandon()
        assert rig.drain.fileno() == -1
        assert ctx.signal(5) == 5
        ctx._unbind()
        ctx._spill()
        rig.drain.remove(ctx)
        os.close(ctx._fd)

    assert in_child(child) == 0
    rig.run()
    assert irqfd.wakeups == [5]
    write(ctx, 2)
    rig.run()
    assert irqfd.wakeups == [5, 2]


def test_what_the_parent_has_counted_is_not_counted_again_by_its_child(rig):
    ctx = rig.eventfd()
    irqfd = rig.bind(ctx, want_count=True)
    thread = threading.Thread(target=ctx.signal, args=(3,))
    thread.start()
    thread.join()

    def child():
        rig.drain.abandon()
        assert ctx._count == 0
        ctx._unbind()
        ctx._spill()

    assert in_child(child) == 0
    rig.run()
    assert irqfd.wakeups == [3]
