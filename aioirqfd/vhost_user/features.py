"""Feature bits: what the two sides of the socket, and the driver and the device, may agree on."""

from __future__ import annotations

import enum


class VirtioFeature(enum.IntFlag):
    """Bits of ``GET_FEATURES`` and ``SET_FEATURES`` that do not depend on the kind of device.

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


class ProtocolFeature(enum.IntFlag):
    """Bits of ``GET_PROTOCOL_FEATURES`` and ``SET_PROTOCOL_FEATURES``.

    Source: vhost-user, section "Protocol features". ``BACKEND_*`` were called ``SLAVE_*`` in older texts.
    """

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
