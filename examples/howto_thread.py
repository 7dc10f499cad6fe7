"""Notify an event loop from a thread, without losing one notification."""

from __future__ import annotations

import asyncio
import threading

from aioirqfd import EventFd

ITEMS = 10_000


# docs: begin example
def work(done: EventFd) -> None:
    """Runs in a thread: says that an item is done, as often as there are items."""
    for _ in range(ITEMS):
        done.signal()


async def main() -> None:
    """Count what the thread has done."""
    # docs: begin short
    with EventFd() as done:
        thread = threading.Thread(target=work, args=(done,))
        thread.start()
        total = 0
        async for count in done:  # one turn may stand for many signals
            total += count
            if total == ITEMS:
                break
        thread.join()
    print(total, "signals")
    # docs: end short


# docs: end example
asyncio.run(main())
