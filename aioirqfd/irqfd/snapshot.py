"""Snapshot and restore of everything an interrupt can be in.

A snapshot is a plain dict that ``json`` takes::

    {"version": 1,
     "routing": [[gsi, [["pic", pin] or ["ioapic", pin] or ["msi", address, data, devid or None], ...]], ...],
     "irqfds": [{"gsi": gsi, "level": bool, "masked": bool, "pending": bool, "count": n, "done": [m, handlers, routes]}, ...],
     "asserted": [[gsi, [route, ...]], ...],
     "default": [gsi, ...],
     "moving": [{"gsi": gsi, "falling": [route, ...], "tell": bool, "again": bool}, ...]}

Irqfds stand in the order they were assigned; restoring matches the n-th of each gsi with the n-th of that gsi. ``count`` is
what was signalled and not injected: it was taken out of the eventfd, so a signal that arrives after the snapshot stays there
and is nobody's but the next owner's. ``done`` is there only if an injection was half done when the sink failed: m of the count
were told to so many of the wakeup handlers, which are not told again, and so many of the routes have had it.

``default`` is there only if no table was given, and the sink has none of its own: then every gsi from 24 on that ``routing`` does
not have goes to the pin of its number, but for these, which are unrouted.

``moving`` is there only if the sink has not done yet what is to be done with a level-triggered line: lower it somewhere, then
tell everybody of its end of interrupt, or raise it again wherever the gsi goes, for it was up when that was re-routed.

A manager that is closed after its snapshot leaves what the snapshot took to the snapshot; one that resumes instead just goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from aioirqfd.counter import MAX
from aioirqfd.errors import RoutingError, SnapshotError
from aioirqfd.irqfd.interrupt import IOAPIC_PINS, IrqchipPin, Msi
from aioirqfd.irqfd.line_level import LOW, LineLevel
from aioirqfd.irqfd.plain import check_integers
from aioirqfd.irqfd.routing import MAX_GSI, RoutingTable
from aioirqfd.irqfd.state import State

if TYPE_CHECKING:
    from aioirqfd.irqfd.binding import Binding
    from aioirqfd.irqfd.interrupt import Route
    from aioirqfd.irqfd.lines import Lines

VERSION: Final = 1
_U32: Final = 2**32
_FIELDS: Final = {"gsi": int, "level": bool, "masked": bool, "pending": bool, "count": int}


def take(bound: Sequence[Binding], routing: RoutingTable, lines: Lines) -> dict[str, object]:
    """The state of a manager that is paused, with nothing being injected any more."""
    irqfds: list[dict[str, object]] = []
    for irqfd in bound:
        pending, count, done = irqfd.capture()
        entry: dict[str, object] = {
            "gsi": irqfd.gsi,
            "level": irqfd.resamplefd is not None,
            "masked": irqfd.masked,
            "pending": pending,
            "count": min(count, MAX),
        }
        if any(done):
            entry["done"] = list(done)
        irqfds.append(entry)
    state: dict[str, object] = {
        "version": VERSION,
        "routing": [[gsi, [_encode(route) for route in routes]] for gsi, routes in routing.items()],
        "irqfds": irqfds,
        "asserted": [[gsi, [_encode(route) for route in routes]] for gsi, routes in lines.asserted().items()],
    }
    unrouted = routing.unrouted
    if unrouted is not None:
        state["default"] = sorted(unrouted)
    moving = lines.moving()
    if moving:
        state["moving"] = [
            {
                "gsi": gsi,
                "falling": [_encode(route) for route in moves.falling],
                "tell": moves.tell,
                "again": moves.again,
            }
            for gsi, moves in moving.items()
        ]
    return state


class Plan(NamedTuple):
    """A snapshot that is well-formed and fits: what is to be done to restore it, once its routing is in force."""

    routing: RoutingTable
    irqfds: list[tuple[Binding, Mapping[str, object]]]
    levels: dict[int, LineLevel]

    def put(self, lines: Lines) -> None:
        """Do it."""
        for irqfd, entry in self.irqfds:
            irqfd.restore(
                masked=entry["masked"] is True,
                pending=entry["pending"] is True,
                count=_int(entry["count"]),
                done=_done(entry),
            )
        lines.put(self.levels)


def check(bound: Sequence[Binding], state: object) -> Plan:
    """Hold a state against the irqfds it is for; SnapshotError if it does not fit."""
    check_integers(state)
    names = {"version", "routing", "irqfds", "asserted"}
    names |= {name for name in ("default", "moving") if _has(state, name)}
    state = _fields(state, names, "a snapshot")
    if _int(state["version"]) != VERSION:
        raise SnapshotError(f"this is version {state['version']!r}; this package reads {VERSION}")
    routing = _routing(state["routing"])
    if "default" in state:
        routing = routing.opened(_unrouted(state["default"], routing))
    pairs = _match(bound, state["irqfds"])
    level_gsis = {irqfd.gsi for irqfd, _ in pairs if irqfd.resamplefd is not None}
    levels = _levels(state, level_gsis, routing)
    for irqfd, entry in pairs:
        if _done(entry)[2] and _done(entry)[2] >= len(routing.routes(irqfd.gsi)):
            raise SnapshotError(f"irqfds: gsi {irqfd.gsi} has no more routes than are done: {entry!r}")
    return Plan(routing, pairs, levels)


def _encode(route: Route) -> list[object]:
    if isinstance(route, Msi):
        return ["msi", route.address, route.data, route.devid]
    return [route.chip, route.pin]


def _list(value: object, what: str) -> Sequence[object]:
    if not isinstance(value, (list, tuple)):
        raise SnapshotError(f"{what} is a list, not {value!r}")
    return cast("Sequence[object]", value)


def _fields(value: object, names: set[str], what: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping) or set(cast("Mapping[object, object]", value)) != names:
        raise SnapshotError(f"{what} is a dict of {', '.join(sorted(names))}, not {value!r}")
    return cast("Mapping[str, object]", value)


def _int(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise SnapshotError(f"an integer, not {value!r}")
    return value


def _decode(value: object) -> Route:
    match _list(value, "a route"):
        case ["msi", int(address), int(data), None | int() as devid]:
            return Msi(address, data, devid)
        case [str(chip), int(pin)]:
            return IrqchipPin(chip, pin)
        case _:
            raise SnapshotError(f"no route: {value!r}")


def _routes_by_gsi(value: object, what: str) -> dict[int, list[Route]]:
    found: dict[int, list[Route]] = {}
    for entry in _list(value, what):
        match _list(entry, f"an entry of {what}"):
            case [int(gsi), routes] if not isinstance(gsi, bool):
                if gsi in found:
                    raise SnapshotError(f"{what}: gsi {gsi} twice")
                try:
                    found[gsi] = [_decode(route) for route in _list(routes, f"{what}: gsi {gsi}")]
                except RoutingError as error:
                    raise SnapshotError(f"{what}: {error}") from error
            case _:
                raise SnapshotError(f"{what}: no [gsi, routes]: {entry!r}")
    return found


def _routing(value: object) -> RoutingTable:
    try:
        return RoutingTable(_routes_by_gsi(value, "routing"))
    except RoutingError as error:
        raise SnapshotError(f"routing: {error}") from error


def _unrouted(value: object, routing: RoutingTable) -> list[int]:
    gsis = [_int(gsi) for gsi in _list(value, "default")]
    if not all(IOAPIC_PINS <= gsi < MAX_GSI for gsi in gsis) or not routing.keys().isdisjoint(gsis):
        raise SnapshotError(f"default: gsis from {IOAPIC_PINS} to {MAX_GSI - 1} without a route, not {value!r}")
    return gsis


def _check_pins(what: str, gsi: int, routes: Sequence[Route], level_gsis: set[int]) -> None:
    if gsi not in level_gsis:
        raise SnapshotError(f"{what}: gsi {gsi} has no resample irqfd")
    if not all(isinstance(route, IrqchipPin) for route in routes):
        raise SnapshotError(f"{what}: gsi {gsi} has a line that is no pin")
    if len(set(routes)) < len(routes):
        raise SnapshotError(f"{what}: gsi {gsi} has a pin twice")


def _levels(state: Mapping[str, object], level_gsis: set[int], routing: RoutingTable) -> dict[int, LineLevel]:
    levels: dict[int, LineLevel] = {}
    for gsi, routes in _routes_by_gsi(state["asserted"], "asserted").items():
        _check_pins("asserted", gsi, routes, level_gsis)
        if not routes or not set(routes) <= set(routing.routes(gsi)):
            raise SnapshotError(f"asserted: gsi {gsi} is not routed to where its line is up")
        levels[gsi] = LineLevel(tuple(routes))
    moving: set[int] = set()
    for each in _list(state.get("moving", ()), "moving"):
        entry = _fields(each, {"gsi", "falling", "tell", "again"}, "an entry of moving")
        gsi, tell, again = _int(entry["gsi"]), entry["tell"], entry["again"]
        falling = _routes_by_gsi([[gsi, entry["falling"]]], "moving")[gsi]
        _check_pins("moving", gsi, falling, level_gsis)
        raised = levels.get(gsi, LOW).raised
        if gsi in moving or set(falling) & set(raised):
            raise SnapshotError(f"moving: gsi {gsi} twice, or both up and falling")
        if not isinstance(tell, bool) or not isinstance(again, bool):
            raise SnapshotError(f"moving: tell and again are true or false: {entry!r}")
        moving.add(gsi)
        levels[gsi] = LineLevel(raised, tuple(falling), tell, again)
    return levels


def _match(bound: Sequence[Binding], value: object) -> list[tuple[Binding, Mapping[str, object]]]:
    waiting: dict[int, list[Binding]] = {}
    for irqfd in bound:
        waiting.setdefault(irqfd.gsi, []).append(irqfd)
    pairs: list[tuple[Binding, Mapping[str, object]]] = []
    for entry in _list(value, "irqfds"):
        checked = _irqfd_entry(entry)
        of_gsi = waiting.get(_int(checked["gsi"]))
        if not of_gsi:
            raise SnapshotError(f"irqfds: gsi {checked['gsi']} has fewer irqfds here than in the snapshot")
        irqfd = of_gsi.pop(0)
        if irqfd.state not in {State.IDLE, State.PENDING, State.BROKEN, State.RETRYING}:
            raise SnapshotError(f"irqfds: gsi {irqfd.gsi} is {irqfd.state.name}")
        if checked["level"] is not (irqfd.resamplefd is not None):
            raise SnapshotError(f"irqfds: gsi {irqfd.gsi} is level-triggered on one side only")
        pairs.append((irqfd, checked))
    for gsi, left in waiting.items():
        if left:
            raise SnapshotError(f"irqfds: gsi {gsi} has more irqfds here than in the snapshot")
    return pairs


def _has(value: object, name: str) -> bool:
    return isinstance(value, Mapping) and name in cast("Mapping[object, object]", value)


def _irqfd_entry(value: object) -> Mapping[str, object]:
    half_done = _has(value, "done")
    entry = _fields(value, {*_FIELDS, "done"} if half_done else set(_FIELDS), "an entry of irqfds")
    for field, kind in _FIELDS.items():
        if type(entry[field]) is not kind:
            raise SnapshotError(f"irqfds: {field} is {kind.__name__}, not {entry[field]!r}")
    if not 0 <= _int(entry["gsi"]) < _U32 or not 0 <= _int(entry["count"]) <= MAX:
        raise SnapshotError(f"irqfds: gsi or count out of range: {entry!r}")
    if entry["count"] and not entry["pending"]:
        raise SnapshotError(f"irqfds: a count without pending: {entry!r}")
    told, handlers, routes = _done(entry)
    if min(told, handlers, routes) < 0 or told > _int(entry["count"]) or (half_done and not entry["pending"]):
        raise SnapshotError(f"irqfds: more is done than is owed: {entry!r}")
    if told and not (handlers or routes):
        raise SnapshotError(f"irqfds: told, but to nobody: {entry!r}")
    return entry


def _done(entry: Mapping[str, object]) -> tuple[int, int, int]:
    match _list(entry.get("done", (0, 0, 0)), "done"):
        case [told, handlers, routes]:
            return _int(told), _int(handlers), _int(routes)
        case other:
            raise SnapshotError(f"done is [told, handlers, routes], not {other!r}")
