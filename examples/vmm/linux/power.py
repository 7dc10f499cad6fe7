"""Power management: ACPI's fixed registers, the reset ports, and the port by which a kernel says that it has panicked.

There are no power events, so nothing ever interrupts; sleep is the only thing that the guest can ask for, and to be off is the only
sleep there is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from examples.vmm.linux import address_map as at
from examples.vmm.linux.acpi import SLEEP_TYPE_OFF
from examples.vmm.linux.machine import Ending

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_ENABLE: Final = at.PM1_EVENT.start + 2
"""The event block is two registers, what has happened and what shall interrupt. Nothing happens."""
_SCI_EN: Final = 1 << 0
"""PM1_CONTROL: power events are the guest's. They always were: no firmware has them first."""
_SLP_TYP: Final = 10
"""PM1_CONTROL: 3 bits from here on are the type of sleep."""
_SLP_EN: Final = 1 << 13
"""PM1_CONTROL: written as 1, go to sleep; read as 0."""

KEYBOARD: Final = 0x64
"""The keyboard controller's command port. There is no keyboard, but its reset line is the oldest way to start a PC anew."""
_PULSE_RESET: Final = 0xFE
RESET_CONTROL: Final = 0xCF9
"""The chipset's reset register, inside the PCI configuration ports, which are accessed by four bytes from 0xcf8."""
_RESET_CPU: Final = 1 << 2
_PANICKED: Final = 1 << 0


@final
class Power:
    """How a guest ends by itself.

    Args:
        end: Told what the guest wants, in the thread of the vCPU that wants it; the machine's own ``end``, which heeds the first.

    Attributes:
        ports: Where its registers are.

    Threads: :meth:`port_in` and :meth:`port_out` on any.
    """

    def __init__(self, end: Callable[[Ending], None]) -> None:
        self._end = end
        self._enabled = 0
        self._control = 0
        self.ports: Sequence[range] = (
            at.PANIC_PORTS,
            at.PM1_EVENT,
            at.PM1_CONTROL,
            at.RESET,
            range(KEYBOARD, KEYBOARD + 1),
            range(RESET_CONTROL, RESET_CONTROL + 1),
        )

    def save_state(self) -> dict[str, object]:
        """Its two registers."""
        return {"enabled": self._enabled, "control": self._control}

    def restore_state(self, state: dict[str, object]) -> None:
        """Its two registers."""
        self._enabled, self._control = int(str(state["enabled"])), int(str(state["control"]))

    def port_in(self, port: int, size: int) -> int:
        """A register; what has none reads as 0."""
        value = 0
        if port == at.PANIC_PORTS.start:
            value = _PANICKED  # that this can be said there
        elif port == at.PM1_EVENT.start:
            value = self._enabled << 16
        elif port == _ENABLE:
            value = self._enabled
        elif port == at.PM1_CONTROL.start:
            value = self._control | _SCI_EN
        return value & ((1 << 8 * size) - 1)

    def port_out(self, port: int, size: int, value: int) -> None:
        """A register, or the end."""
        if port == at.PANIC_PORTS.start and value & _PANICKED:
            self._end(Ending.PANIC)
        elif port == at.PM1_EVENT.start and size == 4:
            self._enabled = value >> 16
        elif port == _ENABLE:
            self._enabled = value & 0xFFFF
        elif port == at.PM1_CONTROL.start:
            self._control = value & ~_SLP_EN
            if value & _SLP_EN and value >> _SLP_TYP & 7 == SLEEP_TYPE_OFF:
                self._end(Ending.POWER_OFF)
        elif (
            (port == at.RESET.start and value == at.RESET_VALUE)
            or (port == KEYBOARD and value == _PULSE_RESET)
            or (port == RESET_CONTROL and value & _RESET_CPU)
        ):
            self._end(Ending.RESET)
