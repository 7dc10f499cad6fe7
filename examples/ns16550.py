"""The registers of a 16550A, the serial port of every PC, without its wires: what it is plugged into brings those.

Eight bytes of ports, more registers than that, and most of them change by being read (the data sheet is PC16550D).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DATA, ENABLE, IDENTIFY, LINE, MODEM, STATUS, MODEM_STATUS, SCRATCH = range(8)
"""Offsets. A write to IDENTIFY controls the FIFOs; with LATCH set in LINE the first two are the divisor."""
RECEIVED, SENT, TROUBLE = 0x01, 0x02, 0x04
"""ENABLE: interrupt when a byte came, when there is room to send, when a byte was lost."""
LATCH: Final = 0x80
RTS, OUT2, LOOP = 0x02, 0x08, 0x10
"""MODEM: ready for input; the interrupt is connected (so it is wired in a PC); what is sent is received."""
READY, OVERRUN, EMPTY = 0x01, 0x02, 0x60
"""STATUS: there is input; some was lost; there is room to send (and all is sent, which are two bits)."""
FIFO: Final = 16
"""Bytes in each direction: input kept for the guest, and what it may send when it is told of room."""
_REGISTERS: Final = ("enabled", "control", "line", "modem", "scratch", "divisor", "overrun")
_THRESHOLDS: Final = (1, 4, 8, 14)


@final
class Ns16550:
    """The chip, seen from both sides: the guest's by :meth:`read` and :meth:`write`, the world's by the rest.

    The wire is as fast as whoever calls :meth:`take`: what the guest sends is sent at once as long as there is room for it.
    A receiver that says nothing for four characters' time interrupts for what lies below its threshold; here that time is 0.

    Args:
        limit: Bytes kept that nobody has taken, 16 or more; the guest is told of no room when 16 more might not fit.

    Attributes:
        sent: What the guest has sent, for :meth:`take`.
        dropped: Bytes that the guest sent although it was told that there is no room.

    Threads: one at a time.
    """

    def __init__(self, limit: int = 4096) -> None:
        self.limit = limit
        self.sent = bytearray()
        self.dropped = 0
        self.received: deque[int] = deque()
        self.reset()

    def reset(self) -> None:
        """Set the registers as the chip has them after a reset. What was sent before is on the wire, and stays."""
        self.enabled = self.control = self.line = self.modem = self.scratch = self.divisor = 0
        self.overrun = False
        self.received.clear()
        self._news = self.empty  # that there is room, which the guest has not been told by an interrupt yet

    def save_state(self) -> dict[str, object]:
        """Everything, as JSON has it."""
        registers = {name: getattr(self, name) for name in _REGISTERS}
        return {**registers, "news": self._news, "sent": self.sent.hex(), "received": list(self.received)}

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Everything."""
        for name in _REGISTERS:
            setattr(self, name, state[name])
        self._news = state["news"]
        self.sent[:] = bytes.fromhex(state["sent"])
        self.received = deque(state["received"])

    # ------------------------------------------------------------------------------------------------- the world's side

    @property
    def room(self) -> int:
        """How much input is welcome: what fits while the guest holds RTS, for then a driver listens."""
        return self._depth - len(self.received) if self.modem & (RTS | LOOP) == RTS else 0

    def receive(self, data: Iterable[int]) -> None:
        """Take input, no more bytes than there is :attr:`room` for."""
        self.received.extend(data)

    @property
    def empty(self) -> bool:
        """Whether there is room for another FIFO of output."""
        return len(self.sent) <= self.limit - FIFO

    def take(self) -> bytes:
        """What the guest has sent; now there is room for more."""
        data = bytes(self.sent)
        if not self.empty:
            self._news = True
        self.sent.clear()
        return data

    # docs: begin interrupts
    @property
    def cause(self) -> int:
        """Why the guest is to be interrupted, the most urgent first, as IDENTIFY codes it; 1: there is no reason."""
        if self.overrun and self.enabled & TROUBLE:
            return 0x06
        if self.received and self.enabled & RECEIVED:
            threshold = _THRESHOLDS[self.control >> 6] if self.control & 1 else 1
            return 0x04 if len(self.received) >= threshold else 0x0C
        return 0x02 if self._news and self.enabled & SENT else 0x01

    @property
    def interrupt(self) -> bool:
        """The wire to the interrupt controller: up as long as there is a reason, and connected by OUT2."""
        return self.cause != 0x01 and self.modem & (OUT2 | LOOP) == OUT2

    # docs: end interrupts

    # ------------------------------------------------------------------------------------------------- the guest's side

    def read(self, offset: int) -> int:
        """One register; some of them change by it."""
        match offset:
            case 0 | 1 if self.line & LATCH:
                return self.divisor >> 8 * offset & 0xFF
            case 0:
                return self.received.popleft() if self.received else 0
            case 1:
                return self.enabled
            case 2:
                cause = self.cause
                if cause == 0x02:
                    self._news = False  # now it knows
                return cause | (0xC0 if self.control & 1 else 0)
            case 3:
                return self.line
            case 4:
                return self.modem
            case 5:
                value = (READY if self.received else 0) | (OVERRUN if self.overrun else 0)
                self.overrun = False
                return value | (EMPTY if self.empty or self.modem & LOOP else 0)
            case 6:
                return self._wires()
            case _:
                return self.scratch

    def write(self, offset: int, value: int) -> None:
        """One register."""
        match offset:
            case 0 | 1 if self.line & LATCH:
                self.divisor = self.divisor & ~(0xFF << 8 * offset) | value << 8 * offset
            case 0:
                self._send(value)
                self._news = self.empty
            case 1:
                if value & SENT & ~self.enabled:  # whoever begins to ask whether there is room is told
                    self._news = self.empty
                self.enabled = value & 0x0F
            case 2:
                if value & 2 or (value ^ self.control) & 1:
                    self.received.clear()
                self.control = value
            case 3:
                self.line = value
            case 4:
                self.modem = value & 0x1F
            case 7:
                self.scratch = value
            case _:
                pass  # the two states are read-only

    @property
    def _depth(self) -> int:
        return FIFO if self.control & 1 else 1

    def _send(self, value: int) -> None:
        if self.modem & LOOP:
            if len(self.received) < self._depth:
                self.received.append(value)
            else:
                self.overrun = True
        elif len(self.sent) < self.limit:
            self.sent.append(value)
        else:
            self.dropped += 1

    def _wires(self) -> int:
        """The modem's wires: a partner that is always there and always ready; looped back, the chip's own outputs."""
        if not self.modem & LOOP:
            return 0xB0
        return (self.modem & 0x0C) << 4 | (self.modem & 0x01) << 5 | (self.modem & RTS) << 3
