"""Cases, rows and rounds: every case runs once a round, in turn, so that a drift of the machine's speed meets all of them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is timed.

    Attributes:
        name: ``group/variant``, unique.
        run: One round of it; returns the figure, in the unit.
        unit: ``ns``, ``us``, ``ms``, ``B`` or ``insn``; what one event, call or object costs.
    """

    name: str
    run: Callable[[], float]
    unit: str = "ns"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a case of ours over a peer's, against a target.

    Attributes:
        what: What is measured.
        ours: The name of our case.
        peer: The name of the peer's case, or None where the target is a figure and not a ratio.
        target: The highest ratio, or figure, that is good enough; None: shown for comparison.
    """

    what: str
    ours: str
    peer: str | None
    target: float | None = None


@dataclass(slots=True)
class Samples:
    """What the rounds gave for each case."""

    units: dict[str, str] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """The middle figure of a case."""
        return statistics.median(self.values[name])

    def spread(self, name: str) -> tuple[float, float]:
        """The lowest and the highest figure of a case."""
        return min(self.values[name]), max(self.values[name])

    def ratios(self, row: Row) -> list[float]:
        """Ours over the peer's, round by round."""
        ours = self.values[row.ours]
        if row.peer is None:
            return ours
        return [a / b for a, b in zip(ours, self.values[row.peer], strict=True)]


def run_rounds(cases: Sequence[Case], rounds: int) -> Iterator[tuple[str, Samples]]:
    """Run every case ``rounds`` times, interleaved, after one uncounted round; yields before each run, for a progress bar."""
    samples = Samples({case.name: case.unit for case in cases}, {case.name: [] for case in cases})
    for number in range(rounds + 1):
        for case in _turned(cases, number):
            yield case.name, samples
            value = case.run()
            if number:
                samples.values[case.name].append(value)
    yield "", samples


def _turned(cases: Sequence[Case], number: int) -> Iterable[Case]:
    # Every other round backwards, so that no case always profits from the one before it.
    return cases if number % 2 else reversed(cases)
