"""A picture of a flight recorder's log, 360 units wide as a phone is: how long interrupts waited, and when."""

from __future__ import annotations

import importlib
import math
from html import escape
from typing import TYPE_CHECKING, Any, Final

from aioirqfd.tracing.trouble import name, seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aioirqfd.tracing.flight_log import FlightLog
    from aioirqfd.tracing.journey import Irq, Journey, Journeys

_WIDTH: Final = 360
_LEFT, _RIGHT, _HEIGHT = 64, 336, 140
"""Of a chart: where its area begins and ends, and how high it is."""
_BARS: Final = 24
_MOST: Final = 2000
"""Points of a chart; of more, evenly many are left out, but not the longest waits."""
_COLOURS: Final = ("#0b6bcb", "#c2410c", "#15803d", "#7e22ce", "#b91c1c", "#0f766e")


def to_svg(log: FlightLog, journeys: Journeys) -> str:
    """The picture, as SVG: a distribution of the time from signal to injection, and the same over time, a point for each."""
    waits: dict[Irq, list[Journey]] = {}
    for journey in journeys.all:
        if journey.waited_ns is not None:
            waits.setdefault(journey.irq, []).append(journey)
    busiest = sorted(waits, key=lambda irq: -len(waits[irq]))[: len(_COLOURS)]
    found = [journey.waited_ns or 0 for irq in busiest for journey in waits[irq]]
    if not found:
        return _picture(80, [_text(12, 40, "No interrupt was injected in this time.", size=14)])
    low, high = math.log10(max(1, min(found))), math.log10(max(10, *found))
    low, high = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
    parts = [_text(12, 26, f"{len(found)} interrupts: from signal to injection", size=14, bold=True)]
    parts += _distribution(found, low, high, top=40)
    parts += [_text(12, 236, "the same over time", size=14, bold=True)]
    parts += _over_time(journeys, [waits[irq] for irq in busiest], low, high, top=250)
    at = 250 + _HEIGHT + 46
    for place, irq in enumerate(busiest):
        parts += [f'<rect x="12" y="{at - 10}" width="10" height="10" fill="{_COLOURS[place]}"/>']
        parts += [_text(28, at, f"{name(irq, log)}: {len(waits[irq])}")]
        at += 20
    return _picture(at, parts)


def to_png(log: FlightLog, journeys: Journeys) -> bytes:
    """The picture, as PNG, three times as many pixels wide.

    Raises:
        ImportError: The package ``resvg-py`` is not installed.
    """
    resvg: Any = importlib.import_module("resvg_py")
    return bytes(resvg.svg_to_bytes(svg_string=to_svg(log, journeys), width=3 * _WIDTH))


def _picture(height: int, parts: Iterable[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">'
    return "\n".join((head, f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>', *parts, "</svg>", ""))


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="#222"{weight}>{escape(text)}</text>'


def _line(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="#ccc"/>'


def _distribution(found: Sequence[int], low: int, high: int, *, top: int) -> list[str]:
    counts = [0] * _BARS
    for wait in found:
        counts[min(int((math.log10(max(wait, 1)) - low) / (high - low) * _BARS), _BARS - 1)] += 1
    wide, bottom, most = (_RIGHT - _LEFT) / _BARS, top + _HEIGHT, max(counts)
    parts = [_line(_LEFT, bottom, _RIGHT, bottom), _text(_LEFT - 6, top + 10, str(most), anchor="end")]
    for place, count in enumerate(counts):
        tall = count / most * _HEIGHT
        x, y = _LEFT + place * wide, bottom - tall
        parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide - 1:.1f}" height="{tall:.1f}" fill="{_COLOURS[0]}"/>')
    for power in range(low, high + 1):
        x = _LEFT + (power - low) / (high - low) * (_RIGHT - _LEFT)
        parts += [_line(x, bottom, x, bottom + 4), _text(x, bottom + 18, seconds(10**power), anchor="middle")]
    ordered = sorted(found)
    middle, late = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
    told = f"half within {seconds(middle)}, 99 % within {seconds(late)}, all within {seconds(ordered[-1])}"
    return [*parts, _text(12, bottom + 36, told)]


def _over_time(journeys: Journeys, found: Sequence[list[Journey]], low: int, high: int, *, top: int) -> list[str]:
    bottom, span = top + _HEIGHT, max(1, journeys.ended_ns - journeys.begun_ns)
    parts: list[str] = []
    for power in range(low, high + 1):
        y = bottom - (power - low) / (high - low) * _HEIGHT
        parts += [_line(_LEFT, y, _RIGHT, y), _text(_LEFT - 6, y + 4, seconds(10**power), anchor="end")]
    step = max(1, math.ceil(sum(map(len, found)) / _MOST))
    for colour, one in zip(_COLOURS, found, strict=False):
        longest = sorted(one, key=lambda journey: -(journey.waited_ns or 0))[:20]
        for journey in (*one[::step], *longest):
            x = _LEFT + (journey.at_ns - journeys.begun_ns) / span * (_RIGHT - _LEFT)
            y = bottom - (math.log10(max(journey.waited_ns or 1, 1)) - low) / (high - low) * _HEIGHT
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>')
    parts += [_text(_LEFT, bottom + 18, "0 s"), _text(_RIGHT, bottom + 18, seconds(span), anchor="end")]
    return parts
