"""What is served with one call of a queue, and what :meth:`VirtQueue.transfer <aioirqfd.virtio.virtqueue.VirtQueue.transfer>` says of it."""

from __future__ import annotations

from typing import Final

BATCH: Final = 64
"""The most requests that are answered with one call."""
BATCH_BYTES: Final = 1 << 18
"""With as many bytes moved, the driver is told what is done before more is begun: it has something to do meanwhile."""
COUNT: Final = 0xFF
"""In what :meth:`VirtQueue.transfer` returns: how many requests."""
RESTED: Final = 1 << 8
"""The ring was empty then, and the driver knows that it is to kick."""
CALL: Final = 1 << 9
"""With RESTED: it wants to hear of it."""
MORE: Final = 1 << 10
"""With RESTED: there is a request already for which no kick may come."""
WORK: Final = 16
"""From this bit on: how much work it was, as buffers walked and pages moved."""
PAGE_SHIFT: Final = 12
