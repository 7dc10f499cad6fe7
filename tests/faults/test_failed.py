"""A device whose own code raised: what its driver has for an answer, by vhost-user and by virtio-pci."""

from __future__ import annotations

import asyncio

import pytest

from aioirqfd.virtio import NEEDS_RESET, Device
from aioirqfd.virtio_pci.function import Status

pytestmark = pytest.mark.trouble


@pytest.fixture(params=["vhost-user", "virtio-pci"])
def transport(request):
    return request.param


class Fails(Device):
    """Its second request raises, after a while or at once."""

    concurrency = 4

    def __init__(self, device_id, *, waits):
        self.device_id = device_id
        self.waits = waits
        self.requests = 0

    async def handle(self, request):
        self.requests += 1
        if self.requests == 2:
            if self.waits:
                await asyncio.sleep(0)
            raise OSError(5, "no more")
        return request.write(b"random")


@pytest.mark.parametrize("waits", [False, True])
async def test_an_empty_answer_says_that_it_failed(serve, waits):
    async with serve(device=Fails(42, waits=waits)) as disk:
        assert [await disk.queue.ask([], [6]) for _ in range(3)] == [b"random", b"", b"random"]


@pytest.mark.parametrize("waits", [False, True])
async def test_a_source_of_randomness_gives_no_empty_answer_but_stops(serve, transport, waits):
    async with serve(device=Fails(4, waits=waits)) as disk:
        assert await disk.queue.ask([], [6]) == b"random"
        disk.queue.put([], [6])
        while disk.front.requests(0).queue is not None:
            await asyncio.sleep(0)
        disk.queue.put([], [6])
        for _ in range(12):
            await asyncio.sleep(0)
        assert disk.queue.driver.collect() == []
        assert disk.answers() == 1
        assert disk.front.requests(0)._done == []  # it would be an answer of the next run
        if transport == "virtio-pci":
            assert await disk.front.read("device_status") & Status.NEEDS_RESET
        else:
            assert await disk.queue.err.read() == 1


async def test_what_is_under_way_elsewhere_goes_on(serve):
    """Of a queue that has stopped, a request that ends later is no answer of the next run."""

    gate = asyncio.Event()

    class Slow(Fails):
        async def handle(self, request):
            if self.requests == 0:
                self.requests = 1
                await gate.wait()
                return request.write(b"late")
            return await super().handle(request)

    async with serve(device=Slow(4, waits=False)) as disk:
        disk.queue.put([], [6])
        disk.queue.put([], [6])
        while disk.front.requests(0).queue is not None:
            await asyncio.sleep(0)
        gate.set()
        while disk.front.requests(0).waiting:
            await asyncio.sleep(0)
        assert disk.queue.driver.collect() == []


async def test_a_device_may_say_so_itself(serve):
    class Honest(Fails):
        def failed(self, request, error):
            return NEEDS_RESET

    async with serve(device=Honest(42, waits=False)) as disk:
        assert await disk.queue.ask([], [6]) == b"random"
        disk.queue.put([], [6])
        while disk.front.requests(0).queue is not None:
            await asyncio.sleep(0)
        assert disk.queue.driver.collect() == []
