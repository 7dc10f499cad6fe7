"""One pin of an IOAPIC: what the guest has programmed, what is asked for, and who is at it. No lock, and no sink.

What must hold: a request is in exactly one place, here (``request``) or on its way out (``remote_irr`` of a level pin), and comes back if
it is refused. A refusal may come after a newer request has gone out, so each carries a number, and an old one undoes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, final

from aioirqfd.irqchip.ioapic_entry import IoApicEntry

if TYPE_CHECKING:
    from aioirqfd.irqfd.interrupt import Msi


class Request(NamedTuple):
    """A pin's request on its way out."""

    pin: IoApicPin
    gsi: int
    message: Msi
    level: bool
    serial: int
    kept: bool


@final
class IoApicPin:
    """State of a pin; :class:`aioirqfd.irqchip.IoApic` moves it, under its lock.

    Attributes:
        number: 0..23.
        entry: What the guest has programmed.
        request: Of a level pin: it is high, and no resample has dropped it; of an edge pin: it has risen, and nothing was sent.
        changing: How many acknowledgements and changes are under way; the request waits for their end.
        ends: Somebody waits for its ends of interrupt, level or edge.
    """

    __slots__ = ("_serial", "changing", "ends", "entry", "number", "request")

    def __init__(self, number: int) -> None:
        self.number = number
        self.entry = IoApicEntry()
        self.request = self.ends = False
        self.changing = self._serial = 0

    @property
    def open(self) -> bool:
        """Whether a request goes out: not masked, and no end of interrupt is waited for."""
        return not (self.entry.masked or self.entry.remote_irr)

    @property
    def due(self) -> bool:
        """Whether its request waits for nothing but ``out``."""
        return self.request and self.open and not self.changing

    def moved(self, *, was_high: bool, high: bool) -> None:
        """It is high, or low, now."""
        if self.entry.level:
            self.request = high
        elif high and not was_high:
            self.request = True

    def write(self, half: int, value: int, *, high: bool) -> None:
        """The guest writes half of its entry; ``high``: what the pin is."""
        was_level = self.entry.level
        self.entry.write(half, value)
        if self.entry.level and not was_level:
            self.request = high

    def load(self, entry: IoApicEntry, *, request: bool) -> None:
        """As a snapshot says; what is on its way out is none of the snapshot's."""
        self.entry = entry
        self.request = request
        self._serial += 1

    def take(self, gsi: int, *, kept: bool) -> Request:
        """Its request goes out; ``kept``: it waits here if it is refused, else it is the caller's again."""
        entry = self.entry
        if entry.level:
            entry.remote_irr = True
        else:
            self.request = False
        self._serial += 1
        return Request(self, gsi, entry.message(), entry.level, self._serial, kept)

    def give_back(self, request: Request) -> None:
        """It was refused."""
        if not request.level:
            self.request = self.request or request.kept
        elif self._serial == request.serial:
            self.entry.remote_irr = False

    def ended_by(self) -> Msi | None:
        """The message whose end of interrupt is this pin's, or None if nobody waits for one."""
        return self.entry.ended_by(resampled=self.ends)
