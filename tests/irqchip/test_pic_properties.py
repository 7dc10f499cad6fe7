"""The 8259 pair against a second reading of the data sheet, written with lists of pins instead of bits."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aioirqfd.irqchip import Pic
from aioirqfd.irqfd.interrupt import Action, Interrupt, IrqchipPin

pytestmark = pytest.mark.alike

MAY_BE_LEVEL = {3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15}


class Chip:
    """One 8259A: sets of pins, and a list of them from the highest priority to the lowest."""

    def __init__(self, first):
        self.first = first
        self.up = set()
        self.level = set()
        self.latched = set()
        self.remembered = set()
        self.serving = set()
        self.masked = set()
        self.order = list(range(8))
        self.vector = 0
        self.aeoi = self.rotates = self.sfnm = self.smm = self.show_isr = self.polling = False
        self.slave: Chip | None = None

    def requests(self):
        asked = {pin for pin in range(8) if (pin in self.up if pin in self.level else pin in self.latched)}
        return asked | ({2} if self.slave is not None and self.slave.best() is not None else set())

    def best(self):
        holding_back = self.serving - self.masked if self.smm else self.serving
        for pin in self.order:
            if pin in holding_back:
                nests = self.sfnm and pin == 2 and self.slave is not None and self.slave.best() is not None
                return pin if nests and pin not in self.masked else None
            if pin in self.requests() and pin not in self.masked:
                return pin
        return None

    def drive(self, pin, high):
        if high:
            if pin not in self.level and pin not in self.remembered:
                self.latched.add(pin)
            self.up.add(pin)
            self.remembered.add(pin)
        else:
            self.up.discard(pin)
            self.remembered.discard(pin)

    def set_levels(self, level):
        waiting = self.requests() - ({2} if self.slave is not None else set()) | self.latched - self.level
        self.level = level
        self.latched = waiting - level

    def make_lowest(self, pin):
        at = self.order.index(pin) + 1
        self.order = self.order[at:] + self.order[:at]

    def take(self, pin):
        self.latched.discard(pin)
        if not self.aeoi:
            self.serving.add(pin)
            return []
        if self.rotates:
            self.make_lowest(pin)
        return [self.first + pin]

    def end(self, pin):
        self.serving.discard(pin)
        return [self.first + pin]

    def highest_in_service(self):
        serving = self.serving - self.masked if self.smm else self.serving
        return next((pin for pin in self.order if pin in serving), None)

    def ocw2(self, command, level):
        match command:
            case "eoi" | "rotate eoi":
                pin = self.highest_in_service()
                if pin is None:
                    return []
            case "specific eoi" | "rotate specific eoi":
                pin = level
            case "set priority":
                self.make_lowest(level)
                return []
            case _:
                self.rotates = command == "rotate in aeoi"
                return []
        if command.startswith("rotate"):
            self.make_lowest(pin)
        return self.end(pin)

    def initialise(self, vector, aeoi, sfnm):
        ended = sorted(self.latched - self.level | self.serving)
        self.latched.clear()
        self.remembered.clear()
        self.serving.clear()
        self.masked.clear()
        self.order = list(range(8))
        self.rotates = self.smm = self.show_isr = self.polling = False
        self.vector, self.aeoi, self.sfnm = vector, aeoi, sfnm
        return [self.first + pin for pin in ended]


class Pair:
    """The model: what :class:`Pic` has to do, one method for each operation; each returns what it acknowledges."""

    def __init__(self):
        self.slave = Chip(8)
        self.master = Chip(0)
        self.master.slave = self.slave
        self.holders = {pin: set() for pin in range(16)}

    def chip(self, index):
        return self.slave if index else self.master

    def line(self, pin, holder, high):
        (self.holders[pin].add if high else self.holders[pin].discard)(holder)
        self.chip(pin >= 8).drive(pin % 8, bool(self.holders[pin]))

    def intack(self):
        pin = self.master.best()
        if pin is None:
            return self.master.vector + 7, []
        ended = []
        vector = self.master.vector + pin
        if pin == 2:
            slave_pin = self.slave.best()
            vector = self.slave.vector + (7 if slave_pin is None else slave_pin)
            ended = [] if slave_pin is None else self.slave.take(slave_pin)
        return vector, self.master.take(pin) + ended

    def poll(self, index):
        chip = self.chip(index)
        pin = chip.best()
        return (7, []) if pin is None else (0x80 + pin, chip.take(pin))


COMMANDS = {
    "aeoi fixed": 0,
    "eoi": 1,
    "specific eoi": 3,
    "rotate in aeoi": 4,
    "rotate eoi": 5,
    "set priority": 6,
    "rotate specific eoi": 7,
}
pins = st.integers(0, 15)
chips = st.integers(0, 1)
operations = st.one_of(
    st.tuples(st.just("inject"), pins, st.sampled_from(Action)),
    st.tuples(st.just("set_irq"), pins, st.booleans()),
    st.tuples(st.just("intack")),
    st.tuples(st.just("ocw2"), chips, st.sampled_from(sorted(COMMANDS)), st.integers(0, 7)),
    st.tuples(st.just("mask"), chips, st.integers(0, 255)),
    st.tuples(st.just("special mask"), chips, st.booleans()),
    st.tuples(st.just("poll"), chips),
    st.tuples(st.just("elcr"), chips, st.integers(0, 255)),
    st.tuples(st.just("initialise"), chips, st.sampled_from([0x08, 0x30, 0x70, 0xF8]), st.booleans(), st.booleans()),
)


def bits(some):
    return sum(1 << pin for pin in some)


def apply_to_model(pair, operation):
    """Returns what the guest reads, if anything, and the pins acknowledged in order."""
    match operation:
        case ("inject", pin, Action.PULSE):
            pair.line(pin, "device", True)
            pair.line(pin, "device", False)
        case ("inject", pin, action):
            pair.line(pin, "resampler", action is Action.ASSERT)
        case ("set_irq", pin, high):
            pair.line(pin, "device", high)
        case ("intack",):
            return pair.intack()
        case ("ocw2", chip, command, level):
            return None, pair.chip(chip).ocw2(command, level)
        case ("mask", chip, value):
            pair.chip(chip).masked = {pin for pin in range(8) if value >> pin & 1}
        case ("special mask", chip, on):
            pair.chip(chip).smm = on
        case ("poll", chip):
            return pair.poll(chip)
        case ("elcr", chip, value):
            wanted = {pin for pin in range(8) if value >> pin & 1}
            pair.chip(chip).set_levels({pin for pin in wanted if 8 * chip + pin in MAY_BE_LEVEL})
        case ("initialise", chip, vector, aeoi, sfnm):
            return None, pair.chip(chip).initialise(vector, aeoi, sfnm)
    return None, []


def apply_to_pic(pic, operation):
    match operation:
        case ("inject", pin, action):
            assert pic.try_inject(Interrupt(pin, IrqchipPin("pic", pin), action)) is True
        case ("set_irq", pin, high):
            pic.set_irq(pin, high)
        case ("intack",):
            return pic.intack()
        case ("ocw2", chip, command, level):
            pic.io_write(0xA0 if chip else 0x20, COMMANDS[command] << 5 | level)
        case ("mask", chip, value):
            pic.io_write(0xA1 if chip else 0x21, value)
        case ("special mask", chip, on):
            pic.io_write(0xA0 if chip else 0x20, 0x68 if on else 0x48)
        case ("poll", chip):
            pic.io_write(0xA0 if chip else 0x20, 0x0C)
            return pic.io_read(0xA0 if chip else 0x20)
        case ("elcr", chip, value):
            pic.io_write(0x4D1 if chip else 0x4D0, value)
        case ("initialise", chip, vector, aeoi, sfnm):
            command = 0xA0 if chip else 0x20
            pic.io_write(command, 0x11)
            for value in (vector, 0x02 if chip else 0x04, 0x01 | aeoi << 1 | sfnm << 4):
                pic.io_write(command + 1, value)
    return None


def registers(pic):
    seen = []
    for command in (0x20, 0xA0):
        for choice in (0x0A, 0x0B):
            pic.io_write(command, choice)
            seen.append(pic.io_read(command))
        seen.append(pic.io_read(command + 1))
    return seen


@settings(max_examples=300)
@given(st.lists(operations, max_size=60))
@example([("set_irq", 3, True), ("initialise", 0, 0x30, False, False), ("set_irq", 3, True), ("intack",)])
@example([("initialise", 0, 0x30, False, True), ("inject", 12, Action.PULSE), ("intack",), ("inject", 9, Action.PULSE)])
@example([("inject", 9, Action.PULSE), ("elcr", 1, 2), ("inject", 9, Action.ASSERT), ("elcr", 1, 0), ("intack",)])
def test_it_does_what_the_model_does(sequence):
    changes, acks = [], []
    pic = Pic(changes.append)
    pic.bind(acks.append)
    pair = Pair()
    for operation in sequence:
        value, ended = apply_to_model(pair, operation)
        acks.clear()
        assert apply_to_pic(pic, operation) == value
        assert acks == ended
        assert pic.output is (pair.master.best() is not None)
        assert registers(pic) == [
            register
            for chip in (pair.master, pair.slave)
            for register in (bits(chip.requests()), bits(chip.serving), bits(chip.masked))
        ]
        assert changes[-1:] == ([pic.output] if changes else [])
        assert changes[::2] == [True] * len(changes[::2])
        assert changes[1::2] == [False] * len(changes[1::2])
        twin = Pic()
        twin.restore(json.loads(json.dumps(pic.snapshot())))
        assert (twin.output, twin.snapshot()) == (pic.output, pic.snapshot())


def settle(pic):
    """Unmask everything and take what comes, ending each: the pins taken, in order."""
    for port in (0x21, 0xA1):
        pic.io_write(port, 0)
    taken = []
    for _ in range(64):
        if not pic.output:
            return taken
        pin = pic.intack() - 0x30
        taken.append(pin)
        if pin >= 8:
            pic.io_write(0xA0, 0x20)
        pic.io_write(0x20, 0x20)
    raise AssertionError(f"no end: {taken}")


def ready():
    pic = Pic()
    for command, words in ((0x20, (0x30, 4, 1)), (0xA0, (0x38, 2, 1))):
        pic.io_write(command, 0x11)
        for word in words:
            pic.io_write(command + 1, word)
    return pic


edge_pins = st.integers(0, 15).filter(lambda pin: pin != 2)


@given(st.lists(edge_pins, max_size=30), st.tuples(st.integers(0, 255), st.integers(0, 255)))
def test_no_edge_is_lost_while_masked(pulses, masks):
    pic = ready()
    pic.io_write(0x21, masks[0])
    pic.io_write(0xA1, masks[1])
    for pin in pulses:
        pic.try_inject(Interrupt(pin, IrqchipPin("pic", pin)))
    assert sorted(settle(pic)) == sorted(set(pulses))


@given(st.lists(edge_pins, unique=True, min_size=1), st.integers(0, 7), st.integers(0, 7))
def test_what_waits_together_comes_in_the_order_of_priority(pulses, master_lowest, slave_lowest):
    pic = ready()
    pic.io_write(0x20, 0xC0 | master_lowest)
    pic.io_write(0xA0, 0xC0 | slave_lowest)
    pic.try_inject_batch([Interrupt(pin, IrqchipPin("pic", pin)) for pin in pulses])
    slave = [8 + (slave_lowest + 1 + rank) % 8 for rank in range(8)]
    order = []
    for rank in range(8):
        pin = (master_lowest + 1 + rank) % 8
        order += slave if pin == 2 else [pin]
    assert settle(pic) == [pin for pin in order if pin in pulses]


@given(st.lists(st.tuples(edge_pins, st.sampled_from(Action)), max_size=20))
def test_a_batch_does_what_its_interrupts_do_one_by_one(sequence):
    interrupts = [Interrupt(pin, IrqchipPin("pic", pin), action) for pin, action in sequence]
    together, apart = ready(), ready()
    for pic in (together, apart):
        pic.io_write(0x4D0, 0x28)
        pic.io_write(0x4D1, 0x06)
    assert together.try_inject_batch(interrupts) == len(interrupts)
    assert all(apart.try_inject(interrupt) for interrupt in interrupts)
    assert together.snapshot() == apart.snapshot()
    assert together.output is apart.output


@given(st.lists(st.sampled_from([3, 5, 9, 14]), max_size=30))
def test_an_acknowledged_level_line_never_interrupts_twice_for_one_assertion(signals):
    pic = ready()
    pic.io_write(0x4D0, 0x28)
    pic.io_write(0x4D1, 0x42)
    up = set()

    def ack(gsi):
        up.discard(gsi)
        pic.try_inject(Interrupt(gsi, IrqchipPin("pic", gsi), Action.DEASSERT))

    pic.bind(ack)
    for count, pin in enumerate(signals, start=1):
        up.add(pin)
        pic.try_inject(Interrupt(pin, IrqchipPin("pic", pin), Action.ASSERT))
        if count % 3 == 0 or count == len(signals):
            expected = sorted(up)
            assert sorted(settle(pic)) == expected
            assert up == set()
