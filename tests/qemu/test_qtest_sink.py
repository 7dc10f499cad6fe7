from __future__ import annotations

import asyncio
import contextlib
import re
import signal

import pytest

from aioirqfd import Action, EventFd, InjectionError, Interrupt, IrqchipPin, IrqManager, Msi, Retry, WorkQueue
from aioirqfd.sinks import QtestSink
from aioirqfd.sinks.qtest import QtestClosedError, QtestError
from tests.qemu.harness import Qemu

pytestmark = pytest.mark.qemu

ROUNDS = 2000
# Both 8259s: ICW1..ICW4, vectors from 8 and from 0x70, nothing masked.
PIC_SET_UP = [f"outb {port:#x} {value:#x}" for port, value in
              ((0x20, 0x11), (0x21, 8), (0x21, 4), (0x21, 1), (0x21, 0), (0xA0, 0x11), (0xA1, 0x70), (0xA1, 2), (0xA1, 1), (0xA1, 0))]  # fmt: skip


@contextlib.asynccontextmanager
async def machine(*, stopped=False, confirm=True, machine="q35"):
    # Stopped where the request register is compared whole: the timer, on line 0, ticks in a machine that runs.
    async with Qemu(connect=False, stopped=stopped, machine=machine) as qemu:
        # The look-up's QMP connection: QEMU serves one at a time.
        await qemu.qmp.aclose()
        connecting = QtestSink.connect(qemu.qtest_path, qmp=qemu.qmp_path, confirm=confirm)
        async with await qemu.within(connecting) as sink:
            await sink.client.commands(*PIC_SET_UP)
            yield qemu, sink


async def redirect(sink, pin, entry):
    """Write the low half of a redirection entry of the IOAPIC."""
    await sink.client.commands(f"writel 0xfec00000 {0x10 + 2 * pin:#x}", f"writel 0xfec00010 {entry:#x}")


async def request_register(sink, port=0x20):
    """The 8259's IRR."""
    _, irr = await sink.client.commands(f"outb {port:#x} 0xa", f"inb {port:#x}")
    return int(irr, 16)


