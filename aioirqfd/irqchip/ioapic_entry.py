"""One entry of an IOAPIC's redirection table: 64 bits that say which message a pin becomes, and when."""

from __future__ import annotations

from typing import Final, final

from aioirqfd.irqfd.interrupt import Msi

_VECTOR: Final = 0xFF
_DELIVERY_MODE_SHIFT: Final = 8
_DELIVERY_MODE: Final = 7
_FIXED_AND_LOWEST_PRIORITY: Final = (0, 1)
_LOGICAL: Final = 1 << 11
_REMOTE_IRR: Final = 1 << 14
_LEVEL_TRIGGERED: Final = 1 << 15
_MASKED: Final = 1 << 16
_DESTINATION_SHIFT: Final = 56
# All but delivery status (bit 12, always idle here), remote IRR and the reserved bits.
_WRITABLE: Final = 0xFF00_0000_0001_AFFF
_U32: Final = 0xFFFF_FFFF

_MSI_ADDRESS: Final = 0xFEE0_0000
_MSI_DESTINATION_SHIFT: Final = 12
_MSI_LOGICAL: Final = 1 << 2
_MSI_LEVEL_TRIGGERED: Final = 1 << 15
_MSI_ASSERT: Final = 1 << 14


@final
class IoApicEntry:
    """A redirection entry, masked when new.

    Source: 82093AA data sheet, section 3.2.4; the message is that of the Intel SDM, volume 3, "Message Signalled Interrupts".

    Args:
        bits: The 64-bit register.
    """

    __slots__ = ("bits",)

    def __init__(self, bits: int = _MASKED) -> None:
        self.bits = bits

    @property
    def vector(self) -> int:
        """The interrupt vector, 0..255."""
        return self.bits & _VECTOR

    @property
    def masked(self) -> bool:
        """No message goes out."""
        return bool(self.bits & _MASKED)

    @property
    def level(self) -> bool:
        """Level-triggered, with an EOI to come. SMI, NMI, INIT and ExtINT are edges whatever the trigger mode says."""
        return bool(self.bits & _LEVEL_TRIGGERED) and self._delivery_mode in _FIXED_AND_LOWEST_PRIORITY

    @property
    def remote_irr(self) -> bool:
        """A level-triggered message is out, and its EOI has not come."""
        return bool(self.bits & _REMOTE_IRR)

    @remote_irr.setter
    def remote_irr(self, value: bool) -> None:
        self.bits = self.bits | _REMOTE_IRR if value else self.bits & ~_REMOTE_IRR

    @property
    def valid(self) -> bool:
        """The register can hold these bits: no others than it has, and remote IRR only where it means something."""
        return not self.bits & ~(_WRITABLE | _REMOTE_IRR) and (self.level or not self.remote_irr)

    @property
    def _delivery_mode(self) -> int:
        return self.bits >> _DELIVERY_MODE_SHIFT & _DELIVERY_MODE

    def read(self, half: int) -> int:
        """The low (0) or the high (1) 32 bits."""
        return self.bits >> 32 * half & _U32

    def write(self, half: int, value: int) -> None:
        """Write the low (0) or the high (1) 32 bits; read-only and reserved bits keep what they have.

        An entry made edge-triggered loses its remote IRR: guests without an EOI register end a level interrupt that way.
        """
        written = _WRITABLE & _U32 << 32 * half
        self.bits = self.bits & ~written | value << 32 * half & written
        if not self.level:
            self.remote_irr = False

    def ended_by(self, *, resampled: bool) -> Msi | None:
        """The message whose end of interrupt is this pin's, as a level-triggered one; None if nobody waits for an end.

        Masked or not: what was sent before the mask is ended after it.

        Args:
            resampled: An edge's end is waited for too (row R20).
        """
        if not (self.level or (resampled and self._delivery_mode in _FIXED_AND_LOWEST_PRIORITY)):
            return None
        message = self.message()
        return Msi(message.address, message.data | _MSI_LEVEL_TRIGGERED | _MSI_ASSERT)

    def message(self) -> Msi:
        """What goes out: one write to a CPU's interrupt window."""
        address = _MSI_ADDRESS | self.bits >> _DESTINATION_SHIFT << _MSI_DESTINATION_SHIFT
        if self.bits & _LOGICAL:
            address |= _MSI_LOGICAL
        data = self.vector | self._delivery_mode << _DELIVERY_MODE_SHIFT
        if self.level:
            data |= _MSI_LEVEL_TRIGGERED | _MSI_ASSERT
        return Msi(address, data)
