"""The interrupts of a device: one irqfd for each queue, and behind it the eventfd that the front-end wants it at.

The front-end changes that eventfd at run time: to mask a vector it gives another one, which it looks at when it sees fit,
and to unmask it gives the first one again. There is no reply to either message. So while the back-end writes the one, the
front-end may have stopped looking at it, and what was written there is seen by nobody. The cure is in :meth:`Calls.bind`:
**whatever eventfd is new is signalled once**. It costs the driver at most one interrupt that has nothing to say, at a moment
that is not on any fast path, and whatever was lost on the way is made good.
"""

# pyright: reportPrivateUsage=false
# (an underscore on an IrqFd says "for this package")
from __future__ import annotations

from typing import TYPE_CHECKING, Self, final

from aioirqfd.eventfd import EventFd
from aioirqfd.irqfd.interrupt import Msi
from aioirqfd.irqfd.manager import IrqManager
from aioirqfd.sinks.eventfd import EventFdSink

if TYPE_CHECKING:
    from types import TracebackType

    from aioirqfd.irqfd.irqfd import IrqFd
    from aioirqfd.tracer import Tracer


def _no_eventfd() -> str:
    return "the front-end has given its queue no call eventfd (SET_VRING_CALL); its interrupt is kept"


@final
class Calls:
    """The vectors of a back-end: gsi n is queue n's.

    A queue without a call eventfd is masked: its interrupt stays pending, and goes to the eventfd that comes. The interrupt of
    one that is not masked is written to its eventfd at once, which is all that the irqfd's own fast path would do with it,
    but from within a kick would do a turn of the loop later. (With a tracer that wants to hear of every interrupt, the
    irqfd does it.)

    Args:
        count: How many queues.
        tracer: Hears what happens.
        name: The name of its manager.

    Attributes:
        open: By queue, the eventfd that an interrupt is written to at once, or None: then :meth:`ring` is to decide.

    Threads: the loop's.
    """

    __slots__ = ("_eventfds", "_irqfds", "_manager", "_traced", "_triggers", "open")

    def __init__(self, count: int, *, tracer: Tracer, name: str | None = None) -> None:
        self._eventfds: dict[int, EventFd] = {}
        routes = {index: Msi(address=0, data=index) for index in range(count)}
        self._manager = IrqManager(EventFdSink(self._eventfds), routing=routes, tracer=tracer, name=name)
        self._traced = bool(tracer.per_interrupt)
        self.open: list[EventFd | None] = [None] * count
        self._triggers: list[EventFd] = []
        self._irqfds: list[IrqFd] = []

    async def __aenter__(self) -> Self:
        await self._manager.__aenter__()
        try:
            for index in self._manager.routing:
                trigger = EventFd()
                self._triggers.append(trigger)
                irqfd = self._manager.assign(
                    trigger, gsi=index, masked=True, name=f"call {index}", labels={"queue": index}
                )
                irqfd._binding.trigger.why_masked = _no_eventfd  # noqa: SLF001  an underscore for this package
                self._irqfds.append(irqfd)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._manager.__aexit__(exc_type, exc, traceback)
        finally:
            for eventfd in (*self._triggers, *self._eventfds.values()):
                eventfd.close()
            self._eventfds.clear()

    def ring(self, index: int) -> None:
        """Interrupt for queue ``index``."""
        eventfd = self.open[index]
        if eventfd is not None:
            eventfd.signal()
        else:
            self._triggers[index].signal()

    def bind(self, index: int, eventfd: EventFd | None) -> None:
        """``SET_VRING_CALL``: from now on, the interrupts of queue ``index`` go to this eventfd.

        Args:
            index: The queue.
            eventfd: Owned from here on, and signalled once, for whatever was written to the last one and seen by nobody.
                None masks the vector.
        """
        old = self._eventfds.pop(index, None)
        self.open[index] = None
        if eventfd is None:
            self._irqfds[index].mask()
        else:
            self._eventfds[index] = eventfd
            self.ring(index)
            self._irqfds[index].unmask()
            if not self._traced:
                self.open[index] = eventfd
        if old is not None:
            old.close()

    @property
    def irqfds(self) -> tuple[IrqFd, ...]:
        """The irqfds, by queue."""
        return tuple(self._irqfds)
