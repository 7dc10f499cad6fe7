"""The interrupts of a function: a trigger for each vector and one for the pin, and behind each an eventfd that somebody looks at.

Each vector is an irqfd of one manager. It is masked while there is no eventfd for it, or while it is masked by whoever gave that:
then what is signalled stays pending, and goes to the eventfd that comes. So while a driver comes up and its VMM takes eventfds
away and gives them back, nothing is lost; and *pending* is at any time what the pending-bit array has to say.

The pin is a level. A device says whether it wants it up; the eventfd is signalled when it rises, and then not again before the
guest's end of interrupt (:meth:`Interrupts.end_of_interrupt`), at which it rises again if the device still wants it.
"""

# pyright: reportPrivateUsage=false
# (the manager is its own)
from __future__ import annotations

import contextlib
import os
import select
import threading
from functools import partial
from typing import TYPE_CHECKING, Final, Self, final

from aioirqfd import nodes
from aioirqfd.errors import ClosedError, WouldBlock
from aioirqfd.eventfd import EventFd
from aioirqfd.flight import FlightKind
from aioirqfd.irqfd.interrupt import Action, IrqchipPin, Msi
from aioirqfd.irqfd.manager import IrqManager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from aioirqfd.irqfd.interrupt import Interrupt, Route
    from aioirqfd.irqfd.irqfd import IrqFd
    from aioirqfd.pci.host import FunctionHost
    from aioirqfd.pci.interception import Interception
    from aioirqfd.tracer import Tracer

PIN: Final = -1
"""In place of a vector: the interrupt pin."""
_INTX: Final = {"pin": "INTx"}


@final
class _Vector:
    """What is there for one vector.

    Attributes:
        number: Which one it is, or ``PIN``.
        trigger: What the device signals; made at the first need.
        hosted: The host's eventfd, which is the trigger while nothing comes between.
        relay: The trigger while something does, or has done; made at the first need.
        irqfd: Binds the trigger, unless that is the host's; made when there is somebody to tell, or at the first signal on the loop.
        target: Whom it tells.
        masked: Whether the one who gave the target has masked it.
        sent: How often a target was signalled.
    """

    __slots__ = ("hosted", "irqfd", "masked", "number", "relay", "sent", "target", "trigger")

    def __init__(self, number: int) -> None:
        self.number = number
        self.trigger: EventFd | None = None
        self.hosted: EventFd | None = None
        self.relay: EventFd | None = None
        self.irqfd: IrqFd | None = None
        self.target: EventFd | None = None
        self.masked = False
        self.sent = 0


@final
class _Sink:
    """Where the irqfds inject."""

    def __init__(self, deliver: Callable[[Interrupt], bool]) -> None:
        self.try_inject = deliver

    async def inject(self, interrupt: Interrupt) -> None:
        if not self.try_inject(interrupt):
            raise ClosedError("there is no eventfd for this vector")


