"""A file whose plain reads and writes a queue serves by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

READ_AT_ONCE: Final = 1 << 22
WRITE_AT_ONCE: Final = 1 << 18


@final
@dataclass(frozen=True, slots=True)
class BlockFile:
    """What a block device's reads and writes (virtio 1.2, section 5.2.6: types IN and OUT) come down to: a file.

    A device that has one (:attr:`Device.file`) is asked for all other requests, and for those that

    - the page cache cannot answer at once;
    - lie partly or wholly beyond the end, or are no multiple of 512 bytes;
    - write to a file that is read-only, or more than ``write_at_once``, or read more than ``read_at_once``;
    - write for a driver that did not take ``VIRTIO_BLK_F_FLUSH``: what is answered must be on the disk then (5.2.6.2), and
      the page cache is not;
    - are not laid out as all drivers do: a header of 16 bytes, the data, a status of one byte.

    Where the C module was not built it is asked for all of them.

    Args:
        fd: The file or block device; stays the caller's, and open while the device is served.
        size: Its bytes, a multiple of 512.
        writable: Whether the driver may write.
        read_at_once: The longest read that is copied from the page cache on the loop's thread, bytes.
        write_at_once: The longest write that goes to the page cache on the loop's thread, bytes.
    """

    fd: int
    size: int
    writable: bool = True
    read_at_once: int = READ_AT_ONCE
    write_at_once: int = WRITE_AT_ONCE

    def __post_init__(self) -> None:
        if min(self.fd, self.size, self.read_at_once, self.write_at_once) < 0 or self.size % 512:
            raise ValueError(f"not a file of whole sectors: {self}")
