"""Eventfds that the sink watches by itself: when it gets them, and when they come back."""

from __future__ import annotations

import errno
import os

import pytest

from aioirqfd import Action, EventFd, EventFdBusyError, Interrupt, IrqchipPin, IrqManager
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import RecordingTracer
from tests.irqfd.helpers import MSI, OTHER_MSI, OffloadingSink, pulse, turns, write


async def test_offloaded_the_sink_watches_and_the_loop_does_not():
    sink = OffloadingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick, EventFd() as unmask:
            irqfd = irqs.assign(kick, gsi=5)
            level = irqs.assign(unmask, gsi=9, resamplefd=kick)
            assert (irqfd.offloaded, level.offloaded, irqs.statistics().offloaded) == (True, True, 2)
            assert sink.log == [
                ("offload", kick, pulse(5), None),
                ("offload", unmask, Interrupt(9, IrqchipPin("ioapic", 9), Action.ASSERT), kick),
            ]
            kick.signal(3)
            await irqs.flush()
            assert sink.interrupts == []
            assert os.eventfd_read(kick.fileno()) == 3, "in the kernel's counter, where the sink sees it"
            await irqs.deassign(irqfd)
            assert sink.log[2:] == [("reclaim", kick, pulse(5))]
            assert irqfd.offloaded is False


@pytest.mark.parametrize("why", ["handler", "several routes", "no route", "masked", "per interrupt", "unable"])
async def test_what_is_not_offloaded(why):
    sink = OffloadingSink(able=why != "unable")

    async def handler(irqfd, number):
        pass

    tracer = RecordingTracer(per_interrupt=why == "per interrupt")
    async with IrqManager(sink, tracer=tracer) as irqs:
        if why == "several routes":
            irqs.set_routing({5: [IrqchipPin("pic", 5), IrqchipPin("ioapic", 5)]})
        if why == "no route":
            irqs.set_routing({})
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, wakeup=handler if why == "handler" else (), masked=why == "masked")
            assert irqfd.offloaded is False
            assert sink.log == []


@pytest.mark.parametrize("how", ["mask", "pause"])
async def test_masked_or_paused_it_is_taken_back_and_handed_over_again_with_what_came_meanwhile(how):
    sink = OffloadingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            if how == "mask":
                irqfd.mask()
            else:
                await irqs.pause()
            assert irqfd.offloaded is False
            write(kick, 2)
            await turns()
            assert irqfd.pending is True
            assert sink.interrupts == []
            (irqfd.unmask if how == "mask" else irqs.resume)()
            await irqs.flush()
            if irqfd.offloaded:
                assert sink.interrupts == []
                assert os.eventfd_read(kick.fileno()) >= 1, "the signal is the sink's now"
            else:
                assert sink.interrupts == [pulse(5)]


async def test_masked_with_nothing_pending_it_is_offloaded_again():
    sink = OffloadingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            irqfd.mask()
            irqfd.unmask()
            assert irqfd.offloaded is True
            assert [entry[0] for entry in sink.log] == ["offload", "reclaim", "offload"]


async def test_what_the_sink_injected_is_not_said_to_be_nothing():
    tracer = RecordingTracer()
    async with IrqManager(OffloadingSink(), tracer=tracer) as irqs:
        for masked, masked_later, ended in (
            (False, False, {"offloaded": True}),
            (False, True, {"offloaded": True}),  # though not at its end
            (True, False, {"signals": 0, "injections": 0, "coalesced": 0, "dropped": 0}),
        ):
            with EventFd() as kick:
                irqfd = irqs.assign(kick, gsi=5, masked=masked)
                if masked_later:
                    kick.signal()
                    assert os.eventfd_read(kick.fileno()) == 1, "by the sink"
                    irqfd.mask()
                await irqs.deassign(irqfd)
                about = {"gsi": 5, "fd": kick.fileno(), "eventfd_id": kick.id}
                assert tracer.of("irqfd_deassigned")[-1] == about | ended
    assert irqs._irqfds.offloading._were == set()


@pytest.mark.trouble
async def test_rerouted_an_offloaded_irqfd_is_offloaded_anew():
    sink = OffloadingSink()
    async with IrqManager(sink, routing={5: MSI}) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            irqs.set_routing({5: MSI, 6: MSI})
            assert len(sink.log) == 1, "nothing changed for it"
            irqs.set_routing({5: OTHER_MSI})
            assert sink.log[1:] == [("reclaim", kick, pulse(5, MSI)), ("offload", kick, pulse(5, OTHER_MSI), None)]
            irqs.set_routing({})
            assert irqfd.offloaded is False
            kick.signal()
            await irqs.flush()
            assert irqs.statistics().dropped == 1


async def test_a_busy_eventfd_is_refused_and_nothing_changed():
    sink = OffloadingSink()
    sink.error = EventFdBusyError("another virtual machine has it")
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            with pytest.raises(EventFdBusyError):
                irqs.assign(kick, gsi=5)
            assert irqs.irqfds == ()
            sink.error = None
            assert irqs.assign(kick, gsi=5).offloaded


async def test_a_sink_that_will_not_take_it_over_again_leaves_it_to_the_loop():
    sink, tracer = OffloadingSink(), RecordingTracer()
    async with IrqManager(sink, tracer=tracer) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            irqfd.mask()
            sink.error = EventFdBusyError("another virtual machine has it")
            irqfd.unmask()
            assert (irqfd.offloaded, irqfd.masked) == (False, False)
            assert len(tracer.of("offload_failed")) == 1
            kick.signal()
            await irqs.flush()
            assert sink.interrupts == [pulse(5)]
            sink.error = None


async def test_a_sink_that_is_gone_does_not_keep_the_manager_from_closing():
    sink, tracer = OffloadingSink(), RecordingTracer()
    async with IrqManager(sink, tracer=tracer) as irqs:
        with EventFd() as kick, EventFd() as other:
            irqs.assign(kick, gsi=5)
            irqs.assign(other, gsi=6)
            sink.error = OSError(errno.EBADF, "the virtual machine is closed")
            await irqs.aclose()
            assert irqs.irqfds == ()
            assert len(tracer.of("reclaim_failed")) == 2
            async with IrqManager(RecordingSink()) as others:
                others.assign(kick, gsi=5)
