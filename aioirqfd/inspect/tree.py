"""The tree of the whole process: what is in it is asked where it lives, and nobody waits for ever for an answer.

What belongs to a loop is asked on that loop: in its own thread here and now, else by ``call_soon_threadsafe``. All that are concerned are
asked at once, and waited for together, so a loop that does not answer costs the time limit once, and the others nothing.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Final, final

from aioirqfd import nodes
from aioirqfd.counter import IMPLEMENTATION
from aioirqfd.errors import IrqfdError
from aioirqfd.eventfd.loops import loop_here
from aioirqfd.serving.sockets import done

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TIMEOUT: Final = 1.0
"""Seconds within which the loops have to answer."""
KINDS: Final = ("managers", "msix", "buses", "pci", "vhost_user", "vfio_user", "faults", "tracers")
"""What the root has, beside the process itself."""
PROCESS: Final = "process"


class InspectError(IrqfdError):
    """There is no such node, it cannot be written, or the event loop that it belongs to does not answer."""


class _NoPartError(InspectError):
    """An object has no such part."""


@final
class _Asked:
    """One object that was asked for part of its node."""

    def __init__(self, entry: nodes.Entry, do: Callable[[nodes.Entry], object]) -> None:
        self.entry: Final = entry
        self._answer: concurrent.futures.Future[object] = concurrent.futures.Future()
        self._do: Final = do
        loop = entry.loop()
        if loop is None or loop is loop_here():
            self._run(self._answer)
        elif loop.is_closed() or not loop.is_running():
            self._fail(f"its event loop {'is closed' if loop.is_closed() else 'is not running'}")
        else:
            try:
                loop.call_soon_threadsafe(self._run, self._answer)
            except RuntimeError:
                self._fail("its event loop is closed")

    def _fail(self, why: str) -> None:
        self._answer.set_exception(InspectError(f"{self.entry.path}: {why}"))

    def _run(self, answer: concurrent.futures.Future[object]) -> None:
        if not answer.set_running_or_notify_cancel():
            return  # nobody waits for it any more
        try:
            answer.set_result(self._do(self.entry))
        except nodes.NodeError as error:
            answer.set_exception(_NoPartError(f"{self.entry.path}: {error.args[0]}"))
        except Exception as error:
            answer.set_exception(error)
        finally:
            del answer  # else the error's traceback would keep it, and what was asked, until the collector comes

    def when_done(self, call: Callable[[object], None]) -> None:
        """Call this when it has answered, in whichever thread; here and now, if it has."""
        self._answer.add_done_callback(call)

    def answer(self, deadline: float) -> object:
        """What it has said. To be called once.

        Raises:
            InspectError: It has nothing of the kind, or no time.
            Exception: What it raised.
        """
        answer, self._answer = self._answer, concurrent.futures.Future()
        try:
            return answer.result(max(deadline - time.monotonic(), 0))
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            answer.cancel()
            raise InspectError(
                f"{self.entry.path}: its event loop has not answered in time: it is busy, or waits in a call that blocks"
            ) from None
        finally:
            del answer  # as above


def read(path: str = "", depth: int | None = None, *, timeout: float = TIMEOUT) -> object:
    """What there is to see, as a value that ``json`` takes.

    Args:
        path: Which part: ``"managers/0/gsi/5"``. ``*`` stands for each there is: ``"managers/*/queue"``. All without one.
        depth: How many levels of parts are shown below it, 0 or more; what lies deeper is ``"..."``. None: all.
        timeout: Seconds within which other event loops have to answer.

    Returns:
        The part. Where several are asked for, one that cannot answer is ``{"error": why}``.

    Raises:
        InspectError: There is no such part; or it was asked for alone, and its event loop is closed or does not answer.

    Threads:
        Any. The loop of the calling thread is asked here and now, so it must not wait for this one's meanwhile.
    """
    return _Reading(path, depth).value(time.monotonic() + timeout)


async def aread(path: str = "", depth: int | None = None, *, patience: float = TIMEOUT) -> object:
    """The same as :func:`read`, for who is on an event loop: this one goes on meanwhile. It takes no thread.

    Args:
        path: As there.
        depth: As there.
        patience: As the ``timeout`` there.

    Cancellation:
        Nobody waits for the answers any more.
    """
    reading = _Reading(path, depth)
    await _answered(reading.asked, patience)
    return reading.value(time.monotonic())


async def _answered(asked: Sequence[_Asked], patience: float) -> None:
    """Wait until all have said something, or the time is over."""
    loop = asyncio.get_running_loop()
    waiting = [loop.create_future() for _ in asked]
    for one, future in zip(asked, waiting, strict=True):
        one.when_done(partial(_tell, loop, future))
    if waiting:
        await asyncio.wait(waiting, timeout=patience)


def _tell(loop: asyncio.AbstractEventLoop, waiting: asyncio.Future[None], _: object) -> None:
    with contextlib.suppress(RuntimeError):  # it is closed, and nobody waits
        loop.call_soon_threadsafe(done, waiting)


@final
class _Reading:
    """A look at the tree: all that are concerned have been asked, and answer when they can.

    Attributes:
        asked: Who.
    """

    def __init__(self, path: str, depth: int | None) -> None:
        names = self._names = nodes.split(path)
        kind, key = names[0] if names else None, names[1] if len(names) > 1 else None
        self._depth: Final = depth
        self._kind: Final = kind
        self._key: Final = key
        self._beyond: list[nodes.Entry] = []  # deeper than was asked for
        self.asked: list[_Asked] = []
        if kind == PROCESS:
            return
        if kind is not None and kind not in {*KINDS, nodes.EACH}:
            raise InspectError(f"there is no {kind!r}, only {PROCESS}, {', '.join(KINDS)}")
        there = [one for one in nodes.entries() if kind in {None, nodes.EACH, one.kind}]
        entries = [one for one in there if key in {None, nodes.EACH, one.key}]
        if key is not None and not entries and nodes.EACH not in {kind, key}:
            raise InspectError(f"{kind}: there is no {key!r}, only {', '.join(one.key for one in there) or 'nothing'}")
        below = None if depth is None else depth - (2 - len(names[:2]))
        if below is not None and below < 0:
            self._beyond = entries
        else:
            rest = names[2:]
            self.asked = [_Asked(entry, lambda entry: nodes.look(entry.node(), rest, below)) for entry in entries]

    def value(self, deadline: float) -> object:
        """What they have said. To be called once.

        Args:
            deadline: When those who have not answered are given up, by ``time.monotonic()``.

        Raises:
            InspectError: It was one alone, and has not.
        """
        kind = self._kind
        if kind == PROCESS:
            return _process(self._names[1:])
        answers = self._answers(deadline)
        if self._alone:
            return next(iter(answers.values()))
        tree: dict[str, object] = {} if kind is not None else {PROCESS: _process(())}
        for one in KINDS:
            parts = {name: answer for (of, name), answer in answers.items() if of == one}
            if kind in {None, one} or parts:
                tree[one] = nodes.MORE if kind is None and self._depth == 0 else parts
        return tree if kind in {None, nodes.EACH} else tree[str(kind)]

    @property
    def _alone(self) -> bool:
        """Whether one object alone was asked."""
        return self._key is not None and nodes.EACH not in {self._kind, self._key}

    def _answers(self, deadline: float) -> dict[tuple[str, str], object]:
        """What each has to say; those that have nothing of the kind are left out."""
        answers: dict[tuple[str, str], object] = {(one.kind, one.key): nodes.MORE for one in self._beyond}
        for asked in self.asked:
            try:
                answers[asked.entry.kind, asked.entry.key] = asked.answer(deadline)
            except Exception as error:
                if self._alone:
                    raise
                if not isinstance(error, _NoPartError):
                    answers[asked.entry.kind, asked.entry.key] = {"error": str(error)}
        return answers


def write(path: str, value: object, *, timeout: float = TIMEOUT) -> None:
    """Set what may be set: ``write("tracers/0/level", "warning")``.

    Args:
        path: Which setting: one, so without ``*``.
        value: What it is to be.
        timeout: Seconds within which the event loop that it belongs to has to answer.

    Raises:
        InspectError: There is no such setting, it can be read only, or its event loop does not answer.
        ValueError: It cannot be that.

    Threads:
        Any.
    """
    _written(path, value).answer(time.monotonic() + timeout)


async def awrite(path: str, value: object, *, patience: float = TIMEOUT) -> None:
    """The same as :func:`write`, as :func:`aread` is of :func:`read`."""
    asked = _written(path, value)
    await _answered([asked], patience)
    asked.answer(time.monotonic())


def _written(path: str, value: object) -> _Asked:
    names = nodes.split(path)
    rest = names[2:]
    if nodes.EACH in names:
        raise InspectError(f"{path!r} stands for several, and one setting is written at a time: say which, without *")
    entry = next((one for one in nodes.entries() if (one.kind, one.key) == names[:2]), None)
    if entry is None:
        raise InspectError(f"there is nothing to be set at {path!r}")
    return _Asked(entry, lambda entry: nodes.put(entry.node(), rest, value))


def _process(rest: Sequence[str]) -> object:
    process = {
        "pid": os.getpid(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "implementation": IMPLEMENTATION,
        "time": time.time(),
    }
    try:
        return nodes.look(process, rest)
    except nodes.NodeError as error:
        raise InspectError(f"{PROCESS}: {error.args[0]}") from None