@pytest.mark.parametrize("confirm", [True, False])
@pytest.mark.parametrize("stopped", [True, False])
async def test_every_injection_is_a_pulse_of_the_line(confirm, stopped):
    async with machine(stopped=stopped, confirm=confirm) as (qemu, sink):
        pin = IrqchipPin("ioapic", 11)
        await sink.intercept_inputs(pin)
        heard = []
        sink.on_irq = lambda line, level: heard.append((line, level))
        async with IrqManager(sink, queue=WorkQueue(workers=8)) as irqs:
            with contextlib.ExitStack() as stack:
                eventfds = [stack.enter_context(EventFd()) for _ in range(8)]
                for gsi, eventfd in enumerate(eventfds, 10):
                    irqs.assign(eventfd, gsi=gsi)
                for _ in range(ROUNDS // 8):
                    for eventfd in eventfds:
                        eventfd.signal()
                    await qemu.within(irqs.flush())
                await qemu.within(sink.flush())
                counts = [irqfd.statistics().injections for irqfd in irqs.irqfds]
        assert counts == [ROUNDS // 8] * 8
        # Line 0 is the timer, which ticks in a machine that runs.
        assert {line: count for line, count in sink.raises.items() if line} == dict.fromkeys(range(10, 18), ROUNDS // 8)
        heard = [change for change in heard if change[0]]
        assert len(heard) == 2 * ROUNDS
        assert heard[:2] == [(10, True), (10, False)]


async def test_edges_and_levels_of_the_pic():
    async with machine(stopped=True) as (_qemu, sink):
        master, slave = IrqchipPin("pic", 5), IrqchipPin("pic", 12)
        await sink.inject(Interrupt(5, master))
        assert await request_register(sink) == 1 << 5  # an edge is latched
        await sink.inject(Interrupt(12, slave))
        assert await request_register(sink, 0xA0) == 1 << 4
        assert await request_register(sink) == 1 << 5 | 1 << 2  # by the cascade
        # Level-triggered by the ELCR: there as long as the line is.
        await sink.client.command("outb 0x4d1 0x08")
        level = IrqchipPin("pic", 11)
        await sink.inject(Interrupt(11, level, Action.ASSERT))
        assert await request_register(sink, 0xA0) == 1 << 4 | 1 << 3
        await sink.inject(Interrupt(11, level, Action.DEASSERT))
        assert await request_register(sink, 0xA0) == 1 << 4


async def test_the_end_of_an_interrupt_is_seen_at_the_intercepted_output():
    async with machine(stopped=True) as (qemu, sink):
        pin = IrqchipPin("pic", 5)
        await sink.intercept_outputs(pin)
        async with IrqManager(sink, routing={5: pin}) as irqs:
            sink.on_irq = lambda _line, level: None if level else irqs.ack(5)
            await sink.client.command("outb 0x4d0 0x20")
            with EventFd() as trigger, EventFd() as resample:
                irqfd = irqs.assign(trigger, gsi=5, resamplefd=resample)
                for round_number in range(1, 101):
                    trigger.signal()
                    await qemu.within(irqs.flush())
                    assert sink.levels == {0: True}
                    # Poll: acknowledges line 5, and lowers the output.
                    _, polled = await sink.client.commands("outb 0x20 0xc", "inb 0x20")
                    assert int(polled, 16) == 0x85
                    assert sink.levels == {0: False}
                    assert await qemu.within(resample.read()) == 1
                    await qemu.within(sink.flush())
                    assert await request_register(sink) == 0
                    await sink.client.command("outb 0x20 0x20")
                    assert sink.raises == {0: round_number}
                await irqs.deassign(irqfd)


async def test_redirection_entries_of_the_ioapic_and_messages_reach_the_local_apic():
    async with Qemu(connect=False) as qemu:
        sink = await qemu.within(QtestSink.connect(qemu.qtest_path, ioapic="/machine/q35/ioapic"))
        async with sink:
            await redirect(sink, 5, 0x45)  # edge
            await redirect(sink, 9, 0x8049)  # level
            await redirect(sink, 20, 0x10050)  # masked
            for pin in (5, 9, 20):
                await sink.inject(Interrupt(pin, IrqchipPin("ioapic", pin), Action.ASSERT))
            await sink.inject(Interrupt(30, Msi(0xFEE00000, 0x61)))
            text = await qemu.qmp.hmp("info lapic")
            requested = re.search(r"^IRR\s+(.*)$", text, re.MULTILINE)
            assert requested is not None
            assert sorted(requested.group(1).split()) == ["69", "73(level)", "97"]
            await sink.client.command("writel 0xfec00000 0x22")
            assert int(await sink.client.command("readl 0xfec00010"), 16) == 0xC049  # remote IRR


async def test_a_message_is_a_write():
    async with (
        machine() as (qemu, sink),
        IrqManager(sink, routing={number: Msi(0x1000 + 4 * number, number) for number in range(1, 5)}) as irqs,
    ):
        with contextlib.ExitStack() as stack:
            for number in range(1, 5):
                eventfd = stack.enter_context(EventFd())
                irqs.assign(eventfd, gsi=number)
                eventfd.signal()
            await qemu.within(irqs.flush())
            view = memoryview(qemu.ram)[0x1004:0x1014].cast("I")
            assert view.tolist() == [1, 2, 3, 4]
            view.release()


@pytest.mark.parametrize("name", ["q35", "pc", "microvm"])
async def test_the_chips_are_found(name):
    async with machine(machine=name) as (_qemu, sink):
        assert {pin.chip for pin in sink._commands} == {"pic", "ioapic"}
        assert len(sink._commands) == 40
        await sink.inject(Interrupt(12, IrqchipPin("pic", 12)))
        assert await request_register(sink, 0xA0) == 1 << 4
        assert await request_register(sink) & 1 << 2


async def test_a_machine_without_an_ioapic():
    async with machine(stopped=True, machine="isapc") as (_qemu, sink):
        with pytest.raises(QtestError, match="no ioapic pin"):
            await sink.inject(Interrupt(1, IrqchipPin("ioapic", 1)))
        await sink.inject(Interrupt(5, IrqchipPin("pic", 5)))
        assert await request_register(sink) == 1 << 5


async def test_a_device_that_is_not_there_is_an_error_and_qemu_goes_on():
    async with Qemu(connect=False) as qemu:
        async with await QtestSink.connect(qemu.qtest_path, ioapic="/machine/none") as sink:
            with pytest.raises(QtestError, match="Unknown device"):
                await sink.inject(Interrupt(5, IrqchipPin("ioapic", 5)))
            assert await sink.client.command("inb 0x80") != ""
        assert qemu.process.poll() is None


async def test_a_second_interception_is_refused():
    async with machine() as (_qemu, sink):
        await sink.intercept_inputs(IrqchipPin("ioapic", 0))
        with pytest.raises(QtestError, match="already"):
            await sink.intercept_outputs(IrqchipPin("pic", 0))


@pytest.mark.trouble
@pytest.mark.parametrize("how", ["killed", "aborted"])
async def test_a_qemu_that_dies_in_the_middle_loses_nothing_here(how):
    async with machine() as (qemu, sink):
        with contextlib.ExitStack() as stack:
            eventfds = [stack.enter_context(EventFd()) for _ in range(8)]
            signals = 0
            irqfds = []
            with pytest.raises(InjectionError) as caught:
                async with IrqManager(sink, queue=WorkQueue(workers=4), retry=Retry(1, 0, 0)) as irqs:
                    irqfds += [irqs.assign(eventfd, gsi=gsi) for gsi, eventfd in enumerate(eventfds)]
                    for round_number in range(40):
                        if round_number == 20:
                            # Stopped first, so that commands are on their way when it dies.
                            qemu.send_signal(signal.SIGSTOP)
                        for eventfd in eventfds:
                            eventfd.signal()
                            signals += 1
                        if round_number == 20:
                            while sink.client.outstanding < 8:
                                await asyncio.sleep(0)
                            qemu.send_signal(signal.SIGKILL if how == "killed" else signal.SIGABRT)
                            qemu.send_signal(signal.SIGCONT)
                            assert await qemu.died() == (-signal.SIGKILL if how == "killed" else -signal.SIGABRT)
                        await qemu.within(irqs.flush())
            assert isinstance(caught.value.__cause__, QtestClosedError)
            counts = [irqfd.statistics() for irqfd in irqfds]
            assert [count.injections for count in counts] == [20] * 8
            # What was not injected is back in the eventfds, to the last signal.
            assert (
                sum(count.injections for count in counts) + sum(eventfd.read_nowait() for eventfd in eventfds)
                == signals
            )
