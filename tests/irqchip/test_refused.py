"""Controllers when somebody else refuses: a sink behind, a CPU, an acknowledgement. Nothing is noted that they have not taken."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest

from aioirqfd import EventFd, Interrupt, IrqchipPin, IrqManager, Msi, RoutingError, RoutingTable
from aioirqfd.irqchip import Chipset, IoApic, Pic
from aioirqfd.irqfd.interrupt import Action
from aioirqfd.sinks import CallbackSink, RecordingSink
from tests.integers import int64
from tests.irqchip.test_ioapic import EDGE_45, LEVEL, LEVEL_49, MASKED, Out, irq, make, program
from tests.irqchip.test_pic import EOI, MASTER, MASTER_DATA, initialise, pulse
from tests.irqfd.helpers import SlowSink

pytestmark = pytest.mark.alike

NO_MEMORY = OSError(12, "no memory")


class Telling(Out):
    """A sink behind that wants to know whose end of interrupt is waited for, and refuses so often."""

    def __init__(self):
        super().__init__()
        self.refuse = 0
        self.told = {}

    def set_eoi_message(self, pin, message):
        if self.refuse:
            self.refuse -= 1
            raise NO_MEMORY
        self.told[pin] = None if message is None else message.data & 0xFF


def telling(entries, **options):
    out = Telling()
    ioapic = IoApic(out, **options)
    for pin, low in entries.items():
        program(ioapic, pin, low)
    return ioapic, out


# ------------------------------------------------------------------------------------- the end that nobody would hear


async def test_an_edge_whose_end_is_waited_for_is_told_before_it_goes_out():
    ioapic, out = telling({5: EDGE_45})
    out.refuse = 2
    with pytest.raises(OSError, match="no memory"):
        ioapic.try_inject(irq(5, Action.ASSERT))
    with pytest.raises(OSError, match="no memory"):
        await ioapic.inject(irq(5, Action.ASSERT))
    assert (out.vectors, out.told[5]) == ([], None)
    assert ioapic.try_inject(irq(5, Action.DEASSERT)) is True, "a line can be lowered all the same"
    assert ioapic.try_inject(irq(5, Action.ASSERT)) is True
    assert (out.vectors, out.told[5]) == ([0x45], 0x45)


async def test_a_level_is_told_before_it_goes_out():
    ioapic, out = telling({3: LEVEL_49 | MASKED})
    ioapic.set_irq(3, 1)
    out.refuse = 3
    with pytest.raises(OSError, match="no memory"):
        program(ioapic, 3, LEVEL | 0x31)  # the guest unmasks it, with another vector
    assert (out.vectors, ioapic.waiting) == ([], {3})
    with pytest.raises(OSError, match="no memory"):
        await ioapic.flush()
    with pytest.raises(OSError, match="no memory"):
        ioapic.try_inject(irq(3))
    await ioapic.flush()
    assert (out.vectors, out.told[3], ioapic.waiting) == ([0x31], 0x31, frozenset())


def test_a_stale_request_is_asked_for_though_the_end_could_not_be_told():
    asked = []

    def resample(gsi):
        asked.append(gsi)
        return True

    ioapic, out = telling({4: LEVEL_49 | MASKED}, resample=resample)
    ioapic.try_inject(irq(4, Action.ASSERT))
    out.refuse = 1
    with pytest.raises(OSError, match="no memory"):
        program(ioapic, 4, LEVEL | 0x31)
    assert asked == [4], "or it would be gone"


async def test_a_restore_tells_of_every_pin_though_one_is_refused():
    ioapic, _ = telling({3: LEVEL_49, 4: LEVEL | 0x31})
    state = json.loads(json.dumps(ioapic.snapshot()))
    other, out = telling({})
    out.refuse = 1
    with pytest.raises(OSError, match="no memory"):
        other.restore(state)
    assert {pin: vector for pin, vector in out.told.items() if vector} == {4: 0x31}
    other.set_irq(3, 1)
    assert (other.waiting, out.vectors) == ({3}, [])
    await other.flush()
    assert (out.told[3], out.vectors) == (0x49, [0x49])


# ------------------------------------------------------------------------------------------------- messages and acks


def test_ctrl_c_in_the_sink_behind_gives_the_request_back():
    ioapic, out, _ = make({4: LEVEL_49, 5: EDGE_45})
    taken = out.try_inject

    def interrupted(interrupt):
        out.try_inject = taken
        raise KeyboardInterrupt(interrupt)

    for pin in (4, 5):
        out.try_inject = interrupted
        with pytest.raises(KeyboardInterrupt):
            ioapic.set_irq(pin, 1)
        assert (out.vectors, ioapic.waiting) == ([], {pin})
        ioapic.set_irq(pin, 0)
        ioapic.set_irq(pin, 1)
        assert out.interrupts.pop()
        ioapic.set_irq(pin, 0)


def test_whoever_is_told_of_a_refusal_and_raises_does_not_keep_the_other_pins_back():
    blocked = []

    def on_blocked():
        blocked.append(None)
        raise LookupError

    ioapic, out, _ = make({3: LEVEL_49, 4: LEVEL_49}, on_blocked=on_blocked)
    for pin in (3, 4):
        ioapic.set_irq(pin, 1)
    assert out.vectors == [0x49, 0x49]
    out.full = True
    with pytest.raises(LookupError):
        ioapic.eoi(0x49)
    assert (len(blocked), ioapic.waiting) == (2, {3, 4})


def test_each_end_of_interrupt_is_heard_whatever_another_one_raises():
    ioapic, _, _ = make({3: LEVEL_49, 4: LEVEL_49, 5: LEVEL_49})
    heard = []

    def ack(gsi):
        heard.append(gsi)
        if gsi < 5:
            raise LookupError(gsi)

    ioapic.bind(ack)
    with pytest.raises(LookupError, match="3"):
        ioapic.eoi(0x49)
    assert heard == [3, 4, 5]


def test_a_batch_that_fails_in_its_middle_says_what_was_taken():
    ioapic, out = telling({3: EDGE_45, 4: EDGE_45})
    out.refuse = 1
    assert ioapic.try_inject_batch([irq(3), irq(4, Action.ASSERT), irq(3)]) == 1
    assert out.vectors == [0x45]


async def test_a_batch_of_a_manager_is_injected_once_though_it_fails_in_its_middle():
    ioapic, out = telling({3: EDGE_45, 4: EDGE_45})
    async with IrqManager(ioapic) as irqs:
        with EventFd() as first, EventFd() as second, EventFd() as resample:
            irqs.assign(first, gsi=3)
            irqs.assign(second, gsi=4, resamplefd=resample)
            out.refuse = 1
            second.signal()
            first.signal()
            await irqs.flush()
    assert out.vectors == [0x45, 0x45]


@pytest.mark.parametrize(
    "out", [CallbackSink(print), object(), RecordingSink, None], ids=["slow", "none", "class", "None"]
)
def test_what_is_behind_takes_messages_at_once(out):
    with pytest.raises(TypeError, match=r"try_inject\(\)|inject\(\)"):
        IoApic(out)


# ------------------------------------------------------------------------------------------------------------ the CPU


def test_a_cpu_that_has_not_heard_is_told_again():
    heard, fail = [], [True]

    def on_output(level):
        if fail:
            fail.clear()
            raise LookupError
        heard.append(level)

    pic = Pic(on_output)
    initialise(pic)
    with pytest.raises(LookupError):
        pic.try_inject(pulse(3))
    assert heard == []
    pic.try_inject(pulse(3))
    assert (heard, pic.intack()) == ([True, False], 0x33), "and False when it has taken it"


async def test_an_interrupt_whose_cpu_was_not_told_at_once_reaches_it_by_the_queue():
    heard, fail = [], [True]

    def on_output(level):
        if fail:
            fail.clear()
            raise LookupError
        heard.append(level)

    pic = Pic(on_output)
    initialise(pic)
    async with IrqManager(pic) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=3)
            kick.signal()
            await irqs.flush()
    assert (heard, pic.intack()) == ([True, False], 0x33), "and False when it has taken it"
    pic.io_write(MASTER, EOI)
    assert pic.output is False, "once"


# ----------------------------------------------------------------------------------------------------------- chipsets


class Table(SlowSink):
    """Keeps its table; refuses those with gsi 7, and any as long as it is told to."""

    def __init__(self):
        super().__init__()
        self.table: Any = None
        self.refuse = False

    def set_routing(self, table):
        if self.refuse or 7 in table:
            raise RoutingError("not this one")
        self.table = table


def test_before_the_first_table_each_has_its_own():
    pic, ioapic = Pic(), Table()
    acks = []
    pic.bind(acks.append)
    initialise(pic)
    chipset = Chipset(pic=pic, ioapic=ioapic)
    with pytest.raises(RoutingError):
        chipset.set_routing(RoutingTable({7: IrqchipPin("pic", 3), 8: IrqchipPin("ioapic", 1)}))
    pic.try_inject(pulse(3))
    pic.intack()
    pic.io_write(MASTER, EOI)
    assert acks == [3], "gsi n is pin n again"


def test_one_that_does_not_take_its_old_table_back_is_named_and_the_others_have_theirs():
    first, second, last = Table(), Table(), Table()
    chipset = Chipset(pic=first, ioapic=second, msi=last)
    good = RoutingTable({5: IrqchipPin("pic", 5)})
    chipset.set_routing(good)
    bad = RoutingTable({6: IrqchipPin("pic", 5)})
    last.refuse = True
    seen = []

    def stubborn(table):
        seen.append(table)
        if table is good:
            raise LookupError("no way back")
        first.table = table

    chipset._tiers["pic"].set_routing = stubborn
    with pytest.raises(RoutingError) as caught:
        chipset.set_routing(bad)
    assert (seen, second.table) == ([bad, good], good)
    assert "no way back" in caught.value.__notes__[0]


# ------------------------------------------------------------------------------------------------- numbers and copies


def test_other_libraries_integers_become_plain_ones():
    pic, (ioapic, out, _) = Pic(), make()
    initialise(pic)
    pic.io_write(int64(MASTER_DATA), int64(0xF7))
    assert (pic.set_irq(int64(3), int64(1)), pic.io_read(int64(MASTER))) == (1, 8)
    ioapic.mmio_write(int64(0), int64(0x10 + 2 * 5), int64(4))
    ioapic.mmio_write(int64(0x10), int64(EDGE_45), int64(4))
    assert ioapic.mmio_read(int64(0x10), int64(4)) == EDGE_45
    ioapic.set_irq(int64(5), 1)
    ioapic.eoi(int64(0x45))
    json.dumps([pic.snapshot(), ioapic.snapshot()])
    assert out.vectors == [0x45]


@pytest.mark.parametrize("number", [True, 1.0, "1", None])
def test_what_is_no_number(number):
    pic, (ioapic, _, _) = Pic(), make()
    for chip in (pic, ioapic):
        with pytest.raises(RoutingError, match="has pins 0"):
            chip.set_irq(number, 1)
    with pytest.raises(ValueError, match=r"0\.\.255, not"):
        pic.io_write(MASTER_DATA, number)
    with pytest.raises(ValueError, match="cannot be"):
        ioapic.mmio_write(0, number)
    with pytest.raises(ValueError, match="1, 2, 4 or 8"):
        ioapic.mmio_read(0, number)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
def test_nothing_is_copied(how):
    for chip in (Pic(), IoApic(RecordingSink()), Chipset(pic=Pic())):
        with pytest.raises(TypeError, match=r"cannot be copied or pickled.*snapshot\(\)"):
            how(chip)


def test_what_is_only_a_value_is():
    for value in (
        Interrupt(5, Msi(0xFEE00000, 1), Action.ASSERT),
        RoutingTable({5: IrqchipPin("pic", 5), 6: Msi(1 << 40, 2, devid=3)}),
        RoutingTable.default().with_route(100, ()),
    ):
        for twin in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
            assert twin == value
            if isinstance(value, RoutingTable):
                assert isinstance(twin, RoutingTable)
                assert [twin.routes(gsi) for gsi in (5, 99, 100)] == [value.routes(gsi) for gsi in (5, 99, 100)]
