"""Faults of a virtio device: its requests, as its device id says what they are, and the interrupts of its queues."""

from __future__ import annotations

import functools
import struct
from typing import TYPE_CHECKING, ClassVar, Final, final

from aioirqfd.faults.line import Line
from aioirqfd.faults.match import FaultError
from aioirqfd.faults.request import Request
from aioirqfd.faults.targets import Target, wanted_of
from aioirqfd.serving.reports import name_of
from aioirqfd.virtio.chain import cut, gather, scatter, written_by
from aioirqfd.virtio.device import ENTROPY, NEEDS_RESET, Device
from aioirqfd.virtio.interception import UNANSWERED

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioirqfd.faults.faults import Faults
    from aioirqfd.faults.match import Match
    from aioirqfd.virtio.chain import Chain
    from aioirqfd.virtio.interception import Transport

_HEADER: Final = struct.Struct("<IIQ")
_SECTOR: Final = struct.Struct("<Q")
BLOCK: Final = 2
"""The device id of a block device."""
BLOCK_KINDS: Final = {0: "read", 1: "write", 4: "flush", 8: "get-id", 11: "discard", 13: "write-zeroes"}
"""A block device's types of requests (virtio 1.2, section 5.2.6)."""
QUEUES: Final = {
    1: ("receive", "transmit"),
    3: ("receive", "transmit"),
    4: ("request",),
    8: ("control", "event", "request"),
}
"""By device id, what the requests of the first queues are; those of the others are like the last, or in turn for two."""
IOERR: Final = 1


def queue_kind(device: Device, queue: int) -> str:
    """What the requests of a queue are, of a device whose requests do not say it themselves."""
    names = QUEUES.get(device.device_id)
    if names is None:
        return "receive" if queue in device.receive_queues else "request"
    return names[queue % 2] if len(names) == 2 else names[min(queue, len(names) - 1)]


def kinds_of(device: Device) -> tuple[str, ...]:
    """The kinds that a device's requests can be of."""
    if device.device_id == BLOCK:
        return (*BLOCK_KINDS.values(), "other")
    return tuple(dict.fromkeys(queue_kind(device, queue) for queue in range(device.num_queues)))


@final
class VirtioRequest(Request):
    """A chain of buffers.

    Args:
        target: The device.
        chain: The chain.
    """

    def __init__(self, target: VirtioTarget, chain: Chain) -> None:
        device = target.device
        self.chain: Final = chain
        self._target = target
        self._header = 0
        self._trailer = 0
        self.written = 0
        self.head = chain.head
        fields: dict[str, int | str] = {"queue": chain.queue, "head": chain.head}
        described = device.describe(chain)
        if described is not None:
            kind, more = described
            fields |= more
        elif device.device_id == BLOCK:
            header = chain.read(_HEADER.size)
            number, _, sector = _HEADER.unpack(header) if len(header) == _HEADER.size else (-1, 0, 0)
            kind = BLOCK_KINDS.get(number, "other")
            fields["type"] = number
            self._header, self._trailer = _HEADER.size, 1
            if kind in {"read", "write"}:
                fields |= {"sector": sector, "size": self._size(chain, kind)}
        else:
            kind = queue_kind(device, chain.queue)
            fields["size"] = chain.readable_size or chain.writable_size
        super().__init__(kind, fields, name_of(device))

    @staticmethod
    def _size(chain: Chain, kind: str) -> int:
        return max(chain.writable_size - 1 if kind == "read" else chain.readable_size - _HEADER.size, 0)

    @property
    def identity(self) -> str:
        """Its kind, with the sector of a disk; the queue may be another one each time that the guest runs on another CPU."""
        if "sector" in self.fields:
            return f"{self.kind} sector={self.fields['sector']}"
        return self.kind if self._header else f"{self.kind} queue={self.chain.queue}"

    @property
    def hurried(self) -> bool:
        """Whether its queue is about to stop."""
        return self.chain.queue in self._target.ending

    def content(self) -> bytes:
        """What the driver sent, without a block device's header."""
        return gather(self.chain.readable, 1 << 20, offset=self._header)

    async def perform(self) -> None:
        """Have the device serve it."""
        self.written = written_by(self.chain, await self._target.device.handle(self.chain))

    def fail(self, status: int | None) -> None:
        """A block device's answer has the status, another device's is what its ``failed()`` makes it."""
        chain = self.chain
        if not self._trailer:
            error = FaultError("a fault was set" if status is None else f"a fault was set, with status {status}")
            written = self._target.device.failed(chain, error)
            # A fault was asked for, and not a queue that stops.
            self.written = 0 if written == NEEDS_RESET else written_by(chain, written)
        elif chain.writable:
            chain.writable[-1][-1] = IOERR if status is None else status & 0xFF
            self.written = int(chain.writable_size == 1)

    def pretend(self) -> None:
        """A block device's status is OK, and what was to be read is what was there."""
        if self._trailer and self.chain.writable:
            self.chain.writable[-1][-1] = 0
        self.written = self.chain.writable_size

    def corrupt(self, what: str, offset: int, size: int, mask: int) -> None:
        """Flip bits."""
        chain = self.chain
        if what == "length":
            self.written ^= mask
        elif what == "id":
            self.head ^= mask
        elif what == "written":
            # The guest's own buffers stay as they are.
            header, data = gather(chain.readable, self._header), bytearray(self.content())
            _flip(data, offset, size, mask)
            chain.readable = [memoryview(part) for part in (header, bytes(data)) if part]
        else:
            buffers = cut(chain.writable, offset, min(offset + size, chain.writable_size - self._trailer))
            data = bytearray(gather(buffers))
            _flip(data, 0, len(data), mask)
            scatter(buffers, data)

    def resize(self, by: int) -> None:
        """The answer's length."""
        self.written = max(self.written + by, 0)

    def repeat(self, times: int, gap: float) -> None:
        """Put the answer into the ring again."""
        for number in range(times):
            again = functools.partial(self._transport.answer_again, self.chain, self.written)
            self._target.faults.later((number + 1) * gap, again)

    def interrupt(self) -> None:
        """Interrupt for its queue."""
        self._transport.ring(self.chain.queue)

    async def reset(self) -> None:
        """Hang up."""
        self._transport.hang_up()

    def result(self) -> int:
        """What ``handle()`` is to return. An answer that no ring would take as it is, is put there by another way."""
        if self.head == self.chain.head and 0 <= self.written <= self.chain.writable_size:
            return self.written
        self._transport.answer_again(self.chain, self.written & 0xFFFF_FFFF, head=self.head)
        return UNANSWERED

    @property
    def _transport(self) -> Transport:
        transport = self._target.device.transport
        if transport is None:
            raise FaultError(f"{self._target.device!r} is not served")
        return transport


