"""A dict out of a saved state, whose values are checked as they are taken out: it may come from a file that anybody has written."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast, final

from aioirqfd.errors import SnapshotError
from aioirqfd.integers import plain

if TYPE_CHECKING:
    from collections.abc import Iterable


def text_of(data: bytes | bytearray | memoryview) -> str:
    """Bytes as ``json`` takes them: base64."""
    return base64.b64encode(data).decode()


def plain_copy(value: object, what: str) -> dict[str, object]:
    """A copy of a dict that shares nothing with it, and is what ``json`` would make of it.

    Raises:
        SnapshotError: ``json`` does not take it, or it is no dict.
    """
    if not isinstance(value, Mapping):
        raise SnapshotError(f"{what} is a dict, not {type(value).__name__}")
    try:
        copy: dict[str, object] = json.loads(json.dumps(dict(cast("Mapping[str, object]", value)), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise SnapshotError(f"{what} is not what json takes: {error}") from error
    return copy


@final
class Fields:
    """A dict, and what it is, for the errors.

    Args:
        value: The dict.
        what: Its name.
        names: Those that it has to have, no more and no fewer.

    Raises:
        SnapshotError: Here and everywhere: it is no such dict, or no such value.
    """

    __slots__ = ("_entries", "_what")

    def __init__(self, value: object, what: str, names: Iterable[str]) -> None:
        self._what: Final = what
        if not isinstance(value, Mapping):
            raise SnapshotError(f"{what} is a dict, not {type(value).__name__}")
        self._entries: Final = cast("Mapping[str, object]", value)
        if set(self._entries) != (wanted := set(names)):
            there = sorted(map(str, self._entries))
            raise SnapshotError(f"{what} has the fields {', '.join(there)}; it is to have {', '.join(sorted(wanted))}")

    def _wrong(self, name: str, wanted: str) -> SnapshotError:
        return SnapshotError(f"{self._what}: {name} is {wanted}, not {self._entries[name]!r}")

    def number(self, name: str, below: int) -> int:
        """An integer in 0..below-1."""
        found = plain(self._entries[name], below)
        if found is None:
            raise self._wrong(name, f"a number, 0..{below - 1}")
        return found

    def flag(self, name: str) -> bool:
        """True or false."""
        found = self._entries[name]
        if not isinstance(found, bool):
            raise self._wrong(name, "true or false")
        return found

    def data(self, name: str) -> bytes:
        """Bytes, from base64."""
        found = self._entries[name]
        if not isinstance(found, str):
            raise self._wrong(name, "base64 text")
        try:
            return base64.b64decode(found, validate=True)
        except (binascii.Error, ValueError) as error:
            raise self._wrong(name, "base64 text") from error

    def items(self, name: str) -> list[object]:
        """A list."""
        found = self._entries[name]
        if not isinstance(found, list):
            raise self._wrong(name, "a list")
        return cast("list[object]", found)

    def mapping(self, name: str) -> dict[str, object]:
        """A dict whose keys are text."""
        found = self._entries[name]
        if not isinstance(found, dict) or not all(isinstance(key, str) for key in cast("dict[object, object]", found)):
            raise self._wrong(name, "a dict")
        return cast("dict[str, object]", found)
