"""Transfer: a ring's plain reads and writes of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Sequence


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