@final
class VirtioTarget(Target):
    """A virtio device.

    Args:
        faults: Whose.
        device: The device.

    Attributes:
        ending: Queues that have begun to stop, and have taken no request since.
    """

    fields: ClassVar = ()

    def __init__(self, faults: Faults, device: Device) -> None:
        super().__init__(faults)
        self.device: Final = device
        self.kinds = kinds_of(device)
        self.any_kind = type(device).describe is not Device.describe
        if device.device_id == ENTROPY and type(device).failed is Device.failed:
            self.must_answer = "virtio 1.2, 5.4.6.2: one byte or more"
        self.ending: set[int] = set()
        self.lines = {
            queue: Line(
                faults, "interrupt", {"queue": queue}, functools.partial(self._answers, queue), device=name_of(device)
            )
            for queue in range(device.num_queues)
        }

    def _answers(self, queue: int) -> int:
        return 0 if self.device.transport is None else self.device.transport.answers(queue)

    def attach(self, *, attached: bool) -> None:
        """Come between the device and its back-end, or let it be."""
        wanted = self if attached else None
        if self.device.interception is not wanted:
            self.device.intercept(wanted)

    def interrupt_for_nothing(self, match: Match, *, always: bool) -> list[dict[str, int | str]]:
        """Interrupt for these queues, if they run."""
        transport = self.device.transport
        if transport is None:
            return []
        queues = wanted_of(match, "queue", range(self.device.num_queues))
        chosen = [queue for queue in queues if always or transport.runs(queue)]
        return [
            self.lines[queue].ring_for_nothing(lambda _, queue=queue: transport.ring(queue))  # type: ignore[misc]
            for queue in chosen
        ]

    # -- in place of the device --------------------------------------------------------------------------------------

    async def handle(self, chain: Chain) -> int:
        """Have a request go its way."""
        self.ending.discard(chain.queue)
        request = VirtioRequest(self, chain)
        return request.result() if await self.faults.course(request) else UNANSWERED

    def interrupt(self, queue: int, ring: Callable[[], None], /) -> bool:
        """Interrupt, or not yet."""
        device = self.device
        kept = False

        def deliver(to: int | None) -> None:
            nonlocal kept
            if to is not None and to != queue:
                if device.transport is not None:
                    device.transport.ring(to % device.num_queues)
            else:
                kept = bool(device.interrupt(queue, ring))

        line = self.lines[queue]
        withheld = line.want(deliver)
        if queue in self.ending:
            line.release()
            return kept
        return withheld or kept

    def stopping(self, queue: int) -> None:
        """The front-end waits for all requests of a queue: nothing is kept back there any more."""
        self.ending.add(queue)
        self.faults.hurry(lambda request: request.fields.get("queue") == queue)
        self.lines[queue].release()

    def reset(self) -> None:
        """The guest has gone, and its interrupts with it."""
        for line in self.lines.values():
            line.forget()


def _flip(data: bytearray, offset: int, size: int, mask: int) -> None:
    for at in range(offset, min(offset + size, len(data))):
        data[at] ^= mask & 0xFF
