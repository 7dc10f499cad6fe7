"""Tutorial, step 1: a count that can be awaited."""

from __future__ import annotations

import asyncio

from aioirqfd import EventFd, WouldBlock


async def main() -> None:
    """Signal an eventfd, and read it in three ways."""
    # docs: begin count
    with EventFd() as kick:
        kick.signal()
        kick.signal(2)
        print("read_nowait:", kick.read_nowait())
        try:
            kick.read_nowait()
        except WouldBlock:
            print("read_nowait: nothing there")
        # docs: end count

        # docs: begin wait
        reader = asyncio.create_task(kick.read())
        await asyncio.sleep(0)  # let it begin to wait
        kick.signal(5)
        print("read:", await reader)
        # docs: end wait

    # docs: begin iterate
    kick = EventFd(initial=7)
    async for count in kick:
        print("async for:", count)
        kick.close()  # ends the iteration
    # docs: end iterate


asyncio.run(main())
