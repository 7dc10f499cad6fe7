"""One private epoll per event loop, registered once with ``loop.add_reader``.

Why not an ``add_reader`` for each eventfd: the loop then makes one callback and one handle for every event, and reads are the
only way to stop it. A private epoll is one reader to the loop; its events are taken many at a time by the counter module,
edge-triggered, so that mostly nothing has to be read at all.

A poller is made by the first eventfd or manager that needs one on its loop and closed by the last that leaves, so a loop that
is not used any more holds no file descriptor of ours.
"""

# pyright: reportPrivateUsage=false
# (the same)
from __future__ import annotations

import asyncio
import contextvars
import os
import weakref
from typing import TYPE_CHECKING, Final, final

from aioirqfd.counter import Drain
from aioirqfd.errors import WrongLoopError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aioirqfd.counter import EventFdCtx

# Asked at each signal on the loop's thread. Up to 3.13 asyncio keeps the tasks that run in a dict, which costs a third of the call.
_CURRENT_TASK: Final[Mapping[object, object] | Callable[..., object]] = getattr(
    asyncio.tasks, "_current_tasks", asyncio.current_task
)

# Both sides weak: a poller refers to its loop, so a strong one would keep every loop there ever was.
_pollers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[Poller]] = weakref.WeakKeyDictionary()


def _drop_inherited() -> None:
    """In a forked child: let go of the parent's epolls without touching their registrations, which both processes share."""
    for reference in list(_pollers.values()):
        poller = reference()
        if poller is not None:
            poller.drain.abandon()
    _pollers.clear()


os.register_at_fork(after_in_child=_drop_inherited)


def _stop_reading(loop: asyncio.AbstractEventLoop, drain: Drain) -> None:
    fd = drain.fileno()
    if fd >= 0 and not loop.is_closed():
        loop.remove_reader(fd)
    drain.close()


def _nothing() -> None:
    """Has a loop turn round once."""


@final
class Poller:
    """The private epoll of one loop, and its users.

    Not made by hand: :meth:`get` gives the running loop's.

    Args:
        loop: The loop it belongs to.
        max_events: Bound of one pass: how many events are taken from the epoll, and as many in-process signals, before the
            loop gets its turn again.
    """

    __slots__ = ("__weakref__", "_users", "drain", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, *, max_events: int = 1024) -> None:
        self.loop = loop
        self.drain = Drain(max_events, loop, asyncio._get_running_loop, _CURRENT_TASK)
        self._users = 0
        # In a context of nobody's: whoever comes first would lend his to all who come later, and live on in it.
        contextvars.Context().run(loop.add_reader, self.drain.fileno(), self.drain.run)

    @classmethod
    def get(cls, *, max_events: int = 1024) -> Poller:
        """The running loop's poller; made now if there is none.

        Args:
            max_events: For the one that is made now, 1..2**20; one that is there keeps its own. So who wants another bound asks
                for it, and acquires it, before the first eventfd is waited for.

        Raises:
            WrongLoopError: There is no running loop.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise WrongLoopError("this needs a running event loop") from None
        reference = _pollers.get(loop)
        poller = reference() if reference is not None else None
        if poller is None:
            poller = cls(loop, max_events=max_events)
            _pollers[loop] = weakref.ref(poller)
        return poller

    @property
    def gone(self) -> bool:
        """Whether nothing will come of it any more: its loop is closed, or is the parent process's."""
        return self.loop.is_closed() or self.drain.fileno() < 0

    def acquire(self) -> None:
        """Count one more user."""
        self._users += 1

    def release(self) -> None:
        """Count one user less; the last one closes the epoll."""
        self._users -= 1
        if self._users == 0:
            self._close()

    def attach(self, ctx: EventFdCtx) -> None:
        """Hear of the eventfd's signals from now on. What it holds already counts as one."""
        self.drain.add(ctx)
        self.acquire()

    def detach(self, ctx: EventFdCtx) -> None:
        """Hear nothing of it any more."""
        self.drain.remove(ctx)
        self.release()

    def nudge(self) -> None:
        """Something was made ready on the loop's thread, perhaps by a signal handler while the loop sleeps: have it look."""
        if asyncio.current_task(self.loop) is None and not self.loop.is_closed():
            # Not by the drain, which the last user may be about to close.
            self.loop.call_soon_threadsafe(_nothing)

    def check_here(self) -> None:
        """Raise WrongLoopError unless this poller's loop is running in this thread."""
        if asyncio._get_running_loop() is not self.loop:
            raise WrongLoopError("this object belongs to another event loop, or to none that is running here")

    def _close(self) -> None:
        reference = _pollers.get(self.loop)
        if reference is not None and reference() in {self, None}:
            del _pollers[self.loop]
        loop, drain = self.loop, self.drain
        if loop.is_running() and asyncio._get_running_loop() is not loop:
            # The last user was dropped open, and the collector ran in another thread than the loop.
            loop.call_soon_threadsafe(_stop_reading, loop, drain)
        else:
            _stop_reading(loop, drain)

    def __del__(self) -> None:
        self._close()
