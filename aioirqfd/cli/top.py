"""``aioirqfd top SOCKET``: ``/proc/interrupts`` of a running program, live in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import curses
import sys
import time
from typing import TYPE_CHECKING, Any, Final, cast

from aioirqfd.cli.screen import Screen
from aioirqfd.inspect.client import InspectClient
from aioirqfd.inspect.tree import InspectError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_WRONG: Final = 1
_MARKS: Final = """\
marks: P pending, and the manager is paused; M masked; H held, for room or for a route; B given up after the sink has failed;
C an interrupt controller holds it back, masked by the guest say (`aioirqfd inspect SOCKET --explain` says how); D interrupts
were dropped, for there was no route; K the sink watches the eventfd itself, and counts nothing here; R its handler or the
sink's inject() runs.

P50 and P99: within how many microseconds of its signal it was injected, of the last that a flight recorder has remembered.

examples:
  aioirqfd top vmm.sock
  aioirqfd top vmm.sock --sort h --filter disk
  aioirqfd top vmm.sock --once
"""


def parser() -> argparse.ArgumentParser:
    """Its options."""
    made = argparse.ArgumentParser(
        prog="aioirqfd top",
        description="Watch the interrupts of a running program that calls `await aioirqfd.inspect.serve(SOCKET)`.",
        epilog=_MARKS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("socket", metavar="SOCKET", help="where the program serves its tree")
    made.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="from one look to the next (1)")
    made.add_argument(
        "--sort",
        choices="rtcngh",
        default="r",
        metavar="KEY",
        help="r rate, t total, c coalesced, n name, g gsi, h held",
    )
    made.add_argument("--filter", default="", metavar="TEXT", help="show only what has this in its names, gsi or state")
    made.add_argument("--once", action="store_true", help="look twice, print all rows, and end")
    return made


def run(arguments: Sequence[str], *, sleep: Callable[[float], object] = time.sleep) -> int:
    """Show it until ``q``.

    Args:
        arguments: As on the command line, without the command's name.
        sleep: Waits between the two looks of ``--once``, for rates need two.

    Returns:
        The exit status: 0; 1 where the program cannot be asked, with a line on standard error that says why.
    """
    options = parser().parse_args(arguments)
    if not 0.05 <= options.interval <= 3600:
        parser().error("--interval is 0.05 to 3600 seconds")
    screen = Screen(options.socket, sort=options.sort, filter=options.filter)
    try:
        with InspectClient(options.socket) as client:
            look(client, screen)
            if options.once:
                sleep(options.interval)
                look(client, screen)
                print("\n".join(screen.page()), flush=True)
                return 0
            if not (sys.stdin.isatty() and sys.stdout.isatty()):
                parser().error("it needs a terminal; --once prints one screen without")
            curses.wrapper(_watch, client, screen, options.interval)
    except BrokenPipeError:
        raise  # whoever was reading has seen enough: main() knows what to do
    except (OSError, InspectError) as error:
        print(f"aioirqfd top: {error}", file=sys.stderr)
        return _WRONG
    return 0


def look(client: InspectClient, screen: Screen, clock: Callable[[], float] = time.monotonic) -> None:
    """Have the screen show how it is now, by this clock.

    Raises:
        InspectError: The program cannot be asked.
    """
    managers = cast("dict[str, dict[str, Any]]", client.read("managers", 1))
    for part in ("irqfds", "queue", "latency"):
        parts = cast("dict[str, Any]", client.read(f"managers/*/{part}"))
        # One that has come or gone meanwhile is seen at the next look.
        managers = {name: node | {part: parts[name]} for name, node in managers.items() if name in parts}
    process = cast("dict[str, Any]", client.read("process"))
    screen.take({"process": process, "managers": managers}, clock())


def _watch(window: curses.window, client: InspectClient, screen: Screen, interval: float) -> None:
    with contextlib.suppress(curses.error):
        curses.curs_set(0)
    next_look = time.monotonic() + interval
    while True:
        _draw(window, screen)
        window.timeout(max(int(1000 * (next_look - time.monotonic())), 0))
        try:
            key = window.get_wch()
        except curses.error:  # none was hit: it is time for the next look
            look(client, screen)
            next_look = time.monotonic() + interval
            continue
        if isinstance(key, str) and not screen.key(key):
            return


def _draw(window: curses.window, screen: Screen) -> None:
    height, width = window.getmaxyx()
    window.erase()
    for number, line in enumerate(screen.lines(width, height)):
        # The last place of the last line cannot be written without scrolling.
        with contextlib.suppress(curses.error):
            window.addnstr(
                number, 0, line, width - (number == height - 1), curses.A_REVERSE if number == 3 else curses.A_NORMAL
            )
    window.refresh()
