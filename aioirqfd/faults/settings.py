"""What ``set`` sets, of a virtio device's queues and types of requests: each setting is a fault, whose requests change as others are set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from aioirqfd.faults.command import COMPLETIONS, INTERRUPTS
from aioirqfd.faults.fault import Delay, Duplicate, Fail, Fault, Merge, Reorder, Spurious, Withhold
from aioirqfd.faults.match import Match

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from aioirqfd.faults.active import ActiveFault
    from aioirqfd.faults.faults import Faults
    from aioirqfd.faults.request import Request

Cell = tuple[int, str]
"""A queue, and a type of requests."""
_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "error": ("error",),
    "error-percent": ("error-percent",),
    "withhold": ("withhold",),
    "reorder": ("reorder", "hold"),
    "delay": ("delay", "jitter"),
    "merge": ("merge", "hold"),
    "duplicate": ("duplicate",),
}
"""By fault, the settings that make it."""
_OF_INTERRUPTS: Final[Mapping[str, tuple[str, ...]]] = {
    "irq-withhold": ("irq-withhold",),
    "irq-merge": ("irq-merge", "irq-hold"),
    "irq-delay": ("irq-delay",),
    "irq-duplicate": ("irq-duplicate",),
    "irq-spurious": ("irq-spurious",),
}


def _completion(name: str, values: tuple[float, ...]) -> tuple[dict[str, float], Fault] | None:
    """What a match has beside its cells, and the fault; None: nothing is to happen."""
    first = values[0]
    if name == "delay":
        return ({}, Delay(first / 1000, values[1] / 1000)) if first or values[1] else None
    if not first:
        return None
    match name:
        case "error":
            return {"count": int(first)}, Fail()
        case "error-percent":
            return {"probability": first / 100}, Fail()
        case "withhold":
            return {"count": int(first)}, Withhold()
        case "reorder":
            return {}, Reorder(int(first), values[1] / 1000)
        case "merge":
            return {}, Merge(int(first), values[1] / 1000)
        case _:
            return {}, Duplicate(int(first))


def _interrupt(name: str, values: tuple[float, ...]) -> Fault | None:
    first = values[0]
    if not first:
        return None
    match name:
        case "irq-withhold":
            return Withhold()
        case "irq-merge":
            return Merge(int(first), values[1] / 1000)
        case "irq-delay":
            return Delay(first / 1000)
        case "irq-duplicate":
            return Duplicate(int(first))
        case _:
            return Spurious(first / 1000)


@final
class Settings:
    """The settings of a device.

    Args:
        faults: Where they are faults.
        num_queues: The device's queues.
        types: The kinds of its requests.

    Attributes:
        completions: By queue and type, what is set; of what is used up, what was set.
        interrupts: By queue, what is set.
    """

    def __init__(self, faults: Faults, num_queues: int, types: Collection[str]) -> None:
        cells = [(queue, kind) for queue in range(num_queues) for kind in types]
        self.completions: dict[Cell, dict[str, float]] = {cell: dict(COMPLETIONS) for cell in cells}
        self.interrupts: dict[int, dict[str, float]] = {queue: dict(INTERRUPTS) for queue in range(num_queues)}
        self._faults = faults
        self._set: dict[tuple[Cell, str], tuple[ActiveFault, set[Cell]]] = {}
        self._irqs: dict[tuple[int, str], ActiveFault] = {}
        self._names = 0

    def set(self, settings: Mapping[str, float], cells: Collection[Cell], queues: Iterable[int]) -> None:
        """Set something, for these queues and types."""
        completions = {name: value for name, value in settings.items() if name in COMPLETIONS}
        for cell in cells:
            self.completions[cell].update(completions)
        for name, of in _OF.items():
            # "hold" alone changes what waits already; it does not begin anew what is used up.
            if completions.keys() & of:
                self._take(name, cells)
                self._give(name, of, cells)
        interrupts = {name: value for name, value in settings.items() if name in INTERRUPTS}
        for queue in queues:
            self.interrupts[queue].update(interrupts)
            for name, of in _OF_INTERRUPTS.items():
                if interrupts.keys() & of:
                    self._give_interrupt(queue, name, of)

    def _take(self, name: str, cells: Iterable[Cell]) -> None:
        """No longer is this fault made of these."""
        for cell in cells:
            if (there := self._set.pop((cell, name), None)) is not None:
                active, meant = there
                meant.discard(cell)
                if not meant:
                    active.remove()

    def _give(self, name: str, of: tuple[str, ...], cells: Iterable[Cell]) -> None:
        alike: dict[tuple[float, ...], set[Cell]] = {}
        for cell in cells:
            alike.setdefault(tuple(self.completions[cell][one] for one in of), set()).add(cell)
        for values, meant in alike.items():
            made = _completion(name, values)
            if made is None:
                continue
            match, fault = made

            def where(request: Request, meant: set[Cell] = meant) -> bool:
                return (request.fields.get("queue"), request.kind) in meant

            active = self._faults.add(Match(where=where, **match), fault, name=self._name(name))  # type: ignore[arg-type]
            for cell in meant:
                self._set[cell, name] = active, meant

    def _give_interrupt(self, queue: int, name: str, of: tuple[str, ...]) -> None:
        fault = _interrupt(name, tuple(self.interrupts[queue][one] for one in of))
        active = self._irqs.get((queue, name))
        if fault is None:
            if active is not None:
                self._irqs.pop((queue, name)).remove()
        elif active is not None:
            active.change(fault)
        else:
            match = Match("interrupt", queue=queue)
            self._irqs[queue, name] = self._faults.add(match, fault, name=self._name(name))

    def _name(self, name: str) -> str:
        self._names += 1
        return f"set-{name}-{self._names}"

    def release(self, cells: Collection[Cell], queues: Iterable[int]) -> None:
        """Nothing more is withheld: of these types of requests, and of the interrupts of these queues."""
        for cell in cells:
            self.completions[cell]["withhold"] = 0
        self._take("withhold", cells)
        for queue in queues:
            self.interrupts[queue]["irq-withhold"] = 0
            self._give_interrupt(queue, "irq-withhold", _OF_INTERRUPTS["irq-withhold"])

    def reset(self) -> None:
        """All is as it was at first."""
        cells = list(self.completions)
        for name in _OF:
            self._take(name, cells)
        self.completions = {cell: dict(COMPLETIONS) for cell in cells}
        for active in self._irqs.values():
            active.remove()
        self._irqs.clear()
        self.interrupts = {queue: dict(INTERRUPTS) for queue in self.interrupts}

    def shown(self, cell: Cell) -> dict[str, float]:
        """The settings of a queue and type; of those that are used up, what is left."""
        return self.completions[cell] | {name: self._left(cell, name) for name in ("withhold", "error")}

    def _left(self, cell: Cell, name: str) -> int:
        there = self._set.get((cell, name))
        return 0 if there is None else there[0].left or 0
