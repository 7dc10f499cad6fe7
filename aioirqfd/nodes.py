"""What an object shows of itself to whoever looks at a running program: a node of the tree that :mod:`aioirqfd.inspect` reads.

It sits near the bottom of the house, because every floor gives nodes, and it knows of none. A node is a mapping from names to values
that ``json`` takes, and to what is only made when it is asked for: a :class:`Child`, which a reader sees as deep as it looks, a
:class:`Detail`, which it sees by its own path alone, a :class:`Setting`, which it may write.

What must hold: nothing is computed while nobody asks, and nothing lives longer for being here. So what is registered is a weak
reference and a plain function, which makes the node of the object that it is given. Tempting, and wrong: a bound method, or a
closure, which would keep its object.
"""

from __future__ import annotations

import enum
import itertools
import math
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

MORE: Final = "..."
"""In place of what lies deeper than was asked for."""
EACH: Final = "*"
"""In a path: every child."""
_T = TypeVar("_T")


class NodeError(LookupError):
    """There is no such node, or it cannot be written."""


@final
class Child:
    """A part of a node that is made when it is asked for.

    Args:
        give: Makes it: another node, or a value.
    """

    __slots__ = ("give",)

    def __init__(self, give: Callable[[], object]) -> None:
        self.give: Final = give


@final
class Detail:
    """The same, but shown only to whoever asks for it by its own path."""

    __slots__ = ("give",)

    def __init__(self, give: Callable[[], object]) -> None:
        self.give: Final = give


@final
class Setting:
    """A value that may be written.

    Args:
        value: What it is now.
        put: Sets it; raises a ValueError for what it cannot be.
    """

    __slots__ = ("put", "value")

    def __init__(self, value: object, put: Callable[[object], None]) -> None:
        self.value: Final = value
        self.put: Final = put


_WORDS: Final = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}


def switched(name: str, value: object) -> bool:
    """A setting that is on or off, from what somebody has written: a boolean, or a word for one.

    Raises:
        ValueError: It is neither; the message says what there is.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _WORDS:
        return _WORDS[value.lower()]
    raise ValueError(f"{name} is one of {', '.join(_WORDS)}, not {value!r}")


# -- reading ---------------------------------------------------------------------------------------------------------


def split(path: str) -> tuple[str, ...]:
    """The names of a path: ``managers/0/irqfds``; the empty one is the root's."""
    return tuple(name for name in path.split("/") if name)


def look(node: object, path: Sequence[str], depth: int | None = None) -> object:
    """What is at a path, as a value that ``json`` takes.

    Args:
        node: Where the path begins.
        path: Names; ``*`` is each child of which the rest of the path is there.
        depth: How many levels of children are shown below the path, 0 or more; None: all.

    Raises:
        NodeError: There is no such node.
    """
    node = _given(node)
    if not path:
        return _shown(node, depth)
    name, rest = path[0], path[1:]
    if name != EACH:
        return look(child(node, name), rest, depth)
    found: dict[str, object] = {}
    for key, value in cast("Mapping[object, object]", node).items() if isinstance(node, Mapping) else ():
        try:
            found[str(key)] = look(value, rest, depth)
        except NodeError:
            continue
        except Exception as error:
            found[str(key)] = {"error": repr(error)}  # as in _shown()
    return found


def put(node: object, path: Sequence[str], value: object) -> None:
    """Write a setting.

    Raises:
        NodeError: There is none at this path.
        ValueError: It cannot be this.
    """
    for name in path:
        node = child(_given(node), name)
    if not isinstance(node, Setting):
        raise NodeError(f"{'/'.join(path)} can be read only")
    node.put(value)


def child(node: object, name: str) -> object:
    """A child, as it stands in its node.

    Raises:
        NodeError: There is none of that name.
    """
    if isinstance(node, Mapping):
        names = {str(key): value for key, value in cast("Mapping[object, object]", node).items()}
        if name in names:
            return names[name]
        raise NodeError(f"there is no {name!r}, only {', '.join(names) or 'nothing'}")
    raise NodeError(f"there is no {name!r}: it has no parts")


def _given(node: object) -> object:
    return node.give() if isinstance(node, (Child, Detail)) else node.value if isinstance(node, Setting) else node


def _shown(node: object, depth: int | None) -> object:
    if not isinstance(node, Mapping):
        return plain(node)
    found: dict[str, object] = {}
    for key, value in cast("Mapping[object, object]", node).items():
        if isinstance(value, Detail):
            continue
        if isinstance(value, Child) and depth == 0:
            found[str(key)] = MORE
            continue
        try:
            inner = _given(value)
            less = None if depth is None else depth - isinstance(value, Child)
            found[str(key)] = _shown(inner, less)
        except Exception as error:
            # A sink's or a device's own code: the rest of the tree is not to suffer for it.
            found[str(key)] = {"error": repr(error)}
    return found


