"""Where each gsi goes. A table is replaced as a whole, atomically; bound irqfds see the new one on their next event."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, cast, final

from aioirqfd.errors import RoutingError
from aioirqfd.irqfd.interrupt import IOAPIC_PINS, Interrupt, IrqchipPin, Msi, Route

MAX_GSI: Final = 4096
"""One more than the highest gsi that can be routed (``KVM_MAX_IRQ_ROUTES``; row G03)."""
MAX_ROUTES: Final = 4096
"""Entries a table may have in all (row G02)."""
NO_ROUTES: Final[tuple[Route, ...]] = ()
_PIC_MASTER_PINS: Final = 8


def _chip_of(route: IrqchipPin) -> str:
    # To the kernel the two 8259s are two chips, so one gsi may go to a pin of each (row G07).
    if route.chip == "pic":
        return "pic-master" if route.pin < _PIC_MASTER_PINS else "pic-slave"
    return route.chip


def _check(gsi: object, routes: tuple[Route, ...]) -> None:
    if not isinstance(gsi, int) or isinstance(gsi, bool) or not 0 <= gsi < MAX_GSI:
        raise RoutingError(f"a routed gsi is 0..{MAX_GSI - 1}, not {gsi!r}")
    chips: set[str] = set()
    for route in routes:
        if isinstance(route, Msi):
            if len(routes) > 1:
                raise RoutingError(f"gsi {gsi}: an MSI shares its gsi with no other route")
        elif isinstance(route, IrqchipPin):  # pyright: ignore[reportUnnecessaryIsInstance]  callers without a type checker
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
        RoutingError: EINVAL; nothing is half-made (row G09). A gsi out of range (G03), more than 4096 entries (G02), two
            routes to one chip, an MSI beside another route (G07), or something that is no route (G05).
    """

    __slots__ = ("_entries", "_routes")

    def __init__(self, routes: Mapping[int, Route | Sequence[Route]] | None = None) -> None:
        table: dict[int, tuple[Route, ...]] = {}
        for gsi, value in (routes or {}).items():
            entry = _entry(gsi, value)
            if entry:
                table[gsi] = entry
        self._put(table, sum(map(len, table.values())))

    def _put(self, table: dict[int, tuple[Route, ...]], entries: int) -> None:
        if entries > MAX_ROUTES:
            raise RoutingError(f"more than {MAX_ROUTES} routes")
        self._routes = table
        self._entries = entries

    @classmethod
    def default(cls) -> RoutingTable:
        """The table of a manager that was given none: gsi n is pin n of the IOAPIC, 0..23."""
        return cls({pin: IrqchipPin("ioapic", pin) for pin in range(IOAPIC_PINS)})

    def with_route(self, gsi: int, routes: Route | Sequence[Route]) -> RoutingTable:
        """This table with one gsi changed: checked alone, so a thousand changes cost a thousand times one, not its square.

        Args:
            gsi: 0..4095. It keeps its place in the table's order (row G08); a new one goes last.
            routes: One route, several to different chips, or none: then the gsi is unrouted.

        Returns:
            A new table, or this one if nothing is different.

        Raises:
            RoutingError: As for a whole table.
        """
        entry = _entry(gsi, routes)
        old = self._routes.get(gsi, ())
        if entry == old:
            return self
        table = self._routes.copy()
        if entry:
            table[gsi] = entry
        else:
            del table[gsi]
        changed = RoutingTable.__new__(RoutingTable)
        changed._put(table, self._entries - len(old) + len(entry))
        return changed

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


def _entry(gsi: object, value: object) -> tuple[Route, ...]:
    if isinstance(value, (IrqchipPin, Msi)):
        entry: tuple[Route, ...] = (value,)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        entry = tuple(cast("Sequence[Route]", value))
    else:
        raise RoutingError(f"gsi {gsi!r}: a route is an IrqchipPin, an Msi or a sequence of them, not {value!r}")
    _check(gsi, entry)
    return entry


@final
class Routes:
    """The table in force, and whether a gsi may inject just now.

    Args:
        table: The first one.
        hold: Whether a gsi without a route waits for one; else its interrupts are dropped.

    Attributes:
        table: The table in force.
        generation: Counts the tables.
        paused: Nothing is injected for the time being.
        aborting: Nothing is injected any more.
    """

    __slots__ = ("_hold", "_interrupts", "aborting", "generation", "paused", "table")

    def __init__(self, table: RoutingTable, *, hold: bool) -> None:
        self.table = table
        self.generation = 0
        self.paused = self.aborting = False
        self._hold = hold
        self._interrupts: dict[int, Interrupt] = {}

    def of(self, gsi: int) -> tuple[Route, ...]:
        """Where the gsi goes now; empty: nowhere."""
        return self.table.get(gsi, NO_ROUTES)

    def replace(self, table: RoutingTable, changed: int | None = None) -> RoutingTable:
        """Put another table in force, in which this gsi alone may be different, and return the old one."""
        old, self.table = self.table, table
        if changed is None:
            self._interrupts.clear()
        else:
            self._interrupts.pop(changed, None)
        self.generation += 1
        return old

    def pulse(self, gsi: int, *, level: bool) -> Interrupt | None:
        """The one edge that the gsi always stands for; None if it has several routes or drives a line."""
        routes = self.of(gsi)
        if len(routes) != 1 or (level and is_level(routes)):
            return None
        interrupt = self._interrupts.get(gsi)
        if interrupt is None:
            interrupt = self._interrupts[gsi] = Interrupt(gsi, routes[0])
        return interrupt

    def blocks(self, gsi: int) -> bool:
        """Whether nothing may be injected for the gsi just now."""
        return self.paused or self.aborting or self.holds(gsi)

    def holds(self, gsi: int) -> bool:
        """Whether the gsi waits for a route."""
        return self._hold and gsi not in self.table


def is_level(routes: Sequence[Route]) -> bool:
    """Whether a resample irqfd with these routes drives a line; an MSI has none and is just sent (row M07)."""
    return bool(routes) and isinstance(routes[0], IrqchipPin)
