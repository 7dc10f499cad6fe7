"""Stands for an array library's integers."""

from __future__ import annotations

from typing import Any


class Int64:
    """No int, and not equal to one; but it can be used as an index."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value

    def __repr__(self):
        return f"int64({self.value})"


def int64(value: int) -> Any:
    """One of them, which no type checker need know of."""
    return Int64(value)
