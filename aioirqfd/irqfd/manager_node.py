"""What a manager shows of itself in the tree of :mod:`aioirqfd.inspect`: its irqfds, lines, queue, routes and sink, as they are now.

Nothing here is called unless somebody looks, and looking changes nothing but what ``statistics()`` changes: counts that were left unread
are read.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, cast

from aioirqfd import nodes
from aioirqfd.irqfd import explain
from aioirqfd.irqfd.interrupt import Msi
from aioirqfd.irqfd.since import MANAGER
from aioirqfd.irqfd.state import State
from aioirqfd.nodes import Child, Detail, counts

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence

    from aioirqfd.irqfd.binding import Binding
    from aioirqfd.irqfd.interrupt import Route
    from aioirqfd.irqfd.irqfds import Irqfds
    from aioirqfd.irqfd.resampler import Resampler
    from aioirqfd.irqfd.sink import SinkTiers
    from aioirqfd.irqfd.workqueue import WorkQueue

    Node = Mapping[str, object]


def loop_of(irqfds: Irqfds) -> asyncio.AbstractEventLoop | None:
    """The manager's loop, while it is open."""
    poller = irqfds.poller
    return None if poller is None else poller.loop


def of_manager(irqfds: Irqfds) -> Node:
    """The manager's node."""
    since = irqfds.delivery.since.of(MANAGER)
    return {
        "stage": irqfds.life.stage.name.lower(),
        "paused": irqfds.routes.paused,
        **({} if since is None else {"paused_for": since[0], "paused_by": since[1]}),
        "held": sum(map(_held, irqfds.bound.values())),
        "dropped": irqfds.delivery.dropped,
        "broken": sum(irqfd.error is not None for irqfd in irqfds.bound.values()),
        "offloaded": len(irqfds.offloading.irqfds),
        "irqfds": Child(lambda: {key: Child(partial(of_irqfd, irqfds, one)) for key, one in _keys(irqfds).items()}),
        "gsi": Child(lambda: _gsi_nodes(irqfds)),
        "lines": Child(lambda: {str(one.gsi): Child(partial(_line, one)) for one in irqfds.lines.all()}),
        "queue": Child(lambda: _queue(irqfds.queue)),
        "routes": Child(lambda: _routes(irqfds)),
        "sink": Child(lambda: of_sink(irqfds.delivery.tiers)),
        "explain": Detail(lambda: explain.of_all(irqfds)),
        "latency": Detail(lambda: _latency(irqfds)),
    }


def name_of(irqfd: Binding) -> str:
    """What the program calls an irqfd, or the number of its eventfd."""
    return irqfd.trigger.name or str(irqfd.eventfd_id)


def _keys(irqfds: Irqfds) -> dict[str, Binding]:
    """The irqfds by name. Of two with one name the later is known by its eventfd's number."""
    found: dict[str, Binding] = {}
    for irqfd in irqfds.bound.values():
        name = name_of(irqfd)
        key = str(irqfd.eventfd_id) if name in found else name
        while key in found:  # a name may be a number, too
            key += "'"
        found[key] = irqfd
    return found


def _held(irqfd: Binding) -> bool:
    """As :attr:`aioirqfd.IrqFd.held`: for room, for a route, or for the manager to resume."""
    return irqfd.pending and (irqfd.trigger.held or irqfd.owner.routes.blocks(irqfd.gsi))


def of_irqfd(irqfds: Irqfds, irqfd: Binding) -> Node:
    """An irqfd's node."""
    trigger, eventfd = irqfd.trigger, irqfd.eventfd
    since = irqfds.delivery.since.of(irqfd.eventfd_id)
    state = irqfd.state
    running = trigger.running
    if running is None and state in {State.INJECTING, State.INJECTING_PENDING}:
        running = irqfd.work.running
    return {
        "gsi": irqfd.gsi,
        "name": trigger.name,
        "eventfd_id": irqfd.eventfd_id,
        "fd": -1 if eventfd.closed else eventfd.fileno(),
        "state": state,
        "pending": irqfd.pending,
        "masked": irqfd.masked,
        **({} if since is None else {"masked_for": since[0], "masked_by": since[1]}),
        "paused": irqfds.routes.paused,
        "held": _held(irqfd),
        "running": None if running is None else explain.standing(running),
        "offloaded": irqfd.offloaded,
        "obstacle": explain.obstacle(irqfds, irqfd),
        "level": irqfd.resamplefd is not None,
        "handlers": [getattr(one, "__qualname__", repr(one)) for one in irqfd.handlers],
        "error": None if irqfd.error is None else repr(irqfd.error.__cause__),
        "statistics": counts(irqfd.statistics()),
        "explain": Detail(lambda: explain.of_irqfd(irqfds, irqfd)),
    }


