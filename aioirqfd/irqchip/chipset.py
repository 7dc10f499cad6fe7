"""The interrupt controllers of a whole machine as one sink: each interrupt goes to the controller of its route."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, final

from aioirqfd.errors import RoutingError
from aioirqfd.irqfd.interrupt import Msi
from aioirqfd.irqfd.manager_node import of_sink
from aioirqfd.irqfd.routing import ALL_PINS, RoutingTable
from aioirqfd.irqfd.sink import SinkTiers
from aioirqfd.nodes import Child
from aioirqfd.uncopied import refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aioirqfd.eventfd import EventFd
    from aioirqfd.irqfd.interrupt import Interrupt, Route
    from aioirqfd.irqfd.sink import InterruptSink


@final
class Chipset:
    """A PIC pair, an IOAPIC and whatever takes messages, behind one manager.

    A gsi may be routed to a pin of each, as the kernel's own table routes the gsis 0 to 15::

        pic, ioapic = Pic(on_output=cpu.set_intr), IoApic(local_apics)
        async with IrqManager(Chipset(pic=pic, ioapic=ioapic, msi=local_apics)) as irqs:
            irqs.set_routing({4: [IrqchipPin("ioapic", 4), IrqchipPin("pic", 4)]})

    Each keeps its own tiers: what it takes at once, or in a batch, it takes so here. What it acknowledges is acknowledged.
    If one of them watches eventfds itself (:class:`aioirqfd.OffloadSink`), so does this one, for its routes.

    Args:
        pic: The sink of the routes ``IrqchipPin("pic", ...)``, or None: the machine has none.
        ioapic: That of the routes ``IrqchipPin("ioapic", ...)``, or None.
        msi: That of the routes ``Msi(...)``, or None. The one behind the IOAPIC too, most often.

    A table with a route to what is not there is refused (row G06); snapshot and restore each controller by itself.

    Threads: as those of each.
    """

    def __init__(
        self,
        *,
        pic: InterruptSink | None = None,
        ioapic: InterruptSink | None = None,
        msi: InterruptSink | None = None,
    ) -> None:
        self.pic = pic
        """The PIC pair."""
        self.ioapic = ioapic
        """The IOAPIC."""
        self.msi = msi
        """What takes messages."""
        sinks = (("pic", pic), ("ioapic", ioapic), ("msi", msi))
        self._tiers = {kind: SinkTiers(sink) for kind, sink in sinks if sink is not None}
        self._table: RoutingTable | None = None
        if any(tiers.offload is not None for tiers in self._tiers.values()):
            # Only then: a manager that sees the tier asks it whenever an irqfd is free.
            self.offload = self._offload
            self.reclaim = self._reclaim

    def __repr__(self) -> str:
        return f"<Chipset pic={self.pic!r} ioapic={self.ioapic!r} msi={self.msi!r}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise refusal(self, "Make another one of other controllers, and restore() each one's snapshot().")

    def _find(self, route: Route) -> SinkTiers | None:
        return self._tiers.get(_kind(route))

    def _require(self, interrupt: Interrupt) -> SinkTiers:
        tiers = self._find(interrupt.route)
        if tiers is None:
            raise RoutingError(
                f"gsi {interrupt.gsi}: for {interrupt.route!r} this chipset was given no {_kind(interrupt.route)}="
            )
        return tiers

    async def inject(self, interrupt: Interrupt) -> None:
        """Hand the interrupt on, and wait as its controller does.

        Raises:
            RoutingError: There is no controller for its route.
            Exception: What the controller raised.
        """
        await self._require(interrupt).inject(interrupt)

    def try_inject(self, interrupt: Interrupt) -> bool:
        """Hand the interrupt on, if its controller takes it at once.

        Raises:
            RoutingError: There is no controller for its route.
            Exception: What the controller raised.
        """
        try_inject = self._require(interrupt).try_inject
        return try_inject is not None and try_inject(interrupt)

    def try_inject_batch(self, interrupts: Sequence[Interrupt], /) -> int:
        """Hand on from the front, each run of interrupts for one controller as a batch.

        Returns:
            How many were taken: all, or those before the first that its controller did not take at once.
        """
        begin = 0
        while begin < len(interrupts):
            tiers = self._find(interrupts[begin].route)
            if tiers is None or tiers.try_inject is None:
                break
            end = begin + 1
            while end < len(interrupts) and self._find(interrupts[end].route) is tiers:
                end += 1
            taken = _take(tiers, interrupts[begin:end])
            begin += taken
            if begin < end:
                break
        return begin

    def obstacle(self, interrupt: Interrupt) -> str | None:
        """See :class:`aioirqfd.ExplainingSink`: what the controller of its route says."""
        tiers = self._find(interrupt.route)
        return None if tiers is None or tiers.obstacle is None else tiers.obstacle(interrupt)

    def inspect(self) -> dict[str, object]:
        """See :class:`aioirqfd.InspectedSink`: each controller's."""
        return {kind: Child(partial(of_sink, tiers)) for kind, tiers in self._tiers.items()}

    def bind(self, ack: Callable[[int], None]) -> None:
        """Give each controller that acknowledges the callable for it."""
        for tiers in self._tiers.values():
            if tiers.bind is not None:
                tiers.bind(ack)

    def default_routing(self) -> RoutingTable:
        """The table of a manager that is given none, the kernel's own: gsi n is pin n of each controller that is there and has it."""
        return RoutingTable.of_pins(pin for pin in ALL_PINS if pin.chip in self._tiers)

    def set_routing(self, table: RoutingTable) -> None:
        """Give each controller that wants it the table; all take it, or none.

        Raises:
            RoutingError: EINVAL: a route leads to what is not there (row G06).
            Exception: What a controller refused it with; those that had taken it have the old one again.
        """
        for gsi, routes in table.items():
            for route in routes:
                if self._find(route) is None:
                    raise RoutingError(f"gsi {gsi}: for {route!r} this chipset was given no {_kind(route)}=")
        taken: list[SinkTiers] = []
        try:
            for tiers in self._tiers.values():
                if tiers.set_routing is not None:
                    tiers.set_routing(table)
                    taken.append(tiers)
        except BaseException as error:
            for tiers in taken:
                self._give_back(tiers, error)
            raise
        self._table = table

    def _give_back(self, tiers: SinkTiers, reason: BaseException) -> None:
        old = self._table
        assert tiers.set_routing is not None
        try:
            # Before the first table, each has its own.
            tiers.set_routing(tiers.default_routing() if old is None else old)
        except Exception as error:
            reason.add_note(f"and {tiers.sink!r} did not take the old table back: {error!r}")

    def _offload(self, eventfd: EventFd, interrupt: Interrupt, resamplefd: EventFd | None) -> bool:
        tiers = self._find(interrupt.route)
        return tiers is not None and tiers.offload is not None and tiers.offload(eventfd, interrupt, resamplefd)

    def _reclaim(self, eventfd: EventFd, interrupt: Interrupt) -> bool | None:
        reclaim = self._require(interrupt).reclaim
        return None if reclaim is None else reclaim(eventfd, interrupt)


def _kind(route: Route) -> str:
    return "msi" if isinstance(route, Msi) else route.chip


def _take(tiers: SinkTiers, interrupts: Sequence[Interrupt]) -> int:
    taken = 0
    # An error is of what was not taken: those before it are, and the slow way meets it again.
    with contextlib.suppress(Exception):
        if tiers.try_inject_batch is not None:
            return tiers.try_inject_batch(interrupts)
        assert tiers.try_inject is not None
        for interrupt in interrupts:
            if not tiers.try_inject(interrupt):
                break
            taken += 1
    return taken
