"""An awaitable Linux eventfd.

The counter lives in two places. The kernel holds what was written to the fd, by anyone. What this process signals while
somebody in it listens (a waiting reader, an irqfd) is counted here and dispatched without a system call; it moves to the
kernel as soon as nobody listens any more. A read takes both.
"""

# pyright: reportPrivateUsage=false
# (an underscore on an EventFdCtx says "for this package")
from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sys
import warnings
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol, Self, SupportsIndex, final

from aioirqfd.counter import MAX, EventFdCtx, fdinfo
from aioirqfd.errors import ClosedError, EventFdInvalidError, WouldBlock, WrongLoopError
from aioirqfd.eventfd import handing_over
from aioirqfd.eventfd.loops import loop_here
from aioirqfd.eventfd.poller import Poller
from aioirqfd.eventfd.teardown import tear_down
from aioirqfd.eventfd.waiters import Waiters
from aioirqfd.integers import integer

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, TracebackType

_SLICE: Final = 0.001
"""Seconds that are read without waiting before the loop gets a turn."""


class Bound(Protocol):
    """What an irqfd is to its eventfd."""

    def on_eventfd_closing(self) -> None:
        """The eventfd is about to be closed."""

    def read_out(self) -> None:
        """Count what was injected without a read."""

    def take_owed(self) -> None:
        """Take what is owed and is not to be injected just now."""


