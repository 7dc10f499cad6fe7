"""How long the interrupts of one manager waited of late, by the records of a ring that is being written: for who asks a running program.

It is :mod:`aioirqfd.tracing.journey` without its objects, for it runs in the program that it looks at: what it costs, interrupts wait.
So it looks at the end of the ring alone, and reads numbers out of bytes.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, Final

from aioirqfd.flight import FlightKind
from aioirqfd.tracing.flight_format import HEAD, RECORD, RECORD_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aioirqfd.tracing.flight_format import FlightHeader

LOOKED_AT: Final = 4096
"""Records that are looked at: the last ones. It takes 2 to 4 ms, in which the program does nothing else."""
_RECORD: Final = Struct(f"={RECORD}")
_HEAD: Final = Struct("=Q")
_BEGINNINGS: Final = frozenset({int(FlightKind.SEEN), int(FlightKind.WAKEUP), int(FlightKind.HELD)})
_HANDLER_BEGUN: Final = int(FlightKind.HANDLER_BEGUN)
_INJECTED: Final = int(FlightKind.INJECTED)
_DROPPED: Final = int(FlightKind.DROPPED)
_BOUND: Final = int(FlightKind.BOUND)
_UNBOUND: Final = int(FlightKind.UNBOUND)
_STEPS: Final = _BEGINNINGS | {
    _HANDLER_BEGUN,
    int(FlightKind.HANDLER_ENDED),
    int(FlightKind.HANDLER_RAISED),
    int(FlightKind.DEFERRED),
    int(FlightKind.FAILED),
    _INJECTED,
    _DROPPED,
    _BOUND,
    _UNBOUND,
}


def waits(memory: memoryview, header: FlightHeader, source: int, *, since: int = 0) -> dict[tuple[int, int], list[int]]:
    """From each signal to its injection, ns, the shortest first; by gsi and eventfd.

    Args:
        memory: What the recorder writes into.
        header: Where in it the ring is.
        source: Who wrote the records that are looked at.
        since: Records before this number are left out.
    """
    # Per irqfd the interrupts that are under way: when each was seen (None: before what is looked at), and whether its handler was called.
    under_way: dict[tuple[int, int], deque[tuple[int | None, bool]]] = {}
    found: dict[tuple[int, int], list[int]] = {}
    for time_ns, _, gsi, fd, whose, kind, _, _ in _last(memory, header, since):
        if whose != source or kind not in _STEPS:
            continue
        key = gsi, fd
        waiting = under_way.setdefault(key, deque())
        if kind == _BOUND:
            found.pop(key, None)  # another irqfd of that number
        elif kind == _UNBOUND:
            waiting.clear()
        elif kind in _BEGINNINGS:
            if not waiting or waiting[-1][1]:
                waiting.append((time_ns, False))
        else:
            begun, handling = waiting.popleft() if waiting else (None, False)
            if kind == _INJECTED:
                if begun is not None:
                    found.setdefault(key, []).append(time_ns - begun)
            elif kind != _DROPPED:
                waiting.appendleft((begun, handling or kind == _HANDLER_BEGUN))
    for one in found.values():
        one.sort()
    return found


def _last(memory: memoryview, header: FlightHeader, since: int) -> Iterator[tuple[int, ...]]:
    """The last records, in order. One that is being written meanwhile is left out: its lap is not that of its place in both copies."""
    capacity = header.capacity
    total = _HEAD.unpack_from(memory, header.ring)[0]
    number = max(total - min(LOOKED_AT, capacity), min(since, total))
    while number < total:
        lap, place = divmod(number, capacity)
        count = min(total - number, capacity - place)
        at = header.ring + HEAD + place * RECORD_SIZE
        first, second = (bytes(memory[at : at + count * RECORD_SIZE]) for _ in range(2))
        wanted = lap + 1 & 0xFFFFFFFF
        if first == second:  # as nearly always
            records = _RECORD.iter_unpack(second)
            yield from (record for record in records if record[-1] == wanted)
        else:
            for before, record in zip(_RECORD.iter_unpack(first), _RECORD.iter_unpack(second), strict=True):
                if before[-1] == wanted == record[-1]:
                    yield record
        number += count
