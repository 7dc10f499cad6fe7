"""Nothing stays behind: cycles are collected, dropped eventfds leave by themselves, and 10,000 of anything cost nothing."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import tracemalloc
import weakref
from pathlib import Path
from types import CellType

import pytest

from tests.counter.rig import Irqfd, Sink, write

ROUNDS = 10_000


class Watched(Irqfd):
    """An irqfd that refers back to its eventfd, as a real one does."""

    def __init__(self, ctx):
        super().__init__()
        self.ctx = ctx


def build(rig):
    """A bound eventfd in a cycle with its irqfd; weak references to both."""
    ctx = rig.eventfd()
    rig.ctxs.remove(ctx)
    irqfd = Watched(ctx)
    interrupt = ["an interrupt", ctx]
    sink = Sink()
    sink.batches.append([ctx])
    top_half = rig.module.TopHalf(sink.try_inject, sink.try_inject_batch, sink.interrupts.append)
    rig.bind(ctx, top_half, irqfd=irqfd, interrupt=interrupt)
    return ctx, irqfd


@pytest.mark.parametrize("state", ["idle", "signalled", "posted", "held", "unread"])
def test_a_cycle_through_a_bound_eventfd_is_collected(rig, state):
    ctx, irqfd = build(rig)
    fd = ctx._fd
    top_half = None
    if state == "signalled":
        ctx.signal()
    elif state == "posted":
        thread = threading.Thread(target=ctx.signal)
        thread.start()
        thread.join()
    elif state == "held":
        top_half = rig.module.TopHalf()
        top_half.paused = True
        rig.unbind(ctx)
        rig.bind(ctx, top_half, irqfd=irqfd)
        ctx.signal()
        assert top_half.held == 1
    elif state == "unread":
        write(ctx)
        rig.run()
        rig.drain.read_unread(10)
    dead = weakref.ref(ctx), weakref.ref(irqfd)
    del ctx, irqfd, top_half
    if state == "posted":
        rig.run()
    gc.collect()
    assert [reference() for reference in dead] == [None, None]
    assert rig.drain.attached == 0
    os.close(fd)


def test_a_drain_with_mail_in_a_cycle_is_collected(counter):
    drain = counter.Drain()

    class Ctx(counter.EventFdCtx):
        pass

    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    ctx = Ctx(fd)
    irqfd = Watched(ctx)
    irqfd.log.append(drain)
    drain.add(ctx)
    ctx._bind(counter.TopHalf(), irqfd, False, None, None)
    thread = threading.Thread(target=ctx.signal)
    thread.start()
    thread.join()
    epoll = drain.fileno()
    dead = weakref.ref(ctx), weakref.ref(irqfd)
    del drain, ctx, irqfd
    gc.collect()
    assert [reference() for reference in dead] == [None, None]
    with pytest.raises(OSError):
        os.fstat(epoll)
    os.close(fd)


def test_a_dropped_eventfd_leaves_its_drain(rig):
    for _ in range(10):
        ctx = rig.eventfd()
        rig.ctxs.remove(ctx)
        fd = ctx._fd
        rig.drain.add(ctx)
        write(ctx)
        del ctx
        gc.collect()
        assert rig.drain.attached == 0
        assert rig.drain.run() == 0
        # The fd itself can be registered anew: nothing of the old registration is in the way.
        again = rig.ctx_type(fd)
        rig.drain.add(again)
        assert rig.drain.run() == 1
        assert again.ready == 1
        del again
        os.close(fd)


def test_irqfds_and_interrupts_are_let_go(rig):
    sink = Sink(takes=False)
    top_half = rig.module.TopHalf(sink.try_inject, sink.try_inject_batch, Irqfd)
    ctx, other = rig.eventfd(), rig.eventfd()
    interrupt, irqfd = object(), Irqfd()
    before = sys.getrefcount(interrupt), sys.getrefcount(irqfd), sys.getrefcount(top_half), sys.getrefcount(ctx)
    for full in (False, True) * 50:
        rig.bind(ctx, top_half, irqfd=irqfd, interrupt=interrupt)
        rig.bind(other, top_half, irqfd=irqfd, interrupt=interrupt)
        for takes in (False, True):
            sink.takes = takes
            top_half.full = full
            ctx.signal()
            write(ctx)
            write(other)
            rig.run()
            top_half.full = False
            top_half.release()
        ctx._arm(CellType())
        ctx.signal()
        rig.drain.read_unread(10)
        rig.unbind(ctx)
        rig.unbind(other)
    sink.interrupts.clear()
    sink.batches.clear()
    after = sys.getrefcount(interrupt), sys.getrefcount(irqfd), sys.getrefcount(top_half), sys.getrefcount(ctx)
    assert after == before


def rounds_counter(module):
    for _ in range(ROUNDS):
        one = module.Counter(5)
        one.signal(3)
        one.read()
        for bad in (lambda one=one: one.signal(0), one.read, lambda: module.Counter(-1)):
            with contextlib.suppress(ValueError, OSError):
                bad()


def rounds_drain(module):
    for _ in range(ROUNDS // 10):
        drain = module.Drain(16)
        fd = os.eventfd(3, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        ctx = module.EventFdCtx(fd)
        sink = Sink()
        top_half = module.TopHalf(sink.try_inject, sink.try_inject_batch)
        for _again in range(10):
            drain.add(ctx)
            ctx._bind(top_half, Irqfd(), False, None, None)
            ctx._arm(CellType(sink))
            ctx.signal()
            os.eventfd_write(fd, 1)
            drain.run()
            top_half.paused = True
            ctx.signal()
            top_half.paused = False
            top_half.release()
            drain.read_unread(5)
            drain.read_out(ctx)
            ctx._unbind()
            drain.remove(ctx)
        drain.close()
        os.close(fd)


@pytest.mark.slow
@pytest.mark.parametrize("work", [rounds_counter, rounds_drain])
def test_ten_thousand_of_them_leave_nothing(counter, work):
    def measure():
        gc.collect()
        return len(gc.get_objects()), sum(1 for _ in Path("/proc/self/fd").iterdir()), sys.getallocatedblocks()

    work(counter)  # whatever is made once is made now
    objects, fds, blocks = measure()
    tracemalloc.start()
    try:
        gc.collect()
        heap, _ = tracemalloc.get_traced_memory()
        work(counter)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - heap
    finally:
        tracemalloc.stop()
    objects_after, fds_after, blocks_after = measure()
    assert fds_after == fds
    # A leak of one object a round would be a thousand times as much.
    assert objects_after - objects < 20
    assert blocks_after - blocks < 100
    assert grown < 65_536
