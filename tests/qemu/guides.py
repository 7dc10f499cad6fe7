"""A guide of the documentation, followed as it is printed: its lines are run, and what it shows has to appear.

In a ``console`` block, a line after ``$ `` is for a shell, which goes on from one to the next; one that starts QEMU runs in a terminal of
its own; one after ``/ # `` is typed at the guest's prompt. The lines below are what the command prints. A ``shell`` block is pasted whole.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.qemu import program

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HOST, GUEST = "$", "/ #"
BLOCK = re.compile(r"^```(console|shell)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(\$|/ #) (.*)$")
PROMPT = re.compile(r"^\S*[/~]\S* # ", re.MULTILINE)
"""Busybox's shell waits: ``/ # ``, or with a home ``~ # ``, or in a directory ``/sys/bus # ``. More may stand behind it by the time that it is looked at: the kernel's."""
ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|c)|\r")
HALF_ESCAPE = re.compile(r"\x1b(\[[0-9;?]*)?\Z")
VARIES = re.compile(r"\d+\.\d+|\b[0-9a-f]{16,}\b")
"""What is another each time: seconds, milliseconds, random bytes."""
QEMU = "qemu-system-x86_64 "
SECONDS = 120
"""That anything may take before the test fails with what was said until then."""


class GuideError(Exception):
    """What a guide shows did not come; the text ends with what came instead."""


@dataclass(frozen=True)
class Step:
    """A command, where it is typed, and what the guide shows of its output."""

    place: str
    command: str
    shown: tuple[str, ...]


def steps(page: str) -> list[Step]:
    """Every command of a page's ``console`` blocks."""
    found: list[Step] = []
    for language, text in BLOCK.findall((DOCS / page).read_text("utf-8")):
        if language == "console":
            for line in text.replace("\\\n", "").splitlines():
                if command := COMMAND.match(line):
                    found.append(Step(command[1], re.sub(r" +", " ", command[2]), ()))
                else:
                    found[-1] = Step(found[-1].place, found[-1].command, (*found[-1].shown, line))
    return found


def scripts(page: str) -> list[str]:
    """Every ``shell`` block of a page."""
    return [text for language, text in BLOCK.findall((DOCS / page).read_text("utf-8")) if language == "shell"]


