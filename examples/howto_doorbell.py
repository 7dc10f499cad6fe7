"""Doorbells: a guest's write signals an eventfd."""

from __future__ import annotations

import asyncio
import threading

from aioirqfd import EventFd, IoBus


# [start]
def vcpu(bus: IoBus) -> None:
    """A virtual CPU's thread: what the guest writes goes to the bus first."""
    for value in (0, 1, 1, 7):
        if not bus.write(0xD000_0000, value, 2):
            print("no doorbell for", value)


async def main() -> None:
    """One notify register, a doorbell for each of two queues."""
    bus = IoBus()
    with EventFd() as receive, EventFd() as transmit:
        bus.ioeventfd(receive, address=0xD000_0000, length=2, datamatch=0)
        bus.ioeventfd(transmit, address=0xD000_0000, length=2, datamatch=1)
        thread = threading.Thread(target=vcpu, args=(bus,))
        thread.start()
        print("receive queue:", await receive.read())
        thread.join()
        print("transmit queue:", await transmit.read())


# [end]
asyncio.run(main())
