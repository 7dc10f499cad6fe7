"""One MSI-X vector: its four registers, as the PCI specification lays them out, and what stands behind them."""

# pyright: reportPrivateUsage=false
# (as in irqfds.py)
from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Self, final

from aioirqfd.errors import RoutingError
from aioirqfd.eventfd import EventFd
from aioirqfd.irqfd.interrupt import Msi
from aioirqfd.irqfd.state import OWING

if TYPE_CHECKING:
    from aioirqfd.irqfd.binding import Binding

MASK_BIT: Final = 1
"""Bit 0 of the vector-control register."""
_U32: Final = 2**32
_HIGH: Final = 32


@final
class Held(NamedTuple):
    """An eventfd, and in which way a vector has it.

    Attributes:
        eventfd: What is signalled; None until somebody asks for it.
        eventfd_id: The kernel's number of it, in which its dups agree.
        owned: The table made it, and closes it.
        reference: The table made a reference to the caller's, who gave an int, and closes that.
    """

    eventfd: EventFd | None = None
    eventfd_id: int = 0
    owned: bool = False
    reference: bool = False

    @classmethod
    def made(cls) -> Self:
        """One of the table's own.

        Raises:
            OSError: EMFILE and the like; nothing is left behind.
        """
        eventfd = EventFd()
        try:
            return cls(eventfd, eventfd.id, owned=True)
        except BaseException:
            eventfd.close()
            raise


@final
class MsixVector:
    """State of one vector; :class:`aioirqfd.MsixTable` moves it.

    Attributes:
        address: 64 bits; data and control: 32 bits each, as the guest wrote them.
        held: The eventfd that it has.
        irqfd: Made when the vector is first unmasked; stays, masked, for as long as ``gsi`` does.
        active: Interrupts are injected.
        starved: It would be active, but there is no gsi.
        failures: How often in a row it could not be made active, since it was last asked for.
        changing: How many changes of the message are under way.
        idle_since: When it was last active, by ``time.monotonic()``; None: it never was.
        captured: What a snapshot has of the signals in the eventfd, and which of the manager's pauses it was taken in.
    """

    __slots__ = (
        "active",
        "address",
        "captured",
        "changing",
        "control",
        "data",
        "failures",
        "gsi",
        "held",
        "idle_since",
        "irqfd",
        "number",
        "starved",
    )

    def __init__(self, number: int) -> None:
        self.number: Final = number
        self.address = self.data = 0
        self.control = MASK_BIT
        self.held = Held()
        self.active = self.starved = False
        self.changing = self.failures = 0
        self.irqfd: Binding | None = None
        self.gsi: int | None = None
        self.captured: tuple[int, int] | None = None
        self.idle_since: float | None = None

    @property
    def eventfd(self) -> EventFd | None:
        """What is signalled."""
        return self.held.eventfd

    @property
    def eventfd_id(self) -> int:
        """The kernel's number of it."""
        return self.held.eventfd_id

    def read(self, dword: int) -> int:
        """One of the entry's registers, 0..3."""
        return (self.address % _U32, self.address >> _HIGH, self.data, self.control)[dword]

    def write(self, dword: int, value: int) -> None:
        """Set one of them to a 32-bit value."""
        if dword == 0:
            self.address = self.address >> _HIGH << _HIGH | value
        elif dword == 1:
            self.address = self.address % _U32 | value << _HIGH
        elif dword == 2:
            self.data = value
        else:
            self.control = value

    def message(self, devid: int | None) -> Msi:
        """What is sent.

        Raises:
            RoutingError: The address is not aligned to 4 bytes, so there is no telling what is meant.
        """
        if not self.sendable:
            raise RoutingError(f"an MSI-X message address is a multiple of 4, not {self.address:#x}")
        return Msi(self.address, self.data, devid)

    @property
    def sendable(self) -> bool:
        """Whether the address is aligned, so that there is a message to send."""
        return self.address % 4 == 0

    @property
    def bound(self) -> bool:
        """Whether signals go to its irqfd; otherwise they stay in the eventfd."""
        return self.irqfd is not None and not self.irqfd.closing

    @property
    def pending(self) -> bool:
        """Whether an interrupt is owed, wherever its signal is."""
        irqfd, eventfd = self.irqfd, self.eventfd
        if irqfd is not None:
            if not irqfd.closing:
                return irqfd.pending
            if irqfd.state in OWING:
                return True  # on its way back into the eventfd
        return eventfd is not None and not eventfd.closed and eventfd._readable()
