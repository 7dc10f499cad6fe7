"""One entry of a GSI routing table, ready for the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from aioirqfd.kvm.descriptor import Layout
from aioirqfd.kvm.ioctls import KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MSI_VALID_DEVID

if TYPE_CHECKING:
    from collections.abc import Iterable

_HEAD: Final = Layout("=II", "nr flags")
_ENTRY: Final = Layout("=IIIIIIII16x", "gsi type flags pad words[0] words[1] words[2] words[3]")
_WORDS: Final = 4
_U32: Final = 2**32 - 1


@final
@dataclass(frozen=True, slots=True)
class RoutingEntry:
    """``struct kvm_irq_routing_entry``: one route of one gsi.

    Nothing is checked but that the numbers fit their fields, so that the kernel's answer to a bad table can be seen.
    Make the good ones with :meth:`irqchip` and :meth:`msi`.

    Args:
        gsi: 32 bits; the kernel takes 0..4095 (row G03).
        type: ``KVM_IRQ_ROUTING_IRQCHIP`` or ``KVM_IRQ_ROUTING_MSI`` (row G05).
        words: The first words of the part that depends on the type, 32 bits each; up to 4.
        flags: 32 bits (row G04).
    """

    gsi: int
    type: int
    words: tuple[int, ...] = ()
    flags: int = 0

    @classmethod
    def irqchip(cls, gsi: int, chip: int, pin: int) -> RoutingEntry:
        """A route to an input pin.

        Args:
            gsi: The gsi.
            chip: ``KVM_IRQCHIP_PIC_MASTER``, ``_PIC_SLAVE`` or ``_IOAPIC``.
            pin: The chip's own pin: 0..7 on either PIC, 0..23 on the IOAPIC (row G06).
        """
        return cls(gsi, KVM_IRQ_ROUTING_IRQCHIP, (chip, pin))

    @classmethod
    def msi(cls, gsi: int, address: int, data: int, *, devid: int | None = None) -> RoutingEntry:
        """A route to a message.

        Args:
            gsi: The gsi.
            address: 0..2**64-1.
            data: 0..2**32-1.
            devid: The requester id where the interrupt controller wants one, else None.
        """
        return cls(
            gsi,
            KVM_IRQ_ROUTING_MSI,
            (address & _U32, address >> 32, data, devid or 0),
            0 if devid is None else KVM_MSI_VALID_DEVID,
        )

    def pack(self) -> bytearray:
        """The 48 bytes of the kernel's structure.

        Raises:
            ValueError: A number does not fit its field, or there are more than 4 words.
        """
        if len(self.words) > _WORDS:
            raise ValueError(f"{self.words} does not fit: a routing entry has room for {_WORDS} words")
        return _ENTRY.pack(self.gsi, self.type, self.flags, 0, *self.words, *(0,) * (_WORDS - len(self.words)))


def pack_table(entries: Iterable[RoutingEntry], flags: int) -> bytearray:
    """The argument of ``KVM_SET_GSI_ROUTING``: ``struct kvm_irq_routing`` and its entries.

    Raises:
        ValueError: A number does not fit its field.
    """
    body = [entry.pack() for entry in entries]
    table = _HEAD.pack(len(body), flags)
    for entry in body:
        table += entry
    return table
