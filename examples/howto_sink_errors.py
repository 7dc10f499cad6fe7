"""A sink that fails: retries, a broken irqfd, and how it goes on."""

from __future__ import annotations

import asyncio

from aioirqfd import EventFd, InjectionError, Interrupt, IrqManager, Retry


class FlakyLink:
    """A sink behind a connection that can be lost."""

    connected = False

    async def inject(self, interrupt: Interrupt) -> None:
        """Deliver it, or say that it was not delivered."""
        if not self.connected:
            print("not delivered")
            raise ConnectionError("no link")
        print("delivered: gsi", interrupt.gsi)


# docs: begin example
async def main() -> None:
    """Two attempts, then broken; then the link is back."""
    link = FlakyLink()
    broken = asyncio.Event()
    manager = IrqManager(link, retry=Retry(attempts=1, initial=0), on_error=lambda _: broken.set())
    try:
        async with manager as irqs:
            with EventFd() as kick:
                irqfd = irqs.assign(kick, gsi=5)
                kick.signal()
                await broken.wait()
                print(irqfd.state.name, "pending:", irqfd.pending, "error:", repr(irqfd.error))
                link.connected = True
                irqfd.resume()
                await irqs.flush()
    except InjectionError as error:
        print("at the end:", repr(error.__cause__))


# docs: end example
asyncio.run(main())
