"""What a queue has done: in one run of its ring, and through all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from aioirqfd.virtio.virtqueue import VirtQueue


@final
@dataclass(frozen=True, slots=True)
class VirtqueueStatistics:
    """What a queue has done since it was made.

    Args:
        popped: Chains handed to the device.
        pushed: Answers given to the driver, those of :meth:`VirtQueue.push_again` among them.
        resubmitted: Of those popped, how many had been in flight when an earlier back-end died.
        notified: How often :meth:`VirtQueue.need_notify` said yes.
        suppressed: How often it said no although chains had been pushed, because the driver did not want to hear.
    """

    popped: int
    pushed: int
    resubmitted: int
    notified: int
    suppressed: int


@final
@dataclass(frozen=True, slots=True)
class VringStatistics:
    """What a queue has done since the back-end was made, through all its starts and stops.

    Attributes:
        starts: How often its ring was started.
        kicks: The sum of the driver's kicks.
        wakeups: How often the loop noticed.
        requests: Requests taken from the driver.
        answers: Requests given back.
        resubmitted: Of those taken, how many had been in flight when an earlier back-end died.
        failed: Of those given back, how many the device raised for.
        calls: Interrupts asked for, one for each batch that the driver wanted to hear of.
        suppressed: Batches that it did not want to hear of.
    """

    starts: int
    kicks: int
    wakeups: int
    requests: int
    answers: int
    resubmitted: int
    failed: int
    calls: int
    suppressed: int


Counts = tuple[int, int, int, int, int]
"""Requests, answers, resubmitted, calls, suppressed: those of a ring's own counts that go on through its runs."""
NONE: Counts = (0, 0, 0, 0, 0)


def with_run(past: Counts, queue: VirtQueue | None) -> Counts:
    """The counts of the runs before, and of one more."""
    if queue is None:
        return past
    new = queue.statistics()
    a, b, c, d, e = past
    return (
        a + new.popped,
        b + new.pushed,
        c + new.resubmitted,
        d + new.notified,
        e + new.suppressed,
    )
