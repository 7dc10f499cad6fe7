"""A network card for a guest, whose wire ends in this process: ``python examples/virtio_net.py --socket-path net.sock``.

With ``--tap NAME`` it ends in a network interface of this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import enum
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

if not __package__:  # run as a path: python examples/virtio_net.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from aioirqfd.vhost_user import main
from aioirqfd.virtio import NEEDS_RESET, Chain, Device
from examples.net_tap import Tap
from examples.net_user import UserNet

if TYPE_CHECKING:
    from collections.abc import Mapping

RECEIVE, TRANSMIT = 0, 1
MAC: Final = bytes.fromhex("525400123456")
MTU: Final = 1500
MIN_FRAME: Final = 14
"""Bytes of a frame that carries nothing."""
MAX_FRAME: Final = MIN_FRAME + 4 + MTU
"""Bytes of the longest one: with a VLAN's tag."""
HEADER: Final = bytes(10) + b"\1\0"
"""Comes before each frame (virtio 1.2, section 5.1.6); the last number: it is in one buffer."""
_CONFIG: Final = struct.Struct("<6sHHH")


class Feature(enum.IntFlag):
    """Feature bits of a network device (section 5.1.3)."""

    MTU = 1 << 3
    MAC = 1 << 5
    STATUS = 1 << 16


# docs: begin network
class Network(Protocol):
    """What a wire ends in. Threads: the loop's."""

    async def send(self, frame: bytes, /) -> str | None:
        """Take a frame of the guest's, of 14 bytes or more.

        Returns:
            None; or why it, or an answer to it, was dropped: one of a few constant texts.

        Cancellation: the frame was not taken.
        """

    async def receive(self) -> bytes:
        """The next frame for the guest. Cancellation: it is still to come."""
        ...

    def inspect(self) -> Mapping[str, object]:
        """What it shows of itself."""
        ...

    def close(self) -> None:
        """Let go of what it has opened."""


# docs: end network


class Net(Device):
    """Virtio network device (section 5.1), with one queue each way and without offloads.

    Args:
        network: What the wire ends in; closed with the device.
        mac: The driver's address, 6 bytes, not a group's.

    Attributes:
        dropped: How many frames were dropped, by reason. The tracer hears of them, too (:meth:`aioirqfd.virtio.Device.report`).

    Raises:
        ValueError: That is no such address.
    """

    device_id = 1
    num_queues = 2
    receive_queues = (RECEIVE, TRANSMIT)  # both may have to wait
    features = Feature.MTU | Feature.MAC | Feature.STATUS

    def __init__(self, network: Network, *, mac: bytes = MAC) -> None:
        if len(mac) != 6 or mac[0] & 1:
            raise ValueError(f"a network card's address is 6 bytes, of which the first is even, not {mac!r}")
        self.network = network
        self.mac = mac
        self.dropped: Counter[str] = Counter()
        self._link = True

    @property
    def config(self) -> bytes:  # type: ignore[override]
        """The configuration space: address, status, one pair of queues, MTU."""
        return _CONFIG.pack(self.mac, self._link, 1, MTU)

    @property
    def link(self) -> bool:
        """Whether the wire is plugged in; the driver is told when this is set. What comes meanwhile is dropped."""
        return self._link

    @link.setter
    def link(self, up: bool) -> None:
        if up != self._link:
            self._link = up
            self.config_changed()

    async def handle(self, request: Chain) -> int:
        """Take a frame on one queue; fill a buffer of the other once there is one to fill it with."""
        if request.queue == RECEIVE:
            return await self._receive(request)
        frame = request.read(MAX_FRAME + 1, offset=len(HEADER))
        if not MIN_FRAME <= len(frame) <= MAX_FRAME:
            self._drop("of a wrong size")
        elif not self._link:
            self._drop("link down")
        elif (why := await self.network.send(frame)) is not None:
            self._drop(why)
        return 0

    async def _receive(self, request: Chain) -> int:
        while True:
            frame = await self.network.receive()
            if not self._link:
                self._drop("link down")
            elif len(HEADER) + len(frame) > request.writable_size:
                self._drop("no room in the buffer")
            else:
                return request.write(HEADER + frame)
            await asyncio.sleep(0)  # there may be more of them than ever end

    def _drop(self, why: str) -> None:
        self.dropped[why] += 1
        self.report(f"a frame was dropped: {why}")

    # docs: begin failed
    def failed(self, request: Chain, error: BaseException) -> int:
        """Stop the receive queue if nothing can be received: an empty answer is no frame, and the driver would offer the buffer again."""
        return NEEDS_RESET if request.queue == RECEIVE else super().failed(request, error)

    # docs: end failed

    def inspect(self) -> Mapping[str, object]:
        """The link, what was dropped, and the network."""
        return {"link": self._link, "dropped": dict(self.dropped), "network": self.network.inspect()}

    def close(self) -> None:
        """Close the network."""
        self.network.close()


def mac_of(text: str) -> bytes:
    """Read an address such as ``52:54:00:12:34:56``; ValueError: it is none."""
    parts = text.split(":")
    if len(parts) != 6 or any(len(part) != 2 for part in parts):
        raise ValueError(f"a network card's address is such as 52:54:00:12:34:56, not {text!r}")
    return bytes.fromhex("".join(parts))


def _make(options: argparse.Namespace) -> Net:
    mac = mac_of(options.mac)
    return Net(UserNet() if options.tap is None else Tap(options.tap), mac=mac)


if __name__ == "__main__":
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--tap", metavar="NAME", help="the interface to use or make; without: DHCP, ping, UDP echo")
    command.add_argument("--mac", default=MAC.hex(":"), help="the guest's address by vfio-user (%(default)s)")
    main(_make, kind="net", parser=command)
