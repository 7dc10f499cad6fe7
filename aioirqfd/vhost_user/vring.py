"""One queue of a device: what the front-end has said about it, and the ring while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from aioirqfd.serving.reports import name_of
from aioirqfd.serving.terminal import GONE
from aioirqfd.vhost_user.errors import RefusedError, RingError
from aioirqfd.vhost_user.kick import Kick
from aioirqfd.virtio.errors import InflightError, VirtqueueError
from aioirqfd.virtio.queue_node import of_queue
from aioirqfd.virtio.requests import Requests
from aioirqfd.virtio.ring import MAX_SIZE
from aioirqfd.virtio.virtqueue import VirtQueue

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aioirqfd.eventfd import EventFd
    from aioirqfd.irqfd.manager import IrqManager
    from aioirqfd.serving.reports import Reports
    from aioirqfd.tracer import Tracer
    from aioirqfd.vhost_user.calls import Calls
    from aioirqfd.vhost_user.inflight import InflightBuffer, InflightQueue
    from aioirqfd.vhost_user.messages import VringAddr
    from aioirqfd.virtio.device import Device
    from aioirqfd.virtio.eager import Eager
    from aioirqfd.virtio.fast import Transfer
    from aioirqfd.virtio.memory import GuestMemory
    from aioirqfd.virtio.statistics import VringStatistics

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
        self.requests: Final = Requests(
            index,
            name=name_of(device),
            device=device,
            ring=calls.ring,
            broken=self._break,
            transfers=transfers,
            eager=eager,
            reports=reports,
        )
        self._kick = Kick(index, kicks)
        self._tracer = tracer
        self._reports = reports
        self._err: EventFd | None = None
        self._forget()

    def _forget(self) -> None:
        self.size = 0
        self.base = 0
        self.requests.enabled = self.requests.unanswered = False
        self._address: VringAddr | None = None
        self._broken: str | None = None
        self._unstarted = False
        self._repeated = False

    def __repr__(self) -> str:
        return f"<Vring {self.index}: {self.requests!r}>"

    @property
    def queue(self) -> VirtQueue | None:
        """The ring while it runs."""
        return self.requests.queue

    @property
    def enabled(self) -> bool:
        """Whether the front-end has enabled it."""
        return self.requests.enabled

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
            self.requests.serve_soon()

    def set_err(self, eventfd: EventFd | None) -> None:
        """``SET_VRING_ERR``: owned from here on."""
        if self._err is not None:
            self._err.close()
        self._err = eventfd

    def set_enabled(self, *, enabled: bool) -> None:
        """``SET_VRING_ENABLE``: a queue that is not enabled keeps its ring, and nothing is taken from it.

        What a front-end wishes for a broken ring is remembered: set up properly, it runs.
        """
        self.requests.enabled = enabled
        self.requests.take_back()
        if enabled and self.queue is not None:
            self.requests.serve_soon()

    def set_memory(self, memory: GuestMemory, *, piecewise: bool = False) -> None:
        """A new memory table; ``piecewise``, the next step to one. Requests under way keep the old memory.

        A ring that could not start may be able to now: :meth:`start` tries again.

        Raises:
            RingError: The ring, which was running, is not in it.
        """
        if self.queue is None and self._unstarted:
            self._broken = None
        try:
            self.requests.set_memory(memory, piecewise=piecewise)
        except VirtqueueError as error:
            told = self._break(error)
            if self.enabled:
                raise RingError(f"queue {self.index} cannot go on: {error}", told=told) from error

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
        if self._broken is not None and self.requests.waiting:
            raise RefusedError(f"requests of queue {self.index}, which was broken, are still under way: stop it first")
        self._broken = None
        self._unstarted = False

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
        if self.queue is not None or self.requests.stopping or self._broken is not None or not self.enabled:
            return False
        if not self._kick or self._address is None or not self.size:
            return False
        try:
            part = self._part(inflight)
            queue = VirtQueue(
                memory,
                self.size,
                self._address,
                base=self.base,
                features=features,
                inflight=part,
                file=self.requests.file,
            )
        except (VirtqueueError, InflightError) as error:
            told = self._break(error)
            self._unstarted = True
            raise RingError(f"queue {self.index} cannot start: {error}", told=told) from error
        self._unstarted = False
        self._tracer.emit("vring_started", queue=self.index, size=self.size, base=self.base, inflight=part is not None)
        self._kick.unmask()
        self.requests.start(queue)
        return True

    def _part(self, inflight: InflightBuffer | None) -> InflightQueue | None:
        """What remembers the ring's requests, if anything can."""
        # An answer given twice, or never, has the used index elsewhere than where the inflight buffer would have us begin.
        if inflight is None or self._repeated or self.requests.unanswered:
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
        if keep_kick:
            self._kick.mask()
        else:
            self._kick.drop()
        base = await self.requests.end()
        if base is not None:
            self.base = base
            self._tracer.emit("vring_stopped", queue=self.index, base=base, reason=None)

    def abandon(self) -> None:
        """The front-end has gone: answer nothing any more, and cancel what is under way, which it counts as still to do."""
        base = self.requests.stop()
        if base is not None:
            self.base = base
            self._tracer.emit("vring_stopped", queue=self.index, base=base, reason=GONE)
        self.requests.cancel()

    async def reset(self) -> None:
        """Stop the ring and forget all that was said about it, but for the error eventfd. Requests under way are ended first."""
        await self.stop()
        self._forget()

    def _break(self, error: Exception) -> bool:
        """The driver has broken the rules, or the front-end has set up what cannot be: the ring rests until it is set up anew.

        Returns:
            Whether the front-end is told, by the error eventfd.
        """
        base = self.requests.stop()
        if base is not None:
            self.base = base
        self._broken = reason = str(error)
        self._reports.trouble(
            "vring_stopped", kind=(self.index, reason), queue=self.index, base=self.base, reason=reason
        )
        self._kick.mask()
        if self._err is None:
            return False
        self._err.signal()
        return True

    def answer_again(self, head: int, written: int) -> None:
        """Give an answer once more, and interrupt as for any other; nothing happens where the ring has stopped."""
        self._repeated |= self.requests.answer_again(head, written)

    def statistics(self) -> VringStatistics:
        """The counts as they are now."""
        return self.requests.statistics(*self._kick.counts())

    def node(self) -> Mapping[str, object]:
        """What there is to see of it."""
        said = {"broken": self._broken, "size": self.size, "base": self.base, "kick": bool(self._kick)}
        return of_queue(self.requests, self.statistics(), **said)
