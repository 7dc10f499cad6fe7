"""Small devices for the tests."""

from __future__ import annotations

import asyncio

from aioirqfd.virtio import Chain, Device


class Upper(Device):
    """Answers with what it was sent, in capitals."""

    def __init__(self, *, num_queues: int = 1, concurrency: int = 1, config: bytes = b"") -> None:
        self.num_queues = num_queues
        self.concurrency = concurrency
        self.config = config
        self.resets = 0

    async def handle(self, request: Chain) -> int:
        return request.write(request.read().upper())

    def write_config(self, offset: int, data: bytes, *, live_migration: bool = False) -> None:
        config = bytearray(self.config)
        if offset + len(data) > len(config):
            raise ValueError("beyond the end")
        config[offset : offset + len(data)] = data
        self.config = bytes(config)

    def reset(self) -> None:
        self.resets += 1


class Gated(Upper):
    """The same, but each request waits until the test lets it go; by what it says."""

    def __init__(self, *, num_queues: int = 1, concurrency: int = 8) -> None:
        super().__init__(num_queues=num_queues, concurrency=concurrency)
        self.gates: dict[bytes, asyncio.Future[None]] = {}
        self.cancelled: list[bytes] = []

    async def handle(self, request: Chain) -> int:
        data = request.read()
        gate = self.gates[data] = asyncio.get_running_loop().create_future()
        try:
            await gate
        except asyncio.CancelledError:
            self.cancelled.append(data)
            raise
        return request.write(data.upper())

    def open(self, *names: bytes) -> None:
        for name in names:
            self.gates.pop(name).set_result(None)


class Receiver(Gated):
    """Queue 0 waits for something that may never come."""

    receive_queues = (0,)
