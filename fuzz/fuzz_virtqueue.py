"""Fuzz the walk of a ring: ``make fuzz TARGET=virtqueue``.

The input is the guest's memory, rings and all, at the beginning of a region between two fences; what is left over is
written into the ring between the pops. Whatever it is, the queue gives chains within memory or stops, writes nothing
outside, and ends.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["aioirqfd.vhost_user"]):
    from aioirqfd.vhost_user.inflight import InflightQueue, queue_stride
    from aioirqfd.vhost_user.messages import MemoryRegion, VringAddr
    from aioirqfd.virtio import ring
    from aioirqfd.virtio.errors import VirtqueueError
    from aioirqfd.virtio.features import VirtioFeature
    from aioirqfd.virtio.memory import GuestMemory, MappedRegion
    from aioirqfd.virtio.virtqueue import VirtQueue

SIZE = 8
PAGE = 4096
GUARD = b"\xa5" * PAGE
DESC, AVAIL, USED = 0, 128, 160
HEAD = 1 + 128 + 32
FEATURES = [
    0,
    VirtioFeature.EVENT_IDX,
    VirtioFeature.INDIRECT_DESC,
    VirtioFeature.INDIRECT_DESC | VirtioFeature.EVENT_IDX,
]


def test_one_input(data: bytes) -> None:
    """Walk one ring."""
    if len(data) < HEAD:
        return
    buffer = bytearray(GUARD * 4)
    low, high = memoryview(buffer)[PAGE : 2 * PAGE], memoryview(buffer)[2 * PAGE : 3 * PAGE]
    memory = GuestMemory(
        [
            MappedRegion(MemoryRegion(0, PAGE, PAGE, 0), low),
            MappedRegion(MemoryRegion(PAGE, PAGE, 2 * PAGE, 0), high),
        ]
    )
    rest = data[HEAD:]
    low[: HEAD - 1] = data[1:HEAD]
    low[HEAD - 1 : HEAD - 1 + min(len(rest), 512)] = rest[:512]
    inflight = None
    if data[0] & 4:
        part = bytearray(queue_stride(SIZE))
        part[: len(rest)] = rest[: len(part)]
        part[8:12] = b"\1\0\x08\0"
        inflight = InflightQueue(memoryview(part), SIZE)
    popped = 0
    try:
        queue = VirtQueue(
            memory,
            SIZE,
            VringAddr(0, 0, PAGE + DESC, PAGE + USED, PAGE + AVAIL),
            features=FEATURES[data[0] & 3],
            inflight=inflight,
        )
        for turn in range(64):
            chain = queue.pop()
            if chain is None:
                break
            popped += 1
            chain.read(2 * PAGE)  # of what may be megabytes, all of them the same page
            chain.write(b"\x5a" * min(chain.writable_size, 2 * PAGE))
            if data[0] & 8:
                queue.push(chain, chain.writable_size)
                queue.need_notify()
                queue.enable_kicks()
            elif queue.in_flight > SIZE:
                raise AssertionError("more requests than the ring has entries")
            if turn < len(rest):
                low[AVAIL + 2 : AVAIL + 4] = bytes([rest[turn], 0])
                ring.DESC.pack_into(low, 16 * (turn % SIZE), rest[turn] * 64, 64, rest[turn] % 8, turn % SIZE)
    except VirtqueueError:
        pass
    if buffer[:PAGE] != GUARD or buffer[3 * PAGE :] != GUARD:
        raise AssertionError("wrote outside memory")


if __name__ == "__main__":
    # By its first word libFuzzer starts itself anew, to merge what it has found.
    atheris.Setup([f"{sys.executable} {sys.argv[0]}", *sys.argv[1:]], test_one_input)
    atheris.Fuzz()
