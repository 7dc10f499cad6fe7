"""The end of a back-end: nobody is in the guest's memory any more."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from aioirqfd.vhost_user import Backend
from tests.vhost_user.devices import Gated
from tests.vhost_user.frontend import FrontEnd


class Slow(Gated):
    """Takes its time to be cancelled, as what waits for a thread does."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = asyncio.Event()
        self.ended = 0

    async def handle(self, request):
        try:
            return await super().handle(request)
        except asyncio.CancelledError:
            await self.goes_on.wait()
            self.ended += 1
            raise


@pytest.mark.parametrize("hung_up", [False, True], ids=["a front-end is there", "it has just gone"])
async def test_a_back_end_that_is_left_waits_for_what_it_has_cancelled(tmp_path, monkeypatch, hung_up):
    monkeypatch.chdir(tmp_path)
    device = Slow()
    async with contextlib.AsyncExitStack() as stack:
        backend = await stack.enter_async_context(Backend(device, "socket"))
        front = await stack.enter_async_context(FrontEnd("socket"))
        queue = await front.start()
        queue.put([b"slow"], [4])
        while not device.gates:
            await asyncio.sleep(0)
        if hung_up:
            front.connection.close()
            while not device.cancelled:
                await asyncio.sleep(0)
        leaving = asyncio.ensure_future(backend.__aexit__(None, None, None))
        while not device.cancelled:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not leaving.done()
        device.goes_on.set()
        await leaving
        assert device.ended == 1
