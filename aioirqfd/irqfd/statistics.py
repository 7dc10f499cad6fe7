"""How often what happened to an irqfd, to a manager, and on a work queue."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IrqFdStatistics:
    """Counts of one irqfd since it was assigned.

    What a snapshot brought is injected by the manager that it is restored into, and was counted as a signal by the other one: there
    ``injections`` can be more than ``signals``.

    Attributes:
        signals: The sum of the counts that were taken out of its eventfd, less what was put back.
        wakeups: How often the loop noticed.
        injections: Interrupts that reached the sink (an offloaded irqfd's are the kernel's, and not counted).
        fast: Of these, how many the sink took at once.
        coalesced: Signals that shared an injection with another (row W02); those that are still owed do not count yet.
        dropped: Injections that went nowhere because the gsi had no route (rows W08, G11).
        retries: Attempts after a failure of the sink or a handler.
    """

    signals: int
    wakeups: int
    injections: int
    fast: int
    coalesced: int
    dropped: int
    retries: int


@dataclass(frozen=True, slots=True)
class WorkQueueStatistics:
    """Counts of a work queue.

    Attributes:
        maxsize: Its bound.
        queued: Items waiting now, 0..maxsize (and an item each worker may put back at the bound).
        running: Items running now, 0..workers.
        scheduled: Items queued since it was made.
        coalesced: Calls of ``schedule`` that found the item queued already.
        completed: Runs that ended.
        refused: Calls of ``schedule`` that found it full.
    """

    maxsize: int
    queued: int
    running: int
    scheduled: int
    coalesced: int
    completed: int
    refused: int


@dataclass(frozen=True, slots=True)
class IrqManagerStatistics:
    """Counts of a manager, as they are now.

    Attributes:
        irqfds: Assigned.
        offloaded: Of these, watched by the sink itself.
        held: Of these, signalled, and waiting in their eventfds until the manager resumes or its queue has room.
        broken: Of these, given up after the sink failed.
        asserted: Level-triggered lines that are up.
        dropped: Interrupts of this manager that had no route.
        queue: The work queue's.
    """

    irqfds: int
    offloaded: int
    held: int
    broken: int
    asserted: int
    dropped: int
    queue: WorkQueueStatistics
