"""How long the interrupts of one manager waited of late, by the records of a ring that is being written: for who asks a running program.

It is :mod:`aioirqfd.tracing.journey` without its objects, for it runs in the program that it looks at: what it costs, interrupts wait.
So it looks at the end of the ring alone, and reads numbers out of bytes.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, Final, final

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
_GONE: Final = frozenset({int(FlightKind.UNBOUND), int(FlightKind.OFFLOADED)})
_FAILURES: Final = frozenset({int(FlightKind.HANDLER_RAISED), int(FlightKind.FAILED), int(FlightKind.BROKEN)})
_HANDLER_BEGUN: Final = int(FlightKind.HANDLER_BEGUN)
_HANDLER_ENDED: Final = int(FlightKind.HANDLER_ENDED)
_INJECTING: Final = int(FlightKind.INJECTING)
_INJECTED: Final = int(FlightKind.INJECTED)
_DROPPED: Final = int(FlightKind.DROPPED)
_BOUND: Final = int(FlightKind.BOUND)
_STEPS: Final = (
    _BEGINNINGS
    | _GONE
    | _FAILURES
    | {_HANDLER_BEGUN, _HANDLER_ENDED, _INJECTING, _INJECTED, _DROPPED, _BOUND}
    | {int(FlightKind.DEFERRED), int(FlightKind.UNROUTED)}
)


@final
class _UnderWay:
    """An interrupt that is not injected: when it was seen (None: before what is looked at), and what a journey has of that name."""

    __slots__ = ("begun", "injecting", "taken", "told")

    def __init__(self, begun: int | None) -> None:
        self.begun = begun
        self.taken = self.told = self.injecting = False

    def add(self, kind: int) -> None:
        """One more step."""
        if kind in {_HANDLER_BEGUN, _INJECTING}:
            self.told = self.told or self.injecting
            self.taken, self.injecting = True, kind == _INJECTING
        elif kind == _HANDLER_ENDED:
            self.taken = self.told = True
            self.injecting = False
        elif kind in _FAILURES:
            self.taken, self.injecting = self.told, False


def waits(memory: memoryview, header: FlightHeader, source: int, *, since: int = 0) -> dict[tuple[int, int], list[int]]:
    """From each signal to its injection, ns, the shortest first; by gsi and eventfd.

    Args:
        memory: What the recorder writes into.
        header: Where in it the ring is.
        source: Who wrote the records that are looked at.
        since: Records before this number are left out.
    """
    under_way: dict[tuple[int, int], deque[_UnderWay]] = {}
    found: dict[tuple[int, int], list[int]] = {}
    for time_ns, _, gsi, fd, whose, kind, _, _ in _last(memory, header, since):
        if whose != source or kind not in _STEPS:
            continue
        key = gsi, fd
        waiting = under_way.setdefault(key, deque())
        if kind == _BOUND:
            found.pop(key, None)  # another irqfd of that number
        elif kind in _GONE:
            waiting.clear()
        elif kind in _BEGINNINGS:
            if not waiting or waiting[-1].taken:
                waiting.append(_UnderWay(time_ns))
        elif kind in {_INJECTED, _DROPPED}:
            begun = waiting.popleft().begun if waiting else None
            if kind == _INJECTED and begun is not None:
                found.setdefault(key, []).append(time_ns - begun)
        else:
            if not waiting:
                waiting.append(_UnderWay(None))
            waiting[0].add(kind)
            if kind in _FAILURES and not waiting[0].taken and len(waiting) > 1:
                waiting.pop()  # the next attempt takes both
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
