"""The irqfd as a user holds it. What it does is done by its :class:`aioirqfd.irqfd.binding.Binding`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from aioirqfd.eventfd import EventFd
    from aioirqfd.irqfd.binding import Binding
    from aioirqfd.irqfd.state import State
    from aioirqfd.irqfd.statistics import IrqFdStatistics

    WakeupHandler = Callable[["IrqFd", int], Awaitable[None]]
else:
    WakeupHandler = Callable


@final
class IrqFd:
    """An eventfd bound to a gsi. Made by :meth:`IrqManager.assign`."""

    __slots__ = ("__weakref__", "_binding")

    def __init__(self, binding: Binding) -> None:
        self._binding = binding

    def __repr__(self) -> str:
        masked = " masked" if self.masked else ""
        return f"<IrqFd gsi={self.gsi} eventfd-id={self.eventfd_id} {self.state}{masked}>"

    @property
    def gsi(self) -> int:
        """The gsi it is bound to, 0..2**32-1."""
        return self._binding.gsi

    @property
    def name(self) -> str | None:
        """What the program calls it, in :mod:`aioirqfd.inspect`; None: nothing."""
        return self._binding.trigger.name

    @property
    def eventfd(self) -> EventFd:
        """The trigger. For an fd that was given as an int it is a reference of the irqfd's own, closed when it is deassigned."""
        return self._binding.eventfd

    @property
    def eventfd_id(self) -> int:
        """The kernel's number of the eventfd, in which all its dups agree (row E25)."""
        return self._binding.eventfd_id

    @property
    def resamplefd(self) -> EventFd | None:
        """Signalled at each end of interrupt, or None for an edge-triggered irqfd."""
        return self._binding.resamplefd

    @property
    def state(self) -> State:
        """Where it stands; right also for signals that are still inside the eventfd, and whoever runs its handler.

        Threads:
            The manager's loop; elsewhere it may be a moment old.
        """
        return self._binding.state

    @property
    def masked(self) -> bool:
        """Whether it is masked."""
        return self._binding.masked

    @property
    def held(self) -> bool:
        """Whether an injection is owed, and waits for the manager to resume, for room in its queue, or for a route that is to come.

        Threads:
            The manager's loop.
        """
        binding = self._binding
        return binding.pending and (binding.trigger.held or binding.owner.routes.blocks(binding.gsi))

    @property
    def offloaded(self) -> bool:
        """Whether the sink itself watches the eventfd (``KVM_IRQFD``)."""
        return self._binding.offloaded

    @property
    def pending(self) -> bool:
        """Whether an injection is owed and has not begun; right also for signals that are still inside the eventfd.

        Threads:
            The manager's loop.
        """
        return self._binding.pending

    @property
    def error(self) -> Exception | None:
        """What the sink raised, while the irqfd is broken."""
        return self._binding.error

    def statistics(self) -> IrqFdStatistics:
        """The counts as they are now.

        Threads:
            The manager's loop: what was injected without its count having been read is read now.
        """
        return self._binding.statistics()

    def explain(self) -> str:
        """Where its interrupts stand, for a person who debugs: what stops them, since when and by whom, and what is owed.

        ``uart (gsi 5): it is masked for 3 s, by vmm/app.py:12; unmask() goes on. An injection is owed; counted: nothing.``
        A signal is counted when the top half has seen it. The words are not stable. It costs nothing until it is called, and changes nothing.

        Threads:
            The manager's loop.
        """
        return self._binding.owner.explain(self._binding)

    def mask(self) -> None:
        """Keep signals pending instead of injecting them; idempotent. What is being injected just now is still injected.

        Raises:
            ClosedError: The irqfd is deassigned.
            WrongLoopError: Not called on the manager's loop.
        """
        self._binding.mask()

    def unmask(self) -> None:
        """Inject what is pending, and further signals as they come; idempotent.

        Raises:
            ClosedError: The irqfd is deassigned.
            WrongLoopError: Not called on the manager's loop.
        """
        self._binding.unmask()

    def resume(self) -> None:
        """Inject again after the irqfd was marked broken; nothing happens if it is not.

        Raises:
            ClosedError: The irqfd is deassigned.
            WrongLoopError: Not called on the manager's loop.
        """
        self._binding.resume()

    async def aclose(self) -> None:
        """Deassign it; the same as :meth:`IrqManager.deassign`. Idempotent."""
        await self._binding.aclose()
