"""A back-end to be killed: answers in capitals, several at a time and out of order. ``python -m tests.vhost_user.mortal PATH``."""

from __future__ import annotations

import asyncio
import random
import sys

from aioirqfd.vhost_user import run
from aioirqfd.virtio import Chain, Device


class Mortal(Device):
    num_queues = 2
    concurrency = 16

    def __init__(self) -> None:
        self.random = random.Random()

    async def handle(self, request: Chain) -> int:
        # Some are answered at once, some wait for others: the used ring's order is not the available ring's.
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)
        return request.write(request.read().upper())


if __name__ == "__main__":
    run(Mortal(), sys.argv[1])
