"""The results as a table and as JSON."""

from __future__ import annotations

import platform
import statistics
from typing import TYPE_CHECKING

import uvloop
from rich.table import Table

import aioirqfd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.measure import Row, Samples


def machine() -> dict[str, str]:
    """What it ran on."""
    return {
        "implementation": aioirqfd.IMPLEMENTATION,
        "python": platform.python_version(),
        "uvloop": uvloop.__version__,
        "kernel": platform.release(),
    }


def _figure(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:,.0f}"


def table(rows: Sequence[Row], samples: Samples) -> Table:
    """A row a line: our figure, the peer's, the median ratio with its spread, the target."""
    made = Table(title="aioirqfd bench: " + ", ".join(f"{key} {value}" for key, value in machine().items()))
    for heading in ("what", "ours", "peer", "unit", "ratio", "lowest..highest", "target", ""):
        made.add_column(heading, justify="left" if heading == "what" else "right")
    for row in rows:
        ratios = samples.ratios(row)
        ratio = statistics.median(ratios)
        verdict = "" if row.target is None else "[green]met[/]" if ratio <= row.target else "[red]missed[/]"
        made.add_row(
            row.what,
            _figure(samples.median(row.ours)),
            "" if row.peer is None else _figure(samples.median(row.peer)),
            samples.units[row.ours],
            _figure(ratio),
            f"{_figure(min(ratios))}..{_figure(max(ratios))}",
            "" if row.target is None else f"{row.target:g}",
            verdict,
        )
    return made


def as_json(rows: Sequence[Row], samples: Samples) -> dict[str, object]:
    """Everything, the single rounds included."""
    return {
        "machine": machine(),
        "rows": [
            {
                "what": row.what,
                "ours": row.ours,
                "peer": row.peer,
                "target": row.target,
                "ratio": statistics.median(samples.ratios(row)),
                "ratios": samples.ratios(row),
            }
            for row in rows
        ],
        "cases": {
            name: {"unit": samples.units[name], "median": samples.median(name), "rounds": values}
            for name, values in samples.values.items()
        },
    }
