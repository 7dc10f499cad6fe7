"""The first sentence of explain() names the segment at which a signal stops; each of these programs hangs in another one."""

# pyright: reportArgumentType=false, reportOperatorIssue=false
# (what is read is JSON, of whose inside no type checker knows)
from __future__ import annotations

import asyncio
import gc
import re

import pytest

from aioirqfd import EventFd, InjectionError, Interrupt, IrqManager, MsixTable, Retry, WorkQueue, nodes
from aioirqfd.inspect import read
from aioirqfd.irqchip import Chipset, IoApic, Pic
from aioirqfd.sinks import RecordingSink
from tests.irqfd.helpers import OffloadingSink, turns

HERE = r"irqfd/test_explain\.py:\d+"


def says(text, first, rest="An injection is owed; counted: 1 signals"):
    assert re.fullmatch(rf"gsi 5: {first}\. {rest}\.", text), text


async def test_nothing_stops_it():
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)
            says(irqfd.explain(), "no signal has come since it was assigned", "Nothing is owed; counted: nothing")
            kick.signal(2)
            says(irqs.explain(5), "nothing stops it", "Nothing is owed; counted: 2 signals, 1 injections, 1 coalesced")


async def test_the_manager_is_paused():
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            await irqs.pause()
            kick.signal()
            first = rf"its manager is paused for \d+ s, by {HERE}; resume\(\) goes on"
            says(
                irqs.explain(5),
                first,
                "An injection is owed; counted: nothing, and what is held is in its eventfd, uncounted",
            )
            irqs.resume()
            says(irqs.explain(5), "nothing stops it", "Nothing is owed; counted: 1 signals, 1 injections")


@pytest.mark.parametrize("at_once", [True, False])
async def test_it_is_masked_and_by_whom(at_once):
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, masked=at_once)
            irqfd.mask()
            kick.signal()
            says(irqfd.explain(), rf"it is masked for \d+ s, by {HERE}; unmask\(\) goes on")
            irqfd.unmask()
            await irqs.flush()
            says(irqfd.explain(), "nothing stops it", "Nothing is owed; counted: 1 signals, 1 injections")


async def test_what_is_deassigned_is_not_remembered():
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5, masked=True)
            await irqs.deassign(irqfd)
            assert irqfd.explain() == "gsi 5: the irqfd is deassigned; its eventfd is nobody's."
            assert irqs._irqfds.delivery.since._notes == {}


@pytest.mark.trouble
@pytest.mark.parametrize("hold", [True, False])
async def test_the_gsi_has_no_route(hold):
    async with IrqManager(RecordingSink(), routing={}, unrouted="hold" if hold else "drop") as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            kick.signal()
            kept = "its signals are kept" if hold else "1 interrupts were dropped"
            rest = "An injection is owed; counted: 1 signals" if hold else "Nothing is owed; counted: 1 signals"
            says(irqs.explain(5), rf"the gsi has no route, {kept}; give it one with set_route\(\)", rest)


async def test_nothing_is_assigned_to_the_gsi():
    irqs = IrqManager(RecordingSink())
    assert irqs.explain(5) == "gsi 5: the manager is new; it delivers inside `async with` alone."
    async with irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=7)
            assert irqs.explain(5) == "gsi 5: no irqfd is assigned to it; assign() binds an eventfd. Assigned are [7]."
            with pytest.raises(ValueError, match="gsi"):
                irqs.explain(-1)


class Failing:
    async def inject(self, interrupt):
        raise OSError(5, "broken")


@pytest.mark.trouble
@pytest.mark.parametrize(
    ("attempts", "first"),
    [
        (0, r"its sink or handler has failed for good with OSError\(5, 'broken'\); irqfd.resume\(\) tries again"),
        (9, r"its sink or handler has failed with OSError\(5, 'broken'\); it is tried again in a moment"),
    ],
)
async def test_the_sink_fails(attempts, first):
    with EventFd() as kick, pytest.raises(InjectionError, match="broken"):
        async with IrqManager(Failing(), retry=Retry(attempts=attempts, initial=3600, maximum=3600)) as irqs:
            irqs.assign(kick, gsi=5)
            kick.signal()
            await turns(5)
            says(irqs.explain(5), first)


