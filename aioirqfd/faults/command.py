"""The commands of a control socket or a script, out of text: all that can be wrong with one is found here, before it does anything."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

from aioirqfd.faults.fault import FAULTS, Fault
from aioirqfd.faults.match import FaultError, Match

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

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
NUMBERS: Final = ("seed", "sleep", "requests")
"""The commands that take a number."""
NAMES: Final = ("enable", "disable", "remove", "wait")
"""The commands that take a fault's name."""
USAGE: Final = {
    "set": "set [queue=Q,..] [type=T,..] NAME=VALUE ..",
    "release": "release [queue=Q,..] [type=T,..]",
    "reset": "reset",
    "seed": "seed N",
    "sleep": "sleep SECONDS",
    "requests": "requests N [queue=Q,..] [type=T,..]",
    "status": "status [queue=Q,..] [type=T,..]",
    "on": "on KIND[,KIND ..] [MATCH=VALUE ..] do FAULT [PARAMETER=VALUE ..]",
    "enable": "enable FAULT-NAME",
    "disable": "disable FAULT-NAME",
    "remove": "remove FAULT-NAME",
    "wait": "wait FAULT-NAME [HITS]",
    "json": "json",
}
ANY: Final = "any"
"""In place of a kind: every request of the device's own."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Attributes:
        word: Its first word.
        number: What ``seed``, ``sleep``, ``requests`` and ``wait`` are told.
        settings: What is to be set.
        queues: Which queues it is for.
        types: Which types of requests it is for.
        every_type: No type was named.
        text: As it was written.
        match: Of ``on``: which requests.
        fault: Of ``on``: what is done to them.
        name: The name of a fault.
    """

    word: str
    number: float = 0
    settings: Mapping[str, float] = field(default_factory=dict[str, float])
    queues: Collection[int] = ()
    types: Collection[str] = ()
    every_type: bool = True
    text: str = ""
    match: Match | None = None
    fault: Fault | None = None
    name: str | None = None


def parse(line: str, num_queues: int, types: Collection[str]) -> Command:
    """Read a command.

    Args:
        line: The text.
        num_queues: How many queues the device has; 0: it is none with queues, and ``queue=`` and ``set`` are not for it.
        types: The types of requests that there are.

    Raises:
        ValueError: It is none; the message says why, and what it should look like.
    """
    words = line.split()
    if not words or words[0] not in USAGE:
        raise ValueError(f"no command: {line.strip()!r}; there are {', '.join(USAGE)}")
    word, *rest = words
    text = " ".join(words)
    try:
        if word == "on":
            match, fault, name = _on(rest)
            return Command(word, text=text, match=match, fault=fault, name=name)
        if word in NAMES:
            if not rest:
                raise ValueError("the name of a fault is missing")  # noqa: TRY301  told with the usage, as the others
            name, *rest = rest
            number = _number("HITS", rest.pop(0), fraction=False) if word == "wait" and rest else 1
            if rest:
                raise ValueError(f"{' '.join(rest)!r} has no place here")  # noqa: TRY301  as above
            return Command(word, number, text=text, name=name)
        return _settings(word, rest, num_queues, types, text)
    except ValueError as error:
        raise ValueError(f"{error} ({USAGE[word]})") from None


def _settings(word: str, rest: list[str], num_queues: int, there: Collection[str], text: str) -> Command:
    number = 0.0
    if word in NUMBERS:
        if not rest:
            raise ValueError("a number is missing")
        number = _number(word, rest.pop(0), fraction=word == "sleep")
    pairs = _pairs(rest)
    queues = _chosen("queue", pairs, [str(queue) for queue in range(num_queues)]) if word in SELECTS else []
    types = _chosen("type", pairs, there) if word in SELECTS else []
    settings = {name: _setting(name, value) for name, value in pairs.items()} if word == "set" else {}
    if word == "set" and not num_queues:
        raise ValueError("this device has no queues that settings are for: say what is to happen with `on`")
    if word == "set" and not settings:
        raise ValueError("nothing to set")
    if word != "set" and pairs:
        raise ValueError(f"{' '.join(pairs)!r} has no place here")
    every_type = len(types) == len(there)
    if not every_type and (wrong := settings.keys() & INTERRUPTS.keys()):
        raise ValueError(f"an interrupt has no type: {', '.join(sorted(wrong))}")
    return Command(word, number, settings, [int(queue) for queue in queues], types, every_type, text)


def parse_script(lines: Iterable[str], num_queues: int, types: Collection[str]) -> list[Command]:
    """Read a script: a command a line, ``#`` begins a comment.

    Raises:
        ValueError: A line is none; the message has its number.
    """
    commands: list[Command] = []
    for number, line in enumerate(lines, 1):
        if text := line.partition("#")[0].strip():
            try:
                commands.append(parse(text, num_queues, types))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
    return commands


# -- on --------------------------------------------------------------------------------------------------------------------


def _on(words: list[str]) -> tuple[Match, Fault, str | None]:
    """A match, a fault, and the name that it is given, if it is."""
    if "do" not in words:
        raise ValueError("`do` is missing, and a fault after it")
    at = words.index("do")
    kinds, *matches = words[:at] or [""]
    word, *parameters = words[at + 1 :] or [""]
    if not kinds or "=" in kinds:
        raise ValueError("the kind of requests is missing")
    if word not in FAULTS:
        raise ValueError(f"no fault {word!r}; there are {', '.join(FAULTS)}")
    named = _pairs(matches)
    name = named.pop("name", None)
    arguments = {name: _match_value(name, value) for name, value in named.items()}
    return (
        Match(None if kinds == ANY else kinds.split(","), **arguments),
        _fault(FAULTS[word], _pairs(parameters)),
        name,
    )


def _match_value(name: str, text: str) -> Any:
    """The value of a match's argument, or of a request's field."""
    if name in {"nth", "every", "skip", "count"}:
        return int(_number(name, text, fraction=False))
    if name in {"probability", "after", "until"}:
        return _number(name, text, fraction=True)
    if name == "content":
        return text.encode()
    if name == "where":
        raise ValueError("where is for Python; here, say fields")
    return tuple(_value(part) for part in text.split(","))


def _fault(kind: type[Fault], parameters: Mapping[str, str]) -> Fault:
    there = {one.name: str(one.type) for one in fields(kind)}
    arguments: dict[str, Any] = {}
    for name, text in parameters.items():
        if name not in there:
            raise ValueError(f"no parameter {name!r}; there {'are ' + ', '.join(there) if there else 'is none'}")
        value: int | float | str = _value(text)
        if there[name] == "float" and isinstance(value, str):
            value = float(_number(name, text, fraction=True))
        elif "int" in there[name] and not isinstance(value, int):
            raise ValueError(f"{name} is a whole number, not {text!r}")
        arguments[name] = value
    try:
        return kind(**arguments)
    except TypeError:
        missing = ", ".join(name for name in there if name not in arguments)
        raise FaultError(f"something is missing, of {missing}") from None


def _value(text: str) -> int | str:
    try:
        return int(text, 0)
    except ValueError:
        return text


# -- NAME=VALUE --------------------------------------------------------------------------------------------------------


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
