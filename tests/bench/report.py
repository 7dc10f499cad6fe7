"""The results as a table, as JSON, and as bars."""

from __future__ import annotations

import platform
import statistics
import sys
from typing import TYPE_CHECKING

import uvloop
from rich.table import Table

import aioirqfd

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

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


def plot(rows: Sequence[Row], samples: Samples, path: Path) -> None:
    """Bars of the ratios on a logarithmic scale, a mark at each target."""
    try:
        import matplotlib as mpl
    except ImportError:
        sys.exit("--plot needs matplotlib: pip install matplotlib")
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = [row for row in rows if row.peer is not None][::-1]
    ratios = [statistics.median(samples.ratios(row)) for row in shown]
    figure, axes = plt.subplots(figsize=(11, 0.32 * len(shown) + 1.4))
    colours = [
        "#2f6f4f" if row.target is None or ratio <= row.target else "#b3402a"
        for row, ratio in zip(shown, ratios, strict=True)
    ]
    axes.barh(range(len(shown)), ratios, color=colours, height=0.65)
    lows = [ratio - min(samples.ratios(row)) for row, ratio in zip(shown, ratios, strict=True)]
    highs = [max(samples.ratios(row)) - ratio for row, ratio in zip(shown, ratios, strict=True)]
    axes.errorbar(
        ratios, range(len(shown)), xerr=[lows, highs], fmt="none", ecolor="#444444", elinewidth=0.8, capsize=2
    )
    for place, row in enumerate(shown):
        if row.target is not None:
            axes.plot([row.target, row.target], [place - 0.42, place + 0.42], color="#111111", linewidth=2)
    axes.set_xscale("log")
    axes.axvline(1, color="#888888", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [row.what for row in shown], fontsize=8)
    axes.set_xlabel("ours / peer (median of rounds; whiskers: all rounds; black mark: target). Lower is better.")
    axes.set_title(", ".join(f"{key} {value}" for key, value in machine().items()), fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
