"""What was there at assign time, what is left unread, and what read_out() says of it; in both implementations."""

from __future__ import annotations

import select
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.counter.rig import FULL, Rig, keeps_unread, write
from tests.counter.test_counter import BOTH

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
    assert rig.drain.read_unread(10) == 0
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
    assert rig.unbind(ctx) == 0, "its rest is owed no injection"
    assert (ctx._count, rig.count(ctx)) == (0, 3), "and one of it is gone (row P05)"


@pytest.mark.parametrize("how", ["write", "signal", "elsewhere"])
def test_who_asks_for_counts_is_told_of_every_signal_of_a_semaphore(rig, how):
    ctx = rig.eventfd(2, semaphore=True)
    irqfd = rig.bind(ctx, want_count=True)
    rig.run()
    assert irqfd.wakeups == [2]
    for value in (1, 5):
        if how == "write":
            for _ in range(value):
                write(ctx)
        elif how == "signal":
            ctx.signal(value)
        else:
            thread = threading.Thread(target=ctx.signal, args=(value,))
            thread.start()
            thread.join()
        rig.run()
    assert irqfd.wakeups == [2, 1, 5]
    write(ctx, 3)
    assert rig.unbind(ctx) == 3
    assert (rig.count(ctx), ctx._count, ctx._signals) == (0, 0, 11)


def test_a_semaphore_that_is_very_full_is_told_by_and_by(rig):
    ctx = rig.eventfd(semaphore=True)
    irqfd = rig.bind(ctx, want_count=True)
    write(ctx, 600)
    assert rig.drain.run() == 1
    assert rig.count(ctx) == 344
    rig.run()
    assert irqfd.wakeups == [256, 256, 88]
    assert (rig.count(ctx), ctx._signals) == (0, 600)


def test_read_out_empties_a_semaphore_however_full(rig):
    ctx = rig.eventfd(semaphore=True)
    irqfd = rig.bind(ctx, want_count=True)
    write(ctx, 5000)
    assert rig.drain.read_out(ctx) == 5000
    rig.run()
    assert irqfd.wakeups == []
    assert (rig.count(ctx), ctx._signals) == (0, 5000)


def test_a_semaphore_that_nobody_could_ever_empty_keeps_what_is_beyond_the_bound(rig):
    ctx = rig.eventfd(semaphore=True)
    rig.bind(ctx, want_count=True)
    write(ctx, FULL)
    assert rig.drain.read_out(ctx) == 2**20
    assert ctx._owed, "the rest is told by and by"
    assert rig.count(ctx) == FULL - 2**20


def test_read_out_says_what_was_not_injected_yet(rig):
    ctx = rig.eventfd()
    sink = rig.bind_fast(ctx)
    assert rig.drain.read_out(ctx) == 0
    write(ctx, 3)
    assert rig.drain.read_out(ctx) >= 1
    rig.run()
    assert sink.interrupts == []
    assert rig.count(ctx) == 0
    write(ctx, 3)
    rig.run()
    assert rig.drain.read_out(ctx) == 0
    assert len(sink.interrupts) == 1
    write(ctx, 3)
    rig.run()
    write(ctx, 2)
    assert rig.drain.read_out(ctx) >= 1
    assert rig.drain.read_out(ctx) == 0
    assert rig.count(ctx) == 0
    rig.run()
    assert len(sink.interrupts) == 2
    assert ctx._signals == 11


def test_read_out_is_exact_for_who_asks_for_counts(rig):
    ctx = rig.eventfd(5)
    irqfd = rig.bind(ctx, want_count=True)
    got = [rig.drain.read_out(ctx)]
    for value in (1, 2, 4):
        write(ctx, value)
        rig.run()
        write(ctx, 10 * value)
        thread = threading.Thread(target=ctx.signal, args=(100 * value,))
        thread.start()
        thread.join()
        got.append(rig.drain.read_out(ctx))
        rig.run()
    assert irqfd.wakeups == [1, 2, 4]
    assert got == [5, 110, 220, 440]
    assert ctx._signals == 5 + 7 * 111


def test_read_out_notes_what_the_others_owe(rig):
    ctxs = [rig.eventfd() for _ in range(3)]
    irqfds = [rig.bind(ctx) for ctx in ctxs]
    for ctx in ctxs:
        write(ctx)
    assert rig.drain.read_out(ctxs[1]) == 1
    assert [ctx._owed for ctx in ctxs] == [True, False, True]
    rig.run()
    assert [irqfd.wakeups for irqfd in irqfds] == [[1], [], [1]]


# ---------------------------------------------------------------------------------------- counts that are left unread