@final
class Interrupts:
    """All interrupts of one function.

    Args:
        vectors: How many, 0..2048.
        tracer: Hears what happens.
        name: Its manager's, for :mod:`aioirqfd.inspect` and in a flight recorder's file.
        host: Who injects for the vectors in place of this, by eventfds of its own; the pin stays here.

    Used as ``async with``. What is pending at the end is gone, as with the device.

    Threads:
        :meth:`signal` and :attr:`pin` from any; the rest the loop's.
    """

    def __init__(
        self, vectors: int, *, tracer: Tracer, name: str | None = None, host: FunctionHost | None = None
    ) -> None:
        self._vectors = [_Vector(number) for number in range(vectors)]
        self._pin = _Vector(PIN)
        self._host = host
        self._gsi = vectors  # the pin's; the next one is the end of interrupt's
        self._wanted = False
        self._up = False
        self._disabled = False
        self._lock = threading.Lock()
        self._closed = True
        self.interception: Interception | None = None
        self._resample: EventFd | None = None
        self._end: tuple[EventFd, IrqFd] | None = None
        routes: dict[int, Route] = {vector: Msi(address=0, data=vector) for vector in range(vectors)}
        routes[self._gsi] = IrqchipPin("pic", 0)  # of no controller: it makes the gsi a level
        routes[self._gsi + 1] = Msi(address=0, data=self._gsi + 1)
        self._manager = IrqManager(_Sink(self._deliver), routing=routes, tracer=tracer, name=name)
        self._manager._irqfds.delivery.vectors[id(self)] = self  # noqa: SLF001  as below
        # The manager's own source: a signal, and the injection that follows.
        self._flight = self._manager._irqfds.delivery.flight  # noqa: SLF001  an underscore for this package

    def __len__(self) -> int:
        return len(self._vectors)

    def node(self) -> dict[str, object]:
        """What there is to see of them. The loop's thread."""
        return {
            "pin": {"wanted": self._wanted, "up": self._up, "disabled": self._disabled, **self._shown(PIN)},
            "vectors": nodes.Child(lambda: {str(n): nodes.Child(partial(self._shown, n)) for n in range(len(self))}),
        }

    def _shown(self, vector: int) -> dict[str, object]:
        pending = self.pending(vector)
        return {
            "bound": self.bound(vector),
            "masked": self.masked(vector),
            "pending": pending,
            # Of a host's, what went by this process is not all: the host has its own counts.
            **({} if self._of(vector).hosted is not None else {"sent": self.sent(vector)}),
        }

    def waiting(self) -> Iterator[tuple[str, str]]:
        """Of each vector that is signalled and was never bound, its name, and what it waits for."""
        for vector, one in ((PIN, self._pin), *enumerate(self._vectors)):
            if one.irqfd is None and one.hosted is None and self.pending(vector):
                yield "pin" if vector == PIN else f"vector {vector}", self._stop(one)

    def _stop(self, one: _Vector) -> str:
        if one.target is None:
            return "nobody has given it an eventfd to interrupt by: the guest has not enabled it, or the VMM has forgotten it"
        if one.masked:
            return "the guest has masked it, by its VMM"
        return "the guest has disabled the pin, by the command register"

    async def __aenter__(self) -> Self:
        await self._manager.__aenter__()
        self._closed = False
        if self._host is not None:
            for one in self._vectors:
                self._trigger(one)  # now, for the host's are made on the loop alone
            self.intercept(None)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True
        try:
            await self._manager.__aexit__(exc_type, exc, traceback)
        finally:
            for one in (*self._vectors, self._pin):
                for eventfd in (one.trigger, one.relay, one.target):
                    if eventfd is not None and eventfd is not one.hosted:
                        eventfd.close()
                one.trigger = one.relay = one.hosted = one.target = one.irqfd = None
            if self._resample is not None:
                self._resample.close()
            if self._end is not None:
                self._end[0].close()

    # -- the device's side -------------------------------------------------------------------------------------------

    def signal(self, vector: int) -> None:
        """Interrupt by a vector: at once if it can be, else it is pending. Any thread.

        Raises:
            ValueError: There is no such vector.
            ClosedError: The device is not served, or no more.
        """
        if not 0 <= vector < len(self._vectors):
            raise ValueError(f"the device has vectors 0..{len(self._vectors) - 1}, not {vector}")
        one = self._vectors[vector]
        trigger = one.trigger
        if trigger is None:
            trigger = self._trigger(one)
        trigger.signal()

    def trigger(self, vector: int) -> EventFd:
        """The eventfd that :meth:`signal` signals, for whoever can do that faster. It stays this object's.

        Raises:
            ClosedError: The device is not served, or no more.
        """
        return self._trigger(self._vectors[vector])

    @property
    def pin(self) -> bool:
        """Whether the device wants the interrupt pin up; set it. Any thread.

        Raises:
            ClosedError: On setting: the device is not served, or no more.
        """
        return self._wanted

    @pin.setter
    def pin(self, wanted: bool) -> None:
        if not wanted and self._wanted and self.interception is not None:
            self.interception.lower(self._lower)
            return
        was, self._wanted = self._wanted, bool(wanted)
        if self._wanted and not was:
            (self._pin.trigger or self._trigger(self._pin)).signal()

    def _lower(self) -> None:
        self._wanted = False

    def _trigger(self, one: _Vector) -> EventFd:
        with self._lock:
            if self._closed:
                raise ClosedError("the device is not served: there is nobody to interrupt")
            if one.trigger is None:
                if self._host is not None and one is not self._pin:
                    one.hosted = self._host.eventfd(one.number)
                one.trigger = EventFd() if one.hosted is None else one.hosted
            return one.trigger

    def intercept(self, interception: Interception | None) -> None:
        """From now on, have every interrupt go by this; None: by nobody.

        A host's eventfd is behind the trigger then, and not the trigger itself: what a device signals comes here first. So it does with
        a flight recorder, which is to see each. The way stays open when nothing comes between any more, for a thread that has just
        taken the trigger.
        """
        self.interception = interception
        relayed = interception is not None or self._flight is not None
        for one in self._vectors:
            if one.hosted is None:
                continue
            if relayed and one.relay is None:
                one.relay = one.trigger = EventFd()
                self.bind(one.number, EventFd.from_fd(os.dup(one.hosted.fileno()), owns=True))
            one.trigger = one.relay if relayed else one.hosted

    def _deliver(self, interrupt: Interrupt) -> bool:
        """The sink: signal the target."""
        if interrupt.gsi < self._gsi:
            one = self._vectors[interrupt.gsi]
        elif interrupt.gsi > self._gsi:
            self.unmask(PIN)
            return True
        elif interrupt.action is Action.DEASSERT:
            self._up = False
            return True
        elif self._up or not self._wanted:
            # The guest has one of them to end yet; or the device has thought better of it while the pin was masked.
            return True
        else:
            one = self._pin
        vector = interrupt.gsi if interrupt.gsi < self._gsi else PIN
        if self.interception is not None and one.target is not None:
            return self.interception.signal(vector, self.deliver)
        return self.deliver(vector)

    def deliver(self, vector: int) -> bool:
        """Tell whoever is to be told of a vector, or of ``PIN``; False: nobody is. The loop's thread."""
        one = self._of(vector)
        if self._flight is not None:
            self._flight.put(FlightKind.VECTOR, vector)
        if one.target is None:
            return False  # it was taken away in this very moment; the work queue finds it masked
        self._up = self._up or one is self._pin
        one.target.signal()
        one.sent += 1
        return True

    # -- the side of whoever serves the device -----------------------------------------------------------------------

    def _of(self, vector: int) -> _Vector:
        return self._pin if vector == PIN else self._vectors[vector]

    def bind(self, vector: int, target: EventFd | None) -> None:
        """From now on, a vector's interrupts go to this eventfd. What is pending goes there at once.

        Args:
            vector: Which one, or ``PIN``.
            target: Owned from here on. None: there is nobody to tell, and interrupts are pending.
        """
        one = self._of(vector)
        old, one.target = one.target, None
        if one.irqfd is not None:
            one.irqfd.mask()
        if old is not None:
            old.close()
        if target is None:
            return
        one.target = target
        self._assign(vector, one)
        if vector == PIN and old is None:
            # Whatever was told to an earlier eventfd was told to somebody who has gone.
            self.end_of_interrupt()
        self._update(one)

    def _assign(self, vector: int, one: _Vector) -> None:
        if one.irqfd is not None:
            return
        trigger = one.relay or self._trigger(one)
        if vector == PIN:
            if self._resample is None:
                self._resample = EventFd()
            one.irqfd = self._manager.assign(
                trigger, gsi=self._gsi, resamplefd=self._resample, masked=True, name="pin", labels=_INTX
            )
        else:
            one.irqfd = self._manager.assign(
                trigger, gsi=vector, masked=True, name=f"vector {vector}", labels={"vector": vector}
            )
        one.irqfd._binding.trigger.why_masked = partial(self._stop, one)  # noqa: SLF001  an underscore for this package

    def _update(self, one: _Vector) -> None:
        if one.irqfd is None:
            return
        if one.target is None or one.masked or (one is self._pin and self._disabled):
            one.irqfd.mask()
        else:
            one.irqfd.unmask()

    def mask(self, vector: int) -> None:
        """Keep a vector's interrupts pending; idempotent."""
        one = self._of(vector)
        one.masked = True
        self._update(one)

    def unmask(self, vector: int) -> None:
        """Let them go again, and those that are pending; idempotent. Of the pin it is the end of interrupt, too."""
        one = self._of(vector)
        one.masked = False
        self._update(one)
        if one is self._pin:
            self.end_of_interrupt()

    def disable_pin(self, *, disabled: bool) -> None:
        """The guest has said that the function is not to use its pin (the command register), or that it may."""
        if self._disabled != disabled:
            self._disabled = disabled
            self._update(self._pin)

    def end_of_interrupt(self) -> None:
        """The guest has ended the pin's interrupt: the pin is low, and rises again if the device still wants it."""
        if self._closed:
            return
        self._manager.ack(self._gsi)
        if self._wanted:
            self._trigger(self._pin).signal()

    def bind_end_of_interrupt(self, eventfd: EventFd | None) -> None:
        """Let an eventfd say that the guest has ended the pin's interrupt, as KVM does (its resamplefd); None: it no longer does.

        Args:
            eventfd: Owned from here on.
        """
        old, self._end = self._end, None
        if old is not None:
            old[0].close()
        if eventfd is not None:
            self._end = eventfd, self._manager.assign(eventfd, gsi=self._gsi + 1, name="end of interrupt", labels=_INTX)

    def pulse_pin(self) -> None:
        """Interrupt once by the pin, as if the device had wanted it for a moment. Nothing happens while it is masked or up."""
        one = self._pin
        if one.target is not None and not (one.masked or self._disabled or self._up):
            one.target.signal()

    def bound(self, vector: int) -> bool:
        """Whether a vector, or ``PIN``, has somebody to tell."""
        one = self._of(vector)
        return one.target is not None or one.hosted is not None

    def masked(self, vector: int) -> bool:
        """Whether a vector, or ``PIN``, was masked."""
        one = self._of(vector)
        return one.masked if one.hosted is None or self._host is None else self._host.masked(vector)

    def sent(self, vector: int) -> int:
        """How often whoever is to be told of a vector, or of ``PIN``, was told, since the device began to be served.

        What goes to a host's eventfd without this object is not counted.
        """
        return self._of(vector).sent

    def pending(self, vector: int) -> bool:
        """Whether an interrupt waits: the vector's bit of the pending-bit array."""
        one = self._of(vector)
        if one.hosted is not None and self._host is not None and self._host.pending(vector):
            return True
        return self._waits(one)

    @staticmethod
    def _waits(one: _Vector) -> bool:
        """Whether an interrupt waits here, and not with a host."""
        if one.irqfd is not None:
            return one.irqfd.pending
        if one.hosted is not None:
            return False
        if one.trigger is None:
            return False
        poll = select.poll()
        poll.register(one.trigger.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def owed(self) -> tuple[int, ...]:
        """The vectors whose interrupt waits here. What waits with a host is the host's."""
        return tuple(one.number for one in self._vectors if self._waits(one))

    def pending_bits(self) -> bytes:
        """The pending-bit array: a bit for each vector, in words of 8 bytes."""
        bits = sum(1 << vector for vector in range(len(self._vectors)) if self.pending(vector))
        return bits.to_bytes(-(-len(self._vectors) // 64) * 8, "little")

    async def pause(self) -> None:
        """Deliver nothing from here on: what is signalled is pending. Return when nothing is being delivered any more.

        Cancellation:
            Nothing is delivered all the same; only the wait is given up.
        """
        await self._manager.pause()

    def resume(self) -> None:
        """Deliver what is pending, and go on."""
        self._manager.resume()

    async def flush(self) -> None:
        """Wait until what was signalled before has been delivered, or is pending."""
        await self._manager.flush()

    async def discard(self) -> None:
        """Throw away what is pending, and want the pin no more: the function is reset. Whom to tell stays as it is.

        The one place where interrupts are thrown away, because who resets a device asks for that.
        """
        self._wanted = False
        for vector in (*range(len(self._vectors)), PIN):
            one = self._of(vector)
            trigger = one.trigger if one.hosted is None else one.relay
            if trigger is None or not (vector == PIN or self.pending(vector)):
                continue
            irqfd, one.irqfd = one.irqfd, None
            if irqfd is not None:
                irqfd.mask()
                await irqfd.aclose()
            with contextlib.suppress(WouldBlock):
                trigger.read_nowait()
            if irqfd is not None:
                self._assign(vector, one)
                self._update(one)
        if self._host is not None:
            await self._host.discard()