@pytest.mark.parametrize("handlers", [1, 2])
async def test_a_handler_that_waits_for_ever(handlers):
    gate = asyncio.Event()

    async def on_wakeup(irqfd, count):
        await gate.wait()

    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5, wakeup=[on_wakeup] * handlers)
            kick.signal()
            await turns(5)
            what = r"its wakeup handler runs, and stands at" if handlers == 1 else r".* run, and stand at"
            says(
                irqs.explain(5),
                rf"{what} .*on_wakeup \(irqfd/test_explain\.py:\d+\), in Event\.wait",
                r"An injection is under way; counted: 1 signals",
            )
            kick.signal()
            assert "An injection is under way, and another is owed;" in irqs.explain(5)
            gate.set()
            await irqs.flush()


async def test_it_waits_for_a_worker_whose_handler_hangs():
    gate = asyncio.Event()

    async def slow(irqfd, count):
        await gate.wait()

    async def quick(irqfd, count):
        pass

    async with IrqManager(RecordingSink(), queue=WorkQueue(maxsize=1)) as irqs:
        with EventFd() as kick, EventFd() as other:
            irqs.assign(other, gsi=6, wakeup=[slow, slow])
            irqs.assign(kick, gsi=5, wakeup=[quick, quick])
            other.signal()
            await turns(3)
            kick.signal()
            says(
                irqs.explain(5),
                r"it waits for a worker of the queue: 1 of 1 wait, and the workers stand at .*slow \(irqfd/test_explain\.py:\d+\), in Event\.wait",
            )
            gate.set()
            await irqs.flush()


async def test_the_sink_watches_it_by_itself():
    async with IrqManager(OffloadingSink()) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            says(irqs.explain(5), r"the sink watches the eventfd by itself .*", "Nothing is owed; counted: nothing")


async def test_delivered_and_not_acknowledged():
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick, EventFd() as unmask:
            irqs.assign(kick, gsi=5, resamplefd=unmask)
            kick.signal()
            says(
                irqs.explain(5),
                r"delivered, and not acknowledged for \d+ s: the line is up until the guest ends the interrupt",
                "Nothing is owed; counted: 1 signals, 1 injections",
            )
            irqs.ack(5)
            says(irqs.explain(5), "nothing stops it", "Nothing is owed; counted: 1 signals, 1 injections")


@pytest.mark.parametrize("slow", [True, False])
async def test_a_line_that_is_signalled_again_is_up_since_the_first_time(monkeypatch, slow):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    async with IrqManager(Slow() if slow else RecordingSink()) as irqs:
        with EventFd() as kick, EventFd() as unmask:
            irqs.assign(kick, gsi=5, resamplefd=unmask)
            for _ in range(2):
                kick.signal()
                await irqs.flush()
                now[0] += 20
            assert "delivered, and not acknowledged for 40 s" in irqs.explain(5)
            irqs.ack(5)
            await irqs.flush()
            kick.signal()
            await irqs.flush()
            assert "delivered, and not acknowledged for 0 s" in irqs.explain(5)


@pytest.mark.parametrize("chipset", [True, False])
async def test_the_chip_has_it_masked(chipset):
    pic = Pic()
    for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xFF)):
        pic.io_write(port, value)
    async with IrqManager(Chipset(pic=pic) if chipset else pic) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            kick.signal()
            rest = "Nothing is owed; counted: 1 signals, 1 injections"
            says(irqs.explain(5), "the guest has masked pin 5 of the master PIC", rest)
            pic.io_write(0x21, 0)
            says(irqs.explain(5), "pin 5 of the master PIC asks, and the CPU has not acknowledged it", rest)
            pic.intack()
            says(irqs.explain(5), "pin 5 of the master PIC is in service until the guest's end of interrupt", rest)
            pic.io_write(0x20, 0x20)
            says(irqs.explain(5), "nothing stops it", rest)


