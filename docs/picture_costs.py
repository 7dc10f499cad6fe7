"""The table of what things cost as bars: ours as a part of the peer's, on a logarithmic scale."""

from __future__ import annotations

import math
import re
from typing import Final, NamedTuple

import svg

_LEFT: Final = 16
_RIGHT: Final = svg.WIDTH - 60
_LOWEST: Final = 0.003
_HIGHEST: Final = 3.0
_STEP: Final = 34
_ROW: Final = re.compile(
    r"^\| (?P<what>[^|]+) \| [^|]+ \| [^|]*\w[^|]* \| (?P<ratio>[\d.]+) \| (?P<low>[\d.]+) to (?P<high>[\d.]+) \| (?P<target>[\d.]*) *\|$",
    re.MULTILINE,
)
"""A line of the page's table that has a peer."""


class Bar(NamedTuple):
    """One row: ours as a part of the peer's, the extremes of the rounds, and what is aimed at."""

    what: str
    ratio: float
    low: float
    high: float
    target: float | None


def bars(page: str) -> list[Bar]:
    """The rows of a page's table that have a peer."""
    return [
        Bar(
            row["what"],
            float(row["ratio"]),
            float(row["low"]),
            float(row["high"]),
            float(row["target"]) if row["target"] else None,
        )
        for row in _ROW.finditer(page)
    ]


def draw(page: str) -> str:
    """The picture of a page's table.

    Raises:
        ValueError: There is none.
    """
    rows = bars(page)
    if not rows:
        raise ValueError("the page has no table of costs")
    top = 66
    bottom = top + len(rows) * _STEP
    parts = [
        svg.text(_LEFT, 24, "ours / peer: less is better"),
        svg.text(_LEFT, 42, "thin line: all rounds; upright mark: target", kind="small"),
    ]
    for value in (0.01, 0.1, 1):
        parts += [
            svg.line(f"M{_x(value):.1f},{top - 8} V{bottom}", "grid"),
            svg.text(_x(value), top - 12, f"{value:g}", kind="small", anchor="middle"),
        ]
    for index, bar in enumerate(rows):
        y = top + index * _STEP
        met = bar.target is None or bar.ratio <= bar.target
        parts += [
            svg.text(_LEFT, y + 12, bar.what),
            svg.rect(_LEFT, y + 17, _x(bar.ratio) - _LEFT, 9, "good" if met else "bad"),
            svg.line(f"M{_x(bar.low):.1f},{y + 21.5:g} H{_x(bar.high):.1f}", "mark thin"),
            svg.text(svg.WIDTH - 16, y + 26, f"{bar.ratio:.3f}", anchor="end"),
        ]
        if bar.target is not None:
            parts.append(svg.line(f"M{_x(bar.target):.1f},{y + 15} V{y + 28}", "mark"))
    return svg.picture("What things cost beside their alternatives", bottom + 12, parts)


def _x(ratio: float) -> float:
    part = math.log(ratio / _LOWEST) / math.log(_HIGHEST / _LOWEST)
    return _LEFT + min(max(part, 0), 1) * (_RIGHT - _LEFT)
