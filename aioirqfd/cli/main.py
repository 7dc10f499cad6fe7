"""``aioirqfd COMMAND``: finds the command, and leaves the rest to it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from aioirqfd.cli import bench

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COMMANDS: Final[dict[str, Callable[[Sequence[str]], int]]] = {"bench": bench.run}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Without the program's name; None: the process's.

    Returns:
        The exit status: 2 for a command that is not there.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = COMMANDS.get(given[0]) if given else None
    if command is None:
        wanted_help = given[:1] in (["-h"], ["--help"])
        print(f"usage: aioirqfd {{{','.join(COMMANDS)}}} [options]", file=sys.stdout if wanted_help else sys.stderr)
        return 0 if wanted_help else 2
    return command(given[1:])
