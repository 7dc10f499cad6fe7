"""A virtio console that answers in capitals: ``python examples/vhost_user_upper.py --socket-path upper.sock``."""

from __future__ import annotations

import asyncio

from aioirqfd.vhost_user import main
from aioirqfd.virtio import Chain, Device

RECEIVE, TRANSMIT = 0, 1
PIECE = 1024


# docs: begin device
class Upper(Device):
    """What the guest writes comes back in capitals."""

    device_id = 3
    num_queues = 2
    receive_queues = (RECEIVE, TRANSMIT)  # both may have to wait

    def __init__(self) -> None:
        self.answers: asyncio.Queue[bytes] = asyncio.Queue(64)

    async def handle(self, request: Chain) -> int:
        """Take a line on one queue; fill a buffer of the other once there is one."""
        if request.queue == TRANSMIT:
            for at in range(0, request.readable_size, PIECE):
                await self.answers.put(request.read(PIECE, offset=at).upper())
            return 0
        return request.write(await self.answers.get())


# docs: end device


if __name__ == "__main__":
    main(lambda _options: Upper(), kind="console")
