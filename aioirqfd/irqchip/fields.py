"""Reading a controller's snapshot: every field is checked before anything is changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

from aioirqfd.errors import SnapshotError


def section(value: object, what: str, names: Collection[str]) -> Mapping[str, object]:
    """Take a mapping that has exactly these fields.

    Args:
        value: What the snapshot holds there.
        what: How to call it in an error.
        names: The fields it must have, no more and no fewer.

    Raises:
        SnapshotError: It is no mapping, or a field is missing or unknown.
    """
    if not isinstance(value, Mapping):
        raise SnapshotError(f"{what} is a mapping, not {type(value).__name__}")
    found = cast("Mapping[str, object]", value)
    if set(found) != set(names):
        raise SnapshotError(f"{what} has the fields {sorted(names)}, not {sorted(map(str, found))}")
    return found


def number(state: Mapping[str, object], name: str, limit: int) -> int:
    """Take a whole number, 0..limit-1.

    Raises:
        SnapshotError: It is something else.
    """
    value = state[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
        raise SnapshotError(f"{name} is a whole number 0..{limit - 1}, not {value!r}")
    return value


def flag(state: Mapping[str, object], name: str) -> bool:
    """Take a true or false.

    Raises:
        SnapshotError: It is something else; 0 and 1 are not taken for it.
    """
    value = state[name]
    if not isinstance(value, bool):
        raise SnapshotError(f"{name} is true or false, not {value!r}")
    return value


def version(state: Mapping[str, object], expected: int) -> None:
    """Refuse a snapshot of another layout.

    Raises:
        SnapshotError: The version is not the expected one.
    """
    if number(state, "version", 2**32) != expected:
        raise SnapshotError(f"a snapshot of version {expected} is wanted, not {state['version']!r}")


def numbers(state: Mapping[str, object], name: str, count: int, limit: int) -> list[int]:
    """Take a list of this many whole numbers, each 0..limit-1.

    Raises:
        SnapshotError: It is something else.
    """
    value = state[name]
    if not isinstance(value, list):
        raise SnapshotError(f"{name} is a list, not {type(value).__name__}")
    found = dict(enumerate(cast("list[object]", value)))
    if len(found) != count:
        raise SnapshotError(f"{name} has {count} entries, not {len(found)}")
    return [number({f"{name}[{index}]": each}, f"{name}[{index}]", limit) for index, each in found.items()]
