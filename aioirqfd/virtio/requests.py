"""The requests of one queue: taken from its ring, handled, and given back."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Final, final

from aioirqfd.flight import FlightKind, flight_of
from aioirqfd.serving.reports import name_of
from aioirqfd.virtio.chain import written_by
from aioirqfd.virtio.device import NEEDS_RESET, Device
from aioirqfd.virtio.errors import VirtqueueError
from aioirqfd.virtio.in_order import InOrder
from aioirqfd.virtio.interception import UNANSWERED
from aioirqfd.virtio.served import BATCH, BATCH_BYTES, CALL, COUNT, MORE, PAGE_SHIFT, RESTED, WORK
from aioirqfd.virtio.statistics import NONE, VringStatistics, with_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioirqfd.serving.reports import Reports
    from aioirqfd.virtio.blockfile import BlockFile
    from aioirqfd.virtio.chain import Chain
    from aioirqfd.virtio.eager import Eager
    from aioirqfd.virtio.fast import Transfer
    from aioirqfd.virtio.memory import GuestMemory
    from aioirqfd.virtio.virtqueue import VirtQueue

TURN: Final = 2048
"""The most work that a queue does in one turn of the loop, which has others to serve: buffers walked and pages moved."""
EACH: Final = 8
"""What the call of a handler counts for."""
_WORD: Final = 0xFFFF

# At hand: before Python 3.12, to look a member up in its class costs as much as three calls.
_KICK, _CALL, _REQUESTS_SERVED = FlightKind.KICK, FlightKind.CALL, FlightKind.REQUESTS_SERVED
_REQUEST_BEGUN, _REQUEST_COMPLETED = FlightKind.REQUEST_BEGUN, FlightKind.REQUEST_COMPLETED
_REQUEST_FAILED = FlightKind.REQUEST_FAILED


@final
class Requests:
    """The requests of one queue, through all runs of its ring. Made by a transport, one for each queue of the device.

    Args:
        index: The queue's number.
        name: What its source in a flight recorder's file begins with.
        device: Who handles the requests.
        ring: Interrupts for a queue.
        broken: Called when the driver has broken the ring, which is to be stopped: :meth:`stop`.
        transfers: By queue, what serves a kick without a word to :meth:`on_kick`, or None.
        eager: Begins the handlers.
        reports: Tells what goes wrong.

    Attributes:
        queue: The ring while it runs.
        enabled: Whether requests are taken from it.
        stopping: Whether :meth:`end` is under way.
        unanswered: Whether a request was left without an answer.
        receives: Whether its requests wait for what may never come (:attr:`Device.receive_queues`).

    Threads: the loop's.
    """

    def __init__(
        self,
        index: int,
        *,
        name: str,
        device: Device,
        ring: Callable[[int], None],
        broken: Callable[[VirtqueueError], object],
        transfers: list[Transfer | None],
        eager: Eager,
        reports: Reports,
    ) -> None:
        self.index: Final = index
        self.queue: VirtQueue | None = None
        self.enabled = False
        self.stopping = False
        self.unanswered = False
        self._closing = False
        self._device = device
        self._name = name_of(device)
        self._ring = ring
        self._broken = broken
        self._transfers = transfers
        self._interrupt = _interrupt_of(device)
        self._eager = eager
        self._reports = reports
        self._flight = flight_of(reports.tracer, f"{name} queue {index}")
        self._loop = asyncio.get_running_loop()
        self._running: dict[asyncio.Task[int | None], Chain] = {}
        self._cancelled: set[asyncio.Task[int | None]] = set()
        self._done: list[tuple[Chain, int]] = []
        self.receives: Final = index in device.receive_queues
        self._order = InOrder()
        self._starts = self._failed = 0
        self._past = NONE
        self._scheduled = False

    def __repr__(self) -> str:
        return f"<Requests of queue {self.index}: {self.queue!r}, {len(self._running)} waiting>"

    @property
    def waiting(self) -> int:
        """How many wait for something."""
        return len(self._running)

    @property
    def may_withhold(self) -> bool:
        """Whether somebody decides when to interrupt, and may have an interrupt to make up for."""
        return self._interrupt is not None

    @property
    def under_way(self) -> list[tuple[asyncio.Task[int | None], int]]:
        """Those that wait for something: the task of each, and the head of its chain; oldest first."""
        return [(task, chain.head) for task, chain in self._running.items()]

    # -- the ring ----------------------------------------------------------------------------------------------------

    def start(self, queue: VirtQueue) -> None:
        """Serve this ring from here on."""
        self.queue = queue
        self._starts += 1
        # What was put into the ring before, or is in flight from an earlier life, may have no kick to come.
        self.serve_soon()

    @property
    def file(self) -> BlockFile | None:
        """What the ring is to read and write by itself."""
        return None if self.receives else self._device.file

    def take_file(self) -> None:
        """The device's file may be another one."""
        self.take_back()
        if self.queue is not None and not self.receives:
            self.queue.set_file(self._device.file)

    def look_again(self) -> None:
        """The device's interception has come or gone."""
        self.take_back()
        self._interrupt = _interrupt_of(self._device)

    def set_memory(self, memory: GuestMemory, *, piecewise: bool = False) -> None:
        """A new memory table; ``piecewise``, the next step to one. Requests under way keep the old memory.

        Raises:
            VirtqueueError: The ring, which was running, is not in it.
        """
        self.take_back()
        if self.queue is not None:
            self.queue.set_memory(memory, piecewise=piecewise)

    def take_back(self) -> None:
        """Kicks are for :meth:`on_kick` again."""
        if self._transfers[self.index] is not None:
            self._transfers[self.index] = None
            if self.queue is not None:
                self.queue.sync()

    async def end(self) -> int | None:
        """End the run: requests under way are ended first, or given back if the queue is one to wait.

        Returns:
            The available ring's index that the next run is to begin with; None if no ring ran.
        """
        self.stopping = True
        self.take_back()
        try:
            queue = self.queue
            # Of a ring that is broken or abandoned, too: once this is answered, the guest's memory is the guest's again.
            await self._settle(cancel=self.receives)
            if queue is None or queue is not self.queue:
                return None
            # They are the last ones taken, because a receive queue's answers go back in order.
            base = (queue.stop() - queue.in_flight) & _WORD
            self._retire(queue)
            return base
        finally:
            self.stopping = False

    def stop(self) -> int | None:
        """End the run at once: what is under way is answered no more.

        Returns:
            The available ring's index behind the last request that was taken; None if no ring ran.
        """
        queue = self.queue
        if queue is None:
            return None
        base = queue.stop()
        self._retire(queue)
        return base

    def close(self) -> None:
        """Cancel what is under way, and begin nothing more."""
        self.take_back()
        self._closing = True
        self.cancel()

    def cancel(self) -> None:
        """Cancel what is under way."""
        # Each one once: a handler that is cancelled may have something to wait for yet, such as a thread.
        for task in self._running:
            if task in self._cancelled:
                continue
            self._cancelled.add(task)
            # Not now: it may have been begun in this very turn (Eager.run).
            self._loop.call_soon(task.cancel)

    async def _settle(self, *, cancel: bool) -> None:
        """Wait until no request is under way."""
        if (between := self._device.interception) is not None:
            between.stopping(self.index)
        if self._running:
            try:
                self._device.stopping(self.index)
            except Exception as error:
                self._reports.raised(
                    "device_failed", f"stopping() of {self._name} raised", error, queue=self.index, what="stopping()"
                )
        if cancel or self._closing:
            self.cancel()
        while self._running:
            # Two may wait: a driver resets a device that resets itself.
            await asyncio.wait(self._running)
        self._complete()

    def _retire(self, queue: VirtQueue) -> None:
        self._transfers[self.index] = None
        self._past = with_run(self._past, queue)
        self.queue = None
        self._done.clear()
        self._order.clear()

    # -- requests ----------------------------------------------------------------------------------------------------

    def on_kick(self) -> None:
        """The driver has put something into the ring, perhaps."""
        self._note(_KICK)
        if asyncio.current_task(self._loop) is None:
            if self._done:
                self._complete()  # what has ended goes back before what may be answered now
            self._serve()
        else:
            self.serve_soon()

    def serve_soon(self) -> None:
        """Look into the ring in the loop's next turn."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._serve_now)

    def _serve_now(self) -> None:
        self._scheduled = False
        self._complete()
        self._serve()

    def _serve(self) -> None:
        """Take what is in the ring, and answer what can be answered at once. Never raises, never waits."""
        self.take_back()
        queue = self.queue
        if queue is None or self.stopping or self._closing or not self.enabled:
            return
        device = self._device
        between = device.interception
        handle = device.handle if between is None else between.handle
        run = self._eager.run
        running = self._running
        receives = self.receives
        file = device.file if between is None else None
        index = self.index
        left = TURN
        answers: list[tuple[Chain, int]] = []
        written = 0
        chain: Chain | None = None
        try:
            while True:
                free = device.concurrency - len(running)
                while free > 0:
                    # What Python has answered goes back first; nothing overtakes it.
                    if file is not None and not answers and (served := queue.transfer()):
                        left -= served >> WORK
                        self._note(_REQUESTS_SERVED, served & COUNT)
                        if served & RESTED:
                            if served & CALL:
                                self._call()
                            if not served & MORE:
                                if not running and not self._done and self._interrupt is None:
                                    # The ring is at rest, and nobody has anything of it: what comes next needs no Python.
                                    self._transfers[index] = queue.lend()
                                return
                        elif queue.need_notify():
                            self._call()
                        if left <= 0:
                            self.serve_soon()
                            return
                        continue
                    chain = queue.pop()
                    if chain is None:
                        break
                    chain.queue = index
                    self._note(_REQUEST_BEGUN, chain.head)
                    if receives:
                        self._order.add(chain)
                    left -= EACH + len(chain.readable) + len(chain.writable)
                    try:
                        result = run(handle(chain))
                        if isinstance(result, int) and 0 <= result <= chain.writable_size:
                            size = result
                        elif isinstance(result, asyncio.Task):
                            running[result] = chain
                            result.add_done_callback(functools.partial(self._ended, queue))
                            free -= 1
                            if left > 0:
                                continue
                            break
                        elif between is not None and result == UNANSWERED:
                            self._leave_unanswered(queue, chain)
                            continue
                        else:
                            size = written_by(chain, result)
                    except (Exception, asyncio.CancelledError) as error:
                        size = self._fail(chain, error)
                    answers.append((chain, size))
                    written += size
                    if len(answers) >= BATCH or written >= BATCH_BYTES or left <= 0:
                        break
                else:
                    # As many as may be are under way; the end of one goes on from here.
                    if answers:
                        self._push(queue, answers)
                    return
                if chain is not None:
                    if answers:
                        self._push(queue, answers)
                    left -= written >> PAGE_SHIFT
                    answers.clear()
                    written = 0
                    if left <= 0:
                        self.serve_soon()
                        return
                elif answers and not receives:
                    # All that there was: the end of nearly every kick.
                    call, more = queue.finish(answers)
                    self._note_completed(answers)
                    if call:
                        self._call()
                    if not more:
                        return
                    if left <= 0:
                        self.serve_soon()
                        return
                    answers.clear()
                    written = 0
                else:
                    if answers:
                        self._push(queue, answers)
                        answers.clear()
                        written = 0
                    if not queue.enable_kicks():
                        return
                    if left <= 0:
                        self.serve_soon()
                        return
        except VirtqueueError as error:
            if self.queue is queue:
                self._broken(error)

    def _push(self, queue: VirtQueue, answers: list[tuple[Chain, int]]) -> None:
        if self.receives:
            answers = self._order.ready(answers)
            if not answers:
                return
        if len(answers) == 1:
            chain, written = answers[0]
            queue.push(chain, written)
        else:
            queue.push_batch(answers)
        self._note_completed(answers)
        if queue.need_notify():
            self._call()

    def _note(self, kind: FlightKind, value: int = 0) -> None:
        if self._flight is not None:
            self._flight.put(kind, self.index, value)

    def _note_completed(self, answers: list[tuple[Chain, int]]) -> None:
        if self._flight is not None:
            for chain, _ in answers:
                self._flight.put(_REQUEST_COMPLETED, self.index, chain.head)

    def note_served(self, served: int) -> None:
        """A kick was served without Python, as far as :meth:`VirtQueue.transfer` says."""
        self._note(_KICK)
        if served & COUNT:
            self._note(_REQUESTS_SERVED, served & COUNT)
        if served & CALL:
            self._note(_CALL)

    def _leave_unanswered(self, queue: VirtQueue, chain: Chain) -> None:
        """A request is never answered, and holds up nothing."""
        queue.forget(chain)
        self.unanswered = True
        if self.receives:
            self._order.forget(chain)
            self._push(queue, [])

    def answer_again(self, head: int, written: int) -> bool:
        """Give an answer once more, and interrupt as for any other.

        Returns:
            Whether it was given: not where the ring has stopped.
        """
        self.take_back()
        queue = self.queue
        if queue is None:
            return False
        queue.push_again(head, written)
        if queue.need_notify():
            self._call()
        return True

    def ring(self) -> None:
        """Interrupt the driver for this queue, whether there is something to tell or not."""
        self._note(_CALL)
        self._ring(self.index)

    def _call(self) -> None:
        if self._interrupt is None:
            self.ring()
            return
        try:
            withheld = self._interrupt(self.index, self.ring)
            if withheld and self.queue is not None:
                self.queue.defer_notify()
        except Exception as error:
            # The device answers for what it withholds, not for what it has dropped: the driver is to hear of it all the same.
            self._reports.raised("interrupt_failed", f"interrupt() of {self._name} raised", error, queue=self.index)
            self.ring()

    def _ended(self, queue: VirtQueue, task: asyncio.Task[int | None]) -> None:
        """A request that waited has ended."""
        chain = self._running.pop(task)
        cancelled_here = task in self._cancelled
        self._cancelled.discard(task)
        if self.queue is not queue:
            # Its ring has gone: nobody is there to be answered.
            if not task.cancelled() and (late := task.exception()) is not None:
                self._raised(chain, late)
            return
        try:
            if task.result() == UNANSWERED and self._device.interception is not None:
                self._leave_unanswered(queue, chain)
                self.serve_soon()
                return
            written = written_by(chain, task.result())
        except asyncio.CancelledError as cancelled:
            if cancelled_here:
                return  # it stays with the driver
            written = self._fail(chain, cancelled)
        except Exception as raised:
            written = self._fail(chain, raised)
        if self.queue is not queue:
            return
        self._done.append((chain, written))
        # Others may end in the same turn of the loop: one push and one call for all.
        self.serve_soon()

    def _complete(self) -> None:
        """Give back the requests that waited and have ended."""
        answers, self._done = self._done, []
        queue = self.queue
        if answers and queue is not None:
            try:
                self._push(queue, answers)
            except VirtqueueError as error:
                if self.queue is queue:
                    self._broken(error)

    def _fail(self, chain: Chain, error: BaseException) -> int:
        self._failed += 1
        self._raised(chain, error)
        try:
            written = self._device.failed(chain, error)
            if written != NEEDS_RESET:
                return written_by(chain, written)
        except Exception as again:
            self._raised(chain, again, "failed")
            return 0
        # Stopped, the ring takes no answer, this one neither.
        self._broken(VirtqueueError(f"{self._name} has failed, and has no answer that says so: it needs a reset"))
        return 0

    def _raised(self, chain: Chain, error: BaseException, method: str = "handle") -> None:
        self._note(_REQUEST_FAILED, chain.head)
        message = f"{method}() of {self._name} raised for a request of queue {self.index}"
        self._reports.raised("request_failed", message, error, queue=self.index, head=chain.head)

    # -- what it has done --------------------------------------------------------------------------------------------

    def statistics(self, kicks: int, wakeups: int) -> VringStatistics:
        """The counts as they are now, with those of the kick."""
        requests, answers, resubmitted, calls, suppressed = with_run(self._past, self.queue)
        return VringStatistics(
            starts=self._starts,
            kicks=kicks,
            wakeups=wakeups,
            requests=requests,
            answers=answers,
            resubmitted=resubmitted,
            failed=self._failed,
            calls=calls,
            suppressed=suppressed,
        )


def _interrupt_of(device: Device) -> Callable[[int, Callable[[], None]], bool | None] | None:
    """Who decides when to interrupt; None: nobody, it is done at once."""
    if device.interception is not None:
        return device.interception.interrupt
    return None if type(device).interrupt is Device.interrupt else device.interrupt
