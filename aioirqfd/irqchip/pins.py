"""The input pins of an interrupt controller: who holds each one up, and which gsi it acknowledges to."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from aioirqfd.errors import RoutingError
from aioirqfd.integers import plain
from aioirqfd.irqfd.guard import call_each
from aioirqfd.irqfd.interrupt import IrqchipPin
from aioirqfd.irqfd.routing import RoutingTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioirqfd.irqfd.interrupt import Interrupt


@final
class InputPins:
    """The pins of one controller, wired to two sources each, and the way back from a pin to its gsi.

    A pin is high while either source holds it up (row R09): ``raised`` is the device's own hold (``set_irq``, and both
    halves of a PULSE), ``asserted`` is the resamplers' (ASSERT until DEASSERT). So the end of a pulse does not lower a line
    that a resampler holds, and an acknowledgement does not lower one that the device holds. All gsis on a pin share the two.

    Threads: ``raised``, ``asserted`` and what changes them belong under the controller's lock. The way back is replaced
    as a whole and may be read at any time; ``acknowledge`` is to be called without the lock.

    Args:
        chip: ``"pic"`` or ``"ioapic"``, as in :class:`~aioirqfd.irqfd.interrupt.IrqchipPin`.
        count: How many pins.
    """

    __slots__ = ("_ack", "_chip", "_gsis", "asserted", "count", "lost", "raised", "requests")

    def __init__(self, chip: str, count: int) -> None:
        self._chip = chip
        self._ack: Callable[[int], None] | None = None
        self._gsis: tuple[int | None, ...] = tuple(range(count))
        self.count = count
        self.raised = 0
        self.asserted = 0
        self.requests = [0] * count
        """By pin, how often somebody has raised it."""
        self.lost: dict[int, int] = {}
        """By pin, how many requests went to nothing: by the chip's own rules a level that falls before it is taken leaves none."""

    @property
    def levels(self) -> int:
        """The pins that are high, bit n for pin n."""
        return self.raised | self.asserted

    def drive(self, pin: int, level: int) -> bool:
        """Raise or lower a pin as a device; return whether the pin is high now."""
        if level:
            self.requests[pin] += 1
            self.raised |= 1 << pin
        else:
            self.raised &= ~(1 << pin)
        return bool(self.levels >> pin & 1)

    def hold(self, pin: int, level: int) -> bool:
        """Raise or lower a pin as its resamplers; return whether the pin is high now."""
        if level:
            self.requests[pin] += 1
            self.asserted |= 1 << pin
        else:
            self.asserted &= ~(1 << pin)
        return bool(self.levels >> pin & 1)

    def lose(self, pin: int) -> None:
        """A request of a level-triggered pin fell before it was taken: nothing is left of it (row W06)."""
        self.lost[pin] = self.lost.get(pin, 0) + 1

    def holders(self, pin: int) -> list[str]:
        """Who holds a pin up: a device, by ``set_irq()``, or resample irqfds."""
        sources = (("set_irq()", self.raised), (f"the resample irqfds of gsi {self._gsis[pin]}", self.asserted))
        return [name for name, levels in sources if levels >> pin & 1]

    def find(self, interrupt: Interrupt) -> int | None:
        """The pin that an interrupt is for, or None if its route goes elsewhere."""
        route = interrupt.route
        if isinstance(route, IrqchipPin) and route.chip == self._chip and route.pin < self.count:
            return route.pin
        return None

    def require(self, interrupt: Interrupt) -> int:
        """The pin that an interrupt is for.

        Raises:
            RoutingError: Its route goes elsewhere.
        """
        pin = self.find(interrupt)
        if pin is None:
            raise RoutingError(f"gsi {interrupt.gsi}: {interrupt.route!r} is no pin of the {self._chip}")
        return pin

    def check(self, pin: int) -> int:
        """The pin, as a plain number.

        Raises:
            RoutingError: Not in 0..count-1 (row G06).
        """
        number = plain(pin, self.count)
        if number is None:
            raise RoutingError(f"{self._chip} has pins 0..{self.count - 1}, not {pin!r}")
        return number

    def bind(self, ack: Callable[[int], None]) -> None:
        """Keep the callable that hears of each end of interrupt, in place of the one before."""
        self._ack = ack

    def default_routing(self) -> RoutingTable:
        """Gsi n is pin n."""
        return RoutingTable.of_pins(IrqchipPin(self._chip, pin) for pin in range(self.count))

    def set_routing(self, table: RoutingTable) -> None:
        """Learn which gsi each pin acknowledges to; of several on a pin the last listed wins (row G08)."""
        gsis: list[int | None] = [None] * self.count
        for gsi, routes in table.items():
            for route in routes:
                if isinstance(route, IrqchipPin) and route.chip == self._chip:
                    gsis[route.pin] = gsi
        self._gsis = tuple(gsis)

    def gsi(self, pin: int) -> int | None:
        """The gsi that a pin acknowledges to: its own number before the first table, None if no gsi is routed there."""
        return self._gsis[pin]

    def acknowledge(self, ended: int) -> None:
        """Tell of the end of interrupt of each pin in a mask, lowest pin first; an unrouted pin tells nobody (row G13).

        What the callable raises for one of them does not keep it from hearing of the others, and is raised then.

        Threads: without the controller's lock, for the callable comes back to lower the line.
        """
        ack = self._ack
        if ack is None or not ended:
            return
        gsis = [gsi for pin, gsi in enumerate(self._gsis) if ended >> pin & 1 and gsi is not None]
        if len(gsis) == 1:
            ack(gsis[0])
        else:
            call_each(ack, gsis)


class Pinned:
    """What of a sink is its pins' alone."""

    __slots__ = ("_pins",)

    def __init__(self, pins: InputPins) -> None:
        self._pins = pins

    def bind(self, ack: Callable[[int], None]) -> None:
        """Keep the callable that is given the gsi at each end of interrupt, in place of the one before."""
        self._pins.bind(ack)

    def default_routing(self) -> RoutingTable:
        """The table of a manager that is given none: gsi n is pin n."""
        return self._pins.default_routing()

    def set_routing(self, table: RoutingTable) -> None:
        """Learn which gsi each pin acknowledges to: of several on one pin the last listed (row G08).

        Before the first table, gsi n is pin n. A pin that no gsi is routed to acknowledges to nobody (row G13).
        """
        self._pins.set_routing(table)
