"""Which requests a fault is for: by kind, fields, content, number, chance and time."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

from aioirqfd.errors import IrqfdError

if TYPE_CHECKING:
    import random

    from aioirqfd.faults.request import Request

Field = int | str
Wanted = int | str | Collection[int] | Collection[str]
"""A field's value, or those that it may have."""
Content = bytes | Callable[[bytes], bool]
"""What a request's bytes begin with, or what says whether they are the ones."""


class FaultError(IrqfdError, ValueError):
    """A fault cannot be set: a match, a parameter or a command that cannot be, or one that no conforming device may do."""


KINDS: Final = {
    "register-read": ("bar", "offset", "size", "register"),
    "register-write": ("bar", "offset", "size", "register"),
    "config-read": ("offset", "size"),
    "config-write": ("offset", "size"),
    "dma-read": ("address", "size"),
    "dma-write": ("address", "size"),
    "interrupt": ("queue", "vector", "gsi"),
    "deassert": ("vector", "gsi"),
}
"""The kinds that every device of a sort has, and their fields. What a device is asked for, it names itself: "read", "flush"."""
REQUEST_FIELDS: Final = frozenset({"queue", "head", "sector", "size", "type", "opcode", "namespace", "command"})
"""Fields that a device's own requests can have; those of one device are among them, or named by it."""


@final
class Match:
    """Which requests.

    ::

        Match("write", nth=3)                          # the third write
        Match(("read", "write"), every=5, queue=1)     # every fifth of queue 1
        Match("register-read", bar=0, offset=0x1C)
        Match("interrupt", vector=2, probability=0.1, count=4)
        Match("write", content=lambda data: b"commit" in data, skip=1)

    A request counts where kind, fields, content and time are right. The rest is by this count.

    Args:
        kind: What the device says that a request is; or several; ``*`` stands for any characters, as in ``"register-*"``.
            None: every request of the device's own, but no register access, transfer or interrupt.
        nth: Only the nth that counts, from 1 on.
        every: Every so manieth.
        skip: So many of them first go by.
        count: So many at most.
        probability: Of those, each with this chance, 0..1.
        after: Seconds from when the fault was set, until which nothing counts.
        until: Seconds from then, after which nothing counts.
        content: What a request's bytes begin with, or what is asked whether they are the right ones.
        where: Is asked whether a request is one; it sees its kind and fields.
        fields: By name: the value of a field, or several.

    Raises:
        FaultError: A number is out of range.
    """

    __slots__ = (
        "after",
        "content",
        "count",
        "every",
        "fields",
        "kinds",
        "nth",
        "probability",
        "skip",
        "until",
        "where",
    )

    def __init__(
        self,
        kind: str | Collection[str] | None = None,
        *,
        nth: int | None = None,
        every: int | None = None,
        skip: int = 0,
        count: int | None = None,
        probability: float = 1.0,
        after: float = 0.0,
        until: float = math.inf,
        content: Content | None = None,
        where: Callable[[Request], bool] | None = None,
        **fields: Wanted,
    ) -> None:
        for name, value, least in (("nth", nth, 1), ("every", every, 1), ("count", count, 1), ("skip", skip, 0)):
            if value is not None and value < least:
                raise FaultError(f"{name} is {least} or more, not {value}")
        if not 0 <= probability <= 1:
            raise FaultError(f"a probability is 0..1, not {probability}")
        if not 0 <= after < until:
            raise FaultError(f"a time goes from 0 or more to something later, not from {after} to {until} s")
        self.kinds: Final = None if kind is None else (kind,) if isinstance(kind, str) else tuple(kind)
        self.nth: Final = nth
        self.every: Final = every
        self.skip: Final = skip
        self.count: Final = count
        self.probability: Final = probability
        self.after: Final = after
        self.until: Final = until
        self.content: Final = content
        self.where: Final = where
        self.fields: Final = {name: _values(value) for name, value in fields.items()}

    def __repr__(self) -> str:
        said = [] if self.kinds is None else [repr(self.kinds[0] if len(self.kinds) == 1 else self.kinds)]
        for name, usual in _USUAL.items():
            if (value := getattr(self, name)) != usual:
                said.append(f"{name}={value!r}")
        said += [f"{name}={value[0] if len(value) == 1 else value!r}" for name, value in self.fields.items()]
        return f"Match({', '.join(said)})"

    def is_about(self, request: Request) -> bool:
        """Whether kind and fields are right."""
        if self.kinds is None:
            if request.stage != "request":
                return False
        elif not any(fnmatch.fnmatchcase(request.kind, kind) for kind in self.kinds):
            return False
        fields = request.fields
        if not all(fields.get(name) in values for name, values in self.fields.items()):
            return False
        return self.where is None or self.where(request)

    def has_content(self, request: Request) -> bool:
        """Whether the content is right."""
        if self.content is None:
            return True
        data = request.content()
        return data.startswith(self.content) if isinstance(self.content, bytes) else bool(self.content(data))


_USUAL: Final[dict[str, Any]] = {
    "nth": None,
    "every": None,
    "skip": 0,
    "count": None,
    "probability": 1.0,
    "after": 0.0,
    "until": math.inf,
    "content": None,
    "where": None,
}


@final
@dataclass(slots=True)
class Tally:
    """How far a match has come.

    Attributes:
        requests: How many counted.
        hits: How many of them were meant.
    """

    requests: int = 0
    hits: int = 0

    def take(self, match: Match, request: Request, seconds: float, random: random.Random) -> bool:
        """Whether this request is meant; it is counted.

        Args:
            match: Which are.
            request: This one.
            seconds: Since the fault was set.
            random: Throws the dice, at most once, and only for one that all else is right with.
        """
        if not match.after <= seconds < match.until or not match.is_about(request) or not match.has_content(request):
            return False
        self.requests += 1
        number = self.requests - match.skip
        if number < 1 or (match.count is not None and self.hits >= match.count):
            return False
        if match.nth is not None and number != match.nth:
            return False
        if match.every is not None and number % match.every:
            return False
        if match.probability < 1 and random.random() >= match.probability:
            return False
        self.hits += 1
        return True


def _values(value: Wanted) -> tuple[Field, ...]:
    return (value,) if isinstance(value, int | str) else tuple(value)
