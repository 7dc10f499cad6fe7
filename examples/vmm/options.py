"""The command line."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Sequence

_SECONDS: Final = 2.0
_HZ: Final = 100.0
_EPILOG: Final = """\
The guest echoes its serial input to its console: the bytes go to standard output, everything else to standard error.
Without --input, and with nothing on standard input until the last tick, a short text is used. Ctrl-C stops the guest: requests already
accepted are still completed; a second Ctrl-C stops at once.

A guest that is late handles several ticks with one interrupt, and reads how many there were.

exit status: 0 nothing lost; 1 a tick, an answer or a byte lost; 2 it could not run; 130 stopped by Ctrl-C, nothing lost
"""


@final
@dataclass(frozen=True, slots=True)
class Options:
    """What the user wants.

    Attributes:
        accel: ``auto``, ``kvm`` or ``unicorn``.
        inject: ``auto``, ``offload``, ``fast`` or ``queue``.
        hz: Timer ticks per second.
        ticks: How many ticks there are to be.
        input: A file, ``-`` for standard input, or None for standard input or else a built-in text.
        output: A file, or None for standard output.
        trace: ``off``, ``console`` or ``json``.
        record: The flight recorder's file, or None: nothing is recorded.
        inspect: Where to serve the tree of its interrupts, or None.
    """

    accel: str = "auto"
    inject: str = "auto"
    hz: float = _HZ
    ticks: int = round(_SECONDS * _HZ)
    input: str | None = None
    output: str | None = None
    trace: str = "off"
    record: str | None = None
    inspect: str | None = None


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"not a number above 0: {text}")
    return value


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a whole number: {text}") from None
    if value < 0:
        raise argparse.ArgumentTypeError(f"not 0 or more: {text}")
    return value


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line (``sys.argv`` by default). Exits with status 2 and a usage line when it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.vmm",
        description="Boot a small guest on KVM or Unicorn; every device is a coroutine, every interrupt an irqfd."
        " `python -m examples.vmm linux --help` is about booting Linux instead.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--accel", choices=("auto", "kvm", "unicorn"), default="auto", help="the CPU; auto: KVM where it is usable")
    add(
        "--inject",
        choices=("auto", "offload", "fast", "queue"),
        default="auto",
        help="how interrupts get there: the kernel's irqfd (KVM only), try_inject from the top half, or the work queue; "
        "auto: offload on KVM, fast on Unicorn",
    )
    add("--hz", type=_positive, default=_HZ, metavar="N", help="timer ticks per second (default: %(default)g)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--seconds", type=_positive, metavar="S", help=f"how long the timer ticks (default: {_SECONDS:g})"
    )
    length.add_argument("--ticks", type=_count, metavar="N", help="the same as a number of ticks")
    add("--input", metavar="FILE", help="what the serial receiver gets; - is standard input, to its end")
    add("--output", metavar="FILE", help="where the guest's console goes (default: standard output)")
    add("--trace", choices=("console", "json", "off"), default="off", help="show structlog events on standard error")
    add("--record", metavar="FILE", help="remember each step of the last interrupts; see `aioirqfd trace FILE`")
    add("--inspect", metavar="PATH", help="where to serve the tree of its interrupts, for `aioirqfd inspect` and `top`")
    given = parser.parse_args(arguments)
    seconds: float = given.seconds or _SECONDS
    if given.ticks is None and not math.isfinite(seconds * given.hz):
        parser.error(
            f"--seconds {seconds:g} at --hz {given.hz:g} are too many ticks to count; make one of them smaller"
        )
    ticks: int = given.ticks if given.ticks is not None else max(1, round(seconds * given.hz))
    return Options(
        given.accel,
        given.inject,
        given.hz,
        ticks,
        given.input,
        given.output,
        given.trace,
        given.record,
        given.inspect,
    )
