"""Where a program's CPU time goes, by function: ``python -m tests.bench.sampled PROGRAM ARGUMENT...``; printed at its end.

From a SIGUSR1 on, a sample is taken at each tick of the kernel's in which the program has run, on the main thread, between two of the
interpreter's instructions: what a call into C takes counts for the Python function that makes it.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

ROOT = Path(__file__).parents[2]
FUNCTIONS = 16


def main() -> None:
    """Run it, and print shares of files and functions."""
    files: Counter[str] = Counter()
    functions: Counter[str] = Counter()

    def sample(_number: int, frame: FrameType | None) -> None:
        assert frame is not None
        path = frame.f_code.co_filename
        name = path.removeprefix(f"{ROOT}/")
        name = name if name != path else Path(path).name
        files[name] += 1
        functions[f"{name}:{frame.f_code.co_qualname}"] += 1

    begun: list[os.times_result] = []

    def begin(_number: int, _frame: FrameType | None) -> None:
        begun.append(os.times())
        signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)

    sys.argv = sys.argv[1:]
    signal.signal(signal.SIGPROF, sample)
    signal.signal(signal.SIGUSR1, begin)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        if begun:
            system, user = (getattr(os.times(), kind) - getattr(begun[0], kind) for kind in ("system", "user"))
            total = sum(files.values())
            print(f"{total} samples; {system / (user + system):.0%} of the time in the kernel")
            for found in (files, functions):
                for name, count in found.most_common(FUNCTIONS):
                    print(f"{count / total:6.1%}  {name}")


if __name__ == "__main__":
    main()
