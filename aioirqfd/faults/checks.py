"""What a fault that is about to be set is refused for: what no conforming device may do, and names that nothing has."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Final

from aioirqfd.faults.fault import WORDS, Fail, Spurious, stages_of
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
        rule = fault.rule(stage)
        if rule is not None and not rule.conforming:
            what = (
                "interrupt whenever it likes"
                if isinstance(fault, Spurious)
                else f"{WORDS[type(fault)]} {_NOUNS[stage]}"
            )
            raise FaultError(f"no conforming device may {what} ({rule.section}): Faults(nonconforming=True) lets it")
    if isinstance(fault, Fail) and not nonconforming:
        for target in targets:
            check_answer(match, target)
    known = set(REQUEST_FIELDS).union(*KINDS.values(), *(target.fields for target in targets))
    if unknown := match.fields.keys() - known:
        raise FaultError(f"no field {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    if not targets or match.kinds is None or any(target.any_kind for target in targets):
        return
    kinds = set(KINDS).union(*(target.kinds for target in targets))
    if wrong := [kind for kind in match.kinds if "*" not in kind and kind not in kinds]:
        raise FaultError(f"no kind {', '.join(wrong)}; there are {', '.join(sorted(kinds))}")


def check_answer(match: Match, target: Target) -> None:
    """Raise if a request that a match is for has no answer that says that it has failed.

    Raises:
        FaultError: It has none.
    """
    if target.must_answer is not None and (
        match.kinds is None or any(fnmatch.fnmatchcase(kind, one) for one in match.kinds for kind in target.kinds)
    ):
        raise FaultError(
            f"no conforming device may fail a request that has no status ({target.must_answer}): Faults(nonconforming=True) lets it"
        )
