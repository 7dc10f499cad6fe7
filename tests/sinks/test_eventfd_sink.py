"""The sink that signals another eventfd for each gsi."""

from __future__ import annotations

import os
import warnings
from itertools import pairwise

import pytest

from aioirqfd import ClosedError, EventFd, InjectionError, IrqManager, Retry, RoutingError
from aioirqfd.sinks import EventFdSink, RecordingSink
from tests.irqfd.helpers import asserted, deasserted, pulse, write


async def test_pulse_and_assert_signal_and_deassert_does_nothing():
    with EventFd() as five, EventFd() as nine:
        sink = EventFdSink({5: five, 9: nine})
        assert sink.try_inject(pulse(5)) is True
        await sink.inject(pulse(5))
        assert sink.try_inject(asserted(9)) is True
        assert sink.try_inject(deasserted(9)) is True
        await sink.inject(deasserted(8))
        assert (five.read_nowait(), nine.read_nowait()) == (2, 1)


async def test_a_gsi_without_an_eventfd_and_a_closed_one():
    with EventFd() as five:
        sink = EventFdSink({5: five})
        with pytest.raises(RoutingError):
            sink.try_inject(pulse(6))
        with pytest.raises(RoutingError):
            await sink.inject(pulse(6))
    with pytest.raises(ClosedError):
        sink.try_inject(pulse(5))


@pytest.mark.trouble
async def test_the_mapping_is_looked_at_each_time():
    eventfds = {}
    with pytest.raises(InjectionError):
        async with IrqManager(EventFdSink(eventfds), retry=Retry(0)) as irqs:
            with EventFd() as kick, EventFd() as out:
                irqfd = irqs.assign(kick, gsi=5)
                kick.signal()
                await irqs.flush()
                assert irqfd.error is not None
                assert isinstance(irqfd.error.__cause__, RoutingError)
                eventfds[5] = out
                irqfd.resume()
                await irqs.flush()
                assert out.read_nowait() == 1


async def test_an_eventfd_at_its_top_takes_no_more_and_needs_none():
    with EventFd() as out:
        out.signal(2**64 - 2)
        assert EventFdSink({5: out}).try_inject(pulse(5)) is True
        assert out.read_nowait() == 2**64 - 2


async def test_a_chain_of_managers_on_one_loop_does_not_nest():
    # Each hop is a signal from within a wakeup: it goes through the mailbox, so the stack cannot grow.
    hops = 200
    sink = RecordingSink()
    async with IrqManager(sink) as last:
        eventfds = [EventFd() for _ in range(hops)]
        last.assign(eventfds[-1], gsi=5)
        managers = []
        for source, target in pairwise(eventfds):
            irqs = await IrqManager(EventFdSink({5: target})).__aenter__()
            irqs.assign(source, gsi=5)
            managers.append(irqs)
        eventfds[0].signal()
        write(eventfds[0])
        for _ in range(hops):
            for irqs in (*managers, last):
                await irqs.flush()
            if len(sink.interrupts) == 2:
                break
        assert 1 <= len(sink.interrupts) <= 2
        assert set(sink.interrupts) == {pulse(5)}
        for irqs in managers:
            await irqs.aclose()
        for eventfd in eventfds:
            eventfd.close()


async def test_two_managers_in_a_ring_do_not_hang_the_loop():
    with EventFd() as ping, EventFd() as pong:
        async with IrqManager(EventFdSink({5: pong})) as first, IrqManager(EventFdSink({5: ping})) as second:
            irqfds = first.assign(ping, gsi=5), second.assign(pong, gsi=5)
            ping.signal()
            for _ in range(50):
                await first.flush()
                await second.flush()
            assert all(irqfd.statistics().injections > 1 for irqfd in irqfds)
            irqfds[0].mask()
            await second.flush()


async def test_into_another_process():
    reader, writer = os.pipe()
    with EventFd() as out:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # other threads of the test run do not concern the child
            child = os.fork()
        if not child:
            status = 1
            try:
                os.set_blocking(out.fileno(), True)
                if os.eventfd_read(out.fileno()) >= 1:
                    os.write(writer, b"x")
                status = 0
            finally:
                os._exit(status)
        async with IrqManager(EventFdSink({5: out})) as irqs:
            with EventFd() as kick:
                irqs.assign(kick, gsi=5)
                kick.signal()
                await irqs.flush()
        assert os.read(reader, 1) == b"x"
        assert os.waitpid(child, 0)[1] == 0
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("eventfds", [None, [], 5, "fds"], ids=repr)
def test_what_is_no_mapping(eventfds):
    with pytest.raises(TypeError, match="an eventfd for each gsi is a mapping, not"):
        EventFdSink(eventfds)
