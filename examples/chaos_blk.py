"""A disk whose interrupts and completions misbehave, to test a guest's driver.

``python examples/chaos_blk.py --socket-path blk.sock --blk-file disk.img --script chaos.txt --control chaos.sock``

A script and the control socket take the same commands, one a line; the control socket answers each:

    set [queue=Q,..] [type=T,..] NAME=VALUE ..      for those queues and types of requests, or for all:

        delay=MS            each completion comes that much later; 0.05 is 50 microseconds
        jitter=MS           and up to that much more, at random
        withhold=N          the next N completions are kept until "release"
        reorder=N           completions are kept until there are N, and come in random order
        merge=N             completions are kept until there are N, and come all at once
        hold=MS             so long do both wait for more at most (20)
        duplicate=N         each completion comes N times more
        error=N             the next N requests are not carried out, and end with an I/O error
        error-percent=P     so many of all requests, at random

        irq-delay=MS        each interrupt comes that much later
        irq-merge=N         an interrupt comes for N completions
        irq-hold=MS         so long does it wait for more at most (20)
        irq-duplicate=N     each interrupt comes N times more
        irq-withhold=1      no interrupt comes until "release"
        irq-spurious=MS     an interrupt for nothing comes that often

    release [queue=Q,..] [type=T,..]        what is kept back comes now, and nothing more is withheld
    reset                                   behave, and release
    seed N                                  choose the same at random again
    sleep SECONDS                           (for scripts)
    requests N [queue=Q,..] [type=T,..]     go on when N more requests have come (for scripts)
    status [queue=Q,..] [type=T,..]         the settings and the counts

Types are read, write, flush, get-id, discard, write-zeroes, other.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if not __package__:  # run as a path: python examples/chaos_blk.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from aioirqfd.serving.sockets import Listener, socket_path
from aioirqfd.serving.terminal import Terminal
from aioirqfd.vhost_user import Backend, program
from examples.chaos_command import COMPLETIONS, INTERRUPTS, TYPES, Command, parse, parse_script
from examples.chaos_interrupt import AGAIN, Interrupt
from examples.vhost_user_blk import Blk, Status, Type, blk_parser

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Sequence

    from aioirqfd.virtio import Chain

_NAMES: Final[dict[int, str]] = {
    Type.IN: "read",
    Type.OUT: "write",
    Type.FLUSH: "flush",
    Type.GET_ID: "get-id",
    Type.DISCARD: "discard",
    Type.WRITE_ZEROES: "write-zeroes",
}
Cell = tuple[int, str]
"""A queue, and a type of requests."""
Waiting = asyncio.Future[bool]
"""A completion that is kept back. Its result: whether it is to behave as it is told further, or to come at once."""


class Budget:
    """How many requests something is still to happen to; shared by all cells that one command was for."""

    def __init__(self, left: float) -> None:
        self.left = int(left)

    def take(self) -> bool:
        """Use one up; whether there was one."""
        if not self.left:
            return False
        self.left -= 1
        return True


class Manners:
    """How the requests of one queue and type are completed."""

    def __init__(self) -> None:
        self.settings = dict(COMPLETIONS)
        self.withhold = Budget(0)
        self.error = Budget(0)
        self.requests = self.errors = 0

    def shown(self) -> dict[str, float]:
        """The settings; of those that are used up, what is left."""
        return self.settings | {"withhold": self.withhold.left, "error": self.error.left}


class Group:
    """Completions that wait until there are enough, and then come in one turn of the loop.

    Args:
        order: Puts them in order, in place.
    """

    def __init__(self, order: Callable[[list[Waiting]], object]) -> None:
        self._order = order
        self._waiting: list[Waiting] = []
        self._timer: asyncio.TimerHandle | None = None

    def join(self, waiting: Waiting, size: float, seconds: float) -> None:
        """Wait with the others, until there are ``size``, or the first one has waited so many seconds."""
        loop = asyncio.get_running_loop()
        self._waiting.append(waiting)
        if len(self._waiting) >= size:
            self._open()
        elif self._timer is None:
            self._timer = loop.call_later(seconds, self._open)

    def _open(self) -> None:
        group = self.leave()
        self._order(group)
        loop = asyncio.get_running_loop()
        # In a turn after the next one: who has joined in this turn begins to wait in the next, and would come after the others.
        loop.call_soon(lambda: loop.call_soon(let_go, group))

    def leave(self) -> list[Waiting]:
        """Break up; return those that have waited."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        group, self._waiting = self._waiting, []
        return group


