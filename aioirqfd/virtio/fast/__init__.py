"""What of a virtqueue is served in C, and its pure-Python twin, which leaves it all to Python; the choice is as in :mod:`aioirqfd.counter`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aioirqfd.counter import IMPLEMENTATION

if TYPE_CHECKING or IMPLEMENTATION == "python":
    from aioirqfd.virtio.fast._python import Kicks, Transfer, begin, walk
else:
    try:
        from aioirqfd.virtio.fast._native import Kicks, Transfer, begin, walk
    except ImportError:
        from aioirqfd.virtio.fast._python import Kicks, Transfer, begin, walk

__all__ = ["Kicks", "Transfer", "begin", "walk"]
