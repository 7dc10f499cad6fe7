"""The tree of the whole process: what is in it is asked where it lives, and nobody waits for ever for an answer.

What belongs to a loop is asked on that loop: in its own thread here and now, else by ``call_soon_threadsafe``. All that are concerned are
asked at once, and waited for together, so a loop that does not answer costs the time limit once, and the others nothing.
"""

from __future__ import annotations

import concurrent.futures
import os
import sys
import time
from typing import TYPE_CHECKING, Final, final

from aioirqfd import nodes
from aioirqfd.counter import IMPLEMENTATION
from aioirqfd.errors import IrqfdError
from aioirqfd.eventfd.loops import loop_here

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TIMEOUT: Final = 1.0
"""Seconds within which the loops have to answer."""
KINDS: Final = ("managers", "msix", "buses", "vhost_user", "vfio_user", "faults", "tracers")
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
    names = nodes.split(path)
    if names[:1] == (PROCESS,):
        return _process(names[1:])
    kind = names[0] if names else None
    key = names[1] if len(names) > 1 else None
    rest = names[2:]
    if kind is not None and kind not in {*KINDS, nodes.EACH}:
        raise InspectError(f"there is no {kind!r}, only {PROCESS}, {', '.join(KINDS)}")
    there = [one for one in nodes.entries() if kind in {None, nodes.EACH, one.kind}]
    entries = [one for one in there if key in {None, nodes.EACH, one.key}]
    if key is not None and not entries and nodes.EACH not in {kind, key}:
        raise InspectError(f"{kind}: there is no {key!r}, only {', '.join(one.key for one in there) or 'nothing'}")
    below = None if depth is None else depth - (2 - len(names[:2]))
    deadline = time.monotonic() + timeout
    answers = _answers(entries, rest, below, deadline, alone=key is not None and nodes.EACH not in names)
    return _joined(answers, kind, key, depth)


def _answers(
    entries: Sequence[nodes.Entry], rest: Sequence[str], depth: int | None, deadline: float, *, alone: bool
) -> dict[tuple[str, str], object]:
    """What each has to say; those that have nothing of the kind are left out."""
    if depth is not None and depth < 0:
        return {(one.kind, one.key): nodes.MORE for one in entries}
    answers: dict[tuple[str, str], object] = {}
    for asked in [_Asked(entry, lambda entry: nodes.look(entry.node(), rest, depth)) for entry in entries]:
        try:
            answers[asked.entry.kind, asked.entry.key] = asked.answer(deadline)
        except Exception as error:
            if alone:
                raise
            if not isinstance(error, _NoPartError):
                answers[asked.entry.kind, asked.entry.key] = {"error": str(error)}
    return answers


def _joined(answers: dict[tuple[str, str], object], kind: str | None, key: str | None, depth: int | None) -> object:
    """The answers, in the form that was asked for."""
    if kind is not None and key is not None and nodes.EACH not in {kind, key}:
        return next(iter(answers.values()))
    tree: dict[str, object] = {} if kind is not None else {PROCESS: _process(())}
    for one in KINDS:
        parts = {name: answer for (of, name), answer in answers.items() if of == one}
        if kind in {None, one} or parts:
            tree[one] = nodes.MORE if kind is None and depth == 0 else parts
    return tree if kind in {None, nodes.EACH} else tree[str(kind)]


def write(path: str, value: object, *, timeout: float = TIMEOUT) -> None:
    """Set what may be set: ``write("tracers/0/level", "warning")``.

    Args:
        path: Which setting.
        value: What it is to be.
        timeout: Seconds within which the event loop that it belongs to has to answer.

    Raises:
        InspectError: There is no such setting, it can be read only, or its event loop does not answer.
        ValueError: It cannot be that.

    Threads:
        Any.
    """
    names = nodes.split(path)
    rest = names[2:]
    entry = next((one for one in nodes.entries() if (one.kind, one.key) == names[:2]), None)
    if entry is None:
        raise InspectError(f"there is nothing to be set at {path!r}")
    _Asked(entry, lambda entry: nodes.put(entry.node(), rest, value)).answer(time.monotonic() + timeout)


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
