"""``python -m tests.bench``: every row of the performance table, side by side in one run."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.bench import exits, external, floor, overhead, report, scale, signals, table, threads, vfio
from tests.bench.measure import Case, Samples, run_rounds

if TYPE_CHECKING:
    from collections.abc import Sequence


def all_cases() -> list[Case]:
    """Everything that this machine can run."""
    return [
        *floor.cases(external.SIZES),
        *external.cases(),
        *signals.cases(),
        *threads.cases(),
        *scale.cases(),
        *overhead.cases(),
        *vfio.cases(),
        *exits.cases(),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and say by the exit status whether every target was met."""
    parser = argparse.ArgumentParser(prog="aioirqfd bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default 9)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="TEXT", help="rows whose name has this; repeatable"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("at least one round")
    cases = all_cases()
    rows = table.rows_for({case.name for case in cases})
    if options.only:
        rows = [row for row in rows if any(text in row.what for text in options.only)]
        if not rows:
            parser.error(f"no row has {options.only} in its name")
        wanted = {name for row in rows for name in (row.ours, row.peer)}
        cases = [case for case in cases if case.name in wanted]
    samples = _run(cases, options.rounds)
    if options.json:
        json.dump(report.as_json(rows, samples), sys.stdout, indent=1)
        print()
    else:
        Console(width=None if sys.stdout.isatty() else 150).print(report.table(rows, samples))
    missed = [row.what for row in rows if row.target is not None and _median(samples, row) > row.target]
    return 1 if missed else 0


def _median(samples: Samples, row: table.Row) -> float:
    ratios = sorted(samples.ratios(row))
    return ratios[len(ratios) // 2]


def _run(cases: Sequence[Case], rounds: int) -> Samples:
    columns = (TextColumn("{task.description:45}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    samples = Samples()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(cases) * (rounds + 1))
        for name, samples in run_rounds(cases, rounds):  # noqa: B007  the last one is what is wanted
            progress.update(task, description=name, advance=1)
    return samples


if __name__ == "__main__":
    sys.exit(main())
