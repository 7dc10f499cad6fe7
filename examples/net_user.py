"""A network without a network: one host that gives a guest its address, answers ping, and sends datagrams back."""

from __future__ import annotations

import asyncio
import struct
from ipaddress import IPv4Address, IPv4Interface
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Mapping

MAC: Final = bytes.fromhex("525400000001")
BROADCAST: Final = b"\xff" * 6
LEASE_SECONDS: Final = 86400
ROOM: Final = 256
"""How many frames wait for the guest; what is more is dropped."""
_ETHERNET: Final = struct.Struct(">6s6sH")
_ARP: Final = struct.Struct(">HHBBH6s4s6s4s")
_IP: Final = struct.Struct(">BBHHHBBH4s4s")
_UDP: Final = struct.Struct(">HHHH")
_DHCP: Final = struct.Struct(">BBBBIHH4s4s4s4s16s64x128x4s")
_TYPE_ARP, _TYPE_IP = 0x0806, 0x0800
_ICMP, _UDP_PROTOCOL = 1, 17
_FRAGMENT: Final = 0x3FFF
"""The bits that a datagram in one piece has not set: more fragments, and the offset."""
_ECHO_PORT, _SERVER_PORT, _CLIENT_PORT = 7, 67, 68
_COOKIE: Final = bytes.fromhex("63825363")
_DISCOVER, _OFFER, _REQUEST, _ACK, _NAK = 1, 2, 3, 5, 6
# DHCP options (RFC 2132).
_PAD, _MASK, _ROUTER, _WANTED, _SECONDS, _KIND, _SERVER, _END = 0, 1, 3, 50, 51, 53, 54, 255


class MalformedError(ValueError):
    """A frame that is none of its kind: too short, or with a wrong checksum."""


