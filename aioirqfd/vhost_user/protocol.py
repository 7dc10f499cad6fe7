"""The vhost-user codec, without I/O: bytes and fds in, messages out, and back; for either side of the socket.

Reading from a socket: receive **at most** :attr:`MessageParser.wanted` bytes at a time, with room for :data:`MAX_FDS`
fds, and feed what came. The fds of a message travel with its first byte, and a longer read can glue a message without
fds to the next one's fds, so that nobody could say whose they are.

Whatever happens, each fd that was fed is either in a message that was handed out or in what :meth:`MessageParser.close`
returns; none is closed here and none is forgotten.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, final

from aioirqfd.serving.framing import Frames
from aioirqfd.vhost_user.errors import VhostUserProtocolError
from aioirqfd.vhost_user.messages import (
    MAX_CONFIG,
    MAX_REGIONS,
    U64,
    AnyPayload,
    BackendRequest,
    ConfigSpace,
    Inflight,
    MemoryTable,
    Message,
    Raw,
    Request,
    SingleRegion,
    VringAddr,
    VringFd,
    VringState,
)

HEADER: Final = struct.Struct("=III")
"""Request, flags, payload size (section "Header")."""
MAX_FDS: Final = MAX_REGIONS
"""The most fds a message may carry."""
MAX_PAYLOAD: Final = 4096
"""The most bytes of a payload this package does not know; those it knows have their own, smaller bounds."""
VERSION: Final = 0x1
"""The protocol's version, in bits 0 and 1 of the flags."""
_VERSION_MASK: Final = 0x3
_REPLY: Final = 1 << 2
_NEED_REPLY: Final = 1 << 3
_KNOWN_FLAGS: Final = _VERSION_MASK | _REPLY | _NEED_REPLY


class Direction(enum.Enum):
    """Which of the four kinds of messages a parser reads.

    ``REQUEST`` and ``REPLY`` are the main socket's, seen by the back-end and by the front-end; ``BACKEND_REQUEST`` and
    ``BACKEND_REPLY`` the ones of the socket that ``SET_BACKEND_REQ_FD`` brings, seen by the front-end and by the
    back-end.
    """

    REQUEST = "request"
    REPLY = "reply"
    BACKEND_REQUEST = "backend_request"
    BACKEND_REPLY = "backend_reply"


@final
@dataclass(frozen=True, slots=True)
class _Form:
    """What a payload may look like: its type (None: empty), sizes in bytes, and numbers of fds."""

    kind: type[AnyPayload] | None
    sizes: range | tuple[int, ...]
    fds: tuple[int, ...] = (0,)
    surplus: int = 0


_EMPTY: Final = _Form(None, (0,))
_ONE_FD: Final = _Form(None, (0,), fds=(1,))
_NUMBER: Final = _Form(U64, (8,))
_STATE: Final = _Form(VringState, (8,))
_VRING_FD: Final = _Form(VringFd, (8,), fds=(0, 1))
_CONFIG: Final = _Form(ConfigSpace, range(12, 12 + MAX_CONFIG + 1))
_INFLIGHT_SIZES: Final = (Inflight.BARE, 24)
_UNKNOWN: Final = _Form(Raw, range(MAX_PAYLOAD + 1), fds=tuple(range(MAX_FDS + 1)))

