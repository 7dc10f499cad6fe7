"""A forked child neither disturbs nor steals."""

from __future__ import annotations

import asyncio
import os
import warnings

import pytest

from aioirqfd import EventFd, EventFdBusyError, IrqManager, State
from aioirqfd.counter import fdinfo
from aioirqfd.sinks import RecordingSink
from tests.irqfd.helpers import pulse, write


async def test_a_forked_child_neither_disturbs_nor_steals():
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if not child:
                status = 1
                try:
                    kick.signal(2)  # a plain write there (row I17)
                    write(kick)
                    kick.close()
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0
            assert irqfd.pending is True
            await irqs.flush()
            assert sink.interrupts == [pulse(5)]
            assert irqfd.statistics().signals == 3
            kick.signal()
            assert len(sink.interrupts) == 2


@pytest.mark.parametrize("by_fd", [False, True])
@pytest.mark.parametrize("bound_by_fd", [False, True])
async def test_what_was_bound_when_it_was_forked_is_free_in_the_child(by_fd, bound_by_fd):
    sink = RecordingSink()

    async def in_the_child(kick):
        others = RecordingSink()
        async with IrqManager(others) as other_irqs:
            irqfd = other_irqs.assign(kick.fileno() if by_fd else kick, gsi=6)
            irqfd.eventfd.signal(2)
            await other_irqs.flush()
            assert others.interrupts == [pulse(6)]
            await other_irqs.deassign(irqfd)
        kick.close()

    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick.fileno() if bound_by_fd else kick, gsi=5)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if not child:
                status = 1
                try:
                    asyncio._set_running_loop(None)
                    loop = asyncio.SelectorEventLoop()
                    loop.run_until_complete(in_the_child(kick))
                    loop.close()
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0
            assert irqfd.state is State.IDLE
            write(kick)
            await irqs.flush()
            assert sink.interrupts == [pulse(5)]
            with pytest.raises(EventFdBusyError):
                irqs.assign(kick, gsi=6)


@pytest.mark.parametrize("how", ["dropped", "closed"])
async def test_what_is_pending_is_the_parents_whatever_a_forked_child_does(how):
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        kick = EventFd()
        irqfd = irqs.assign(kick, gsi=5, masked=True)
        kick.signal(2)
        assert irqfd.state is State.PENDING
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            status = 1
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ResourceWarning)
                    if how == "dropped":
                        irqs._irqfds.__del__()
                    kick.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert fdinfo(kick.fileno()) == (0, kick.id, False)
        irqfd.unmask()
        await irqs.flush()
        assert sink.interrupts == [pulse(5)]
        assert irqfd.statistics().signals == 2
        kick.close()
