"""``aioirqfd completion SHELL``: what a shell needs to complete the command. By argcomplete, which the extra ``cli`` brings."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

SHELLS: Final = ("bash", "zsh", "fish")
ASKED_BY: Final = "_ARGCOMPLETE"
"""The environment variable by which a shell asks what may follow."""
_MISSING: Final = 1


def parser() -> argparse.ArgumentParser:
    """Its options."""
    made = argparse.ArgumentParser(
        prog="aioirqfd completion",
        description="Print what a shell needs to complete the command aioirqfd; it needs the extra `cli`.",
        epilog="examples:\n"
        '  eval "$(aioirqfd completion bash)"                     in ~/.bashrc\n'
        '  eval "$(aioirqfd completion zsh)"                      in ~/.zshrc, after compinit\n'
        "  aioirqfd completion fish >~/.config/fish/completions/aioirqfd.fish",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("shell", choices=SHELLS, help="which shell")
    return made


def run(arguments: Sequence[str]) -> int:
    """Print it; 1 where argcomplete is not installed."""
    given = parser().parse_args(arguments)
    try:
        from argcomplete.shell_integration import shellcode  # noqa: PLC0415  an extra
    except ImportError:
        print(
            "aioirqfd completion: argcomplete is not installed; install it with: pip install 'aioirqfd[cli]'",
            file=sys.stderr,
        )
        return _MISSING
    print(shellcode(["aioirqfd"], shell=given.shell))
    return 0


def answer(whole: argparse.ArgumentParser) -> None:
    """Answer a shell that asks what may follow, and exit; nothing happens where argcomplete is not installed."""
    try:
        from argcomplete import autocomplete  # noqa: PLC0415  an extra
    except ImportError:
        return
    autocomplete(whole)
