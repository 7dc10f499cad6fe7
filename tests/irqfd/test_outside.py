"""On the loop's thread, but outside the loop: a signal handler runs while the loop is asleep in its selector, and has to wake it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from pathlib import Path

import pytest

from aioirqfd import ClosedError, EventFd, IrqManager, Work, WorkQueue
from aioirqfd.sinks import CallbackSink
from tests.irqfd.helpers import SlowSink

ASLEEP = {"232", "281", "441"}  # epoll_wait, epoll_pwait, epoll_pwait2 on x86-64
LIMIT = 60.0


@contextlib.asynccontextmanager
async def called_while_asleep(call):
    """Have a signal handler call it as soon as the loop sleeps; and fail if only the time limit wakes the loop."""
    loop = asyncio.get_running_loop()
    before = signal.signal(signal.SIGUSR1, lambda *_: call())
    syscall = Path(f"/proc/self/task/{threading.main_thread().native_id}/syscall")

    def asleep():
        # number, epfd, events, maxevents, timeout: a look with a timeout of 0 is no sleep.
        number, *arguments = syscall.read_text("ascii").split()
        return number in ASLEEP and arguments[3] != "0x0"

    def interrupt():
        while not asleep():
            os.sched_yield()
        os.kill(os.getpid(), signal.SIGUSR1)

    guard = loop.call_later(LIMIT, lambda: None)  # wakes a loop that would sleep for ever
    thread = threading.Thread(target=interrupt)
    loop.call_soon(thread.start)
    try:
        yield
        assert loop.time() < guard.when()
    finally:
        guard.cancel()
        thread.join()
        signal.signal(signal.SIGUSR1, before)


async def test_a_reader_hears():
    with EventFd() as kick:
        async with called_while_asleep(kick.signal):
            assert await kick.read() == 1


async def test_a_reader_hears_of_the_close():
    kick = EventFd()
    async with called_while_asleep(kick.close):
        with pytest.raises(ClosedError):
            await kick.read()


async def test_a_signal_that_was_looked_for_at_once():
    # The look takes the event of the wake-up out of the epoll.
    ran = asyncio.Event()

    async def on_wakeup(irqfd, count):
        ran.set()

    async with IrqManager(SlowSink()) as irqs:
        with EventFd() as kick, EventFd() as other:
            irqs.assign(kick, gsi=5, wakeup=on_wakeup)
            another = irqs.assign(other, gsi=6)

            def call():
                kick.signal()
                assert not another.pending

            async with called_while_asleep(call):
                await ran.wait()
            await irqs.flush()


@pytest.mark.parametrize("how", ["handler", "slow sink", "fast sink", "unmask", "resume"])
async def test_who_serves_an_irqfd_hears(how):
    heard = asyncio.Event()

    async def on_wakeup(irqfd, count):
        heard.set()

    async def slowly(interrupt):
        heard.set()

    class Fast:
        async def inject(self, interrupt):
            raise AssertionError

        def try_inject(self, interrupt):
            heard.set()
            return True

    sink = Fast() if how == "fast sink" else CallbackSink(slowly)
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=on_wakeup if how == "handler" else (), masked=how == "unmask")
            call = kick.signal
            if how == "unmask":
                kick.signal()
                call = irqfd.unmask
            elif how == "resume":
                await irqs.pause()
                kick.signal()
                call = irqs.resume
            async with called_while_asleep(call):
                await heard.wait()
            await irqs.flush()
            assert irqfd.statistics().injections == 1


async def test_an_end_of_interrupt_is_served():
    heard = asyncio.Event()

    class Slow(SlowSink):
        async def inject(self, interrupt):
            await super().inject(interrupt)
            if interrupt.action.value == "deassert":
                heard.set()

    async with IrqManager(Slow()) as irqs:
        with EventFd() as kick, EventFd() as unmask:
            irqs.assign(kick, gsi=5, resamplefd=unmask)
            kick.signal()
            await irqs.flush()
            async with called_while_asleep(lambda: irqs.ack(5)):
                await heard.wait()
            await irqs.flush()
            assert unmask.read_nowait() == 1


async def test_an_item_of_a_queue_alone_is_run():
    heard = asyncio.Event()

    async def func():
        heard.set()

    async with WorkQueue() as queue, called_while_asleep(lambda: queue.schedule(Work(func))):
        await heard.wait()