def text_block(page: str, word: str) -> str:
    """The ``text`` block of a page that begins with this word."""
    found = re.findall(r"^```text\n(.*?)^```$", (DOCS / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return next(text for text in found if text.startswith(word))


def printable(text: str) -> tuple[str, str]:
    """What stands on a screen of this text, and the beginning of an escape sequence whose rest is still to come."""
    half = HALF_ESCAPE.search(text)
    whole = text[: half.start()] if half else text
    return ESCAPES.sub("", whole), text[len(whole) :]


class Screen:
    """A program, what it has printed, and its keyboard."""

    def __init__(self, *command: str, directory: Path, environment: Mapping[str, str]) -> None:
        self.text = ""
        self._command = ("setpriv", "--pdeathsig", "KILL", "--", *command)
        self._directory = directory
        self._environment = environment
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        self.process = await asyncio.create_subprocess_exec(
            *self._command,
            cwd=self._directory,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self.process.stdout is not None
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        kept = ""
        while data := await self.process.stdout.read(1 << 16):
            text, kept = printable(kept + decoder.decode(data))
            self.text += text
            self._news.set()
        self._news.set()

    def type(self, line: str) -> int:
        """Type a line; where the output that follows begins."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        return len(self.text)

    async def until(self, pattern: str | re.Pattern[str], start: int = 0) -> str:
        """Wait until the output has the pattern in it; return what there was up to its end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SECONDS):
                while True:
                    if found := re.compile(pattern).search(self.text, start):
                        return self.text[start : found.end()]
                    if self._reading.done():
                        break
                    self._news.clear()
                    await self._news.wait()
        raise GuideError(f"no {pattern!r} in {self.text[start:]!r}")

    async def shows(self, lines: tuple[str, ...], start: int) -> None:
        """Wait until the lines have been printed, in this order; others may be between them."""
        await self.until(r"(?s)" + r"\n.*?".join(_pattern(line) for line in lines), start)

    async def ended(self) -> None:
        """Wait until the program ends by itself."""
        try:
            async with asyncio.timeout(SECONDS):
                await self._reading
        except TimeoutError:
            raise GuideError(f"it goes on after {self.text!r}") from None


def _pattern(line: str) -> str:
    """A line of the guide as a pattern: numbers as wide as they are, and with them the columns."""
    fixed = (" +".join(map(re.escape, re.split(" +", part))) for part in VARIES.split(line))
    return r"[\d.a-f]+".join(fixed)


class Follower:
    """Somebody who follows a guide in a directory that has the examples in it, with the QEMU under test on the PATH."""

    def __init__(self, directory: Path, guest: str = "") -> None:
        """Begin.

        Args:
            directory: Where the commands are run.
            guest: What stands for the dots of ``qemu-system-x86_64 ...``.
        """
        found = program.path()
        assert found is not None
        tools = directory / "tools"
        tools.mkdir(exist_ok=True)
        for name, path in (("qemu-system-x86_64", found), ("python", sys.executable)):
            (tools / name).unlink(missing_ok=True)
            # A link would not do: Python would not know its environment.
            (tools / name).write_text(f'#!/bin/sh\nexec "{path}" "$@"\n', "utf-8")
            (tools / name).chmod(0o755)
        if not (directory / "examples").exists():
            (directory / "examples").symlink_to(ROOT / "examples")
        self.directory = directory
        self.environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "TERM": "dumb"}
        # Two programs write to one screen: each has to write its lines whole.
        self.environment.pop("PYTHONUNBUFFERED", None)
        self.guest_options = guest
        self.qemu: Screen | None = None
        self._stack = contextlib.AsyncExitStack()
        self._qemu_stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        # Job control, for %1.
        self.shell = await self._stack.enter_async_context(self._screen("bash", "--norc", "--noprofile", "-m"))
        self._stack.push_async_callback(self._end)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _screen(self, *command: str) -> Screen:
        return Screen(*command, directory=self.directory, environment=self.environment)

    async def _end(self) -> None:
        await self._qemu_stack.aclose()
        self.shell.type("kill -KILL $(jobs -p) 2>/dev/null; exit")
        await self.shell.ended()

    async def take(self, step: Step) -> None:
        """Take a step: run it, and see what the guide shows."""
        if step.place == GUEST:
            await self.guest(step.command, step.shown)
        elif step.command.startswith(QEMU):
            await self.start(step.command)
        else:
            await self.host(step.command, step.shown)

    async def host(self, command: str, shown: tuple[str, ...] = ()) -> str:
        """Run something in the shell, which must succeed."""
        start = self.shell.type(command)
        self.shell.type("echo ENDED $?")
        said = await self.shell.until(r"ENDED \d+\n", start)
        assert said.endswith("ENDED 0\n"), (command, said)
        await self.shell.shows(shown, start)
        return said

    async def start(self, command: str, wait_for: str | re.Pattern[str] = PROMPT) -> Screen:
        """Start QEMU in a terminal of its own, and wait for the prompt. One that runs is ended."""
        await self._qemu_stack.aclose()
        line = command.replace(" ... ", f" {self.guest_options} ")
        self.qemu = await self._qemu_stack.enter_async_context(self._screen("bash", "-c", f"exec {line}"))
        await self.qemu.until(wait_for)
        return self.qemu

    async def guest(self, command: str, shown: tuple[str, ...] = ()) -> str:
        """Type something at the guest's prompt, and wait for the next one; ``exit`` ends the guest."""
        assert self.qemu is not None
        start = self.qemu.type(command)
        if command == "exit":
            await self.qemu.ended()
            return self.qemu.text[start:]
        said = await self.qemu.until(PROMPT, start)
        await self.qemu.shows(shown, start)
        return said
