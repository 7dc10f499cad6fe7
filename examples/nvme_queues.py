"""The queues of the NVMe disk (:mod:`examples.nvme`), and what is in them: commands, completions, statuses. Sections are of NVMe 1.4."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass, field
from typing import Final, NamedTuple

COMMAND: Final = struct.Struct("<BBHI8xQQQ6I")  # opcode, flags, id, namespace, metadata, PRP 1 and 2, dwords 10 to 15
COMPLETION: Final = struct.Struct("<IIHHHH")


class Status(int):
    """A status code (4.6.1.2): what kind it is, times 256, and the code. A number above 0 is an error, and not to be retried."""


SUCCESS = Status(0)
INVALID_OPCODE, INVALID_FIELD, TRANSFER_ERROR, INTERNAL_ERROR = Status(0x01), Status(0x02), Status(0x04), Status(0x06)
ABORTED, INVALID_NAMESPACE, OUT_OF_RANGE = Status(0x07), Status(0x0B), Status(0x80)
INVALID_COMPLETION_QUEUE, INVALID_QUEUE, INVALID_SIZE = Status(0x100), Status(0x101), Status(0x102)
TOO_MANY_EVENTS, INVALID_VECTOR, INVALID_LOG, QUEUE_IN_USE = Status(0x105), Status(0x108), Status(0x109), Status(0x10C)


class CommandError(Exception):
    """A command cannot be done; it is completed with this status."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"status {status:#x}")
        self.status = status


class Command(NamedTuple):
    """A submission queue entry (4.2)."""

    opcode: int
    flags: int
    number: int
    namespace: int
    metadata: int
    prp1: int
    prp2: int
    dw10: int
    dw11: int
    dw12: int
    dw13: int
    dw14: int
    dw15: int


@dataclass
class CompletionQueue:
    """Where the controller tells what is done."""

    number: int
    address: int
    size: int
    vector: int
    interrupts: bool
    head: int = 0
    tail: int = 0
    phase: int = 1
    room: asyncio.Event = field(default_factory=asyncio.Event)

    def save(self) -> list[int]:
        """With what another one is made of it."""
        return [self.number, self.address, self.size, self.vector, self.interrupts, self.head, self.tail, self.phase]


@dataclass
class SubmissionQueue:
    """Where the driver says what to do."""

    number: int
    address: int
    size: int
    completions: CompletionQueue
    head: int = 0
    tail: int = 0
    answered: bool = False
    """Whether there is a completion that the driver was not interrupted for."""
    done: list[tuple[Command, int, Status]] = field(default_factory=list[tuple[Command, int, Status]])
    """Commands, with result and status, for whose completions there was no room yet."""
    resting: bool = False
    """Whether its task waits, and for nothing that the controller is doing."""
    rung: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    late: set[asyncio.Task[None]] = field(default_factory=set)
    """Commands that a fault keeps back (aioirqfd.faults)."""

    @property
    def busy(self) -> bool:
        """Whether a command of it is being carried out."""
        return bool(self.late) or not (self.resting or self.task is None or self.task.done())

    def save(self) -> list[object]:
        """With what another one is made of it, where it is not busy; the completion queue by its number."""
        done = [[list(command), result, int(status)] for command, result, status in self.done]
        return [
            self.number,
            self.address,
            self.size,
            self.completions.number,
            self.head,
            self.tail,
            self.answered,
            done,
        ]


EVENT: Final = 0x0C
"""The admin command that is completed when there is something to tell (5.2)."""
