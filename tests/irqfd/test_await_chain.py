"""Who asks where a task stands sees the handler that it is stuck in, and what that waits for."""

from __future__ import annotations

import asyncio

import pytest

from aioirqfd import EventFd, IrqManager
from aioirqfd.counter import TopHalf
from aioirqfd.sinks import RecordingSink
from tests.eventfd.helpers import turns


def chain(task):
    """The functions that a task stands in, outermost first; as asyncio.capture_call_graph() of Python 3.14 finds them."""
    names = []
    awaited = task.get_coro()
    while awaited is not None:
        if hasattr(awaited, "cr_await"):
            frame, awaited = awaited.cr_frame, awaited.cr_await
        elif hasattr(awaited, "gi_yieldfrom"):
            frame, awaited = awaited.gi_frame, awaited.gi_yieldfrom
        else:
            break
        names.append(frame.f_code.co_name)
    return names


class Gate:
    """What the handlers wait for."""

    def __init__(self):
        self.opened = asyncio.get_running_loop().create_future()

    async def inner(self):
        await self.opened

    async def on_wakeup(self, irqfd, count):
        await self.inner()

    async def passes(self, irqfd, count):
        pass


@pytest.mark.parametrize("handlers", [["on_wakeup"], ["passes", "on_wakeup"]])
async def test_the_handler_that_a_worker_is_stuck_in(handlers):
    gate = Gate()
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as efd:
            irqs.assign(efd, gsi=5, wakeup=[getattr(gate, name) for name in handlers])
            efd.signal()
            await turns()
            chains = [chain(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            (found,) = [names for names in chains if names[-2:] == ["on_wakeup", "inner"]]
            assert "_worker" in found
            gate.opened.set_result(None)
            await irqs.flush()


async def test_an_await_that_has_not_begun_has_nothing_to_show():
    run = TopHalf().run_ready(None)
    assert getattr(run, "cr_await", None) is None
    assert getattr(run, "gi_yieldfrom", None) is None
    run.close()
