"""A disk whose interrupts and completions misbehave, to test a guest's driver.

``python -m examples.chaos_blk --socket-path blk.sock --blk-file disk.img --script chaos.txt --control chaos.sock``

A script and the control socket take the same commands, one a line; the control socket answers each:

    set NAME=VALUE ...      delay=MS        each completion comes that much later
                            jitter=MS       and up to that much more, at random
                            reorder=N       completions are kept until there are N, and come in random order
                            withhold=N      the next N completions are kept until "release"
                    duplicate=N     each completion comes N times more
                            irq-delay=MS    each interrupt comes that much later
                            irq-merge=N     only each Nth interrupt comes
                            irq-duplicate=N each interrupt comes N times more
                            irq-withhold=1  no interrupt comes until "release"
                            irq-spurious=MS an interrupt for nothing comes that often
    release                 what is withheld comes, and nothing more is withheld
    reset                   behave
    seed N                  choose the same at random again
    sleep SECONDS           (for scripts)
    requests N              go on when N more requests have come (for scripts)
    status                  the settings and the counts
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import random
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from aioirqfd.vhost_user import Backend, Chain
from examples.vhost_user_blk import Blk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SETTINGS = (
    "delay",
    "jitter",
    "reorder",
    "withhold",
    "duplicate",
    "irq-delay",
    "irq-merge",
    "irq-duplicate",
    "irq-withhold",
    "irq-spurious",
)
AGAIN = 0.001
"""Seconds between an interrupt, or a completion, and its duplicate: at once, the two interrupts would be one."""
FLUSH = 0.05
"""Seconds after which completions that wait to be re-ordered come although they are too few: there may be no more."""


class Chaos(Blk):
    """The block device, and its bad manners. Starts well-behaved."""

    def __init__(self, path: str, *, num_queues: int = 1, read_only: bool = False) -> None:
        super().__init__(path, num_queues=num_queues, read_only=read_only, serial="chaos")
        self.random = random.Random(0)  # noqa: S311
        self.settings = dict.fromkeys(SETTINGS, 0)
        self.counts = dict.fromkeys(("requests", "interrupts", "rung"), 0)
        self.withheld: list[asyncio.Future[None]] = []
        self.to_reorder: list[asyncio.Future[None]] = []
        self.silent: dict[int, Callable[[], None]] = {}
        self.rings: dict[int, Callable[[], None]] = {}
        self.arrived: list[tuple[int, asyncio.Future[None]]] = []
        self.spurious: asyncio.TimerHandle | None = None
        self.backend: Backend | None = None

    # -- completions -------------------------------------------------------------------------------------------------

    async def handle(self, request: Chain) -> int:
        """Serve the request properly, and then complete it when the settings say so."""
        written = await super().handle(request)
        self.counts["requests"] += 1
        for number, waiting in self.arrived:
            if self.counts["requests"] >= number and not waiting.done():
                waiting.set_result(None)
        settings = self.settings
        if settings["withhold"]:
            settings["withhold"] -= 1
            await self._wait(self.withheld)
        if settings["reorder"]:
            if len(self.to_reorder) + 1 >= settings["reorder"]:
                asyncio.get_running_loop().call_soon(self._shuffle)
            elif not self.to_reorder:
                asyncio.get_running_loop().call_later(FLUSH, self._shuffle)
            await self._wait(self.to_reorder)
        milliseconds = settings["delay"] + self.random.uniform(0, settings["jitter"])
        if milliseconds:
            await asyncio.sleep(milliseconds / 1000)
        if self.backend is not None:
            for number in range(settings["duplicate"]):
                again = functools.partial(self.backend.answer_again, request, written)
                asyncio.get_running_loop().call_later((number + 1) * AGAIN, again)
        return written

    @staticmethod
    async def _wait(where: list[asyncio.Future[None]]) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        where.append(waiting)
        await waiting

    def _shuffle(self) -> None:
        waiting, self.to_reorder = self.to_reorder, []
        self.random.shuffle(waiting)
        self._let_go(waiting)

    @staticmethod
    def _let_go(waiting: Iterable[asyncio.Future[None]]) -> None:
        for future in waiting:
            if not future.done():
                future.set_result(None)

    # -- interrupts --------------------------------------------------------------------------------------------------

    def interrupt(self, queue: int, ring: Callable[[], None]) -> None:
        """Interrupt as the settings say."""
        self.rings[queue] = ring
        self.counts["interrupts"] += 1
        settings = self.settings
        if settings["irq-withhold"] or (
            settings["irq-merge"] > 1 and self.counts["interrupts"] % settings["irq-merge"]
        ):
            self.silent[queue] = ring
            return
        self.silent.pop(queue, None)
        if not settings["irq-delay"] and not settings["irq-duplicate"]:
            self._ring(ring)
            return
        for number in range(settings["irq-duplicate"] + 1):
            delay = settings["irq-delay"] / 1000 + number * AGAIN
            asyncio.get_running_loop().call_later(delay, self._ring, ring)

    def _ring(self, ring: Callable[[], None]) -> None:
        self.counts["rung"] += 1
        ring()

    def _ring_for_nothing(self) -> None:
        period = self.settings["irq-spurious"]
        self.spurious = None
        if period:
            for ring in self.rings.values():
                self._ring(ring)
            self.spurious = asyncio.get_running_loop().call_later(period / 1000, self._ring_for_nothing)

    def release(self) -> None:
        """Let everything go that is withheld, and withhold nothing more."""
        self.settings["withhold"] = self.settings["irq-withhold"] = 0
        waiting, self.withheld = self.withheld, []
        self._let_go(waiting)
        self._shuffle()
        silent, self.silent = self.silent, {}
        for ring in silent.values():
            self._ring(ring)

    def stopping(self, queue: int) -> None:
        """The front-end waits for all requests: chaos ends here."""
        del queue
        self.release()

    def reset(self) -> None:
        """The guest has gone, and its interrupts with it."""
        self.silent.clear()
        self.rings.clear()

    # -- commands ----------------------------------------------------------------------------------------------------

    async def command(self, line: str) -> str:
        """Carry out a command; ValueError if it is none."""
        match line.split():
            case ["set", *pairs] if pairs:
                new = {name: int(value) for name, _, value in (pair.partition("=") for pair in pairs)}
                if unknown := new.keys() - set(SETTINGS):
                    raise ValueError(f"no setting {sorted(unknown)}; there are {', '.join(SETTINGS)}")
                self.settings |= new
                if self.settings["irq-spurious"] and self.spurious is None:
                    self._ring_for_nothing()
            case ["release"]:
                self.release()
            case ["reset"]:
                self.settings = dict.fromkeys(SETTINGS, 0)
                self.release()
            case ["seed", number]:
                self.random.seed(int(number))
            case ["sleep", seconds]:
                await asyncio.sleep(float(seconds))
            case ["requests", number]:
                waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                entry = (self.counts["requests"] + int(number), waiting)
                self.arrived.append(entry)
                try:
                    await waiting
                finally:
                    self.arrived.remove(entry)
            case ["status"]:
                return " ".join(f"{name}={value}" for name, value in (self.settings | self.counts).items())
            case _:
                raise ValueError(f"no command: {line.strip()!r}")
        return "ok"

    async def run_script(self, lines: Iterable[str]) -> None:
        """Carry out a script: a command a line, ``#`` begins a comment."""
        for line in lines:
            if line := line.partition("#")[0].strip():
                print(f"chaos: {line}: {await self.command(line)}", flush=True)

    async def serve_control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client of the control socket."""
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                try:
                    answer = await self.command(line.decode(errors="replace"))
                except ValueError as error:
                    answer = f"error: {error}"
                writer.write(f"{answer}\n".encode())
                await writer.drain()


async def serve(options: argparse.Namespace, lines: Iterable[str]) -> None:
    """Serve until SIGTERM."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    chaos = Chaos(options.blk_file, num_queues=options.num_queues, read_only=options.read_only)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(chaos.close)
        if options.control:
            server = await asyncio.start_unix_server(chaos.serve_control, options.control)
            stack.callback(functools.partial(Path(options.control).unlink, missing_ok=True))
            stack.callback(server.close)
        chaos.backend = await stack.enter_async_context(Backend(chaos, options.socket_path))
        if lines:
            script = asyncio.create_task(chaos.run_script(lines))
            stack.callback(script.cancel)
        await stop.wait()


def main() -> None:
    """Read the command line, and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--socket-path", required=True, help="where to listen for the front-end")
    parser.add_argument("--blk-file", required=True, help="the image or block device")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--num-queues", type=int, default=1)
    parser.add_argument("--script", help="commands to begin with")
    parser.add_argument("--control", help="where to listen for commands")
    options = parser.parse_args()
    lines = Path(options.script).read_text("utf-8").splitlines() if options.script else []
    asyncio.run(serve(options, lines))


if __name__ == "__main__":
    main()