_REQUESTS: Final[Mapping[int, _Form]] = {
    Request.GET_FEATURES: _EMPTY,
    Request.SET_FEATURES: _NUMBER,
    Request.SET_OWNER: _EMPTY,
    Request.RESET_OWNER: _EMPTY,
    Request.SET_MEM_TABLE: _Form(
        MemoryTable, range(8, 8 + 32 * MAX_REGIONS + 1, 32), fds=tuple(range(MAX_REGIONS + 1))
    ),
    Request.SET_VRING_NUM: _STATE,
    Request.SET_VRING_ADDR: _Form(VringAddr, (40,)),
    Request.SET_VRING_BASE: _STATE,
    Request.GET_VRING_BASE: _STATE,
    Request.SET_VRING_KICK: _VRING_FD,
    Request.SET_VRING_CALL: _VRING_FD,
    Request.SET_VRING_ERR: _VRING_FD,
    Request.GET_PROTOCOL_FEATURES: _EMPTY,
    Request.SET_PROTOCOL_FEATURES: _NUMBER,
    Request.GET_QUEUE_NUM: _EMPTY,
    Request.SET_VRING_ENABLE: _STATE,
    Request.SET_BACKEND_REQ_FD: _ONE_FD,
    Request.GET_CONFIG: _CONFIG,
    Request.SET_CONFIG: _CONFIG,
    Request.GET_INFLIGHT_FD: _Form(Inflight, _INFLIGHT_SIZES),
    Request.SET_INFLIGHT_FD: _Form(Inflight, _INFLIGHT_SIZES, fds=(1,)),
    Request.RESET_DEVICE: _EMPTY,
    Request.GET_MAX_MEM_SLOTS: _EMPTY,
    Request.ADD_MEM_REG: _Form(SingleRegion, (40,), fds=(1,)),
    Request.REM_MEM_REG: _Form(SingleRegion, (40,), surplus=1),
    Request.SET_STATUS: _NUMBER,
    Request.GET_STATUS: _EMPTY,
}
_REPLIES: Final[Mapping[int, _Form]] = {
    Request.GET_FEATURES: _NUMBER,
    Request.GET_PROTOCOL_FEATURES: _NUMBER,
    Request.GET_QUEUE_NUM: _NUMBER,
    Request.GET_VRING_BASE: _STATE,
    # A GET_CONFIG that failed is answered with an empty payload.
    Request.GET_CONFIG: _Form(ConfigSpace, (0, *_CONFIG.sizes)),
    Request.GET_INFLIGHT_FD: _Form(Inflight, _INFLIGHT_SIZES, fds=(0, 1)),
    Request.GET_MAX_MEM_SLOTS: _NUMBER,
    Request.GET_STATUS: _NUMBER,
}
# Answered with a status whether or not one is asked for. All other requests that this package can only refuse have
# replies of their own only with features that it does not offer; without these, they are requests like any other.
_ALWAYS_ACKNOWLEDGED: Final = frozenset({Request.IOTLB_MSG, Request.POSTCOPY_END})
_BACKEND_REQUESTS: Final[Mapping[int, _Form]] = {
    BackendRequest.CONFIG_CHANGE_MSG: _EMPTY,
    BackendRequest.VRING_CALL: _STATE,
    BackendRequest.VRING_ERR: _STATE,
}
_Names = Mapping[int, Request | BackendRequest]
_NAMES: Final[_Names] = {int(name): name for name in Request}
_BACKEND_NAMES: Final[_Names] = {int(name): name for name in BackendRequest}
# For each direction: the numbers' names, their forms, and the form of all others.
_FORMS: Final[Mapping[Direction, tuple[_Names, Mapping[int, _Form], _Form]]] = {
    Direction.REQUEST: (_NAMES, _REQUESTS, _UNKNOWN),
    Direction.REPLY: (_NAMES, _REPLIES, _NUMBER),
    Direction.BACKEND_REQUEST: (_BACKEND_NAMES, _BACKEND_REQUESTS, _UNKNOWN),
    Direction.BACKEND_REPLY: (_BACKEND_NAMES, {}, _NUMBER),
}
_IS_REPLY: Final = frozenset({Direction.REPLY, Direction.BACKEND_REPLY})


def direction_of(message: Message) -> Direction:
    """Say which way a message goes; a request number that is not known is taken for the main socket's."""
    if isinstance(message.request, BackendRequest):
        return Direction.BACKEND_REPLY if message.reply else Direction.BACKEND_REQUEST
    return Direction.REPLY if message.reply else Direction.REQUEST


def encode(message: Message) -> bytes:
    """Return the bytes of a message; send them with ``message.fds`` in one ``sendmsg``.

    Raises:
        VhostUserProtocolError: The payload is not the one for this request, a value does not fit, or the number of fds
            is wrong.
    """
    _, forms, default = _FORMS[direction_of(message)]
    form = forms.get(message.request, default)
    payload = message.payload
    if payload is not None and form.kind is not type(payload):
        raise VhostUserProtocolError(f"{message.request!r} carries {_name(form)}, not {type(payload).__name__}")
    data = b"" if payload is None else payload.pack()
    if len(data) not in form.sizes:
        raise VhostUserProtocolError(f"{message.request!r} cannot have a payload of {len(data)} bytes")
    _check_fds(message.request, form, payload, len(message.fds))
    flags = VERSION | (_REPLY if message.reply else 0) | (_NEED_REPLY if message.need_reply else 0)
    try:
        return HEADER.pack(message.request, flags, len(data)) + data
    except struct.error as error:
        raise VhostUserProtocolError(f"a request number is 0..2**32-1, not {message.request}") from error


def has_reply(request: Request | BackendRequest | int) -> bool:
    """Whether the request is always answered with a payload of its own, so that ``need_reply`` changes nothing."""
    return not isinstance(request, BackendRequest) and request in _REPLIES


