"""An IOAPIC as an interrupt sink: 24 pins in, messages (MSIs) out to another sink."""

from __future__ import annotations

import asyncio
import contextlib
import operator
import threading
from typing import TYPE_CHECKING, Final, final

from aioirqfd import nodes
from aioirqfd.errors import SnapshotError
from aioirqfd.integers import plain
from aioirqfd.irqchip import fields
from aioirqfd.irqchip.endings import Endings
from aioirqfd.irqchip.ioapic_entry import IoApicEntry
from aioirqfd.irqchip.ioapic_pin import IoApicPin
from aioirqfd.irqchip.pins import InputPins, Pinned
from aioirqfd.irqfd.guard import call_each
from aioirqfd.irqfd.interrupt import ASSERT, DEASSERT, IOAPIC_PINS, PULSE, Interrupt, Msi
from aioirqfd.irqfd.plain import check_integers
from aioirqfd.irqfd.sink import SinkTiers
from aioirqfd.uncopied import refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from aioirqfd.irqchip.ioapic_pin import Request
    from aioirqfd.irqfd.sink import FastSink

_IOREGSEL: Final = 0x00
_IOWIN: Final = 0x10
_EOI: Final = 0x40
_ID: Final = 0
_VERSION_REGISTER: Final = 1
_ARBITRATION: Final = 2
_TABLE: Final = 0x10
_ID_SHIFT: Final = 24
_HIGHEST_PIN_SHIFT: Final = 16
_WITH_EOI_REGISTER: Final = 0x20
_VERSIONS: Final = (0x11, _WITH_EOI_REGISTER)
_SIZES: Final = (1, 2, 4, 8)
_SNAPSHOT_VERSION: Final = 1


