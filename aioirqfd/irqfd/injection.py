"""The bottom half of an irqfd: its item on the work queue, which runs the wakeup handlers and then hands the interrupt to the sink."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol, final

from aioirqfd.counter import Stepped
from aioirqfd.errors import InjectionError
from aioirqfd.flight import FlightKind
from aioirqfd.irqfd.coroutine import NotAwaitableError
from aioirqfd.irqfd.guard import is_failure
from aioirqfd.irqfd.interrupt import Interrupt
from aioirqfd.irqfd.routing import is_level
from aioirqfd.irqfd.state import Action, Event
from aioirqfd.irqfd.workqueue import Work
from aioirqfd.tracer import described, failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aioirqfd.eventfd import EventFd
    from aioirqfd.irqfd.debt import Debt
    from aioirqfd.irqfd.delivery import Delivery, Origin
    from aioirqfd.irqfd.interrupt import Route
    from aioirqfd.irqfd.lines import Lines
    from aioirqfd.irqfd.routing import Routes


_START, _INJECT, _DONE = Event.START, Action.INJECT, Event.DONE  # at hand, as in binding.py
_HANDLER_BEGUN, _HANDLER_ENDED, _HANDLER_RAISED, _INJECTING = (
    FlightKind.HANDLER_BEGUN,
    FlightKind.HANDLER_ENDED,
    FlightKind.HANDLER_RAISED,
    FlightKind.INJECTING,
)


class _Injected(Protocol):
    """Whose injection it is."""

    @property
    def gsi(self) -> int: ...
    @property
    def eventfd(self) -> EventFd: ...
    @property
    def eventfd_id(self) -> int: ...
    @property
    def origin(self) -> Origin | None: ...
    @property
    def resamplefd(self) -> EventFd | None: ...
    @property
    def closing(self) -> bool: ...
    @property
    def face(self) -> object: ...

    def step(self, event: Event, /) -> Action: ...
    def arm(self) -> None: ...
    def dropped(self) -> None: ...
    def ended(self) -> None: ...


@final
class Injection:
    """Pays an irqfd's debt, one attempt after the other.

    Attributes:
        work: Its item on the work queue.
        slow: How many interrupts it brought to the sink.
        retries: Attempts after a failure.
        error: The last failure, while the irqfd is broken.
        failure: What the attempt raised that is to be repeated.
    """

    __slots__ = (
        "_debt",
        "_delivery",
        "_failures",
        "_handlers",
        "_irqfd",
        "_lines",
        "_retry",
        "_routes",
        "error",
        "failure",
        "retries",
        "slow",
        "work",
    )

    def __init__(
        self,
        irqfd: _Injected,
        debt: Debt,
        handlers: tuple[Callable[..., Awaitable[None]], ...],
        delivery: Delivery,
        routes: Routes,
        lines: Lines,
    ) -> None:
        self._irqfd: Final = irqfd
        self._debt: Final = debt
        self._handlers: Final = handlers
        self._delivery: Final = delivery
        self._routes: Final = routes
        self._lines: Final = lines
        self.work: Final = Work(self._run)
        self.slow = self.retries = self._failures = 0
        self.error: Exception | None = None
        self.failure: BaseException | None = None
        self._retry: asyncio.TimerHandle | None = None

    async def _run(self) -> None:
        """One attempt. Called by the work queue."""
        irqfd, debt = self._irqfd, self._debt
        if irqfd.step(_START) is not _INJECT:
            self._put_off()
            irqfd.ended()
            return
        number = debt.begin()
        try:
            delivered = await self._deliver()
        except BaseException as error:
            if not self.failed(error):
                raise
        else:
            if not delivered:
                # Since it began, its gsi has lost its route, and is to be held.
                irqfd.step(Event.ABORT)
                return
            self._failures, self.failure = 0, None
            if debt.paid(number):
                # Signalled between two attempts: the handlers, or the first routes, have not seen it.
                irqfd.step(Event.SIGNAL)
            irqfd.step(_DONE)
            irqfd.arm()
        finally:
            irqfd.ended()

    async def _deliver(self) -> bool:
        """From where the last attempt stopped; False if the gsi is to be held for want of a route."""
        irqfd, debt, handlers = self._irqfd, self._debt, self._handlers
        debt.take(len(handlers))
        while debt.stage < len(handlers):
            # A run of its own for each: what one sets with contextvars, the next does not see.
            await self._handle(handlers[debt.stage])
            debt.stage += 1
        routes = self._routes.of(irqfd.gsi)
        debt.follow(routes, len(handlers))
        if not routes:
            if self._routes.holds(irqfd.gsi):
                return False
            irqfd.dropped()
            return True
        if irqfd.resamplefd is not None and is_level(routes):
            resampler = self._lines[irqfd.gsi]
            if not (handlers and resampler.try_assert(routes, irqfd)):
                self._delivery.note_irqfd(_INJECTING, irqfd)
                await resampler.assert_line(routes, irqfd)
        else:
            await self._deliver_pulses(routes)
        self.slow += 1
        self._delivery.injected(irqfd, fast=False)
        return True

    async def _handle(self, handler: Callable[..., Awaitable[None]]) -> None:
        irqfd, told, delivery = self._irqfd, self._debt.told, self._delivery
        delivery.note_irqfd(_HANDLER_BEGUN, irqfd, told)
        ended = _HANDLER_RAISED
        try:
            await Stepped(delivery.context.copy(), None, handler, irqfd.face, told)
            ended = _HANDLER_ENDED
        finally:
            delivery.note_irqfd(ended, irqfd, told)

    async def _deliver_pulses(self, routes: tuple[Route, ...]) -> None:
        for route in routes[self._debt.stage - len(self._handlers) :]:
            interrupt = Interrupt(self._irqfd.gsi, route)
            # The top half did not ask the sink where there are handlers to run first.
            if not (self._handlers and self._delivery.try_inject(interrupt)):
                self._delivery.note_irqfd(_INJECTING, self._irqfd)
                await self._delivery.inject(interrupt)
            self._debt.stage += 1

    # -- failing -----------------------------------------------------------------------------------------------------

    def failed(self, error: BaseException) -> bool:
        """An attempt has failed; False: the error is the worker's own, and the attempt was cut short."""
        if not is_failure(error):
            self._irqfd.step(Event.ABORT)
            return False
        # Whatever the sink or a handler raised; also when what they were waiting for was cancelled.
        irqfd, delivery = self._irqfd, self._delivery
        self._failures += 1
        hopeless = isinstance(error, NotAwaitableError)  # and what it does was done
        if irqfd.closing or hopeless or self._failures > delivery.retry.attempts:
            irqfd.step(Event.GIVE_UP)
            broken = InjectionError(f"gsi {irqfd.gsi}: {described(error)}")
            broken.__cause__ = error
            self.error = broken
            delivery.broken(irqfd, broken)
            return True
        irqfd.step(Event.FAIL)
        self.failure = error
        delay = delivery.retry.delay(self._failures)
        delivery.trace("injection_failed", irqfd, attempt=self._failures, retry_in=delay, **failure(error))
        self._retry = asyncio.get_running_loop().call_later(delay, self._retry_now)
        return True

    def _retry_now(self) -> None:
        self._retry = None
        self.retries += 1
        self._delivery.trace("injection_retried", self._irqfd, attempt=self._failures + 1)
        if self._irqfd.step(Event.RETRY) is not Action.SCHEDULE:
            self._put_off()

    def _put_off(self) -> None:
        """It is blocked now: a line that the last attempt has raised perhaps, and the sink did not say, must not stay up meanwhile."""
        resampler = self._lines.get(self._irqfd.gsi)
        if resampler is not None:
            resampler.move_on(paused=self._routes.paused)

    def retry_now(self) -> None:
        """Wait no longer, if a retry waits for its time."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry_now()

    def forget(self) -> None:
        """Begin anew: nothing has failed yet."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._failures = 0
        self.error = self.failure = None
