"""What the sink behind an IOAPIC knows of each pin's end of interrupt."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, final

from aioirqfd.irqfd.interrupt import IOAPIC_PINS

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioirqfd.irqfd.interrupt import Msi


@final
class Endings:
    """Tells the sink of each pin's message whose end somebody waits for, in the order in which the pins were programmed.

    Args:
        tell: The sink's ``set_eoi_message``; None: it has nothing to know.
        message: The message of a pin whose end somebody waits for, as it is now, or None.

    Attributes:
        untold: The pins, as a mask, of which the sink could not be told: a message that it were sent for one of them would never end.

    Raises:
        Exception: What the sink refuses to forget of an IOAPIC that was before it.

    Threads:
        Any. The sink is called under a lock of this object's own.
    """

    __slots__ = ("_known", "_lock", "_message", "_tell", "untold")

    def __init__(self, tell: Callable[[int, Msi | None], None] | None, message: Callable[[int], Msi | None]) -> None:
        self._lock = threading.Lock()
        self._message = message
        self._known: list[Msi | None] = [None] * IOAPIC_PINS
        self._tell = tell
        self.untold = 0
        if self._tell is not None:
            for pin in range(IOAPIC_PINS):
                self._tell(pin, None)

    def tell(self, pin: int) -> None:
        """Tell it of a pin, if it does not know.

        Raises:
            Exception: What the sink says; it is to be told again before anything of the pin's goes out.
        """
        if self._tell is None:
            return
        bit = 1 << pin
        with self._lock:
            message = self._message(pin)
            self.untold |= bit
            if message != self._known[pin]:
                self._tell(pin, message)
                self._known[pin] = message
            self.untold &= ~bit

    def retell(self, pin: int) -> None:
        """Tell it of a pin that it could not be told of. Raises as :meth:`tell` does."""
        if self.untold >> pin & 1:
            self.tell(pin)