def plain(value: object) -> object:
    """The same as a value that ``json`` takes: what it does not take, in words."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, enum.Enum):
        return int(value.value) if isinstance(value, enum.Flag) else value.name
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in cast("Mapping[object, object]", value).items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(one) for one in cast("Sequence[object]", value)]
    return counts(value) if is_dataclass(value) else repr(value)


def counts(statistics: object) -> dict[str, object]:
    """The fields of a dataclass, as those that ``statistics()`` returns."""
    return {field.name: plain(getattr(statistics, field.name)) for field in fields(cast("Any", statistics))}


# -- what there is ---------------------------------------------------------------------------------------------------


@final
class Entry:
    """One object that is in the tree.

    Attributes:
        kind: Where: ``managers``, say.
        key: Its name there.
    """

    __slots__ = ("_give", "_loop", "_thing", "key", "kind")

    def __init__(
        self,
        kind: str,
        key: str,
        thing: weakref.ref[Any],
        give: Callable[[Any], Mapping[str, object]],
        loop: Callable[[Any], asyncio.AbstractEventLoop | None] | None,
    ) -> None:
        self.kind: Final = kind
        self.key: Final = key
        self._thing: Final = thing
        self._give: Final = give
        self._loop: Final = loop

    @property
    def path(self) -> str:
        """Its path."""
        return f"{self.kind}/{self.key}"

    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that its node is to be made on; None: any thread may."""
        thing = self._thing()
        return None if thing is None or self._loop is None else self._loop(thing)

    def node(self) -> Mapping[str, object]:
        """Its node.

        Raises:
            NodeError: It has gone meanwhile.
        """
        thing = self._thing()
        if thing is None:
            raise NodeError(f"{self.path} has gone")
        return self._give(thing)

    def is_of(self, thing: object) -> bool:
        """Whether it is this object's."""
        return self._thing() is thing


_entries: Final[dict[tuple[str, str], Entry]] = {}
_numbers: Final[dict[str, itertools.count[int]]] = {}

# In a forked child the parent's objects are the parent's.
os.register_at_fork(after_in_child=_entries.clear)


def add(
    kind: str,
    thing: _T,
    give: Callable[[_T], Mapping[str, object]],
    *,
    name: str | None = None,
    loop: Callable[[_T], asyncio.AbstractEventLoop | None] | None = None,
) -> str:
    """Put an object into the tree, for as long as it lives. Any thread.

    Args:
        kind: Where.
        thing: The object; held weakly.
        give: Makes its node; called with it on its loop.
        name: Its name, if the program has given it one; one that is taken gets a number behind it. Else it is a number.
        loop: Says which loop it belongs to now, if to any. Called in any thread.

    Returns:
        Its key.
    """
    numbers = _numbers.setdefault(kind, itertools.count())
    key = str(next(numbers)) if name is None else name
    while True:
        where = kind, key
        # Not the entry itself in the closure: it would keep itself.
        reference = weakref.ref(thing, lambda gone, where=where: _forget(where, gone))  # type: ignore[misc]
        entry = Entry(kind, key, reference, give, loop)
        if _entries.setdefault(where, entry) is entry:
            return key
        key = str(next(numbers)) if name is None else f"{name}-{next(numbers)}"


def _forget(where: tuple[str, str], gone: object) -> None:
    entry = _entries.get(where)
    if entry is not None and entry._thing is gone:  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        _entries.pop(where, None)


def discard(thing: object) -> None:
    """Take an object out of the tree; nothing happens if it is not in there. Any thread."""
    for where, entry in _entries.copy().items():
        if entry.is_of(thing):
            _entries.pop(where, None)


def key_of(thing: object) -> str | None:
    """Under which key an object is in the tree, if it is."""
    return next((entry.key for entry in _entries.copy().values() if entry.is_of(thing)), None)


def entries() -> list[Entry]:
    """What is in the tree, oldest first."""
    return list(_entries.copy().values())


def part_of_path(text: str) -> str:
    """What can be a name, of a text that the program means for people: what a device is called, say."""
    return "".join(one if one.isprintable() and one != "/" else "-" for one in text)


def check_name(name: object, what: str) -> str | None:
    """A name that the program has given, or None.

    Raises:
        TypeError: It is no string.
        ValueError: It is empty, or cannot be part of a path: it has a ``/`` in it, or is ``*``.
    """
    if name is None:
        return None
    if not isinstance(name, str):
        raise TypeError(f"the name of {what} is a string, not {name!r}")
    if not name or "/" in name or name == EACH or not name.isprintable():
        raise ValueError(
            f"the name of {what} is part of a path: printable, not empty, without '/', and not '*'; not {name!r}"
        )
    return name
