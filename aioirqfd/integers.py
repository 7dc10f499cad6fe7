"""Integers where they are taken in: another library's become plain ones, and a bool is none."""

from __future__ import annotations

import operator
from typing import SupportsIndex, cast


def plain(value: object, below: int) -> int | None:
    """The number as an ``int``, whatever library's integer it was; None: it is no integer, a bool, or not in 0..below-1."""
    if type(value) is not int:
        if isinstance(value, bool):
            return None
        try:
            value = operator.index(cast("SupportsIndex", value))
        except TypeError:
            return None
    return value if 0 <= value < below else None
