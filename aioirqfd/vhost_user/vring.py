"""One queue of a device: what the front-end has said about it, the ring while it runs, and the requests under way."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Final, final

from aioirqfd.serving.terminal import GONE
from aioirqfd.vhost_user.errors import RefusedError, RingError
from aioirqfd.vhost_user.kick import Kick
from aioirqfd.virtio.chain import written_by
from aioirqfd.virtio.device import Device
from aioirqfd.virtio.errors import InflightError, VirtqueueError
from aioirqfd.virtio.in_order import InOrder
from aioirqfd.virtio.ring import MAX_SIZE
from aioirqfd.virtio.statistics import NONE, VringStatistics, with_run
from aioirqfd.virtio.virtqueue import BATCH, BATCH_BYTES, CALL, MORE, PAGE_SHIFT, RESTED, WORK, VirtQueue

if TYPE_CHECKING:
    from aioirqfd.eventfd import EventFd
    from aioirqfd.irqfd.manager import IrqManager
    from aioirqfd.serving.reports import Reports
    from aioirqfd.tracer import Tracer
    from aioirqfd.vhost_user.calls import Calls
    from aioirqfd.vhost_user.inflight import InflightBuffer, InflightQueue
    from aioirqfd.vhost_user.messages import VringAddr
    from aioirqfd.virtio.chain import Chain
    from aioirqfd.virtio.eager import Eager
    from aioirqfd.virtio.fast import Transfer
    from aioirqfd.virtio.memory import GuestMemory

TURN: Final = 2048
"""The most work that a queue does in one turn of the loop, which has others to serve: buffers walked and pages moved."""
EACH: Final = 8
"""What the call of a handler counts for."""
_WORD: Final = 0xFFFF


@final
class Vring:
    """A queue of the device. Made by the back-end, one for each; its ring comes and goes.

    Args:
        index: Its number.
        device: Who handles the requests.
        kicks: The manager whose irqfds are the kicks; gsi ``index`` is :meth:`on_kick`'s.
        calls: Where interrupts go.
        transfers: By queue, what serves a kick without a word to :meth:`on_kick`, or None.
        eager: Begins the handlers.
        tracer: Hears what happens.
        reports: Tells what goes wrong.

    Threads: the loop's.
    """

    def __init__(
        self,
        index: int,
        *,
        device: Device,
        kicks: IrqManager,
        calls: Calls,
        transfers: list[Transfer | None],
        eager: Eager,
        tracer: Tracer,
        reports: Reports,
    ) -> None:
        self.index: Final = index
        self.queue: VirtQueue | None = None
        self._device = device
        self._name = type(device).__qualname__
        self._kick = Kick(index, kicks)
        self._calls = calls
        self._transfers = transfers
        self._interrupt = None if type(device).interrupt is Device.interrupt else device.interrupt
        self._eager = eager
        self._tracer = tracer
        self._reports = reports
        self._loop = asyncio.get_running_loop()
        self._running: dict[asyncio.Task[int | None], Chain] = {}
        self._cancelled: set[asyncio.Task[int | None]] = set()
        self._done: list[tuple[Chain, int]] = []
        self._receives = index in device.receive_queues
        self._order = InOrder()
        self._idle: asyncio.Future[None] | None = None
        self._starts = self._failed = 0
        self._past = NONE
        self._scheduled = False
        self._stopping = self._closing = False
        self._err: EventFd | None = None
        self._forget()

    def _forget(self) -> None:
        self.size = 0
        self.base = 0
        self.enabled = False
        self._address: VringAddr | None = None
        self._broken: str | None = None
        self._unstarted = False
        self._repeated = False

    def __repr__(self) -> str:
        return f"<Vring {self.index}: {self.queue!r}, {len(self._running)} requests waiting>"

    # -- what the front-end says -------------------------------------------------------------------------------------

    def set_size(self, size: int) -> None:
        """``SET_VRING_NUM``."""
        if size == self.size and self.queue is not None:
            return
        self._must_rest("size")
        if not 1 <= size <= MAX_SIZE or size & (size - 1):
            raise self.unusable(f"a queue's size is a power of 2 up to {MAX_SIZE}, not {size}")
        self.size = size

    def set_base(self, base: int) -> None:
        """``SET_VRING_BASE``."""
        self._must_rest("base")
        if base > _WORD:
            raise self.unusable(f"a base is 0..65535 in a split ring, not {base}")
        self.base = base

    def set_address(self, address: VringAddr) -> None:
        """``SET_VRING_ADDR``."""
        if address == self._address and self.queue is not None:
            return
        self._must_rest("address")
        self._mend()
        self._address = address

    def set_kick(self, eventfd: EventFd) -> None:
        """``SET_VRING_KICK``: owned from here on. Another one while the ring runs takes the first one's place.

        Raises:
            RingError: It cannot be used.
        """
        try:
            self._mend()
        except RefusedError:
            eventfd.close()
            raise
        try:
            fresh = self._kick.set(eventfd, masked=self.queue is None)
        except OSError as error:
            raise self.unusable(f"the kick of queue {self.index} cannot be used: {error}") from error
        if fresh and self.queue is not None:
            # What the old one was signalled for may not have been seen yet.
            self._serve_soon()

    def set_err(self, eventfd: EventFd | None) -> None:
        """``SET_VRING_ERR``: owned from here on."""
        if self._err is not None:
            self._err.close()
        self._err = eventfd

    def set_enabled(self, *, enabled: bool) -> None:
        """``SET_VRING_ENABLE``: a queue that is not enabled keeps its ring, and nothing is taken from it.

        What a front-end wishes for a broken ring is remembered: set up properly, it runs.
        """
        self.enabled = enabled
        self._take_back()
        if enabled and self.queue is not None:
            self._serve_soon()

    def set_memory(self, memory: GuestMemory, *, piecewise: bool = False) -> None:
        """A new memory table; ``piecewise``, the next step to one. Requests under way keep the old memory.

        A ring that could not start may be able to now: :meth:`start` tries again.

        Raises:
            RingError: The ring, which was running, is not in it.
        """
        self._take_back()
        if self.queue is not None:
            try:
                self.queue.set_memory(memory, piecewise=piecewise)
            except VirtqueueError as error:
                told = self._break(error)
                if self.enabled:
                    raise RingError(f"queue {self.index} cannot go on: {error}", told=told) from error
        elif self._unstarted:
            self._broken = None

    def take_file(self) -> None:
        """The device's file may be another one."""
        self._take_back()
        if self.queue is not None and not self._receives:
            self.queue.set_file(self._device.file)

    def must_work(self) -> None:
        """Raise a RingError if the ring was set up, and is broken."""
        if self._broken is not None:
            raise RingError(f"queue {self.index} is stopped until it is set up anew: {self._broken}", told=True)

    def unusable(self, reason: str) -> RingError:
        """Signal the error eventfd, if there is one; return the error to raise."""
        if self._err is None:
            return RingError(reason, told=False)
        self._err.signal()
        return RingError(reason, told=True)

    def _mend(self) -> None:
        """What was broken is being set up anew."""
        if self._broken is not None and self._running:
            raise RefusedError(f"requests of queue {self.index}, which was broken, are still under way: stop it first")
        self._broken = None
        self._unstarted = False

    def _take_back(self) -> None:
        """Kicks are for :meth:`on_kick` again."""
        if self._transfers[self.index] is not None:
            self._transfers[self.index] = None
            if self.queue is not None:
                self.queue.sync()

    def _must_rest(self, what: str) -> None:
        if self.queue is not None:
            raise RefusedError(f"the {what} of queue {self.index} cannot change while it runs")

    # -- start and stop ----------------------------------------------------------------------------------------------

    def start(self, memory: GuestMemory, features: int, inflight: InflightBuffer | None) -> bool:
        """Start the ring if all that it needs has been said, and it does not run.

        Returns:
            Whether it was started.

        Raises:
            RingError: It cannot run as it was set up. It rests until it is set up anew.
        """
        if self.queue is not None or self._stopping or self._broken is not None or not self.enabled:
            return False
        if not self._kick or self._address is None or not self.size:
            return False
        try:
            part = self._part(inflight)
            self.queue = VirtQueue(
                memory,
                self.size,
                self._address,
                base=self.base,
                features=features,
                inflight=part,
                file=None if self._receives else self._device.file,
            )
        except (VirtqueueError, InflightError) as error:
            told = self._break(error)
            self._unstarted = True
            raise RingError(f"queue {self.index} cannot start: {error}", told=told) from error
        self._unstarted = False
        self._starts += 1
        self._tracer.emit("vring_started", queue=self.index, size=self.size, base=self.base, inflight=part is not None)
        self._kick.unmask()
        # What was put into the ring before, or is in flight from an earlier life, may have no kick to come.
        self._serve_soon()
        return True

    def _part(self, inflight: InflightBuffer | None) -> InflightQueue | None:
        """What remembers the ring's requests, if anything can."""
        # An answer given twice has put the used index ahead, from which the inflight buffer would have us begin.
        if inflight is None or self._repeated:
            return None
        part = inflight.part(self.index, self.size)
        if part is None:
            room = inflight.description.queue_size
            self._reports.trouble("inflight_too_small", kind=self.index, queue=self.index, size=self.size, room=room)
        return part

    async def rest(self) -> None:
        """End the run of a ring that is not enabled, because it is about to be set up anew.

        Some front-ends reset a device by nothing else than ``SET_VRING_ENABLE`` 0. Requests under way are ended first, as
        in :meth:`stop`; the kick stays, because it may not be given again.
        """
        await self._end(keep_kick=True)

    async def stop(self) -> int:
        """Stop the ring (``GET_VRING_BASE``): requests under way are ended first, or given back if the queue is one to wait.

        Returns:
            The available ring's index that the next run is to begin with.
        """
        await self._end(keep_kick=False)
        return self.base

    async def _end(self, *, keep_kick: bool) -> None:
        self._stopping = True
        self._take_back()
        try:
            if keep_kick:
                self._kick.mask()
            else:
                self._kick.drop()
            queue = self.queue
            # Of a ring that is broken or abandoned, too: once this is answered, the guest's memory is the guest's again.
            await self._settle(cancel=self._receives)
            if queue is not None and queue is self.queue:
                # They are the last ones taken, because a receive queue's answers go back in order.
                self.base = (queue.stop() - queue.in_flight) & _WORD
                self._retire(queue)
                self._tracer.emit("vring_stopped", queue=self.index, base=self.base, reason=None)
        finally:
            self._stopping = False

    def abandon(self) -> None:
        """The front-end has gone: answer nothing any more, and cancel what is under way, which it counts as still to do."""
        if self.queue is not None:
            self.base = self.queue.stop()
            self._retire(self.queue)
            self._tracer.emit("vring_stopped", queue=self.index, base=self.base, reason=GONE)
        self._cancel()

    async def reset(self) -> None:
        """Stop the ring and forget all that was said about it, but for the error eventfd. Requests under way are ended first."""
        await self.stop()
        self._forget()

    def cancel(self) -> None:
        """Cancel what is under way, and begin nothing more: the back-end is closing."""
        self._take_back()
        self._closing = True
        self._cancel()

    def _cancel(self) -> None:
        # Each one once: a handler that is cancelled may have something to wait for yet, such as a thread.
        for task in self._running:
            if task in self._cancelled:
                continue
            self._cancelled.add(task)
            # Not now: it may have been begun in this very turn (Eager.run).
            self._loop.call_soon(task.cancel)

    async def _settle(self, *, cancel: bool) -> None:
        """Wait until no request is under way."""
        if self._running:
            try:
                self._device.stopping(self.index)
            except Exception as error:
                self._reports.raised("device_failed", f"stopping() of {self._name} raised", error, queue=self.index)
        if cancel or self._closing:
            self._cancel()
        while self._running:
            self._idle = self._loop.create_future()
            await self._idle
        self._complete()

    def _retire(self, queue: VirtQueue) -> None:
        self._transfers[self.index] = None
        self._past = with_run(self._past, queue)
        self.queue = None
        self._done.clear()
        self._order.clear()

    def _break(self, error: Exception) -> bool:
        """The driver has broken the rules, or the front-end has set up what cannot be: the ring rests until it is set up anew.

        Returns:
            Whether the front-end is told, by the error eventfd.
        """
        if self.queue is not None:
            self.base = self.queue.stop()
            self._retire(self.queue)
        self._broken = reason = str(error)
        self._reports.trouble(
            "vring_stopped", kind=(self.index, reason), queue=self.index, base=self.base, reason=reason
        )
        self._kick.mask()
        if self._err is None:
            return False
        self._err.signal()
        return True

    # -- requests ----------------------------------------------------------------------------------------------------

    def on_kick(self) -> None:
        """The driver has put something into the ring, perhaps."""
        if asyncio.current_task(self._loop) is None:
            if self._done:
                self._complete()  # what has ended goes back before what may be answered now
            self._serve()
        else:
            self._serve_soon()

    def _serve_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._serve_now)

    def _serve_now(self) -> None:
        self._scheduled = False
        self._complete()
        self._serve()

    def _serve(self) -> None:
        """Take what is in the ring, and answer what can be answered at once. Never raises, never waits."""
        self._take_back()
        queue = self.queue
        if queue is None or self._stopping or self._closing or not self.enabled:
            return
        device = self._device
        handle = device.handle
        run = self._eager.run
        running = self._running
        receives = self._receives
        file = device.file
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
                            self._serve_soon()
                            return
                        continue
                    chain = queue.pop()
                    if chain is None:
                        break
                    chain.queue = index
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
                        self._serve_soon()
                        return
                elif answers and not receives:
                    # All that there was: the end of nearly every kick.
                    call, more = queue.finish(answers)
                    if call:
                        self._call()
                    if not more:
                        return
                    if left <= 0:
                        self._serve_soon()
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
                        self._serve_soon()
                        return
        except VirtqueueError as error:
            if self.queue is queue:
                self._break(error)

    def _push(self, queue: VirtQueue, answers: list[tuple[Chain, int]]) -> None:
        if self._receives:
            answers = self._order.ready(answers)
            if not answers:
                return
        if len(answers) == 1:
            chain, written = answers[0]
            queue.push(chain, written)
        else:
            queue.push_batch(answers)
        if queue.need_notify():
            self._call()

    def answer_again(self, head: int, written: int) -> None:
        """Give an answer once more, and interrupt as for any other; nothing happens where the ring has stopped."""
        self._take_back()
        queue = self.queue
        if queue is not None:
            queue.push_again(head, written)
            self._repeated = True
            if queue.need_notify():
                self._call()

    def _call(self) -> None:
        if self._interrupt is None:
            self._calls.ring(self.index)
            return
        try:
            withheld = self._interrupt(self.index, functools.partial(self._calls.ring, self.index))
            if withheld and self.queue is not None:
                self.queue.defer_notify()
        except Exception as error:
            # The device answers for what it withholds, not for what it has dropped: the driver is to hear of it all the same.
            self._reports.raised("interrupt_failed", f"interrupt() of {self._name} raised", error, queue=self.index)
            self._calls.ring(self.index)

    def _ended(self, queue: VirtQueue, task: asyncio.Task[int | None]) -> None:
        """A request that waited has ended."""
        chain = self._running.pop(task)
        cancelled_here = task in self._cancelled
        self._cancelled.discard(task)
        if self._idle is not None and not self._running and not self._idle.done():
            self._idle.set_result(None)
        if self.queue is not queue:
            # Its ring has gone: nobody is there to be answered.
            if not task.cancelled() and (late := task.exception()) is not None:
                self._raised(chain, late)
            return
        try:
            written = written_by(chain, task.result())
        except asyncio.CancelledError as cancelled:
            if cancelled_here:
                return  # it stays with the driver
            written = self._fail(chain, cancelled)
        except Exception as raised:
            written = self._fail(chain, raised)
        self._done.append((chain, written))
        # Others may end in the same turn of the loop: one push and one call for all.
        self._serve_soon()

    def _complete(self) -> None:
        """Give back the requests that waited and have ended."""
        answers, self._done = self._done, []
        queue = self.queue
        if answers and queue is not None:
            try:
                self._push(queue, answers)
            except VirtqueueError as error:
                if self.queue is queue:
                    self._break(error)

    def _fail(self, chain: Chain, error: BaseException) -> int:
        self._failed += 1
        self._raised(chain, error)
        try:
            return written_by(chain, self._device.failed(chain, error))
        except Exception as again:
            self._raised(chain, again, "failed")
            return 0

    def _raised(self, chain: Chain, error: BaseException, method: str = "handle") -> None:
        message = f"{method}() of {self._name} raised for a request of queue {self.index}"
        self._reports.raised("request_failed", message, error, queue=self.index, head=chain.head)

    # -- what it has done --------------------------------------------------------------------------------------------

    def statistics(self) -> VringStatistics:
        """The counts as they are now."""
        requests, answers, resubmitted, calls, suppressed = with_run(self._past, self.queue)
        kicks, wakeups = self._kick.counts()
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
