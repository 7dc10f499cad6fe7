"""The commands of :mod:`examples.chaos_blk`, out of text: all that can be wrong with one is found here, before it does anything."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

TYPES: Final = ("read", "write", "flush", "get-id", "discard", "write-zeroes", "other")
"""Types of requests."""
COMPLETIONS: Final[Mapping[str, float]] = {
    "delay": 0,
    "jitter": 0,
    "withhold": 0,
    "reorder": 0,
    "merge": 0,
    "hold": 20,
    "duplicate": 0,
    "error": 0,
    "error-percent": 0,
}
"""What can be set for the requests of a queue and a type, and how it is at first."""
INTERRUPTS: Final[Mapping[str, float]] = {
    "irq-delay": 0,
    "irq-merge": 0,
    "irq-hold": 20,
    "irq-duplicate": 0,
    "irq-withhold": 0,
    "irq-spurious": 0,
}
"""What can be set for the interrupts of a queue."""
FRACTIONS: Final = frozenset(("delay", "jitter", "hold", "error-percent", "irq-delay", "irq-hold", "irq-spurious"))
"""Milliseconds and percent; the rest are counts."""
LIMITS: Final = {"error-percent": 100, "irq-withhold": 1}
SELECTS: Final = ("set", "release", "requests", "status")
"""The commands that take ``queue=`` and ``type=``."""
USAGE: Final = {
    "set": "set [queue=Q,..] [type=T,..] NAME=VALUE ..",
    "release": "release [queue=Q,..] [type=T,..]",
    "reset": "reset",
    "seed": "seed N",
    "sleep": "sleep SECONDS",
    "requests": "requests N [queue=Q,..] [type=T,..]",
    "status": "status [queue=Q,..] [type=T,..]",
}


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Attributes:
        word: Its first word.
        number: What ``seed``, ``sleep`` and ``requests`` are told.
        settings: What is to be set.
        queues: Which queues it is for.
        types: Which types of requests it is for.
        every_type: No type was named.
        text: As it was written.
    """

    word: str
    number: float = 0
    settings: Mapping[str, float] = field(default_factory=dict)
    queues: Collection[int] = ()
    types: Collection[str] = ()
    every_type: bool = True
    text: str = ""


def parse(line: str, num_queues: int) -> Command:
    """Read a command.

    Raises:
        ValueError: It is none; the message says why, and what it should look like.
    """
    words = line.split()
    if not words or words[0] not in USAGE:
        raise ValueError(f"no command: {line.strip()!r}; there are {', '.join(USAGE)}")
    word, *rest = words
    try:
        number = 0.0
        if word in {"seed", "sleep", "requests"}:
            if not rest:
                raise ValueError("a number is missing")  # noqa: TRY301  told with the usage, as the others
            number = _number(word, rest.pop(0), fraction=word == "sleep")
        pairs = _pairs(rest)
        queues = _chosen("queue", pairs, [str(queue) for queue in range(num_queues)]) if word in SELECTS else []
        types = _chosen("type", pairs, TYPES) if word in SELECTS else []
        settings = {name: _setting(name, value) for name, value in pairs.items()} if word == "set" else {}
        if word == "set" and not settings:
            raise ValueError("nothing to set")  # noqa: TRY301
        if word != "set" and pairs:
            raise ValueError(f"{' '.join(pairs)!r} has no place here")  # noqa: TRY301
        every_type = len(types) == len(TYPES)
        if not every_type and (wrong := settings.keys() & INTERRUPTS.keys()):
            raise ValueError(f"an interrupt has no type: {', '.join(sorted(wrong))}")  # noqa: TRY301
    except ValueError as error:
        raise ValueError(f"{error} ({USAGE[word]})") from None
    return Command(word, number, settings, [int(queue) for queue in queues], types, every_type, " ".join(words))


def parse_script(lines: Iterable[str], num_queues: int) -> list[Command]:
    """Read a script: a command a line, ``#`` begins a comment.

    Raises:
        ValueError: A line is none; the message has its number.
    """
    commands: list[Command] = []
    for number, line in enumerate(lines, 1):
        if text := line.partition("#")[0].strip():
            try:
                commands.append(parse(text, num_queues))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
    return commands


def _pairs(words: Iterable[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is not NAME=VALUE")
        if name in pairs:
            raise ValueError(f"{name} is there twice")
        pairs[name] = value
    return pairs


def _chosen(name: str, pairs: dict[str, str], there: Collection[str]) -> list[str]:
    if name not in pairs:
        return list(there)
    chosen = pairs.pop(name).split(",")
    if unknown := [one for one in chosen if one not in there]:
        raise ValueError(f"no {name} {', '.join(map(repr, unknown))}; there are {', '.join(there)}")
    return chosen


def _setting(name: str, text: str) -> float:
    if name not in COMPLETIONS and name not in INTERRUPTS:
        raise ValueError(f"no setting {name!r}; there are {', '.join((*COMPLETIONS, *INTERRUPTS))}")
    value = _number(name, text, fraction=name in FRACTIONS)
    if value > LIMITS.get(name, value):
        raise ValueError(f"{name} is at most {LIMITS[name]}, not {text}")
    return value


def _number(name: str, text: str, *, fraction: bool) -> float:
    try:
        value = float(text) if fraction else int(text)
    except ValueError:
        value = -1
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is a {'number' if fraction else 'whole number'} from 0 on, not {text!r}")
    return value
