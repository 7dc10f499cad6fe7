"""One MSI-X vector: its four registers, as the PCI specification lays them out, and what stands behind them."""

# pyright: reportPrivateUsage=false
# (as in manager.py)
from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from aioirqfd.errors import RoutingError
from aioirqfd.irqfd.interrupt import Msi
from aioirqfd.irqfd.state import OWING

if TYPE_CHECKING:
    from aioirqfd.eventfd import EventFd
    from aioirqfd.irqfd.irqfd import IrqFd

MASK_BIT: Final = 1
"""Bit 0 of the vector-control register."""
_U32: Final = 2**32
_HIGH: Final = 32


@final
class MsixVector:
    """State of one vector; :class:`aioirqfd.MsixTable` moves it.

    Attributes:
        address: 64 bits; data and control: 32 bits each, as the guest wrote them.
        eventfd: What is signalled; None until somebody asks for it.
        owned: The table made it, and closes it. ``reference``: so with a reference to the caller's, who gave an int.
        eventfd_id: The kernel's number of it, in which its dups agree.
        irqfd: Made when the vector is first unmasked; stays, masked, for as long as ``gsi`` does.
        active: Interrupts are injected.
        starved: It would be active, but there is no gsi.
        changing: How many changes of the message are under way.
        captured: What a snapshot has of the signals in the eventfd, and which of the manager's pauses it was taken in.
    """

    __slots__ = (
        "active",
        "address",
        "captured",
        "changing",
        "control",
        "data",
        "eventfd",
        "eventfd_id",
        "gsi",
        "irqfd",
        "number",
        "owned",
        "reference",
        "starved",
    )

    def __init__(self, number: int) -> None:
        self.number: Final = number
        self.address = self.data = 0
        self.control = MASK_BIT
        self.eventfd: EventFd | None = None
        self.eventfd_id = 0
        self.owned = self.reference = self.active = self.starved = False
        self.changing = 0
        self.irqfd: IrqFd | None = None
        self.gsi: int | None = None
        self.captured: tuple[int, int] | None = None

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
        if self.address % 4:
            raise RoutingError(f"an MSI-X message address is a multiple of 4, not {self.address:#x}")
        return Msi(self.address, self.data, devid)

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
