"""A drain without an event loop: its eventfds, irqfds that note who called them, and the manager's steps by hand."""

from __future__ import annotations

import contextlib
import os
import select
from types import CellType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FULL = 2**64 - 2


def write(ctx, value=1):
    """What another process does."""
    os.eventfd_write(ctx._fd, value)


def keeps_unread(rig):
    """Whether this is the native implementation, which leaves counts unread."""
    return rig.module.__name__.endswith("_native")


class Irqfd:
    """Notes its calls."""

    def __init__(self, name=None, log=None):
        self.name = name
        self.log = log if log is not None else []
        self.wakeups = []
        self.defers = []

    def wakeup(self, count, /):
        self.wakeups.append(count)
        self.log.append(self.name)

    def defer(self, count, /):
        self.defers.append(count)
        self.log.append(self.name)


class Sink:
    """Takes what it is told to take. ``depth`` is how often it was entered from within itself."""

    def __init__(self, *, takes=True):
        self.takes = takes
        self.interrupts = []
        self.batches = []
        self.depth = self.deepest = 0
        self.on_interrupt: Callable[[object], object] | None = None

    def try_inject(self, interrupt):
        self.depth += 1
        self.deepest = max(self.deepest, self.depth)
        try:
            if self.takes:
                self.interrupts.append(interrupt)
            if self.on_interrupt is not None:
                self.on_interrupt(interrupt)
        finally:
            self.depth -= 1
        return self.takes

    def try_inject_batch(self, interrupts):
        self.batches.append(list(interrupts))
        taken = sum(map(bool, map(self.try_inject, interrupts)))
        return taken if self.takes else 0


class Rig:
    def __init__(self, module, max_events=1024):
        self.module = module
        self.drain = module.Drain(max_events)
        self.drains = [self.drain]
        self.ctxs = []

        class Ctx(module.EventFdCtx):
            ready = 0

            def _on_ready(self):
                self.ready += 1

        self.ctx_type = Ctx

    def another_drain(self, max_events=1024):
        drain = self.module.Drain(max_events)
        self.drains.append(drain)
        return drain

    def eventfd(self, initial=0, *, semaphore=False, blocking=False):
        """An eventfd that is in no drain yet."""
        flags = os.EFD_CLOEXEC | (os.EFD_SEMAPHORE if semaphore else 0) | (0 if blocking else os.EFD_NONBLOCK)
        ctx = self.ctx_type(os.eventfd(initial, flags), semaphore=semaphore)
        self.ctxs.append(ctx)
        return ctx

    def count(self, ctx):
        """The kernel's counter."""
        return self.module.fdinfo(ctx._fd)[0]

    def bind(self, ctx, top_half=None, *, irqfd=None, interrupt=None, want_count=False):
        """What assign does with a counter module: register, bind, arm."""
        irqfd = irqfd or Irqfd()
        if not ctx._registered:
            self.drain.add(ctx)
        ctx._bind(top_half or self.module.TopHalf(), irqfd, want_count, None, None)
        ctx._arm(None if interrupt is None else CellType(interrupt))
        return irqfd

    def bind_fast(self, ctx):
        """Bind it as an irqfd whose interrupts the sink always takes; they are in the sink it returns."""
        sink = Sink()
        self.bind(ctx, self.module.TopHalf(sink.try_inject), interrupt="it")
        return sink

    def unbind(self, ctx, drain=None):
        """What deassign does: take what is owed, leave, and let the rest be the kernel's."""
        drain = drain or self.drain
        owed = drain.read_out(ctx)
        ctx._unbind()
        ctx._spill()
        drain.remove(ctx)
        return owed

    def run(self, drain=None, limit=10_000):
        """What a loop does: passes as long as the drain's fd is readable; how many dispatches that were."""
        drain = drain or self.drain
        total = 0
        poller = select.poll()
        poller.register(drain.fileno(), select.POLLIN)
        for _ in range(limit):
            if not poller.poll(0):
                return total
            total += drain.run()
        raise AssertionError(f"still busy after {limit} passes")

    def close(self):
        for ctx in self.ctxs:
            for drain in self.drains:
                with contextlib.suppress(TypeError):
                    drain.remove(ctx)
            if ctx._fd >= 0:
                os.close(ctx._fd)
                ctx._fd = -1
        for drain in self.drains:
            drain.close()
