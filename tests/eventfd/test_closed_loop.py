"""A loop that is closed over what waits on it: nobody listens any more, and nothing is lost or kept."""

from __future__ import annotations

import asyncio
import gc
import os
import warnings

import pytest
import uvloop

from aioirqfd import ClosedError, EventFd, IrqManager, State, WouldBlock
from aioirqfd.eventfd.poller import _pollers
from aioirqfd.sinks import RecordingSink
from tests.conftest import open_fds
from tests.eventfd.helpers import in_thread, info_of, kernel_count

LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
DEBUG = pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])


class Abandoned:
    """A reader on a loop that is then closed; its coroutine is closed at the end, without a loop."""

    def __init__(self, efd, method="read"):
        self.coroutine = getattr(efd, method)()

    def begin(self, loop):
        async def begin():
            return self.coroutine.send(None)

        self.future = loop.run_until_complete(begin())


@pytest.fixture
def abandon(efd):
    readers = []

    def begin(loop, method="read"):
        reader = Abandoned(efd, method)
        reader.begin(loop)
        readers.append(reader)
        return reader

    yield begin
    for reader in readers:
        reader.coroutine.close()


@LOOPS
@DEBUG
@pytest.mark.parametrize("method", ["read", "wait"])
def test_close_closes(efd, abandon, new_loop, debug, method):
    fd = efd.fileno()
    before = open_fds()
    loop = new_loop()
    loop.set_debug(debug)
    abandon(loop, method)
    loop.close()
    efd.close()
    efd.close()
    assert efd.closed
    del before[fd]
    assert open_fds() == before


@LOOPS
@DEBUG
@pytest.mark.parametrize("method", ["read", "wait"])
@pytest.mark.parametrize("when", ["before the loop is closed", "after"])
@pytest.mark.parametrize("thread", [False, True], ids=["", "thread"])
def test_a_signal_reaches_whoever_else_has_the_eventfd(efd, abandon, new_loop, debug, method, when, thread):
    loop = new_loop()
    loop.set_debug(debug)
    abandon(loop, method)
    signal = (lambda: in_thread(efd.signal, 5)) if thread else (lambda: efd.signal(5))
    if when == "after":
        loop.close()
        signal()
    else:
        signal()
        assert kernel_count(efd) == 0
        loop.close()
    assert (efd._count, kernel_count(efd)) == (0, 5)
    assert os.eventfd_read(efd.fileno()) == 5


@LOOPS
def test_a_count_that_was_handed_to_a_reader_is_there_for_others(efd, abandon, new_loop):
    loop = new_loop()
    reader = abandon(loop)
    second = abandon(loop)

    async def signal():
        efd.signal(5)
        assert reader.future.result() == 5
        efd.signal(7)
        assert second.future.result() == 7

    # The very task that signals ends the loop: nobody has come for the counts.
    loop.create_task(signal()).add_done_callback(lambda _task: loop.stop())
    loop.run_forever()
    loop.close()
    assert kernel_count(efd) == 12
    reader.coroutine.close()
    assert kernel_count(efd) == 12, "given back once"


@LOOPS
def test_the_next_loop_reads(efd, abandon, new_loop):
    loop = new_loop()
    abandon(loop)
    loop.close()

    async def read():
        reader = asyncio.ensure_future(efd.read())
        await asyncio.sleep(0)
        in_thread(efd.signal, 3)
        return await reader

    loop = new_loop()
    assert loop.run_until_complete(read()) == 3
    loop.close()


@LOOPS
def test_nothing_is_kept_of_a_loop_that_was_closed(efd, abandon, new_loop):
    before = open_fds()
    loop = new_loop()
    abandon(loop)
    assert loop in _pollers
    loop.close()
    assert loop not in _pollers
    assert efd._poller is None
    assert open_fds() == before


# ------------------------------------------------------------------------------------------------ a forgotten manager


def forget(loop, efd, **kwargs):
    """A manager that is never closed, and its irqfd."""

    async def enter():
        irqs = IrqManager(RecordingSink())
        await irqs.__aenter__()
        return irqs, irqs.assign(efd, gsi=1, **kwargs)

    return loop.run_until_complete(enter())