async def test_the_slave_is_masked_at_the_master():
    pic = Pic()
    pic.io_write(0x21, 4)
    async with IrqManager(pic) as irqs:
        assert pic.obstacle(irqs_interrupt(irqs, 9)) == "the guest has masked the slave PIC at the master"


async def test_an_ioapic_pin():
    out = RecordingSink()
    ioapic = IoApic(out)
    async with IrqManager(ioapic) as irqs:
        interrupt = irqs_interrupt(irqs, 5)
        assert ioapic.obstacle(interrupt) == "the guest has masked pin 5 of the IOAPIC"
        ioapic.mmio_write(0, 0x10 + 2 * 5)
        ioapic.mmio_write(0x10, 0x8031)  # level, vector 0x31
        assert ioapic.obstacle(interrupt) is None
        with EventFd() as kick, EventFd() as unmask:
            irqs.assign(kick, gsi=5, resamplefd=unmask)
            kick.signal()
            waits = "pin 5 of the IOAPIC waits for the guest's end of interrupt"
            says(irqs.explain(5), waits, "Nothing is owed; counted: 1 signals, 1 injections")


async def test_of_two_chips_one_masked_is_no_obstacle():
    pic, ioapic = Pic(), IoApic(RecordingSink())
    pic.io_write(0x21, 0xFF)
    ioapic.mmio_write(0, 0x10 + 2 * 5)
    ioapic.mmio_write(0x10, 0x31)
    async with IrqManager(Chipset(pic=pic, ioapic=ioapic)) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            kick.signal()
            await irqs.flush()
            says(irqs.explain(5), "nothing stops it", "Nothing is owed; counted: 1 signals, 1 injections")
            ioapic.mmio_write(0x10, 0x10031)
            both = "the guest has masked pin 5 of the IOAPIC and the guest has masked pin 5 of the master PIC"
            says(irqs.explain(5), both, "Nothing is owed; counted: 1 signals, 1 injections")


class Slow:
    async def inject(self, interrupt):
        pass


class Asked:
    async def inject(self, interrupt):
        pass

    def try_inject(self, interrupt):
        return True

    def obstacle(self, interrupt):
        raise OSError(9, "gone")


@pytest.mark.trouble
async def test_a_sink_that_cannot_say():
    async with IrqManager(Asked()) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            kick.signal()
            said = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context["message"]))
            says(irqs.explain(5), "nothing stops it", "Nothing is owed; counted: 1 signals, 1 injections")
            assert len(said) == 1
            assert said[0].startswith("aioirqfd: obstacle() raised:")


def irqs_interrupt(irqs, gsi):
    return Interrupt(gsi, irqs.routing.routes(gsi)[0])


# ------------------------------------------------------------------------------------------------- a device's vectors


async def test_an_irqfd_is_called_by_its_name():
    async with IrqManager(RecordingSink()) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5, name="uart")
            kick.signal()
            await irqs.flush()
            assert (
                irqs.explain(5) == "uart (gsi 5): nothing stops it. Nothing is owed; counted: 1 signals, 1 injections."
            )


OWED = "An injection is owed; its signals are in its eventfd, uncounted."


def everything(irqs):
    return irqs.inspect("explain").splitlines()


