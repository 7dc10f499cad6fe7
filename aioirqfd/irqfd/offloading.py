"""Which irqfds the sink itself watches (``KVM_IRQFD``): of a level-triggered line all, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast, final

from aioirqfd.flight import FlightKind
from aioirqfd.irqfd.interrupt import Action, Interrupt
from aioirqfd.irqfd.routing import is_level

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aioirqfd.irqfd.binding import Binding
    from aioirqfd.irqfd.delivery import Delivery
    from aioirqfd.irqfd.lines import Lines
    from aioirqfd.irqfd.routing import Routes


@final
class Offloading:
    """Offloads eventfds to a manager's sink, and reclaims them.

    Args:
        delivery: Has the sink.
        routes: Says where a gsi goes.
        lines: Say which irqfds are one line's.
        watch: Has the loop hear of an irqfd's eventfd again.

    Attributes:
        irqfds: Those that the sink watches.
    """

    __slots__ = ("_delivery", "_lines", "_routes", "_watch", "_were", "irqfds")

    def __init__(self, delivery: Delivery, routes: Routes, lines: Lines, watch: Callable[[Binding], None]) -> None:
        self._delivery: Final = delivery
        self._routes: Final = routes
        self._lines: Final = lines
        self._watch: Final = watch
        self.irqfds: Final[set[Binding]] = set()
        self._were: Final[set[Binding]] = set()

    def offload(self, irqfd: Binding) -> bool:
        """Let the sink watch the eventfd itself, if it can, and then all the eventfds of the same line.

        A line is the sink's or the loop's as a whole: each tells its own irqfds of the end of interrupt, whoever triggered
        (row R04). Signals that are there are then the sink's.
        """
        delivery = self._delivery
        if delivery.tiers.offload is None or delivery.per_interrupt or not irqfd.free:
            return False
        routes = self._routes.of(irqfd.gsi)
        if len(routes) != 1:
            return False
        resampler = self._lines[irqfd.gsi] if irqfd.resamplefd is not None and is_level(routes) else None
        group = [irqfd]
        if resampler is not None:
            group = [one for one in self._of(irqfd.gsi) if not one.offloaded]
        if not all(one.free for one in group):
            return False
        interrupt = Interrupt(irqfd.gsi, routes[0], Action.PULSE if resampler is None else Action.ASSERT)
        taken: list[Binding] = []
        try:
            for one in group:
                if not self._offload(one, interrupt):
                    break
                taken.append(one)
        finally:
            if len(taken) < len(group):
                self.reclaim_all(taken)
        if len(taken) < len(group):
            return False
        if resampler is not None:
            resampler.offload()
        return True

    def _offload(self, irqfd: Binding, interrupt: Interrupt) -> bool:
        offload = self._delivery.tiers.offload
        assert offload is not None
        watched = irqfd.trigger.bound
        owed = irqfd.unwatch(whole=self._routes.paused) if watched else 0
        taken = False
        try:
            resamplefd = irqfd.resamplefd if interrupt.action is Action.ASSERT else None
            taken = bool(offload(irqfd.eventfd, interrupt, resamplefd))
        except BaseException as error:
            if not watched:
                raise
            # It was assigned here long ago, so this is nobody's misuse: go on without.
            self._delivery.sink_failed("offload_failed", irqfd, error)
        if not taken:
            if watched:
                self._watch_again(irqfd, owed)
            return False
        self.irqfds.add(irqfd)
        self._were.add(irqfd)
        self._delivery.note_irqfd(FlightKind.OFFLOADED, irqfd, irqfd.eventfd_id)
        irqfd.note_offload(interrupt, owed)
        return True

    def _watch_again(self, irqfd: Binding, owed: int) -> None:
        try:
            self._watch(irqfd)
        finally:
            # Also where there is no room to watch it: what was signalled is out of its eventfd.
            if owed:
                irqfd.wakeup(owed)

    def reclaim(self, irqfd: Binding) -> None:
        """Watch an offloaded eventfd here again, and all those of the same line."""
        others = self.beside(irqfd)
        try:
            self.reclaim_one(irqfd)
        finally:
            self.reclaim_all(others)

    def beside(self, irqfd: Binding) -> list[Binding]:
        """The other irqfds of its line, if the sink watches them."""
        if not self.irqfds or irqfd.resamplefd is None or not is_level(self._routes.of(irqfd.gsi)):
            return []
        return [one for one in self._of(irqfd.gsi) if one.offloaded and one is not irqfd]

    def reclaim_all(self, irqfds: Sequence[Binding]) -> None:
        """Watch these here again."""
        for irqfd in irqfds:
            try:
                self.reclaim_one(irqfd)
            except BaseException as error:
                # One that the sink does not let go of must not keep the others going.
                self._delivery.sink_failed("reclaim_failed", irqfd, error)

    def reclaim_one(self, irqfd: Binding) -> None:
        """Watch an eventfd here again, if the sink did."""
        interrupt, irqfd.offloaded_as = irqfd.offloaded_as, None
        self.irqfds.discard(irqfd)
        if interrupt is None:
            return
        self._delivery.note_irqfd(FlightKind.RECLAIMED, irqfd, irqfd.eventfd_id)
        reclaim = self._delivery.tiers.reclaim
        if reclaim is not None and not irqfd.eventfd.closed:
            try:
                if reclaim(irqfd.eventfd, interrupt):
                    self._lines[irqfd.gsi].reclaim(interrupt.route)
            finally:
                self._watch(irqfd)

    def counts(self, irqfd: Binding) -> dict[str, object]:
        """What there is to say of an irqfd at its end; no 0 where the sink has watched it at some time, and kept no count."""
        counts = irqfd.statistics()
        fields: dict[str, object] = {
            name: getattr(counts, name) for name in ("signals", "injections", "coalesced", "dropped")
        }
        if irqfd in self._were:
            fields = {"offloaded": True, **{name: count for name, count in fields.items() if count}}
        return fields

    def finished(self, irqfd: Binding) -> None:
        """Nothing of the irqfd runs any more."""
        self._were.discard(irqfd)

    def _of(self, gsi: int) -> list[Binding]:
        return cast("list[Binding]", self._lines[gsi].members)  # whoever has joined is one
