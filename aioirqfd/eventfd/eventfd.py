"""An awaitable Linux eventfd.

The counter lives in two places. The kernel holds what was written to the fd, by anyone. What this process signals while
somebody in it listens (a waiting reader, an irqfd) is counted here and dispatched without a system call; it moves to the
kernel as soon as nobody listens any more. A read takes both.
"""

# pyright: reportPrivateUsage=false
# (an underscore on an EventFdCtx says "for this package")
from __future__ import annotations

import asyncio
import errno
import os
import sys
import warnings
from collections import deque
from typing import TYPE_CHECKING, Protocol, Self, final

from aioirqfd.counter import MAX, EventFdCtx, fdinfo
from aioirqfd.errors import ClosedError, EventFdInvalidError, WouldBlock, WrongLoopError
from aioirqfd.eventfd.poller import Poller

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, TracebackType

_U32 = 2**32


class Binding(Protocol):
    """What an irqfd is to its eventfd."""

    def on_eventfd_closing(self) -> None:
        """The eventfd is about to be closed."""

    def settle(self) -> None:
        """Count what was injected without a read."""

    def settle_owed(self) -> None:
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

    __slots__ = ("_binding", "_closing_calls", "_made_at", "_owns", "_poller", "_waiters")

    _binding: Binding | None
    _poller: Poller | None
    _waiters: deque[tuple[asyncio.Future[int], bool]] | None

    def __init__(self, initial: int = 0, *, semaphore: bool = False) -> None:
        if not 0 <= initial < _U32:
            raise ValueError(f"an eventfd starts with 0..2**32-1, not {initial}")
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK | (os.EFD_SEMAPHORE if semaphore else 0)
        super().__init__(os.eventfd(initial, flags), semaphore=semaphore)
        self._set_up(owns=True)

    @classmethod
    def from_fd(cls, fd: int, *, owns: bool = False) -> Self:
        """Wrap an eventfd made elsewhere: inherited, received over a socket, or made by another library.

        Its flags are left as they are, and whoever else has it may change them at any time: no read and no write here waits
        because of them.

        Args:
            fd: The file descriptor.
            owns: Whether :meth:`close` closes it. Otherwise it stays the caller's, who keeps it open as long as this object.

        Raises:
            ClosedError: EBADF, the fd is not open (row I08).
            EventFdInvalidError: EINVAL, it is no eventfd (row I08).
        """
        try:
            info = fdinfo(fd)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise ClosedError(f"fd {fd}") from None
            raise
        if info is None:
            raise EventFdInvalidError(f"fd {fd} is no eventfd")
        self = cls.__new__(cls)
        EventFdCtx.__init__(self, fd, semaphore=info[2])
        self._set_up(owns=owns)
        return self

    @classmethod
    def _reference(cls, fd: int) -> Self:
        """A dup of an eventfd's fd, so that the caller may close his: what holds on to an fd has one of its own, as the kernel has."""
        cls.from_fd(fd)
        return cls.from_fd(os.dup(fd), owns=True)

    def _set_up(self, *, owns: bool) -> None:
        self._owns = owns
        self._binding = None
        self._poller = None
        self._waiters = None
        self._closing_calls: list[Callable[[EventFd], None]] | None = None
        frame = sys._getframe(2)
        self._made_at: tuple[CodeType, int] = (frame.f_code, frame.f_lineno)

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
            ClosedError: The eventfd is closed.
        """
        info = fdinfo(self.fileno())
        if info is None:
            raise EventFdInvalidError(f"fd {self._fd} is no eventfd any more")
        return info[1]

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
        self._binding.settle()
        # A signal that came before this read is the irqfd's, and takes along what was there (row P04).
        self._dispatch()
        self._binding.settle_owed()
        return self._leftover or self._semaphore

    async def read(self) -> int:
        """Take the count, waiting until it is above 0. Readers are served in the order they came (row E15).

        Returns:
            The count, or 1 with ``semaphore=True``.

        Raises:
            ClosedError: The eventfd is closed, before or while waiting.
            WrongLoopError: Tasks of another loop are waiting on it.

        Cancellation:
            Nothing is consumed: a count that was already handed to this reader goes back.
        """
        if not self._waiters:
            try:
                return self.read_nowait()
            except WouldBlock:
                pass
        waiting = self._enqueue(consume=True)
        try:
            return await waiting
        except BaseException:
            # Not only CancelledError: a coroutine that is dropped on the way is closed with GeneratorExit.
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None and self._fd >= 0:
                self.signal(min(waiting.result(), MAX))
            raise
        finally:
            self._dequeue(waiting)

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
            return
        waiting = self._enqueue(consume=False)
        try:
            await waiting
        finally:
            self._dequeue(waiting)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> int:
        try:
            return await self.read()
        except ClosedError:
            raise StopAsyncIteration from None

    def _enqueue(self, *, consume: bool) -> asyncio.Future[int]:
        self._check_open()
        self._attach()
        waiting: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self._waiters is None:
            self._waiters = deque()
        self._waiters.append((waiting, consume))
        if self._binding is None:
            self._listening = True
            # Signalled between the look and the registration.
            if self._readable():
                self._on_ready()
        return waiting

    def _dequeue(self, waiting: asyncio.Future[int]) -> None:
        waiters = self._waiters
        if waiters is None:
            return
        for entry in waiters:
            if entry[0] is waiting:
                waiters.remove(entry)
                break
        self._stop_listening()

    def _stop_listening(self) -> None:
        if not self._waiters and self._binding is None and self._listening:
            self._listening = False
            # Without looking first: another thread may be counting just now.
            self._spill()

    def _attach(self) -> None:
        """Register with the running loop's poller."""
        poller = Poller.get()
        if self._poller is not None and self._poller is not poller:
            if self._waiters and self._poller.gone:
                self._waiters.clear()
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
        if waiters and self._poller is not None and self._poller.gone:
            waiters.clear()  # nobody can be told on a closed loop, so the count is not theirs
        if not waiters:
            # Nobody waits any more: the next waiter registers again, and until then this loop is left alone.
            self._stop_listening()
            self._detach()
            return
        while waiters:
            waiting, consume = waiters[0]
            if not waiting.done():
                if consume:
                    count = self._take()
                    if not count:
                        return
                    waiting.set_result(count)
                elif self._readable():
                    waiting.set_result(0)
                else:
                    return
            waiters.popleft()
        self._stop_listening()

    # -- closing -----------------------------------------------------------------------------------------------------

    def _on_close(self, call: Callable[[EventFd], None]) -> None:
        """Have something called with this object just before it is closed; once, however often it is asked for."""
        calls = self._closing_calls
        if calls is None:
            calls = self._closing_calls = []
        if call not in calls:
            calls.append(call)

    def _not_on_close(self, call: Callable[[EventFd], None]) -> None:
        calls = self._closing_calls
        if calls is not None and call in calls:
            calls.remove(call)
            self._closing_calls = calls or None

    def close(self) -> None:
        """Close the eventfd; idempotent.

        Waiting readers get ClosedError, iterations end. An irqfd that is bound is deassigned: what was signalled before is
        still injected (rows C04, W03). The fd itself is closed if this object owns it.

        Threads:
            The loop's thread, while an irqfd is bound or readers wait.
        """
        fd = self._fd
        if fd < 0:
            return
        if self._binding is not None:
            self._binding.on_eventfd_closing()
        for call in tuple(self._closing_calls or ()):
            call(self)
        self._listening = False
        self._spill()
        if self._waiters and self._poller is not None:
            self._poller.nudge()
        self._detach()
        self._fd = -1
        # Once more, for its lock: another thread's write to the fd is over before the number can become another file's.
        self._spill()
        waiters, self._waiters = self._waiters, None
        for waiting, _ in waiters or ():
            if not waiting.done():
                waiting.set_exception(ClosedError("the eventfd was closed"))
        if self._owns:
            os.close(fd)

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0 and getattr(self, "_made_at", None) is not None:
            try:
                if self._owns:
                    code, line = self._made_at
                    warnings.warn(
                        f"unclosed {self!r}, made at {code.co_filename}:{line}",
                        ResourceWarning,
                        stacklevel=2,
                        source=self,
                    )
            finally:
                # Also where warnings are errors.
                self.close()
