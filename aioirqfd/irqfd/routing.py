"""Where each gsi goes. A table is replaced as a whole, atomically; bound irqfds see the new one on their next event."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, cast, final

from aioirqfd.errors import RoutingError
from aioirqfd.irqfd.interrupt import IOAPIC_PINS, IrqchipPin, Msi, Route

MAX_GSI: Final = 4096
"""One more than the highest gsi that can be routed (``KVM_MAX_IRQ_ROUTES``; row G03)."""
MAX_ROUTES: Final = 4096
"""Entries a table may have in all (row G02)."""
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
