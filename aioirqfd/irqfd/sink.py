"""What an interrupt sink is: the protocols between the injection path and the interrupt controller behind it.

Only ``inject`` is required. Each further method is a faster tier, looked for once when the manager is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, final, runtime_checkable

from aioirqfd.irqfd.coroutine import coroutine_function, plain_function
from aioirqfd.irqfd.routing import RoutingTable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from aioirqfd.eventfd import EventFd
    from aioirqfd.irqfd.interrupt import Interrupt, Msi


@runtime_checkable
class InterruptSink(Protocol):
    """The slow path: may wait."""

    async def inject(self, interrupt: Interrupt) -> None:
        """Deliver one interrupt; return once it is the sink's.

        Runs on the work queue, one call per irqfd at a time. Whatever it raises counts as "not delivered": the same
        interrupt is tried again with back-off, so raise only when it was not taken.
        """


@runtime_checkable
class FastSink(InterruptSink, Protocol):
    """A sink that can often take an interrupt at once (the kernel's ``kvm_arch_set_irq_inatomic``)."""

    def try_inject(self, interrupt: Interrupt) -> bool:
        """Deliver now without blocking and return True, or return False and leave it to the work queue (row M02).

        Called in the top half, on the loop's thread: keep it short. An exception counts as False.
        """
        ...


@runtime_checkable
class BatchSink(FastSink, Protocol):
    """A fast sink that takes many at once."""

    def try_inject_batch(self, interrupts: Sequence[Interrupt], /) -> int:
        """Deliver from the front, and return how many were taken (0..len). The rest go to the work queue.

        The sequence is only valid during the call. An exception counts as 0 taken.
        """
        ...


@runtime_checkable
class OffloadSink(InterruptSink, Protocol):
    """A sink that can watch the eventfd itself, as the kernel does for ``KVM_IRQFD``."""

    def offload(self, eventfd: EventFd, interrupt: Interrupt, resamplefd: EventFd | None) -> bool:
        """Take over the eventfd: from now on its signals are delivered without this process. False: not possible, use the loop.

        With ``resamplefd`` the line is level-triggered: asserted by a signal, lowered by the guest's EOI, which signals it.
        One that is up stays up. The ``DEASSERT`` that follows says that it is not the loop's any more, but the sink's.
        """
        ...

    def reclaim(self, eventfd: EventFd, interrupt: Interrupt) -> bool | None:
        """Give an offloaded eventfd back, as a barrier: what was signalled before has been delivered (row I20).

        A level-triggered line that is up stays up, and the guest's EOI calls ``ack``; say so by returning True.
        """
        ...


@runtime_checkable
class AckSink(InterruptSink, Protocol):
    """A sink that knows when the guest acknowledges (EOI): it is given the callable once, when the manager is made."""

    def bind(self, ack: Callable[[int], None]) -> None:
        """Keep ``ack`` and call it with the gsi at each end of interrupt.

        From any thread, and outside the sink's own locks: it lowers the line by calling back ``try_inject`` where there is
        one, and signals the resamplefds.
        """


@runtime_checkable
class ExplainingSink(InterruptSink, Protocol):
    """A sink that knows why the guest does not see what it was given, for :meth:`IrqFd.explain`."""

    def obstacle(self, interrupt: Interrupt) -> str | None:
        """What keeps such an interrupt from the guest now, for a person to read: "the guest has masked IOAPIC pin 5".

        None: nothing, or nothing that the sink can see. It changes nothing, and does not wait.
        """
        ...


@runtime_checkable
class InspectedSink(InterruptSink, Protocol):
    """A sink that shows what it holds, for :mod:`aioirqfd.inspect` and :meth:`IrqManager.inspect`."""

    def inspect(self) -> Mapping[str, object]:
        """What there is to see of it now: names, and values that ``json`` takes; others are shown by their ``repr()``.

        Called on the manager's loop, and only when somebody looks. It changes nothing, and does not wait.
        """
        ...


@runtime_checkable
class RoutedSink(InterruptSink, Protocol):
    """A sink that wants to know the whole table, for instance to map an end of interrupt back to its gsi."""

    def set_routing(self, table: RoutingTable) -> None:
        """Take the new table. Raising refuses it: the manager keeps the old one (row G09)."""


@runtime_checkable
class ChipSink(InterruptSink, Protocol):
    """A sink with interrupt controllers behind it, whose pins say where a gsi goes if nobody else says it."""

    def default_routing(self) -> RoutingTable:
        """The table of a manager that is given none. Without this method gsi n is pin n, without an end (:meth:`RoutingTable.default`)."""
        ...


@runtime_checkable
class EoiSink(FastSink, Protocol):
    """A sink of messages that tells of an end of interrupt only where it was asked to (the kernel's split irqchip)."""

    def set_eoi_message(self, pin: int, message: Msi | None) -> None:
        """From now on, tell of the end of this message, for an IOAPIC's pin in front of the sink; None: of none.

        Called before such a message is sent, and each time that the guest has programmed the pin anew.

        Args:
            pin: 0..23.
            message: Where it goes, and its vector; the trigger mode is level.
        """


@final
class SinkTiers:
    """What a sink can do, looked for once."""

    __slots__ = (
        "bind",
        "default_routing",
        "inject",
        "inspect",
        "obstacle",
        "offload",
        "reclaim",
        "set_eoi_message",
        "set_routing",
        "sink",
        "try_inject",
        "try_inject_batch",
    )

    def __init__(self, sink: InterruptSink) -> None:
        if isinstance(sink, type) or not callable(getattr(sink, "inject", None)):
            raise TypeError(f"an interrupt sink has a coroutine method inject(); {sink!r} has not")
        self.sink = sink
        self.inject: Callable[[Interrupt], Awaitable[None]] = coroutine_function(sink.inject, "a sink's inject()")
        self.try_inject: Callable[[Interrupt], bool] | None = _at_once(sink, "try_inject")
        self.try_inject_batch: Callable[[Sequence[Interrupt]], int] | None = _at_once(sink, "try_inject_batch")
        if self.try_inject is None:
            self.try_inject_batch = None
        self.offload: Callable[[EventFd, Interrupt, EventFd | None], bool] | None = _at_once(sink, "offload")
        self.reclaim: Callable[[EventFd, Interrupt], bool | None] | None = _at_once(sink, "reclaim")
        if self.offload is None or self.reclaim is None:
            self.offload = self.reclaim = None
        self.bind: Callable[[Callable[[int], None]], None] | None = _at_once(sink, "bind")
        self.set_routing: Callable[[RoutingTable], None] | None = _at_once(sink, "set_routing")
        self.default_routing: Callable[[], RoutingTable] = _at_once(sink, "default_routing") or RoutingTable.default
        self.obstacle: Callable[[Interrupt], str | None] | None = _at_once(sink, "obstacle")
        self.inspect: Callable[[], Mapping[str, object]] | None = _at_once(sink, "inspect")
        self.set_eoi_message: Callable[[int, Msi | None], None] | None = _at_once(sink, "set_eoi_message")


def _at_once(sink: object, name: str) -> Any:
    """The method of a tier; None: what goes by its name is there for another reason, for it cannot be called.

    Not by isinstance(): what a sink hands on with ``__getattr__`` is a method to some versions of Python, and to others not.
    """
    method = getattr(sink, name, None)
    return plain_function(method, f"a sink's {name}()") if callable(method) else None
