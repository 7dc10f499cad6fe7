"""The memory barrier of whoever shares memory with a driver, a ring or doorbells, in an interpreter that has none."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import threading

ORDERED: Final = platform.machine() in {"x86_64", "AMD64", "i686"}
"""Whether this machine keeps loads in order among themselves, and stores: entry and index need no fence between them."""


def fence(lock: threading.Lock) -> None:
    """Order every load and store before the call before every one after it: a full memory barrier.

    Each side writes its index and then reads whether the other wants to hear of it; were the load to overtake the
    store, both could decide to sleep and a notification would be lost. The interpreter promises nothing here, but
    taking a lock is an atomic read-modify-write, which on x86-64 is a full barrier. Elsewhere it is taken twice: what
    slips into the lock from before, or from behind, cannot pass both the first release and the second acquire.

    Args:
        lock: Any lock that nobody holds for longer than this call; some 80 ns.
    """
    lock.acquire()
    lock.release()
    if not ORDERED:
        lock.acquire()
        lock.release()
