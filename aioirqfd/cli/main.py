"""``aioirqfd COMMAND``: finds the command, and leaves the rest to it."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Final, NoReturn, final

from aioirqfd.cli import bench, completion

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def _chaos(arguments: Sequence[str]) -> int:
    from aioirqfd.cli import chaos  # noqa: PLC0415  half of the package, of which the other commands need nothing

    return chaos.run(arguments)


def _doctor(arguments: Sequence[str]) -> int:
    from aioirqfd.cli import doctor  # noqa: PLC0415  half of the package, of which the other commands need nothing

    return doctor.run(arguments)


def _inspect(arguments: Sequence[str]) -> int:
    from aioirqfd.cli import inspect  # noqa: PLC0415  as above

    return inspect.run(arguments)


def _top(arguments: Sequence[str]) -> int:
    from aioirqfd.cli import top  # noqa: PLC0415  as above

    return top.run(arguments)


def _trace(arguments: Sequence[str]) -> int:
    from aioirqfd.cli import trace  # noqa: PLC0415  as the others

    return trace.run(arguments)


def _ledger(arguments: Sequence[str]) -> int:
    from aioirqfd.cli import ledger  # noqa: PLC0415  as the others

    return ledger.run(arguments)


COMMANDS: Final[dict[str, tuple[str, Callable[[Sequence[str]], int]]]] = {
    "bench": ("measure aioirqfd beside its alternatives; in a checkout of the source tree only", bench.run),
    "chaos": ("serve a device of yours that misbehaves on command", _chaos),
    "completion": ("print what bash, zsh or fish needs to complete this command", completion.run),
    "doctor": ("look at what the package needs of this machine, and say what to do", _doctor),
    "inspect": ("look into a running program that serves its tree of interrupts", _inspect),
    "ledger": ("join the books of a device, QEMU and the guest: where an interrupt was lost", _ledger),
    "top": ("watch the interrupts of a running program in the terminal", _top),
    "trace": ("show what a flight recorder has written, and what went wrong", _trace),
}
"""What each command does, in a few words, and the function that does it."""
_NOT_THERE: Final = 2
_EXAMPLES: Final = """\
examples:
  aioirqfd doctor
  aioirqfd chaos my_disk:Disk disk.img --socket-path blk.sock --control chaos.sock
  aioirqfd COMMAND --help"""


@final
class _Parser(argparse.ArgumentParser):
    """One whose errors are a line each."""

    def error(self, message: str) -> NoReturn:
        self.exit(_NOT_THERE, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def _version() -> str:
    try:
        return metadata.version("aioirqfd")
    except metadata.PackageNotFoundError:
        return "of no version: it is not installed"


def _parser() -> _Parser:
    commands = "\n".join(f"  {name:<12}{what}" for name, (what, _) in COMMANDS.items())
    parser = _Parser(
        prog="aioirqfd",
        description="The command of the aioirqfd package: event notification for asyncio, modelled on Linux KVM's irqfd.",
        epilog=f"commands:\n{commands}\n\n{_EXAMPLES}\n\nThe library is used from Python: import aioirqfd",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", help="print the version", version=f"aioirqfd {_version()}")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="handed to the command")
    return parser


def _whole() -> _Parser:
    """All commands' options in one parser, for a shell that completes them."""
    whole = _Parser(prog="aioirqfd", allow_abbrev=False)
    whole.add_argument("--version", action="store_true")
    commands = whole.add_subparsers(metavar="COMMAND")
    for name, (what, _) in COMMANDS.items():
        options = getattr(importlib.import_module(f"aioirqfd.cli.{name}"), "parser", None)
        commands.add_parser(name, help=what, parents=[] if options is None else [options()], conflict_handler="resolve")
    return whole


def _no_command(name: str) -> str:
    close = difflib.get_close_matches(name, COMMANDS, n=2)
    said = f"did you mean {' or '.join(close)}? There" if close else "there"
    return f"there is no command {name!r}; {said} are {', '.join(COMMANDS)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Without the program's name; None: the process's.

    Returns:
        The exit status: the command's; 2 where there is no command.

    Raises:
        SystemExit: With status 0 after ``--help`` or ``--version``, with 2 and a line on standard error for a word or an
            option that there is not.
    """
    if completion.ASKED_BY in os.environ:
        completion.answer(_whole())
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.command is None:
        parser.print_help(sys.stderr)
        return _NOT_THERE
    if given.command not in COMMANDS:
        parser.error(_no_command(given.command))
    _, run = COMMANDS[given.command]
    try:
        status = run(given.arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever was reading has seen enough. What Python would flush at its end goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"aioirqfd {given.command}: stopped", file=sys.stderr)
        return 130
    return status
