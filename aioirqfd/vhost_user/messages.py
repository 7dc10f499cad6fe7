"""What travels on a vhost-user socket: request numbers and payloads, each with its bytes.

All numbers are in the machine's own byte order, without padding other than shown (vhost-user, section "Message
Specification"). Payloads are frozen; ``unpack`` is strict, so what it returns packs to the same bytes again.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import ClassVar, Final, Self, final

from aioirqfd.vhost_user.errors import VhostUserProtocolError

MAX_REGIONS: Final = 8
"""Regions, and so fds, that one ``SET_MEM_TABLE`` may carry ("Memory regions description")."""
MAX_CONFIG: Final = 256
"""Bytes of configuration space that one message may carry: the largest that front-ends send."""
NO_FD: Final = 1 << 8
"""The bit of a vring fd payload that says "no fd with this message" (``SET_VRING_KICK``)."""


class Request(enum.IntEnum):
    """What the front-end asks of the back-end (section "Front-end message types")."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


class BackendRequest(enum.IntEnum):
    """What the back-end asks of the front-end, on the socket that ``SET_BACKEND_REQ_FD`` brought."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5


def _pack(form: struct.Struct, *values: int) -> bytes:
    try:
        return form.pack(*values)
    except struct.error as error:
        raise VhostUserProtocolError(f"a value does not fit its field: {values}") from error


def _unpack(form: struct.Struct, data: bytes, what: str) -> tuple[int, ...]:
    if len(data) != form.size:
        raise VhostUserProtocolError(f"{what} has {form.size} bytes, not {len(data)}")
    return form.unpack(data)


def _no_padding(padding: int, what: str) -> None:
    if padding:
        raise VhostUserProtocolError(f"the padding of {what} is not zero")


@final
@dataclass(frozen=True, slots=True)
class U64:
    """One number: features, a status, an acknowledgement (0 is success).

    Args:
        value: 0..2**64-1.
    """

    value: int
    _FORM: ClassVar[struct.Struct] = struct.Struct("=Q")

    def pack(self) -> bytes:
        """Return 8 bytes."""
        return _pack(self._FORM, self.value)

    @classmethod
    def unpack(cls, data: bytes, /) -> Self:
        """Read 8 bytes."""
        (value,) = _unpack(cls._FORM, data, "a number")
        return cls(value)


@final
@dataclass(frozen=True, slots=True)
class VringState:
    """A number for one vring: its size, its base, whether it is enabled.

    Args:
        index: The vring, 0..2**32-1; whether there is such a vring is for the back-end to check.
        num: The number, 0..2**32-1.
    """

    index: int
    num: int
    _FORM: ClassVar[struct.Struct] = struct.Struct("=II")

    def pack(self) -> bytes:
        """Return 8 bytes."""
        return _pack(self._FORM, self.index, self.num)

    @classmethod
    def unpack(cls, data: bytes, /) -> Self:
        """Read 8 bytes."""
        index, num = _unpack(cls._FORM, data, "a vring state")
        return cls(index, num)


@final
@dataclass(frozen=True, slots=True)
class VringAddr:
    """Where a vring lies, in the front-end's own (user) addresses.

    Args:
        index: The vring.
        flags: Bit 0: log writes to the used ring (``VHOST_VRING_F_LOG``).
        descriptor: User address of the descriptor table.
        used: User address of the used ring.
        available: User address of the available ring.
        log: Guest-physical address that used-ring writes are logged at.
    """

    index: int
    flags: int
    descriptor: int
    used: int
    available: int
    log: int = 0
    _FORM: ClassVar[struct.Struct] = struct.Struct("=IIQQQQ")

    def pack(self) -> bytes:
        """Return 40 bytes."""
        return _pack(self._FORM, self.index, self.flags, self.descriptor, self.used, self.available, self.log)

    @classmethod
    def unpack(cls, data: bytes, /) -> Self:
        """Read 40 bytes."""
        index, flags, descriptor, used, available, log = _unpack(cls._FORM, data, "a vring address")
        return cls(index, flags, descriptor, used, available, log)


@final
@dataclass(frozen=True, slots=True)
class VringFd:
    """Which vring the eventfd of a ``SET_VRING_KICK``, ``_CALL`` or ``_ERR`` is for.

    Args:
        index: The vring, 0..255.
        has_fd: Whether an fd comes with the message; without one the ring is polled (bit 8 of the number is set).
    """

    index: int
    has_fd: bool = True
    _FORM: ClassVar[struct.Struct] = struct.Struct("=Q")

    def pack(self) -> bytes:
        """Return 8 bytes."""
        if not 0 <= self.index < NO_FD:
            raise VhostUserProtocolError(f"a vring index is 0..255 here, not {self.index}")
        return self._FORM.pack(self.index | (0 if self.has_fd else NO_FD))

    @classmethod
    def unpack(cls, data: bytes, /) -> Self:
        """Read 8 bytes; bits 9..63 must be clear."""
        (value,) = _unpack(cls._FORM, data, "a vring index")
        if value >= NO_FD << 1:
            raise VhostUserProtocolError(f"a vring index with unknown bits: {value:#x}")
        return cls(value & (NO_FD - 1), not value & NO_FD)


@final
@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """One region of the guest's memory.

    Args:
        guest_address: Guest-physical address, 0..2**64-1.
        size: Bytes.
        user_address: Where the front-end has it mapped; vring addresses are in these terms.
        mmap_offset: Where it begins in the fd.
    """

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int
    FORM: ClassVar[struct.Struct] = struct.Struct("=QQQQ")

    def pack(self) -> bytes:
        """Return 32 bytes."""
        return _pack(self.FORM, self.guest_address, self.size, self.user_address, self.mmap_offset)

    @classmethod
    def unpack(cls, data: bytes, /) -> Self:
        """Read 32 bytes."""
        guest_address, size, user_address, mmap_offset = _unpack(cls.FORM, data, "a memory region")
        return cls(guest_address, size, user_address, mmap_offset)


@final
@dataclass(frozen=True, slots=True)
class MemoryTable:
    """All of the guest's memory (``SET_MEM_TABLE``); the fds come in the same order.

    Args:
        regions: 0..8 regions.
    """

    regions: tuple[MemoryRegion, ...]
    _FORM: ClassVar[struct.Struct] = struct.Struct("=II")

    def pack(self) -> bytes:
        """Return 8 bytes and 32 for each region."""
        if len(self.regions) > MAX_REGIONS:
            raise VhostUserProtocolError(f"a memory table has at most {MAX_REGIONS} regions, not {len(self.regions)}")
        return _pack(self._FORM, len(self.regions), 0) + b"".join(region.pack() for region in self.regions)

    @classmethod
    def unpack(cls, data: bytes, /) -> Self:
        """Read the count and exactly that many regions."""
        count, padding = _unpack(cls._FORM, data[: cls._FORM.size], "the head of a memory table")
        _no_padding(padding, "a memory table")
        step = MemoryRegion.FORM.size
        if count > MAX_REGIONS or len(data) != cls._FORM.size + count * step:
            raise VhostUserProtocolError(f"a memory table of {count} regions in {len(data)} bytes")
        return cls(tuple(MemoryRegion.unpack(data[at : at + step]) for at in range(cls._FORM.size, len(data), step)))


@final
@dataclass(frozen=True, slots=True)
class SingleRegion:
    """One region to add or to take away (``ADD_MEM_REG``, ``REM_MEM_REG``)."""

    region: MemoryRegion
    _PADDING: ClassVar[int] = 8

    def pack(self) -> bytes:
        """Return 40 bytes."""
        return bytes(self._PADDING) + self.region.pack()

    @classmethod
    def unpack(cls, data: bytes, /) -> Self:
        """Read 40 bytes; what the padding holds does not matter, it is a C struct's hole."""
        return cls(MemoryRegion.unpack(data[cls._PADDING :]))


