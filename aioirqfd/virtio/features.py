"""Feature bits of virtio that do not depend on the kind of device."""

from __future__ import annotations

import enum
from typing import Final


class VirtioFeature(enum.IntFlag):
    """What the driver and any device may agree on.

    Source: virtio 1.2, section 6 (reserved feature bits); ``LOG_ALL`` and ``PROTOCOL_FEATURES`` are vhost's own use of
    bits that virtio leaves to the transport (vhost-user, sections "Migration" and "Communication").
    """

    NOTIFY_ON_EMPTY = 1 << 24
    LOG_ALL = 1 << 26
    ANY_LAYOUT = 1 << 27
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    ORDER_PLATFORM = 1 << 36
    RING_RESET = 1 << 40


RING_FEATURES: Final = VirtioFeature.VERSION_1 | VirtioFeature.INDIRECT_DESC | VirtioFeature.EVENT_IDX
"""What is offered for every device, beside its own features."""