def test_a_count_that_nobody_asks_for_stays_unread_until_it_is_read(rig):
    ctxs = [rig.eventfd() for _ in range(5)]
    sinks = [rig.bind_fast(ctx) for ctx in ctxs]
    for ctx in ctxs:
        write(ctx, 7)
    rig.run()
    if not keeps_unread(rig):
        assert rig.drain.unread == rig.drain.read_unread(10) == 0
        assert [rig.count(ctx) for ctx in ctxs] == [0] * 5
        return
    assert rig.drain.unread == 5
    assert [rig.count(ctx) for ctx in ctxs] == [7] * 5
    assert rig.drain.read_unread(0) == 5
    assert rig.drain.read_unread(2) == 3
    assert sorted(rig.count(ctx) for ctx in ctxs) == [0, 0, 7, 7, 7]
    assert rig.drain.read_unread(100) == 0
    assert [rig.count(ctx) for ctx in ctxs] == [0] * 5
    rig.run()
    assert [sink.interrupts for sink in sinks] == [["it"]] * 5
    assert [ctx._signals for ctx in ctxs] == [7] * 5


def test_a_write_after_the_injection_is_not_taken_for_an_old_one(rig):
    ctx = rig.eventfd()
    sink = rig.bind_fast(ctx)
    write(ctx, 7)
    rig.run()
    write(ctx, 2)
    rig.drain.read_unread(10)
    rig.run()
    assert len(sink.interrupts) == 2
    rig.drain.read_unread(10)
    rig.run()
    assert len(sink.interrupts) == 2
    assert (rig.count(ctx), ctx._signals) == (0, 9)


def test_who_is_about_to_be_dispatched_is_read_afterwards(rig):
    ctx = rig.eventfd()
    rig.bind_fast(ctx)
    write(ctx, 7)
    rig.run()
    write(ctx, 2)
    rig.drain.collect()
    rig.drain.read_unread(10)
    rig.run()
    assert rig.drain.unread == (1 if keeps_unread(rig) else 0)
    rig.drain.read_unread(10)
    assert rig.count(ctx) == 0


def test_who_is_about_to_be_dispatched_for_a_signal_of_another_thread_is_read_all_the_same(rig):
    ctx = rig.eventfd()
    sink = rig.bind_fast(ctx)
    write(ctx, 7)
    rig.run()
    thread = threading.Thread(target=ctx.signal)  # owed, and by no event
    thread.start()
    thread.join()
    rig.drain.read_unread(10)
    rig.run()
    assert (rig.drain.unread, rig.count(ctx), ctx._signals) == (0, 0, 8)
    assert sink.interrupts == ["it", "it"]


def test_who_has_to_wait_for_its_injection_is_told_how_often_it_was_signalled(rig):
    ctx = rig.eventfd()
    irqfd = rig.bind(ctx)
    for value in (7, 2):
        write(ctx, value)
        rig.run()
    assert irqfd.wakeups == [7, 2]
    assert (rig.drain.unread, rig.count(ctx), ctx._signals) == (0, 0, 9)


@pytest.mark.parametrize("fate", ["stands still", "is closed", "reads"])
def test_what_was_unread_on_a_drain_that_it_has_left_is_read_on_the_next(rig, fate):
    ctx = rig.eventfd()
    other = rig.another_drain()
    rig.bind_fast(ctx)
    write(ctx)
    rig.run()
    ctx._unbind()
    rig.drain.remove(ctx)
    ctx._take()
    other.add(ctx)
    sink = rig.bind_fast(ctx)
    for number in range(1, 3):
        write(ctx, 7)
        rig.run(other)
        assert (other.unread, rig.count(ctx)) == ((1, 7) if keeps_unread(rig) else (0, 0))
        if fate == "is closed":
            rig.drain.close()
        elif fate == "reads":
            rig.drain.read_unread(10)
        assert other.read_unread(10) == 0
        assert rig.count(ctx) == 0
        assert len(sink.interrupts) == number


def wait_until_read(rig):
    poller = select.poll()
    poller.register(rig.drain.fileno(), select.POLLIN)
    for _ in range(100):
        if not rig.drain.unread:
            return
        assert poller.poll(10_000), "nothing ever reads what was left unread"
        rig.drain.run()
    raise AssertionError("woken again and again, and never read")


def test_it_is_read_by_and_by_without_being_asked(rig):
    ctxs = [rig.eventfd() for _ in range(600)]
    for ctx in ctxs:
        rig.bind_fast(ctx)
        write(ctx, 7)
    rig.run()
    wait_until_read(rig)
    assert sum(rig.count(ctx) for ctx in ctxs) == 0
    assert sum(ctx._wakeups for ctx in ctxs) == 600


def test_it_is_read_also_when_a_collect_took_the_timers_event(rig):
    ctx = rig.eventfd()
    rig.bind_fast(ctx)
    write(ctx, 7)
    rig.run()
    if keeps_unread(rig):
        poller = select.poll()
        poller.register(rig.drain.fileno(), select.POLLIN)
        assert poller.poll(10_000)
        rig.drain.collect()
        assert rig.drain.unread == 1
    wait_until_read(rig)
    assert rig.count(ctx) == 0


@pytest.mark.parametrize("module", BOTH, ids=lambda module: module.__name__.rpartition("_")[2])
@given(
    script=st.lists(
        st.sampled_from(["write", "signal", "elsewhere", "run", "collect", "read_out", "read_unread", "rebind"]),
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
            elif step == "read_out":
                owed.append(rig.drain.read_out(ctx))
                since_dispatch = False
            elif step == "read_unread":
                rig.drain.read_unread(10)
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