def let_go(group: Iterable[Waiting], further: bool = True) -> None:  # noqa: FBT001, FBT002  a callback
    """Let completions go on: as they are told, or at once."""
    for waiting in group:
        if not waiting.done():
            waiting.set_result(further)


class Chaos(Blk):
    """The block device, and its bad manners. Starts well-behaved.

    Attributes:
        backend: Who serves it; to be filled in.
    """

    def __init__(self, path: str, *, num_queues: int = 1, read_only: bool = False) -> None:
        super().__init__(path, num_queues=num_queues, read_only=read_only, serial="chaos")
        self.backend: Backend | None = None
        self.random = random.Random(0)  # noqa: S311
        self.manners = {(queue, kind): Manners() for queue in range(num_queues) for kind in TYPES}
        self.interrupts = [Interrupt(functools.partial(self._answers, queue)) for queue in range(num_queues)]
        self.held: dict[Waiting, Cell] = {}
        self._to_reorder = [Group(self._shuffle) for _ in range(num_queues)]
        self._to_merge = [Group(lambda _group: None) for _ in range(num_queues)]
        self._ending: set[int] = set()
        """Queues that have begun to stop, and have taken no request since."""
        self._arrivals: dict[asyncio.Future[None], tuple[frozenset[Cell], int]] = {}

    def _answers(self, queue: int) -> int:
        return 0 if self.backend is None else self.backend.statistics().queues[queue].answers

    # -- completions -------------------------------------------------------------------------------------------------

    async def handle(self, request: Chain) -> int:
        """Serve the request properly, or fail it, and then complete it when the settings say so."""
        cell = (request.queue, _NAMES.get(int.from_bytes(request.read(4), "little"), "other"))
        manners = self.manners[cell]
        self._ending.discard(request.queue)
        manners.requests += 1
        self._arrived()
        percent = manners.settings["error-percent"]
        if manners.error.take() or (percent and self.random.uniform(0, 100) < percent):
            manners.errors += 1
            written = _fail(request)
        else:
            written = await super().handle(request)
        await self._keep_back(cell, manners)
        if self.backend is not None:
            for number in range(int(manners.settings["duplicate"])):
                again = functools.partial(self.backend.answer_again, request, written)
                asyncio.get_running_loop().call_later((number + 1) * AGAIN, again)
        return written

    async def _keep_back(self, cell: Cell, manners: Manners) -> None:
        """Wait as the settings say, or until nothing is to be kept back any more."""
        queue, settings = cell[0], manners.settings
        if queue in self._ending:
            return
        if manners.withhold.take() and not await self._wait(cell):
            return
        if settings["reorder"] > 1 and not await self._gather(self._to_reorder[queue], cell, settings["reorder"]):
            return
        delay = settings["delay"] + self.random.uniform(0, settings["jitter"])
        if delay and not await self._wait(cell, delay / 1000):
            return
        if settings["merge"] > 1:
            await self._gather(self._to_merge[queue], cell, settings["merge"])

    async def _wait(self, cell: Cell, seconds: float | None = None) -> bool:
        loop = asyncio.get_running_loop()
        waiting: Waiting = loop.create_future()
        timer = None if seconds is None else loop.call_later(seconds, let_go, (waiting,))
        try:
            return await self._held(waiting, cell)
        finally:
            if timer is not None:
                timer.cancel()

    async def _gather(self, group: Group, cell: Cell, size: float) -> bool:
        waiting: Waiting = asyncio.get_running_loop().create_future()
        group.join(waiting, size, self.manners[cell].settings["hold"] / 1000)
        return await self._held(waiting, cell)

    async def _held(self, waiting: Waiting, cell: Cell) -> bool:
        self.held[waiting] = cell
        try:
            return await waiting
        finally:
            del self.held[waiting]

    def _shuffle(self, group: list[Waiting]) -> None:
        self.random.shuffle(group)

    def _let_go(self, cells: Iterable[Cell]) -> None:
        """Let completions come at once that are kept back in these cells."""
        cells = frozenset(cells)
        chosen = [waiting for waiting, cell in self.held.items() if cell in cells]
        # The groups that they were in begin anew, with those of other cells.
        for groups, name in ((self._to_reorder, "reorder"), (self._to_merge, "merge")):
            for queue in {queue for queue, _ in cells}:
                for waiting in groups[queue].leave():
                    if waiting in self.held and waiting not in chosen:
                        settings = self.manners[self.held[waiting]].settings
                        groups[queue].join(waiting, settings[name], settings["hold"] / 1000)
        let_go(chosen, further=False)

    # -- interrupts --------------------------------------------------------------------------------------------------

    def interrupt(self, queue: int, ring: Callable[[], None]) -> bool:
        """Interrupt as the settings say."""
        interrupt = self.interrupts[queue]
        withheld = interrupt.want(ring)
        if queue in self._ending:
            interrupt.release()
            return False
        return withheld

    def stopping(self, queue: int) -> None:
        """The front-end waits for all requests of a queue: nothing is kept back there any more."""
        self._ending.add(queue)
        self._let_go((queue, kind) for kind in TYPES)
        self.interrupts[queue].release()

    def reset(self) -> None:
        """The guest has gone, and its interrupts with it."""
        for interrupt in self.interrupts:
            interrupt.forget()

    # -- commands ----------------------------------------------------------------------------------------------------

    async def command(self, line: str) -> str:
        """Carry out a command; ValueError if it is none."""
        return await self.carry_out(parse(line, self.num_queues))

    async def carry_out(self, command: Command) -> str:
        """Carry out a command."""
        cells = frozenset((queue, kind) for queue in command.queues for kind in command.types)
        match command.word:
            case "set":
                self._set(command, cells)
            case "release":
                self._release(command, cells)
            case "reset":
                everything = parse("release", self.num_queues)
                for manners in self.manners.values():
                    manners.settings = dict(COMPLETIONS)
                    manners.error = Budget(0)
                for interrupt in self.interrupts:
                    interrupt.set(INTERRUPTS)
                self._release(everything, frozenset(self.manners))
            case "seed":
                self.random.seed(int(command.number))
            case "sleep":
                await asyncio.sleep(command.number)
            case "requests":
                await self._requests(cells, int(command.number))
            case _:
                return self._status(command, cells)
        return "ok"

    def _set(self, command: Command, cells: Iterable[Cell]) -> None:
        settings = command.settings
        budgets = {name: Budget(settings[name]) for name in ("withhold", "error") if name in settings}
        for cell in cells:
            manners = self.manners[cell]
            manners.settings.update((name, value) for name, value in settings.items() if name in COMPLETIONS)
            manners.withhold = budgets.get("withhold", manners.withhold)
            manners.error = budgets.get("error", manners.error)
        if chosen := {name: value for name, value in settings.items() if name in INTERRUPTS}:
            for queue in command.queues:
                self.interrupts[queue].set(chosen)

    def _release(self, command: Command, cells: frozenset[Cell]) -> None:
        for cell in cells:
            self.manners[cell].withhold = Budget(0)
        self._let_go(cells)
        if command.every_type:
            for queue in command.queues:
                self.interrupts[queue].settings["irq-withhold"] = 0
                self.interrupts[queue].release()

    async def _requests(self, cells: frozenset[Cell], number: int) -> None:
        arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrivals[arrived] = (cells, number + self._count(cells))
        try:
            self._arrived()
            await arrived
        finally:
            del self._arrivals[arrived]

    def _arrived(self) -> None:
        for arrived, (cells, number) in self._arrivals.items():
            if self._count(cells) >= number and not arrived.done():
                arrived.set_result(None)

    def _count(self, cells: Iterable[Cell]) -> int:
        return sum(self.manners[cell].requests for cell in cells)

    def _status(self, command: Command, cells: frozenset[Cell]) -> str:
        chosen = [self.manners[cell] for cell in sorted(cells)]
        interrupts = [self.interrupts[queue] for queue in command.queues]
        said = _common([manners.shown() for manners in chosen])
        said |= _common([interrupt.settings for interrupt in interrupts])
        counts = {
            "requests": self._count(cells),
            "errors": sum(manners.errors for manners in chosen),
            "held": sum(cell in cells for cell in self.held.values()),
            "interrupts": sum(interrupt.wanted for interrupt in interrupts),
            "rung": sum(interrupt.rung for interrupt in interrupts),
            "silent": sum(interrupt.silent for interrupt in interrupts),
        }
        return " ".join(f"{name}={value}" for name, value in (said | counts).items())

    async def run_script(self, commands: Iterable[Command]) -> None:
        """Carry out a script."""
        for command in commands:
            print(f"chaos: {command.text}: {await self.carry_out(command)}", flush=True)

    async def serve_control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client of the control socket; cancelled, it ends like any other, for nobody asks how it has ended."""
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while line := await _line(reader):
                if not line.partition("#")[0].strip():
                    continue
                try:
                    answer = await self.command(line.partition("#")[0])
                except ValueError as error:
                    answer = f"error: {error}"
                writer.write(f"{answer}\n".encode())
                await writer.drain()


async def _line(reader: asyncio.StreamReader) -> str:
    """A client's next line; nothing, if there is none, or no end of it."""
    try:
        return (await reader.readline()).decode(errors="replace")
    except ValueError:
        return ""


