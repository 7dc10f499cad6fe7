"""A network interface of this machine as the end of a guest's wire (Linux' tuntap)."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Mapping

_DEVICE: Final = "/dev/net/tun"
_TUNSETIFF: Final = 0x400454CA
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_IFREQ: Final = struct.Struct("16sH22x")
_NAME_MAX: Final = 15
_LONGEST: Final = 65536
_ADVICE: Final = {
    errno.ENOENT: f"there is no {_DEVICE}: modprobe tun",
    errno.EPERM: "run as root, or have it made for you: ip tuntap add dev {name} mode tap user $USER",
    errno.EACCES: f"{_DEVICE} cannot be opened by this user",
    errno.EBUSY: "another program has it; choose another name",
    errno.EINVAL: "there is an interface of this name that is no tap, or it is no name for one",
}


@final
class Tap:
    """A tap interface: what the host sends to it is the guest's, and the other way round.

    The kernel keeps frames for the guest, as many as the interface's ``txqueuelen`` says; it drops what is more than that, and counts
    it (``ip -s link show NAME``: TX dropped). The interface is the user's to set up: ``ip addr add ... dev NAME``,
    ``ip link set NAME up``. One that this process has made is gone when it is closed.

    Args:
        name: Its name, up to 15 bytes: one that there is, or a new one. Empty: the kernel chooses.

    Attributes:
        name: Its name.

    Raises:
        OSError: It is not to be had; the error says what to do.
        ValueError: That is no name.

    Threads: the loop's.
    """

    def __init__(self, name: str = "") -> None:
        encoded = name.encode()
        if len(encoded) > _NAME_MAX or b"\0" in encoded:
            raise ValueError(f"the name of a tap interface has up to {_NAME_MAX} bytes, and {name!r} is none")
        self._fd = -1
        try:
            self._fd = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            answer: bytes = fcntl.ioctl(self._fd, _TUNSETIFF, _IFREQ.pack(encoded, _IFF_TAP | _IFF_NO_PI))
        except OSError as error:
            self.close()
            advice = _ADVICE.get(error.errno or 0, "").format(name=name or "NAME")
            raise OSError(error.errno, f"no tap interface: {error.strerror}; {advice}".rstrip("; "), name) from None
        self.name = answer[: _NAME_MAX + 1].split(b"\0")[0].decode()

    async def send(self, frame: bytes, /) -> str | None:
        """Give a frame to the host.

        Returns:
            Why it was dropped; None: it was not.

        Raises:
            OSError: The interface has gone.

        Cancellation: the frame was not taken.
        """
        while True:
            try:
                os.write(self._fd, frame)
            except BlockingIOError:
                await self._ready(writable=True)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                return "the interface is down"
            else:
                return None

    async def receive(self) -> bytes:
        """The next frame from the host.

        Raises:
            OSError: The interface has gone.

        Cancellation: no frame was taken.
        """
        while True:
            try:
                return os.read(self._fd, _LONGEST)
            except BlockingIOError:
                await self._ready(writable=False)

    async def _ready(self, *, writable: bool) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def resolve() -> None:
            if not ready.done():
                ready.set_result(None)

        (loop.add_writer if writable else loop.add_reader)(self._fd, resolve)
        try:
            await ready
        finally:
            (loop.remove_writer if writable else loop.remove_reader)(self._fd)

    def inspect(self) -> Mapping[str, object]:
        """Its name."""
        return {"tap": self.name}

    def close(self) -> None:
        """Close it; idempotent. Nobody may be waiting for a frame."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
