"""An event loop in a thread of its own, with a manager on it."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from aioirqfd import EventFd, IrqManager
from aioirqfd.sinks import RecordingSink


@contextlib.contextmanager
def elsewhere(name, new_loop=asyncio.new_event_loop):
    """A manager of this name with one irqfd, ``kick`` of gsi 5, in another thread; gives the loop that it is on."""
    ready, loops = threading.Event(), []

    async def run():
        over = asyncio.Event()
        async with IrqManager(RecordingSink(), name=name) as irqs:
            with EventFd() as kick:
                irqs.assign(kick, gsi=5, name="kick")
                loops.append((asyncio.get_running_loop(), over))
                ready.set()
                await over.wait()

    def main():
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(run())

    thread = threading.Thread(target=main)
    thread.start()
    ready.wait()
    loop, over = loops[0]
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()


@contextlib.contextmanager
def blocked(loop):
    """The loop waits in a call that blocks, meanwhile."""
    begun, over = threading.Event(), threading.Event()

    def block():
        begun.set()
        over.wait()

    loop.call_soon_threadsafe(block)
    begun.wait()
    try:
        yield
    finally:
        over.set()