def _fail(request: Chain) -> int:
    """Answer with an I/O error, and nothing else."""
    if not request.writable:
        return 0
    request.writable[-1][-1] = Status.IOERR
    return 1 if request.writable_size == 1 else 0


def _common(settings: Sequence[dict[str, float]]) -> dict[str, str]:
    """What several have in common; ``*`` where they differ."""
    return {
        name: f"{value:g}" if all(other[name] == value for other in settings) else "*"
        for name, value in settings[0].items()
    }


async def serve(options: argparse.Namespace, where: program.Place, commands: Sequence[Command]) -> None:
    """Serve until SIGTERM."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    chaos = Chaos(options.blk_file, num_queues=options.num_queues, read_only=options.read_only)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(chaos.close)
        if options.control is not None:
            listener = stack.enter_context(Listener(socket_path(options.control)))
            server = await asyncio.start_unix_server(chaos.serve_control, sock=listener.sock)
            stack.callback(server.close)
        chaos.backend = await stack.enter_async_context(Backend(chaos, **where, tracer=Terminal("chaos")))
        print("chaos: ready", flush=True)
        script = asyncio.create_task(chaos.run_script(commands))
        # A script that cannot go on ends the run: whoever reads the results would take them for the script's.
        script.add_done_callback(lambda task: None if task.cancelled() or task.exception() is None else stop.set())
        stack.callback(script.cancel)
        over = asyncio.create_task(chaos.backend.serve_forever())
        over.add_done_callback(lambda _: stop.set())
        await stop.wait()
        over.cancel()
        if script.done():
            script.result()


def main() -> None:
    """The command line."""
    parser = blk_parser()
    parser.description = __doc__
    parser.add_argument("--script", metavar="PATH", help="a file of commands to carry out")
    parser.add_argument("--control", metavar="PATH", help="where to listen for commands at run time")
    options = program.parse(parser, kind="block", features=("read-only", "blk-file"))
    try:
        lines = [] if options.script is None else Path(options.script).read_text("utf-8").splitlines()
        commands = parse_script(lines, options.num_queues)
    except (OSError, ValueError) as error:
        sys.exit(f"chaos_blk: {options.script}: {error}")
    try:
        asyncio.run(serve(options, program.place(options), commands))
    except (OSError, ValueError) as error:
        sys.exit(f"chaos_blk: {error}")


if __name__ == "__main__":
    main()
