"""What every NVMe controller does, whatever is behind it: registers, doorbells, queues, completions and their interrupts.

NVMe 1.4, section numbers of which are given. Commands are :mod:`examples.nvme`'s, but for those about queues, doorbells and abort.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aioirqfd.pci import Bar, DmaError, PciDevice, PciExpress, PowerManagement, Register
from aioirqfd.tracing import FlightKind
from examples.nvme_queues import (
    ABORTED,
    COMMAND,
    COMPLETION,
    EVENT,
    INTERNAL_ERROR,
    INVALID_COMPLETION_QUEUE,
    INVALID_FIELD,
    INVALID_OPCODE,
    INVALID_QUEUE,
    INVALID_SIZE,
    INVALID_VECTOR,
    QUEUE_IN_USE,
    SUCCESS,
    TOO_MANY_EVENTS,
    TRANSFER_ERROR,
    Command,
    CommandError,
    CompletionQueue,
    Status,
    SubmissionQueue,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BLOCK: Final = 512
PAGE: Final = 4096
QUEUES: Final = 16
"""I/O queues that a driver may have; it makes one for each CPU."""
ENTRIES: Final = 1024
MAX_EVENTS: Final = 4
DOORBELLS: Final = 0x1000


NAMES: Final = {0x00: "flush", 0x01: "write", 0x02: "read", 0x08: "write-zeroes", 0x09: "discard"}
ADMIN_NAMES: Final = {0x06: "identify", 0x08: "abort", 0x09: "set-features", 0x0A: "get-features", EVENT: "event"}


@dataclass
class Request:
    """A command on its way, as :meth:`PciDevice.serve_request` wants it."""

    device: Controller
    queue: SubmissionQueue
    command: Command
    result: int = 0
    status: Status = SUCCESS
    waits: bool = False

    @property
    def kind(self) -> str:
        return (NAMES if self.queue.number else ADMIN_NAMES).get(self.command.opcode, "other")

    @property
    def fields(self) -> dict[str, int | str]:
        command = self.command
        found: dict[str, int | str] = {
            "queue": self.queue.number,
            "opcode": command.opcode,
            "namespace": command.namespace,
        }
        if self.queue.number and command.opcode in {0x01, 0x02, 0x08}:
            found |= {"sector": command.dw10 | command.dw11 << 32, "size": ((command.dw12 & 0xFFFF) + 1) * BLOCK}
        return found

    async def perform(self) -> None:
        self.result, self.status, self.waits = await self.device.perform(self.queue, self.command)

    def fail(self, status: int | None) -> None:
        self.status = INTERNAL_ERROR if status is None else Status(status)

    async def complete(self, *, late: bool) -> None:
        try:
            if not self.waits:
                await self.device.complete(self.queue, self.command, self.result, self.status)
        except DmaError:
            if not late:
                raise
            self.device.status |= 2  # as serve() says
        if late and self.queue.answered:
            self.interrupt()

    def interrupt(self) -> None:
        self.device.call(self.queue)

    def misname(self, mask: int) -> None:
        self.command = self.command._replace(number=self.command.number ^ mask)


class Controller(PciDevice):
    """An NVMe controller; a class of its own has the commands.

    Args:
        shadow: Offer the driver to ring doorbells in its own memory.

    Attributes:
        admin: The method for each admin command, by opcode; it returns the completion's first dword, or None for 0.
        io: The same for the commands of all other queues.
    """

    vendor_id, device_id, class_code = 0x1AF4, 0x1110, 0x010802
    bars = (Bar(0x4000, wide=True), None)
    vectors = QUEUES + 1
    undeclared = 0
    capabilities = (PowerManagement(), PciExpress(lanes=4, speed=3))

    cap = Register(0x00, 8, access="ro", reset=(ENTRIES - 1) | 1 << 16 | 20 << 24 | 1 << 37)
    version = Register(0x08, access="ro", reset=0x00010400)
    interrupt_mask_set, interrupt_mask_clear = Register(0x0C, access="wo"), Register(0x10, access="wo")
    configuration = Register(0x14)
    status = Register(0x1C, access="ro")
    admin_sizes = Register(0x24)
    admin_submissions, admin_completions = Register(0x28, 8), Register(0x30, 8)

    def __init__(self, *, shadow: bool = True) -> None:
        self.submissions: dict[int, SubmissionQueue] = {}
        self.completions: dict[int, CompletionQueue] = {}
        self.waiting: list[tuple[SubmissionQueue, Command]] = []
        self.shadow = shadow
        self.shadows: tuple[int, int] | None = None
        """Where the driver has doorbells, and where it is told which values are to be rung for."""
        self.rung = 0
        """How often a doorbell was rung."""
        self.commands = 0
        """I/O commands that were completed."""
        self.going = asyncio.Event()
        self.going.set()
        self.rested = asyncio.Event()
        self.admin: dict[int, Callable[[Command], Awaitable[int | None]]] = {
            0x00: self.delete_submission_queue,
            0x01: self.create_submission_queue,
            0x04: self.delete_completion_queue,
            0x05: self.create_completion_queue,
            0x08: self.abort,
        }
        if shadow:
            self.admin[0x7C] = self.share_doorbells
        self.io: dict[int, Callable[[Command], Awaitable[int | None]]] = {}

    async def shut_down(self) -> None:
        """The driver is about to go: let what is written be durable."""
        raise NotImplementedError

    # -- the controller's life (3.1.5, 7.6) --------------------------------------------------------------------------

    @configuration.on_write
    async def configured(self, value: int) -> None:
        enabled, ready = value & 1, self.status & 1
        if enabled and not ready:
            sizes = self.admin_sizes
            self.completions[0] = CompletionQueue(
                0, self.admin_completions, (sizes >> 16 & 0xFFF) + 1, 0, interrupts=True
            )
            self.add_queue(SubmissionQueue(0, self.admin_submissions, (sizes & 0xFFF) + 1, self.completions[0]))
            self.status = 1
        elif ready and not enabled:
            await self.reset()
        if value >> 14 & 3:
            await self.shut_down()
            self.status = (self.status & 1) | 2 << 2  # shutdown is complete

    async def reset(self) -> None:
        self.waiting.clear()
        self.shadows = None
        for queue in list(self.submissions.values()):
            await self.remove_queue(queue)
        self.completions.clear()
        self.status = 0

    async def background(self) -> None:
        """Be there; and in the end, when the device is served no more, end the queues' tasks."""
        try:
            await asyncio.Event().wait()
        finally:
            await self.reset()

    def add_queue(self, queue: SubmissionQueue) -> None:
        self.submissions[queue.number] = queue
        if not self.status & 2:  # the controller has failed
            queue.task = asyncio.create_task(self.serve(queue), name=f"nvme queue {queue.number}")
            queue.task.add_done_callback(lambda _: self.rested.set())

    async def remove_queue(self, queue: SubmissionQueue) -> None:
        del self.submissions[queue.number]
        self.rested.set()
        if queue.task is not None and queue.task is not asyncio.current_task():
            queue.task.cancel()
            await asyncio.wait({queue.task})
        if late := queue.late - {asyncio.current_task()}:
            for task in late:
                task.cancel()
            await asyncio.wait(late)

    # docs: begin doorbells
    async def write(self, bar: int, offset: int, data: bytes) -> None:
        if offset < DOORBELLS:
            await super().write(bar, offset, data)
            return
        self.rung += 1
        number, is_completion = divmod((offset - DOORBELLS) // 4, 2)
        value = int.from_bytes(data[:4], "little")
        queue = (self.completions if is_completion else self.submissions).get(number)
        if queue is None or value >= queue.size:
            await self.event(queue is not None)
        elif isinstance(queue, CompletionQueue):
            if not self.shadowed(number):
                queue.head = value
            queue.room.set()
        else:
            if not self.shadowed(number):
                queue.tail = value
            queue.rung.set()

    # docs: end doorbells

    # -- doorbells in the driver's memory (5.7, 7.13) ----------------------------------------------------------------

    def shadowed(self, number: int) -> bool:
        """Whether a queue's doorbells are in memory. Then what is written to the register may be older than what is there."""
        return self.shadows is not None and number > 0

    # docs: begin shadow
    async def look(self, bell: int, known: int, size: int) -> int:
        """What a doorbell says; if that is what is known, the driver will ring it when it says something else."""
        if not self.shadowed(bell // 2):
            return known
        assert self.shadows is not None
        doorbells, events = self.shadows
        for _ in range(2):
            value = int.from_bytes(await self.dma.read(doorbells + 4 * bell, 4), "little")
            if value >= size:
                await self.event(bad_value=True)
                return known
            if value != known:
                return value
            await self.dma.write(events + 4 * bell, known.to_bytes(4, "little"))
            self.dma.fence()  # then the second look: the driver may have written before it was told to ring
        return known

    # docs: end shadow

    async def share_doorbells(self, command: Command) -> None:
        """The driver has two pages for it; they begin with what is known now."""
        if command.prp1 % PAGE or command.prp2 % PAGE:
            raise CommandError(INVALID_FIELD)
        self.shadows = command.prp1, command.prp2
        try:
            for queue in self.submissions.values():
                await self.begin_shadow(2 * queue.number, queue.tail)
            for number, completions in self.completions.items():
                await self.begin_shadow(2 * number + 1, completions.head)
        except DmaError:
            self.shadows = None
            raise

    async def begin_shadow(self, bell: int, value: int) -> None:
        if self.shadowed(bell // 2):
            assert self.shadows is not None
            for page in self.shadows:
                await self.dma.write(page + 4 * bell, value.to_bytes(4, "little"))

    # -- commands ----------------------------------------------------------------------------------------------------

    async def serve(self, queue: SubmissionQueue) -> None:
        """Do what the driver puts into a queue: one command after the other, and an interrupt for what was taken together."""
        try:
            await self.take(queue)
        except DmaError:
            self.status |= 2  # the queue's own memory is not there: the controller has failed, and wants to be reset

    async def take(self, queue: SubmissionQueue) -> None:
        """Take commands as they come, and none while there is no room for the completions of those before."""
        while True:
            if queue.answered:
                self.call(queue)
            if not self.going.is_set():
                await self.wait(queue, self.going)
            if queue.done:
                await self.put_completions(queue)
                if queue.done and not queue.answered:
                    await self.wait(queue, queue.completions.room)
            elif queue.head == queue.tail:
                queue.rung.clear()
                queue.tail = await self.look(2 * queue.number, queue.head, queue.size)
                if queue.head == queue.tail:
                    await self.wait(queue, queue.rung)
            else:
                await self.execute_all(queue)

    async def execute_all(self, queue: SubmissionQueue) -> None:
        """Do what the driver has put there, up to the ring's end, to where there is no room, or the device is to be at rest."""
        end = queue.tail if queue.tail > queue.head else queue.size
        self.note(FlightKind.KICK, queue.number)
        entries = await self.dma.read(queue.address + 64 * queue.head, 64 * (end - queue.head))
        for values in COMMAND.iter_unpack(entries):
            queue.head = (queue.head + 1) % queue.size
            await self.execute(queue, Command._make(values))
            if queue.done or not self.going.is_set():
                return

    async def wait(self, queue: SubmissionQueue, event: asyncio.Event) -> None:
        """In a queue's task: wait for what the driver does, and not while the device is to be at rest."""
        queue.resting = True
        self.rested.set()
        try:
            await event.wait()
            await self.going.wait()
        finally:
            queue.resting = False

    async def execute(self, queue: SubmissionQueue, command: Command) -> None:
        """Do one command, and complete it."""
        if queue.number or command.opcode != EVENT:  # that waits for what may never come
            self.note(FlightKind.REQUEST_BEGUN, queue.number, command.number)
        if self.interception is None:
            # No more than a disk without faults needs.
            result, status, waits = await self.perform(queue, command)
            if not waits:
                await self.complete(queue, command, result, status)
            return
        task = await self.serve_request(Request(self, queue, command))
        if task is not None:
            queue.late.add(task)
            task.add_done_callback(queue.late.discard)
            task.add_done_callback(lambda _: self.rested.set())

    async def perform(self, queue: SubmissionQueue, command: Command) -> tuple[int, Status, bool]:
        """Do one command; its result, its status, and whether it is completed when there is an event."""
        result, status = 0, SUCCESS
        try:
            if queue.number:
                self.commands += 1
                result = await self.io[command.opcode](command) or 0
            elif command.opcode == EVENT:
                if len(self.waiting) < MAX_EVENTS:
                    self.waiting.append((queue, command))
                    return 0, status, True
                status = TOO_MANY_EVENTS
            else:
                result = await self.admin[command.opcode](command) or 0
        except KeyError:
            status = INVALID_OPCODE
        except CommandError as error:
            status = error.status
        except DmaError:
            status = TRANSFER_ERROR
        except OSError:
            status = INTERNAL_ERROR
        return result, status, False

    async def complete(self, queue: SubmissionQueue, command: Command, result: int, status: Status) -> None:
        """Tell the driver; where there is no room, the queue's task does it later. Whoever calls it interrupts."""
        queue.done.append((command, result, status))
        await self.put_completions(queue)
        if queue.done:
            queue.rung.set()

    async def put_completions(self, queue: SubmissionQueue) -> None:
        """Tell the driver what is done, as far as there is room."""
        there = queue.completions
        while queue.done:
            if (there.tail + 1) % there.size == there.head:
                there.room.clear()
                there.head = await self.look(2 * there.number + 1, there.head, there.size)
                if (there.tail + 1) % there.size == there.head:
                    return
                continue
            command, result, status = queue.done.pop(0)
            retry = 1 << 15 if status else 0
            entry = COMPLETION.pack(
                result, 0, queue.head, queue.number, command.number, retry | status << 1 | there.phase
            )
            place = there.address + COMPLETION.size * there.tail
            there.tail = (there.tail + 1) % there.size
            if not there.tail:
                there.phase ^= 1
            await self.dma.write(place, entry)
            queue.answered = True
            self.note(FlightKind.REQUEST_COMPLETED, queue.number, command.number)

    def call(self, queue: SubmissionQueue) -> None:
        """Interrupt for what is in the completion queue, if the driver wants that."""
        queue.answered = False
        if queue.completions.interrupts:
            self.note(FlightKind.CALL, queue.number)
            self.interrupt(queue.completions.vector)

    async def event(self, bad_value: bool) -> None:  # noqa: FBT001  which of the two it is
        """The driver has rung a doorbell that is not there, or with a value that cannot be (5.2.1)."""
        if self.waiting:
            queue, command = self.waiting.pop(0)
            await self.complete(queue, command, int(bad_value) << 8 | 0x01 << 16, SUCCESS)
            if queue.answered:
                self.call(queue)

    # -- at rest, and as another process left it ----------------------------------------------------------------------

    async def pause(self) -> None:
        """Carry out what was taken. What is in the queues stays there, and what has no room for its completion is in the state."""
        self.going.clear()
        while any(queue.busy for queue in self.submissions.values()):
            self.rested.clear()
            await self.rested.wait()

    def resume(self) -> None:
        self.going.set()

    def under_way(self) -> list[str]:
        return [f"a command of queue {queue.number}" for queue in self.submissions.values() if queue.busy]

    def save_state(self) -> dict[str, object]:
        return {
            "completions": [queue.save() for queue in self.completions.values()],
            "submissions": [queue.save() for queue in self.submissions.values()],
            "waiting": [[queue.number, list(command)] for queue, command in self.waiting],
            "shadows": self.shadows,
        }

    def restore_state(self, state: dict[str, Any], /) -> None:
        self.shadows = state["shadows"] and tuple(state["shadows"])
        self.completions = {values[0]: CompletionQueue(*values) for values in state["completions"]}
        for number, address, size, completions, *counters, done in state["submissions"]:
            queue = SubmissionQueue(number, address, size, self.completions[completions], *counters)
            queue.done = [(Command(*command), result, Status(status)) for command, result, status in done]
            self.add_queue(queue)
        self.waiting = [(self.submissions[number], Command(*command)) for number, command in state["waiting"]]

    # -- admin commands about queues (section 5) ---------------------------------------------------------------------

    async def create_completion_queue(self, command: Command) -> None:
        number, size = command.dw10 & 0xFFFF, (command.dw10 >> 16) + 1
        vector = command.dw11 >> 16
        if not 1 <= number <= QUEUES or number in self.completions:
            raise CommandError(INVALID_QUEUE)
        if not 2 <= size <= ENTRIES:
            raise CommandError(INVALID_SIZE)
        if vector >= self.vectors:
            raise CommandError(INVALID_VECTOR)
        if not command.dw11 & 1 or command.prp1 % PAGE:
            raise CommandError(INVALID_FIELD)
        self.completions[number] = CompletionQueue(number, command.prp1, size, vector, bool(command.dw11 & 2))
        await self.begin_shadow(2 * number + 1, 0)

    async def create_submission_queue(self, command: Command) -> None:
        number, size = command.dw10 & 0xFFFF, (command.dw10 >> 16) + 1
        completions = command.dw11 >> 16
        if not completions or completions not in self.completions:
            raise CommandError(INVALID_COMPLETION_QUEUE)
        if not 1 <= number <= QUEUES or number in self.submissions:
            raise CommandError(INVALID_QUEUE)
        if not 2 <= size <= ENTRIES:
            raise CommandError(INVALID_SIZE)
        if not command.dw11 & 1 or command.prp1 % PAGE:
            raise CommandError(INVALID_FIELD)
        await self.begin_shadow(2 * number, 0)
        self.add_queue(SubmissionQueue(number, command.prp1, size, self.completions[completions]))

    async def delete_submission_queue(self, command: Command) -> None:
        queue = self.submissions.get(command.dw10 & 0xFFFF)
        if queue is None or not queue.number:
            raise CommandError(INVALID_QUEUE)
        await self.remove_queue(queue)
        if queue.answered:
            self.call(queue)

    async def delete_completion_queue(self, command: Command) -> None:
        number = command.dw10 & 0xFFFF
        if not number or number not in self.completions:
            raise CommandError(INVALID_QUEUE)
        if any(queue.completions is self.completions[number] for queue in self.submissions.values()):
            raise CommandError(QUEUE_IN_USE)
        del self.completions[number]

    async def abort(self, command: Command) -> int:
        """Only what waits for events can be aborted (5.1): anything else is being done, or done."""
        number, queue = command.dw10 >> 16, command.dw10 & 0xFFFF
        for waiting in self.waiting:
            if (waiting[0].number, waiting[1].number) == (queue, number):
                self.waiting.remove(waiting)
                await self.complete(*waiting, 0, ABORTED)
                return 0
        return 1
