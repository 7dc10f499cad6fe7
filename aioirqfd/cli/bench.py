"""``aioirqfd bench``: the benchmarks, which live in the source tree beside the tests."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_TREE: Final = Path(__file__).parents[2]
_NOT_THERE: Final = 1


def run(arguments: Sequence[str]) -> int:
    """Run them; 1 where they, or the packages they measure against, are not there."""
    if not (_TREE / "tests" / "bench").is_dir():
        print(
            "aioirqfd bench: the benchmarks are part of the source tree, not of the installed package;"
            " run `make bench` in a checkout of it",
            file=sys.stderr,
        )
        return _NOT_THERE
    sys.path.insert(0, str(_TREE))
    try:
        status: int = importlib.import_module("tests.bench.__main__").main(arguments)
    except ModuleNotFoundError as error:
        print(f"aioirqfd bench: {error}; `make bench` installs what it needs and runs it", file=sys.stderr)
        return _NOT_THERE
    return status
