"""O_NONBLOCK is everybody's who has the eventfd, and nothing here depends on it; in both implementations.

What goes wrong in these tests waits for ever, so that the suite's time limit is what they run into.
"""

from __future__ import annotations

import errno
import os
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.counter.rig import FULL, Rig, write
from tests.counter.test_counter import BOTH
from tests.forks import WRITE, forbid_preadv2, in_child, leave_proc


@pytest.mark.parametrize("semaphore", [False, True])
@pytest.mark.parametrize("made_blocking", [False, True], ids=["cleared", "blocking"])
def test_nobody_waits_for_a_blocking_eventfd(rig, semaphore, made_blocking):
    ctx = rig.eventfd(blocking=made_blocking, semaphore=semaphore)
    irqfd = rig.bind(ctx, want_count=True)
    other = os.dup(ctx._fd)
    os.set_blocking(other, True)
    os.close(other)
    assert ctx._take() == 0
    assert ctx._readable() is False
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


def test_what_was_counted_here_is_not_forced_into_a_full_one(rig):
    ctx = rig.eventfd(blocking=True)
    rig.drain.add(ctx)
    ctx._listening = True
    thread = threading.Thread(target=ctx.signal, args=(10,))
    thread.start()
    thread.join()
    write(ctx, FULL - 3)
    ctx._spill()
    assert (rig.count(ctx), ctx._count) == (FULL, 7)
    ctx._spill()
    assert (rig.count(ctx), ctx._count) == (FULL, 7)
    assert ctx._take() + ctx._take() == FULL + 7


@pytest.mark.parametrize("module", BOTH, ids=lambda module: module.__name__.rpartition("_")[2])
@given(
    script=st.lists(
        st.one_of(
            st.sampled_from(["take", "set", "clear"]),
            st.sampled_from([1, 2, 255, 256, 2**32, 2**63, FULL - 1, FULL]),
            st.integers(1, FULL),
        ),
        max_size=25,
    ),
    semaphore=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_the_flag_changes_nothing(module, script, semaphore):
    rig = Rig(module)
    try:
        ctx = rig.eventfd(semaphore=semaphore)
        count = 0
        for step in script:
            if step == "take":
                taken = ctx._take()
                assert taken == (min(count, 1) if semaphore else count)
                count -= taken
            elif step in ("set", "clear"):
                os.set_blocking(ctx._fd, step == "clear")
            else:
                room = FULL - count
                assert ctx.signal(step) == min(step, room)
                count += min(step, room)
            assert rig.count(ctx) == count
    finally:
        rig.close()


def test_while_a_write_waits_after_all_other_threads_go_on(rig):
    # Without fdinfo it cannot be seen that there is room for 1 and not for 5.
    ctx = rig.eventfd(blocking=True)
    write(ctx, FULL - 1)
    reader = os.dup(ctx._fd)

    def child():
        call = os.open("/proc/thread-self/syscall", os.O_RDONLY)
        leave_proc()

        def make_room():
            while not os.pread(call, 100, 0).startswith(b"%d " % WRITE):
                time.sleep(0)
            assert os.eventfd_read(reader) == FULL - 1

        thread = threading.Thread(target=make_room)
        thread.start()
        assert ctx.signal(5) == 5
        thread.join()
        assert ctx._take() == 5

    assert in_child(child) == 0
    os.close(reader)


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.ENOSYS])
@pytest.mark.parametrize("semaphore", [False, True])
@pytest.mark.parametrize("blocking", [False, True])
def test_a_kernel_that_cannot_read_without_waiting(rig, error, semaphore, blocking):
    ctx = rig.eventfd(blocking=blocking, semaphore=semaphore)
    irqfd = rig.bind(ctx, want_count=True)

    def child():
        forbid_preadv2(error)
        assert ctx._take() == 0
        write(ctx, 3)
        rig.run()
        assert irqfd.wakeups == [3]
        write(ctx, 3)
        rig.drain.collect()
        assert sum(os.eventfd_read(ctx._fd) for _ in range(3 if semaphore else 1)) == 3
        rig.run()
        assert irqfd.wakeups == [3]

    assert in_child(child) == 0
