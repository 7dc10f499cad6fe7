"""What stands behind the vectors of an MSI-X table: for each that the guest has unmasked a gsi, its route, and an irqfd.

What must hold: an interrupt of a vector is in exactly one place, its eventfd or its irqfd, and whatever fails on the way between the two
leaves it in the eventfd, where the pending bit sees it. So nothing here raises at the guest: what the guest or the sink has made impossible
is traced, and the vector retires, with what is pending in its eventfd. If the guest cannot mend it (a sink that refuses a route just now),
it is tried again after a while, as an injection is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Final, final

from aioirqfd.errors import ClosedError
from aioirqfd.irqfd import msix_snapshot
from aioirqfd.irqfd.identity import check_free
from aioirqfd.irqfd.msix_vector import Held
from aioirqfd.irqfd.routing import MAX_ROUTES
from aioirqfd.irqfd.state import State
from aioirqfd.ratelimit import RateLimit
from aioirqfd.tracer import failure

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Hashable, Sequence

    from aioirqfd.eventfd import EventFd
    from aioirqfd.irqfd.binding import Binding
    from aioirqfd.irqfd.interrupt import Msi
    from aioirqfd.irqfd.irqfds import Irqfds
    from aioirqfd.irqfd.msix_vector import MsixVector

_FEW: Final = 16
"""From so many on, gsis are unrouted by one change of the whole table."""


@final
class VectorBindings:
    """Makes the irqfds of a table's vectors stand as its registers say.

    Args:
        irqfds: The manager's.
        devid: The requester id that messages carry, or None.
        wanted: Whether a vector's interrupts are to be injected, as the registers say.
        stop: What stops a vector's, in words, for whoever asks; None: nothing here.
        whose: Fields that say whose the events are.

    Threads:
        The manager's loop.
    """

    __slots__ = (
        "_again",
        "_closed",
        "_devid",
        "_irqfds",
        "_limit",
        "_limited",
        "_moving",
        "_stop",
        "_waiting",
        "_wanted",
        "_whose",
    )

    def __init__(
        self,
        irqfds: Irqfds,
        devid: int | None,
        wanted: Callable[[MsixVector], bool],
        stop: Callable[[MsixVector], str | None],
        whose: dict[str, object],
    ) -> None:
        self._irqfds: Final = irqfds
        self._devid: Final = devid
        self._wanted: Final = wanted
        self._stop: Final = stop
        self._whose: Final = whose
        self._limit: Final = RateLimit()
        self._limited = False
        self._closed = False
        # What is to be tried again, and whether that has a time.
        self._again: dict[MsixVector, None] = {}
        self._waiting = False
        self._moving: dict[asyncio.Task[None], Binding] = {}  # hand-overs that wait for an injection

    def name(self, vector: MsixVector) -> str:
        """What people call it."""
        return f"{self._whose.get('device', 'MSI-X')} vector {vector.number}"

    def tell(self, event: str, /, *, kind: Hashable = None, **fields: object) -> None:
        """Trace what a guest can repeat: the first of each kind at once, then in time, and counted."""
        suppressed = self._limit.admit((event, kind))
        if suppressed is not None:
            more = {"suppressed": suppressed} if suppressed else {}
            self._irqfds.delivery.emit(event, **self._whose, **fields, **more)

    @contextlib.contextmanager
    def _quiet(self) -> Generator[None]:
        """What becomes of irqfds and routes meanwhile is the guest's doing, and traced as such."""
        if self._limited or not self._irqfds.delivery.traced:
            yield
            return
        self._limited = True
        try:
            with self._irqfds.delivery.limited(self._limit):
                yield
        finally:
            self._limited = False

    # -- as the registers say ----------------------------------------------------------------------------------------

    def update(self, vector: MsixVector) -> None:
        """Make the vector's irqfd stand as the registers say. Never raises."""
        vector.failures = 0
        self._try(vector)

    def _try(self, vector: MsixVector) -> None:
        with self._quiet():
            wanted = self._wanted(vector)
            try:
                if wanted:
                    self._activate(vector, vector.message(self._devid))
                else:
                    self._deactivate(vector)
            except Exception as error:
                gsi = vector.gsi
                self.tell("msix_vector_failed", kind=vector.number, vector=vector.number, gsi=gsi, **failure(error))
                self.retire((vector,))
                if wanted and vector.sendable and vector.eventfd is not None and not vector.eventfd.closed:
                    self._try_later(vector, error)

    def _try_later(self, vector: MsixVector, error: Exception) -> None:
        delivery = self._irqfds.delivery
        vector.failures += 1
        if vector.failures > delivery.retry.attempts:
            delivery.trouble(
                f"vector {vector.number} is given up until the guest changes it, its interrupts are kept", error
            )
            return
        self._again[vector] = None
        if not self._waiting:
            self._waiting = True
            delivery.call_later(delivery.retry.delay(vector.failures), self._try_again)

    def _try_again(self) -> None:
        self._waiting = False
        again, self._again = self._again, {}
        for vector in again:
            if not vector.active:
                self._try(vector)

    def _activate(self, vector: MsixVector, message: Msi) -> None:
        irqfds, gsis = self._irqfds, self._irqfds.gsis
        if vector.gsi is not None and not vector.bound:
            # Its eventfd was closed. What was signalled before is still injected, for which it needs its route (row W03).
            if vector.irqfd is not None and vector.irqfd.active:
                return
            self.retire((vector,))
        if vector.gsi is None:
            if not self._obtain(vector, message):
                if not vector.starved:
                    self.tell("msix_no_gsi", kind=vector.number, vector=vector.number)
                vector.starved = True
                gsis.wait(vector, lambda: self.update(vector))
                return
            vector.starved = False
        else:
            gsis.busy(vector.gsi)
            irqfds.set_route(vector.gsi, message)
        assert vector.gsi is not None
        if vector.irqfd is None or not vector.bound:
            assert vector.eventfd is not None
            labels = {**self._whose, "vector": vector.number}
            name = self.name(vector)
            vector.irqfd = irqfds.bind(vector.eventfd, gsi=vector.gsi, masked=True, name=name, labels=labels)
            vector.irqfd.trigger.why_masked = partial(self._stop, vector)
        vector.active = True
        vector.captured = None
        vector.irqfd.unmask()
        if vector.irqfd.state is State.BROKEN:
            vector.irqfd.resume()

    def _obtain(self, vector: MsixVector, message: Msi) -> bool:
        """Find a gsi and route it."""
        irqfds, gsis = self._irqfds, self._irqfds.gsis
        gsi = gsis.allocate()
        if gsi is not None and gsi not in irqfds.routes.table and irqfds.routes.table.entries >= MAX_ROUTES:
            # The table is full of what others have put there; then an idle gsi's own route will do.
            other = gsis.recycle()
            gsis.release(gsi)
            gsi = other
        if gsi is None:
            return False
        try:
            irqfds.set_route(gsi, message)
        except BaseException:
            self._unroute((gsi,))
            raise
        vector.gsi = gsi
        return True

    def _deactivate(self, vector: MsixVector) -> None:
        self._forget(vector)
        if vector.gsi is None or vector.irqfd is None:
            return
        if vector.bound:
            vector.irqfd.mask()
        if not vector.changing:
            self.idle(vector)

    def _forget(self, vector: MsixVector) -> None:
        """It is not active, and does not wait for becoming it."""
        if vector.active:
            vector.idle_since = time.monotonic()
        vector.active = False
        self._again.pop(vector, None)
        if vector.starved:
            vector.starved = False
            self._irqfds.gsis.forget(vector)

    def idle(self, vector: MsixVector) -> None:
        """Keep the vector's gsi, but let go of it when somebody else needs it more."""
        assert vector.gsi is not None
        self._irqfds.gsis.idle(vector.gsi, lambda: self._give_up(vector))

    def _give_up(self, vector: MsixVector) -> None:
        """Somebody else needs the gsi more: what is pending goes back into the eventfd."""
        vector.gsi = None
        assert vector.irqfd is not None
        self._shut(vector, vector.irqfd)

    def retire(self, vectors: Sequence[MsixVector]) -> None:
        """Mask, deassign, unroute, and give the gsis back. What is pending goes back into the eventfds. Never raises."""
        gone: list[int] = []
        with self._quiet():
            for vector in vectors:
                self._forget(vector)
                if vector.irqfd is not None and vector.bound:
                    self._shut(vector, vector.irqfd)
                if vector.gsi is not None:
                    gone.append(vector.gsi)
                    self._irqfds.gsis.busy(vector.gsi)  # nobody is to take it while it loses its route
                    vector.gsi = None
            self._unroute(gone)

    def _shut(self, vector: MsixVector, irqfd: Binding) -> None:
        # The manager is closed, or the sink cannot take its hands off: it is masked and shut all the same.
        with contextlib.suppress(Exception):
            irqfd.mask()
        try:
            irqfd.shut()
        except Exception as error:
            self.tell("msix_vector_failed", vector=vector.number, gsi=irqfd.gsi, **failure(error))

    def _unroute(self, gsis: Sequence[int]) -> None:
        irqfds = self._irqfds
        try:
            if len(gsis) < _FEW:
                for gsi in gsis:
                    irqfds.reset_route(gsi)
            else:
                irqfds.set_routing(irqfds.routes.table.without(gsis))
        except Exception as error:
            # A gsi that keeps its route is not handed out before it has lost it.
            self.tell("msix_unroute_failed", gsis=len(gsis), **failure(error))
        for gsi in sorted(gsis):
            irqfds.gsis.release(gsi)

    # -- another eventfd ---------------------------------------------------------------------------------------------

    async def replace(self, vector: MsixVector, new: EventFd, new_id: int, *, reference: bool) -> None:
        """Give the vector another eventfd; return once nothing of the old one is being injected.

        Raises:
            ClosedError: EBADF: it was closed meanwhile; the vector has the old one again.
            EventFdBusyError: EBUSY: somebody else has bound it meanwhile; likewise.

        Cancellation:
            The vector has the other one all the same; what the old one holds follows when its injection is over.
        """
        old = vector.held
        irqfd = vector.irqfd
        self.retire((vector,))
        vector.held = Held(new, new_id, owned=False, reference=reference)
        try:
            if irqfd is not None:
                await irqfd.drained()
        except BaseException:
            self._move_when_over(vector, old, irqfd)
            raise
        if irqfd is not None and irqfd.state is not State.CLOSED:
            self._move_when_over(vector, old, irqfd)  # we are called by that very injection
        else:
            self._move(vector, old)

    def _move_when_over(self, vector: MsixVector, old: Held, irqfd: Binding | None) -> None:
        """What an injection that is under way cannot inject goes into the old eventfd yet."""
        if irqfd is None or irqfd.state is State.CLOSED:
            with contextlib.suppress(OSError):
                self._move(vector, old)
            return
        task = asyncio.get_running_loop().create_task(self._follow(vector, old, irqfd))
        self._moving[task] = irqfd
        task.add_done_callback(self._moving.pop)

    async def _follow(self, vector: MsixVector, old: Held, irqfd: Binding) -> None:
        with contextlib.suppress(OSError):
            try:
                await irqfd.drained()
            finally:
                self._move(vector, old)

    def _move(self, vector: MsixVector, old: Held) -> None:
        """What is pending in an eventfd that the table made moves along; if the new one cannot be had, the vector has the old again."""
        refused = self._pour(old, vector)
        if refused is not None and old.eventfd is not None and not old.eventfd.closed and not self._closed:
            old, vector.held = vector.held, old
        if old.eventfd is not None and (old.owned or old.reference):
            old.eventfd.close()
        self.update(vector)
        if refused is not None:
            raise refused

    def _pour(self, old: Held, vector: MsixVector) -> OSError | None:
        new = vector.eventfd
        assert new is not None
        try:
            if new.closed:
                raise ClosedError("the eventfd was closed before the vector had it")
            if not vector.bound:
                check_free(new, vector.eventfd_id, self._irqfds.poller)
            if old.owned and old.eventfd is not None:
                _move_count(old.eventfd, new)
        except OSError as error:
            return error
        return None

    # -- closing -----------------------------------------------------------------------------------------------------

    async def aclose(self, vectors: Sequence[MsixVector]) -> None:
        """Retire all vectors for good, and return once nothing of them is being injected, and what is theirs is closed."""
        self._closed = True
        leaving = [vector.irqfd for vector in vectors if vector.irqfd is not None]
        self.retire(vectors)
        try:
            for irqfd in leaving:
                await irqfd.drained()
            for task, irqfd in tuple(self._moving.items()):
                await irqfd.drained()
                if irqfd.state is State.CLOSED:
                    await asyncio.wait({task})
        finally:
            for vector in vectors:
                if not self._irqfds.inherited:  # what they hold is the parent process's
                    msix_snapshot.leave(self._irqfds, vector)
                self._close_eventfd(vector)

    def _close_eventfd(self, vector: MsixVector) -> None:
        eventfd, irqfd = vector.eventfd, vector.irqfd
        if eventfd is None or not (vector.held.owned or vector.held.reference):
            return
        if irqfd is not None and irqfd.eventfd is eventfd and irqfd.state is not State.CLOSED:
            # It is still being injected: what that cannot inject goes back into the eventfd first.
            irqfd.trigger.references += (eventfd,)
        else:
            eventfd.close()


def _move_count(source: EventFd, target: EventFd) -> None:
    try:
        count = source.read_nowait()
    except OSError:
        return  # there is none
    try:
        target.signal(count)
    except OSError:
        source.signal(count)
        raise
