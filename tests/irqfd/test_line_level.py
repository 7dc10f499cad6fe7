"""A line's level alone, held against a model: a state for each place, and what was asked for since."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aioirqfd import IrqchipPin, Msi
from aioirqfd.irqfd.line_level import LOW, LineLevel

if TYPE_CHECKING:
    from aioirqfd.irqfd.interrupt import Route

PINS: list[Route] = [IrqchipPin("ioapic", pin) for pin in range(3)]
MESSAGE = Msi(0xFEE00000, 0x31)

pins = st.sampled_from(PINS)
places = st.lists(pins, unique=True, max_size=3)
LOW_THERE, UP, FALLING = "low", "up", "falling"


class Model(RuleBasedStateMachine):
    """Each place is low, up or falling; everybody is to be told, or not; it is to be raised again, or not."""

    def __init__(self):
        super().__init__()
        self.level = LOW
        self.at = dict.fromkeys(PINS, LOW_THERE)
        self.tell = self.again = False

    @property
    def up(self):
        return [pin for pin in PINS if self.at[pin] == UP]

    def fall(self, pins):
        self.at |= {pin: FALLING for pin in pins if self.at[pin] == UP}

    @rule(pin=pins)
    def rise(self, pin):
        self.level = self.level.rising(pin)
        self.at[pin] = UP

    @rule(pin=pins)
    def rise_and_be_refused(self, pin):
        self.level = self.level.rising(pin).doubtful(pin)
        self.at[pin] = FALLING

    @rule()
    def acknowledge(self):
        self.level = self.level.ending(tell=True, again=False)
        self.fall(PINS)
        self.tell, self.again = True, False

    @rule(again=st.booleans())
    def take_down(self, again):
        self.level = self.level.ending(tell=False, again=again)
        self.fall(PINS)
        self.again = self.again and again

    @precondition(lambda self: self.level.falling)
    @rule(data=st.data())
    def lower(self, data):
        pin = data.draw(st.sampled_from(self.level.falling))
        self.level = self.level.lowered(pin)
        self.at[pin] = LOW_THERE

    @precondition(lambda self: self.level.raised)
    @rule(data=st.data())
    def lower_what_was_raised_meanwhile(self, data):
        self.level = self.level.lowered(data.draw(st.sampled_from(self.level.raised)))

    @rule()
    def be_told(self):
        self.level = self.level.told()
        self.tell = False

    @rule(routes=places)
    def move_to_pins(self, routes):
        was = self.again or bool(self.up)
        self.level = self.level.rerouted(routes, level=True)
        self.fall(set(PINS) - set(routes))
        self.again = was and (not routes or set(self.up) != set(routes))

    @rule()
    def become_a_message(self):
        self.tell = self.tell or self.again or bool(self.up)
        self.level = self.level.rerouted([MESSAGE], level=False)
        self.fall(PINS)
        self.again = False

    @rule(routes=places)
    def look_where_it_is_missing(self, routes):
        self.level, missing = self.level.missing(routes)
        wanted = [pin for pin in routes if self.at[pin] != UP] if self.again else []
        assert list(missing) == wanted
        self.again = self.again and (bool(wanted) or not routes)
        self.at |= dict.fromkeys(wanted, LOW_THERE)  # it is raised there now, and not lowered first

    @rule(routes=places)
    def restore(self, routes):
        self.level = self.level.within(routes)
        self.fall(set(PINS) - set(routes))

    @invariant()
    def as_the_model_says(self):
        level = self.level
        assert sorted(level.raised, key=PINS.index) == self.up
        assert sorted(level.falling, key=PINS.index) == [pin for pin in PINS if self.at[pin] == FALLING]
        assert (level.tell, level.again) == (self.tell, self.again)
        assert level.moving == bool(level.falling or self.tell or self.again)


TestModel = Model.TestCase


def test_what_fell_first_is_lowered_first():
    one, two, three = PINS
    level = LOW.rising(one).rising(two).doubtful(two).rising(three)
    assert level.ending(tell=True, again=False) == LineLevel((), (two, one, three), tell=True)


def test_a_place_that_is_in_doubt_once_more_is_lowered_last():
    one, two, _ = PINS
    assert LOW.doubtful(one).doubtful(two).doubtful(one).falling == (two, one)
