"""Snapshot and restore of an MSI-X table.

A snapshot is a plain dict that ``json`` takes::

    {"version": 1, "vectors": n, "enabled": bool, "function_mask": bool,
     "entries": [[vector, address, data, control, gsi or None, count], ...]}

Vectors that are as a reset leaves them are not listed. One with a gsi has an irqfd, whose pending interrupt and count are in
the manager's snapshot; ``count`` is what the eventfd of one without holds. It stays in the eventfd until the table is closed,
which then takes out what the snapshot has, so that it is re-raised exactly once.
"""

# pyright: reportPrivateUsage=false
# (as in irqfds.py)
from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from aioirqfd.counter import fdinfo
from aioirqfd.errors import SnapshotError
from aioirqfd.irqfd.interrupt import IOAPIC_PINS, Msi
from aioirqfd.irqfd.msix_vector import MASK_BIT, Held, MsixVector
from aioirqfd.irqfd.plain import check_integers

if TYPE_CHECKING:
    from aioirqfd.irqfd.binding import Binding
    from aioirqfd.irqfd.irqfds import Irqfds

VERSION: Final = 1
_FIELDS: Final = {"version": int, "vectors": int, "enabled": bool, "function_mask": bool, "entries": list}
_BOUNDS: Final = {"vector": 2**11, "address": 2**64, "data": 2**32, "control": 2**32, "gsi": 2**12, "count": 2**64 - 1}


@dataclass(frozen=True, slots=True)
class Entry:
    """One vector of a checked snapshot."""

    vector: int
    address: int
    data: int
    control: int
    gsi: int | None
    count: int


@dataclass(frozen=True, slots=True)
class Checked:
    """A snapshot that is well-formed and fits."""

    enabled: bool
    function_mask: bool
    entries: tuple[Entry, ...]


def take(
    irqfds: Irqfds,
    vectors: Sequence[MsixVector],
    enabled: bool,  # noqa: FBT001  a register bit
    function_mask: bool,  # noqa: FBT001  the same
) -> dict[str, object]:
    """The state of a table whose manager is paused."""
    _check_paused(irqfds)
    entries: list[list[object]] = []
    for vector in vectors:
        count = _count(vector)
        vector.captured = (count, irqfds.pauses)
        registers = (vector.address, vector.data, vector.control)
        if registers != (0, 0, MASK_BIT) or vector.gsi is not None or count:
            entries.append([vector.number, *registers, vector.gsi, count])
    return {
        "version": VERSION,
        "vectors": len(vectors),
        "enabled": enabled,
        "function_mask": function_mask,
        "entries": entries,
    }


def leave(irqfds: Irqfds, vector: MsixVector) -> None:
    """The table is closed: what a snapshot has of the eventfd's signals is the snapshot's, unless the manager went on."""
    captured, pause = vector.captured or (0, 0)
    vector.captured = None
    eventfd = vector.eventfd
    if not captured or not irqfds.routes.paused or pause != irqfds.pauses or eventfd is None or eventfd.closed:
        return
    with contextlib.suppress(BlockingIOError):
        count = eventfd.read_nowait()
        if count > captured:
            eventfd.signal(count - captured)


def check(irqfds: Irqfds, vectors: Sequence[MsixVector], state: object) -> Checked:
    """Hold a state against the table it is for; SnapshotError if it does not fit."""
    _check_paused(irqfds)
    check_integers(state)
    if not isinstance(state, Mapping) or set(cast("Mapping[object, object]", state)) != set(_FIELDS):
        raise SnapshotError(f"an MSI-X snapshot is a dict of {', '.join(sorted(_FIELDS))}, not {state!r}")
    fields = cast("Mapping[str, object]", state)
    for field, kind in _FIELDS.items():
        if type(fields[field]) is not kind:
            raise SnapshotError(f"{field} is {kind.__name__}, not {fields[field]!r}")
    if fields["version"] != VERSION:
        raise SnapshotError(f"this is version {fields['version']!r}; this package reads {VERSION}")
    if fields["vectors"] != len(vectors):
        raise SnapshotError(f"the snapshot has {fields['vectors']!r} vectors, the table {len(vectors)}")
    entries = tuple(_entry(value) for value in cast("list[object]", fields["entries"]))
    for what, values in (
        ("vector", [entry.vector for entry in entries]),
        ("gsi", [entry.gsi for entry in entries if entry.gsi is not None]),
    ):
        if len(values) != len(set(values)):
            raise SnapshotError(f"a {what} is there twice")
    for entry in entries:
        if entry.vector >= len(vectors):
            raise SnapshotError(f"there is no vector {entry.vector}")
        if entry.gsi is not None and entry.count:
            raise SnapshotError(f"vector {entry.vector}: the count of an irqfd is in the manager's snapshot")
        if entry.gsi is not None and entry.address % 4:
            raise SnapshotError(f"vector {entry.vector} has a gsi, but no message that can be sent")
    return Checked(fields["enabled"] is True, fields["function_mask"] is True, entries)