@final
class IoApic(Pinned):
    """An 82093AA: a sink for routes ``IrqchipPin("ioapic", 0..23)`` that hands messages on to another sink.

    The virtual machine monitor forwards the guest's accesses to the register window to :meth:`mmio_read` and
    :meth:`mmio_write`, and the CPUs' EOI broadcasts to :meth:`eoi`. Each interrupt goes out as
    ``Interrupt(gsi, Msi(...), PULSE)``, composed from the pin's redirection entry::

        ioapic = IoApic(local_apics)
        async with IrqManager(ioapic) as irqs:              # gsi n is pin n without any table
            ...

    Requests: an edge gives one message for each rise of the pin; while the pin is masked it is remembered, and goes out at
    unmask. (Data sheet and kernel forget it; here a mask delays and never drops.) A level gives one message, then waits for
    the EOI (remote IRR, row W07), and another one if it is still high by then. An EOI acknowledges every pin whose entry has
    its vector, level or edge, masked or not (row R20), before what is still high goes out again; so a line that ``ack``
    lowers gives no second message.

    Backpressure: when ``out`` refuses a message, :meth:`try_inject` returns False and :meth:`inject` waits in
    ``out.inject``. A PULSE that was refused is not taken and stays its caller's, like any refused interrupt. A line stays as
    it was set, and its request waits here; so does that of an unmask, an EOI, :meth:`set_irq` or :meth:`restore`, which
    nobody would repeat. :attr:`waiting` has those pins and ``on_blocked`` is called; they go out with the pin's next event,
    or by :meth:`flush`.

    With a :class:`~aioirqfd.sinks.KvmSink` as ``out`` this is the kernel's split irqchip, whose local APICs take messages
    only; unlike there (row I04), resample irqfds work. The guest's end of interrupt is a ``KVM_EXIT_IOAPIC_EOI`` of its vCPU:
    hand :meth:`aioirqfd.kvm.Vcpu.eoi_exit` to :meth:`eoi`. The kernel gives it for the pins that are level-triggered or have
    had an ASSERT; the sink is told which messages these are (:class:`aioirqfd.EoiSink`).

    Threads: every method may be called from any thread, :meth:`inject` and :meth:`flush` from the loop that ``out``
    belongs to. All callables, and ``out``, are called without the lock, on the thread that caused them; ``set_eoi_message``
    alone under a lock of its own, so that it hears of the pins' messages in their order.

    Args:
        out: Takes the messages. An exception from its ``try_inject`` counts as a refusal.
        on_blocked: Told when ``out`` has refused a request that waits here now; arrange for a :meth:`flush`.
        resample: Asked with a gsi when the guest unmasks its level pin while a request waits there (row R21). It signals
            the gsi's resamplefds and returns True, or returns False if the gsi has none. After True the request is dropped
            without a message and without lowering the line: it may be stale, and the devices assert again if it is not. That
            of a device that holds the pin up itself (:meth:`set_irq`) is not dropped: it is never stale.
        version: What the version register says: 0x20, with an EOI register, or 0x11, without.

    Raises:
        ValueError: Another version.
        TypeError: ``out`` is no sink, or has no ``try_inject``.

    Source: Intel 82093AA data sheet; kernel-contract rows W07, R20, R21, L05, G08, I04.
    """

    __slots__ = (
        "_endings",
        "_id",
        "_lock",
        "_on_blocked",
        "_out",
        "_resample",
        "_select",
        "_table",
        "_version",
    )

    def __init__(
        self,
        out: FastSink,
        *,
        on_blocked: Callable[[], None] | None = None,
        resample: Callable[[int], bool] | None = None,
        version: int = _WITH_EOI_REGISTER,
    ) -> None:
        tiers = SinkTiers(out)
        if tiers.try_inject is None:
            raise TypeError(
                f"what is behind an IOAPIC takes messages by try_inject(), and by inject(); {out!r} by inject() alone"
            )
        if version not in _VERSIONS:
            raise ValueError(f"the IOAPIC's version is 0x11 or 0x20, not {version!r}")
        self._lock = threading.Lock()
        super().__init__(InputPins("ioapic", IOAPIC_PINS))
        self._table = tuple(IoApicPin(pin) for pin in range(IOAPIC_PINS))
        self._out = out
        self._on_blocked = on_blocked
        self._resample = resample
        self._version = version
        self._id = 0
        self._select = 0
        # What ``out`` knows of each pin's ends of interrupt. Its lock is taken before the IOAPIC's, which it asks in turn.
        self._endings = Endings(tiers.set_eoi_message, self._ended_by)

    def __repr__(self) -> str:
        return f"<IoApic lines={self._pins.levels:#08x} waiting={sorted(self.waiting)}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise refusal(self, "Take its snapshot(), and restore() that into another one.")

    # ------------------------------------------------------------------ the sink

    async def inject(self, interrupt: Interrupt) -> None:
        """Take an interrupt, and wait until ``out`` has taken the message that it causes, if it causes one.

        Raises:
            RoutingError: The route is no pin of the IOAPIC.
            Exception: What ``out.inject`` raised; the interrupt counts as not delivered.

        Cancellation: as for an exception.
        """
        if interrupt.action is DEASSERT:
            self.try_inject(interrupt)
            return
        pin = self._table[self._pins.require(interrupt)]
        self._note_ending(pin, interrupt)
        while True:
            with self._lock:
                early = self._too_early(pin, interrupt)
                request = None if early else self._apply(pin, interrupt)
            if not early:
                break
            await asyncio.sleep(0)  # another thread ends the pin's interrupt just now
        if request is not None:
            await self._send_waiting(request)

    def try_inject(self, interrupt: Interrupt) -> bool:
        """Take an interrupt: PULSE raises and lowers the pin, ASSERT raises it, DEASSERT lowers it.

        Returns:
            False if it causes a message that ``out`` refuses, or is a pulse that comes while the end of a level pin's interrupt is
            told: :meth:`inject` it then. Else True, also for a pin that is masked or waits for its EOI, and always for DEASSERT:
            the line is low, whatever else the pin still owes.

        Raises:
            RoutingError: The route is no pin of the IOAPIC.
        """
        pin = self._table[self._pins.require(interrupt)]
        self._note_ending(pin, interrupt)
        with self._lock:
            if self._too_early(pin, interrupt):
                return False
            request = self._apply(pin, interrupt)
        return request is None or self._send(request) or interrupt.action is DEASSERT

    def try_inject_batch(self, interrupts: Sequence[Interrupt], /) -> int:
        """Take interrupts from the front.

        Returns:
            How many were taken: all, or those before the first that ``out`` refuses or whose route is no pin of the IOAPIC.
        """
        taken = 0
        # An error is of what was not taken: those before it are, and the slow way meets it again.
        with contextlib.suppress(Exception):
            for interrupt in interrupts:
                if self._pins.find(interrupt) is None or not self.try_inject(interrupt):
                    break
                taken += 1
        return taken

    def obstacle(self, interrupt: Interrupt) -> str | None:
        """See :class:`aioirqfd.ExplainingSink`. Of any thread."""
        number = self._pins.find(interrupt)
        if number is None:
            return None
        with self._lock:
            pin = self._table[number]
            if pin.entry.masked:
                return f"the guest has masked pin {number} of the IOAPIC"
            if pin.entry.remote_irr:
                return f"pin {number} of the IOAPIC waits for the guest's end of interrupt"
            if pin.request:
                return f"pin {number} of the IOAPIC has a request that its `out` has not taken; flush() tries again"
        return None

    def inspect(self) -> dict[str, object]:
        """See :class:`aioirqfd.InspectedSink`: the pins, and what waits for ``out``. Any thread.

        Of each pin: ``masked``; ``requested``; ``in_service``, a level-triggered message is out and its EOI has not come (remote IRR);
        ``level``, or else it is an edge; ``vector``, and ``message``, where it goes; ``held_by``, who holds it up; ``requests``, how often
        it was raised; ``lost``, how many pulses went to nothing because it is level-triggered, and masked or in service.
        """
        with self._lock:
            pins = {str(pin.number): self._inspect_pin(pin) for pin in self._table}
            waiting = [pin.number for pin in self._table if pin.due]
        return {"waiting": waiting, "out": type(self._out).__qualname__, "pins": nodes.Child(lambda: pins)}

    def _inspect_pin(self, pin: IoApicPin) -> dict[str, object]:
        entry, message = pin.entry, pin.entry.message()
        return {
            "gsi": self._pins.gsi(pin.number),
            "vector": entry.vector,
            "message": f"{message.address:#x} data {message.data:#x}",
            "masked": entry.masked,
            "requested": pin.request,
            "in_service": entry.remote_irr,
            "level": entry.level,
            "held_by": self._pins.holders(pin.number),
            "requests": self._pins.requests[pin.number],
            "lost": self._pins.lost.get(pin.number, 0),
        }

    @property
    def waiting(self) -> frozenset[int]:
        """The pins whose message ``out`` has refused, and which :meth:`flush` would send."""
        with self._lock:
            return frozenset(pin.number for pin in self._table if pin.due)

    async def flush(self) -> None:
        """Send what waits for ``out``, lowest pin first, waiting for it.

        Raises:
            Exception: What ``out`` raised; that request and those after it wait on.

        Cancellation: as for an exception.
        """
        for pin in self._table:
            self._endings.retell(pin.number)
            with self._lock:
                request = self._take(pin)
            if request is not None:
                await self._send_waiting(request)

    # ------------------------------------------------------------------ the virtual machine monitor

    def set_irq(self, pin: int, level: int) -> int:
        """Drive a pin as a device does; it stays high as long as this or an ASSERT holds it up (row R09).

        Args:
            pin: 0..23.
            level: 0 lowers it, anything else raises it (row L04).

        Returns:
            As ``KVM_IRQ_LINE_STATUS`` (rows L02, L05): -1 if the pin is masked or waits for its EOI; 0 if it is an edge pin
            that was high already, or the message waits for ``out``; else 1. Lowering gives 1.

        Raises:
            RoutingError: EINVAL, no such pin.
        """
        driven = self._table[self._pins.check(pin)]
        with self._lock:
            was_high = bool(self._pins.levels >> driven.number & 1)
            ignored = not driven.open
            merged = was_high and not driven.entry.level
            high = self._pins.drive(driven.number, level)
            driven.moved(was_high=was_high, high=high)
            request = self._take(driven)
        sent = request is not None and self._send(request)
        if not high or sent:
            return 1
        return -1 if ignored and not merged else 0

    def mmio_write(self, offset: int, value: int, size: int = 4) -> None:
        """Take a write of the guest to the register window.

        Args:
            offset: Bytes from the window's start; only the low 8 bits count. 0x00 IOREGSEL, 0x10 IOWIN, 0x40 EOI
                (version 0x20); what is elsewhere is ignored.
            value: Unsigned, of that size; a register takes its low 32 bits.
            size: 1, 2, 4 or 8 bytes.

        Raises:
            ValueError: Another size, or a value that does not fit it.
        """
        size = _check_size(size)
        written = plain(value, 1 << 8 * size)
        if written is None:
            raise ValueError(f"a write of {size} bytes cannot be {value!r}")
        value = written
        match operator.index(offset) & 0xFF:
            case 0x00:
                self._select = value & 0xFF
            case 0x10:
                self._write_register(value)
            case 0x40 if self._version == _WITH_EOI_REGISTER:
                self.eoi(value & 0xFF)
            case _:
                pass

    def mmio_read(self, offset: int, size: int = 4) -> int:
        """Give what the guest reads from the register window: IOREGSEL, IOWIN, or 0 elsewhere.

        Raises:
            ValueError: A size other than 1, 2, 4 or 8.
        """
        size = _check_size(size)
        value = 0
        with self._lock:
            match operator.index(offset) & 0xFF:
                case 0x00:
                    value = self._select
                case 0x10:
                    value = self._read_register()
                case _:
                    pass
        return value & ((1 << 8 * size) - 1)

    def eoi(self, vector: int) -> None:
        """End the interrupts of a vector: a CPU's EOI broadcast, or the guest's write to the EOI register.

        Every pin with that vector is acknowledged (row R20); then the level pins that are still high go out again.

        Args:
            vector: 0..255.
        """
        with self._lock:
            ended = [pin for pin in self._table if pin.entry.vector == vector]
            for pin in ended:
                pin.entry.remote_irr = False
                pin.changing += 1
        try:
            self._pins.acknowledge(sum(1 << pin.number for pin in ended))
        finally:
            self._release(ended)

    # ------------------------------------------------------------------ snapshots

    def snapshot(self) -> dict[str, object]:
        """The whole state but routing and callables, for JSON. Take it while nothing is injected or acknowledged."""
        with self._lock:
            return {
                "version": _SNAPSHOT_VERSION,
                "hardware_version": self._version,
                "id": self._id,
                "select": self._select,
                "raised": self._pins.raised,
                "asserted": self._pins.asserted,
                "irr": sum(pin.request << pin.number for pin in self._table),
                "entries": [pin.entry.bits for pin in self._table],
            }

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over the state of a snapshot; what waited for ``out`` goes out, and ``ack`` is not called.

        Raises:
            SnapshotError: Malformed, of another version, or contradicting itself; nothing was changed.
        """
        check_integers(state)
        names = ("version", "hardware_version", "id", "select", "raised", "asserted", "irr", "entries")
        found = fields.section(state, "an IOAPIC snapshot", names)
        fields.version(found, _SNAPSHOT_VERSION)
        if fields.number(found, "hardware_version", 0x100) != self._version:
            raise SnapshotError(f"this IOAPIC has the hardware version {self._version:#x}, the snapshot another one")
        identity = fields.number(found, "id", 0x10)
        select = fields.number(found, "select", 0x100)
        raised = fields.number(found, "raised", 1 << IOAPIC_PINS)
        asserted = fields.number(found, "asserted", 1 << IOAPIC_PINS)
        irr = fields.number(found, "irr", 1 << IOAPIC_PINS)
        entries = [IoApicEntry(bits) for bits in fields.numbers(found, "entries", IOAPIC_PINS, 2**64)]
        for number, entry in enumerate(entries):
            if not entry.valid:
                raise SnapshotError(f"entry {number} cannot be {entry.bits:#x}")
            if entry.level and (irr & ~(raised | asserted)) >> number & 1:
                raise SnapshotError(f"level pin {number} is low and has a request")
        with self._lock:
            self._id = identity
            self._select = select
            self._pins.raised = raised
            self._pins.asserted = asserted
            for pin, entry in zip(self._table, entries, strict=True):
                pin.load(entry, request=bool(irr >> pin.number & 1))
                pin.ends = pin.ends or bool(asserted >> pin.number & 1)
                pin.changing += 1
        try:
            call_each(self._endings.tell, range(IOAPIC_PINS))
        finally:
            self._release(self._table)

    # ------------------------------------------------------------------ registers

    def _read_register(self) -> int:
        match self._select:
            case 0 | 2:  # the arbitration id is loaded from the id, and nothing here arbitrates
                return self._id << _ID_SHIFT
            case 1:
                return (IOAPIC_PINS - 1) << _HIGHEST_PIN_SHIFT | self._version
            case _:
                pin, half = divmod(self._select - _TABLE, 2)
                return self._table[pin].entry.read(half) if 0 <= pin < IOAPIC_PINS else 0

    def _write_register(self, value: int) -> None:
        with self._lock:
            if self._select == _ID:
                self._id = value >> _ID_SHIFT & 0x0F
            number, half = divmod(self._select - _TABLE, 2)
            if not 0 <= number < IOAPIC_PINS:
                return
            pin = self._table[number]
            was_masked = pin.entry.masked
            pin.write(half, value, high=bool(self._pins.levels >> number & 1))
            stale = self._resample is not None and was_masked and pin.entry.level and pin.due
            pin.request = pin.request and not stale
            pin.changing += 1
        try:
            try:
                self._endings.tell(number)
            finally:
                if stale:
                    self._ask_to_resample(pin)
        finally:
            self._release((pin,))

    def _ask_to_resample(self, pin: IoApicPin) -> None:
        # The request is dropped before the devices hear of it: what one of them asserts from then on is a new one.
        gsi = self._pins.gsi(pin.number)
        handled = False
        try:
            handled = self._resample is not None and gsi is not None and self._resample(gsi)
        finally:
            with self._lock:
                holds = self._pins.raised if handled else self._pins.levels
                pin.request = pin.request or bool(holds >> pin.number & 1)

    # ------------------------------------------------------------------ ends of interrupt

    def _note_ending(self, pin: IoApicPin, interrupt: Interrupt) -> None:
        """The first ASSERT: from now on the end of this pin's interrupt is waited for, though it be an edge (row R20).

        Or ``out`` could not be told of it before, and is tried again.
        """
        new = interrupt.action is ASSERT and not pin.ends
        if new:
            with self._lock:
                pin.ends = True
        if new or (self._endings.untold >> pin.number & 1 and interrupt.action is not DEASSERT):
            self._endings.tell(pin.number)

    def _ended_by(self, pin: int) -> Msi | None:
        with self._lock:
            return self._table[pin].ended_by()

    # ------------------------------------------------------------------ requests

    def _apply(self, pin: IoApicPin, interrupt: Interrupt) -> Request | None:
        pins, number = self._pins, pin.number
        was_high = bool(pins.levels >> number & 1)
        action = interrupt.action
        if action is not PULSE:
            pin.moved(was_high=was_high, high=pins.hold(number, action is ASSERT))
            return self._take(pin, gsi=interrupt.gsi)
        kept = pin.request
        pin.moved(was_high=was_high, high=pins.drive(number, 1))
        request = self._take(pin, gsi=interrupt.gsi, kept=kept)
        high = pins.drive(number, 0)
        if request is None and pin.entry.level and not high:
            pins.lose(number)
        pin.moved(was_high=True, high=high)
        return request

    def _too_early(self, pin: IoApicPin, interrupt: Interrupt) -> bool:
        """Whether it is a pulse of a level pin whose end of interrupt is being told: nothing of it would be left afterwards."""
        return bool(pin.changing and interrupt.action is PULSE and pin.entry.level and pin.open)

    def _take(self, pin: IoApicPin, *, gsi: int | None = None, kept: bool = True) -> Request | None:
        """Take a pin's request out of the registers, if it may go out now; ``gsi``: whose interrupt it is, where that is known."""
        if not pin.due or self._endings.untold >> pin.number & 1:
            return None
        if gsi is None:
            gsi = self._pins.gsi(pin.number)
        return pin.take(pin.number if gsi is None else gsi, kept=kept)

    def _give_back(self, request: Request) -> bool:
        with self._lock:
            request.pin.give_back(request)
            return request.pin.due

    def _send(self, request: Request) -> bool:
        try:
            taken = self._out.try_inject(Interrupt(request.gsi, request.message))
        except Exception:
            taken = False  # as the sink protocol says; the waiting path meets the error again, and reports it
        except BaseException:
            self._give_back(request)
            raise
        if not taken and self._give_back(request) and self._on_blocked is not None:
            self._on_blocked()
        return bool(taken)

    async def _send_waiting(self, request: Request) -> None:
        try:
            await self._out.inject(Interrupt(request.gsi, request.message))
        except BaseException:
            self._give_back(request)
            raise

    def _service(self, pin: IoApicPin) -> None:
        with self._lock:
            request = self._take(pin)
        if request is not None:
            self._send(request)

    def _release(self, pins: Iterable[IoApicPin]) -> None:
        with self._lock:
            for pin in pins:
                pin.changing -= 1
        call_each(self._service, pins)


def _check_size(size: int) -> int:
    number = size if type(size) is int else plain(size, max(_SIZES) + 1)
    if number not in _SIZES:
        raise ValueError(f"an access is of 1, 2, 4 or 8 bytes, not {size!r}")
    return number