@final
class EventFd(EventFdCtx):
    """A Linux eventfd (eventfd(2)) that can be awaited.

    Args:
        initial: The count to start with, 0..2**32-1 (row E03).
        semaphore: Reads take 1 at a time instead of the whole count (``EFD_SEMAPHORE``, row E13).

    Raises:
        ValueError: ``initial`` is out of range.
        OSError: EMFILE and the like, from eventfd(2) (row E04).

    Threads:
        :meth:`signal` and, unless an irqfd is bound, :meth:`read_nowait` are safe from any thread. Everything else belongs to
        one event loop at a time.
    """

    __slots__ = ("_binding", "_closing_calls", "_id", "_made_by", "_made_line", "_owns", "_poller", "_waiters")

    _binding: Bound | None
    _owns: bool
    _id: int | None
    _poller: Poller | None
    _waiters: Waiters | None

    def __init__(self, initial: SupportsIndex = 0, *, semaphore: bool = False) -> None:
        initial = integer(initial, "an eventfd's first count", 0, 2**32 - 1)
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK | (os.EFD_SEMAPHORE if semaphore else 0)
        super().__init__(os.eventfd(initial, flags), semaphore=semaphore)
        self._set_up(owns=True)

    @classmethod
    def from_fd(cls, fd: SupportsIndex, *, owns: bool = False) -> Self:
        """Wrap an eventfd made elsewhere: inherited, received over a socket, or made by another library.

        Its flags are left as they are, and whoever else has it may change them at any time: no read and no write here waits
        because of them.

        Args:
            fd: The file descriptor.
            owns: Whether :meth:`close` closes it. Otherwise it stays the caller's, who keeps it open as long as this object.

        Raises:
            TypeError: The fd is no integer.
            ClosedError: EBADF, the fd is not open (row I08).
            EventFdInvalidError: EINVAL, it is no eventfd (row I08).
            OSError: Whether it is one cannot be seen: EMFILE, there is no room for a descriptor; ENOENT, there is no /proc.
        """
        number = integer(fd, "an fd")
        return cls._adopt(number, semaphore=_info(number)[2], owns=owns)

    @classmethod
    def _adopt(cls, fd: int, *, semaphore: bool, owns: bool) -> Self:
        """Wrap what is known to be an eventfd. Takes no descriptor, and no /proc."""
        self = cls.__new__(cls)
        EventFdCtx.__init__(self, fd, semaphore=semaphore)
        self._set_up(owns=owns)
        return self

    @classmethod
    def _reference(cls, fd: int) -> Self:
        """A dup of an eventfd's fd, so that the caller may close his: what holds on to an fd has one of its own, as the kernel has."""
        semaphore = _info(fd)[2]
        return cls._adopt(os.dup(fd), semaphore=semaphore, owns=True)

    def _dup(self) -> EventFd:
        """Another EventFd of the same eventfd."""
        return EventFd._adopt(os.dup(self.fileno()), semaphore=self._semaphore, owns=True)

    def _bequeath(self) -> EventFd:
        """One that outlives the close of this one, for whoever asks for it from within.

        Where there is no room for a dup it has the fd itself, if that is ours to close: closing takes no descriptor.
        """
        try:
            return self._dup()
        except OSError as error:
            if error.errno != errno.EMFILE or not self._owns:
                raise
        self._owns = False
        return EventFd._adopt(self._fd, semaphore=self._semaphore, owns=True)

    def _set_up(self, *, owns: bool) -> None:
        self._owns = owns
        self._binding = None
        self._poller = None
        self._waiters = None
        self._id = None
        self._closing_calls: dict[Callable[[EventFd], None], None] | None = None
        frame = sys._getframe(2)
        while frame.f_globals is globals() and frame.f_back is not None:
            frame = frame.f_back
        self._made_by: CodeType = frame.f_code
        self._made_line: int = frame.f_lineno
        handing_over.register(type(self))

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[object, ...]:
        return handing_over.reduce(self, sys._getframe(1))

    def __repr__(self) -> str:
        state = "closed" if self._fd < 0 else f"fd={self._fd}"
        return f"<EventFd {state}{' semaphore' if self._semaphore else ''}{' bound' if self._binding else ''}>"

    # -- the fd ------------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """The file descriptor.

        Raises:
            ClosedError: The eventfd is closed.
        """
        self._check_open()
        return self._fd

    @property
    def id(self) -> int:
        """The kernel's ``eventfd-id``: the same for every dup of the fd, unique among live eventfds (row E25).

        Raises:
            ClosedError: The eventfd is closed, or its fd was closed behind its back.
            OSError: The first time, it cannot be seen: EMFILE, there is no room for a descriptor; ENOENT, there is no /proc.
        """
        try:
            self._id = _info(self.fileno())[1]
        except (ClosedError, EventFdInvalidError):
            raise
        except OSError:
            if self._id is None:
                raise
            # It does not change, and who has it once can do without a descriptor and /proc: to deassign it, say.
        return self._id

    @property
    def semaphore(self) -> bool:
        """Whether reads take 1 at a time."""
        return self._semaphore

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._fd < 0

    def _check_open(self) -> None:
        if self._fd < 0:
            raise ClosedError("the eventfd is closed")

    # -- reading -----------------------------------------------------------------------------------------------------

    def read_nowait(self) -> int:
        """Take the count (1 of it, with ``semaphore=True``).

        While an irqfd is bound, signals are the irqfd's: what is left to read is only what was there when it was bound
        (rows P03, P09), and a semaphore's rest (row P06); nothing where a wakeup handler is told of every signal.

        Raises:
            WouldBlock: The count is 0.
            ClosedError: The eventfd is closed.
            WrongLoopError: An irqfd is bound, and its loop is not the one running here.
        """
        self._check_open()
        count = self._take() if self._may_read() else 0
        if not count:
            raise WouldBlock
        return count

    def _may_read(self) -> bool:
        """Whether what it holds is anybody's, and not the irqfd's alone."""
        # A sink that watches it by itself leaves it without a poller: then it is as any other eventfd.
        if self._binding is None or self._poller is None:
            return True
        self._poller.check_here()
        self._binding.read_out()
        # A signal that came before this read is the irqfd's, and takes along what was there (row P04).
        self._dispatch()
        self._binding.take_owed()
        return self._leftover or self._semaphore

    async def read(self) -> int:
        """Take the count, waiting until it is above 0. Readers are served in the order they came (row E15).

        Returns:
            The count, or 1 with ``semaphore=True``.

        Raises:
            ClosedError: The eventfd is closed, before or while waiting.
            WrongLoopError: Tasks of another loop are waiting on it.

        Cancellation:
            Nothing is consumed: a count that was already handed to this reader goes back, also if the eventfd was closed since.

        Who finds a count each time, and so never waits, gives the loop a turn once a millisecond; so do :meth:`wait` and iterations.
        """
        count = 0
        if not self._waiters:
            with contextlib.suppress(WouldBlock):
                count = self.read_nowait()
        if count and not self._turn_is_over():
            return count
        waiters, waiting = self._hand(count) if count else self._enqueue(consume=True)
        try:
            await (self._give_way() if count else waiting)
        except BaseException:
            # Not only CancelledError: a coroutine that is dropped on the way is closed with GeneratorExit.
            self._give_back(waiters, waiters.leave(waiting))
            raise
        finally:
            count = waiters.leave(waiting)
            self._waits_no_more(waiters)
        if not count:
            raise ClosedError("the eventfd was closed")  # and the count was put back
        return count

    async def wait(self) -> None:
        """Wait until the count is above 0, and consume nothing.

        While an irqfd is bound, only what :meth:`read_nowait` would take counts, and only if it is there at the call: what
        comes later is the irqfd's.

        Raises:
            ClosedError: The eventfd is closed, before or while waiting.
            WrongLoopError: Tasks of another loop are waiting on it, or an irqfd of another loop is bound.
        """
        self._check_open()
        if self._may_read() and self._readable():
            if self._turn_is_over():
                await self._give_way()
            return
        waiters, waiting = self._enqueue(consume=False)
        try:
            await waiting
        finally:
            waiters.leave(waiting)
            self._waits_no_more(waiters)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> int:
        try:
            return await self.read()
        except ClosedError:
            raise StopAsyncIteration from None

    def _turn_is_over(self) -> bool:
        """Whether whoever did not have to wait gives way to the others of the loop: a count each time would be for ever."""
        now, waiters = monotonic(), self._line()
        if not waiters.turn_ends:
            waiters.turn_ends = now + _SLICE
        return now >= waiters.turn_ends and loop_here() is not None  # and not another library's

    async def _give_way(self) -> None:
        await asyncio.sleep(0)
        self._line().turn_ends = monotonic() + _SLICE

    def _line(self) -> Waiters:
        waiters = self._waiters
        if waiters is None:
            waiters = self._waiters = Waiters()
        return waiters

    def _hand(self, count: int) -> tuple[Waiters, asyncio.Future[int]]:
        waiters = self._line()
        return waiters, waiters.hand(count)

    def _enqueue(self, *, consume: bool) -> tuple[Waiters, asyncio.Future[int]]:
        self._check_open()
        self._attach()
        waiters = self._line()
        waiters.turn_ends = 0.0
        waiting = waiters.join(consume=consume)
        if self._binding is None:
            self._listening = True
            self._on_ready()  # signalled between the look and the registration, perhaps
        return waiters, waiting

    def _waits_no_more(self, waiters: Waiters) -> None:
        self._stop_listening()
        if waiters.heir is not None and not waiters.owed:
            heir, waiters.heir = waiters.heir, None
            heir.close()

    def _give_back(self, waiters: Waiters, count: int) -> None:
        """A count that was handed to a reader who does not come for it."""
        if count:
            (waiters.heir or self).signal(min(count, MAX))

    def _go_on_waiting(self, poller: Poller) -> None:
        """Its irqfd is gone: readers that wait on that loop, which need not be running just now, are served again."""
        waiters = self._waiters
        if not waiters or poller.gone:
            return
        try:
            poller.attach(self)
        except OSError as error:
            waiters.fail(partial(type(error), *error.args))
            return
        self._poller = poller
        self._listening = True

    def _stop_listening(self) -> None:
        if not self._waiters and self._binding is None and self._listening:
            self._listening = False
            # Without looking first: another thread may be counting just now.
            self._spill()

    def _attach(self) -> None:
        """Register with the running loop's poller."""
        poller = Poller.get()
        if self._poller is not None and self._poller is not poller:
            if self._poller.gone:
                self._abandon_waiters()
            if self._binding is not None or self._waiters:
                raise WrongLoopError("the eventfd is in use on another event loop")
            self._detach()
        if not self._registered:
            poller.attach(self)
            self._poller = poller

    def _detach(self) -> None:
        poller, self._poller = self._poller, None
        if poller is not None and self._registered:
            poller.detach(self)

    def _on_ready(self) -> None:
        """Serve the waiters, first come first served. Called by the drain, and by a new waiter that finds a count."""
        waiters = self._waiters
        if self._poller is not None and self._poller.gone:
            self._abandon_waiters()
        if not waiters:
            # Nobody waits any more: the next waiter registers again, and until then this loop is left alone.
            self._stop_listening()
            self._detach()
            return
        waiters.serve(self._take, self._readable)
        self._stop_listening()

    def _abandon_waiters(self) -> None:
        """Nobody can be told on a closed loop, so the count is not theirs; nor is one that they were handed."""
        if self._waiters is not None:
            self._waiters.forget()
            self._give_back(self._waiters, self._waiters.recall())

    def _loop_closed(self) -> None:
        """Called by the poller. Whoever else has the eventfd is to have what was signalled here."""
        self._listening = False
        tear_down((self._abandon_waiters, self._spill, self._detach))

    def _inherit(self) -> None:
        """Called by the poller in a forked child: who waits, waits in the parent, and what they were handed is theirs."""
        self._listening = False
        if self._waiters is not None:
            self._waiters.forget()
            self._waiters.recall()

    # -- closing -----------------------------------------------------------------------------------------------------

    def _on_close(self, call: Callable[[EventFd], None]) -> None:
        """Have something called with this object just before it is closed; once, however often it is asked for."""
        calls = self._closing_calls
        if calls is None:
            calls = self._closing_calls = {}
        calls[call] = None

    def _not_on_close(self, call: Callable[[EventFd], None]) -> None:
        if self._closing_calls is not None:
            self._closing_calls.pop(call, None)

    def close(self) -> None:
        """Close the eventfd; idempotent.

        Waiting readers get ClosedError, iterations end; who was handed a count before has it. An irqfd that is bound is deassigned:
        what was signalled before is still injected (rows C04, W03). The fd itself is closed if this object owns it. That takes no
        descriptor, and no loop that goes on.

        Raises:
            OSError: EBADF, the fd was closed behind this object's back. Everything else is done all the same.

        Threads:
            The loop's thread, while an irqfd is bound or readers wait.
        """
        if self._fd < 0:
            return
        tear_down(
            (
                self._tell_binding,
                self._tell_closing,
                self._let_go_of_readers,
                self._spill,
                self._detach,
                self._close_fd,
            )
        )

    def _tell_binding(self) -> None:
        if self._binding is not None:
            self._binding.on_eventfd_closing()

    def _tell_closing(self) -> None:
        tear_down([partial(call, self) for call in self._closing_calls or ()])

    def _let_go_of_readers(self) -> None:
        self._listening = False
        waiters = self._waiters
        if waiters is None:
            return
        if self._poller is not None and self._poller.gone:
            self._abandon_waiters()
            return
        if waiters.owed:
            # Handed a count, and cancelled perhaps before they come for it.
            try:
                waiters.heir = self._bequeath()
            except OSError:
                # The fd is somebody else's, and there is no room for a dup: the counts go back now, and these readers are told so.
                self._give_back(waiters, waiters.recall())
        if waiters and self._poller is not None:
            self._poller.nudge()
        waiters.fail(partial(ClosedError, "the eventfd was closed"))

    def _close_fd(self) -> None:
        # Another thread's write to the fd is over before the number can become another file's; and who closes it is one.
        fd = self._let_go()
        if fd >= 0 and self._owns:
            os.close(fd)

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0 and getattr(self, "_made_line", None) is not None:
            try:
                if self._owns:
                    warnings.warn(
                        f"unclosed {self!r}, made at {self._made_by.co_filename}:{self._made_line}",
                        ResourceWarning,
                        stacklevel=2,
                        source=self,
                    )
            finally:
                # Also where warnings are errors.
                self.close()


def _info(fd: int) -> tuple[int, int, bool]:
    """What the kernel tells of an eventfd: count, id, semaphore."""
    try:
        info = fdinfo(fd)
    except OSError as error:
        if error.errno == errno.EBADF:
            raise ClosedError(f"fd {fd}") from None
        raise
    if info is None:
        raise EventFdInvalidError(f"fd {fd} is no eventfd")
    return info