def put(
    irqfds: Irqfds,
    vectors: Sequence[MsixVector],
    checked: Checked,
    devid: int | None,
    idle: Callable[[MsixVector], object],
) -> None:
    """Put a checked state into a table that was not used; all of it, or nothing."""
    made: list[MsixVector] = []
    routed: list[int] = []
    assigned: list[Binding] = []
    try:
        for entry in checked.entries:
            vector = vectors[entry.vector]
            if vector.eventfd is None and (entry.gsi is not None or entry.count):
                vector.held = Held.made()
                made.append(vector)
            if entry.gsi is not None:
                _take(irqfds, entry, devid)
                routed.append(entry.gsi)
                assert vector.eventfd is not None
                assigned.append(irqfds.bind(vector.eventfd, gsi=entry.gsi, masked=True))
    except Exception as error:
        with contextlib.ExitStack() as undo:  # all of it, whatever one of them raises
            for vector in made:
                assert vector.eventfd is not None
                undo.callback(vector.eventfd.close)
                vector.held = Held()
            for gsi in routed:
                undo.callback(irqfds.gsis.release, gsi)
                undo.callback(irqfds.reset_route, gsi)
            for irqfd in assigned:
                undo.callback(irqfd.shut)
        if isinstance(error, SnapshotError):
            raise
        raise SnapshotError(f"the MSI-X table cannot be restored: {error}") from error
    for vector in vectors:
        vector.address, vector.data, vector.control = 0, 0, MASK_BIT
    bound = iter(assigned)
    for entry in checked.entries:
        vector = vectors[entry.vector]
        vector.address, vector.data, vector.control = entry.address, entry.data, entry.control
        if entry.gsi is not None:
            vector.gsi, vector.irqfd = entry.gsi, next(bound)
            idle(vector)
        elif entry.count:
            assert vector.eventfd is not None
            vector.eventfd.signal(entry.count)


def _take(irqfds: Irqfds, entry: Entry, devid: int | None) -> None:
    assert entry.gsi is not None
    if not irqfds.gsis.take(entry.gsi):
        raise SnapshotError(f"vector {entry.vector}: gsi {entry.gsi} is not free, or below {IOAPIC_PINS}")
    try:
        irqfds.set_route(entry.gsi, Msi(entry.address, entry.data, devid))
    except Exception:
        irqfds.gsis.release(entry.gsi)
        raise


def _check_paused(irqfds: Irqfds) -> None:
    irqfds.check_here()
    if not irqfds.routes.paused:
        raise SnapshotError("pause the manager first")


def _count(vector: MsixVector) -> int:
    """What the eventfd of a vector without irqfd holds."""
    eventfd = vector.eventfd
    if vector.bound or eventfd is None or eventfd.closed:
        return 0
    info = fdinfo(eventfd.fileno())
    count = info[0] if info is not None else 0
    return min(count, 1) if eventfd.semaphore else min(count, 2**64 - 2)


def _entry(value: object) -> Entry:
    if not isinstance(value, list) or len(cast("list[object]", value)) != len(_BOUNDS):
        raise SnapshotError(f"an entry is a list of {', '.join(_BOUNDS)}, not {value!r}")
    fields = cast("list[object]", value)
    numbers: list[int] = []
    for (name, bound), field in zip(_BOUNDS.items(), fields, strict=True):
        if name == "gsi" and field is None:
            numbers.append(-1)
        elif isinstance(field, int) and not isinstance(field, bool) and 0 <= field < bound:
            numbers.append(field)
        else:
            raise SnapshotError(f"{name} is out of range: {value!r}")
    vector, address, data, control, gsi, count = numbers
    return Entry(vector, address, data, control, None if gsi < 0 else gsi, count)
