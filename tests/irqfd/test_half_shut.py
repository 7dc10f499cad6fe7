"""A deassign that raises on the way leaves nothing bound, and costs the others nothing."""

from __future__ import annotations

import contextlib
import os

import pytest

from aioirqfd import EventFd, IrqManager, State, WrongLoopError
from aioirqfd.irqfd import identity
from aioirqfd.sinks import RecordingSink
from tests.irqfd.helpers import pulse


@pytest.fixture
def gone():
    """A semaphore that is signalled, and whose fd is then closed under it."""
    eventfd = EventFd(semaphore=True)

    def close_behind_its_back():
        eventfd.signal(5)
        os.close(eventfd.fileno())

    eventfd_and_end = eventfd, close_behind_its_back
    yield eventfd_and_end
    eventfd._fd = -1  # its number may be somebody else's by now


async def test_it_is_closed_and_free_whatever_was_raised(gone):
    eventfd, close_behind_its_back = gone
    async with IrqManager(RecordingSink()) as irqs:
        irqfd = irqs.assign(eventfd, gsi=5)
        close_behind_its_back()
        with contextlib.suppress(OSError):
            await irqs.deassign(irqfd)
        assert (irqfd.state, irqs.irqfds, irqfd.eventfd_id in identity.bound) == (State.CLOSED, (), False)
        await irqs.deassign(irqfd)


@pytest.mark.parametrize("leaving", [True, False])
async def test_the_others_are_injected_when_the_manager_is_left(gone, leaving):
    eventfd, close_behind_its_back = gone
    sink = RecordingSink()
    irqs = await IrqManager(sink).__aenter__()
    with EventFd() as kick:
        irqs.assign(eventfd, gsi=5)
        irqs.assign(kick, gsi=6)
        close_behind_its_back()
        sink.interrupts.clear()
        os.eventfd_write(kick.fileno(), 1)
        with contextlib.suppress(OSError):
            await (irqs.__aexit__(None, None, None) if leaving else irqs.aclose())
        assert sink.interrupts == [pulse(6)]
        assert (irqs.irqfds, irqs._irqfds.poller) == ((), None)
    await irqs.aclose()


async def test_a_forked_child_acknowledges_nothing():
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick, EventFd() as unmask:
            irqs.assign(kick, gsi=9, resamplefd=unmask)
            kick.signal()
            pid = os.fork()
            if not pid:
                status = 0
                for call in (irqs.ack, irqs.resample):
                    try:
                        call(9)
                    except WrongLoopError:
                        status += 1
                os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
            assert not unmask._readable()
            irqs.ack(9)
            assert unmask.read_nowait() == 1
