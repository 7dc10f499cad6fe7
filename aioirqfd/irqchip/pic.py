"""The 8259 pair of a PC as an interrupt sink: the slave's INT output is pin 2 of the master."""

from __future__ import annotations

import operator
import threading
from typing import TYPE_CHECKING, Final, final

from aioirqfd import nodes
from aioirqfd.integers import plain
from aioirqfd.irqchip import fields
from aioirqfd.irqchip.pic_chip import PicChip
from aioirqfd.irqchip.pins import InputPins, Pinned
from aioirqfd.irqfd.interrupt import ASSERT, PIC_PINS, PULSE, Action
from aioirqfd.irqfd.plain import check_integers
from aioirqfd.uncopied import refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from aioirqfd.irqfd.interrupt import Interrupt

_MASTER_PINS: Final = 8
_CASCADE_PIN: Final = 2
_SPURIOUS_PIN: Final = 7
# Timer, keyboard and cascade on the master; clock and coprocessor error on the slave (82371 data sheet, ELCR1 and ELCR2).
_MASTER_EDGE_ONLY: Final = 0b0000_0111
_SLAVE_EDGE_ONLY: Final = 0b0010_0001
_VERSION: Final = 1


@final
class Pic(Pinned):
    """Two 8259A interrupt controllers, master and slave: a sink for routes ``IrqchipPin("pic", 0..15)``.

    The virtual machine monitor forwards the guest's port accesses to :meth:`io_read` and :meth:`io_write`, watches
    :attr:`output` (or is called by ``on_output``), and calls :meth:`intack` when the CPU takes the interrupt::

        pic = Pic(on_output=cpu.set_intr)
        async with IrqManager(pic) as irqs:
            irqs.set_routing({4: IrqchipPin("pic", 4)})

    Every interrupt is taken at once, so the work queue never waits for this sink. A PULSE on an edge-triggered pin stays
    pending until INTA; on a level-triggered one it leaves nothing (row W06), so route such pins to resample irqfds.

    Acknowledging: every EOI of a pin, the INTA under automatic EOI (row R18), and ICW1 for what it makes the chip forget
    (row R19) call the bound ``ack`` with the pin's gsi. The call comes before the new INT level is told to ``on_output``,
    so a line that ``ack`` lowers causes no second interrupt.

    The INT line between the chips is a wire: what the slave no longer asks for, the master does not ask the CPU for. (The
    kernel latches it, and a level line on the slave that falls before INTA becomes a spurious interrupt 15 there, and 7
    here.) Raising pin 2 itself is allowed, as in the kernel, and gives the spurious interrupt 15.

    Threads: every method may be called from any thread; ``ack`` and ``on_output`` are called without the lock, on the
    thread that caused them. ``on_output`` is never called by two threads at once nor from inside itself, and its last call
    always has the present level; a change that comes while it runs is told by the thread that runs it. After one that it
    raised for, the level is told again by whatever the chip is asked next.

    Args:
        on_output: Told of each change of the INT line to the CPU: True for an interrupt request.

    Source: Intel 8259A data sheet; kernel-contract rows W05, W06, R05, R18, R19, G08, L02.
    """

    __slots__ = ("_lock", "_master", "_on_output", "_output", "_reported", "_reporting", "_slave")

    def __init__(self, on_output: Callable[[bool], None] | None = None) -> None:
        self._lock = threading.Lock()
        super().__init__(InputPins("pic", PIC_PINS))
        self._master = PicChip(edge_only=_MASTER_EDGE_ONLY)
        self._slave = PicChip(edge_only=_SLAVE_EDGE_ONLY)
        self._on_output = on_output
        self._output = False
        self._reported: bool | None = False
        self._reporting = False

    def __repr__(self) -> str:
        return f"<Pic output={self._output} lines={self._pins.levels:#06x}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise refusal(self, "Take its snapshot(), and restore() that into another one.")

    # ------------------------------------------------------------------ the sink

    async def inject(self, interrupt: Interrupt) -> None:
        """Take an interrupt; never waits.

        Raises:
            RoutingError: The route is no pin of the PIC.
        """
        self.try_inject(interrupt)

    def try_inject(self, interrupt: Interrupt) -> bool:
        """Take an interrupt: PULSE raises and lowers the pin, ASSERT raises it, DEASSERT lowers it.

        Returns:
            True: it is always taken, if only to be merged with one that waits (row W05).

        Raises:
            RoutingError: The route is no pin of the PIC.
        """
        pin = self._pins.require(interrupt)
        with self._lock:
            self._apply(pin, interrupt.action)
            self._update()
        self._report()
        return True

    def try_inject_batch(self, interrupts: Sequence[Interrupt], /) -> int:
        """Take interrupts from the front.

        Returns:
            How many were taken: all, or those before the first whose route is no pin of the PIC.
        """
        taken = 0
        find = self._pins.find
        with self._lock:
            for interrupt in interrupts:
                pin = find(interrupt)
                if pin is None:
                    break
                self._apply(pin, interrupt.action)
                taken += 1
            self._update()
        self._report()
        return taken

    # ------------------------------------------------------------------ the virtual machine monitor

    def obstacle(self, interrupt: Interrupt) -> str | None:
        """See :class:`aioirqfd.ExplainingSink`. Of any thread."""
        pin = self._pins.find(interrupt)
        if pin is None:
            return None
        with self._lock:
            chip, line = self._where(pin)
            name = "master" if chip is self._master else "slave"
            if chip.imr >> line & 1:
                return f"the guest has masked pin {line} of the {name} PIC"
            if chip is self._slave and self._master.imr >> _CASCADE_PIN & 1:
                return "the guest has masked the slave PIC at the master"
            if chip.isr >> line & 1:
                return f"pin {line} of the {name} PIC is in service until the guest's end of interrupt"
            if chip.irr >> line & 1:
                return f"pin {line} of the {name} PIC asks, and the CPU has not acknowledged it"
        return None

    def inspect(self) -> dict[str, object]:
        """See :class:`aioirqfd.InspectedSink`: the INT line, and each pin. Any thread.

        Of each pin: ``masked``; ``requested`` and ``in_service``, its bits of IRR and ISR; ``level``, or else it is an edge;
        ``held_by``, who holds it up; ``requests``, how often it was raised; ``lost``, how many pulses went to nothing because it is
        level-triggered (row W06).
        """
        with self._lock:
            pins = {str(pin): self._inspect_pin(pin) for pin in range(PIC_PINS)}
            return {"output": self._output, "pins": nodes.Child(lambda: pins)}

    def _inspect_pin(self, pin: int) -> dict[str, object]:
        chip, line = self._where(pin)
        return {
            "gsi": self._pins.gsi(pin),
            "vector": chip.base | line,
            "masked": bool(chip.imr >> line & 1),
            "requested": bool((chip.irr | chip.wired) >> line & 1),
            "in_service": bool(chip.isr >> line & 1),
            "level": bool(chip.elcr >> line & 1),
            "held_by": self._pins.holders(pin),
            "requests": self._pins.requests[pin],
            "lost": self._pins.lost.get(pin, 0),
        }

    @property
    def output(self) -> bool:
        """The INT line to the CPU."""
        return self._output

    def set_irq(self, pin: int, level: int) -> int:
        """Drive a pin as a device does.

        The pin stays high as long as this or an ASSERT holds it up (row R09).

        Args:
            pin: 0..15.
            level: 0 lowers it, anything else raises it (row L04).

        Returns:
            As ``KVM_IRQ_LINE_STATUS`` (row L02): -1 if the pin is masked in its own chip, 0 if a new request was merged
            with one that waits already, else 1; lowering gives 1.

        Raises:
            RoutingError: EINVAL, no such pin.
        """
        pin = self._pins.check(pin)
        with self._lock:
            result = self._set_pin(pin, high=self._pins.drive(pin, level))
            self._update()
        self._report()
        return result

    def io_write(self, port: int, value: int) -> None:
        """Take a byte that the guest writes.

        Args:
            port: 0x20, 0x21 (master), 0xA0, 0xA1 (slave), 0x4D0, 0x4D1 (edge/level control).
            value: 0..255.

        Raises:
            ValueError: Another port or value.
        """
        byte = plain(value, 0x100)
        if byte is None:
            raise ValueError(f"a port of the PIC takes 0..255, not {value!r}")
        value = byte
        port = operator.index(port)
        ended = 0
        with self._lock:
            match port:
                case 0x20:
                    ended = self._master.write_command(value)
                case 0x21:
                    self._master.write_data(value)
                case 0xA0:
                    ended = self._slave.write_command(value) << _MASTER_PINS
                case 0xA1:
                    self._slave.write_data(value)
                case 0x4D0:
                    self._master.write_elcr(value)
                case 0x4D1:
                    self._slave.write_elcr(value)
                case _:
                    raise _no_port(port)
            self._update()
        self._acknowledge(ended)

    def io_read(self, port: int) -> int:
        """Give the byte that the guest reads: the IRR or ISR, the mask, the ELCR, or the answer to a poll.

        Raises:
            ValueError: Not one of the six ports of :meth:`io_write`.
        """
        port = operator.index(port)
        ended = 0
        with self._lock:
            match port:
                case 0x20 | 0x21 if self._master.poll:
                    value, ended = self._master.read_poll()
                case 0xA0 | 0xA1 if self._slave.poll:
                    value, ended = self._slave.read_poll()
                    ended <<= _MASTER_PINS
                case 0x20:
                    value = self._master.read_command()
                case 0x21:
                    value = self._master.imr
                case 0xA0:
                    value = self._slave.read_command()
                case 0xA1:
                    value = self._slave.imr
                case 0x4D0:
                    value = self._master.elcr
                case 0x4D1:
                    value = self._slave.elcr
                case _:
                    raise _no_port(port)
            self._update()
        self._acknowledge(ended)
        return value

    def intack(self) -> int:
        """Answer the CPU's interrupt acknowledge cycle (INTA).

        A request that has gone by then gives the chip's vector 7 and takes nothing into service: interrupt 7 from the
        master; 15 from the slave, for which pin 2 of the master is in service all the same.

        Returns:
            The vector, 0..255.
        """
        ended = 0
        with self._lock:
            master = self._master
            pin = master.request()
            if pin is None:
                vector = master.base | _SPURIOUS_PIN
            else:
                ended = master.acknowledge(pin)
                vector = master.base | pin
                if pin == _CASCADE_PIN and not master.single:
                    slave = self._slave
                    pin = slave.request()
                    vector = slave.base | (_SPURIOUS_PIN if pin is None else pin)
                    if pin is not None:
                        ended |= slave.acknowledge(pin) << _MASTER_PINS
            self._update()
        self._acknowledge(ended)
        return vector

    # ------------------------------------------------------------------ snapshots

    def snapshot(self) -> dict[str, object]:
        """The whole state but routing and callables, for JSON."""
        with self._lock:
            return {
                "version": _VERSION,
                "raised": self._pins.raised,
                "asserted": self._pins.asserted,
                "master": self._master.snapshot(),
                "slave": self._slave.snapshot(),
            }

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over the state of a snapshot; ``on_output`` is told if the INT line changes with it, ``ack`` is not called.

        Raises:
            SnapshotError: Malformed, of another version, or contradicting itself; nothing was changed.
        """
        check_integers(state)
        found = fields.section(state, "a PIC snapshot", ("version", "raised", "asserted", "master", "slave"))
        fields.version(found, _VERSION)
        raised = fields.number(found, "raised", 1 << PIC_PINS)
        asserted = fields.number(found, "asserted", 1 << PIC_PINS)
        lines = raised | asserted
        master = self._master.restored(found["master"], "the master", lines & 0xFF)
        slave = self._slave.restored(found["slave"], "the slave", lines >> _MASTER_PINS)
        with self._lock:
            self._pins.raised = raised
            self._pins.asserted = asserted
            self._master = master
            self._slave = slave
            self._update()
        self._report()

    # ------------------------------------------------------------------ inside

    def _apply(self, pin: int, action: Action) -> None:
        pins = self._pins
        if action is PULSE:
            self._set_pin(pin, high=pins.drive(pin, 1))
            if self._is_level(pin) and not pins.asserted >> pin & 1:
                pins.lose(pin)
            self._set_pin(pin, high=pins.drive(pin, 0))
        else:
            self._set_pin(pin, high=pins.hold(pin, action is ASSERT))

    def _is_level(self, pin: int) -> bool:
        chip, line = self._where(pin)
        return bool(chip.elcr >> line & 1)

    def _where(self, pin: int) -> tuple[PicChip, int]:
        return (self._master, pin) if pin < _MASTER_PINS else (self._slave, pin - _MASTER_PINS)

    def _set_pin(self, pin: int, *, high: bool) -> int:
        chip, line = self._where(pin)
        return chip.set_pin(line, high=high)

    def _update(self) -> None:
        master = self._master
        asked = not master.single and self._slave.request() is not None
        master.wired = 1 << _CASCADE_PIN if asked else 0
        self._output = master.request() is not None

    def _acknowledge(self, ended: int) -> None:
        try:
            self._pins.acknowledge(ended)
        finally:
            self._report()

    def _report(self) -> None:
        # Whoever changed the line sees its own change here; whoever is telling already goes on until nothing is new.
        if self._on_output is None or self._output is self._reported:
            return
        with self._lock:
            if self._reporting:
                return
            self._reporting = True
        while True:
            with self._lock:
                level = self._output
                if level is self._reported:
                    self._reporting = False
                    return
                self._reported = level
            try:
                self._on_output(level)
            except BaseException:
                # Perhaps it has heard, perhaps not: whatever comes next tells it the level, be it the same.
                with self._lock:
                    self._reporting = False
                    self._reported = None
                raise


def _no_port(port: int) -> ValueError:
    return ValueError(f"the PIC has the ports 0x20, 0x21, 0xa0, 0xa1, 0x4d0 and 0x4d1, not {port:#x}")