def acknowledgement(message: Message, *, ok: bool) -> Message | None:
    """Return the status reply that is due for a request, or None where none is.

    Call it once ``REPLY_ACK`` is agreed on, with True after a request that was carried out, and with False for one that
    failed, is not known, or is not served (``SET_LOG_BASE``, the IOTLB, postcopy: they come in :class:`Raw` payloads).

    Args:
        message: The request. With a reply of its own, or if it does not ask (``need_reply``), there is none.
        ok: True answers 0 (success), False 1 (failure).
    """
    asked = message.need_reply or (message.request in _ALWAYS_ACKNOWLEDGED and isinstance(message.request, Request))
    if not asked or message.reply or has_reply(message.request):
        return None
    return Message(message.request, U64(0 if ok else 1), reply=True)


def _name(form: _Form) -> str:
    return "nothing" if form.kind is None else form.kind.__name__


def _check_fds(request: int, form: _Form, payload: AnyPayload | None, count: int) -> None:
    allowed: tuple[int, ...] = form.fds
    if isinstance(payload, MemoryTable):
        allowed = (len(payload.regions),)
    elif isinstance(payload, VringFd):
        allowed = (int(payload.has_fd),)
    if count not in allowed:
        raise VhostUserProtocolError(f"{request!r} with {count} fds, not {' or '.join(map(str, allowed))}")


class _Header(NamedTuple):
    number: int
    flags: int
    form: _Form


@final
class MessageParser:
    """Turns chunks of a stream, cut anywhere, into messages.

    Args:
        direction: Which messages to expect.

    Threads: not safe; one reader.
    """

    __slots__ = ("_direction", "_forms", "_frames", "_names", "_other")

    def __init__(self, direction: Direction = Direction.REQUEST) -> None:
        self._direction = direction
        self._names, self._forms, self._other = _FORMS[direction]
        self._frames = Frames(HEADER.size, self._parse_header, max_fds=MAX_FDS, broken=VhostUserProtocolError)

    @property
    def wanted(self) -> int:
        """How much to read next: the bytes that complete the header or the payload under way.

        At least 1 once :meth:`next_message` has returned None.
        """
        return self._frames.wanted

    def feed(self, data: bytes | bytearray | memoryview, fds: Iterable[int] = ()) -> None:
        """Take a chunk, and the fds that came with it; they belong to the message that its first byte is part of.

        Never raises for what the bytes are; :meth:`next_message` does. The parser owns the fds from here on.
        """
        self._frames.feed(data, fds)

    def next_message(self) -> Message | None:
        """Return the next whole message, or None if more bytes are needed.

        Raises:
            VhostUserProtocolError: The stream breaks the protocol. From now on every call raises it; close the
                connection, and the fds that :meth:`close` returns.
        """
        payload: AnyPayload | None = None

        def accept(header: _Header, data: bytes, count: int) -> None:
            nonlocal payload
            form = header.form
            payload = form.kind.unpack(data) if data and form.kind is not None else None
            _check_fds(self._names.get(header.number, header.number), form, payload, count - min(count, form.surplus))

        frame = self._frames.next(accept)
        if frame is None:
            return None
        header, _, fds = frame
        used = len(fds) - min(len(fds), header.form.surplus)
        return Message(
            self._names.get(header.number, header.number),
            payload,
            fds[:used],
            need_reply=bool(header.flags & _NEED_REPLY),
            reply=bool(header.flags & _REPLY),
            surplus_fds=fds[used:],
        )

    def eof(self) -> None:
        """Say that the stream has ended.

        Raises:
            VhostUserProtocolError: It ended within a message, or with fds that belong to none.
        """
        self._frames.eof()

    def close(self) -> tuple[int, ...]:
        """Give back the fds that no message took, for the caller to close. Idempotent; the parser takes no more."""
        return self._frames.close()

    def _parse_header(self, buffer: bytearray) -> tuple[_Header, int]:
        """Check all that the header alone tells, before a byte of payload is waited for."""
        number, flags, size = HEADER.unpack_from(buffer)
        if flags & _VERSION_MASK != VERSION:
            raise VhostUserProtocolError(f"version {flags & _VERSION_MASK} of the protocol, not {VERSION}")
        if flags & ~_KNOWN_FLAGS:
            raise VhostUserProtocolError(f"unknown header flags {flags:#x}")
        if bool(flags & _REPLY) != (self._direction in _IS_REPLY):
            raise VhostUserProtocolError(f"a {'reply' if flags & _REPLY else 'request'} on a stream of the other kind")
        form = self._forms.get(number, self._other)
        if size not in form.sizes:
            raise VhostUserProtocolError(f"request {number} with a payload of {size} bytes")
        return _Header(number, flags, form), size
