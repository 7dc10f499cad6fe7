"""What two sides agree on at the beginning: the version, and the capabilities in its JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final, cast, final

from aioirqfd.vfio_user.errors import VfioUserProtocolError
from aioirqfd.vfio_user.messages import MAX_DATA, VERSION

MAJOR: Final = 0
"""The protocol's major version."""
MINOR: Final = 1
"""The newest minor version that is known here."""
MAX_MAPS: Final = 65535
"""DMA mappings at one time, unless it is negotiated."""
_PAGES: Final = 4096


@final
@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one side says that it can; the defaults are those of the specification for what is not said.

    Attributes:
        max_msg_fds: File descriptors that it takes with one message.
        max_data_xfer_size: Bytes that one message may read or write.
        max_dma_maps: DMA mappings that it has, or wants, at one time.
        pgsizes: Page sizes of these, or'ed together.
        twin_socket: Commands of the server go on a socket of their own.
        write_multiple: ``REGION_WRITE_MULTI`` is understood.
        fd_index: In a server's reply with ``twin_socket``: which of its file descriptors the socket is.
    """

    max_msg_fds: int = 1
    max_data_xfer_size: int = MAX_DATA
    max_dma_maps: int = MAX_MAPS
    pgsizes: int = _PAGES
    twin_socket: bool = False
    write_multiple: bool = False
    fd_index: int | None = None

    def pack(self) -> bytes:
        """Return the payload of a ``VERSION`` message that says so."""
        said: dict[str, object] = {
            "max_msg_fds": self.max_msg_fds,
            "max_data_xfer_size": self.max_data_xfer_size,
            "max_dma_maps": self.max_dma_maps,
            "pgsizes": self.pgsizes,
        }
        if self.twin_socket:
            twin: dict[str, object] = {"supported": True}
            if self.fd_index is not None:
                twin["fd_index"] = self.fd_index
            said["twin_socket"] = twin
        if self.write_multiple:
            said["write_multiple"] = True
        return VERSION.pack(MAJOR, MINOR) + json.dumps({"capabilities": said}).encode() + b"\0"


def unpack(data: bytes) -> tuple[int, int, Capabilities]:
    """Return version and capabilities of a ``VERSION`` message. Names that are not known say nothing.

    Raises:
        VfioUserProtocolError: It is none: too short, no JSON that ends with a NUL, or a value of the wrong type.
    """
    if len(data) < VERSION.size:
        raise VfioUserProtocolError(f"a version of {len(data)} bytes")
    major, minor = VERSION.unpack_from(data)
    text = data[VERSION.size :]
    if not text:
        return major, minor, Capabilities()
    if text[-1:] != b"\0":
        raise VfioUserProtocolError("version data without a NUL at its end")
    try:
        said = json.loads(text[:-1].decode())
    except (ValueError, RecursionError) as error:
        raise VfioUserProtocolError(f"version data that is no JSON: {error}") from error
    capabilities = _dict(_dict(said, "version data").get("capabilities", {}), "capabilities")
    numbers = {
        name: _number(capabilities[name], name)
        for name in ("max_msg_fds", "max_data_xfer_size", "max_dma_maps", "pgsizes")
        if name in capabilities
    }
    twin = _dict(capabilities.get("twin_socket", {}), "twin_socket")
    index = twin.get("fd_index")
    return (
        major,
        minor,
        Capabilities(
            **numbers,
            twin_socket=_bool(twin.get("supported", False), "twin_socket.supported"),
            write_multiple=_bool(capabilities.get("write_multiple", False), "write_multiple"),
            fd_index=None if index is None else _number(index, "fd_index"),
        ),
    )


def _dict(value: object, name: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise VfioUserProtocolError(f"{name} is no object")
    return cast("dict[str, object]", value)


def _bool(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise VfioUserProtocolError(f"{name} is true or false, not {value!r:.40}")
    return value


def _number(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**64:
        raise VfioUserProtocolError(f"{name} is a number, 0..2**64-1, not {value!r:.40}")
    return value
