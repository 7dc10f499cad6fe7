"""The interrupts of one queue, vector or gsi: each comes when its plan says so. It may be late, and two may be one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from aioirqfd.faults.fault import Delay, Merge
from aioirqfd.faults.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aioirqfd.faults.active import ActiveFault
    from aioirqfd.faults.faults import Faults
    from aioirqfd.faults.request import Plan, Stage
    from aioirqfd.faults.waiting import Timer


@final
class InterruptRequest(Request):
    """An interrupt that is about to be delivered.

    Args:
        kind: "interrupt", or "deassert" for a line that is about to go down.
        fields: Its queue, vector or gsi.
        device: Whose it is; None: it is a sink's.
    """

    stage: ClassVar[Stage] = "interrupt"
    identity_fields: ClassVar = ("queue", "vector", "gsi")


@final
class Line:
    """One queue's, vector's or gsi's interrupts.

    Args:
        faults: Decides what is done to each.
        kind: "interrupt" or "deassert".
        fields: Whose it is.
        answers: Says how many answers there were so far, of which a merged interrupt tells.
        device: The device's name; None: it is a sink's.

    Attributes:
        wanted: How many interrupts the device wanted.
        rung: How many were delivered.
    """

    def __init__(
        self,
        faults: Faults,
        kind: str,
        fields: Mapping[str, int | str],
        answers: Callable[[], int] | None = None,
        *,
        device: str | None = None,
    ) -> None:
        self.wanted = self.rung = 0
        self._faults = faults
        self._kind = kind
        self._fields = fields
        self._device = device
        self._answers = answers if answers is not None else lambda: self.wanted
        self._deliver: Callable[[int | None], None] | None = None
        self._heard = 0
        self._plan: Plan | None = None
        self._hold: Timer | None = None
        self._late: dict[Timer, Plan] = {}

    @property
    def silent(self) -> bool:
        """Whether the driver wants to hear, and is not told yet."""
        return self._plan is not None

    @property
    def idle(self) -> bool:
        """Whether nothing is kept back."""
        return self._plan is None and not self._late

    def want(self, deliver: Callable[[int | None], None]) -> bool:
        """There is something to tell; whether that is kept back.

        Args:
            deliver: Tells it: at its own place, or where it does not belong.
        """
        self._deliver = deliver
        self.wanted += 1
        if self._plan is None:
            plan = self._faults.arrive(self._request())
            if plan is None:
                self._heard = self._answers()
                self._ring(None)
                return False
            if plan.drop:
                return False
            self._plan = plan
        self._look()
        return self.silent

    def _look(self) -> None:
        """Interrupt, if nothing keeps us from it any more."""
        plan = self._plan
        if plan is None or plan.withhold:
            return
        need, hold = 0, 0.0
        for active in plan.merge:
            if isinstance(active.fault, Merge):
                need, hold = max(need, active.fault.count), max(hold, active.fault.hold)
        if self._answers() - self._heard >= need:
            self._come()
        elif self._hold is None:
            # There may be no more to come, and a driver without a time-out would wait for ever.
            self._hold = self._faults.clock.call_later(hold, self._come)

    def _come(self) -> None:
        self._cancel_hold()
        plan, self._plan = self._plan, None
        if plan is None:
            return
        self._heard = self._answers()
        for number in range(plan.repeats + 1):
            late = plan.delay + number * plan.gap
            if late:
                self._ring_in(late, plan)
            else:
                self._ring(plan.to)

    def _ring_in(self, seconds: float, plan: Plan) -> None:
        def ring() -> None:
            self._late.pop(timer, None)
            self._ring(plan.to)
            self._faults.settle()

        timer = self._faults.clock.call_later(seconds, ring)
        self._late[timer] = plan

    def _ring(self, to: int | None) -> None:
        if self._deliver is not None:
            self.rung += 1
            self._deliver(to)

    def ring_for_nothing(self, deliver: Callable[[int | None], None]) -> dict[str, int | str]:
        """Interrupt, though there is nothing to tell; whose it is, for an event."""
        self.rung += 1
        deliver(None)
        return self._request().whose

    def _request(self) -> InterruptRequest:
        return InterruptRequest(self._kind, self._fields, self._device)

    def changed(self, active: ActiveFault, *, released: bool = False) -> None:
        """A fault is another one, is off, or is released: what it no longer keeps back comes now."""
        if any(active in plan.by for plan in self._late.values()):
            self._hurry()
        plan = self._plan
        if plan is not None and active in plan.by:
            self._cancel_hold()
            if released or not active.enabled:
                plan.withhold = [one for one in plan.withhold if one is not active]
                plan.merge = [one for one in plan.merge if one is not active]
                if isinstance(active.fault, Delay):
                    plan.delay = 0.0
            self._look()

    def release(self) -> None:
        """Let come what is kept back, at once."""
        self._hurry()
        if self._plan is not None:
            self._cancel_hold()
            to, self._plan = self._plan.to, None
            self._heard = self._answers()
            self._ring(to)

    def holds(self, active: ActiveFault) -> bool:
        """Whether it keeps something back for this fault."""
        plans = [*self._late.values(), *([] if self._plan is None else [self._plan])]
        return any(active in plan.by for plan in plans)

    def forget(self) -> None:
        """The driver has gone, and its interrupt with it."""
        self._cancel_hold()
        self._cancel_late()
        self._deliver = None
        self._plan = None

    def _hurry(self) -> None:
        if self._late:
            to = next(iter(self._late.values())).to
            self._cancel_late()
            self._ring(to)

    def _cancel_hold(self) -> None:
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None

    def _cancel_late(self) -> None:
        for timer in self._late:
            timer.cancel()
        self._late.clear()
