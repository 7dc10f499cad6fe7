"""Write an interrupt sink: the required tier, and the faster ones."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from aioirqfd import EventFd, Interrupt, IrqManager

if TYPE_CHECKING:
    from collections.abc import Sequence


# docs: begin slow
class Link:
    """A sink that sends interrupts somewhere, and may have to wait for it."""

    async def inject(self, interrupt: Interrupt) -> None:
        """Return once the interrupt is delivered; raise only if it is not."""
        await asyncio.sleep(0)
        print("inject: gsi", interrupt.gsi)
        # docs: end slow


# docs: begin fast
class BufferedLink(Link):
    """The same, with room for a few at once."""

    room = 2

    def try_inject(self, interrupt: Interrupt) -> bool:
        """Never waits: False leaves the interrupt to :meth:`inject`."""
        if not self.room:
            return False
        self.room -= 1
        print("try_inject: gsi", interrupt.gsi)
        return True
        # docs: end fast


# docs: begin batch
class BatchLink(BufferedLink):
    """The same, for many interrupts in one call."""

    def try_inject_batch(self, interrupts: Sequence[Interrupt], /) -> int:
        """Take what there is room for, from the front; the rest goes to :meth:`inject`."""
        taken = min(self.room, len(interrupts))
        self.room -= taken
        print("try_inject_batch: took", taken, "of", len(interrupts))
        return taken
        # docs: end batch


# docs: begin run
async def ring(link: Link) -> None:
    """Three eventfds, written to from outside before the loop looks."""
    print(type(link).__name__)
    kicks = [EventFd() for _ in range(3)]
    async with IrqManager(link) as irqs:
        for gsi, kick in enumerate(kicks):
            irqs.assign(kick, gsi=gsi)
        for kick in kicks:
            os.eventfd_write(kick.fileno(), 1)
        await irqs.flush()
    for kick in kicks:
        kick.close()


async def main() -> None:
    """Each tier in turn."""
    for link in (Link(), BufferedLink(), BatchLink()):
        await ring(link)


# docs: end run
asyncio.run(main())
