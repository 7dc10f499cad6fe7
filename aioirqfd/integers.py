"""Integers where they are taken in: another library's become plain ones, and a bool is none."""

from __future__ import annotations

import operator
from typing import Final, SupportsIndex, cast

_ROUND: Final = 2**16
"""From here on a power of 2 is written as one."""


def plain(value: object, below: int) -> int | None:
    """The number as an ``int``, whatever library's integer it was; None: it is no integer, a bool, or not in 0..below-1."""
    try:
        return integer(cast("SupportsIndex", value), "", 0, below - 1)
    except (TypeError, ValueError):
        return None


def integer(value: SupportsIndex, what: str, low: int | None = None, high: int | None = None) -> int:
    """The number as an ``int``.

    Args:
        value: What was handed in.
        what: Its name, for the error.
        low: The least it may be, or None.
        high: The most, or None.

    Raises:
        TypeError: It is no integer; a bool is none, though it is an int to Python.
        ValueError: It is out of range.
    """
    number = value
    if type(number) is not int:
        if isinstance(value, bool) or not hasattr(type(value), "__index__"):
            raise TypeError(f"{what} is an integer, not {value!r}")
        number = int(operator.index(value))
    if (low is not None and number < low) or (high is not None and number > high):
        raise ValueError(f"{what} is {low}{' or more' if high is None else f'..{_bound(high)}'}, not {number}")
    return number


def _bound(high: int) -> str:
    """A bound as one writes it: 255, 2**20, 2**64-2."""
    for less in range(3):
        power = high + less
        if power >= _ROUND and power.bit_count() == 1:
            return f"2**{power.bit_length() - 1}" + (f"-{less}" if less else "")
    return str(high)
