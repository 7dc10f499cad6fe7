"""A network card whose other end answers ping: the tutorial's own device."""

from __future__ import annotations

import asyncio

from aioirqfd.vhost_user import main
from aioirqfd.virtio import Chain, Device

RECEIVE, TRANSMIT = 0, 1
HEADER = bytes(10) + b"\1\0"  # comes before each frame; the last number: it is in one buffer
MAC, ADDRESS = bytes.fromhex("525400000001"), bytes([10, 0, 0, 1])
ARP, IPV4, ICMP = b"\x08\x06", b"\x08\x00", 1


# docs: begin device
class Ping(Device):
    """Virtio network device (virtio 1.2, section 5.1), alone in the world with 10.0.0.1."""

    device_id = 1
    num_queues = 2
    receive_queues = (RECEIVE, TRANSMIT)  # both may have to wait

    def __init__(self) -> None:
        self.answers: asyncio.Queue[bytes] = asyncio.Queue(64)

    async def handle(self, request: Chain) -> int:
        """Take a frame on one queue; fill a buffer of the other once there is one to fill it with."""
        if request.queue == TRANSMIT:
            frame = request.read(1514, offset=len(HEADER))
            if len(frame) >= 42 and (reply := answer(frame)):
                await self.answers.put(HEADER + reply)
            return 0
        return request.write(await self.answers.get())


# docs: end device


# docs: begin answer
def answer(frame: bytes) -> bytes | bytearray | None:
    """What comes back for an ARP request or an ICMP echo request; both have 42 bytes or more."""
    reply = bytearray(frame)
    reply[0:6], reply[6:12] = frame[6:12], MAC
    if frame[12:14] == ARP and frame[20:22] == b"\0\1" and frame[38:42] == ADDRESS:
        reply[20:42] = b"\0\2" + MAC + ADDRESS + frame[22:32]
        return reply
    icmp = 14 + frame[14] % 16 * 4
    if frame[12:14] == IPV4 and frame[23] == ICMP and frame[30:34] == ADDRESS and frame[icmp : icmp + 2] == b"\x08\0":
        reply[26:34] = ADDRESS + frame[26:30]
        # The type falls from 8 to 0, so the checksum grows.
        checksum = int.from_bytes(frame[icmp + 2 : icmp + 4]) + 0x0800
        reply[icmp : icmp + 4] = bytes(2) + (checksum % 0x10000 + checksum // 0x10000).to_bytes(2)
        return reply
    return None


# docs: end answer


if __name__ == "__main__":
    main(lambda _options: Ping(), kind="net")
