"""Doorbells: a guest's write signals an eventfd."""

from __future__ import annotations

import asyncio

from aioirqfd import EventFd, IoBus


# docs: begin example
def vcpu(bus: IoBus) -> list[int]:
    """A virtual CPU's thread: what the guest writes goes to the bus first, and what no doorbell takes to the device."""
    return [value for value in (0, 1, 1, 7) if not bus.write(0xD000_0000, value, 2)]


async def main() -> None:
    """One notify register, a doorbell for each of two queues."""
    bus = IoBus()
    with EventFd() as receive, EventFd() as transmit:
        bus.ioeventfd(receive, address=0xD000_0000, length=2, datamatch=0)
        bus.ioeventfd(transmit, address=0xD000_0000, length=2, datamatch=1)
        left = await asyncio.to_thread(vcpu, bus)
        print("receive queue:", await receive.read())
        print("transmit queue:", await transmit.read())
        print("for the device:", left)


# docs: end example
# docs: begin values
async def port() -> None:
    """A data port, whose doorbell keeps what is written: a string instruction, as an exit hands it over."""
    bus = IoBus()
    with EventFd() as written:
        data = bus.ioeventfd(written, address=0x3F8, length=1, space="pio", values=64)
        bus.write_bytes(0x3F8, b"doorbell", 1)
        print("writes:", await written.read(), "values:", bytes(data.take_values()))


# docs: end values
asyncio.run(main())
asyncio.run(port())
