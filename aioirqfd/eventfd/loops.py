"""What is asked of an event loop: to be asyncio's, to be running here, and to call us when an fd of ours is readable."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import os
import sys
from typing import TYPE_CHECKING, Final

from aioirqfd.errors import WrongLoopError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def _loop_here() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


# Asked at each signal of a thread. asyncio exports an answer that raises nothing, for event loops and their kin; by an underscore.
loop_here: Final[Callable[[], asyncio.AbstractEventLoop | None]] = getattr(asyncio, "_get_running_loop", _loop_here)
"""The asyncio event loop that runs in this thread, or None."""

# Asked at each signal on the loop's own thread. Up to 3.13 asyncio keeps the tasks that run in a dict, which costs a third of the call;
# from 3.14 on in the thread's state, and the dict of that name is empty for ever.
current_task: Final[Mapping[object, object] | Callable[..., object]] = (
    vars(asyncio.tasks)["_current_tasks"] if sys.version_info < (3, 14) else asyncio.current_task
)
"""Tells which task of a loop is in the middle of a step: to be called with the loop, or a mapping of loops."""


def running_loop() -> asyncio.AbstractEventLoop:
    """The loop that runs in this thread.

    Raises:
        WrongLoopError: There is none, or it is not asyncio's.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise WrongLoopError("aioirqfd runs on asyncio: no asyncio event loop is running in this thread") from None


def add_reader(loop: asyncio.AbstractEventLoop, fd: int, call: Callable[[], object], *, elsewhere: bool = False) -> int:
    """Have the loop call us whenever the fd is readable, in a context of nobody's.

    A program that closes an fd without ``remove_reader()`` leaves its registration behind. Whoever gets the number next finds it
    registered already, asyncio arms nothing, and no event ever comes. What a loop knows under a number that the kernel has just
    given to us can only be such a leftover: it is removed. And since whoever left it may yet clean up, and take away what is
    registered there then, a number without a past is used: a dup's.

    Args:
        loop: The loop.
        fd: An fd of ours that the loop does not watch.
        call: What is called.
        elsewhere: Not under this number, if there is room for a dup.

    Returns:
        The fd that was registered: it, or a dup of it, where there is room for one.

    Raises:
        WrongLoopError: It is a loop that cannot do that.
        RuntimeError: There is no room for a dup, and a transport has the number.
    """
    tried: list[int] = []
    number = fd
    try:
        while elsewhere or not _without_a_past(loop, number):
            try:
                number = os.dup(fd)
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
                break  # the leftover is gone, at least
            elsewhere = False
            tried.append(number)
        # In a context of nobody's: whoever comes first would lend his to all who come later, and live on in it.
        contextvars.Context().run(loop.add_reader, number, call)
    except (NotImplementedError, AttributeError):
        raise WrongLoopError(f"aioirqfd needs an event loop with add_reader(), which {loop!r} does not have") from None
    except BaseException:
        number = fd
        raise
    finally:
        for other in tried:
            if other != number:
                os.close(other)
    return number


def _without_a_past(loop: asyncio.AbstractEventLoop, fd: int) -> bool:
    """Whether the loop knows nothing under the number; what it knows is removed, if that is possible."""
    known = False
    for remove in (loop.remove_reader, loop.remove_writer):
        try:
            known = bool(remove(fd)) or known
        except NotImplementedError:
            raise
        except (RuntimeError, OSError):
            known = True  # a transport's, whose socket was closed under it; or its other half, which went along
    return not known


def remove_reader(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    """Undo :func:`add_reader`, if the loop is not closed."""
    if not loop.is_closed():
        with contextlib.suppress(OSError):
            loop.remove_reader(fd)
