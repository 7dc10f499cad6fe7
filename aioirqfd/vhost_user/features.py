"""Feature bits of the protocol: what the two sides of the socket may agree on."""

from __future__ import annotations

import enum

from aioirqfd.vhost_user.moved import moved


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


__getattr__ = moved(__name__, "aioirqfd.virtio.features", "VirtioFeature")