@final
@dataclass(frozen=True, slots=True)
class ConfigSpace:
    """A piece of the device's configuration space.

    Args:
        offset: Where it begins, bytes.
        flags: 0: the guest writes writable fields; 1: live migration, which may write all.
        data: The bytes, at most 256. In a ``GET_CONFIG`` request only their number counts.
    """

    offset: int
    flags: int
    data: bytes
    _FORM: ClassVar[struct.Struct] = struct.Struct("=III")

    def pack(self) -> bytes:
        """Return 12 bytes and the data."""
        if len(self.data) > MAX_CONFIG:
            raise VhostUserProtocolError(
                f"at most {MAX_CONFIG} bytes of configuration in a message, not {len(self.data)}"
            )
        return _pack(self._FORM, self.offset, len(self.data), self.flags) + self.data

    @classmethod
    def unpack(cls, data: bytes, /) -> Self:
        """Read 12 bytes, and as many as they say."""
        head = cls._FORM.size
        offset, size, flags = _unpack(cls._FORM, data[:head], "the head of a configuration message")
        if size > MAX_CONFIG or len(data) != head + size:
            raise VhostUserProtocolError(f"a configuration message of {size} bytes in {len(data)}")
        return cls(offset, flags, data[head:])


@final
@dataclass(frozen=True, slots=True)
class Inflight:
    """The buffer that remembers requests in flight across a restart (section "Inflight I/O tracking").

    Args:
        mmap_size: Bytes; 0 in a request, and in a reply that says "could not".
        mmap_offset: Where it begins in the fd.
        num_queues: 0..65535.
        queue_size: Descriptors of each queue, 0..65535.
    """

    mmap_size: int
    mmap_offset: int
    num_queues: int
    queue_size: int
    # The text lists 20 bytes; front-ends send and expect the C struct, which is rounded up to 24.
    _FORM: ClassVar[struct.Struct] = struct.Struct("=QQHH4x")
    BARE: ClassVar[int] = 20

    def pack(self) -> bytes:
        """Return 24 bytes."""
        return _pack(self._FORM, self.mmap_size, self.mmap_offset, self.num_queues, self.queue_size)

    @classmethod
    def unpack(cls, data: bytes, /) -> Self:
        """Read 24 bytes, or 20 without the C struct's tail."""
        if len(data) == cls.BARE:
            data += bytes(cls._FORM.size - cls.BARE)
        mmap_size, mmap_offset, num_queues, queue_size = _unpack(cls._FORM, data, "an inflight description")
        return cls(mmap_size, mmap_offset, num_queues, queue_size)