@final
class UserNet:
    """A host with ARP, ICMP echo, UDP echo (port 7) and DHCP with one lease, for whoever asks.

    Args:
        interface: Its address and network.
        lease: The address that the guest is given.

    Attributes:
        counts: How many frames of the guest's were ``answered``, ``ignored`` because they were not for this host, or ``malformed``;
            and how many answers were dropped, ``unreceived``, because the guest had left 256 waiting.

    Threads: the loop's.
    """

    def __init__(self, interface: str = "10.0.0.1/24", lease: str = "10.0.0.2") -> None:
        self.interface = IPv4Interface(interface)
        self.lease = IPv4Address(lease)
        self.counts = {"answered": 0, "ignored": 0, "malformed": 0, "unreceived": 0}
        self._address = self.interface.packed
        self._frames: asyncio.Queue[bytes] = asyncio.Queue(ROOM)

    async def send(self, frame: bytes, /) -> str | None:
        """Take a frame of the guest's; never waits.

        Returns:
            Why it was dropped, or its answer was; None: neither.
        """
        try:
            answer = self.answer(frame)
        except (MalformedError, struct.error):
            self.counts["malformed"] += 1
            return "malformed"
        if answer is None:
            self.counts["ignored"] += 1
            return None
        try:
            self._frames.put_nowait(answer)
        except asyncio.QueueFull:
            self.counts["unreceived"] += 1
            return "the guest takes no answers"
        self.counts["answered"] += 1
        return None

    async def receive(self) -> bytes:
        """The next answer. Cancellation: it is still to come."""
        return await self._frames.get()

    def inspect(self) -> Mapping[str, object]:
        """The counts, and how many answers wait."""
        return {**self.counts, "waiting": self._frames.qsize()}

    def close(self) -> None:
        """Nothing is open."""

    def answer(self, frame: bytes) -> bytes | None:
        """What comes back for a frame; None: nothing, it is not for this host.

        Raises:
            MalformedError: It is wrong.
            struct.error: It is too short.
        """
        to, source, kind = _ETHERNET.unpack_from(frame)
        if to not in {MAC, BROADCAST}:
            return None
        if kind == _TYPE_ARP:
            return self._arp(source, frame[_ETHERNET.size :])
        if kind == _TYPE_IP:
            return self._ip(source, frame[_ETHERNET.size :])
        return None

    def _arp(self, source: bytes, packet: bytes) -> bytes | None:
        hardware, protocol, size, length, operation, sender, address, _, wanted = _ARP.unpack_from(packet)
        if (hardware, protocol, size, length) != (1, _TYPE_IP, 6, 4):
            raise MalformedError("an ARP packet of another network")
        if operation != 1 or wanted != self._address:
            return None
        reply = _ARP.pack(1, _TYPE_IP, 6, 4, 2, MAC, self._address, sender, address)
        return _ETHERNET.pack(source, MAC, _TYPE_ARP) + reply

    def _ip(self, source: bytes, packet: bytes) -> bytes | None:
        first, _, total, _, fragment, _, protocol, _, sender, to = _IP.unpack_from(packet)
        size = first % 16 * 4
        # What is behind the datagram pads the frame.
        if first // 16 != 4 or not _IP.size <= size <= total <= len(packet) or checksum(packet[:size]):
            raise MalformedError("an IP header that is none")
        payload = packet[size:total]
        if fragment & _FRAGMENT:
            return None
        if protocol == _UDP_PROTOCOL:
            return self._udp(source, sender, to, payload)
        if protocol != _ICMP or to != self._address:
            return None
        kind, code = struct.unpack_from(">BB", payload)
        if len(payload) < 8 or checksum(payload):
            raise MalformedError("an ICMP message with a wrong checksum")
        if (kind, code) != (8, 0):
            return None
        reply = bytes(4) + payload[4:]
        return self._datagram(source, sender, _ICMP, put_checksum(reply, 2, checksum(reply)))

    def _udp(self, source: bytes, sender: bytes, to: bytes, packet: bytes) -> bytes | None:
        from_port, port, length, sum_ = _UDP.unpack_from(packet)
        if not _UDP.size <= length <= len(packet):
            raise MalformedError("a UDP datagram of another length")
        packet = packet[:length]
        if sum_ and checksum(_pseudo(sender, to, length) + packet):
            raise MalformedError("a UDP datagram with a wrong checksum")
        data = packet[_UDP.size :]
        if port == _SERVER_PORT:
            return self._dhcp(data)
        if port != _ECHO_PORT or to != self._address:
            return None
        return self._datagram(source, sender, _UDP_PROTOCOL, self._segment(sender, port, from_port, data))

    def _dhcp(self, data: bytes) -> bytes | None:
        """A DHCP server (RFC 2131). Its answers are broadcast: the client may have no address yet."""
        operation, hardware, size, _, xid, _, flags, ours, _, _, _, client, cookie = _DHCP.unpack_from(data)
        if (operation, hardware, size, cookie) != (1, 1, 6, _COOKIE):
            raise MalformedError("no request of DHCP's")
        options = _options(data[_DHCP.size :])
        kind, server = options.get(_KIND), options.get(_SERVER, self._address)
        if server != self._address:
            return None
        lease = self.lease.packed
        if kind == bytes([_DISCOVER]):
            answer = _OFFER
        elif kind == bytes([_REQUEST]):
            # Which one it wants it says where it has none yet; else it is its own.
            answer = _ACK if options.get(_WANTED, ours) == lease else _NAK
        else:
            return None
        given = bytes(4) if answer == _NAK else lease
        said = {_KIND: bytes([answer]), _SERVER: self._address}
        if answer != _NAK:
            said |= {
                _SECONDS: struct.pack(">I", LEASE_SECONDS),
                _MASK: self.interface.netmask.packed,
                _ROUTER: self._address,
            }
        reply = _DHCP.pack(2, 1, 6, 0, xid, 0, flags, bytes(4), given, self._address, bytes(4), client, _COOKIE)
        reply += b"".join(bytes([code, len(value)]) + value for code, value in said.items()) + bytes([_END])
        everybody = b"\xff" * 4
        segment = self._segment(everybody, _SERVER_PORT, _CLIENT_PORT, reply)
        return self._datagram(BROADCAST, everybody, _UDP_PROTOCOL, segment)

    def _segment(self, to: bytes, from_port: int, port: int, data: bytes) -> bytes:
        length = _UDP.size + len(data)
        segment = _UDP.pack(from_port, port, length, 0) + data
        # 0 says that there is none.
        return put_checksum(segment, 6, checksum(_pseudo(self._address, to, length) + segment) or 0xFFFF)

    def _datagram(self, mac: bytes, to: bytes, protocol: int, payload: bytes) -> bytes:
        header = _IP.pack(0x45, 0, _IP.size + len(payload), 0, 0x4000, 64, protocol, 0, self._address, to)
        header = put_checksum(header, 10, checksum(header))
        return _ETHERNET.pack(mac, MAC, _TYPE_IP) + header + payload


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071); 0 over data that has its own in it."""
    number = int.from_bytes(data + bytes(len(data) % 2), "big")
    # The sum of the words, carries added again: the remainder by 0xFFFF, but 0 for nothing but zeros only.
    return 0xFFFF - ((number - 1) % 0xFFFF + 1 if number else 0)


def put_checksum(data: bytes, offset: int, value: int) -> bytes:
    """The data with a checksum in its place."""
    return data[:offset] + struct.pack(">H", value) + data[offset + 2 :]


def _pseudo(sender: bytes, to: bytes, length: int) -> bytes:
    """What UDP's checksum begins with."""
    return struct.pack(">4s4sBBH", sender, to, 0, _UDP_PROTOCOL, length)


def _options(data: bytes) -> dict[int, bytes]:
    """The options of a DHCP message, the last of each; MalformedError: one goes beyond the end."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data) and data[at] != _END:
        if data[at] == _PAD:
            at += 1
            continue
        if at + 2 > len(data) or at + 2 + data[at + 1] > len(data):
            raise MalformedError("an option of DHCP's beyond its end")
        found[data[at]] = data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]
    return found
