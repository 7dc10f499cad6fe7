"""Which irqfds the sink itself watches (``KVM_IRQFD``): of a level-triggered line all, or none."""

# pyright: reportPrivateUsage=false
# (an underscore on an EventFd says "for this package")
from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from aioirqfd.irqfd.interrupt import Action, Interrupt
from aioirqfd.irqfd.resampler import is_level

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aioirqfd.irqfd.irqfd import IrqFd
    from aioirqfd.irqfd.manager import IrqManager


@final
class Offloading:
    """Hands eventfds over to a manager's sink, and takes them back.

    Args:
        manager: Whose.

    Attributes:
        irqfds: Those that the sink watches.
    """

    __slots__ = ("_manager", "_tiers", "irqfds")

    def __init__(self, manager: IrqManager) -> None:
        self._manager: Final = manager
        self._tiers: Final = manager.tiers
        self.irqfds: Final[set[IrqFd]] = set()

    def offload(self, irqfd: IrqFd) -> bool:
        """Let the sink watch the eventfd itself, if it can, and then all the eventfds of the same line.

        A line is the sink's or the loop's as a whole: each tells its own irqfds of the end of interrupt, whoever triggered
        (row R04).
        """
        manager = self._manager
        routes = manager.routes(irqfd.gsi)
        if self._tiers.offload is None or len(routes) != 1 or manager.per_interrupt:
            return False
        resampler = manager.lines[irqfd.gsi] if irqfd.resamplefd is not None and is_level(routes) else None
        group = [irqfd] if resampler is None else [one for one in resampler.members if not one.offloaded]
        if not all(one.free for one in group):
            return False
        interrupt = Interrupt(irqfd.gsi, routes[0], Action.PULSE if resampler is None else Action.ASSERT)
        taken: list[IrqFd] = []
        try:
            for one in group:
                if not self._offload(one, interrupt):
                    break
                taken.append(one)
        finally:
            if len(taken) < len(group):
                self.take_back_all(taken)
        if len(taken) < len(group):
            return False
        if resampler is not None:
            resampler.hand_over()
        return True

    def _offload(self, irqfd: IrqFd, interrupt: Interrupt) -> bool:
        manager = self._manager
        assert self._tiers.offload is not None
        watched = irqfd.eventfd._binding is irqfd
        owed = manager.unwatch(irqfd) if watched else 0
        try:
            taken = self._tiers.offload(
                irqfd.eventfd, interrupt, irqfd.resamplefd if interrupt.action is Action.ASSERT else None
            )
        except Exception as error:
            if not watched:
                raise
            # It was assigned here long ago, so this is nobody's misuse: go on without.
            manager.trace("offload_failed", irqfd, error=repr(error))
            taken = False
        if not taken:
            if watched:
                manager.watch(irqfd)
                if owed:
                    irqfd.wakeup(owed)
            return False
        self.irqfds.add(irqfd)
        irqfd.handed_over(interrupt, owed)
        return True

    def take_back(self, irqfd: IrqFd) -> None:
        """Watch an offloaded eventfd here again, and all those of the same line."""
        others = self.beside(irqfd)
        irqfd.take_back()
        self.take_back_all(others)

    def beside(self, irqfd: IrqFd) -> list[IrqFd]:
        """The other irqfds of its line, if the sink watches them."""
        manager = self._manager
        if not self.irqfds or irqfd.resamplefd is None or not is_level(manager.routes(irqfd.gsi)):
            return []
        return [one for one in manager.lines[irqfd.gsi].members if one.offloaded and one is not irqfd]

    def take_back_all(self, irqfds: Sequence[IrqFd]) -> None:
        """Watch these here again."""
        for irqfd in irqfds:
            try:
                irqfd.take_back()
            except Exception as error:
                # One that the sink does not let go of must not keep the others going.
                self._manager.trace("reclaim_failed", irqfd, error=repr(error))

    def reclaim(self, irqfd: IrqFd, interrupt: Interrupt) -> None:
        """Watch an offloaded eventfd here again."""
        manager = self._manager
        self.irqfds.discard(irqfd)
        if self._tiers.reclaim is not None and not irqfd.eventfd.closed:
            try:
                if self._tiers.reclaim(irqfd.eventfd, interrupt):
                    manager.lines[irqfd.gsi].adopt(interrupt)
            finally:
                manager.watch(irqfd)
