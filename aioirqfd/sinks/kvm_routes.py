"""A virtual machine's routing table, as its sink keeps it: the kernel is asked first, and only what it has taken is kept.

The kernel takes a table as a whole or not at all (row G09). So one entry that it refuses, once kept, would be in every later table too,
and none of them would be taken: the gsis that were given out from then on would have no route in the kernel, and it drops what comes for
such a gsi without a word (row W08). A guest can write any message, so this is the guest's to cause. Therefore: work out the new table,
have the kernel take it, then note it. Noting it first and taking it back after an error is the tempting way, and wrong: another thread's
table would have the entry in it meanwhile.
"""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING, Final, NamedTuple, final

from aioirqfd.errors import RoutingError
from aioirqfd.irqfd.interrupt import IOAPIC_PINS, PIC_PINS, PINS
from aioirqfd.kvm import RoutingEntry
from aioirqfd.kvm.ioctls import KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aioirqfd.irqfd.interrupt import IrqchipPin, Msi
    from aioirqfd.kvm import Vm

PIC_PINS_EACH: Final = 8
_IOAPIC_GSI: Final = 1024
_PIC_GSI: Final = _IOAPIC_GSI + IOAPIC_PINS
_MSI_GSI: Final = _PIC_GSI + PIC_PINS
_MAX_GSI: Final = 4096


class _Table(NamedTuple):
    """What the kernel has beside the fixed entries."""

    messages: Mapping[Msi, RoutingEntry]
    endings: Mapping[int, RoutingEntry]
    """Of a user-space IOAPIC's pins, by pin."""


@final
class KernelRoutes:
    """The kernel's gsis of one virtual machine: one for each single pin, and one for each message that somebody holds.

    Args:
        vm: The virtual machine; its table is this object's.

    Attributes:
        pins: Whether the pins are the kernel's; with a split irqchip they are user space's.

    Raises:
        OSError: As the kernel says, EINVAL without any irqchip (row G01).

    Threads:
        Any: the table is changed by the loop, and by vCPU threads whose guests program a user-space IOAPIC.
    """

    __slots__ = ("_fixed", "_lock", "_sure", "_table", "_users", "_vm", "pins")

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._lock = threading.Lock()
        self._users: dict[Msi, int] = {}
        self._table = _Table({}, {})
        self._sure = True
        self._fixed = _fixed_entries()
        self.pins = True
        try:
            self._ask(self._table)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # With a split irqchip the pins are user space's, and the kernel routes messages alone (rows G06, S05). Without
            # any it routes nothing, and says EINVAL once more (row G01).
            self._fixed = []
            self.pins = False
            self._ask(self._table)

    def _ask(self, table: _Table) -> None:
        # Should we be interrupted on the way, there is no telling which of the two the kernel has: the next change asks again.
        self._sure = False
        try:
            self._vm.set_gsi_routing([*self._fixed, *table.endings.values(), *table.messages.values()])
        except OSError:
            self._sure = True
            raise
        self._table, self._sure = table, True

    def hold(self, message: Msi) -> int | None:
        """The message's gsi, which is its own until it is released as often as it was held; None: all are taken.

        Raises:
            RoutingError: EINVAL: the kernel refuses the message; the others are as before.
            OSError: As the kernel says; likewise.
        """
        with self._lock:
            entry = self._table.messages.get(message)
            if entry is None or not self._sure:
                # What nobody holds is there only if the kernel would not let it go.
                held = {one: kept for one, kept in self._table.messages.items() if one in self._users}
                if message not in held:
                    gsi = _free_gsi(held)
                    if gsi is None:
                        return None
                    held[message] = _message_entry(gsi, message)
                entry = held[message]
                try:
                    self._ask(self._table._replace(messages=held))
                except OSError as error:
                    if error.errno == errno.EINVAL:
                        raise RoutingError(f"KVM refuses {message!r}") from None
                    raise
            self._users[message] = self._users.get(message, 0) + 1
            return entry.gsi

    def held(self, message: Msi) -> int:
        """The gsi of a message that is held."""
        return self._table.messages[message].gsi

    def release(self, message: Msi) -> None:
        """One holder less; never raises. If the kernel will not let go of the last one's entry, it goes with the next change."""
        with self._lock:
            self._users[message] -= 1
            if self._users[message]:
                return
            del self._users[message]
            held = {one: kept for one, kept in self._table.messages.items() if one in self._users}
            try:
                self._ask(self._table._replace(messages=held))
            except OSError:
                # Nobody is bound to its gsi, so it does no harm there. The virtual machine may be closed, say.
                return

    def end(self, pin: int, message: Msi | None) -> None:
        """Have the kernel give a ``KVM_EXIT_IOAPIC_EOI`` for the message of a user-space IOAPIC's pin; None: for none.

        Raises:
            OSError: As the kernel says; what it gave one for is as before.
        """
        with self._lock:
            entry = None if message is None else _message_entry(pin, message)
            if self._sure and self._table.endings.get(pin) == entry:
                return
            endings = {other: kept for other, kept in self._table.endings.items() if other != pin}
            if entry is not None:
                endings[pin] = entry
            self._ask(self._table._replace(endings=endings))


def pin_gsi(route: IrqchipPin) -> int:
    """The kernel's gsi of a single pin.

    Raises:
        RoutingError: EINVAL: KVM has no such pin (row G06).
    """
    if route.pin >= PINS[route.chip]:
        raise RoutingError(f"KVM's {route.chip} has pins 0..{PINS[route.chip] - 1}, not {route.pin}")
    return (_IOAPIC_GSI if route.chip == "ioapic" else _PIC_GSI) + route.pin


def _free_gsi(held: Mapping[Msi, RoutingEntry]) -> int | None:
    taken = {entry.gsi for entry in held.values()}
    return next((gsi for gsi in range(_MSI_GSI, _MAX_GSI) if gsi not in taken), None)


def _message_entry(gsi: int, message: Msi) -> RoutingEntry:
    return RoutingEntry.msi(gsi, message.address, message.data, devid=message.devid)


def _pic_entry(gsi: int, pin: int) -> RoutingEntry:
    chip = KVM_IRQCHIP_PIC_MASTER if pin < PIC_PINS_EACH else KVM_IRQCHIP_PIC_SLAVE
    return RoutingEntry.irqchip(gsi, chip, pin % PIC_PINS_EACH)


def _fixed_entries() -> list[RoutingEntry]:
    """The kernel's default table, for its own timers; then a gsi for each single pin.

    The order matters: an end of interrupt is mapped back to the last gsi listed for a pin (row G08), which must be ours.
    """
    entries: list[RoutingEntry] = []
    for pin in range(IOAPIC_PINS):
        entries.append(RoutingEntry.irqchip(pin, KVM_IRQCHIP_IOAPIC, pin))
        if pin < PIC_PINS:
            entries.append(_pic_entry(pin, pin))
    entries += [RoutingEntry.irqchip(_IOAPIC_GSI + pin, KVM_IRQCHIP_IOAPIC, pin) for pin in range(IOAPIC_PINS)]
    entries += [_pic_entry(_PIC_GSI + pin, pin) for pin in range(PIC_PINS)]
    return entries
