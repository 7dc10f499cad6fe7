"""Calls from other threads into a loop's: how a vCPU's thread asks what belongs to the loop."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Final, Generic, ParamSpec, TypeVar, cast, final

from aioirqfd.errors import ClosedError, WrongLoopError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType
    from typing import Self

_P = ParamSpec("_P")
_T = TypeVar("_T")


@final
class _Call(Generic[_T]):
    """One call, and the thread that waits for it: a lock that is free once it is settled.

    A lock, and no concurrent.futures.Future, which makes the hop a tenth longer. The loop's thread alone settles it,
    the first time only.
    """

    __slots__ = ("error", "pending", "result", "settled")

    def __init__(self) -> None:
        self.settled = threading.Lock()
        self.settled.acquire()
        self.pending = True  # not the same as the lock, which the waiting thread takes again
        self.result: _T | None = None
        self.error: BaseException | None = None

    def settle(self, result: _T | None, error: BaseException | None = None) -> None:
        if self.pending:
            self.pending = False
            self.result, self.error = result, error
            self.settled.release()

    def wait(self) -> _T:
        self.settled.acquire()
        error = self.error
        if error is None:
            return cast("_T", self.result)
        try:
            raise error
        finally:
            self.error = None
            del error


@final
class LoopCalls:
    """Runs functions and coroutines on a loop for other threads, which wait for the result.

    What belongs to the loop (an :class:`~aioirqfd.irqfd.msix.MsixTable`, a device's registers, an ``IrqManager``) must not be
    touched by a vCPU's thread. Where a guest's access leads there, the thread makes a call of it::

        with LoopCalls() as calls:
            class Handler:
                def mmio_write(self, address, size, value):
                    calls.call(table.write, address - base, size, value)

    A call takes some 15 to 25 us: two threads have to be woken. It must never be what the loop's thread waits for by blocking:
    ``thread.join()`` on the loop's thread, while that thread calls, waits for ever. :class:`~aioirqfd.kvm.VcpuThread` does not.

    Made on the running loop. A context manager.

    Threads: :meth:`call` and :meth:`run` from any thread but the loop's; :meth:`close` on the loop's.

    Raises:
        WrongLoopError: No loop is running in this thread.
    """

    __slots__ = ("_closed", "_ident", "_lock", "_loop", "_tasks", "_waiting")

    def __init__(self) -> None:
        try:
            self._loop: Final = asyncio.get_running_loop()
        except RuntimeError:
            raise WrongLoopError("LoopCalls is made on the loop that shall run the calls, while it runs") from None
        self._ident: Final = threading.get_ident()
        self._lock: Final = threading.Lock()
        self._waiting: set[_Call[object]] = set()
        self._tasks: set[asyncio.Task[object]] = set()
        self._closed = False

    def call(self, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run a function on the loop's thread, and wait for it.

        Args:
            function: Must not block: the loop waits for it.
            *args: Its arguments.
            **kwargs: Its arguments.

        Returns:
            What it returns.

        Raises:
            ClosedError: EBADF: closed, before it was called or while it waited; then the function is not run.
            WrongLoopError: Called on the loop's own thread, which would wait for itself.
            Exception: Whatever the function raises.
        """
        call: _Call[_T] = _Call()

        def act() -> None:
            if call.pending:  # else closed meanwhile
                try:
                    result = function(*args, **kwargs)
                except (KeyboardInterrupt, SystemExit) as error:
                    call.settle(None, error)
                    raise
                except BaseException as error:
                    call.settle(None, error)
                else:
                    call.settle(result)

        return self._hop(call, act)

    def run(self, function: Callable[_P, Coroutine[object, object, _T]], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run a coroutine on the loop, as a task, and wait for its end.

        Args:
            function: Called on the loop's thread; returns the coroutine.
            *args: Its arguments.
            **kwargs: Its arguments.

        Returns:
            What the coroutine returns.

        Raises:
            ClosedError: EBADF: closed, before it was called or while it waited. The coroutine is cancelled.
            WrongLoopError: Called on the loop's own thread.
            CancelledError: Somebody has cancelled the task.
            Exception: Whatever the coroutine raises.
        """
        call: _Call[_T] = _Call()

        def ended(task: asyncio.Task[_T]) -> None:
            self._tasks.discard(cast("asyncio.Task[object]", task))
            if task.cancelled():
                call.settle(None, asyncio.CancelledError())
            elif (error := task.exception()) is not None:
                call.settle(None, error)
            else:
                call.settle(task.result())

        def begin() -> None:
            if call.pending:
                try:
                    task = self._loop.create_task(function(*args, **kwargs))
                except BaseException as error:
                    call.settle(None, error)
                else:
                    self._tasks.add(cast("asyncio.Task[object]", task))
                    task.add_done_callback(ended)

        return self._hop(call, begin)

    def close(self) -> None:
        """No more calls: those that wait, and later ones, raise ClosedError in their threads. Idempotent. On the loop's thread.

        Coroutines that are under way are cancelled; they end on the loop, and nobody waits for them any more.

        Raises:
            WrongLoopError: Called from another thread.
        """
        if threading.get_ident() != self._ident:
            raise WrongLoopError("LoopCalls.close() is called on the loop's thread")
        with self._lock:
            self._closed = True
            waiting = list(self._waiting)
        for call in waiting:
            call.settle(None, self._closed_error())
        for task in self._tasks:
            task.cancel()

    def _hop(self, call: _Call[_T], act: Callable[[], None]) -> _T:
        if threading.get_ident() == self._ident:
            raise WrongLoopError(
                "called on the loop's own thread, which would wait for itself: call the function, or await it"
            )
        waiting = cast("_Call[object]", call)
        with self._lock:
            if self._closed:
                raise self._closed_error()
            self._waiting.add(waiting)
        try:
            try:
                self._loop.call_soon_threadsafe(act)
            except RuntimeError:  # the loop is closed
                raise self._closed_error() from None
            return call.wait()
        finally:
            with self._lock:
                self._waiting.discard(waiting)

    def _closed_error(self) -> ClosedError:
        return ClosedError("this LoopCalls is closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<LoopCalls {'closed' if self._closed else f'{len(self._waiting)} waiting'}>"
