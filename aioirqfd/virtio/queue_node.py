"""What a virtio queue shows of itself in the tree of :mod:`aioirqfd.inspect`: its ring's indices, and what is under way."""

# pyright: reportPrivateUsage=false
# (the ring's indices are nobody else's business)
from __future__ import annotations

from typing import TYPE_CHECKING

from aioirqfd.irqfd import explain
from aioirqfd.nodes import Child, counts
from aioirqfd.virtio import ring
from aioirqfd.virtio.eager import handler_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    from aioirqfd.virtio.requests import Requests
    from aioirqfd.virtio.statistics import VringStatistics
    from aioirqfd.virtio.virtqueue import VirtQueue


def of_queue(requests: Requests, statistics: VringStatistics, **said: object) -> Mapping[str, object]:
    """A queue's node.

    Args:
        requests: What is under way.
        statistics: Its counts, which bring what was served behind its back up to date.
        said: What its transport knows of it.
    """
    queue = requests.queue
    return {
        "running": queue is not None,
        "enabled": requests.enabled,
        "stopping": requests.stopping,
        **said,
        "ring": None if queue is None else _indices(queue),
        "requests": Child(lambda: {str(n): _request(one) for n, one in enumerate(requests.under_way)}),
        "statistics": counts(statistics),
    }


def _indices(queue: VirtQueue) -> Mapping[str, object]:
    """The driver's index, how far requests were taken, and how far they were given back; modulo 2**16, as in the ring."""
    queue.sync()
    return {
        "size": queue.size,
        "available": queue._avail[ring.IDX] if queue._stopped is None else queue._seen_avail,
        "taken": queue._next_avail,
        "used": queue._used_idx,
        "in_flight": queue.in_flight,
        "driver_wants_interrupts": None
        if queue._event_idx or queue._stopped is not None
        else not queue._avail[0] & ring.NO_INTERRUPT,
    }


def _request(under_way: tuple[asyncio.Task[int | None], int]) -> Mapping[str, object]:
    task, head = under_way
    return {"head": head, "stands_at": explain.standing_in(handler_of(task))}
