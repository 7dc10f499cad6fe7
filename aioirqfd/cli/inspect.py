"""``aioirqfd inspect SOCKET [PATH]``: looks into a running program, and says what its interrupts wait for."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Final, cast

from aioirqfd.inspect.client import InspectClient
from aioirqfd.inspect.tree import InspectError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_WRONG: Final = 1
_CLEAR: Final = "\x1b[H\x1b[2J"
_EXAMPLES: Final = """\
examples:
  aioirqfd inspect vmm.sock --explain             what every interrupt waits for that does not come
  aioirqfd inspect vmm.sock --depth 2             what there is
  aioirqfd inspect vmm.sock managers/0/gsi/5      one gsi: its irqfds, routes and line
  aioirqfd inspect vmm.sock 'managers/*/queue' --json
  aioirqfd inspect vmm.sock tracers/0/level --set warning
  aioirqfd inspect vmm.sock tracers/1/on --set no
"""


def parser() -> argparse.ArgumentParser:
    """Its options."""
    made = argparse.ArgumentParser(
        prog="aioirqfd inspect",
        description="Look into a running program that calls `await aioirqfd.inspect.serve(SOCKET)`.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("socket", metavar="SOCKET", help="where the program serves its tree")
    made.add_argument(
        "path", metavar="PATH", nargs="?", default="", help="which part of it; * stands for each there is"
    )
    made.add_argument("--depth", type=_depth, metavar="N", help="how many levels of parts to show (all)")
    made.add_argument("--explain", action="store_true", help="say in sentences what an interrupt waits for")
    made.add_argument("--json", action="store_true", help="print JSON")
    made.add_argument(
        "--watch", nargs="?", type=_seconds, const=1.0, metavar="SECONDS", help="print it again and again, until Ctrl-C"
    )
    made.add_argument("--set", metavar="VALUE", help="write the setting at PATH, without *: yes, no, a word, JSON")
    return made


def _depth(text: str) -> int:
    depth = int(text)
    if depth < 0:
        raise argparse.ArgumentTypeError(f"a depth is 0 or more, not {text}")
    return depth


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"a number of seconds above 0, not {text}")
    return seconds


def run(arguments: Sequence[str], *, sleep: Callable[[float], object] = time.sleep) -> int:
    """Ask, and print the answer.

    Args:
        arguments: As on the command line, without the command's name.
        sleep: Waits between two looks of ``--watch``.

    Returns:
        The exit status: 0; 1 where it cannot be had, with a line on standard error that says why.
    """
    options = parser().parse_intermixed_args(arguments)  # PATH may stand behind an option
    if options.set is not None and (options.explain or options.watch or options.depth is not None):
        parser().error("--set writes, and takes none of --explain, --watch, --depth")
    try:
        with InspectClient(options.socket) as client:
            if options.set is not None:
                client.write(options.path, _value(options.set))
                return 0
            _show(client, options, sleep)
    except BrokenPipeError:
        raise  # whoever was reading has seen enough: main() knows what to do
    except (OSError, InspectError) as error:
        print(f"aioirqfd inspect: {error}", file=sys.stderr)
        return _WRONG
    return 0


def _show(client: InspectClient, options: argparse.Namespace, sleep: Callable[[float], object]) -> None:
    path = _explained(options.path) if options.explain else options.path
    while True:
        value = client.read(path, options.depth)
        text = json.dumps(value, indent=2) if options.json else "\n".join(lines(value))
        again = options.watch is not None
        print(f"{_CLEAR}{text}" if again and sys.stdout.isatty() else text, flush=True)
        if not again:
            return
        sleep(options.watch)


def _explained(path: str) -> str:
    return f"{path.rstrip('/') or 'managers/*'}/explain"


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def lines(value: object, indent: int = 0) -> Iterator[str]:
    """A value as lines for people: a mapping's names, each with what it has below it."""
    space = "  " * indent
    parts = _parts(value)
    if parts is None:
        for line in _word(value).split("\n"):
            yield space + line
        return
    for name, one in parts.items():
        if _parts(one) is not None or "\n" in _word(one):
            yield f"{space}{name}:"
            yield from lines(one, indent + 1)
        else:
            yield f"{space}{name}: {_word(one)}"


def _parts(value: object) -> Mapping[str, object] | None:
    """What a mapping has; None: it is none, or has nothing."""
    return cast("Mapping[str, object]", value) if isinstance(value, dict) and value else None


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list):
        return ", ".join(map(_word, cast("list[object]", value))) or "-"
    return "-" if value is None or isinstance(value, dict) else str(value)
