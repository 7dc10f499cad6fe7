"""The twin: what is here would be faster in C, and is left to whoever asks, as a request that C cannot serve is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, final

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence


@final
class Transfer:
    """Serves a ring's plain reads and writes of a file, if there is a faster way than a handler: here there is none.

    Args:
        desc: The descriptor table.
        avail: The available ring.
        used: The used ring.
        chains: By head, the chain that is out, or None.
        regions: Each region's first guest-physical address, and its bytes.
        inflight: The queue's part of the inflight buffer, or None.
        max_table: Bytes of the longest indirect table; 0: none are agreed on.
        event_idx: Whether ``EVENT_IDX`` is agreed on.
        fd: The file.
        size: Its bytes.
        read_at_once: The longest read that is to be made, bytes.
        write_at_once: The longest write that is to be made, bytes.
        batch: How many requests at most are published together, 1..255.
        batch_bytes: With so many bytes moved, no more are.
    """

    def __init__(
        self,
        desc: memoryview,
        avail: memoryview,
        used: memoryview,
        chains: Sequence[object],
        regions: tuple[tuple[int, memoryview], ...],
        inflight: memoryview | None,
        *,
        max_table: int,
        event_idx: bool,
        fd: int,
        size: int,
        read_at_once: int,
        write_at_once: int,
        batch: int,
        batch_bytes: int,
    ) -> None:
        pass

    def serve(self, next_avail: int, used_idx: int, unsignalled: int, force: bool, /) -> int:  # noqa: FBT001
        """Serve what can be.

        Args:
            next_avail: Where the available ring goes on.
            used_idx: Where the used ring does.
            unsignalled: How many answers were published, and not asked about yet.
            force: Call for the next answer in any case.

        Returns:
            How many requests were served (& 255); and 256: the ring was empty then, with 512: call, and 1024: it is not
            empty any more.
        """
        del next_avail, used_idx, unsignalled, force
        return 0

    def taken(self) -> tuple[int, int, int, int] | None:
        """What kicks had served since the last look.

        Returns:
            None if nothing; else how many requests, how many calls were wanted and how many were not, and how many answers
            were not asked about yet.
        """
        return None


class _Kick(Protocol):
    @property
    def gsi(self) -> int: ...


class _Call(Protocol):
    def signal(self) -> int: ...


@final
class Kicks:
    """Where the kicks of a device's queues go, gsi n being queue n's. Here to ``on_kick``, all of them.

    Args:
        on_kick: Called with the queue.
        transfers: By queue, the :class:`Transfer` that may serve it just now, or None.
        calls: By queue, the eventfd to signal then, or None.
        on_served: Called with the queue and what its transfer did, or None.
    """

    def __init__(
        self,
        on_kick: Callable[[int], object],
        transfers: list[Transfer | None],
        calls: Sequence[_Call | None],
        on_served: Callable[[int, int], object] | None = None,
    ) -> None:
        del transfers, calls, on_served
        self._on_kick = on_kick

    def try_inject(self, interrupt: _Kick, /) -> bool:
        """Serve the queue that its gsi names."""
        self._on_kick(interrupt.gsi)
        return True


def walk(
    table: memoryview, head: int, readable: memoryview, writable: memoryview, start: int, max_table: int, /
) -> tuple[list[memoryview], list[memoryview], int] | None:
    """Follow the descriptors of a virtqueue's request, if there is a faster way than its own: here there is none.

    Args:
        table: The descriptor table.
        head: The first descriptor, which is in the table.
        readable: The window: the part of the guest's memory where most of it is, read-only.
        writable: The same, writable.
        start: The window's first guest-physical address.
        max_table: Bytes of the longest indirect table; 0: none are agreed on.

    Returns:
        What is to be read, to be written, and how many bytes the latter are; None: walk yourself.
    """
    del table, head, readable, writable, start, max_table
    return None


def begin(coroutine: Coroutine[object, object, object], /) -> tuple[bool, object]:
    """Drive a coroutine up to where it waits, or to its end.

    Returns:
        Whether it has ended, and what it returned, or yielded.
    """
    try:
        return False, coroutine.send(None)
    except StopIteration as stop:
        return True, stop.value