@final
@dataclass(frozen=True, slots=True)
class Raw:
    """The bytes of a payload this package gives no meaning to: requests it can only refuse.

    Args:
        data: The bytes as they came.
    """

    data: bytes

    def pack(self) -> bytes:
        """Return the bytes."""
        return self.data

    @classmethod
    def unpack(cls, data: bytes, /) -> Self:
        """Take any bytes."""
        return cls(data)


AnyPayload = U64 | VringState | VringAddr | VringFd | MemoryTable | SingleRegion | ConfigSpace | Inflight | Raw
"""Every payload there is."""


@final
@dataclass(frozen=True, slots=True)
class Message:
    """One message, request or reply, of either side.

    Args:
        request: What it is about; a plain int where the number is not known.
        payload: Its payload, or None for an empty one.
        fds: The fds that belong to it. Whoever holds the message owns them.
        need_reply: The sender wants an acknowledgement (protocol feature ``REPLY_ACK``; header bit 3).
        reply: It is a reply (header bit 2).
        surplus_fds: Fds that came along without a purpose where the specification says to put up with them
            (``REM_MEM_REG``): close them.
    """

    request: Request | BackendRequest | int
    payload: AnyPayload | None = None
    fds: tuple[int, ...] = ()
    need_reply: bool = False
    reply: bool = False
    surplus_fds: tuple[int, ...] = ()
