"""One 8259A: its registers, and what each command word does to them. No lock, no callbacks; the pair adds those.

Source: the Intel 8259A data sheet, and 82371 (PIIX) for the edge/level control register. Not modelled, because a PC has no
use for it: 8080 mode, the LTIM bit (the ELCR decides for each pin), buffered mode, and slaves elsewhere than on pin 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from aioirqfd.errors import SnapshotError
from aioirqfd.irqchip import fields

if TYPE_CHECKING:
    from collections.abc import Mapping

_PINS: Final = 8
_LOWEST_PIN: Final = 7

_ICW1: Final = 0x10
_ICW1_IC4: Final = 0x01
_ICW1_SINGLE: Final = 0x02
_ICW2_BASE: Final = 0xF8
_ICW4_AUTO_EOI: Final = 0x02
_ICW4_SPECIAL_FULLY_NESTED: Final = 0x10
_OCW3: Final = 0x08
_OCW3_SPECIAL_MASK: Final = 0x20
_OCW3_SET_SPECIAL_MASK: Final = 0x40
_OCW3_POLL: Final = 0x04
_OCW3_READ: Final = 0x02
_OCW3_READ_ISR: Final = 0x01

# The three top bits of OCW2: rotate, specific, EOI.
_ROTATE_IN_AUTO_EOI_OFF: Final = 0
_ROTATE_IN_AUTO_EOI_ON: Final = 4
_NO_OPERATION: Final = 2
_SET_PRIORITY: Final = 6
_EOI: Final = 1
_EOI_ROTATE: Final = 5
_ROTATE: Final = 4

# Which write to the data port is the next one: an initialisation word, or (0) the mask.
_READY: Final = 0
_STEPS: Final = (_READY, 2, 3, 4)

_REGISTERS: Final = {
    "irr": 256,
    "isr": 256,
    "imr": 256,
    "elcr": 256,
    "sensed": 256,
    "base": 256,
    "lowest": 8,
    "step": 5,
}
_MODES: Final = (
    "auto_eoi",
    "expects_icw4",
    "poll",
    "read_isr",
    "rotate_in_auto_eoi",
    "single",
    "special_fully_nested",
    "special_mask",
)


@final
class PicChip:
    """The registers of one 8259A, pins 0..7.

    ``lines`` are the pins' levels; ``sensed`` is what the edge-sense circuit remembers of them, which ICW1 forgets.
    ``wired`` are the pins that another chip's INT output drives: they follow it, and are never latched.

    Args:
        edge_only: The pins that the ELCR cannot make level-triggered.
    """

    __slots__ = (*_REGISTERS, *_MODES, "edge_only", "lines", "wired")

    def __init__(self, *, edge_only: int) -> None:
        self.edge_only = edge_only
        self.lines = 0
        self.wired = 0
        self.irr = 0
        self.isr = 0
        self.imr = 0
        self.elcr = 0
        self.sensed = 0
        self.base = 0
        self.lowest = _LOWEST_PIN
        self.step = _READY
        self.auto_eoi = False
        self.expects_icw4 = False
        self.poll = False
        self.read_isr = False
        self.rotate_in_auto_eoi = False
        self.single = False
        self.special_fully_nested = False
        self.special_mask = False

    def set_pin(self, pin: int, *, high: bool) -> int:
        """Drive a pin.

        An edge is latched in the IRR until it is acknowledged, even if the pin falls before that; the data sheet would
        drop it, and with it every irqfd's pulse (rows W01, W05). The IRR bit of a level pin is the pin itself (row W06).

        Returns:
            As the kernel's status (row L02): -1 if the pin is masked, 0 if this was merged with a request that is waiting
            already, else 1.
        """
        bit = 1 << pin
        result = 1
        if high:
            self.lines |= bit
            if (self.elcr | ~self.sensed) & bit:
                result = 0 if self.irr & bit else 1
                self.irr |= bit
            self.sensed |= bit
        else:
            self.lines &= ~bit
            self.sensed &= ~bit
            self.irr &= ~(self.elcr & bit)
        return -1 if self.imr & bit else result

    def request(self) -> int | None:
        """The pin that the INT output stands for: the highest-ranking request that nothing in service keeps back."""
        wanted = (self.irr | self.wired) & ~self.imr
        if not wanted:
            return None
        # In the special mask mode a masked interrupt in service keeps back no other.
        serving = self.isr & ~self.imr if self.special_mask else self.isr
        for rank in range(_PINS):
            pin = (self.lowest + 1 + rank) % _PINS
            if serving >> pin & 1:
                # Special fully nested: the slave may interrupt its own service routine; it knows which of its pins may.
                again = self.special_fully_nested and wanted & self.wired & 1 << pin
                return pin if again else None
            if wanted >> pin & 1:
                return pin
        return None

    def acknowledge(self, pin: int) -> int:
        """Take the pin into service (INTA, or a poll).

        Returns:
            The pins, as a mask, whose interrupt ended with that: this one under automatic EOI (row R18), else none.
        """
        bit = 1 << pin
        self.irr &= ~(bit & ~self.elcr)
        if not self.auto_eoi:
            self.isr |= bit
            return 0
        if self.rotate_in_auto_eoi:
            self.lowest = pin
        return bit

    def write_command(self, value: int) -> int:
        """Take a byte for the even port: ICW1, OCW2 or OCW3.

        Returns:
            The pins, as a mask, whose interrupt ended with it.
        """
        if value & _ICW1:
            return self._initialise(value)
        if value & _OCW3:
            self._operate(value)
            return 0
        return self._end_or_rotate(value >> 5, value & _LOWEST_PIN)

    def write_data(self, value: int) -> None:
        """Take a byte for the odd port: the next initialisation word, or the mask (OCW1)."""
        match self.step:
            case 2:
                self.base = value & _ICW2_BASE
                self.step = 3 if not self.single else self._after_icw3()
            case 3:  # where the slaves are, or who this slave is: wired by the pair
                self.step = self._after_icw3()
            case 4:
                self.auto_eoi = bool(value & _ICW4_AUTO_EOI)
                self.special_fully_nested = bool(value & _ICW4_SPECIAL_FULLY_NESTED)
                self.step = _READY
            case _:
                self.imr = value

    def read_command(self) -> int:
        """The even port: the IRR, or the ISR if OCW3 chose it."""
        return self.isr if self.read_isr else self.irr | self.wired

    def read_poll(self) -> tuple[int, int]:
        """The read that a poll command asked for: it takes the request into service, as INTA would.

        Returns:
            The byte (bit 7: there was a request; bits 0..2: its pin, 7 if there was none), and the pins whose interrupt
            ended with it, as a mask.
        """
        self.poll = False
        pin = self.request()
        if pin is None:
            return _LOWEST_PIN, 0
        return 0x80 | pin, self.acknowledge(pin)

    def write_elcr(self, value: int) -> None:
        """Choose the level-triggered pins; the bits of the pins that have to be edge-triggered do not stick."""
        self.elcr = value & ~self.edge_only
        # A request that waits on a pin now edge-triggered stays; one on a pin now level-triggered is as the pin is.
        self.irr = self.irr & ~self.elcr | self.lines & self.elcr

    def _initialise(self, value: int) -> int:
        # What is forgotten here will never see an EOI, and its line would stay up for ever: it counts as ended (row R19).
        ended = self.irr & ~self.elcr | self.isr
        self.irr &= self.elcr
        self.isr = 0
        self.imr = 0
        self.sensed = 0
        self.lowest = _LOWEST_PIN
        self.poll = False
        self.read_isr = False
        self.rotate_in_auto_eoi = False
        self.special_mask = False
        self.single = bool(value & _ICW1_SINGLE)
        self.expects_icw4 = bool(value & _ICW1_IC4)
        if not self.expects_icw4:
            self.auto_eoi = False
            self.special_fully_nested = False
        self.step = 2
        return ended

    def _after_icw3(self) -> int:
        return 4 if self.expects_icw4 else _READY

    def _operate(self, value: int) -> None:
        if value & _OCW3_SET_SPECIAL_MASK:
            self.special_mask = bool(value & _OCW3_SPECIAL_MASK)
        if value & _OCW3_POLL:
            self.poll = True
        if value & _OCW3_READ:
            self.read_isr = bool(value & _OCW3_READ_ISR)

    def _end_or_rotate(self, command: int, level: int) -> int:
        if command in {_ROTATE_IN_AUTO_EOI_OFF, _ROTATE_IN_AUTO_EOI_ON}:
            self.rotate_in_auto_eoi = command == _ROTATE_IN_AUTO_EOI_ON
            return 0
        if command == _NO_OPERATION:
            return 0
        if command == _SET_PRIORITY:
            self.lowest = level
            return 0
        pin = self._highest_in_service() if command in {_EOI, _EOI_ROTATE} else level
        if pin is None:
            return 0
        self.isr &= ~(1 << pin)
        if command & _ROTATE:
            self.lowest = pin
        # A specific EOI counts even for a pin that was not in service (row R05).
        return 1 << pin

    def _highest_in_service(self) -> int | None:
        # In the special mask mode a masked one is left to a specific EOI.
        serving = self.isr & ~self.imr if self.special_mask else self.isr
        for rank in range(_PINS):
            pin = (self.lowest + 1 + rank) % _PINS
            if serving >> pin & 1:
                return pin
        return None

    def snapshot(self) -> dict[str, object]:
        """The registers, for JSON. The lines are the pair's to keep."""
        return {name: getattr(self, name) for name in (*_REGISTERS, *_MODES)}

    def restored(self, value: object, what: str, lines: int) -> PicChip:
        """A chip in this one's place, with the registers of a snapshot.

        Args:
            value: What :meth:`snapshot` returned, perhaps by way of JSON.
            what: How to call it in an error.
            lines: The levels of its pins.

        Raises:
            SnapshotError: Malformed, or registers that contradict each other or the lines.
        """
        state: Mapping[str, object] = fields.section(value, what, (*_REGISTERS, *_MODES))
        chip = PicChip(edge_only=self.edge_only)
        chip.lines = lines
        for name, limit in _REGISTERS.items():
            setattr(chip, name, fields.number(state, name, limit))
        for name in _MODES:
            setattr(chip, name, fields.flag(state, name))
        if chip.step not in _STEPS:
            raise SnapshotError(f"{what}: step is one of {_STEPS}, not {chip.step}")
        if chip.base & ~_ICW2_BASE:
            raise SnapshotError(f"{what}: the vector base is a multiple of 8, not {chip.base}")
        if chip.elcr & chip.edge_only:
            raise SnapshotError(f"{what}: elcr {chip.elcr:#04x} has pins that are always edge-triggered")
        if chip.sensed & ~lines or (chip.irr ^ lines) & chip.elcr:
            raise SnapshotError(f"{what}: the registers do not fit the pins, which are {lines:#04x}")
        return chip