async def test_each_register_of_an_msix_table_that_stops_a_vector_is_named(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    async with IrqManager(RecordingSink()) as irqs, MsixTable(irqs, vectors=5, name="nic") as table:
        assert everything(irqs) == ["nothing stops its 0 irqfds."]
        table.signal(3)
        why = "the guest has MSI-X disabled, and it was never in use; its driver enables it"
        assert everything(irqs) == [f"nic vector 3: {why}. {OWED}"]
        table.write_control(MsixTable.ENABLE | MsixTable.FUNCTION_MASK)
        why = "the guest has set the function mask, and it was never in use, which masks every vector"
        assert everything(irqs) == [f"nic vector 3: {why}. {OWED}"]
        table.write_control(MsixTable.ENABLE)
        assert everything(irqs) == [f"nic vector 3: the guest has masked it, and it was never in use. {OWED}"]
        table.write(3 * 16, 0xFEE0_0001, 4)
        table.unmask(3)
        why = "the guest has written the address 0xfee00001, which is no multiple of 4, so there is no message to send"
        assert everything(irqs) == [f"nic vector 3: {why}. {OWED}"]
        table.write(3 * 16, 0xFEE0_0000, 4)
        await irqs.flush()
        gsi = table.gsi(3)
        assert everything(irqs) == ["nothing stops its 1 irqfds."]
        table.mask(3)
        assert everything(irqs) == ["nothing stops its 1 irqfds."]  # nothing is owed
        now[0] += 7
        table.signal(3)
        masked = f"nic vector 3 (gsi {gsi}): the guest has masked it for 7 s. An injection is owed; counted: "
        assert everything(irqs) == [f"{masked}2 signals, 1 injections."]
        assert irqs.explain(gsi) == everything(irqs)[0]
        assert list(irqs.inspect("irqfds", 0)) == ["nic vector 3"]
        table.write_control(0)
        why = "the guest has MSI-X disabled for 7 s; its driver enables it"
        assert everything(irqs) == [f"nic vector 3: {why}. {OWED}"]
        await irqs.pause()
        paused = everything(irqs)[0]
        assert re.fullmatch(
            rf"nic vector 3: its manager is paused for 0 s, by {HERE}, and {re.escape(why)}\. {OWED}", paused
        )
    assert everything(irqs) == ["the manager is closed; it delivers inside `async with` alone."]


async def test_a_vector_says_where_it_stands_by_its_own_path():
    async with IrqManager(RecordingSink()) as irqs, MsixTable(irqs, vectors=3, name="nic") as table:
        key = nodes.key_of(table)
        table.write_control(MsixTable.ENABLE)
        table.unmask(1)
        why = "it has no eventfd, for nobody has asked for one: eventfd() and signal() make it"
        assert read(f"msix/{key}/vectors/1/explain") == f"nic vector 1: {why}. Nothing is owed."
        assert read(f"msix/{key}/explain") == "nothing stops its 3 vectors."
        table.signal(0)
        assert read(f"msix/{key}/explain") == f"nic vector 0: the guest has masked it, and it was never in use. {OWED}"
        table.signal(1)
        said = (
            f"nic vector 1 (gsi {table.gsi(1)}): nothing stops it. Nothing is owed; counted: 1 signals, 1 injections."
        )
        await irqs.flush()
        assert read(f"msix/{key}/vectors/1/explain") == said
        table.eventfd(1).close()
        assert "its eventfd is closed" in read(f"msix/{key}/vectors/1/explain")


async def test_a_vector_for_which_there_is_no_gsi():
    async with IrqManager(RecordingSink()) as irqs, MsixTable(irqs, vectors=2, name="nic") as table:
        last = irqs.gsis.allocate()
        while irqs.gsis.allocate() is not None:
            pass
        irqs.gsis.release(last)
        table.write_control(MsixTable.ENABLE)
        for vector in range(2):
            table.unmask(vector)
            table.signal(vector)
        why = "there is no gsi left for it; it waits until another vector gives one back"
        assert everything(irqs) == [f"nic vector 1: {why}. {OWED}"]


async def test_a_table_that_is_dropped_is_looked_at_no_more():
    async with IrqManager(RecordingSink()) as irqs:
        table = MsixTable(irqs, vectors=2, name="nic")
        table.signal(1)
        assert len(everything(irqs)) == 1
        table.eventfd(1).close()
        del table
        gc.collect()
        assert everything(irqs) == ["nothing stops its 0 irqfds."]
