"""What is owed, held against a model: every signal is told to every handler once, and no interrupt is forgotten."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aioirqfd import IrqchipPin
from aioirqfd.irqfd.debt import Debt

HERE, THERE = (IrqchipPin("ioapic", 5),), (IrqchipPin("ioapic", 5), IrqchipPin("pic", 5))
COUNTS = st.integers(1, 2**64 - 2)


class Model(RuleBasedStateMachine):
    """An irqfd's signals, beside what each handler was told, and what the eventfd holds."""

    @initialize(handlers=st.integers(0, 3), routes=st.sampled_from([HERE, THERE]))
    def begin(self, handlers, routes):
        self.handlers, self.routes = handlers, routes
        self.debt = Debt()
        self.sent = 0
        self.told = [0] * handlers
        self.kept = 0  # signals that were made up to keep an interrupt
        self.running = False

    @rule(count=COUNTS)
    def signal(self, count):
        self.debt.add(count)
        self.sent += count

    @precondition(lambda self: not self.running and self.debt.owed)
    @rule()
    def start(self):
        self.number = self.debt.begin()
        self.debt.take(self.handlers)
        self.running = True

    @precondition(lambda self: self.running and self.debt.stage < self.handlers)
    @rule()
    def tell(self):
        self.told[self.debt.stage] += self.debt.told
        self.debt.stage += 1

    @precondition(lambda self: self.running and self.debt.stage >= self.handlers)
    @rule()
    def inject(self):
        self.debt.follow(self.routes, self.handlers)
        if self.debt.stage - self.handlers < len(self.routes):
            self.debt.stage += 1
        else:
            again = self.debt.paid(self.number)
            assert again == (self.debt.owed > 0)
            assert self.debt.finished == self.debt.begun == self.number
            self.running = False

    @precondition(lambda self: self.running)
    @rule()
    def fail(self):
        self.running = False

    @rule(routes=st.sampled_from([HERE, THERE]))
    def reroute(self, routes):
        self.routes = routes

    @precondition(lambda self: not self.running)
    @rule()
    def snapshot_and_restore(self):
        count, done = self.debt.capture(self.handlers, self.routes)
        assert count == self.debt.owed
        other = Debt()
        assert other.restore(count, done, self.handlers, self.routes) == 0
        assert other.owed == count
        # What the snapshot has is not put back here.
        withheld = self.debt.withheld(self.handlers)
        self.debt.leave(withheld, self.handlers)
        assert self.debt.owed == 0
        self.debt = other

    @precondition(lambda self: not self.running and self.debt.owed)
    @rule()
    def deassign_and_assign(self):
        all_told = bool(self.handlers) and self.debt.stage >= self.handlers
        some_told = 0 < self.debt.stage < self.handlers
        count, untold = self.debt.owed, self.debt.count
        told = list(self.told[: self.debt.stage])
        back = self.debt.give_back(self.handlers)
        assert back > 0, "the interrupt is owed, and nothing would keep it"
        if all_told:
            assert back == (untold or 1)
            self.kept += back - untold
        else:
            assert back == count
        if some_told:
            # Who has heard hears again, or who has not would never.
            for index in range(len(told)):
                self.told[index] -= count - untold
        assert self.debt.owed == 0
        self.debt = Debt()
        self.debt.add(back)

    @invariant()
    def nobody_is_told_more_or_less(self):
        if not hasattr(self, "debt"):
            return
        for index in range(self.handlers):
            heard = self.debt.stage > index
            coming = self.debt.count + (0 if heard else self.debt.told)
            assert self.told[index] + coming == self.sent + self.kept


TestDebt = Model.TestCase


@pytest.mark.parametrize("came_since", [0, 7])
@pytest.mark.parametrize(("told", "untold"), [(8, 0), (8, 5), (0, 5)])
def test_what_came_after_the_snapshot_goes_back_whole(told, untold, came_since):
    debt = Debt()
    if told:
        debt.add_told(told, 1, HERE)
    if untold:
        debt.add(untold)
    debt.capture(1, HERE)
    if came_since:
        debt.add(came_since)
    debt.leave(debt.withheld(1), 1)
    assert debt.owed == came_since
