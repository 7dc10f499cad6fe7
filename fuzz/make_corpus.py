"""Write the seeds of the fuzz targets, a file for each message and ring: ``python fuzz/make_corpus.py``."""

from __future__ import annotations

import struct
from pathlib import Path

from aioirqfd.vhost_user.messages import (
    U64,
    ConfigSpace,
    Inflight,
    MemoryRegion,
    MemoryTable,
    Message,
    Request,
    SingleRegion,
    VringAddr,
    VringFd,
    VringState,
)
from aioirqfd.vhost_user.protocol import encode
from aioirqfd.virtio import ring

CORPUS = Path(__file__).parent / "corpus"
REGION = MemoryRegion(0, 4096, 1 << 40, 0)
MESSAGES = [
    Message(Request.GET_FEATURES),
    Message(Request.SET_FEATURES, U64(1 << 32), need_reply=True),
    Message(Request.SET_MEM_TABLE, MemoryTable((REGION, REGION)), (0, 1)),
    Message(Request.SET_VRING_NUM, VringState(0, 8)),
    Message(Request.SET_VRING_ADDR, VringAddr(0, 0, 1, 2, 3)),
    Message(Request.SET_VRING_KICK, VringFd(1), (0,)),
    Message(Request.SET_VRING_CALL, VringFd(1, has_fd=False)),
    Message(Request.GET_CONFIG, ConfigSpace(0, 0, bytes(60))),
    Message(Request.SET_INFLIGHT_FD, Inflight(4096, 0, 1, 8), (0,)),
    Message(Request.ADD_MEM_REG, SingleRegion(REGION), (0,)),
    Message(Request.GET_VRING_BASE, VringState(0, 8), reply=True),
]
W, N, I = ring.WRITE, ring.NEXT, ring.INDIRECT  # noqa: E741
RINGS = {
    "chain": [(512, 16, N, 1), (1024, 512, N | W, 2), (4090, 12, W, 0)],
    "indirect": [(160 + 70, 32, I, 0), (0, 16, 0, 0)],
    "loop": [(512, 16, N, 1), (512, 16, N, 0)],
}


# Of vfio-user: command, fds, payload.
CLIENT = [
    (2, 1, struct.pack("<IIQQQ", 32, 3, 0, 0x10000, 4096)),
    (3, 0, struct.pack("<IIQQ", 24, 0, 0x10000, 4096)),
    (4, 0, struct.pack("<IIII", 16, 0, 0, 0)),
    (5, 0, struct.pack("<IIIIQQ", 80, 0, 2, 0, 0, 0)),
    (6, 0, struct.pack("<IIII", 512, 0, 0, 0)),
    (7, 0, struct.pack("<IIII", 16, 0, 2, 0)),
    (8, 2, struct.pack("<IIIII", 20, 0x24, 2, 0, 2)),
    (8, 0, struct.pack("<IIIII", 20, 0x21, 2, 0, 0)),
    (8, 0, struct.pack("<IIIII2B", 22, 0x0A, 2, 0, 2, 0, 1)),
    (9, 0, struct.pack("<QII", 0, 0, 4)),
    (10, 0, struct.pack("<QIII", 4, 0, 4, 1)),
    (13, 0, b""),
    (15, 0, struct.pack("<QQIIQ", 1, 4, 0, 4, 2)),
    (16, 0, struct.pack("<II", 8, 0x10001)),
]


def main() -> None:
    """Write them all."""
    (CORPUS / "vfio_user").mkdir(parents=True, exist_ok=True)
    for number, (command, fds, payload) in enumerate(CLIENT):
        (CORPUS / "vfio_user" / f"{number:02}").write_bytes(bytes([command, fds, len(payload)]) + payload)
    (CORPUS / "protocol").mkdir(parents=True, exist_ok=True)
    (CORPUS / "virtqueue").mkdir(parents=True, exist_ok=True)
    for number, message in enumerate(MESSAGES):
        data = encode(message)
        seed = bytes([int(message.reply), 12, len(message.fds)]) + data[:12] + bytes([len(data) - 12, 0]) + data[12:]
        (CORPUS / "protocol" / f"{number:02}").write_bytes(seed)
    for name, entries in RINGS.items():
        table = b"".join(ring.DESC.pack(*entry) for entry in entries).ljust(128, b"\0")
        avail = (b"\0\0\1\0" + bytes(28))[:32]
        for mode in (2, 0xA, 0xF):
            (CORPUS / "virtqueue" / f"{name}-{mode:x}").write_bytes(bytes([mode]) + table + avail + bytes(range(64)))


if __name__ == "__main__":
    main()
