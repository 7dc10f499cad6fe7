"""Where each gsi goes. A table is replaced as a whole, atomically; bound irqfds see the new one on their next event."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from types import CellType
from typing import TYPE_CHECKING, Final, cast, final

from aioirqfd.errors import RoutingError
from aioirqfd.integers import plain
from aioirqfd.irqfd.interrupt import IOAPIC_PINS, PIC_PINS, PINS, Interrupt, IrqchipPin, Msi, Route
from aioirqfd.irqfd.life import Stage

if TYPE_CHECKING:
    from aioirqfd.irqfd.life import Life

MAX_GSI: Final = 4096
"""One more than the highest gsi that can be routed (``KVM_MAX_IRQ_ROUTES``; row G03)."""
MAX_ROUTES: Final = 4096
"""Entries a table may have in all (row G02)."""
NO_ROUTES: Final[tuple[Route, ...]] = ()
_PIC_MASTER_PINS: Final = 8
_ABORTING: Final = Stage.ABORTING  # at hand, as in life.py
ALL_PINS: Final = tuple(IrqchipPin(chip, pin) for chip, pins in PINS.items() for pin in range(pins))
"""Every pin of a PC's interrupt controllers."""


def _chip_of(route: IrqchipPin) -> str:
    # To the kernel the two 8259s are two chips, so one gsi may go to a pin of each (row G07).
    if route.chip == "pic":
        return "pic-master" if route.pin < _PIC_MASTER_PINS else "pic-slave"
    return route.chip


def _check_gsi(gsi: object) -> int:
    number = plain(gsi, MAX_GSI)
    if number is None:
        raise RoutingError(f"a routed gsi is 0..{MAX_GSI - 1}, not {gsi!r}")
    return number


def _check(gsi: int, routes: tuple[Route, ...]) -> None:
    chips: set[str] = set()
    for route in routes:
        if isinstance(route, Msi):
            if len(routes) > 1:
                raise RoutingError(f"gsi {gsi}: an MSI shares its gsi with no other route")
        elif isinstance(route, IrqchipPin):  # pyright: ignore[reportUnnecessaryIsInstance]  callers without a type checker
            if route.pin >= PINS[route.chip]:
                raise RoutingError(f"gsi {gsi}: {route.chip} has pins 0..{PINS[route.chip] - 1}, not {route.pin}")
            chip = _chip_of(route)
            if chip in chips:
                raise RoutingError(f"gsi {gsi}: two routes to one chip, {chip}")
            chips.add(chip)
        else:
            raise RoutingError(f"gsi {gsi}: a route is an IrqchipPin or an Msi, not {route!r}")


@final
class RoutingTable(Mapping[int, tuple[Route, ...]]):
    """An immutable map from gsi to its routes, checked as ``KVM_SET_GSI_ROUTING`` checks.

    Args:
        routes: For each gsi (0..4095) one route, or several to different chips in the order they are to be tried. A gsi
            with an empty sequence is unrouted, as one that is absent.

    Raises:
        RoutingError: EINVAL; nothing is half-made (row G09). A gsi out of range (G03), more than 4096 entries (G02), a pin that
            is not there (G06), two routes to one chip, an MSI beside another route (G07), or something that is no route (G05).
    """

    __slots__ = ("_entries", "_routes", "_unrouted")

    def __init__(self, routes: Mapping[int, Route | Sequence[Route]] | None = None) -> None:
        table: dict[int, tuple[Route, ...]] = {}
        for key, value in (routes or {}).items():
            gsi, entry = _entry(key, value)
            if entry:
                table[gsi] = entry
        self._put(table, sum(map(len, table.values())))

    def _put(
        self, table: dict[int, tuple[Route, ...]], entries: int, unrouted: frozenset[int] | None = None
    ) -> RoutingTable:
        if entries > MAX_ROUTES:
            raise RoutingError(f"more than {MAX_ROUTES} routes")
        self._routes = table
        self._entries = entries
        # Of a table that is open at its upper end: the gsis from 24 on that go nowhere all the same. None: it is not open.
        self._unrouted = unrouted
        return self

    @classmethod
    def _of(
        cls, table: dict[int, tuple[Route, ...]], entries: int, unrouted: frozenset[int] | None = None
    ) -> RoutingTable:
        """One whose entries are checked already."""
        return cls.__new__(cls)._put(table, entries, unrouted)

    @classmethod
    def default(cls) -> RoutingTable:
        """The table of a manager that was given none, where the sink has none of its own: gsi n is pin n, without an end.

        As a mapping it is the IOAPIC's 24 pins. A gsi from 24 on costs nothing until it is asked for: :meth:`routes` makes up its
        pin, unless the gsi has got a route of its own (:meth:`with_route`).
        """
        return cls.of_pins(ALL_PINS[PIC_PINS:]).opened(())

    @classmethod
    def of_pins(cls, pins: Iterable[IrqchipPin]) -> RoutingTable:
        """Gsi n goes to those of these pins that have the number n, the IOAPIC's before the PIC's, as in the kernel's own table (W01)."""
        table: dict[int, list[Route]] = {}
        for pin in sorted(pins, key=lambda pin: (pin.pin, pin.chip)):
            table.setdefault(pin.pin, []).append(pin)
        return cls(table)

    def opened(self, unrouted: Iterable[int]) -> RoutingTable:
        """This table, in which every gsi from 24 on that it has not goes to the pin of its number; but for these, which go nowhere.

        :meta private:
        """
        return self._of(self._routes, self._entries, frozenset(unrouted))

    @property
    def unrouted(self) -> frozenset[int] | None:
        """Which gsis from 24 on go nowhere, though all others go to the pin of their number; None: all that it has not go nowhere."""
        return self._unrouted

    def routes(self, gsi: int) -> tuple[Route, ...]:
        """Where a gsi goes, those from 24 on of a default table too; empty: nowhere.

        Args:
            gsi: 0..2**32-1.
        """
        routes = self._routes.get(gsi)
        if routes is not None:
            return routes
        if self._unrouted is None or gsi < IOAPIC_PINS or gsi in self._unrouted:
            return NO_ROUTES
        return _default_routes(gsi)

    def with_route(self, gsi: int, routes: Route | Sequence[Route]) -> RoutingTable:
        """This table with one gsi changed: checked alone, so a thousand changes cost a thousand times one, not its square.

        Args:
            gsi: 0..4095. It keeps its place in the table's order (row G08); a new one goes last.
            routes: One route, several to different chips, or none (``()``): then the gsi is unrouted.

        Returns:
            A new table, or this one if nothing is different.

        Raises:
            RoutingError: As for a whole table.
        """
        gsi, entry = _entry(gsi, routes)
        old = self._routes.get(gsi, NO_ROUTES)
        unrouted = self._unrouted
        if unrouted is not None:
            unrouted = unrouted - {gsi} if entry or gsi < IOAPIC_PINS else unrouted | {gsi}
        if entry == old and unrouted == self._unrouted:
            return self
        table = self._routes.copy()
        if entry:
            table[gsi] = entry
        else:
            table.pop(gsi, None)
        return self._of(table, self._entries - len(old) + len(entry), unrouted)

    def without(self, gsis: Iterable[int]) -> RoutingTable:
        """This table with no route of their own for these: they are unrouted, or go, from 24 on, where a default table sends them."""
        unrouted = self._unrouted
        gone = {
            gsi for gsi in map(_check_gsi, gsis) if gsi in self._routes or (unrouted is not None and gsi in unrouted)
        }
        if not gone:
            return self
        table, entries = self._routes.copy(), self._entries
        for gsi in gone:
            entries -= len(table.pop(gsi, NO_ROUTES))
        return self._of(table, entries, None if unrouted is None else unrouted - gone)

    @property
    def entries(self) -> int:
        """How many routes it holds, of all gsis; at most 4096."""
        return self._entries

    def __getitem__(self, gsi: int) -> tuple[Route, ...]:
        return self._routes[gsi]

    def __iter__(self) -> Iterator[int]:
        return iter(self._routes)

    def __len__(self) -> int:
        return len(self._routes)

    def __repr__(self) -> str:
        return f"RoutingTable({self._routes!r})"


