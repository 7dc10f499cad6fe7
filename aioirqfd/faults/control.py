"""The command language at work: carries out commands, from a script or from the clients of a control socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Final, final

from aioirqfd.faults.command import Command, parse, parse_script
from aioirqfd.faults.match import FaultError
from aioirqfd.faults.settings import Settings
from aioirqfd.faults.virtio import VirtioTarget
from aioirqfd.irqfd.guard import report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aioirqfd.faults.active import ActiveFault
    from aioirqfd.faults.faults import Faults
    from aioirqfd.faults.request import Request


@final
class Control:
    """Carries out commands on the faults of a device.

    Args:
        faults: The faults; the device was wrapped by them. Where it is one of virtio, ``set`` sets its manners.

    Attributes:
        settings: What ``set`` has set.
        num_queues: The queues that commands can name.
        types: The types of requests that commands can name.
    """

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._target = next((one for one in faults.targets if isinstance(one, VirtioTarget)), None)
        self.num_queues: Final = 0 if self._target is None else self._target.device.num_queues
        self.types: Final[Sequence[str]] = () if self._target is None else tuple(self._target.kinds)
        self.settings: Final = Settings(faults, self.num_queues, self.types)

    def parse(self, line: str) -> Command:
        """Read a command; ValueError if it is none."""
        return parse(line, self.num_queues, self.types)

    def parse_script(self, lines: Iterable[str]) -> list[Command]:
        """Read a script; ValueError if a line is no command."""
        return parse_script(lines, self.num_queues, self.types)

    async def command(self, line: str) -> str:
        """Carry out a command; return its answer.

        Raises:
            ValueError: It is none, or it cannot be carried out.
        """
        return await self.carry_out(self.parse(line))

    async def carry_out(self, command: Command) -> str:
        """Carry out a command; return its answer."""
        faults = self._faults
        match command.word:
            case "set":
                self.settings.set(command.settings, self._cells(command), command.queues)
            case "release":
                self._release(command)
            case "reset":
                self.settings.reset()
                faults.clear()
            case "seed":
                faults.seed(int(command.number))
            case "sleep":
                await asyncio.sleep(command.number)
            case "requests":
                types = () if command.every_type else tuple(command.types)
                await faults.wait_requests(int(command.number), kinds=types, queues=tuple(command.queues))
            case "on":
                assert command.match is not None
                assert command.fault is not None
                return faults.add(command.match, command.fault, name=command.name).name
            case "enable":
                self._named(command).enable()
            case "disable":
                self._named(command).disable()
            case "remove":
                self._named(command).remove()
            case "wait":
                await self._named(command).hit(int(command.number))
            case "json":
                return json.dumps(faults.status())
            case _:
                return self._status(command)
        return "ok"

    def _named(self, command: Command) -> ActiveFault:
        for active in self._faults.active:
            if active.name == command.name:
                return active
        names = ", ".join(one.name for one in self._faults.active) or "none"
        raise FaultError(f"no fault {command.name!r}; there are {names}")

    @staticmethod
    def _cells(command: Command) -> frozenset[tuple[int, str]]:
        return frozenset((queue, kind) for queue in command.queues for kind in command.types)

    def _release(self, command: Command) -> None:
        cells = self._cells(command)
        queues = command.queues if command.every_type else ()
        if self._target is None:
            self._faults.release()
            return
        self.settings.release(cells, queues)
        self._faults.release(where=self._among(cells))
        for queue in queues:
            self._target.lines[queue].release()

    @staticmethod
    def _among(cells: frozenset[tuple[int, str]]) -> Callable[[Request], bool]:
        return lambda request: (request.fields.get("queue"), request.kind) in cells

    def _status(self, command: Command) -> str:
        if self._target is None:
            return " ".join(f"{one.name}={one.hits}/{one.requests}" for one in self._faults.active)
        cells = self._cells(command)
        types, queues = tuple(command.types), tuple(command.queues)
        said = _common([self.settings.shown(cell) for cell in sorted(cells)])
        said |= _common([self.settings.interrupts[queue] for queue in queues])
        lines = [self._target.lines[queue] for queue in queues]
        among = self._among(cells)
        counts = {
            "requests": self._faults.count(kinds=types, queues=queues),
            "errors": sum(number for (kind, queue), number in self._faults.failed.items() if (queue, kind) in cells),
            "held": sum(among(request) for request, _ in self._faults.held.values()),
            "interrupts": sum(line.wanted for line in lines),
            "rung": sum(line.rung for line in lines),
            "silent": sum(line.silent for line in lines),
        }
        return " ".join(f"{name}={value}" for name, value in (said | counts).items())

    async def run_script(self, commands: Iterable[Command], say: Callable[[str], object]) -> None:
        """Carry out a script, and say of each command what came of it."""
        for command in commands:
            say(f"{command.text}: {await self.carry_out(command)}")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client of a control socket; cancelled, it ends like any other, for nobody asks how it has ended."""
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while line := await _line(reader):
                text = line.partition("#")[0]
                if not text.strip():
                    continue
                try:
                    answer = await self.command(text)
                except ValueError as error:
                    answer = f"error: {error}"
                except Exception as error:
                    # Of the device's own code, say. Whoever asked is told, and the loop's exception handler has the traceback.
                    report(f"aioirqfd: {text.strip()!r} on the control socket raised", error)
                    answer = f"error: {' '.join(repr(error).split())}"
                writer.write(f"{answer}\n".encode())
                await writer.drain()


async def _line(reader: asyncio.StreamReader) -> str:
    """A client's next line; nothing, if there is none, or no end of it."""
    try:
        return (await reader.readline()).decode(errors="replace")
    except ValueError:
        return ""


def _common(settings: Sequence[dict[str, float]]) -> dict[str, str]:
    """What several have in common; ``*`` where they differ."""
    return {
        name: f"{value:g}" if all(other[name] == value for other in settings) else "*"
        for name, value in settings[0].items()
    }
