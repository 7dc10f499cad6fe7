"""A manager that nobody closes: its loop is stopped or closed under it, or it is dropped."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import warnings

import pytest

from aioirqfd import ClosedError, EventFd, IrqManager, State
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import GatedSink
from tests.irqfd.helpers import OffloadingSink, count, pulse, turns


@pytest.fixture
def new_loop(request):
    """Loops of the test's own, of the kind that it is run on."""
    import uvloop

    loops = []

    def make(kind):
        loop = asyncio.new_event_loop() if kind == "asyncio" else uvloop.new_event_loop()
        loops.append(loop)
        return loop

    yield make
    for loop in loops:
        if not loop.is_closed():
            loop.close()


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_a_loop_that_is_stopped_under_it(new_loop, kind):
    loop = new_loop(kind)
    loop.set_exception_handler(lambda *_: None)  # asyncio's own word on the pending tasks
    sink = GatedSink()
    kick = EventFd()

    async def body():
        async with IrqManager(sink) as irqs:
            irqs.assign(kick, gsi=5)
            kick.signal(2)
            await sink.wait_begun(1)
            loop.stop()
            await asyncio.sleep(3600)

    task = loop.create_task(body())
    loop.run_forever()
    # What asyncio.run() does then.
    for pending in asyncio.all_tasks(loop):
        pending.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.run_until_complete(asyncio.sleep(0))
    assert asyncio.all_tasks(loop) == set()
    loop.close()
    assert count(kick) == 2
    kick.close()


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
@pytest.mark.parametrize("how", ["eventfd", "another loop"])
def test_an_eventfd_with_a_reader_that_is_closed_while_its_loop_stands_still(new_loop, how, kind):
    loop = new_loop(kind)
    kick = EventFd()
    sink = RecordingSink()

    async def begin():
        reader = asyncio.ensure_future(kick.read())
        await turns()
        irqs = await IrqManager(sink).__aenter__()
        return irqs, irqs.assign(kick, gsi=5), reader

    async def end():
        with EventFd() as fresh:
            irqs.assign(fresh, gsi=6)  # it has the id of the other
            fresh.signal()
            await irqs.aclose()
        with pytest.raises(ClosedError):
            await reader

    irqs, irqfd, reader = loop.run_until_complete(begin())
    if how == "eventfd":
        kick.close()
    else:

        async def close():
            kick.close()

        new_loop(kind).run_until_complete(close())
    assert (kick.closed, irqfd.state, irqs.irqfds) == (True, State.CLOSED, ())
    loop.run_until_complete(end())
    assert sink.interrupts == [pulse(6)]


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_a_loop_that_is_stopped_and_closed_with_the_manager_open(new_loop, kind):
    loop = new_loop(kind)
    loop.set_exception_handler(lambda *_: None)
    sink = RecordingSink()
    kick = EventFd()

    async def enter():
        irqs = IrqManager(sink)
        await irqs.__aenter__()
        irqs.assign(kick, gsi=5, masked=True)
        kick.signal(2)
        return irqs

    irqs = loop.run_until_complete(enter())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.close()
        messages = [str(warning.message) for warning in caught]
        assert [
            text for text in messages if "unclosed <IrqManager irqfds=1 " in text and "whose loop was closed" in text
        ]
        kick.signal(3)
        total = os.dup(kick.fileno())
        kick.close()
        del irqs
        gc.collect()
        gc.collect()
    assert os.eventfd_read(total) == 5
    os.close(total)


async def test_a_dropped_manager_warns_and_leaves_nothing():
    sink = RecordingSink()
    tasks = asyncio.all_tasks()
    dup = -1

    async def drop():
        nonlocal dup
        irqs = IrqManager(sink)
        await irqs.__aenter__()
        kick = EventFd()
        dup = os.dup(kick.fileno())
        irqs.assign(kick, gsi=5, masked=True)
        irqs.assign(EventFd(), gsi=9, resamplefd=EventFd())
        kick.signal(2)

    contexts = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await drop()
        await turns()
        gc.collect()
        await turns()
        gc.collect()
    messages = [str(warning.message) for warning in caught if warning.category is ResourceWarning]
    line = drop.__code__.co_firstlineno + 2
    wanted = f"made at {__file__}:{line}"
    assert [message for message in messages if "unclosed <IrqManager irqfds=2" in message and wanted in message], (
        messages
    )
    assert asyncio.all_tasks() == tasks
    assert os.eventfd_read(dup) == 2
    os.close(dup)


async def drop_one():
    """A manager that nobody refers to, but itself; the eventfd in which what it owes will be."""
    irqs = IrqManager(RecordingSink())
    await irqs.__aenter__()
    kick = EventFd()
    fd = os.dup(kick.fileno())
    irqs.assign(kick, gsi=5, masked=True)
    kick.signal(2)
    return fd


def test_a_manager_that_is_dropped_while_its_loop_stands_still(new_loop):
    for kind in ("asyncio", "uvloop"):
        loop = new_loop(kind)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fd = loop.run_until_complete(drop_one())
            gc.collect()
        assert [warning for warning in caught if "unclosed <IrqManager irqfds=1 " in str(warning.message)]
        loop.run_until_complete(turns())
        assert asyncio.all_tasks(loop) == set()
        assert os.eventfd_read(fd) == 2
        os.close(fd)


async def test_a_manager_that_is_dropped_by_the_collector_in_another_thread():
    tasks = asyncio.all_tasks()
    reading = asyncio.get_running_loop().remove_reader
    threads = []

    def noting(fd):
        threads.append(threading.current_thread())
        return reading(fd)

    gc.disable()
    try:
        fd = await drop_one()
        asyncio.get_running_loop().remove_reader = noting
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            await asyncio.to_thread(gc.collect)
            await turns()
    finally:
        gc.enable()
        del asyncio.get_running_loop().remove_reader
    assert [warning for warning in caught if "unclosed <IrqManager irqfds=1 " in str(warning.message)]
    assert asyncio.all_tasks() == tasks
    assert os.eventfd_read(fd) == 2
    os.close(fd)
    assert threads == [threading.main_thread()]


async def test_a_dropped_manager_whose_sink_watches():
    sink = OffloadingSink()

    async def drop():
        irqs = IrqManager(sink)
        await irqs.__aenter__()
        irqs.assign(EventFd(), gsi=5)

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await drop()
        await turns()
        sink.log.clear()
        gc.collect()
        await turns()
        gc.collect()
    assert any("unclosed <IrqManager" in str(warning.message) for warning in caught)
