"""One private epoll per event loop, registered once with ``loop.add_reader``.

Why not an ``add_reader`` for each eventfd: the loop then makes one callback and one handle for every event, and reads are the
only way to stop it. A private epoll is one reader to the loop; its events are taken many at a time by the counter module,
edge-triggered, so that mostly nothing has to be read at all.

A poller is made by the first eventfd or manager that needs one on its loop and closed by the last that leaves, so a loop that
is not used any more holds no file descriptor of ours.

Nothing tells that a loop is closed. But a loop that is closed lets go of its callbacks, and ours is a bound method that nobody
else holds: when that dies, either the loop is closed, or somebody has removed our registration, who thought that the number was
still his. In the first case nobody listens any more, and everything goes where it would go then; in the second we register anew.
"""

# pyright: reportPrivateUsage=false
# (the same)
from __future__ import annotations

import asyncio
import os
import weakref
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast, final

from aioirqfd.counter import Drain
from aioirqfd.errors import WrongLoopError
from aioirqfd.eventfd.loops import add_reader, current_task, loop_here, remove_reader, running_loop
from aioirqfd.eventfd.teardown import tear_down
from aioirqfd.integers import integer
from aioirqfd.uncopied import refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioirqfd.eventfd.eventfd import EventFd


class User(Protocol):
    """Who uses a loop's poller, beside its eventfds."""

    def loop_closed(self) -> None:
        """The loop is closed: nothing that was begun on it will end."""


# Both sides weak: a poller refers to its loop, so a strong one would keep every loop there ever was.
_pollers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[Poller]] = weakref.WeakKeyDictionary()


def _drop_inherited() -> None:
    """In a forked child: let go of the parent's epolls without touching their registrations, which both processes share."""
    for reference in list(_pollers.values()):
        poller = reference()
        if poller is not None:
            poller._inherit()
    _pollers.clear()


os.register_at_fork(after_in_child=_drop_inherited)


def _nothing() -> None:
    """Has a loop turn round once."""


