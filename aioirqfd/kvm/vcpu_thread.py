"""A thread that serves a vCPU, and what the loop wants of it: to wait for it, to pause it, to end it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Final, TypeVarTuple, Unpack, final

from aioirqfd.errors import ClosedError, WrongLoopError
from aioirqfd.kvm.ioctls import KVM_EXIT_INTR

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from aioirqfd.kvm.exits import ExitHandler
    from aioirqfd.kvm.vcpu import Vcpu

_Args = TypeVarTuple("_Args")


@final
class VcpuThread:
    """A thread in :meth:`aioirqfd.kvm.Vcpu.serve`, seen from the loop.

    Made on the running loop. Nothing here blocks the loop's thread, so the handler may wait for the loop
    (:class:`aioirqfd.kvm.LoopCalls`) until the thread ends. An async context manager: it starts the thread, and stops it.

    A kick, or a signal, that nobody here asked for does not end it: it goes on. The thread does not keep the process
    alive.

    Args:
        vcpu: The vCPU; stays the caller's, who closes it after the thread's end.
        handler: As for :meth:`~aioirqfd.kvm.Vcpu.serve`.
        name: The thread's.

    Threads: :meth:`resume` and :meth:`request_stop` from any, the handler's included; the rest on the loop's.

    Raises:
        WrongLoopError: No loop is running in this thread.
    """

    __slots__ = (
        "__weakref__",
        "_changes",
        "_ended",
        "_handler",
        "_loop",
        "_may_serve",
        "_parked",
        "_paused",
        "_stopping",
        "_thread",
        "_vcpu",
    )

    def __init__(self, vcpu: Vcpu, handler: ExitHandler, *, name: str = "vcpu 0") -> None:
        try:
            self._loop: Final = asyncio.get_running_loop()
        except RuntimeError:
            raise WrongLoopError("a VcpuThread is made on the loop that shall wait for it, while it runs") from None
        self._vcpu: Final = vcpu
        self._handler: Final = handler
        # Guards the wishes and what the thread says of itself. Held for moments: the vCPU is kicked outside.
        self._may_serve: Final = threading.Condition()
        self._paused = False
        self._stopping = False
        # The thread's word: it is out of serve(), and will look at the wishes before it enters it.
        self._parked = True
        self._changes: set[asyncio.Future[None]] = set()
        self._ended: Final[asyncio.Future[int]] = self._loop.create_future()
        self._thread: Final = threading.Thread(target=self._main, name=name, daemon=True)

    @property
    def name(self) -> str:
        """The thread's name."""
        return self._thread.name

    def start(self) -> None:
        """Start the thread. It waits for :meth:`resume` if it was paused before.

        Raises:
            RuntimeError: It was started already, or stopped before.
        """
        with self._may_serve:
            if self._stopping:
                raise RuntimeError(f"{self!r} was stopped before it was started: make another one")
            self._thread.start()

    async def wait(self) -> int:
        """Wait for the thread's end.

        Returns:
            The exit reason that ended it, ``KVM_EXIT_*``; ``KVM_EXIT_INTR`` after :meth:`stop`.

        Raises:
            Exception: What the handler raised, or :meth:`~aioirqfd.kvm.Vcpu.serve`. If nobody waits for it, the loop's
                exception handler hears of it.

        Cancellation: The thread goes on.
        """
        await self._wait_ended()
        return self._ended.result()

    async def pause(self) -> None:
        """Take the vCPU out of the guest, and wait until it is: between two instructions, its accesses completed.

        Its registers may be read and set from the loop's thread then. Idempotent, and not counted: one :meth:`resume` undoes
        it. Returns at once if the thread has not been started or has ended. A handler that is under way is waited for.

        Cancellation: It will be paused all the same, and needs :meth:`resume`.
        """
        with self._may_serve:
            self._paused = True
        self._kick()
        while self._paused and not self._parked:
            change = self._loop.create_future()
            self._changes.add(change)
            try:
                await change
            finally:
                self._changes.discard(change)

    def resume(self) -> None:
        """Let it go on after :meth:`pause`. Without one, nothing happens. A pause that is being waited for is over."""
        with self._may_serve:
            self._paused = False
            self._may_serve.notify_all()
        self._tell(self._changed)

    def request_stop(self) -> None:
        """Let the thread end, as :meth:`stop` does, without waiting for it. For a handler: a power switch. Idempotent."""
        with self._may_serve:
            self._stopping = True
            self._may_serve.notify_all()
        self._kick()

    async def stop(self) -> None:
        """End the thread, and wait for it. A handler that is under way is waited for. Idempotent.

        What the handler raised is :meth:`wait`'s to raise.

        Cancellation: The thread will end all the same.
        """
        self.request_stop()
        if self._thread.ident is None:  # never started, and not to be any more
            if not self._ended.done():
                self._ended.set_result(KVM_EXIT_INTR)
                self._changed()
            return
        await self._wait_ended()

    async def aclose(self) -> None:
        """As :meth:`stop`."""
        await self.stop()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def __repr__(self) -> str:
        state = "ended" if self._ended.done() else "parked" if self._parked else "running"
        return f"<VcpuThread {self.name!r} {state}>"

    async def _wait_ended(self) -> None:
        await asyncio.wait((self._ended,))
        # It has nothing to do any more but to end: it asks nothing of the loop, and this takes microseconds.
        if self._thread.ident is not None:
            self._thread.join()

    def _changed(self) -> None:
        for change in self._changes:
            if not change.done():
                change.set_result(None)

    def _settle(self, reason: int, failure: BaseException | None) -> None:
        if isinstance(failure, StopIteration):  # which no future takes
            error = RuntimeError("the handler raised StopIteration")
            error.__cause__ = failure
            failure = error
        if failure is None:
            self._ended.set_result(reason)
        else:
            self._ended.set_exception(failure)
        self._changed()

    def _tell(self, callback: Callable[[Unpack[_Args]], None], *args: *_Args) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
            self._loop.call_soon_threadsafe(callback, *args)

    def _kick(self) -> None:
        with contextlib.suppress(ClosedError):  # closed while it was parked: then there is nothing to be interrupted
            self._vcpu.kick()

    # -- the thread's side -------------------------------------------------------------------------------------------

    def _main(self) -> None:
        reason = KVM_EXIT_INTR
        failure: BaseException | None = None
        try:
            while reason == KVM_EXIT_INTR and self._wait_allowed():
                reason = self._vcpu.serve(self._handler)
        except BaseException as error:
            failure = error
        self._parked = True
        self._tell(self._settle, reason, failure)
        del failure  # its traceback holds this frame

    def _wait_allowed(self) -> bool:
        """Wait until the vCPU may be served; False: it is to end."""
        with self._may_serve:
            if self._paused and not self._stopping:
                self._parked = True
                self._tell(self._changed)
                self._may_serve.wait_for(lambda: self._stopping or not self._paused)
            self._parked = self._stopping
            return not self._stopping