@lru_cache(maxsize=MAX_ROUTES)
def _default_routes(gsi: int) -> tuple[Route, ...]:
    return (IrqchipPin("ioapic", gsi),)


def _entry(key: object, value: object) -> tuple[int, tuple[Route, ...]]:
    gsi = _check_gsi(key)
    if isinstance(value, (IrqchipPin, Msi)):
        entry: tuple[Route, ...] = (value,)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        entry = tuple(cast("Sequence[Route]", value))
    else:
        raise RoutingError(f"gsi {gsi}: a route is an IrqchipPin, an Msi or a sequence of them, not {value!r}")
    _check(gsi, entry)
    return gsi, entry


@final
class Routes:
    """The table in force, and whether a gsi may inject just now.

    Args:
        table: The first one.
        life: The manager's.
        hold: Whether a gsi without a route waits for one; else its interrupts are dropped.

    Attributes:
        table: The table in force.
        generation: Counts the tables.
        paused: Nothing is injected for the time being.
    """

    __slots__ = ("_cells", "_hold", "_life", "generation", "paused", "table")

    def __init__(self, table: RoutingTable, life: Life, *, hold: bool) -> None:
        self.table = table
        self.generation = 0
        self.paused = False
        self._life: Final = life
        self._hold = hold
        self._cells: dict[int, CellType] = {}

    def of(self, gsi: int) -> tuple[Route, ...]:
        """Where the gsi goes now; empty: nowhere."""
        return self.table.routes(gsi)

    def replace(self, table: RoutingTable, changed: int | None = None) -> RoutingTable:
        """Put another table in force, in which this gsi alone may be different, and return the old one."""
        old, self.table = self.table, table
        for gsi in list(self._cells) if changed is None else (changed,):
            cell = self._cells.pop(gsi, None)
            if cell is not None:
                del cell.cell_contents
        self.generation += 1
        return old

    def pulse(self, gsi: int, *, level: bool) -> CellType | None:
        """The one edge that the gsi always stands for; None if it has several routes or drives a line.

        It comes in a cell, which is empty from the moment the gsi goes elsewhere. So whoever keeps the cell never injects by an old
        route, and need not look again because another gsi has got a new one.
        """
        routes = self.of(gsi)
        if len(routes) != 1 or (level and is_level(routes)):
            return None
        cell = self._cells.get(gsi)
        if cell is None:
            cell = self._cells[gsi] = CellType(Interrupt(gsi, routes[0]))
        return cell

    def blocks(self, gsi: int) -> bool:
        """Whether nothing may be injected for the gsi just now."""
        return self.paused or self._life.stage >= _ABORTING or self.holds(gsi)

    def holds(self, gsi: int) -> bool:
        """Whether the gsi waits for a route."""
        return self._hold and not self.table.routes(gsi)


def is_level(routes: Sequence[Route]) -> bool:
    """Whether a resample irqfd with these routes drives a line; an MSI has none and is just sent (row M07)."""
    return bool(routes) and isinstance(routes[0], IrqchipPin)
