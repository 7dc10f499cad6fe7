"""What a fault that is about to be set is refused for: what no conforming device may do, and names that nothing has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aioirqfd.faults.fault import WORDS, stages_of
from aioirqfd.faults.match import KINDS, REQUEST_FIELDS, FaultError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aioirqfd.faults.fault import Fault
    from aioirqfd.faults.match import Match
    from aioirqfd.faults.targets import Target

_NOUNS: Final = {
    "request": "a request",
    "register": "an access to a register",
    "dma": "a transfer",
    "interrupt": "an interrupt",
}


def check(match: Match, fault: Fault, targets: Sequence[Target], *, nonconforming: bool) -> None:
    """Raise unless a fault can be set.

    Args:
        match: Of which requests.
        fault: What is done to them.
        targets: What was wrapped; while there is nothing, kinds are not looked at.
        nonconforming: Whether those may be set that no conforming device may make.

    Raises:
        FaultError: It cannot.
    """
    for stage in () if nonconforming else sorted(stages_of(match.kinds)):
        rule = fault.rules.get(stage)
        if rule is not None and not rule.conforming:
            what = f"{WORDS[type(fault)]} {_NOUNS[stage]}"
            raise FaultError(f"no conforming device may {what} ({rule.section}): Faults(nonconforming=True) lets it")
    known = set(REQUEST_FIELDS).union(*KINDS.values(), *(target.fields for target in targets))
    if unknown := match.fields.keys() - known:
        raise FaultError(f"no field {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    if not targets or match.kinds is None or any(target.any_kind for target in targets):
        return
    kinds = set(KINDS).union(*(target.kinds for target in targets))
    if wrong := [kind for kind in match.kinds if "*" not in kind and kind not in kinds]:
        raise FaultError(f"no kind {', '.join(wrong)}; there are {', '.join(sorted(kinds))}")