@final
class Poller:
    """The private epoll of one loop, and its users.

    Not made by hand: :meth:`get` gives the running loop's.

    Args:
        loop: The loop it belongs to.
        max_events: Bound of one pass: how many events are taken from the epoll, and as many in-process signals, before the
            loop gets its turn again; 1..2**20.
    """

    __slots__ = ("__weakref__", "_count", "_fd", "_reader", "_users", "drain", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, *, max_events: int = 1024) -> None:
        self._users: weakref.WeakSet[User] = weakref.WeakSet()
        self._count = (
            0  # of users; the eventfds, which may be closed or dropped in any thread, are counted by the drain
        )
        self._fd = -1  # under which the loop knows the epoll
        self._reader: weakref.ref[Callable[[], int]] | None = None
        self.loop = loop
        bound = integer(max_events, "max_events", 1, 2**20)
        self.drain = Drain(bound, loop, loop_here, current_task)
        try:
            self._have_read()
        except BaseException:
            self.drain.close()
            del self.drain  # there is nothing to be ended
            raise

    def __reduce__(self) -> str:
        raise refusal(self, "Each event loop has its own: Poller.get() gives it.")

    def _have_read(self, *, elsewhere: bool = False) -> None:
        run = self.drain.run
        self._fd = add_reader(self.loop, self.drain.fileno(), run, elsewhere=elsewhere)
        self._reader = weakref.ref(run, _lost(weakref.ref(self)))

    @classmethod
    def get(cls, *, max_events: int = 1024) -> Poller:
        """The running loop's poller; made now if there is none.

        Args:
            max_events: For the one that is made now, 1..2**20; one that is there keeps its own. So who wants another bound asks
                for it, and acquires it, before the first eventfd is waited for.

        Raises:
            WrongLoopError: No asyncio event loop is running here, or one without ``add_reader()``.
            OSError: EMFILE, there is no room for its descriptors.
        """
        loop = running_loop()
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

    def acquire(self, user: User | None = None) -> None:
        """Count one more user; one that is named hears of the end of the loop."""
        self._count += 1
        if user is not None:
            self._users.add(user)

    def release(self, user: User | None = None) -> None:
        """Count one user less; the last one closes the epoll."""
        if user is not None:
            self._users.discard(user)
        self._count -= 1
        self._look_for_users()

    def attach(self, eventfd: EventFd) -> None:
        """Hear of the eventfd's signals from now on. What it holds already counts as one.

        :meta private:
        """
        self.drain.add(eventfd)

    def detach(self, eventfd: EventFd) -> None:
        """Hear nothing of it any more.

        :meta private:
        """
        self.drain.remove(eventfd)
        self._look_for_users()

    def nudge(self) -> None:
        """Something was made ready on the loop's thread, perhaps by a signal handler while the loop sleeps: have it look.

        :meta private:
        """
        if asyncio.current_task(self.loop) is None and not self.loop.is_closed():
            # Not by the drain, which the last user may be about to close.
            self.loop.call_soon_threadsafe(_nothing)

    def check_here(self) -> None:
        """Raise WrongLoopError unless this poller's loop is running in this thread.

        :meta private:
        """
        if loop_here() is not self.loop:
            running_loop()
            raise WrongLoopError(
                "this object belongs to another event loop than the one that is running in this thread"
            )

    # -- the end -----------------------------------------------------------------------------------------------------

    def _runs_elsewhere(self) -> bool:
        return self.loop.is_running() and loop_here() is not self.loop

    def _look_for_users(self) -> None:
        """Close it if there are none any more."""
        if self._count or self.drain.attached or self.drain.fileno() < 0:
            return
        if self._runs_elsewhere():
            # To say so is the loop's, where somebody may be about to come.
            self.loop.call_soon_threadsafe(self._look_for_users)
        else:
            self._close()

    def _close(self) -> None:
        self._forget()
        registered, self._reader = self._reader is not None, None
        loop = self.loop
        stop = partial(_stop_reading, loop, self.drain, self._fd, registered=registered)
        if self._runs_elsewhere():
            # It was dropped by the collector, in another thread than the loop.
            loop.call_soon_threadsafe(stop)
        else:
            stop()

    def _forget(self) -> None:
        reference = _pollers.get(self.loop)
        if reference is not None and reference() in {self, None}:
            del _pollers[self.loop]

    def _lost(self) -> None:
        """The loop has let go of our callback."""
        self._reader = None
        if self.drain.fileno() < 0:
            return  # a forked child's copy
        if self.loop.is_closed():
            self._loop_closed()
        else:
            self.loop.call_soon_threadsafe(self._read_anew)

    def _read_anew(self) -> None:
        drain, lost = self.drain, self._fd
        if drain.fileno() < 0 or self._reader is not None:
            return
        self._have_read(elsewhere=True)
        if lost != drain.fileno():
            os.close(lost)
        self.loop.call_exception_handler(
            {
                "message": f"aioirqfd: somebody has called remove_reader({lost}) or add_reader({lost}, ...) for an fd that is closed, "
                f"and whose number is aioirqfd's by now. No event is lost: it goes on with fd {self._fd}"
            }
        )

    def _loop_closed(self) -> None:
        """Nobody listens any more: managers end, and what was signalled goes to whoever else has the eventfds."""
        self._forget()
        self.acquire()
        tear_down(
            (
                *[user.loop_closed for user in self._users],
                *[eventfd._loop_closed for eventfd in self._eventfds()],
                self.release,
            )
        )

    def _inherit(self) -> None:
        for eventfd in self._eventfds():
            eventfd._inherit()
        if self._fd not in {self.drain.fileno(), -1}:
            os.close(self._fd)
        self._reader = None
        self.drain.abandon()

    def _eventfds(self) -> list[EventFd]:
        return cast("list[EventFd]", self.drain.tenants())

    def __del__(self) -> None:
        if getattr(self, "drain", None) is not None:
            self._close()


def _lost(poller: weakref.ref[Poller]) -> Callable[[object], None]:
    def lost(_reader: object) -> None:
        here = poller()
        if here is not None:
            here._lost()

    return lost


def _stop_reading(loop: asyncio.AbstractEventLoop, drain: Drain, fd: int, *, registered: bool) -> None:
    epoll = drain.fileno()
    if epoll >= 0:
        if registered:
            remove_reader(loop, fd)
        if fd not in {epoll, -1}:
            os.close(fd)
    drain.close()
