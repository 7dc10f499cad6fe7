"""One interrupt on its way to a sink: which gsi, by which route, and what to do with the line."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from aioirqfd.errors import RoutingError
from aioirqfd.integers import plain

PIC_PINS: Final = 16
"""Pins of the 8259 pair: 0-7 on the master, 8-15 on the slave (row G06)."""
IOAPIC_PINS: Final = 24
"""Pins of the IOAPIC (row G06)."""
PINS: Final = {"pic": PIC_PINS, "ioapic": IOAPIC_PINS}
"""The chips that a routing table knows, and how many pins each has."""
U32: Final = 2**32
_U64: Final = 2**64


def _take(route: Route, field: str, value: int | None, wanted: str) -> None:
    given: object = getattr(route, field)
    if value is None:
        raise RoutingError(f"{wanted}, not {given!r}")
    object.__setattr__(route, field, value)


@dataclass(frozen=True, slots=True)
class IrqchipPin:
    """A route to an input pin of an interrupt controller (``KVM_IRQ_ROUTING_IRQCHIP``).

    Args:
        chip: ``"pic"`` (the 8259 pair, pins 0..15) or ``"ioapic"`` (pins 0..23).
        pin: The input pin. An IOAPIC's from 24 on, up to 2**32-1, is in no routing table that is given: it is where a gsi goes
            by default, before a sink that says nothing else (:meth:`RoutingTable.default`).

    Raises:
        RoutingError: EINVAL, as the kernel says for a chip or pin that is not there (row G06).
    """

    chip: str
    pin: int

    def __post_init__(self) -> None:
        if self.chip not in PINS:
            raise RoutingError(f"no irqchip {self.chip!r}; there are {sorted(PINS)}")
        below = U32 if self.chip == "ioapic" else PINS[self.chip]
        _take(self, "pin", plain(self.pin, below), f"{self.chip} has pins 0..{PINS[self.chip] - 1}")


@dataclass(frozen=True, slots=True)
class Msi:
    """A route to a message: one 32-bit write of ``data`` to ``address`` (``KVM_IRQ_ROUTING_MSI``).

    Args:
        address: 64-bit message address, 0..2**64-1.
        data: 32-bit message data, 0..2**32-1.
        devid: The requester id where the interrupt controller wants one (``KVM_MSI_VALID_DEVID``; arm64's ITS), else None.

    Raises:
        RoutingError: EINVAL for a value out of range.
    """

    address: int
    data: int
    devid: int | None = None

    def __post_init__(self) -> None:
        address, data, devid = self.address, self.data, self.devid
        # What an IOAPIC makes for each interrupt: plain integers go through by the shortest way.
        if type(address) is not int or not 0 <= address < _U64:
            _take(self, "address", plain(address, _U64), "an MSI address is 0..2**64-1")
        if type(data) is not int or not 0 <= data < U32:
            _take(self, "data", plain(data, U32), "MSI data is 0..2**32-1")
        if devid is not None:
            _take(self, "devid", plain(devid, U32), "a device id is 0..2**32-1 or None")


Route = IrqchipPin | Msi
"""Where a gsi goes."""


class Action(enum.Enum):
    """What is done with the line. Asserting a raised line, or lowering a low one, changes nothing (rows R01, L02)."""

    PULSE = "pulse"
    """Raise and lower it: an edge. An MSI is always this."""
    ASSERT = "assert"
    """Raise a level-triggered line."""
    DEASSERT = "deassert"
    """Lower it."""


PULSE, ASSERT, DEASSERT = Action.PULSE, Action.ASSERT, Action.DEASSERT
"""The same, at hand for sinks: before Python 3.12, to look a member up in its class costs as much as three calls."""


@dataclass(frozen=True, slots=True)
class Interrupt:
    """What a sink is handed. A gsi that is routed to several chips gives one of these for each, in the table's order (row W01).

    Args:
        gsi: The global system interrupt, 0..2**32-1.
        route: Where it goes.
        action: What is done with the line.
    """

    gsi: int
    route: Route
    action: Action = Action.PULSE