def end_of(loop, at_last=lambda: None):
    """What asyncio.run() does in the end, and something before the loop's close; the warnings that there are then."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    at_last()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.close()
    return [str(each.message) for each in caught if each.category is ResourceWarning]


@LOOPS
@pytest.mark.parametrize("masked", [False, True])
def test_a_forgotten_manager_warns_and_its_eventfds_are_free(efd, new_loop, masked):
    before = open_fds()
    loop = new_loop()
    irqs, irqfd = forget(loop, efd, masked=masked)
    messages = end_of(loop, lambda: efd.signal(3))  # for a pass that never comes
    assert len(messages) == 1
    assert "unclosed <IrqManager irqfds=1 " in messages[0]
    assert f"whose loop was closed, made at {__file__}:" in messages[0]
    assert (irqfd.state, irqs.irqfds) == (State.CLOSED, ())
    assert kernel_count(efd) == 3
    assert open_fds() == before
    with pytest.raises(ClosedError, match="the manager is closed"):
        asyncio.run(irqs_assign(irqs, efd))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del irqs, irqfd
        gc.collect()

    async def use():
        sink = RecordingSink()
        async with IrqManager(sink) as others:
            others.assign(efd, gsi=2)
            await others.flush()
            assert [interrupt.gsi for interrupt in sink.interrupts] == [2]

    asyncio.run(use())


async def irqs_assign(irqs, efd):
    irqs.assign(efd, gsi=1)


@LOOPS
def test_two_forgotten_managers_and_a_reader(new_loop):
    loop = new_loop()
    with EventFd() as first, EventFd() as second, EventFd() as third:
        kept = [forget(loop, first), forget(loop, second)]
        reader = Abandoned(third)
        reader.begin(loop)
        assert len(end_of(loop, lambda: [in_thread(efd.signal, 4) for efd in (first, second, third)])) == 2
        assert [kernel_count(efd) for efd in (first, second, third)] == [4, 4, 4]
        assert [irqfd.state for _, irqfd in kept] == [State.CLOSED] * 2
        reader.coroutine.close()


@LOOPS
def test_where_warnings_are_errors_its_eventfds_are_free_all_the_same(efd, new_loop, monkeypatch):
    errors = []
    monkeypatch.setattr("sys.unraisablehook", lambda args: errors.append(args.exc_type))
    loop = new_loop()
    irqs, _ = forget(loop, efd)
    in_thread(efd.signal, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.close()
    assert errors == [ResourceWarning]
    assert efd.read_nowait() == 2
    asyncio.run(asyncio.sleep(0))
    assert irqs.irqfds == ()


@LOOPS
def test_a_line_that_is_up_is_lowered_and_no_loop_is_asked(efd, new_loop):
    loop = new_loop()
    sink = RecordingSink()
    with EventFd() as resample:

        async def enter():
            irqs = IrqManager(sink)
            await irqs.__aenter__()
            irqs.assign(efd, gsi=9, resamplefd=resample)
            efd.signal()
            await irqs.flush()
            return irqs

        irqs = loop.run_until_complete(enter())
        assert len(end_of(loop)) == 1
        assert [interrupt.action.name for interrupt in sink.interrupts] == ["ASSERT", "DEASSERT"]
        with pytest.raises(WouldBlock):
            resample.read_nowait()
        assert irqs.irqfds == ()


@LOOPS
def test_a_loop_that_is_closed_in_a_forked_child_is_not_closed_in_its_parent(efd, new_loop):
    loop = new_loop()
    irqs, irqfd = forget(loop, efd)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            warnings.simplefilter("error")
            loop.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert irqs.irqfds == (irqfd,)
    efd.signal()

    async def leave():
        await irqs.flush()
        assert irqfd.statistics().injections == 1
        await irqs.aclose()

    loop.run_until_complete(leave())
    loop.close()
    assert info_of(efd.fileno())[0] == 0
