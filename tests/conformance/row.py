"""A row of the kernel's contract: what it says, in our own words, and the scenario that shows it on either back-end."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conformance.machine import Host

Scenario = Callable[["Host"], Awaitable[object]]

SECTIONS = {
    "E": "eventfd itself",
    "I": "assign and deassign: arguments and errnos",
    "P": "the count of a bound eventfd",
    "W": "injection",
    "M": "the fast path",
    "R": "resample",
    "G": "routing",
    "L": "lines",
    "S": "messages",
    "C": "lifetime",
    "O": "ioeventfd",
    "B": "bypass",
}
SIZES = {"E": 26, "I": 23, "P": 12, "W": 9, "M": 8, "R": 24, "G": 13, "L": 5, "S": 5, "C": 7, "O": 22, "B": 3}
IDS = [f"{letter}{number:02}" for letter, size in SIZES.items() for number in range(1, size + 1)]


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        id: As the contract numbers it.
        text: What holds, for both unless ``differs`` says otherwise.
        scenario: Its steps; None where nothing can be observed from user space.
        expect: What they give, as JSON has it.
        ours: What they give with aioirqfd, if that is something else.
        differs: Why aioirqfd is not the same, and what it does instead; empty where it is the same.
        limit: For a row that is the same: what of it the scenario does not reach, or what Python spells in its own way.
        needs_kvm: Whether aioirqfd's part needs a kernel signaller too.
    """

    id: str
    text: str
    scenario: Scenario | None
    expect: object
    ours: object
    differs: str
    limit: str
    needs_kvm: bool

    @property
    def same(self) -> bool:
        """Whether aioirqfd is to give what the kernel gives."""
        return not self.differs

    def expected(self, backend: str) -> object:
        """What the back-end is to give."""
        return self.expect if backend == "kernel" else self.ours


ROWS: dict[str, Row] = {}
_SAME = object()


def plain(value: object) -> object:
    """The value as JSON has it: tuples are lists, and sets sorted lists."""
    return json.loads(json.dumps(value, default=sorted))


def row(
    row_id: str,
    text: str,
    expect: object,
    *,
    ours: object = _SAME,
    differs: str = "",
    limit: str = "",
    needs_kvm: bool = False,
) -> Callable[[Scenario], Scenario]:
    """Register a scenario as its row's."""
    assert (ours is _SAME) or differs, row_id
    assert row_id in IDS, row_id
    assert row_id not in ROWS, row_id

    def register(scenario: Scenario) -> Scenario:
        wanted = plain(expect)
        other = wanted if ours is _SAME else plain(ours)
        ROWS[row_id] = Row(row_id, text, scenario, wanted, other, differs, limit, needs_kvm)
        return scenario

    return register


def unobservable(row_id: str, text: str, why: str) -> None:
    """Register a row that has no steps: nothing of it shows in user space."""
    assert row_id in IDS, row_id
    assert row_id not in ROWS, row_id
    ROWS[row_id] = Row(row_id, text, None, None, None, why, "", needs_kvm=False)
