"""At the edges, in both implementations: counters near their top, errors, misuse, forked children."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from tests.counter.rig import FULL, Irqfd, write
from tests.forks import in_child

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


# ---------------------------------------------------------------------------------------------- where nobody listens


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
        drain.read_out(ctx)
    with pytest.raises(RuntimeError):
        ctx._bind(top_half, Irqfd(), False, None, None)
    drain.add(ctx)
    for again in (drain, other):
        with pytest.raises(RuntimeError):
            again.add(ctx)
    with pytest.raises(TypeError):
        other.remove(ctx)
    ctx._bind(top_half, Irqfd(), False, None, None)
    with pytest.raises(RuntimeError):
        ctx._bind(top_half, Irqfd(), False, None, None)
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
    assert drain.read_out(ctx) == 0
    assert drain.read_unread(5) == 0
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