def _latency(irqfds: Irqfds) -> Node:
    """How long the last signals of each irqfd waited for their injection, by the flight recorder that the manager writes into.

    Tempting, and wrong: in the irqfd's own node. The end of the ring would be gone through for each, and by everybody who looks at all.
    """
    flight = irqfds.delivery.flight
    if flight is None:
        return {"recorder": None, "on": False, "irqfds": {}}
    waits = flight.recorder.waits(flight.source) if flight.ring.on else {}
    found: dict[str, object] = {}
    for key, irqfd in _keys(irqfds).items():
        fd = -1 if irqfd.eventfd.closed else irqfd.eventfd.fileno()
        if own := waits.get((irqfd.gsi, fd)):
            found[key] = {
                "count": len(own),
                "p50_us": _share(own, 0.5),
                "p99_us": _share(own, 0.99),
                "longest_us": _share(own, 1),
            }
    return {"recorder": nodes.key_of(flight.recorder), "on": flight.ring.on, "irqfds": found}


def _share(ordered: Sequence[int], share: float) -> float:
    """Within how many microseconds this share of them was injected, as ``aioirqfd trace`` counts it."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] / 1000


# -- gsis ------------------------------------------------------------------------------------------------------------


def _gsis(irqfds: Irqfds) -> list[int]:
    """Those that somebody uses."""
    return sorted({*(irqfd.gsi for irqfd in irqfds.bound.values()), *(one.gsi for one in irqfds.lines.all())})


def _gsi_nodes(irqfds: Irqfds) -> Node:
    names = _names(irqfds)  # once: it goes through all irqfds
    return {str(gsi): Child(partial(_gsi, irqfds, gsi, names)) for gsi in _gsis(irqfds)}


def _names(irqfds: Irqfds) -> dict[int, list[str]]:
    """The irqfds' names by gsi."""
    found: dict[int, list[str]] = {}
    for key, irqfd in _keys(irqfds).items():
        found.setdefault(irqfd.gsi, []).append(key)
    return found


def _gsi(irqfds: Irqfds, gsi: int, names: Mapping[int, list[str]]) -> Node:
    line = irqfds.lines.get(gsi)
    return {
        "irqfds": names.get(gsi, []),
        "routes": [words(route) for route in irqfds.routes.of(gsi)],
        "line": None if line is None else _line(line),
        "explain": Detail(lambda: explain.of_gsi(irqfds, gsi)),
    }


def _line(line: Resampler) -> Node:
    level = line.level
    return {
        "up": line.asserted,
        "up_for": time.monotonic() - line.raised_at if line.asserted else None,
        "up_at": [words(route) for route in level.raised],
        "held_by": [name_of(cast("Binding", one)) for one in list(line.holders)] if line.asserted else [],
        "to_lower": [words(route) for route in level.falling],
        "to_tell": level.tell,
        "to_raise": level.again,
        "resamplers": len(line.members),
    }


def words(route: Route) -> str:
    """A route in short: ``ioapic pin 5``, ``msi 0xfee00000 data 0x31``."""
    if isinstance(route, Msi):
        devid = "" if route.devid is None else f" of {route.devid:#x}"
        return f"msi {route.address:#x} data {route.data:#x}{devid}"
    return f"{route.chip} pin {route.pin}"


def _routes(irqfds: Irqfds) -> Node:
    table = irqfds.routes.table
    return {
        "generation": irqfds.routes.generation,
        "others": "nowhere" if table.unrouted is None else "from 24 on, the pin of their number",
        "gsis": Child(lambda: {str(gsi): _joined(routes) for gsi, routes in table.items()}),
    }


def _joined(routes: Sequence[Route]) -> str:
    return ", ".join(map(words, routes))


# -- the rest --------------------------------------------------------------------------------------------------------


def _queue(queue: WorkQueue) -> Node:
    return {
        **counts(queue.statistics()),
        "workers": [explain.standing(task) for task in queue.tasks],
    }


def of_sink(tiers: SinkTiers) -> Node:
    """What a sink shows of itself (:class:`aioirqfd.InspectedSink`); else what it is."""
    what = {"type": type(tiers.sink).__qualname__}
    return what if tiers.inspect is None else {**what, **tiers.inspect()}
