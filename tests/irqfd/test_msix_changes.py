"""A message changes, and vectors are recycled, while signals arrive: nothing is lost, and nothing goes the old way."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from aioirqfd import IrqManager, Msi, MsixTable, RoutingError
from aioirqfd.sinks import RecordingSink
from tests.irqfd.msix import BASE, ENABLE, Slow, nearly_full, program


class LockStep:
    """A thread that signals, waits for the injection, and signals again: nothing coalesces, so nothing may be lost or doubled."""

    def __init__(self, eventfd, rounds, *, by_signal):
        self.injected = threading.Semaphore(0)
        self.stop = False
        self._signal = eventfd.signal if by_signal else lambda: os.eventfd_write(eventfd.fileno(), 1)
        self._rounds = rounds
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        for _ in range(self._rounds):
            self._signal()
            while not self.injected.acquire(timeout=0.1):
                if self.stop:
                    return

    async def finished(self):
        while self.thread.is_alive():
            await asyncio.sleep(0)
        self.thread.join()


class Fast:
    def __init__(self):
        self.data = []
        self.on_injection = lambda: None

    async def inject(self, interrupt):
        self.try_inject(interrupt)

    def try_inject(self, interrupt):
        self.data.append(interrupt.route.data)
        self.on_injection()
        return True


async def guest_writes(table, data):
    program(table, 0, data)


async def set_message(table, data):
    await table.set_message(0, address=BASE, data=data)


async def unmasked_write(table, data):
    table.write(8, data, 4)


@pytest.mark.parametrize(
    ("sink_type", "change"),
    [(Fast, guest_writes), (Fast, set_message), (Fast, unmasked_write), (Slow, set_message)],
)
@pytest.mark.parametrize("by_signal", [False, True])
async def test_a_change_under_load_loses_nothing_and_sends_nothing_to_the_old_vector(sink_type, change, by_signal):
    sink, rounds = sink_type(), 300
    async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=1) as table:
        table.write_control(ENABLE)
        table.eventfd(0)
        await change(table, 0)
        table.unmask(0)
        step = LockStep(table.eventfd(0), rounds, by_signal=by_signal)
        sink.on_injection = step.injected.release
        step.thread.start()
        try:
            data = 0
            while step.thread.is_alive():
                await asyncio.sleep(0)
                data += 1
                await change(table, data)
                changed_at = len(sink.data)
                await asyncio.sleep(0)
                assert set(sink.data[changed_at:]) <= {data}
        finally:
            step.stop = True
            await step.finished()
        await irqs.flush()
        assert len(sink.data) == rounds
        assert sink.data == sorted(sink.data)


@pytest.mark.parametrize("by_signal", [False, True])
async def test_recycling_under_load_loses_nothing(by_signal):
    # Two vectors take the one gsi from each other, while a thread signals one of them.
    sink, rounds = Fast(), 300
    async with IrqManager(sink, routing=nearly_full(1)) as irqs, MsixTable(irqs, vectors=2) as table:
        table.write_control(ENABLE)
        for vector in range(2):
            table.eventfd(vector)
            program(table, vector, vector, masked=True)
        step = LockStep(table.eventfd(0), rounds, by_signal=by_signal)
        sink.on_injection = step.injected.release
        step.thread.start()
        try:
            while step.thread.is_alive():
                table.mask(1)
                table.unmask(0)
                for _ in range(3):  # a loop looks at its fds once a turn, and ours are behind one of them
                    await asyncio.sleep(0)
                table.mask(0)
                table.unmask(1)
                assert table.gsi(0) is None
                await asyncio.sleep(0)
        finally:
            step.stop = True
            await step.finished()
        assert sink.data == [0] * rounds
        assert irqs.gsis.statistics().recycled > 0


async def test_set_message_waits_for_what_is_on_its_way_to_the_old_one():
    class Gate:
        def __init__(self):
            self.begun = asyncio.Event()
            self.open = asyncio.Event()
            self.done = []

        async def inject(self, interrupt):
            self.begun.set()
            await self.open.wait()
            self.done.append(interrupt.route.data)

    sink = Gate()
    async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=1) as table:
        table.write_control(ENABLE)
        program(table, 0, 0x31)
        table.signal(0)
        await sink.begun.wait()
        table.signal(0)
        changing = asyncio.create_task(table.set_message(0, address=BASE, data=0x32))
        for _ in range(10):
            await asyncio.sleep(0)
        assert (changing.done(), sink.done, irqs.routing.routes(24)) == (False, [], (Msi(BASE, 0x31),))
        assert table.pending(0)
        sink.open.set()
        await changing
        assert irqs.routing.routes(24) == (Msi(BASE, 0x32),)
        await irqs.flush()
        assert sink.done == [0x31, 0x32]


async def test_set_message_that_is_cancelled_has_changed_it():
    class Gate:
        def __init__(self):
            self.open = asyncio.Event()
            self.done = []

        async def inject(self, interrupt):
            await self.open.wait()
            self.done.append(interrupt.route.data)

    sink = Gate()
    async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=1) as table:
        table.write_control(ENABLE)
        program(table, 0, 0x31)
        table.signal(0)
        changing = asyncio.create_task(table.set_message(0, address=BASE, data=0x32))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        changing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await changing
        assert (irqs.routing.routes(24), table.statistics().unmasked) == ((Msi(BASE, 0x32),), 1)
        sink.open.set()
        await irqs.flush()


async def test_a_vector_that_the_guest_masks_during_set_message_is_recyclable_afterwards():
    async with IrqManager(Slow()) as irqs, MsixTable(irqs, vectors=1) as table:
        table.write_control(ENABLE)
        program(table, 0, 0x31)
        table.signal(0)
        changing = asyncio.create_task(table.set_message(0, address=BASE, data=0x32))
        await asyncio.sleep(0)
        table.mask(0)
        assert irqs.gsis.statistics().idle == 0
        await changing
        assert irqs.gsis.statistics().idle == 1


@pytest.mark.parametrize("message", [(BASE + 2, 1), (2**64, 1), (BASE, 2**32), (-4, 1)])
async def test_set_message_refuses_what_cannot_be_sent(message):
    async with IrqManager(RecordingSink()) as irqs, MsixTable(irqs, vectors=1) as table:
        table.write_control(ENABLE)
        table.eventfd(0)
        program(table, 0, 0x31)
        with pytest.raises(RoutingError):
            await table.set_message(0, address=message[0], data=message[1])
        assert irqs.routing.routes(24) == (Msi(BASE, 0x31),)


class Offloading:
    """A kernel, of which the order of what is asked is noted."""

    def __init__(self):
        self.log = []
        self.table = None

    def set_routing(self, table):
        routes = table.get(24, ())
        self.log.append(("route", *(route.data for route in routes)))

    async def inject(self, interrupt):
        raise AssertionError

    def offload(self, eventfd, interrupt, resamplefd):
        self.log.append(("assign", interrupt.route.data))
        return True

    def reclaim(self, eventfd, interrupt):
        self.log.append(("deassign", interrupt.route.data))


async def test_the_order_is_mask_deassign_route_assign_unmask():
    sink = Offloading()
    routing = {gsi: Msi(0, gsi) for gsi in range(24)}
    async with IrqManager(sink, routing=routing) as irqs, MsixTable(irqs, vectors=1) as table:
        sink.log.clear()
        table.write_control(ENABLE)
        table.eventfd(0)
        program(table, 0, 0x31)
        assert sink.log == [("route", 0x31), ("assign", 0x31)]
        sink.log.clear()
        program(table, 0, 0x32)
        assert sink.log == [("deassign", 0x31), ("route", 0x32), ("assign", 0x32)]
        sink.log.clear()
        table.write_control(0)
        assert sink.log == [("deassign", 0x32), ("route",)]
        # Whatever is pending is in the eventfd, of which the kernel knows nothing any more.
        table.signal(0)
        assert table.pending(0)
