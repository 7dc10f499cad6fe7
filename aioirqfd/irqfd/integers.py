"""Numbers that are handed in become plain integers at the door, whatever library's they are."""

from __future__ import annotations

import operator
from typing import SupportsIndex


def integer(value: SupportsIndex, what: str, low: int, high: int | None = None) -> int:
    """The number as an ``int``.

    Args:
        value: What was handed in.
        what: Its name, for the error.
        low: The least it may be.
        high: The most, or None.

    Raises:
        TypeError: It is no integer; a bool is none.
        ValueError: It is out of range.
    """
    if isinstance(value, bool):
        raise TypeError(f"{what} is an integer, not {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{what} is an integer, not {value!r}") from None
    if number < low or (high is not None and number > high):
        raise ValueError(f"{what} is {low}{' or more' if high is None else f'..{high}'}, not {number}")
    return number
