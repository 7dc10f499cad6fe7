"""What every snapshot is made of: what ``json`` takes, with integers of a size that an interrupt can have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

from aioirqfd.errors import SnapshotError

_BITS: Final = 64


def check_integers(state: object) -> None:
    """Refuse what holds an integer beyond 64 bits, anywhere; before anything else, for errors cite what they refuse.

    ``json`` reads integers of any length, and Python does not print those of more than 4300 digits.

    Raises:
        SnapshotError: There is one.
    """
    found: list[object] = [state]
    seen: set[int] = set()
    while found:
        value = found.pop()
        if isinstance(value, int):
            if value.bit_length() > _BITS:
                raise SnapshotError(f"an integer of {value.bit_length()} bits")
        elif isinstance(value, (Mapping, list, tuple)) and id(cast("object", value)) not in seen:
            seen.add(id(cast("object", value)))
            if isinstance(value, Mapping):
                whole = cast("Mapping[object, object]", value)
                found += whole.keys()
                found += whole.values()
            else:
                found += cast("list[object]", value)
