"""How a split virtqueue lies in memory: figures that the device's and the driver's side share.

Source: virtio 1.2, section 2.7 (split virtqueues). Rings are little-endian; the code here reads them in the machine's
own order, as whole 16-bit words, so only little-endian machines are served.
"""

from __future__ import annotations

import struct
from typing import Final

DESC: Final = struct.Struct("<QIHH")
"""A descriptor: address, length, flags, next (section 2.7.5)."""
USED_ELEM: Final = struct.Struct("<II")
"""An entry of the used ring: head of the chain, bytes written (section 2.7.8)."""
DESC_SIZE: Final = 16
NEXT: Final = 1
"""Descriptor flag: the chain goes on at ``next``."""
WRITE: Final = 2
"""Descriptor flag: for the device to write; else to read."""
INDIRECT: Final = 4
"""Descriptor flag: the buffer is a table of descriptors."""
NO_INTERRUPT: Final = 1
"""Flag of the available ring: do not call, when ``EVENT_IDX`` is not agreed on (section 2.7.7)."""
NO_NOTIFY: Final = 1
"""Flag of the used ring: do not kick, when ``EVENT_IDX`` is not agreed on (section 2.7.10)."""
MAX_SIZE: Final = 32768
"""The largest size of a split virtqueue; sizes are powers of 2 (section 2.7)."""
IDX: Final = 1
"""Where ``idx`` lies in either ring, in 16-bit words (``flags`` is word 0)."""
DESC_ALIGN: Final = 16
AVAIL_ALIGN: Final = 2
USED_ALIGN: Final = 4


def avail_size(size: int) -> int:
    """Return the bytes of an available ring of ``size`` entries, ``used_event`` included."""
    return 6 + 2 * size


def used_size(size: int) -> int:
    """Return the bytes of a used ring of ``size`` entries, ``avail_event`` included."""
    return 6 + 8 * size


def used_event_word(size: int) -> int:
    """Return where ``used_event`` lies in the available ring, in 16-bit words."""
    return 2 + size


def avail_event_word(size: int) -> int:
    """Return where ``avail_event`` lies in the used ring, in 16-bit words."""
    return 2 + 4 * size
