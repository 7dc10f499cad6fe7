"""One pin alone: its request is here, or on its way out, and comes back if it is refused."""

from __future__ import annotations

import pytest

from aioirqfd.irqchip.ioapic_entry import IoApicEntry
from aioirqfd.irqchip.ioapic_pin import IoApicPin

pytestmark = pytest.mark.alike

EDGE, LEVEL, MASKED = 0x31, 0x8031, 0x10000


def pin(low, *, high=False):
    made = IoApicPin(5)
    made.write(0, low, high=high)
    made.moved(was_high=False, high=high)
    return made


@pytest.mark.parametrize(("low", "after"), [(EDGE, False), (LEVEL, True)])
def test_a_request_that_goes_out_is_not_due(low, after):
    one = pin(low, high=True)
    assert one.due
    request = one.take(5, kept=True)
    assert (one.due, one.request, one.open, request.level) == (False, after, not after, after)


@pytest.mark.parametrize("low", [EDGE, LEVEL])
def test_one_that_is_refused_comes_back(low):
    one = pin(low, high=True)
    one.give_back(one.take(5, kept=True))
    assert one.due


def test_an_edge_that_is_its_callers_does_not():
    one = pin(EDGE, high=True)
    one.give_back(one.take(5, kept=False))
    assert not one.due


def test_a_refusal_undoes_nothing_that_came_after_it():
    one = pin(LEVEL, high=True)
    old = one.take(5, kept=True)
    one.entry.remote_irr = False  # its end of interrupt
    one.take(5, kept=True)
    one.give_back(old)
    assert one.entry.remote_irr


def test_nor_a_restore():
    one = pin(LEVEL, high=True)
    old = one.take(5, kept=True)
    one.load(IoApicEntry(LEVEL | 1 << 14), request=True)
    one.give_back(old)
    assert one.entry.remote_irr


def test_a_pin_that_becomes_level_triggered_asks_for_what_it_is():
    one = pin(EDGE, high=True)
    one.take(5, kept=True)
    one.write(0, LEVEL, high=True)
    assert one.request
    one.write(0, EDGE, high=True)
    one.write(0, LEVEL, high=False)
    assert not one.request


def test_masked_or_being_changed_it_is_not_due():
    one = pin(EDGE | MASKED, high=True)
    assert (one.request, one.due) == (True, False)
    one.write(0, EDGE, high=True)
    one.changing = 1
    assert not one.due
